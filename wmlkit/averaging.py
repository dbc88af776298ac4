"""The exponential moving average of each peer's weights (`train.ema_decay`): what a run measures, scores and exports.

Training does not see it: losses, the targets of the mutual term and the outer problem are those of the peers
themselves, so a run learns the same with and without it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from transformers import PreTrainedModel


def decay_at(decay: float, updates: int) -> float:
    """Share that the average keeps at 1-based update number `updates`: it rises to `decay`.

    From (1 + n) / (10 + n), as usual: with `decay` from the start, a short run would still hold its random weights.

    >>> decay_at(0.99, 1), decay_at(0.99, 10_000)
    (0.18181818181818182, 0.99)
    """
    return min(decay, (1 + updates) / (10 + updates))


def average_of(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of `model` to keep its average in; it is never trained."""
    average = copy.deepcopy(model)
    average.requires_grad_(False)
    average.eval()
    return average


@torch.no_grad()
def update(averages: Iterable[PreTrainedModel], models: Iterable[PreTrainedModel], decay: float, updates: int) -> None:
    """Take the models' weights after update number `updates` into their averages, in place."""
    for average, model in zip(averages, models, strict=True):
        share = 1 - decay_at(decay, updates)
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)
