"""The moving average of each peer's parameters (`train.ema_decay`): what a run measures, scores and exports.

Training does not see it: losses, the targets of the mutual term and the outer problem are those of the peers
themselves, so a run learns the same with and without it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch

from .forward import AtPositions


def decay_at(decay: float, updates: int) -> float:
    """Share that the average keeps at 1-based update number `updates`: it rises to `decay`.

    From (1 + n) / (10 + n), as usual: with `decay` from the start, a short run would still hold its random start.

    >>> decay_at(0.99, 1), decay_at(0.99, 10_000)
    (0.18181818181818182, 0.99)
    """
    return min(decay, (1 + updates) / (10 + updates))


def average_of(peer: AtPositions) -> AtPositions:
    """A copy of `peer` to keep its average in; it is never trained."""
    average = AtPositions(copy.deepcopy(peer.model))
    average.requires_grad_(False)
    average.eval()
    return average


@torch.no_grad()
def update(averages: Iterable[AtPositions], peers: Iterable[AtPositions], decay: float, updates: int) -> None:
    """Take the peers' weights after update number `updates` into their averages, in place."""
    for average, peer in zip(averages, peers, strict=True):
        torch._foreach_lerp_(average.weights, peer.weights, 1 - decay_at(decay, updates))
