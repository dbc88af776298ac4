"""Forward-mode derivatives on devices whose own kernels for linear maps and attention have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


def differentiable(device: torch.device) -> AbstractContextManager[None]:
    """Within the block, linear maps and attention on `device` have forward-mode derivatives.

    On a CPU and on CUDA torch's plain attention does. Apple's MPS has kernels of its own for both (pytorch issue
    137720), so there they are written out as matrix products.
    """
    return WrittenOut() if device.type == "mps" else sdpa_kernel(SDPBackend.MATH)


class WrittenOut(TorchFunctionMode):
    """`F.linear` and `F.scaled_dot_product_attention` as matrix products."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is F.linear:
            function = linear
        elif function is F.scaled_dot_product_attention:
            function = attention
        return function(*args, **(kwargs or {}))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b; arguments as of `F.linear`."""
    product = input @ weight.mT
    return product if bias is None else product + bias


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(Q K^T / sqrt d + mask) V; arguments as of `F.scaled_dot_product_attention`."""
    if enable_gqa:  # several heads of the query share one of key and value
        shared = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(shared, -3), value.repeat_interleave(shared, -3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return F.dropout(scores.softmax(dim=-1), dropout_p) @ value
