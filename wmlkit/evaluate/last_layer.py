"""Logits at chosen places only, without the work of the head and of the last layer that no chosen place needs.

A masked copy of a sentence is read at one position. In the last layer the other positions matter only to attention, so
its output projection and feed-forward part, most of its work, are computed at that position alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..models import FAMILIES, hidden_at, hidden_states, lm_logits, no_cache
from ..settings import MASKED_FAMILIES


@dataclass(frozen=True)
class Reader:
    """How logits are read off a model: logits(states(ids, row, position)), (B, T), (K,), (K,) -> (K, V)."""

    states: Callable[[Tensor, Tensor, Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    apart: bool  # states are hidden states; else they are the logits already


def logits_at(model: PreTrainedModel) -> Reader:
    """Trunk and head apart where that gives the model's own logits, so that the head runs at the K places only.

    For the families of `models` it does by construction, for others where one small pass shows it. Else the whole
    model is run: scaled or capped logits, for example, come after the head.
    """
    if model.config.model_type in FAMILIES or _comes_apart(model):
        return Reader(partial(hidden_at_places, model), partial(lm_logits, model), apart=True)
    return Reader(lambda ids, row, position: logits_of(model, ids)[row, position], lambda states: states, apart=False)


def logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits of the whole model, (B, T) ids -> (B, T, V)."""
    output = model(input_ids=ids, **no_cache(model))
    # A model with a second head, as BertForPreTraining, gives the first one's under a longer name.
    return output["logits" if "logits" in output else "prediction_logits"]


@torch.inference_mode()
def _comes_apart(model: PreTrainedModel) -> bool:
    ids = torch.arange(8, device=model.device)[None] % model.config.vocab_size
    expected = logits_of(model, ids).float()
    try:
        found = lm_logits(model, hidden_states(model, ids)).float()
    except (AttributeError, TypeError, RuntimeError):  # no such head, no such output, or states of another shape
        return False
    return found.shape == expected.shape and bool(torch.allclose(found, expected, atol=1e-5, rtol=1e-5))


def hidden_at_places(model: PreTrainedModel, input_ids: Tensor, row: Tensor, position: Tensor) -> Tensor:
    """Last hidden states at ascending (row, position), (B, T) ids without padding -> (K, H); row and position are (K,).

    The last layer of the masked families is computed at these places alone (`models.hidden_at`).
    """
    if model.config.model_type not in MASKED_FAMILIES:
        return hidden_states(model, input_ids)[row, position]
    length = input_ids.shape[1]
    positions = torch.arange(length, device=input_ids.device).expand_as(input_ids)
    return hidden_at(model, input_ids, None, positions, row * length + position)
