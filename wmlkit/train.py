"""One loop for all arms: the inner steps of P peers, and the outer steps on their weights.

`run` makes the run folder of design and docs/metrics.md. An arm differs from another in two lines only:
alpha (0 for `independent`) and whether `outer_step` is taken (`wml`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import bilevel, checkpoint, environment, losses, paths
from .config import Config, run_hash
from .data.batches import Batch
from .data.prepare import prepare
from .data.texts import Source, Texts, open_texts
from .data.tokenizer import load_tokenizer
from .device import Device, peak_memory, setup
from .errors import UserError
from .forward import AtPositions, inner_batch, kl_positions, outer_batch, parameters_of
from .losses import MutualOptions
from .models import Student, base_student, body_parameters, build_model
from .optim import build_optimizers, mask_ratio, schedule, set_learning_rate
from .search import Found, search_students
from .updates import Update, optimizer_update, sgd_update

Progress = Callable[[dict[str, Any]], None]


@dataclass
class State:
    """What changes while a run trains. `record` is what a checkpoint must remember besides tensors."""

    peers: list[AtPositions]
    optimizers: list[list[Optimizer]]
    peer_weights: Tensor  # (P,) float64, on the CPU
    step: int = 0
    tokens: int = 0
    words: int = 0
    hypergradient: list[float] | None = None
    seconds: float = 0.0

    @property
    def models(self) -> list[PreTrainedModel]:
        return [peer.model for peer in self.peers]

    def record(self, metrics_bytes: int) -> dict[str, Any]:
        return {
            "peer_weights": self.peer_weights.tolist(),
            "hypergradient": self.hypergradient,
            "tokens": self.tokens,
            "words": self.words,
            "seconds": self.seconds,
            "metrics_bytes": metrics_bytes,
        }


def mutual_options(config: Config, step: int) -> MutualOptions:
    """The loss of an arm at `step`: alpha is 0 for `independent` and rises over `mutual.kl_warmup_steps`."""
    mutual = config.mutual
    warmup = min(1.0, (step + 1) / mutual.kl_warmup_steps) if mutual.kl_warmup_steps else 1.0
    return MutualOptions(
        alpha=0.0 if mutual.arm == "independent" else mutual.alpha * warmup,
        kl_weight=mutual.kl_weight,
        ce_weight=mutual.ce_weight,
        detach_targets=mutual.detach_targets,
        kl_reduction=mutual.kl_reduction,
        temperature=mutual.temperature,
    )


def inner_loss(state: State, batch: Batch, config: Config, options: MutualOptions, device: Device) -> losses.MutualLoss:
    """L1 of all peers on one batch: one forward pass a peer."""
    index, scored = kl_positions(batch, config.mutual.kl_positions)
    with device.autocast():
        logits = [peer(batch, index) for peer in state.peers]
    weights = state.peer_weights.to(device.device, torch.float32)
    return losses.mutual_loss(logits, batch.targets[index], weights, options, len(batch.input_ids), scored)


def inner_updates(state: State, config: Config, inner_lr: float) -> list[Update] | None:
    """What `outer.hypergradient` names as the inner step: none (`direct`), SGD, or the optimizer in use (`adam`)."""
    if config.outer.hypergradient == "direct":
        return None
    if config.outer.hypergradient == "sgd":
        return [sgd_update(parameters_of(peer), inner_lr) for peer in state.peers]
    pairs = zip(state.peers, state.optimizers, strict=True)
    return [optimizer_update(peer, own, config.train.grad_clip) for peer, own in pairs]


def outer_step(
    state: State, batch: Batch, held_out: Batch, config: Config, options: MutualOptions, inner_lr: float
) -> None:
    """Mirror descent on the peers' weights; the step's own gradients of L1 are in the parameters' `.grad`."""
    outer = config.outer
    parameters = [parameters_of(peer) for peer in state.peers]
    gradients = [{k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in own.items()} for own in parameters]
    gradient, _ = bilevel.hypergradient(
        parameters,
        state.peer_weights.to(held_out.input_ids.device, torch.float32),
        inner_batch(state.peers, batch, config.mutual.kl_positions),
        outer_batch(state.peers, held_out),
        options,
        updates=inner_updates(state, config, inner_lr),
        objective=outer.objective,
        gradients=gradients,
    )
    eta = outer.lr * (schedule(config.train, state.step) if outer.schedule == "cosine" else 1.0)
    state.hypergradient = gradient.tolist()
    state.peer_weights = bilevel.mirror_step(state.peer_weights, gradient.cpu(), eta, outer.min_weight)


def train_step(state: State, texts: Texts, config: Config, device: Device) -> tuple[losses.MutualLoss, float]:
    """One inner step of every peer and, for `wml` every `outer.every` steps, one outer step before it."""
    train, step = config.train, state.step
    ratio = mask_ratio(train, step)
    batch = texts.train(step, ratio).to(device.device)
    options = mutual_options(config, step)
    lr = 0.0
    for optimizers in state.optimizers:
        lr = set_learning_rate(optimizers, train, step)
    loss = inner_loss(state, batch, config, options, device)
    loss.total.backward()
    due = step >= config.outer.start and step % config.outer.every == 0
    if config.mutual.arm == "wml" and len(state.peers) > 1 and due:
        held_out = texts.held_out(step // config.outer.every, ratio).to(device.device)
        outer_step(state, batch, held_out, config, options, lr)
    for peer, optimizers in zip(state.peers, state.optimizers, strict=True):
        if train.grad_clip:
            torch.nn.utils.clip_grad_norm_(peer.parameters(), train.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    state.step += 1
    state.tokens += batch.tokens
    state.words += batch.words
    return loss, lr


@torch.inference_mode()
def measure(state: State, source: Source, config: Config, device: Device) -> tuple[list[float], float]:
    """(CE of each peer, CE of the weighted logit ensemble) over `train.eval_rows` rows, in nats per scored token.

    The rows and masks are the same at every call, so the values of a run compare.
    """
    total = torch.zeros(len(state.peers) + 1, dtype=torch.float64)
    count = 0
    for model in state.models:
        model.eval()
    for number in range(math.ceil(config.train.eval_rows / config.outer.batch_size)):
        batch = source(number, config.train.mask_ratio).to(device.device)
        targets = batch.targets[batch.scored]
        with device.autocast():
            logits = [peer(batch, batch.scored).float() for peer in state.peers]
        weights = state.peer_weights.to(device.device, torch.float32)
        ensemble = bilevel.outer_loss(logits, targets, weights, "logit_ensemble")
        losses_now = torch.cat([losses.cross_entropies(logits, targets), ensemble[None]])
        total += len(targets) * losses_now.double().cpu()
        count += len(targets)
    for model in state.models:
        model.train()
    *peers, ensemble_ce = (total / count).tolist()
    return peers, ensemble_ce


def evaluation_row(state: State, texts: Texts, config: Config, device: Device) -> dict[str, Any]:
    """Losses on dev text (for reports) and on held-out text (for choosing the best peer)."""
    dev, dev_ensemble = measure(state, texts.dev, config, device)
    held_out, held_out_ensemble = measure(state, texts.held_out, config, device)
    return {
        "dev_ce": dev,
        "held_out_ce": held_out,
        "dev_ce_ensemble": dev_ensemble,
        "held_out_ce_ensemble": held_out_ensemble,
    }


def find_students(config: Config, vocab_size: int) -> list[Found]:
    """The peers' shapes, in their order."""
    base = base_student(config.model)
    return search_students(
        base, config.mutual.num_peers, config.search, config.model, vocab_size, config.data.longest_block
    )


def build_state(config: Config, students: list[Found], tokenizer: PreTrainedTokenizerBase, device: Device) -> State:
    """Freshly initialised peers: peer i's weights depend on (seed, i) alone, so all arms start alike."""
    peers, optimizers = [], []
    for i, found in enumerate(students):
        shape = Student(found.num_layers, found.num_heads, found.hidden_size, found.intermediate_size)
        seed = 1000 * config.train.seed + i
        model = build_model(shape, config.model, tokenizer, config.data.longest_block, seed)
        model.to(device.device)  # type: ignore[arg-type]  # transformers wraps `to` in a type that loses its arguments
        peers.append(AtPositions(model))
        optimizers.append(build_optimizers(model, config.train, device.device))
    return State(peers, optimizers, torch.full((len(peers),), 1 / len(peers), dtype=torch.float64))


def run_folder(config: Config, out: Path) -> Path:
    """Where this run is, or will be; prepares the corpus, whose content is part of a run's identity."""
    prepared = prepare(config.data, out)
    identity = run_hash(config, prepared.hash)
    return paths.run(out, config.preset, config.mutual.arm, config.mutual.num_peers, config.train.seed, identity)


def run(
    config: Config, out: str | Path | None = None, *, progress: Progress | None = None, force: bool = False
) -> Path:
    """Train one run, or go on with it, or return it if it is done. Returns its folder.

    out: the output folder (`paths.output`). progress: called with every logged row of metrics.jsonl.
    Resuming gives the same bytes as never having stopped (CPU; wall-clock fields aside).
    """
    out = paths.output(out)
    prepared = prepare(config.data, out)
    tokenizer = load_tokenizer(prepared.folder / "tokenizer", needs_mask=config.model.objective == "mlm")
    students = find_students(config, len(tokenizer))
    folder = run_folder(config, out)
    if (folder / "done.json").is_file() and not force:
        return folder
    device = setup(config.train.precision, config.train.threads)
    texts = open_texts(config, prepared, tokenizer)
    state = build_state(config, students, tokenizer, device)
    if force:
        paths.remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths.write_json(
        folder / "config.json",
        {
            "config": config.resolved(),
            "data": {"folder": prepared.folder.name, "hash": prepared.hash, "name": prepared.name},
            "hash": run_hash(config, prepared.hash),
            "students": [found.document() for found in students],
        },
    )
    paths.write_json(folder / "environment.json", environment.document(device))
    _train(state, texts, config, device, folder, progress)
    _finish(state, texts, config, device, folder, students, tokenizer)
    return folder


def _train(state: State, texts: Texts, config: Config, device: Device, folder: Path, progress: Progress | None) -> None:
    """Inner and outer steps from the last checkpoint to the end, with metrics and checkpoints."""
    train = config.train
    saved = checkpoint.checkpoints(folder / "checkpoints")
    metrics_bytes = 0
    if saved:
        state.step, record = checkpoint.restore(saved[-1], state.models, state.optimizers)
        state.peer_weights = torch.tensor(record["peer_weights"], dtype=torch.float64)
        state.hypergradient = record["hypergradient"]
        state.tokens, state.words, state.seconds = record["tokens"], record["words"], record["seconds"]
        metrics_bytes = record["metrics_bytes"]
    with (folder / "metrics.jsonl").open("a+b") as metrics:
        metrics.truncate(metrics_bytes)  # rows after the checkpoint will be written again
        metrics.seek(metrics_bytes)
        began, before = time.perf_counter(), (state.seconds, state.tokens)
        while state.step < train.steps:
            loss, lr = train_step(state, texts, config, device)
            state.seconds = before[0] + time.perf_counter() - began
            last = state.step == train.steps
            measured = state.step % train.eval_every == 0 or last
            if state.step % train.log_every == 0 or measured:
                row = metrics_row(state, loss, lr, config, device)
                row["tokens_per_second"] = (state.tokens - before[1]) / (state.seconds - before[0])
                if measured:
                    row |= evaluation_row(state, texts, config, device)
                metrics.write(json.dumps(row, allow_nan=False).encode() + b"\n")
                metrics.flush()
                if progress:
                    progress(row)
            if state.step % train.checkpoint_every == 0 or last:
                checkpoint.save(
                    folder / "checkpoints",
                    state.step,
                    state.models,
                    state.optimizers,
                    state.record(metrics.tell()),
                    train.keep_checkpoints,
                )


def metrics_row(state: State, loss: losses.MutualLoss, lr: float, config: Config, device: Device) -> dict[str, Any]:
    """One line of metrics.jsonl; stops the run when a loss is not finite, naming step, peer and term."""
    options = mutual_options(config, state.step - 1)
    weights = state.peer_weights if options.ce_weight == "peer" else torch.ones_like(state.peer_weights)
    ce, kl = loss.ce.double().cpu(), loss.kl.double().cpu()
    for name, values in (("ce", ce), ("kl", kl), ("hypergradient", torch.tensor(state.hypergradient or [0.0]))):
        if not torch.isfinite(values).all():
            peer = int((~torch.isfinite(values)).nonzero()[0]) + 1
            raise UserError(
                f"step {state.step}: the {name} of peer {peer} is {float(values[peer - 1])}, expected a finite number; "
                "lower train.lr (or train.muon_lr) and run again: the last good checkpoint is kept"
            )
    return {
        "step": state.step,
        "tokens": state.tokens,
        "words": state.words,
        "lr": lr,
        "alpha": options.alpha,
        "ce": ce.tolist(),
        "kl": kl.tolist(),
        "total": ((1 - options.alpha) * weights * ce + options.alpha * kl).tolist(),
        "peer_weights": state.peer_weights.tolist(),
        "peer_weights_entropy": bilevel.entropy(state.peer_weights),
        "hypergradient": state.hypergradient,
        "seconds": state.seconds,
        "peak_memory": peak_memory(device.device),
    }


def _finish(
    state: State,
    texts: Texts,
    config: Config,
    device: Device,
    folder: Path,
    students: list[Found],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Export the peers and write done.json, last."""
    final = evaluation_row(state, texts, config, device)
    best = min(range(len(state.peers)), key=lambda i: final["held_out_ce"][i])
    for i, model in enumerate(state.models):
        card = environment.model_card(config, students[i], i + 1, final["dev_ce"][i], state.words)
        checkpoint.export(model, tokenizer, paths.peer(folder, i + 1), card)
    paths.write_json(
        folder / "done.json",
        {
            "steps": state.step,
            "tokens": state.tokens,
            "words": state.words,
            "passes": texts.passes,
            "seconds": state.seconds,
            "peer_weights": state.peer_weights.tolist(),
            "best_peer": best + 1,
            "parameters": [sum(p.numel() for p in model.parameters()) for model in state.models],
            "flops": sum(6.0 * body_parameters(model) * state.tokens for model in state.models),
            "peak_memory": peak_memory(device.device),
            **final,
        },
    )
