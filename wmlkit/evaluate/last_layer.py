"""Logits at chosen places only, without the work of the head and of the last layer that no chosen place needs.

A masked copy of a sentence is read at one position. In the last layer the other positions matter only as keys and
values, so its queries, its output projection and its feed-forward part are computed at that position alone: about
three quarters of the layer saved, half of all work for a student of two layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from ..models import FAMILIES, hidden_states, lm_logits, no_cache


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
    return Reader(lambda ids, row, position: _logits(model, ids)[row, position], lambda states: states, apart=False)


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    output = model(input_ids=ids, **no_cache(model))
    # A model with a second head, as BertForPreTraining, gives the first one's under a longer name.
    return output["logits" if "logits" in output else "prediction_logits"]  # type: ignore[no-any-return]


@torch.inference_mode()
def _comes_apart(model: PreTrainedModel) -> bool:
    ids = torch.arange(8, device=model.device)[None] % model.config.vocab_size
    expected = _logits(model, ids).float()
    try:
        found = lm_logits(model, hidden_states(model, ids)).float()
    except (AttributeError, TypeError, RuntimeError):  # no such head, no such output, or states of another shape
        return False
    return found.shape == expected.shape and bool(torch.allclose(found, expected, atol=1e-5, rtol=1e-5))


def hidden_at_places(model: PreTrainedModel, input_ids: Tensor, row: Tensor, position: Tensor) -> Tensor:
    """Last hidden states at (row, position), (B, T) ids without padding -> (K, H); row and position are (K,).

    RoBERTa models that are read once in every row take the short way; the numbers are the same to rounding.
    """
    once = len(row) == len(input_ids) and bool((row == torch.arange(len(row), device=row.device)).all())
    if once and model.config.model_type == "roberta" and not model.config.is_decoder:
        return _roberta_at(model, input_ids, position)
    return hidden_states(model, input_ids)[row, position]


def _roberta_at(model: PreTrainedModel, input_ids: Tensor, position: Tensor) -> Tensor:
    trunk: Any = model.base_model
    hidden = trunk.embeddings(input_ids=input_ids)  # (B, T, H)
    for layer in trunk.encoder.layer[:-1]:
        hidden = layer(hidden)
    last = trunk.encoder.layer[-1]
    attention = last.attention.self
    rows, _, width = hidden.shape
    read = hidden[torch.arange(rows, device=hidden.device), position].unsqueeze(1)  # (B, 1, H)

    def heads(states: Tensor) -> Tensor:
        """(B, T, H) -> (B, heads, T, H / heads)"""
        return states.view(rows, -1, attention.num_attention_heads, attention.attention_head_size).transpose(1, 2)

    mixed = scaled_dot_product_attention(
        heads(attention.query(read)), heads(attention.key(hidden)), heads(attention.value(hidden))
    )
    mixed = mixed.transpose(1, 2).reshape(rows, 1, width)
    output: Tensor = last.feed_forward_chunk(last.attention.output(mixed, read))
    return output.squeeze(1)
