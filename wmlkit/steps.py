"""One training step of any arm: the inner step of P peers, and the outer step on their weights.

An arm differs from another in alpha (0 for `independent`), in whose distributions the peers learn from (`distill`:
the teacher's, else one another's) and in whether `outer_step` is taken (`wml`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from . import averaging, bilevel, faults, losses
from .closed_form import Head
from .config import Config
from .data.batches import Batch
from .data.texts import Texts
from .device import Device, moved
from .errors import UserError
from .forward import frozen_heads, inner_batch, kl_positions, outer_batch, parameters_of, share_of
from .losses import MutualOptions
from .optim import mask_ratio, schedule, set_learning_rate
from .state import State
from .updates import Update, optimizer_update, sgd_update


def mutual_options(config: Config, step: int) -> MutualOptions:
    """The loss of an arm at `step`: alpha is 0 for `independent` and rises over `mutual.kl_warmup_steps`."""
    mutual = config.mutual
    warmup = min(1.0, (step + 1) / mutual.kl_warmup_steps) if mutual.kl_warmup_steps else 1.0
    return MutualOptions(
        alpha=0.0 if mutual.arm in ("independent", "teacher") else mutual.alpha * warmup,
        kl_weight=mutual.kl_weight,
        # without mutual learning there are no peers' weights
        ce_weight=mutual.ce_weight if mutual.arm in ("dml", "wml") else "one",
        detach_targets=mutual.detach_targets,
        kl_reduction=mutual.kl_reduction,
        temperature=mutual.temperature,
        frozen=int(mutual.teacher_is_peer),
    )


def inner_loss(
    state: State,
    batch: Batch,
    config: Config,
    options: MutualOptions,
    device: Device,
    whole: Batch | None = None,
    part: int = 0,
) -> losses.MutualLoss:
    """L1 of all peers on one batch: one forward pass a peer, and one of the teacher where there is one.

    whole: the batch that this is a part of, with number `part`; None: it is all of it.
    """
    mutual, teacher = config.mutual, state.teacher
    weights = state.peer_weights.float()
    if mutual.arm == "distill":  # L1 with all weight on the teacher as a target
        weights = torch.cat([0 * weights, torch.ones(1)])
        options = replace(options, kl_weight="target", frozen=1)
    positions = mutual.kl_positions
    if options.alpha == 0:  # nobody learns from anybody, so nothing but the scored positions of the peers is needed
        weights, teacher, positions = weights[: len(state.peers)], None, "scored"
        options = replace(options, frozen=0)
    index, scored = kl_positions(batch, positions)
    peers = (_own_head(state, number, config, part, batch, index) for number in range(len(state.peers)))
    with device.autocast():
        return losses.mutual_loss_of_heads(
            chain(peers, frozen_heads(teacher, batch, index)),
            batch.targets[index],
            moved(weights, device.device),
            options,
            len(batch.input_ids),
            scored,
            share_of(batch, whole or batch, positions, options),
        )


def _own_head(state: State, peer: int, config: Config, part: int, batch: Batch, index: Tensor) -> Head:
    """The head of a peer, whose dropout is its own: the same numbers whoever trains beside it and in what arm."""
    if config.model.dropout:
        own = np.random.SeedSequence([config.train.seed, state.step, peer, part])
        torch.manual_seed(int(own.generate_state(1, np.uint64)[0]))
    return state.peers[peer].head(batch, index)


def inner_updates(state: State, config: Config, inner_lr: float) -> list[Update] | None:
    """What `outer.hypergradient` names as the inner step: none (`direct`), SGD, or the optimizer in use (`adam`)."""
    if config.outer.hypergradient == "direct":
        return None
    if config.outer.hypergradient == "sgd":
        return [sgd_update(parameters_of(peer), inner_lr) for peer in state.peers]
    pairs = zip(state.peers, state.optimizers, strict=True)
    return [optimizer_update(peer, own, config.train.grad_clip) for peer, own in pairs]


def outer_gradient(
    state: State,
    parts: Sequence[Batch],
    whole: Batch,
    outer: Batch,
    config: Config,
    options: MutualOptions,
    inner_lr: float,
    device: Device,
) -> Tensor:
    """The hypergradient, one number a weight, on the CPU; the step's own gradients of L1 are in the peers' `.grad`.

    parts: those of the training batch `whole` that this process holds. Of `outer`, a whole batch, it takes its own.
    """
    positions, teacher = config.mutual.kl_positions, state.teacher
    parameters = [parameters_of(peer) for peer in state.peers]
    gradients = [{name: _gradient(p) for name, p in own.items()} for own in parameters]
    inner = [
        inner_batch(state.peers, part, positions, teacher, share_of(part, whole, positions, options)) for part in parts
    ]
    own = [part for part in own_parts(outer, state.parts, device) if len(part.scored)]
    gradient, _ = bilevel.hypergradient(
        parameters,
        state.peer_weights.float().to(device.device),
        inner,
        [outer_batch(state.peers, part, teacher, len(part.scored) / len(outer.scored)) for part in own],
        options,
        updates=inner_updates(state, config, inner_lr),
        objective=config.outer.objective,
        gradients=gradients,
        total=device.total,
    )
    return gradient.cpu()


def outer_tokens(batch: Batch, outer: Batch, hypergradient: str, options: MutualOptions) -> float:
    """What an outer step costs, in tokens of a forward and backward pass, which take 6 FLOP a parameter and token: 2
    for each of a forward pass and the two products of a backward one. A directional derivative (forward mode) makes two
    products beside those of its forward pass, so it costs as much."""
    if hypergradient == "direct":
        return outer.tokens / 3  # a forward pass
    return float(outer.tokens + (0 if bilevel.own_gradient_tells(options) else batch.tokens))


def read_by_teacher(state: State, hypergradient: str) -> float:
    """Tokens of a frozen teacher's forward passes so far: one beside each pass of the peers, in outer steps too."""
    return state.tokens + state.outer_tokens * (3 if hypergradient == "direct" else 1)  # see `outer_tokens`


def outer_step(state: State, gradient: Tensor, config: Config) -> None:
    """Mirror descent on the peers' weights, with the hypergradient of `outer_gradient`."""
    state.hypergradient = gradient.tolist()
    eta = outer_lr(config, state.step)
    state.log_weights = bilevel.log_mirror_step(state.log_weights, gradient, eta, config.outer.min_weight)


def outer_lr(config: Config, step: int) -> float:
    """Step size eta of the mirror descent at 0-based `step`."""
    outer = config.outer
    cosine = outer.schedule == "cosine"
    return outer.lr * (schedule(config.train, step, "cosine", outer.min_lr_ratio) if cosine else 1.0)


def own_parts(batch: Batch, each: int, device: Device) -> list[Batch]:
    """The parts of a batch that this process computes, one after the other, on its device.

    Row r goes to process r modulo their number, and there to `each` parts in the same way, so that the sum over all
    parts and processes is that of the whole batch in one piece.
    """
    count = device.processes * each
    if count == 1:
        return [batch.to(device.device)]
    held = min(each, -(-len(batch.input_ids) // device.processes))  # no part behind these has a row
    parts = (batch.part(device.index + device.processes * i, count) for i in range(held))
    return [part.to(device.device) for part in parts if len(part.input_ids)]


def _sum(parts: Sequence[losses.MutualLoss], state: State, device: Device) -> losses.MutualLoss:
    """The loss of a batch from those of the parts at hand, summed over the processes too."""
    if len(parts) == device.processes == 1:
        return parts[0]
    of_peers = torch.zeros(len(state.peers), device=device.device)
    sums = [of_peers.new_zeros(()), of_peers, of_peers]
    for part in parts:
        sums = [s + value for s, value in zip(sums, (part.total.detach(), part.ce, part.kl), strict=True)]
    return losses.MutualLoss(*device.total(sums))


def _gradient(parameter: Tensor) -> Tensor:
    """That of the last step; zeros where nothing depended on the parameter."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _exchange_gradients(state: State, device: Device) -> None:
    """Each parameter's gradient summed over the processes."""
    parameters = [p for peer in state.peers for p in peer.weights]
    gradients = [_gradient(p) for p in parameters]
    for parameter, gradient in zip(parameters, device.total(gradients), strict=True):
        parameter.grad = gradient


def clip_and_update(state: State, config: Config, norms: Tensor) -> None:
    """Each peer's gradient, whose norm is in `norms` (P,), clipped and counted, and the step of its optimizers."""
    if state.clipped is not None:
        state.clipped = state.clipped.to(norms.device) + (norms > config.train.grad_clip)  # nothing waits for a device
    for peer, optimizers, norm in zip(state.peers, state.optimizers, norms, strict=True):
        if config.train.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(peer.weights, config.train.grad_clip, norm)
        for optimizer in optimizers:
            optimizer.step()


def _drop_gradients(state: State) -> None:
    for peer in state.peers:
        for parameter in peer.weights:
            parameter.grad = None


def _gradients(
    state: State, batch: Batch, texts: Texts, config: Config, ratio: float, lr: float, device: Device
) -> tuple[losses.MutualLoss, Tensor | None]:
    """The batch's loss, its gradients in the parameters' `.grad`, and for `wml` the hypergradient where it is due."""
    step, options = state.step, mutual_options(config, state.step)
    parts = own_parts(batch, state.parts, device)
    found = []
    for number, part in enumerate(parts):
        own = device.index + device.processes * number
        loss = inner_loss(state, part, config, options, device, batch, own)
        loss.total.backward()
        found.append(loss)
    if device.processes > 1:
        _exchange_gradients(state, device)
    due = step in config.outer.due(config.train.steps)
    hypergradient = None
    if config.mutual.arm == "wml" and len(state.peer_weights) > 1 and due:
        outer = texts.outer(step // config.outer.every, ratio)
        hypergradient = outer_gradient(state, parts, batch, outer, config, options, lr, device)
        state.outer_tokens += outer_tokens(batch, outer, config.outer.hypergradient, options)
    return _sum(found, state, device), hypergradient


def _more_parts(state: State, rows: int, device: Device) -> None:
    """Twice as many parts of a batch of `rows` rows, after memory ran out. Raises UserError where that cannot help."""
    # One process cannot ask the others to do the same: they wait for its gradients.
    if device.processes > 1 or 2 * state.parts > rows:
        what, remedy = "a single row of the batch; expected one that fits", "set"
        if device.processes > 1:
            what, remedy = "one of several processes; expected parts that fit", "set a larger train.accumulate,"
        raise UserError(
            f"memory ran out at step {state.step + 1} with {what}: {remedy} a smaller data.block_size, smaller "
            "students or, where weights are learned, a smaller outer.batch_size, and run again"
        )
    state.parts *= 2
    _drop_gradients(state)
    faults.free_memory(device.device)


def train_step(state: State, texts: Texts, config: Config, device: Device) -> tuple[losses.MutualLoss, float]:
    """One inner step of every peer and, for `wml` every `outer.every` steps, one outer step before it.

    A batch that does not fit into memory is taken in more and more parts, which gives the same step to rounding
    (without dropout, which draws other numbers for parts). Where `train.skip_not_finite` allows it, a step with a
    number that is not finite leaves everything as it is.
    """
    train, step = config.train, state.step
    ratio = mask_ratio(train, step)
    batch = texts.train(step, ratio)
    if not len(batch.scored):
        raise UserError(
            f"no position of step {step + 1}'s batch is scored, so its loss is undefined; expected at least one; raise "
            "train.mask_ratio, train.batch_size or data.block_size"
        )
    lr = 0.0
    for optimizers in state.optimizers:
        lr = set_learning_rate(optimizers, train, step)
    while True:
        try:
            loss, hypergradient = _gradients(state, batch, texts, config, ratio, lr, device)
            break
        except (RuntimeError, MemoryError) as error:
            if not faults.is_out_of_memory(error):
                raise
        _more_parts(state, len(batch.input_ids), device)  # outside of the handler: the error holds the step's tensors
    norms = faults.gradient_norms(peer.weights for peer in state.peers)
    if not _leaves_out(state, loss, norms, hypergradient, config, device):
        if hypergradient is not None:
            outer_step(state, hypergradient, config)
        clip_and_update(state, config, norms)
        if state.averages:
            updates = step + 1 - state.skipped
            averaging.update(state.averages, state.peers, train.ema_decay, updates)
    _drop_gradients(state)
    state.step += 1
    state.tokens += batch.tokens
    state.words += batch.words
    return loss, lr


def _leaves_out(
    state: State,
    loss: losses.MutualLoss,
    norms: Tensor,
    hypergradient: Tensor | None,
    config: Config,
    device: Device,
) -> bool:
    """Whether this step is left out, and counted, because a number is not finite. Raises UserError where it may not be.

    On a CPU a fault is found at its step. Elsewhere looking would make the step wait for the device, so `train` looks
    where it logs and before it saves, and the fault is named with the step where it was; to skip, one has to look.
    """
    seen = faults.note(state.faults, (loss.ce, loss.kl, norms), state.step + 1)
    allowed = config.train.skip_not_finite
    outer = [] if hypergradient is None else (~hypergradient.isfinite()).nonzero().flatten().tolist()
    looks = allowed or device.device.type == "cpu"
    if not outer and not (looks and bool(seen.any())):
        state.faults = seen
        return False
    state.skipped += 1
    if state.skipped <= allowed:
        return True
    hint = f" ({allowed} such steps were skipped, as train.skip_not_finite allows)" if allowed else ""
    faults.raise_first(seen, hint)
    raise faults.not_finite(state.step + 1, "hypergradient", outer[0], hint)
