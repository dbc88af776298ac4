"""The peers' optimizer steps as functions of the gradient, so that the outer problem can differentiate them.

    theta' = step(g),   d theta'/d g times a vector by reverse mode

The state (moments, step count, learning rates) is a constant: `optimizer_update` reads it and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.optim import AdamW, Muon, Optimizer

Parameters = Mapping[str, Tensor]
Update = Callable[[Parameters], dict[str, Tensor]]  # gradients of one peer -> its parameters after the step


def sgd_update(parameters: Parameters, inner_lr: float) -> Update:
    """theta' = theta - gamma g."""
    return lambda gradients: {name: value.detach() - inner_lr * gradients[name] for name, value in parameters.items()}


def optimizer_update(model: nn.Module, optimizers: Sequence[Optimizer], grad_clip: float) -> Update:
    """The next step of `optimizers` on `model`, norm clipping included, as a function of the gradients.

    Equals what the optimizers will do, except that on a GPU Muon's iteration runs in the gradient's precision and
    not in bfloat16, where it has no useful derivative.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rules: dict[str, Callable[[Tensor], Tensor]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                rules[names[id(parameter)]] = _rule(optimizer, parameter, group)

    def update(gradients: Parameters) -> dict[str, Tensor]:
        scale: Tensor | float = 1.0
        if grad_clip:
            # over this mapping's own gradients, in whatever precision they come
            norm = vector_norm(torch.stack([vector_norm(g) for g in gradients.values()]))  # its slope at 0 is 0
            scale = (grad_clip / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        return {name: rules[name](gradient * scale) for name, gradient in gradients.items()}

    return update


def _rule(optimizer: Optimizer, parameter: Tensor, group: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    state, theta = optimizer.state.get(parameter, {}), parameter.detach()
    if isinstance(optimizer, AdamW):
        return lambda g: adamw_step(theta, g, state, group)
    if isinstance(optimizer, Muon):
        return lambda g: muon_step(theta, g, state, group)
    raise TypeError(f"no differentiable step for {type(optimizer).__name__}")


def adamw_step(theta: Tensor, g: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """AdamW (arXiv 1711.05101): theta (1 - lr wd) - lr m' / (sqrt v' + eps), m' and v' free of their start at 0.

    The first step, without `state`, is the sign of g but where |g| is near eps: its slope is 0 almost everywhere and up
    to 1 / eps there, which predicts nothing of any change that could be made. It is taken as a constant.
    """
    if not state:
        g = g.detach()
    beta1, beta2 = group["betas"]
    step = float(state["step"]) + 1 if state else 1.0
    m = (1 - beta1) * g + (beta1 * state["exp_avg"] if state else 0.0)
    v = (1 - beta2) * g * g + (beta2 * state["exp_avg_sq"] if state else 0.0)
    # sqrt has an infinite slope at 0, where a row of the embedding that was never seen sits: cut it there
    seen = v > 0
    root = torch.where(seen, torch.where(seen, v, torch.ones_like(v)).sqrt(), torch.zeros_like(v))
    denominator = root / math.sqrt(1 - beta2**step) + group["eps"]
    lr = group["lr"]
    return theta * (1 - lr * group["weight_decay"]) - lr / (1 - beta1**step) * m / denominator


def muon_step(theta: Tensor, g: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """Muon as torch.optim has it, but for `muon_factor`: Nesterov momentum, then a polynomial that brings the singular
    values near 1."""
    momentum = group["momentum"]
    buffer = (1 - momentum) * g + (momentum * state["momentum_buffer"] if state else 0.0)
    x = (1 - momentum) * g + momentum * buffer if group["nesterov"] else buffer
    tall = x.shape[0] > x.shape[1]
    x = newton_schulz(x.T if tall else x, group["ns_coefficients"], group["ns_steps"], group["eps"])
    x = x.T if tall else x
    lr = group["lr"]
    scaled = lr * muon_factor(theta.shape[0], theta.shape[1], group)
    return theta * (1 - lr * group["weight_decay"]) - scaled * x


def muon_factor(rows: int, columns: int, group: Mapping[str, Any]) -> float:
    """Muon's sqrt(max(1, outputs / inputs)) of a matrix, which has a row an output.

    In a group with "transposed": True it has a row an input, as GPT-2's layers do.
    """
    outputs, inputs = (columns, rows) if group.get("transposed", False) else (rows, columns)
    return math.sqrt(max(1.0, outputs / inputs))


def newton_schulz(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Matrices (..., m, n), m <= n, brought to singular values near 1 by a polynomial, in their own precision."""
    a, b, c = coefficients
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
