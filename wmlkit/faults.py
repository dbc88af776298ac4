"""What goes wrong in the arithmetic of a step: numbers that are not finite, memory that runs out, no compiler."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .device import Device
from .errors import UserError, first_line

Result = TypeVar("Result")

TERMS = ("ce", "kl", "gradient")  # in the order in which a fault spreads: a loss that is not finite has no gradient
_NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # torch's words on a CPU; on MPS; by cuBLAS


def gradient_norms(peers: Iterable[Iterable[Tensor]]) -> Tensor:
    """(P,): norm of each peer's gradient, before clipping, from the peers' parameters."""
    return torch.stack([torch.nn.utils.get_total_norm([p.grad for p in peer if p.grad is not None]) for peer in peers])


def note(seen: Tensor | None, values: Sequence[Tensor], step: int) -> Tensor:
    """(3, P) int64: for each of `TERMS` and each peer the first step where it was not finite, 0 where it always was.

    seen: what `note` gave at the step before, None at first. values: (P,) a term. Nothing is copied from a device, so
    that nothing waits for it.
    """
    bad = ~torch.isfinite(torch.stack([value.detach().float() for value in values]))
    before = torch.zeros(bad.shape, dtype=torch.int64, device=bad.device) if seen is None else seen
    return torch.where(bad & (before == 0), step, before)


def raise_first(seen: Tensor, hint: str = "") -> None:
    """Raises UserError for the first fault of `note`, naming step, term and peer; hint: what else is to be said."""
    steps = seen.cpu()
    if not steps.any():
        return
    step = int(steps[steps > 0].min())
    term, peer = (steps == step).nonzero()[0].tolist()
    raise not_finite(step, TERMS[term], peer, hint)


def not_finite(step: int, term: str, peer: int, hint: str = "") -> UserError:
    """What to say of a term of peer number `peer`, from 0."""
    return UserError(
        f"step {step}: the {term} of peer {peer + 1} is not finite, expected a number{hint}; lower train.lr (or "
        "train.muon_lr), which makes another run, from its beginning; this one would go on from its last checkpoint"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch said that there is no memory left, on a card or in the machine."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY))


def not_compiled(error: RuntimeError) -> UserError | None:
    """What to say where torch.compile failed; None of another error, one of memory among them."""
    from torch._dynamo.exc import TorchDynamoException  # a second, and loaded wherever something was compiled

    if is_out_of_memory(error) or not isinstance(error, TorchDynamoException):
        return None
    cause = getattr(error, "inner_exception", error)  # without a first line that names the backend alone
    return UserError(
        f"torch.compile failed ({first_line(cause)}); train.compile expected a working C++ compiler, on a card also "
        "Triton and a C compiler; install them, or set train.compile to false"
    )


def free_memory(device: torch.device) -> None:
    """Let go of what Python and torch's allocator hold for nobody."""
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()


def once_more(measure: Callable[[], Result], device: Device) -> Result:
    """`measure()`, and again where memory ran out the first time: what another run on the card held for a moment may be
    free then. For what changes nothing, so that it may be done twice."""
    try:
        return measure()
    except (RuntimeError, MemoryError) as error:
        if device.processes > 1 or not is_out_of_memory(error):  # the others wait at another place
            raise
    free_memory(device.device)  # outside of the handler: the error holds what was made
    return measure()
