"""The outer problem: one-step hypergradient and mirror descent on the peers' weights. Pure functions.

    min_w  L2(w, theta'(w)),   theta' = step(grad_theta L1(theta; w)),   on held-out text
    dL2/dw_m = [dL2/dw_m at fixed theta']  +  < grad_theta L2(theta'), J grad_theta A_m(theta) >

A_m = dL1/dw_m, and J = d theta'/dg is the Jacobian of the inner step (-gamma for SGD). Equations: "Outer
problem" in docs/notation.md. Released code: the second term is cut off by a `detach` (`direct`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import vjp
from torch.nn import functional as F

from . import losses
from .forward_mode import differentiable
from .losses import MutualOptions, Share
from .updates import Parameters, Update

Sum = Callable[[Sequence[Tensor]], list[Tensor]]  # of each tensor over all processes that hold parts of a batch
Forward = Callable[[Parameters], Tensor]  # parameters of one peer -> its logits (N, V) on a fixed batch


@dataclass(frozen=True)
class InnerBatch:
    """L1 on one batch. forward: one function a peer; targets, scored, batch_size: as in `losses.mutual_loss`.

    frozen: makes the logits (N, V) of a frozen teacher, which come behind the peers' (`MutualOptions.frozen` of them),
    when they are needed: not those of all parts at one time.
    share: of the batch, where this is a part of it (`losses.Share`).
    """

    forward: Sequence[Forward]
    targets: Tensor
    scored: Tensor | None
    batch_size: int
    frozen: Callable[[], list[Tensor]]
    share: Share


@dataclass(frozen=True)
class OuterBatch:
    """L2 on one held-out batch. forward: one function a peer; targets: (N,) token ids; frozen: as in `InnerBatch`;
    share: of the batch's tokens, where this is a part of it."""

    forward: Sequence[Forward]
    targets: Tensor
    frozen: Callable[[], list[Tensor]]
    share: float


def outer_loss(logits: Sequence[Tensor], targets: Tensor, peer_weights: Tensor, objective: str) -> Tensor:
    """L2 in nats per scored token: P tensors (N, V), (N,), (P,) -> scalar. A frozen teacher counts as a peer here.

    logit_ensemble       CE of sum_i w_i z_i (what the method describes)
    probability_mixture  -log sum_i w_i p_i[y]
    weighted_ce          sum_i w_i CE_i (what the released code computes; linear in w)

    Raises ValueError for another `objective`.

    >>> right, blind = torch.tensor([[4.0, 0.0]]), torch.zeros(1, 2)  # two peers, one token, two words
    >>> weights = torch.tensor([0.5, 0.5])
    >>> for name in ("logit_ensemble", "probability_mixture", "weighted_ce"):
    ...     print(name, round(float(outer_loss([right, blind], torch.tensor([0]), weights, name)), 3))
    logit_ensemble 0.127
    probability_mixture 0.3
    weighted_ce 0.356
    """
    weights = peer_weights.to(logits[0].dtype)
    if objective == "logit_ensemble":
        return F.cross_entropy(torch.einsum("p,pnv->nv", weights, torch.stack(list(logits))), targets)
    ce = torch.stack([F.cross_entropy(z, targets, reduction="none") for z in logits])  # (P, N)
    if objective == "probability_mixture":
        low = ce.detach().amin(dim=0)  # relative to the best peer, as small probabilities alone would be 0
        # weights may be 0, where a log of theirs would have an infinite slope: they stay outside it
        return (low - (weights[:, None] * (low - ce).exp()).sum(dim=0).log()).mean()
    if objective == "weighted_ce":
        return (weights * ce.mean(dim=1)).sum()
    raise ValueError(f"unknown outer objective {objective!r}")


def hypergradient(
    parameters: Sequence[Parameters],
    peer_weights: Tensor,
    inner: InnerBatch | Sequence[InnerBatch],
    outer: OuterBatch | Sequence[OuterBatch],
    options: MutualOptions,
    *,
    updates: Sequence[Update] | None,
    objective: str = "logit_ensemble",
    gradients: Sequence[Parameters] | None = None,
    total: Sum = list,
) -> tuple[Tensor, Tensor]:
    """(dL2/dw, L2): gradient (P,), a frozen teacher included, and value of L2, in nats per scored token.

    The sum of the two `hypergradient_terms`, whose arguments it takes.
    """
    explicit, correction, value = hypergradient_terms(
        parameters, peer_weights, inner, outer, options,
        updates=updates, objective=objective, gradients=gradients, total=total,
    )  # fmt: skip
    return explicit + correction, value


def hypergradient_terms(
    parameters: Sequence[Parameters],
    peer_weights: Tensor,
    inner: InnerBatch | Sequence[InnerBatch],
    outer: OuterBatch | Sequence[OuterBatch],
    options: MutualOptions,
    *,
    updates: Sequence[Update] | None,
    objective: str,
    gradients: Sequence[Parameters] | None = None,
    total: Sum = list,
) -> tuple[Tensor, Tensor, Tensor]:
    """(explicit term, correction, L2) in nats per scored token: dL2/dw_m at fixed theta', (P,);
    < grad_theta L2, J grad_theta A_m >, (P,); and the value. A frozen teacher counts as a peer.

    parameters: each peer's theta. updates: each peer's step as a function of its gradient, theta' = step(g)
    (`updates.sgd_update`, `updates.optimizer_update`); None keeps the explicit term, taken at theta (`direct`): the
    second is 0.
    gradients: grad_theta L1 of the whole batch where the training step has it already; computed here if None.
    inner, outer: a batch, or the parts of it that this process holds; total: sums tensors over the processes.
    First-order gradients and one directional derivative a peer; the models are not changed. With
    dropout the passes draw different units to leave out, which adds noise.
    """
    parameters = [{k: v.detach() for k, v in peer.items()} for peer in parameters]
    weights = peer_weights.detach()
    if updates is None:
        explicit, _, value = outer_gradients(parameters, weights, outer, objective, respond=False, total=total)
        return explicit, torch.zeros_like(explicit), value
    gradients = gradients or inner_gradients(parameters, weights, inner, options, total)
    steps = [vjp(update, dict(gradient)) for update, gradient in zip(updates, gradients, strict=True)]
    stepped = [step[0] for step in steps]
    explicit, slopes, value = outer_gradients(stepped, weights, outer, objective, respond=True, total=total)
    # d theta'/dw_m = (d theta'/dg) grad A_m, so the slope of L2 is pulled back through the step first
    directions = [step[1](slope)[0] for step, slope in zip(steps, slopes, strict=True)]
    if own_gradient_tells(options) and bool((weights > 0).all()):
        moved = [
            sum((direction[k] * gradient[k]).sum() for k in direction)
            for direction, gradient in zip(directions, gradients, strict=True)
        ]
        correction = F.pad(torch.stack(moved), (0, options.frozen)) / weights
    else:
        correction = directional_weight_losses(parameters, directions, inner, options, total)
    return explicit, correction.to(explicit.dtype), value


def own_gradient_tells(options: MutualOptions) -> bool:
    """Whether w_m multiplies peer m's whole loss and nothing else, so that grad A_m = (grad_theta_m L1) / w_m."""
    return options.kl_weight == "student" and options.ce_weight == "peer" and options.detach_targets


def inner_gradients(
    parameters: Sequence[Parameters],
    peer_weights: Tensor,
    inner: InnerBatch | Sequence[InnerBatch],
    options: MutualOptions,
    total: Sum = list,
) -> list[dict[str, Tensor]]:
    """grad_theta L1(theta; w), one mapping a peer."""
    leaves = _leaves(parameters)
    sums: list[Tensor] = []
    for part in _parts(inner):
        logits = [*(forward(peer) for forward, peer in zip(part.forward, leaves, strict=True)), *part.frozen()]
        loss = losses.mutual_loss(logits, part.targets, peer_weights, options, part.batch_size, part.scored, part.share)
        sums = _added(sums, loss.total, leaves)
    return _by_name(total(sums or _zeros(leaves)), leaves)


def outer_gradients(
    parameters: Sequence[Parameters],
    peer_weights: Tensor,
    outer: OuterBatch | Sequence[OuterBatch],
    objective: str,
    respond: bool,
    total: Sum = list,
) -> tuple[Tensor, list[dict[str, Tensor]], Tensor]:
    """(dL2/dw at fixed theta, grad_theta L2 one mapping a peer, L2); the second empty unless `respond`."""
    weights = peer_weights.detach().requires_grad_()
    leaves = _leaves(parameters)
    explicit, value = torch.zeros_like(weights), torch.zeros_like(weights[0])
    sums: list[Tensor] = []
    for part in _parts(outer):
        with torch.set_grad_enabled(respond):
            logits = [*(forward(peer) for forward, peer in zip(part.forward, leaves, strict=True)), *part.frozen()]
        own = part.share * outer_loss(logits, part.targets, weights, objective)
        explicit = explicit + torch.autograd.grad(own, weights, retain_graph=respond)[0]
        value = value + own.detach()
        if respond:
            sums = _added(sums, own, leaves)
    sums = sums if sums or not respond else _zeros(leaves)
    explicit, value, *sums = total([explicit.detach(), value.detach(), *sums])
    return explicit, _by_name(sums, leaves) if respond else [], value


def _parts(batch: Any) -> Sequence[Any]:
    return [batch] if isinstance(batch, (InnerBatch, OuterBatch)) else batch


def _leaves(parameters: Sequence[Parameters]) -> list[dict[str, Tensor]]:
    return [{k: v.detach().requires_grad_() for k, v in peer.items()} for peer in parameters]


def _added(sums: Sequence[Tensor], value: Tensor, leaves: Sequence[Parameters]) -> list[Tensor]:
    flat = [leaf for peer in leaves for leaf in peer.values()]
    found = torch.autograd.grad(value, flat, allow_unused=True)
    new = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, flat, strict=True)]
    return [s + g for s, g in zip(sums, new, strict=True)] if sums else new


def _zeros(leaves: Sequence[Parameters]) -> list[Tensor]:
    return [torch.zeros_like(leaf) for peer in leaves for leaf in peer.values()]


def _by_name(flat: Sequence[Tensor], leaves: Sequence[Parameters]) -> list[dict[str, Tensor]]:
    values = iter(flat)
    return [{name: next(values) for name in peer} for peer in leaves]


def directional_weight_losses(
    parameters: Sequence[Parameters],
    directions: Sequence[Parameters],
    inner: InnerBatch | Sequence[InnerBatch],
    options: MutualOptions,
    total: Sum = list,
) -> Tensor:
    """< v, grad_theta A_m(theta) > for every m at once: one forward-mode derivative a peer, (P,).

    With `target` weights A_m depends on all peers, so reverse mode would take P backward passes through each
    of P peers. Forward mode needs attention written out: the fused kernels have none.
    """
    value = next(iter(parameters[0].values())).new_zeros(len(parameters) + options.frozen)
    for part in _parts(inner):
        logits, tangents = [], []
        for forward, peer, direction in zip(part.forward, parameters, directions, strict=True):
            with torch.no_grad(), differentiable(value.device), forward_ad.dual_level():
                z = forward_ad.unpack_dual(forward({k: forward_ad.make_dual(v, direction[k]) for k, v in peer.items()}))
            logits.append(z.primal)
            tangents.append(z.tangent)
        value = value + losses.weight_loss_slopes(
            [*logits, *part.frozen()], tangents, part.targets, options, part.batch_size, part.scored, part.share
        )
    return total([value])[0]


def mirror_step(peer_weights: Tensor, gradient: Tensor, outer_lr: float, min_weight: float = 0.0) -> Tensor:
    """w_m exp(-eta g_m) / sum_n w_n exp(-eta g_n), in log space and float64: (P,), (P,) -> (P,).

    Adding a constant to g changes nothing; no weight is negative; the sum is exactly 1. Weights under
    `min_weight` are set to it and the rest scaled (the projection in Kullback-Leibler divergence). Raises ValueError
    where `min_weight` times P exceeds 1.

    >>> equal = torch.tensor([0.5, 0.5])
    >>> mirror_step(equal, torch.tensor([-1.0, 1.0]), outer_lr=0.5)  # peer 1 helps: its slope is negative
    tensor([0.7311, 0.2689], dtype=torch.float64)
    >>> mirror_step(equal, torch.tensor([3.0, 3.0]), outer_lr=0.5)  # only differences count
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    return on_simplex(log_mirror_step(peer_weights.double().log(), gradient, outer_lr, min_weight))


def log_mirror_step(log_weights: Tensor, gradient: Tensor, outer_lr: float, min_weight: float = 0.0) -> Tensor:
    """`mirror_step` of the weights' logarithms, (P,) -> (P,), which is what training keeps from step to step: a weight
    that is nothing beside 1 in float64 goes on falling or comes back, where its rounded value would stay."""
    count = len(log_weights)
    if min_weight * count > 1:
        raise ValueError(f"min_weight {min_weight} times {count} peers exceeds 1")
    log_weights = torch.log_softmax(log_weights - outer_lr * gradient.double(), dim=0)
    floor = math.log(min_weight) if min_weight else -math.inf
    low = torch.zeros(count, dtype=torch.bool)
    while (newly := (log_weights < floor) & ~low).any():
        low |= newly
        log_weights[low] = floor
        if not low.all():
            log_weights[~low] += math.log1p(-min_weight * int(low.sum())) - log_weights[~low].logsumexp(0)
    return log_weights


def on_simplex(log_weights: Tensor) -> Tensor:
    """The weights of these logarithms, (P,) float64, which sum to 1: as multiples of 2^-53, whose sums below 1 are
    exact in any order; the largest takes the rest."""
    weights = (torch.softmax(log_weights, dim=0) * 2.0**53).round() / 2.0**53
    largest = int(weights.argmax())
    weights[largest] = 0
    weights[largest] = 1 - weights.sum()
    return weights


def entropy(peer_weights: Tensor) -> float:
    """Entropy of the weights in nats: log P when equal, 0 when one peer has all.

    >>> round(entropy(torch.tensor([0.5, 0.5])), 4)
    0.6931
    """
    return float(-(torch.xlogy(peer_weights, peer_weights)).sum())
