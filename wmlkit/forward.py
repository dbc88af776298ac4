"""From peers and a batch to logits at the positions that count, in the forms that losses and outer problem need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from .bilevel import Forward, InnerBatch, OuterBatch, Parameters
from .closed_form import Head
from .data.batches import Batch
from .faults import not_compiled
from .losses import WHOLE, MutualOptions, Share
from .models import decoder, head_transform, hidden_at, layers


class AtPositions(nn.Module):
    """A model read at given flat positions only: its last layer's feed-forward part and its head run on those alone."""

    def __init__(self, model: PreTrainedModel, compiled: bool = False) -> None:
        """compiled: within `head` the layers run through torch.compile, of masked models all but the last, whose parts
        `hidden_at` calls one by one; the model stays as it is otherwise."""
        super().__init__()
        self.model = model
        self._compiled: list[tuple[nn.Module, Callable[..., Any]]] = []
        if compiled:
            if torch.are_deterministic_algorithms_enabled():
                torch.use_deterministic_algorithms(True, warn_only=True)  # the compiler too, see `device.setup`
            # Layer by layer: layers that are alike share what is compiled, so it takes half the time of the whole (log
            # 20). Each shape of a layer counts against the limit.
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
            self._compiled = [(layer, torch.compile(layer.forward, dynamic=True)) for layer in layers(model)]

    @cached_property
    def weights(self) -> list[Tensor]:
        """The parameters, tied ones once. Kept, as a step asks five times and torch walks all modules for them."""
        return list(self.model.parameters())

    def features(self, batch: Batch, index: Tensor) -> Tensor:
        """(N, H) at flat positions `index` (N,): what the decoder maps to logits."""
        hidden = hidden_at(self.model, batch.input_ids, batch.attention_mask, batch.position_ids, index)
        return head_transform(self.model)(hidden)

    def head(self, batch: Batch, index: Tensor) -> Head:
        """The logits at flat positions `index` (N,), not made yet. Raises UserError where torch.compile fails."""
        last = decoder(self.model)
        for layer, forward in self._compiled:
            layer.forward = forward
        try:
            return Head(self.features(batch, index), last.weight, last.bias)
        except RuntimeError as error:
            if self._compiled and (known := not_compiled(error)):
                raise known from None
            raise
        finally:
            for layer, _ in self._compiled:
                del layer.forward  # that of its class again

    def forward(self, batch: Batch, index: Tensor) -> Tensor:
        """(N, V) logits at flat positions `index` (N,); never compiled, as the outer problem differentiates it."""
        return decoder(self.model)(self.features(batch, index))


def parameters_of(module: AtPositions) -> dict[str, Tensor]:
    """A peer's parameters by name; tied weights once."""
    return dict(module.named_parameters())


def frozen_heads(teacher: AtPositions | None, batch: Batch, index: Tensor) -> Iterator[Head]:
    """The head of a frozen teacher at flat positions `index`, without gradient; none without a teacher."""
    if teacher is not None:
        with torch.no_grad():  # not inference_mode: the loss keeps its logits for the backward pass
            head = teacher.head(batch, index)
        yield Head(*(None if x is None else x.detach() for x in head))  # type: ignore[arg-type]


def frozen_logits(teacher: AtPositions | None, batch: Batch, index: Tensor) -> list[Tensor]:
    """Logits (N, V) of a frozen teacher at flat positions `index`, without gradient; none without a teacher."""
    return [head.logits() for head in frozen_heads(teacher, batch, index)]


def kl_positions(batch: Batch, positions: str) -> tuple[Tensor, Tensor | None]:
    """(flat positions of the KL, which of them are scored): all scored (None) for "scored"; (N,), (N,) for "all"."""
    if positions == "scored":
        return batch.scored, None
    is_scored = torch.zeros(batch.targets.shape, dtype=torch.bool, device=batch.targets.device)
    is_scored.index_fill_(0, batch.scored, True)  # an assignment would wait for a card
    return batch.real, is_scored[batch.real]


def share_of(part: Batch, whole: Batch, positions: str, options: MutualOptions) -> Share:
    """The part's share of a batch's CE and KL; that of the whole is 1 and 1."""
    ce = len(part.scored) / len(whole.scored)
    if options.kl_reduction == "batchmean":  # over the whole batch's rows, so a part's own mean counts by its rows
        return Share(ce, len(part.input_ids) / len(whole.input_ids))
    return Share(ce, ce if positions == "scored" else len(part.real) / len(whole.real))


def _functional(module: AtPositions, batch: Batch, index: Tensor) -> Forward:
    def forward(parameters: Parameters) -> Tensor:
        return functional_call(module, dict(parameters), (batch, index))

    return forward


def inner_batch(
    peers: Sequence[AtPositions],
    batch: Batch,
    positions: str,
    teacher: AtPositions | None = None,
    share: Share = WHOLE,
) -> InnerBatch:
    """L1 on `batch`, which may be a `share` of one, as functions of the peers' parameters."""
    index, scored = kl_positions(batch, positions)
    forward = [_functional(peer, batch, index) for peer in peers]
    frozen = partial(frozen_logits, teacher, batch, index)
    return InnerBatch(forward, batch.targets[index], scored, len(batch.input_ids), frozen, share)


def outer_batch(
    peers: Sequence[AtPositions], batch: Batch, teacher: AtPositions | None = None, share: float = 1.0
) -> OuterBatch:
    """L2 on `batch`, which may be a `share` of one, at its scored positions, as functions of the peers' parameters."""
    forward = [_functional(peer, batch, batch.scored) for peer in peers]
    frozen = partial(frozen_logits, teacher, batch, batch.scored)
    return OuterBatch(forward, batch.targets[batch.scored], frozen, share)


@contextmanager
def evaluation_mode(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """All `models` in evaluation mode inside the block, as they were after it."""
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, was_training in zip(models, training, strict=True):
            model.train(was_training)
