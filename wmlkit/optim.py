"""The peers' optimizers and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers.pytorch_utils import Conv1D

from .settings import TrainConfig
from .updates import muon_factor, newton_schulz


def schedule(train: TrainConfig, step: int, shape: str | None = None, min_lr_ratio: float | None = None) -> float:
    """Factor on the learning rate at 0-based `step`: linear warm-up, then the decay `shape` to `min_lr_ratio`, those of
    `train` unless given."""
    lowest = train.min_lr_ratio if min_lr_ratio is None else min_lr_ratio
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    done = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return decayed(shape or train.schedule, done, lowest)


def decayed(shape: str, done: float, lowest: float) -> float:
    """Factor on a learning rate when the share `done` of its decay has passed: 1 at first, `lowest` at the end."""
    shapes = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return lowest + (1 - lowest) * shapes[shape]


def mask_ratio(train: TrainConfig, step: int) -> float:
    """Share of tokens masked at 0-based `step`."""
    if train.mask_ratio_end is None:
        return train.mask_ratio
    return train.mask_ratio + (train.mask_ratio_end - train.mask_ratio) * step / max(1, train.steps - 1)


class Muon(torch.optim.Muon):
    """torch's Muon with the same state, whose iteration takes all matrices of one shape at once.

    The matrices of a group with "transposed": True map from rows to columns (`updates.muon_factor`).

    On a GPU in bfloat16, as torch has it. Elsewhere in float32: processors without bfloat16 units are several times
    slower at it, and the differentiable step of the outer problem (`updates.muon_step`) is then the real one.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; there is no closure."""
        for group in self.param_groups:
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            buffers: list[Tensor] = []
            self._init_group(group, parameters, gradients, buffers)
            if not parameters:
                continue
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            momenta = torch._foreach_lerp(gradients, buffers, group["momentum"]) if group["nesterov"] else buffers
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for shape in {tuple(sorted(p.shape)): None for p in parameters}:  # in a fixed order
                chosen = [i for i, p in enumerate(parameters) if tuple(sorted(p.shape)) == shape]
                wide = [m.T if m.shape[0] > m.shape[1] else m for m in (momenta[i] for i in chosen)]
                stacked = torch.stack(wide)
                stacked = stacked.bfloat16() if stacked.device.type == "cuda" else stacked.float()
                made = newton_schulz(stacked, group["ns_coefficients"], group["ns_steps"], group["eps"])
                for i, update in zip(chosen, made, strict=True):
                    rows, columns = parameters[i].shape
                    scale = group["lr"] * muon_factor(rows, columns, group)
                    parameters[i].add_(update.T if rows > columns else update, alpha=-scale)


def build_optimizers(model: nn.Module, train: TrainConfig, device: torch.device) -> list[Optimizer]:
    """AdamW for everything, or Muon for the trunk's matrices and AdamW for the rest.

    Vectors (biases, norms) are not decayed. Embeddings and the head are AdamW's in both cases: Muon is
    made for matrices that map hidden states to hidden states.
    """
    outside = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    matrices, others, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif id(parameter) in outside or name.startswith(("lm_head", "head", "decoder")):
            others.append(parameter)
        else:
            matrices.append(parameter)
    if train.optimizer == "adamw":
        others, matrices = others + matrices, []
    groups = [{"params": others, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    # fused: one kernel a step on CPU and CUDA; MPS has it too, but its results differ from the plain form
    adamw = AdamW(groups, lr=train.lr, betas=(train.beta1, train.beta2), fused=device.type in ("cpu", "cuda"))
    if not matrices:
        return [adamw]
    stored_by_inputs = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}  # GPT-2's
    by_layout: dict[bool, list[Tensor]] = {}
    for matrix in matrices:
        by_layout.setdefault(id(matrix) in stored_by_inputs, []).append(matrix)
    split = [{"params": some, "transposed": transposed} for transposed, some in by_layout.items()]
    return [adamw, Muon(split, lr=train.muon_lr, weight_decay=train.weight_decay, momentum=0.95)]


def set_learning_rate(optimizers: list[Optimizer], train: TrainConfig, step: int) -> float:
    """Set every group to its scheduled rate; returns AdamW's, the gamma of the outer problem."""
    factor = schedule(train, step)
    for optimizer in optimizers:
        base = train.muon_lr if isinstance(optimizer, Muon) else train.lr
        for group in optimizer.param_groups:
            group["lr"] = base * factor
    return train.lr * factor
