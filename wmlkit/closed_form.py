"""L1 and its derivatives in closed form, linear in the number of peers: the arithmetic behind `losses.mutual_loss`.

Letters: P peers (a frozen one among them, at the end, if there is one), N positions, V vocabulary. With b_ij = s_i u_j,
M = sum_j u_j p_j, R = sum_i s_i log p_i, U = sum u, S = sum s (the terms with i = j cancel), and c = tau^2 / N
("batchmean": tau^2 / rows) the scale of the KL:

    sum_j u_j KL(p_j || p_i)       sum_j u_j <p_j, log p_j>  -  <M, log p_i>
    sum_i s_i KL(p_j || p_i)       S <p_j, log p_j>  -  <p_j, R>
    dL1/dz_i, CE                   (1 - alpha) a_i (p_i - y) / K
    dL1/dz_i, as a student         alpha c s_i (U p_i - M) / tau
    dL1/dz_j, as a target          alpha c u_j p_j * (S log p_j - R - <p_j, S log p_j - R>) / tau

Gradients are made in the forward pass, chunk by chunk of positions; of size (N, V) nothing else outlives a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 1 << 17  # logits of a peer in one go: all peers' stay in a CPU's cache
HEAD_CHUNK, HEAD_ROWS = 1 << 19, 64  # logits of a peer that `OfHeads` makes at one time, and positions at least
CHUNKS = {"cpu": 1, "mps": 1 << 3, "cuda": 1 << 7}  # times as many of both; by arithmetic, as no card has been measured


class Head(NamedTuple):
    """Logits that are not made yet: hidden (N, H) at the positions that count, decoder's weight (V, H), bias (V,)."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def logits(self) -> Tensor:
        """(N, V)"""
        return F.linear(self.hidden, self.weight, self.bias)


@dataclass(frozen=True)
class Coefficients:
    """What L1 multiplies its terms by. a, u, s: (P,), of the docstring above; a and s are 0 for a frozen peer,
    which does not learn.

    kl_scale: tau^2 over the divisor of the sum over positions. ce_scale: (N,), 1 / K where the CE counts, else 0.
    students: how many peers are not frozen.
    """

    alpha: float
    temperature: float
    detach_targets: bool
    kl_weight: str
    ce_weight: str
    a: Tensor
    u: Tensor
    s: Tensor
    students: int
    kl_scale: float
    ce_scale: Tensor

    @property
    def mutual(self) -> bool:
        """Whether there is a KL term."""
        return len(self.a) > 1 and self.alpha != 0


def at_least_fp32(z: Tensor) -> Tensor:
    """Half-precision logits as float32: a softmax over a vocabulary in bf16 loses ties and small differences."""
    return z.float() if z.dtype in (torch.bfloat16, torch.float16) else z


def softmax(z: Tensor) -> tuple[Tensor, Tensor]:
    """(p, log p) of logits (n, V). One exponential an entry, the dear part: p's largest entry knows the normaliser."""
    p = z.softmax(dim=-1)
    return p, z - (z.amax(dim=-1, keepdim=True) - p.amax(dim=-1, keepdim=True).log())


def tempered(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(p, log p) of z / temperature, with ln V added to log p unless the temperature is 1.

    The KL is of differences of log p alone, and a high temperature brings all of them near -ln V: in float32 two sums
    of -9.01 leave few digits of a difference of 0.0001.
    """
    if temperature == 1:
        return softmax(z)
    z = z / temperature
    p = z.softmax(dim=-1)
    return p, z - (z.amax(dim=-1, keepdim=True) - (p.amax(dim=-1, keepdim=True) * z.shape[-1]).log())


def combined(coefficients: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """sum_i c_i t_i of (P,) and P tensors of one shape, without a copy of them side by side."""
    total = coefficients[0] * tensors[0]
    for coefficient, tensor in zip(coefficients[1:], tensors[1:], strict=True):
        total.addcmul_(tensor, coefficient)
    return total


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the products of all entries."""
    return torch.dot(a.view(-1), b.view(-1))


def losses_and_gradients(c: Coefficients, logits: Sequence[Tensor], targets: Tensor, ce_scale: Tensor) -> Tensor:
    """One chunk, P tensors (n, V) which become dL1/dz. Returns (3, P), what its positions add to

    CE_i, <p_i, log p_i> and <M, log p_i>.
    """
    rows = torch.arange(len(targets), device=targets.device)
    hard = [softmax(z) for z in logits]
    soft = hard if c.temperature == 1 else [tempered(z, c.temperature) for z in logits]
    sums = torch.zeros(3, len(logits), dtype=logits[0].dtype, device=targets.device)
    if c.mutual:
        mixture = combined(c.u, [p for p, _ in soft])
        mean_log = None if c.detach_targets else combined(c.s, [log_p for _, log_p in soft])
        of_kl = c.alpha * c.kl_scale / c.temperature
        as_student, as_target = of_kl * c.s, of_kl * c.u
    for i, z in enumerate(logits):
        p, log_p = soft[i]
        if c.mutual:
            sums[1, i], sums[2, i] = dot(p, log_p), dot(mixture, log_p)
        if i >= c.students:
            continue
        sums[0, i] = -(hard[i][1][rows, targets] * ce_scale).sum()
        own = (1 - c.alpha) * c.a[i] * ce_scale  # (n,)
        if c.mutual:
            torch.mul(p, as_student[i] * c.u.sum() + (own[:, None] if hard is soft else 0), out=z)
            z.addcmul_(mixture, -as_student[i])
            if mean_log is not None:
                slope = c.s.sum() * log_p - mean_log
                slope -= (p * slope).sum(dim=-1, keepdim=True)
                z += slope.mul_(p).mul_(as_target[i])
            if hard is not soft:
                z.addcmul_(hard[i][0], own[:, None])
        else:
            torch.mul(hard[i][0], own[:, None], out=z)
        z[rows, targets] -= own
    return sums


def slopes(
    c: Coefficients, logits: Sequence[Tensor], tangents: Sequence[Tensor], targets: Tensor, ce_scale: Tensor
) -> Tensor:
    """One chunk's part of dA_m = <dA_m/dz, dz>, A_m = dL1/dw_m: P tensors (n, V), tangents of the students -> (P,).

    With t_i = dz_i / tau, q_i = <p_i, t_i> and dp_i = p_i * (t_i - q_i), the change of KL(p_j || p_i) is
    q_i - <p_j, t_i>  through the student  and  <dp_j, log p_j - log p_i>  through the target. Both are summed over the
    partners first, as in the loss.
    """
    change = torch.zeros_like(c.a)
    if c.ce_weight == "peer":
        rows = torch.arange(len(targets), device=targets.device)
        for i, (z, dz) in enumerate(zip(logits, tangents, strict=False)):
            of_ce = (z.softmax(dim=-1) * dz).sum(dim=-1) - dz[rows, targets]
            change[i] = (1 - c.alpha) * (of_ce * ce_scale).sum()
    if not c.mutual:
        return change
    soft = [tempered(z, c.temperature) for z in logits]
    t = [dz / c.temperature for dz in tangents]
    p, log_p = [pair[0] for pair in soft], [pair[1] for pair in soft]
    q = [(p_i * t_i).sum(dim=-1, keepdim=True) for p_i, t_i in zip(p, t, strict=False)]
    kl, ones = torch.zeros_like(c.a), torch.ones_like(c.a[: c.students])
    if c.kl_weight == "target":
        moved = sum(q_i.sum() for q_i in q)
        all_t, all_log = combined(ones, t), combined(c.s, log_p)
        for j in range(len(logits)):
            kl[j] = moved - dot(p[j], all_t)
            if not c.detach_targets and j < c.students:
                kl[j] += dot(p[j] * (t[j] - q[j]), c.s.sum() * log_p[j] - all_log)
    else:
        mixture = combined(c.u, p)
        dp = [p_j * (t_j - q_j) for p_j, t_j, q_j in zip(p, t, q, strict=False)]
        for i in range(c.students):
            kl[i] = c.u.sum() * q[i].sum() - dot(mixture, t[i])
        if not c.detach_targets:
            together = sum(dot(dp_j, log_j) for dp_j, log_j in zip(dp, log_p, strict=False))
            all_dp = combined(ones, dp)
            for i in range(c.students):
                kl[i] += together - dot(all_dp, log_p[i])
    return change + c.alpha * c.kl_scale * kl


def total(c: Coefficients, sums: Tensor) -> Tensor:
    """L1 of the sums over all positions."""
    return (1 - c.alpha) * (c.a * sums[0]).sum() + c.alpha * kl_terms(c, sums).sum()


def kl_terms(c: Coefficients, sums: Tensor) -> Tensor:
    """sum_j b_ij KL(p_j || p_i) of each peer i (0 of a frozen one) from the sums over all positions, (3, P): (P,)."""
    _, own, as_student = sums
    return c.s * (c.kl_scale * ((c.u * own).sum() - as_student))


def chunks(count: int, vocabulary: int, limit: int, device: torch.device, least: int = 1) -> list[slice]:
    """N positions in slices of at most `limit` logits (of a vocabulary of V words), but `least` positions."""
    size = max(least, limit * scale(device) // vocabulary)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def scale(device: torch.device) -> int:
    """How many times larger a chunk is there."""
    return CHUNKS.get(device.type, 1)


class OfLogits(torch.autograd.Function):
    """(L1, sums (3, P)) of P tensors (N, V). The sums have no gradient.

    owned: nobody else reads the logits, so their memory may become that of their gradients.
    """

    @staticmethod
    def forward(ctx: Any, c: Coefficients, targets: Tensor, owned: bool, *logits: Tensor) -> tuple[Tensor, Tensor]:
        kind = at_least_fp32(logits[0][:0])
        made = [z.detach().to(kind.dtype, copy=not owned) for z in logits]
        sums = kind.new_zeros(3, len(logits))
        for part in chunks(len(targets), logits[0].shape[1], CHUNK, kind.device):
            sums += losses_and_gradients(c, [z[part] for z in made], targets[part], c.ce_scale[part])
        ctx.save_for_backward(*(g.to(z.dtype) for g, z in zip(made[: c.students], logits, strict=False)))
        ctx.mark_non_differentiable(sums)
        return total(c, sums), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _scaled(ctx.saved_tensors, grad_total)
        frozen = len(ctx.needs_input_grad) - 3 - len(gradients)
        return (None, None, None, *gradients, *(None,) * frozen)


class OfHeads(torch.autograd.Function):
    """(L1, sums (3, P)) of P triples `Head`, laid out flat; the sums have no gradient.

    Logits exist for one chunk of positions at a time. Weights' gradients are summed in at least float32.
    """

    @staticmethod
    def forward(ctx: Any, c: Coefficients, targets: Tensor, kind: torch.dtype, *flat: Tensor | None) -> Any:
        heads = [Head(*flat[i : i + 3]) for i in range(0, len(flat), 3)]  # type: ignore[arg-type]
        low = [Head(*(None if x is None else x.to(kind) for x in head)) for head in heads]  # type: ignore[arg-type]
        soft_kind = at_least_fp32(low[0].hidden[:0]).dtype
        vocabulary, device = len(heads[0].weight), targets.device
        sums = torch.zeros(3, len(heads), dtype=soft_kind, device=device)
        hidden = [torch.empty_like(head.hidden) for head in low[: c.students]]
        weight = [torch.zeros_like(head.weight, dtype=soft_kind) for head in low[: c.students]]
        bias = [
            None if head.bias is None else torch.zeros_like(head.bias, dtype=soft_kind) for head in low[: c.students]
        ]
        for part in chunks(len(targets), vocabulary, HEAD_CHUNK, device, HEAD_ROWS):
            logits = [head._replace(hidden=head.hidden[part]).logits().to(soft_kind) for head in low]
            for inside in chunks(len(logits[0]), vocabulary, CHUNK, device):
                pieces = [z[inside] for z in logits]
                sums += losses_and_gradients(c, pieces, targets[part][inside], c.ce_scale[part][inside])
            for i in range(c.students):
                gradient = logits[i].to(kind)
                hidden[i][part] = gradient @ low[i].weight
                if kind == soft_kind:
                    weight[i].addmm_(gradient.T, low[i].hidden[part])
                else:
                    weight[i] += gradient.T @ low[i].hidden[part]
                if (sum_ := bias[i]) is not None:
                    sum_ += logits[i].sum(dim=0)
            del logits, gradient  # before the next chunk's are made
        made: list[Tensor | None] = []
        for i, head in enumerate(heads[: c.students]):
            made += [hidden[i].to(head.hidden.dtype), weight[i].to(head.weight.dtype)]
            made.append(None if (of_bias := bias[i]) is None else of_bias.to(head.weight.dtype))
        made += [None] * (len(flat) - len(made))  # frozen
        ctx.missing = [gradient is None for gradient in made]
        ctx.save_for_backward(*(gradient for gradient in made if gradient is not None))
        ctx.mark_non_differentiable(sums)
        return total(c, sums), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = iter(_scaled(ctx.saved_tensors, grad_total))
        return (None, None, None, *(None if missing else next(gradients) for missing in ctx.missing))


def _scaled(gradients: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    if factor.device.type == "cpu" and factor == 1:  # the usual case; asking a GPU would make it wait
        return list(gradients)
    return [gradient * factor for gradient in gradients]
