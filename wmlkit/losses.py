"""The inner problem's loss: cross-entropy and weighted mutual KL of P peers. Pure functions.

Letters: P peers, N positions, V vocabulary. Equations: "Inner problem" in docs/notation.md.

    L1(theta; w) = sum_i a_i (1 - alpha) CE_i  +  alpha sum_i sum_{j != i} b_ij KL(p_j || p_i)

Two forms of the same function: `mutual_loss_reference` reads like the equation and costs P(P-1) passes over
the vocabulary; `mutual_loss` costs P and has closed-form gradients. A test holds them equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import UserError


@dataclass(frozen=True)
class MutualOptions:
    """How L1 is put together; the defaults and what the released code uses are in docs/deviations.md."""

    alpha: float = 0.5
    kl_weight: Literal["target", "student"] = "target"  # b_ij = w_j or w_i
    ce_weight: Literal["one", "peer"] = "one"  # a_i = 1 or w_i
    detach_targets: bool = True
    kl_reduction: Literal["token_mean", "batchmean"] = "token_mean"  # sum over positions / N, or / B
    temperature: float = 1.0


@dataclass(frozen=True)
class MutualLoss:
    """total: L1, a scalar with gradient. Without gradient, for the log and the outer problem (all nats):

    ce (P,): CE_i. kl (P,): sum_{j != i} b_ij KL(p_j || p_i) of each student i.
    weight_gradient (P,): A_m = dL1/dw_m.
    """

    total: Tensor
    ce: Tensor
    kl: Tensor
    weight_gradient: Tensor


def _at_least_fp32(z: Tensor) -> Tensor:
    """Half-precision logits as float32: a softmax over a vocabulary in bf16 loses ties and small differences."""
    return z.float() if z.dtype in (torch.bfloat16, torch.float16) else z


def cross_entropies(logits: Sequence[Tensor], targets: Tensor, scored: Tensor | None = None) -> Tensor:
    """CE_i = mean over scored positions of -log p_i[y], in nats: P tensors (N, V) and targets (N,) -> (P,).

    scored: (N,) boolean, None for all. Raises UserError when nothing is scored: 0/0 is not a loss.
    """
    scored = torch.ones_like(targets, dtype=torch.bool) if scored is None else scored
    if not scored.any():
        raise UserError(
            "no position of the batch is scored, so its loss is undefined; "
            "raise train.mask_ratio, train.batch_size or data.block_size"
        )
    return torch.stack([F.cross_entropy(_at_least_fp32(z[scored]), targets[scored]) for z in logits])


def kl_matrix(logits: Sequence[Tensor], options: MutualOptions, batch_size: int) -> Tensor:
    """KL[j, i] = tau^2 KL(p_j || p_i), in nats, reduced over positions: P tensors (N, V) -> (P, P).

    The diagonal is 0. Targets p_j carry no gradient when `options.detach_targets`.
    """
    tau = options.temperature
    log_p = [F.log_softmax(_at_least_fp32(z) / tau, dim=-1) for z in logits]
    divisor = len(logits[0]) if options.kl_reduction == "token_mean" else batch_size
    zero = log_p[0].new_zeros(())
    rows = []
    for j, target in enumerate(log_p):
        target = target.detach() if options.detach_targets else target
        rows.append(
            torch.stack(
                [
                    zero if i == j else tau**2 * (target.exp() * (target - student)).sum() / divisor
                    for i, student in enumerate(log_p)
                ]
            )
        )
    return torch.stack(rows)


def weight_losses(ce: Tensor, kl: Tensor, options: MutualOptions) -> Tensor:
    """A_m = dL1/dw_m, an ordinary loss for each peer, because L1 is linear in w. ce (P,), kl (P, P) -> (P,)."""
    mutual = kl.sum(dim=1) if options.kl_weight == "target" else kl.sum(dim=0)
    own = (1 - options.alpha) * ce if options.ce_weight == "peer" else torch.zeros_like(ce)
    return own + options.alpha * mutual


def mutual_loss_reference(
    logits: Sequence[Tensor],
    targets: Tensor,
    peer_weights: Tensor,
    options: MutualOptions,
    batch_size: int = 1,
    scored: Tensor | None = None,
) -> MutualLoss:
    """L1 as the equation is written.

    logits: P tensors (N, V), one row for each position of the KL. targets: (N,) token ids.
    peer_weights: (P,) on the simplex. batch_size: sequences in the batch, for `batchmean`.
    scored: (N,) boolean, the positions of the CE; None: all N.
    With one peer, or alpha = 0, the KL is 0 and is not computed.
    """
    ce = cross_entropies(logits, targets, scored)
    if len(logits) == 1 or options.alpha == 0:
        kl = ce.new_zeros(len(logits), len(logits))
    else:
        kl = kl_matrix(logits, options, batch_size)
    weights = peer_weights.to(ce.dtype)
    a = weights if options.ce_weight == "peer" else torch.ones_like(weights)
    b = weights[:, None] if options.kl_weight == "target" else weights[None, :]  # [j, i]
    total = (1 - options.alpha) * (a * ce).sum() + options.alpha * (b * kl).sum()
    return MutualLoss(
        total, ce.detach(), (b * kl).sum(dim=0).detach(), weight_losses(ce, kl, options).detach()
    )


class _WeightedKL(torch.autograd.Function):
    """sum_i sum_j s_i u_j KL(p_j || p_i) in P passes over the vocabulary.

    With M = sum_j u_j p_j and R = sum_i s_i log p_i (the terms with i = j cancel):

        student i's part        s_i (sum_j u_j <p_j, log p_j> - <M, log p_i>)
        d/dz_i as a student     s_i (U p_i - M) / tau
        d/dz_j as a target      u_j p_j * (S log p_j - R - <p_j, S log p_j - R>) / tau
        d/du_j                  <p_j, S log p_j - R>

    where U = sum u, S = sum s. Gradients are computed in the forward pass, so nothing of size (N, V) but
    the gradients themselves outlives it.
    """

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, s: Tensor, scale: float, tau: float, detach: bool, *logits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_p = [F.log_softmax(_at_least_fp32(z) / tau, dim=-1) for z in logits]
        p = [value.exp() for value in log_p]
        mixture = sum(u_j * p_j for u_j, p_j in zip(u, p, strict=True))
        r = sum(s_i * l_i for s_i, l_i in zip(s, log_p, strict=True))
        total_u, total_s = u.sum(), s.sum()
        factor = tau * tau * scale

        negative_entropy = torch.stack([(p_j * l_j).sum(dim=-1) for p_j, l_j in zip(p, log_p, strict=True)])  # (P, N)
        cross = torch.stack([(mixture * l_i).sum() for l_i in log_p])  # (P,) <M, log p_i>
        against = torch.stack([(p_j * r).sum(dim=-1) for p_j in p])  # (P, N) <p_j, R>
        of_student = factor * (u @ negative_entropy.sum(dim=1) - cross)  # (P,), without s_i
        of_target = factor * (total_s * negative_entropy - against).sum(dim=1)  # (P,), without u_j

        grads = []
        for i, (p_i, l_i) in enumerate(zip(p, log_p, strict=True)):
            grad = (total_u * p_i).sub_(mixture).mul_(s[i])
            if not detach:
                slope = (total_s * l_i).sub_(r).sub_((total_s * negative_entropy[i] - against[i])[:, None])
                grad.add_(slope.mul_(p_i).mul_(u[i]))
            grads.append(grad.mul_(factor / tau).to(logits[i].dtype))
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(of_student, of_target)
        return (s * of_student).sum(), of_student, of_target

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (None, None, None, None, None, *(grad_total * grad for grad in ctx.saved_tensors))


def mutual_loss(
    logits: Sequence[Tensor],
    targets: Tensor,
    peer_weights: Tensor,
    options: MutualOptions,
    batch_size: int = 1,
    scored: Tensor | None = None,
) -> MutualLoss:
    """L1 in the form that is linear in the number of peers: same arguments, value and gradients as
    `mutual_loss_reference`, except that `total` has no gradient to `peer_weights` (use `weight_gradient`)."""
    if len(logits) == 1 or options.alpha == 0:
        return mutual_loss_reference(logits, targets, peer_weights.detach(), options, batch_size, scored)
    ce = cross_entropies(logits, targets, scored)
    weights = peer_weights.detach().to(ce.dtype)
    ones = torch.ones_like(weights)
    a = weights if options.ce_weight == "peer" else ones
    u, s = (weights, ones) if options.kl_weight == "target" else (ones, weights)
    scale = 1 / len(logits[0]) if options.kl_reduction == "token_mean" else 1 / batch_size
    kl, of_student, of_target = _WeightedKL.apply(u, s, scale, options.temperature, options.detach_targets, *logits)
    total = (1 - options.alpha) * (a * ce).sum() + options.alpha * kl
    own = (1 - options.alpha) * ce.detach() if options.ce_weight == "peer" else torch.zeros_like(weights)
    mutual = of_target if options.kl_weight == "target" else of_student
    return MutualLoss(total, ce.detach(), s * of_student, own + options.alpha * mutual)
