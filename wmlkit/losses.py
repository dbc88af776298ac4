"""The inner problem's loss: cross-entropy and weighted mutual KL of P peers; distillation. Pure functions.

Letters: P peers, F frozen ones behind them (0 or 1), N positions, V vocabulary. Equations: "Inner problem" and
"Distillation" in docs/notation.md.

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
    frozen: int = 0  # F: the last F logits are of a frozen teacher, a target for all and nobody's student


@dataclass(frozen=True)
class MutualLoss:
    """total: L1, a scalar with gradient. Without gradient, for the log and the outer problem (all nats):

    ce (P,): CE_i. kl (P,): sum_{j != i} b_ij KL(p_j || p_i) of each student i.
    weight_gradient (P + F,): A_m = dL1/dw_m.
    """

    total: Tensor
    ce: Tensor
    kl: Tensor
    weight_gradient: Tensor


def _at_least_fp32(z: Tensor) -> Tensor:
    """Half-precision logits as float32: a softmax over a vocabulary in bf16 loses ties and small differences."""
    return z.float() if z.dtype in (torch.bfloat16, torch.float16) else z


def _check_scored(scored: Tensor) -> None:
    # on CPU only: asking a GPU would make it wait, and there the loss turns NaN, which stops the run
    if scored.device.type == "cpu" and not scored.any():
        raise UserError(
            "no position of the batch is scored, so its loss is undefined; "
            "raise train.mask_ratio, train.batch_size or data.block_size"
        )


def cross_entropies(logits: Sequence[Tensor], targets: Tensor, scored: Tensor | None = None) -> Tensor:
    """CE_i = mean over scored positions of -log p_i[y], in nats: P tensors (N, V) and targets (N,) -> (P,).

    scored: (N,) boolean, None for all. Raises UserError when nothing is scored: 0/0 is not a loss.

    >>> blind = torch.zeros(1, 4)  # one token, four words, all as likely
    >>> cross_entropies([blind, torch.tensor([[2.0, 0.0, 0.0, 0.0]])], torch.tensor([0]))  # ln 4 and less
    tensor([1.3863, 0.3408])
    """
    if scored is not None:
        _check_scored(scored)
        logits, targets = [z[scored] for z in logits], targets[scored]
    return torch.stack([F.cross_entropy(_at_least_fp32(z), targets) for z in logits])


def kl_matrix(logits: Sequence[Tensor], options: MutualOptions, batch_size: int) -> Tensor:
    """KL[j, i] = tau^2 KL(p_j || p_i), in nats, reduced over positions: P + F tensors (N, V) -> (P + F, P).

    The diagonal is 0. Targets p_j carry no gradient when `options.detach_targets`.
    """
    tau = options.temperature
    log_p = [F.log_softmax(_at_least_fp32(z) / tau, dim=-1) for z in logits]
    divisor = len(logits[0]) if options.kl_reduction == "token_mean" else batch_size
    students = log_p[: len(log_p) - options.frozen]
    zero = log_p[0].new_zeros(())
    rows = []
    for j, target in enumerate(log_p):
        target = target.detach() if options.detach_targets else target
        rows.append(
            torch.stack(
                [
                    zero if i == j else tau**2 * (target.exp() * (target - student)).sum() / divisor
                    for i, student in enumerate(students)
                ]
            )
        )
    return torch.stack(rows)


def weight_losses(ce: Tensor, kl: Tensor, options: MutualOptions) -> Tensor:
    """A_m = dL1/dw_m, an ordinary loss for each peer, because L1 is linear in w.

    ce (P,), kl (P + F, P) -> (P + F,); a frozen peer has no loss as a student.
    """
    mutual = kl.sum(dim=1) if options.kl_weight == "target" else F.pad(kl.sum(dim=0), (0, options.frozen))
    own = (1 - options.alpha) * ce if options.ce_weight == "peer" else torch.zeros_like(ce)
    return F.pad(own, (0, options.frozen)) + options.alpha * mutual


def mutual_loss_reference(
    logits: Sequence[Tensor],
    targets: Tensor,
    peer_weights: Tensor,
    options: MutualOptions,
    batch_size: int = 1,
    scored: Tensor | None = None,
) -> MutualLoss:
    """L1 as the equation is written.

    logits: P + F tensors (N, V), one row for each position of the KL. targets: (N,) token ids.
    peer_weights: (P + F,) on the simplex. batch_size: sequences in the batch, for `batchmean`.
    scored: (N,) boolean, the positions of the CE; None: all N.
    With one peer, or alpha = 0, the KL is 0 and is not computed.
    """
    students = len(logits) - options.frozen
    ce = cross_entropies(logits[:students], targets, scored)
    if len(logits) == 1 or options.alpha == 0:
        kl = ce.new_zeros(len(logits), students)
    else:
        kl = kl_matrix(logits, options, batch_size)
    weights = peer_weights.to(ce.dtype)
    a = weights[:students] if options.ce_weight == "peer" else torch.ones_like(ce)
    b = weights[:, None] if options.kl_weight == "target" else weights[None, :students]  # [j, i]
    total = (1 - options.alpha) * (a * ce).sum() + options.alpha * (b * kl).sum()
    return MutualLoss(total, ce.detach(), (b * kl).sum(dim=0).detach(), weight_losses(ce, kl, options).detach())


CHUNK = 1 << 17  # logits of one peer handled at a time: a chunk of all peers stays in a CPU's cache


class _Mutual(torch.autograd.Function):
    """(L1, CE (P,), KL (P, P)) with closed-form gradients, position by position in chunks.

    With b_ij = s_i u_j, M = sum_j u_j p_j, R = sum_i s_i log p_i, U = sum u, S = sum s (terms with i = j cancel):

        KL[j, i]                 <p_j, log p_j> - <p_j, log p_i>: one matrix product for all pairs
        dL1/dz_i, CE             (1 - alpha) a_i (p_i - y) / K
        dL1/dz_i, as a student   alpha s_i (U p_i - M) / tau
        dL1/dz_j, as a target    alpha u_j p_j * (S log p_j - R - <p_j, S log p_j - R>) / tau

    Gradients are made in the forward pass; of size (N, V) nothing else outlives a chunk.
    """

    @staticmethod
    def forward(
        ctx: Any,
        options: MutualOptions,
        coefficients: tuple[Tensor, Tensor, Tensor],
        targets: Tensor,
        scored: Tensor,
        kl_scale: float,
        *logits: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        a, u, s = coefficients
        tau, alpha = options.temperature, options.alpha
        count, vocabulary = logits[0].shape
        grads = [torch.empty_like(z) for z in logits]
        kind = _at_least_fp32(logits[0][:0]).dtype
        products = torch.zeros(len(logits), len(logits), dtype=kind, device=a.device)  # <p_j, log p_i>
        ce = torch.zeros(len(logits), dtype=kind, device=a.device)
        ce_scale = 1 / scored.sum().to(kind)
        size = max(1, CHUNK // vocabulary)
        for start in range(0, count, size):
            part = slice(start, start + size)
            log_p = torch.stack([F.log_softmax(_at_least_fp32(z[part]) / tau, dim=-1) for z in logits])  # (P, n, V)
            p = log_p.exp()
            products += p.flatten(1) @ log_p.flatten(1).T
            mixture = (u @ p.flatten(1)).view_as(p[0])
            of_kl = alpha * kl_scale * tau
            grad = (u.sum() * p).sub_(mixture).mul_((of_kl * s)[:, None, None])
            if not options.detach_targets:
                slope = s.sum() * log_p - (s @ log_p.flatten(1)).view_as(log_p[0])
                slope -= (p * slope).sum(dim=-1, keepdim=True)
                grad += slope.mul_(p).mul_((of_kl * u)[:, None, None])
            if tau != 1:
                log_p = torch.stack([F.log_softmax(_at_least_fp32(z[part]), dim=-1) for z in logits])
                p = log_p.exp()
            truth, own = targets[part, None], scored[part, None].to(kind) * ce_scale  # (n, 1)
            index = truth.expand(len(logits), -1, -1)
            ce -= (log_p.gather(-1, index)[..., 0] * own[:, 0]).sum(dim=1)
            weight = (1 - alpha) * a[:, None, None] * own  # (P, n, 1)
            grad += p.mul_(weight)
            grad.scatter_add_(-1, index, -weight)
            for i, value in enumerate(grads):
                value[part] = grad[i]
        ctx.save_for_backward(*grads)
        kl = kl_scale * tau * tau * (products.diagonal()[:, None] - products)
        total = (1 - alpha) * (a * ce).sum() + alpha * (u[:, None] * kl * s).sum()
        ctx.mark_non_differentiable(ce, kl)
        return total, ce, kl

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (None, None, None, None, None, *(grad * grad_total for grad in ctx.saved_tensors))


def mutual_loss(
    logits: Sequence[Tensor],
    targets: Tensor,
    peer_weights: Tensor,
    options: MutualOptions,
    batch_size: int = 1,
    scored: Tensor | None = None,
) -> MutualLoss:
    """L1 in the form that is linear in the number of peers: same arguments, value and gradients as
    `mutual_loss_reference`, except that `total` has no gradient to `peer_weights` (use `weight_gradient`).

    >>> logits = [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])]  # two peers, one token, two words
    >>> loss = mutual_loss(logits, torch.tensor([0]), torch.tensor([0.5, 0.5]), MutualOptions(alpha=0.5))
    >>> loss.ce, loss.kl  # peer 2 knows nothing; the KL terms come with their weights
    (tensor([0.1269, 0.6931]), tensor([0.2169, 0.1639]))
    >>> float(0.5 * loss.ce.sum() + 0.5 * loss.kl.sum() - loss.total)
    0.0
    """
    if len(logits) == 1 or options.alpha == 0:
        return mutual_loss_reference(logits, targets, peer_weights.detach(), options, batch_size, scored)
    scored = torch.ones_like(targets, dtype=torch.bool) if scored is None else scored
    _check_scored(scored)
    weights = peer_weights.detach().to(_at_least_fp32(logits[0][:0]).dtype)
    students = len(logits) - options.frozen
    ones = torch.ones_like(weights)
    learns = torch.cat([ones[:students], 0 * ones[students:]])  # a frozen peer is a target only
    a = learns * (weights if options.ce_weight == "peer" else ones)
    u, s = (weights, learns) if options.kl_weight == "target" else (ones, learns * weights)
    kl_scale = 1 / len(logits[0]) if options.kl_reduction == "token_mean" else 1 / batch_size
    total, ce, kl = _Mutual.apply(options, (a, u, s), targets, scored, kl_scale, *logits)
    ce, kl, s = ce[:students], kl[:, :students], s[:students]
    return MutualLoss(total, ce, (u[:, None] * kl * s).sum(dim=0), weight_losses(ce, kl, options))


def distillation_loss(
    logits: Sequence[Tensor],
    teacher: Tensor,
    targets: Tensor,
    options: MutualOptions,
    batch_size: int = 1,
    scored: Tensor | None = None,
) -> MutualLoss:
    """Each student alone with a teacher (Hinton et al. 2015): the sum over students i of

        (1 - alpha) CE_i  +  alpha tau^2 KL(p_teacher || p_i)        in nats per scored token

    logits: P tensors (N, V). teacher: (N, V) logits on the same input; gets no gradient. targets, batch_size and
    scored: as in `mutual_loss_reference`. Of the options alpha, temperature and kl_reduction count.
    """
    tau, alpha = options.temperature, options.alpha
    ce = cross_entropies(logits, targets, scored)
    kl = torch.zeros_like(ce)
    if alpha != 0:
        divisor = len(teacher) if options.kl_reduction == "token_mean" else batch_size
        log_t = F.log_softmax(_at_least_fp32(teacher.detach()) / tau, dim=-1)
        log_p = [F.log_softmax(_at_least_fp32(z) / tau, dim=-1) for z in logits]
        kl = torch.stack([tau**2 * (log_t.exp() * (log_t - student)).sum() / divisor for student in log_p])
    total = (1 - alpha) * ce.sum() + alpha * kl.sum()
    return MutualLoss(total, ce.detach(), kl.detach(), torch.zeros_like(kl))
