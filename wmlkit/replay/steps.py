"""The steps of the replay: micro-batches and optimizer steps of an epoch, and the outer problem on the weights.

    epoch:  micro-batches -> loss -> one optimizer step for each, or one for all of them
    every `weight_update_every` epochs:  micro-batches of the outer text -> gradient -> mirror descent on the weights

Students of a teacher (`released.Case.mode`) learn each for itself, so they have no weights and no outer problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor

from .. import bilevel, losses
from ..config import Config
from ..data.batches import Batch
from ..data.texts import Measured, Source
from ..device import Device
from ..forward import frozen_logits, inner_batch, kl_positions, outer_batch, parameters_of
from ..losses import MutualLoss, MutualOptions
from ..state import State
from ..updates import sgd_update
from .released import Case, Defects, clamped, epoch_learning_rate, loss_options, outer_step_size


@dataclass(frozen=True)
class Setting:
    """What one replay works with."""

    config: Config
    case: Case
    device: Device
    train: Source
    outer: Source
    dev: Measured  # true dev text, whatever was trained on

    @property
    def defects(self) -> Defects:
        return self.case.defects

    @property
    def options(self) -> MutualOptions:
        return loss_options(self.config.mutual.alpha, self.defects)

    @property
    def positions(self) -> str:
        return "all" if self.defects.all_positions else "scored"


def epochs(state: State, setting: Setting) -> Iterator[dict[str, Any]]:
    """Train; one row of metrics an epoch."""
    replay = setting.config.replay
    set_seed(setting.config.train.seed)  # dropout
    for epoch in range(replay.num_epochs):
        row, outer = train_epoch(state, setting, epoch), None
        if setting.case.mode == "mutual" and len(state.peers) > 1 and epoch % replay.weight_update_every == 0:
            outer = outer_problem(state, setting, epoch, row["lr"][-1])
        yield {"epoch": epoch, **row, "peer_weights": state.peer_weights.tolist(), "outer": outer}


def train_epoch(state: State, setting: Setting, epoch: int) -> dict[str, Any]:
    """Micro-batches of one epoch and the optimizer steps; the learning rate of an epoch's single step is its own."""
    replay, config, device = setting.config.replay, setting.config, setting.device
    together = setting.defects.step_per_epoch
    rates, ce, kl = [], [], []
    for number in range(replay.micro_batches):
        batch = setting.train(epoch * replay.micro_batches + number, config.train.mask_ratio).to(device.device)
        loss = inner_loss(state, batch, setting)
        (loss.total / (replay.micro_batches if together else 1)).backward()
        ce.append(loss.ce)
        kl.append(loss.kl)
        last = number == replay.micro_batches - 1
        if last or not together:
            done = epoch if together else epoch + (number + 1) / replay.micro_batches
            rates.append(_optimizer_step(state, setting, done))
    mean_ce, mean_kl = torch.stack(ce).mean(dim=0).cpu(), torch.stack(kl).mean(dim=0).cpu()
    own = state.peer_weights.float() if setting.defects.peer_weighted_ce else torch.ones_like(mean_ce)
    ratio = mean_kl.sum() / (own * mean_ce).sum()  # of the two terms of the loss, before alpha
    return {"lr": rates, "ce": mean_ce.tolist(), "kl": mean_kl.tolist(), "kl_to_ce": float(ratio)}


def inner_loss(state: State, batch: Batch, setting: Setting) -> MutualLoss:
    """The loss of all students on one batch: L1, or that of students of a teacher."""
    options, rows = setting.options, len(batch.input_ids)
    index, scored = kl_positions(batch, setting.positions)
    if setting.defects.unmasked_inputs:
        index, batch = batch.real, unmasked(batch, setting.config.model.objective)
    with setting.device.autocast():
        logits = [peer(batch, index) for peer in state.peers]
        teacher = frozen_logits(state.teacher, batch, index)
    if setting.defects.unmasked_inputs:
        return imitation_loss(logits, teacher[0], options.alpha)
    targets = batch.targets[index]
    if setting.case.mode == "teacher":
        return losses.distillation_loss(logits, teacher[0], targets, options, rows, scored)
    weights = state.peer_weights.float().to(setting.device.device)
    return losses.mutual_loss(logits, targets, weights, options, rows, scored)


def unmasked(batch: Batch, objective: str) -> Batch:
    """The batch as it is read where nothing is masked (L8): the true tokens of a masked model stand in its targets."""
    if objective == "clm":
        return batch
    return replace(batch, input_ids=batch.targets.view_as(batch.input_ids))


def imitation_loss(logits: Sequence[Tensor], teacher: Tensor, alpha: float) -> MutualLoss:
    """(1 - alpha) sum_i CE(p_teacher, p_i), mean over positions: the released teacher-guided loss of a single student.

    logits: P tensors (N, V); teacher: (N, V), no gradient. No true token and no temperature occurs in it (L8).
    """
    targets = teacher.detach().float().softmax(dim=-1)
    ce = torch.stack([-(targets * z.float().log_softmax(dim=-1)).sum(dim=-1).mean() for z in logits])
    return MutualLoss((1 - alpha) * ce.sum(), ce.detach(), torch.zeros_like(ce.detach()))


def _optimizer_step(state: State, setting: Setting, epoch: float) -> float:
    lr, clip = epoch_learning_rate(epoch, setting.config.replay), setting.config.train.grad_clip
    for peer, optimizers in zip(state.peers, state.optimizers, strict=True):
        if clip:
            torch.nn.utils.clip_grad_norm_(peer.parameters(), clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
    state.step += 1
    return lr


def outer_parts(state: State, batch: Batch, outer: Batch, setting: Setting, inner_lr: float) -> tuple[Tensor, Tensor]:
    """(explicit term of dL2/dw, correction), each (P,), for one micro-batch of both texts.

    The explicit term is taken after an SGD step, and where the gradient is cut before it, as in the released code,
    which has no step there.
    """
    objective = "weighted_ce" if setting.defects.weighted_ce else "logit_ensemble"
    parameters = [parameters_of(peer) for peer in state.peers]
    weights = state.peer_weights.float().to(outer.input_ids.device)
    problem = outer_batch(state.peers, outer)
    updates = None if setting.defects.cut_gradient else [sgd_update(peer, inner_lr) for peer in parameters]
    inner = inner_batch(state.peers, batch, setting.positions)
    explicit, correction, _ = bilevel.hypergradient_terms(
        parameters, weights, inner, problem, setting.options, updates=updates, objective=objective
    )
    return explicit.cpu(), correction.cpu()


def outer_problem(state: State, setting: Setting, epoch: int, inner_lr: float) -> dict[str, Any]:
    """Mirror descent on the weights over the micro-batches of the outer text."""
    replay, config, defects = setting.config.replay, setting.config, setting.defects
    eta = outer_step_size(epoch, replay)
    device, count = setting.device.device, replay.micro_batches
    total, ratios, gradient = torch.zeros(len(state.peers)), [], torch.zeros(len(state.peers))
    for number in range(count):
        step = epoch // replay.weight_update_every * count + number
        batch = setting.train(epoch * count + number, config.train.mask_ratio).to(device)
        outer = setting.outer(step, config.train.mask_ratio).to(device)
        explicit, correction = outer_parts(state, batch, outer, setting, inner_lr)
        ratios.append(float(correction.norm() / explicit.norm()))
        gradient = explicit - correction if defects.wrong_sign else explicit + correction
        total += gradient / count
        if defects.scaled_steps:
            gradient = gradient / count
            _mirror(state, gradient, eta, setting)
    if not defects.scaled_steps:
        gradient = total
        _mirror(state, gradient, eta, setting)
    return {
        "step_size": eta,
        "gradient": gradient.tolist(),  # of the last micro-batch where there is a step for each
        "correction": sum(ratios) / len(ratios),
    }


def _mirror(state: State, gradient: Tensor, eta: float, setting: Setting) -> None:
    if setting.defects.clamped:
        gradient = clamped(gradient, setting.config.train.grad_clip)
    state.log_weights = bilevel.log_mirror_step(state.log_weights, gradient, eta)
