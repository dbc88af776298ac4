"""From peers and a batch to logits at the positions that count, in the forms that losses and outer problem need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from .bilevel import Forward, InnerBatch, OuterBatch, Parameters
from .data.batches import Batch
from .models import hidden_states, lm_logits


class AtPositions(nn.Module):
    """A model whose output is its logits at given flat positions: the head runs on those alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, index: Tensor) -> Tensor:
        """(N, V) logits at flat positions `index` (N,)."""
        hidden = hidden_states(self.model, batch.input_ids, batch.attention_mask, batch.position_ids)  # (B, T, H)
        return lm_logits(self.model, hidden.flatten(0, 1)[index])  # (B*T, H) -> (N, H) -> (N, V)


def parameters_of(module: AtPositions) -> dict[str, Tensor]:
    """A peer's parameters by name; tied weights once."""
    return dict(module.named_parameters())


def frozen_logits(teacher: AtPositions | None, batch: Batch, index: Tensor) -> list[Tensor]:
    """Logits (N, V) of a frozen teacher at flat positions `index`, without gradient; none without a teacher."""
    if teacher is None:
        return []
    with torch.no_grad():  # not inference_mode: the loss keeps these for its backward pass
        return [teacher(batch, index)]


def kl_positions(batch: Batch, positions: str) -> tuple[Tensor, Tensor | None]:
    """(flat positions of the KL, which of them are scored): all scored (None) for "scored"; (N,), (N,) for "all"."""
    if positions == "scored":
        return batch.scored, None
    is_scored = torch.zeros(batch.targets.shape, dtype=torch.bool, device=batch.targets.device)
    is_scored[batch.scored] = True
    return batch.real, is_scored[batch.real]


def _functional(module: AtPositions, batch: Batch, index: Tensor) -> Forward:
    def forward(parameters: Parameters) -> Tensor:
        return functional_call(module, dict(parameters), (batch, index))

    return forward


def inner_batch(
    peers: Sequence[AtPositions], batch: Batch, positions: str, teacher: AtPositions | None = None
) -> InnerBatch:
    """L1 on `batch` as functions of the peers' parameters."""
    index, scored = kl_positions(batch, positions)
    forward = [_functional(peer, batch, index) for peer in peers]
    frozen = frozen_logits(teacher, batch, index)
    return InnerBatch(forward, batch.targets[index], scored, len(batch.input_ids), frozen)


def outer_batch(peers: Sequence[AtPositions], batch: Batch, teacher: AtPositions | None = None) -> OuterBatch:
    """L2 on `batch`, at its scored positions, as functions of the peers' parameters."""
    forward = [_functional(peer, batch, batch.scored) for peer in peers]
    return OuterBatch(forward, batch.targets[batch.scored], frozen_logits(teacher, batch, batch.scored))
