"""The inner problem's loss: cross-entropy and weighted mutual KL of P peers; distillation. Pure functions.

Letters: P peers, F frozen ones behind them (0 or 1), N positions, V vocabulary. Equations: "Inner problem" and
"Distillation" in docs/notation.md.

    L1(theta; w) = sum_i a_i (1 - alpha) CE_i  +  alpha tau^2 sum_i sum_{j != i} b_ij KL(p_j^tau || p_i^tau)

Two forms of the same function: `mutual_loss_reference` reads like the equation and costs P(P-1) passes over
the vocabulary; `mutual_loss` costs P and has closed-form gradients. A test holds them equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .closed_form import CHUNK, Coefficients, Head, OfHeads, OfLogits, at_least_fp32, chunks, kl_terms, scale, slopes
from .errors import UserError

AT_ONCE = 1 << 22  # logits of a peer (16 MiB) that are cheaper to keep than the decoders' gradients


@dataclass(frozen=True)
class MutualOptions:
    """How L1 is put together; the defaults and what the released code uses are in docs/notation.md."""

    alpha: float = 0.5
    kl_weight: Literal["target", "student"] = "target"  # b_ij = w_j or w_i
    ce_weight: Literal["one", "peer"] = "one"  # a_i = 1 or w_i
    detach_targets: bool = True
    kl_reduction: Literal["token_mean", "batchmean"] = "token_mean"  # sum over positions / N, or / B
    temperature: float = 1.0
    frozen: int = 0  # F: the last F logits are of a frozen teacher, a target for all and nobody's student


@dataclass(frozen=True)
class Share:
    """What part of a batch's scored positions (ce) and of its KL's positions or rows (kl) is at hand.

    All means below are over what is at hand, times its share: so L1 of a batch is the sum over its parts, however it
    was split among processes or in time.
    """

    ce: float = 1.0
    kl: float = 1.0


WHOLE = Share()


@dataclass(frozen=True)
class MutualLoss:
    """total: L1, a scalar with gradient. Without gradient, for the log (all nats):

    ce (P,): CE_i. kl (P,): tau^2 sum_{j != i} b_ij KL(p_j^tau || p_i^tau) of each student i.
    """

    total: Tensor
    ce: Tensor
    kl: Tensor


def _check_targets(targets: Tensor) -> None:
    # a negative id would be taken for one from the vocabulary's end; on CPU only, as below
    if targets.device.type == "cpu" and (targets < 0).any():
        raise UserError(
            f"targets hold {int(targets.min())}, which is no token; expected ids of 0 or more; "
            "positions are left out by `scored`"
        )


def _check_scored(scored: Tensor, share: Share) -> None:
    # of a part of a batch others may hold the scored positions; on CPU only: asking a GPU would make it wait, and there
    # the loss turns NaN, which stops the run
    if share == WHOLE and scored.device.type == "cpu" and not scored.any():
        raise UserError(
            "no position of the batch is scored, so its loss is undefined; "
            "raise train.mask_ratio, train.batch_size or data.block_size"
        )


def cross_entropies(
    logits: Sequence[Tensor], targets: Tensor, scored: Tensor | None = None, share: Share = WHOLE
) -> Tensor:
    """CE_i = mean over scored positions of -log p_i[y], in nats: P tensors (N, V) and targets (N,) -> (P,).

    scored: (N,) boolean, None for all. Without any position (N = 0, as in a part of a batch) 0. On a CPU raises
    UserError where `scored` leaves out all positions of a whole batch, as 0/0 is not a loss, and for a target that is
    no token (-100).

    >>> blind = torch.zeros(1, 4)  # one token, four words, all as likely
    >>> cross_entropies([blind, torch.tensor([[2.0, 0.0, 0.0, 0.0]])], torch.tensor([0]))  # ln 4 and less
    tensor([1.3863, 0.3408])
    """
    _check_targets(targets)
    if scored is not None:
        _check_scored(scored, share)
        logits, targets = [z[scored] for z in logits], targets[scored]
    if not len(targets):
        return torch.stack([at_least_fp32(z).sum() for z in logits])  # 0, with its gradient
    return torch.stack([share.ce * F.cross_entropy(at_least_fp32(z), targets) for z in logits])


def kl_matrix(logits: Sequence[Tensor], options: MutualOptions, batch_size: int, share: Share = WHOLE) -> Tensor:
    """KL[j, i] = tau^2 KL(p_j || p_i), in nats, reduced over positions: P + F tensors (N, V) -> (P + F, P).

    The diagonal is 0. Targets p_j carry no gradient when `options.detach_targets`.
    """
    tau = options.temperature
    log_p = [F.log_softmax(at_least_fp32(z) / tau, dim=-1) for z in logits]
    factor = share.kl * tau**2 / (max(1, len(logits[0])) if options.kl_reduction == "token_mean" else batch_size)
    students = log_p[: len(log_p) - options.frozen]
    zero = log_p[0].new_zeros(())
    rows = []
    for j, target in enumerate(log_p):
        target = target.detach() if options.detach_targets else target
        rows.append(
            torch.stack(
                [
                    zero if i == j else factor * (target.exp() * (target - student)).sum()
                    for i, student in enumerate(students)
                ]
            )
        )
    return torch.stack(rows)


def mutual_loss_reference(
    logits: Sequence[Tensor],
    targets: Tensor,
    peer_weights: Tensor,
    options: MutualOptions,
    batch_size: int = 1,
    scored: Tensor | None = None,
    share: Share = WHOLE,
) -> MutualLoss:
    """L1 as the equation is written.

    logits: P + F tensors (N, V), one row for each position of the KL. targets: (N,) token ids.
    peer_weights: (P + F,) on the simplex. batch_size: sequences in the batch, for `batchmean`.
    scored: (N,) boolean, the positions of the CE; None: all N. share: of the batch, where this is a part of it.
    With one peer, or alpha = 0, the KL is 0 and is not computed.
    """
    students = len(logits) - options.frozen
    ce = cross_entropies(logits[:students], targets, scored, share)
    if len(logits) == 1 or options.alpha == 0:
        kl = ce.new_zeros(len(logits), students)
    else:
        kl = kl_matrix(logits, options, batch_size, share)
    weights = peer_weights.to(ce.dtype)
    a = weights[:students] if options.ce_weight == "peer" else torch.ones_like(ce)
    b = weights[:, None] if options.kl_weight == "target" else weights[None, :students]  # [j, i]
    total = (1 - options.alpha) * (a * ce).sum() + options.alpha * (b * kl).sum()
    return MutualLoss(total, ce.detach(), (b * kl).sum(dim=0).detach())


def mutual_loss(
    logits: Sequence[Tensor],
    targets: Tensor,
    peer_weights: Tensor,
    options: MutualOptions,
    batch_size: int = 1,
    scored: Tensor | None = None,
    share: Share = WHOLE,
) -> MutualLoss:
    """L1 in the form that is linear in the number of peers: same arguments, value and gradients as
    `mutual_loss_reference`, except that `total` has no gradient to `peer_weights` (see `weight_loss_slopes`).

    With one peer, or alpha = 0, there is no KL: `total` is sum_i a_i (1 - alpha) CE_i, where a_i is 1 or w_i.

    >>> logits = [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])]  # two peers, one token, two words
    >>> loss = mutual_loss(logits, torch.tensor([0]), torch.tensor([0.5, 0.5]), MutualOptions(alpha=0.5))
    >>> loss.ce, loss.kl  # peer 2 knows nothing; the KL terms come with their weights
    (tensor([0.1269, 0.6931]), tensor([0.2169, 0.1639]))
    >>> torch.allclose(0.5 * loss.ce.sum() + 0.5 * loss.kl.sum(), loss.total)
    True
    """
    return _of_logits(logits, targets, peer_weights, options, batch_size, scored, share, owned=False)


def mutual_loss_of_heads(
    heads: Iterable[Head],
    targets: Tensor,
    peer_weights: Tensor,
    options: MutualOptions,
    batch_size: int = 1,
    scored: Tensor | None = None,
    share: Share = WHOLE,
) -> MutualLoss:
    """`mutual_loss` of logits that are not made yet: P + F heads, hidden (N, H_i) with decoder (V, H_i).

    Logits, and all else of size V, exist for a chunk of positions at a time; gradients go to hidden states, decoder
    weights and biases. Up to `AT_ONCE` logits a peer, this is `mutual_loss` of the heads' logits. An
    iterator is taken peer by peer, so that the backward pass is done with one peer before it begins the next.
    """
    heads = iter(heads)
    first = next(heads)
    if len(targets) * len(first.weight) <= AT_ONCE * scale(targets.device):
        logits = [first.logits(), *(head.logits() for head in heads)]
        return _of_logits(logits, targets, peer_weights, options, batch_size, scored, share, owned=True)
    flat = [tensor for head in (first, *heads) for tensor in head]
    kind = first.hidden.dtype
    if torch.is_autocast_enabled(targets.device.type):
        kind = torch.get_autocast_dtype(targets.device.type)
    kept = at_least_fp32(first.hidden[:0]).dtype
    c = coefficients(peer_weights, options, len(targets), batch_size, scored, share, kept)
    total, sums = OfHeads.apply(c, targets, kind, *flat)
    return _mutual_loss(c, total, sums)


def weight_loss_slopes(
    logits: Sequence[Tensor],
    tangents: Sequence[Tensor],
    targets: Tensor,
    options: MutualOptions,
    batch_size: int = 1,
    scored: Tensor | None = None,
    share: Share = WHOLE,
) -> Tensor:
    """How A_m = dL1/dw_m changes where the P students' logits (N, V) move along `tangents` (N, V): (P + F,)."""
    kind = at_least_fp32(logits[0][:0])
    c = coefficients(kind.new_ones(len(logits)), options, len(targets), batch_size, scored, share, kind.dtype)
    change = torch.zeros_like(c.a)
    for part in chunks(len(logits[0]), logits[0].shape[1], CHUNK, kind.device):
        z, dz = ([t[part].to(kind.dtype) for t in tensors] for tensors in (logits, tangents))
        change += slopes(c, z, dz, targets[part], c.ce_scale[part])
    return change


def _of_logits(
    logits: Sequence[Tensor],
    targets: Tensor,
    peer_weights: Tensor,
    options: MutualOptions,
    batch_size: int,
    scored: Tensor | None,
    share: Share,
    owned: bool,
) -> MutualLoss:
    if len(logits) == 1 or options.alpha == 0:
        return mutual_loss_reference(logits, targets, peer_weights.detach(), options, batch_size, scored, share)
    _check_targets(targets)
    kind = at_least_fp32(logits[0][:0]).dtype
    c = coefficients(peer_weights, options, len(targets), batch_size, scored, share, kind)
    total, sums = OfLogits.apply(c, targets, owned, *logits)
    return _mutual_loss(c, total, sums)


def coefficients(
    peer_weights: Tensor,
    options: MutualOptions,
    count: int,
    batch_size: int,
    scored: Tensor | None,
    share: Share,
    kind: torch.dtype,
) -> Coefficients:
    """L1's coefficients for `count` positions, as `mutual_loss` takes its arguments."""
    weights = peer_weights.detach().to(kind)
    students = len(weights) - options.frozen
    ones = torch.ones_like(weights)
    learns = torch.cat([ones[:students], 0 * ones[students:]])  # a frozen peer is a target only
    if scored is None:
        ce_scale = torch.full((count,), share.ce / max(1, count), dtype=kind, device=weights.device)
    else:
        _check_scored(scored, share)
        ce_scale = scored.to(kind) * (share.ce / scored.sum().clamp(min=1).to(kind))
    divisor = max(1, count) if options.kl_reduction == "token_mean" else batch_size
    return Coefficients(
        alpha=options.alpha,
        temperature=options.temperature,
        detach_targets=options.detach_targets,
        kl_weight=options.kl_weight,
        ce_weight=options.ce_weight,
        a=learns * (weights if options.ce_weight == "peer" else ones),
        u=weights if options.kl_weight == "target" else ones,
        s=learns if options.kl_weight == "target" else learns * weights,
        students=students,
        kl_scale=share.kl * options.temperature**2 / divisor,
        ce_scale=ce_scale,
    )


def _mutual_loss(c: Coefficients, total: Tensor, sums: Tensor) -> MutualLoss:
    return MutualLoss(total, sums[0][: c.students], kl_terms(c, sums)[: c.students])


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
        log_t = F.log_softmax(at_least_fp32(teacher.detach()) / tau, dim=-1)
        log_p = [F.log_softmax(at_least_fp32(z) / tau, dim=-1) for z in logits]
        kl = torch.stack([tau**2 * (log_t.exp() * (log_t - student)).sum() / divisor for student in log_p])
    total = (1 - alpha) * ce.sum() + alpha * kl.sum()
    return MutualLoss(total, ce.detach(), kl.detach())
