"""The released training replayed: a plain loop in which each defect (`released.Defects`) is a switch.

With no switch on, this is the method as described, at the sizes of ``[replay]``; with all of them on, it does what
the released code does.

    epoch:  micro-batches -> L1 -> one optimizer step for each, or one for all of them
    every `weight_update_every` epochs:  micro-batches of the outer text -> gradient -> mirror descent on the weights
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from . import bilevel, environment, losses, paths
from .config import Config, DataConfig, digest
from .data.batches import Batch, Rows, batch_source
from .data.prepare import Prepared, prepare
from .data.texts import Source
from .data.tokenizer import load_tokenizer
from .device import Device, setup
from .errors import UserError
from .evaluate import evaluate_pairs
from .forward import inner_batch, kl_positions, outer_batch, parameters_of
from .losses import MutualOptions
from .released import FINDINGS, Defects, cases, clamped, epoch_learning_rate, loss_options, outer_step_size
from .released_data import text_rows, widened, without_capitals
from .students import find_students
from .study import pairs_folder
from .train import State, build_state, measure
from .updates import sgd_update


def replay_config(config: Config, defects: Defects, seed: int) -> Config:
    """`config` as the replay uses it: AdamW, the sizes of ``[replay]``, and the text that the defects leave."""
    changes: dict[str, Any] = {
        "train.seed": seed,
        "train.optimizer": "adamw",
        "train.lr": config.replay.lr,
        "train.batch_size": config.replay.batch_size,
        "mutual.arm": "wml",
        "mutual.num_peers": config.replay.num_peers,
    }
    if defects.lost_case:
        changes |= {"data.lowercase": True, "data.nfkc": True}
    if defects.uncleaned_text:
        changes["data.clean"] = False
    return config.updated(changes)


@dataclass(frozen=True)
class Setting:
    """What one replay works with."""

    config: Config
    defects: Defects
    device: Device
    train: Source
    outer: Source
    dev: Source  # true dev text, whatever was trained on

    @property
    def options(self) -> MutualOptions:
        return loss_options(self.config.mutual.alpha, self.defects)

    @property
    def positions(self) -> str:
        return "all" if self.defects.all_positions else "scored"


def _open_setting(
    config: Config, defects: Defects, device: Device, prepared: Prepared, tokenizer: PreTrainedTokenizerFast
) -> tuple[Setting, np.ndarray, PreTrainedTokenizerFast]:
    """(what to train on, the ids of the training text, the tokenizer that the models are built for)."""
    train, wide = config.train, widened(tokenizer)

    def source(rows: Rows, batch_size: int) -> Source:
        return batch_source(rows, config.model.objective, batch_size, wide, train.mask_random, train.mask_keep)

    rows, ids = text_rows(config, prepared, "train", tokenizer, wide, defects)
    outer_rows, _ = text_rows(config, prepared, "dev" if defects.dev_text else "held_out", tokenizer, wide, defects)
    dev_rows, _ = text_rows(config, prepared, "dev", tokenizer, wide, Defects())
    size = config.replay.batch_size
    dev = source(dev_rows, config.outer.batch_size)
    return Setting(config, defects, device, source(rows, size), source(outer_rows, size), dev), ids, wide


def train_epoch(state: State, setting: Setting, epoch: int) -> dict[str, Any]:
    """Micro-batches of one epoch and the optimizer steps; the learning rate of an epoch's single step is its own."""
    replay, config, device = setting.config.replay, setting.config, setting.device
    together = setting.defects.step_per_epoch
    rates, ce, kl = [], [], []
    for number in range(replay.micro_batches):
        batch = setting.train(epoch * replay.micro_batches + number, config.train.mask_ratio).to(device.device)
        index, scored = kl_positions(batch, setting.positions)
        with device.autocast():
            logits = [peer(batch, index) for peer in state.peers]
        weights = state.peer_weights.to(device.device, torch.float32)
        targets = batch.targets[index]
        loss = losses.mutual_loss(logits, targets, weights, setting.options, len(batch.input_ids), scored)
        (loss.total / (replay.micro_batches if together else 1)).backward()
        ce.append(loss.ce)
        kl.append(loss.kl)
        last = number == replay.micro_batches - 1
        if last or not together:
            done = epoch if together else epoch + (number + 1) / replay.micro_batches
            rates.append(_optimizer_step(state, setting, done))
    mean_ce, mean_kl = torch.stack(ce).mean(dim=0).cpu(), torch.stack(kl).mean(dim=0).cpu()
    own = state.peer_weights.float() if setting.defects.peer_weighted_ce else torch.ones_like(mean_ce)
    ratio = mean_kl.sum() / (own * mean_ce).sum()  # of the two terms of L1, before alpha
    return {"lr": rates, "ce": mean_ce.tolist(), "kl": mean_kl.tolist(), "kl_to_ce": float(ratio)}


def _optimizer_step(state: State, setting: Setting, epoch: float) -> float:
    replay, clip = setting.config.replay, setting.config.train.grad_clip
    lr = epoch_learning_rate(epoch, replay.lr, replay.min_lr, replay.warmup_epochs, replay.decay_epochs)
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


def outer_parts(
    state: State, batch: Batch, held_out: Batch, setting: Setting, inner_lr: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(explicit term of dL2/dw, correction, CE on the outer text), each (P,), for one micro-batch of both texts.

    Explicit plus correction is `bilevel.hypergradient` with an SGD step. The explicit term is taken after that step,
    and where the gradient is cut before it, as in the released code, which has no step there.
    """
    objective = "weighted_ce" if setting.defects.weighted_ce else "logit_ensemble"
    parameters = [{k: v.detach() for k, v in parameters_of(peer).items()} for peer in state.peers]
    weights = state.peer_weights.to(held_out.input_ids.device, torch.float32)
    outer = outer_batch(state.peers, held_out)
    with torch.no_grad():
        logits = [forward(peer) for forward, peer in zip(outer.forward, parameters, strict=True)]
        ce = losses.cross_entropies(logits, outer.targets)
    if setting.defects.cut_gradient:
        explicit, _, _ = bilevel.outer_gradients(parameters, weights, outer, objective, respond=False)
        return explicit.cpu(), torch.zeros_like(explicit).cpu(), ce.cpu()
    inner = inner_batch(state.peers, batch, setting.positions)
    gradients = bilevel.inner_gradients(parameters, weights, inner, setting.options)
    stepped = [sgd_update(peer, inner_lr)(own) for peer, own in zip(parameters, gradients, strict=True)]
    explicit, slopes, _ = bilevel.outer_gradients(stepped, weights, outer, objective, respond=True)
    directions = [{name: -inner_lr * value for name, value in slope.items()} for slope in slopes]
    correction = bilevel.directional_weight_losses(parameters, directions, inner, setting.options)
    return explicit.cpu(), correction.to(explicit.dtype).cpu(), ce.cpu()


def outer_problem(state: State, setting: Setting, epoch: int, inner_lr: float) -> dict[str, Any]:
    """Mirror descent on the weights over the micro-batches of the outer text."""
    replay, config, defects = setting.config.replay, setting.config, setting.defects
    eta = outer_step_size(epoch, replay.step_size, replay.min_step_size, replay.warmup_epochs, replay.decay_epochs)
    device, count = setting.device.device, replay.micro_batches
    total, ratios, gradient = torch.zeros(len(state.peers)), [], torch.zeros(len(state.peers))
    ce = torch.zeros(len(state.peers))
    for number in range(count):
        step = epoch // replay.weight_update_every * count + number
        batch = setting.train(epoch * count + number, config.train.mask_ratio).to(device)
        held_out = setting.outer(step, config.train.mask_ratio).to(device)
        explicit, correction, ce = outer_parts(state, batch, held_out, setting, inner_lr)
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
        "ce": ce.tolist(),  # of the last micro-batch, as the gradient where there is a step for each
        "gradient": gradient.tolist(),
        "correction": sum(ratios) / len(ratios),
    }


def _mirror(state: State, gradient: Tensor, eta: float, setting: Setting) -> None:
    if setting.defects.clamped:
        gradient = clamped(gradient, setting.config.train.grad_clip)
    state.peer_weights = bilevel.mirror_step(state.peer_weights, gradient, eta)


def replay_folder(config: Config, out: Path, name: str, defects: Defects, seed: int, prepared: Prepared) -> Path:
    """Folder of one replay; its name ends in a hash over all that shapes the result."""
    resolved = replay_config(config, defects, seed).resolved()
    resolved["data"] = {k: v for k, v in resolved["data"].items() if k not in ("corpus", "legality")}
    resolved["replay"] = {k: v for k, v in resolved["replay"].items() if k not in ("seeds", "workers")}
    del resolved["study"]
    identity = digest({"config": resolved, "defects": asdict(defects), "data": prepared.hash})
    return paths.replay(out, config.preset, f"{name}-s{seed}-{identity[:8]}")


def run(
    config: Config,
    out: Path,
    name: str,
    defects: Defects,
    seed: int = 0,
    prepared: Prepared | None = None,
) -> dict[str, Any]:
    """Replay once, or read what is there: ``done.json`` of ``OUT/<preset>/replay/<name>-s<seed>-<hash8>/``.

    prepared: the corpus of `replay_config(config, defects, seed)` where it is at hand.
    """
    used = replay_config(config, defects, seed)
    prepared = prepared or prepare(used.data, out)
    folder = replay_folder(config, out, name, defects, seed, prepared)
    if (folder / "done.json").is_file():
        return dict(paths.read_json(folder / "done.json"))
    began = time.perf_counter()
    device = setup(used.train.precision, used.train.threads)
    tokenizer = load_tokenizer(prepared.folder / "tokenizer", needs_mask=used.model.objective == "mlm")
    setting, ids, wide = _open_setting(used, defects, device, prepared, tokenizer)
    students = find_students(used, len(wide))
    state = build_state(used, students, wide, device)
    paths.remove(folder)
    paths.write_json(
        folder / "config.json",
        {
            "config": used.resolved(),
            "defects": asdict(defects),
            "data": {"folder": prepared.folder.name, "hash": prepared.hash, "name": prepared.name},
            "students": [found.document() for found in students],
        },
    )
    paths.write_json(folder / "environment.json", environment.document(device))
    untrained, _ = measure(state, setting.dev, used, device)
    rows = list(_epochs(state, setting))
    paths.write_text(folder / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    dev_ce, ensemble_ce = measure(state, setting.dev, used, device)
    rates = [rate for row in rows for rate in row["lr"]]
    outer = [row["outer"] for row in rows if row["outer"]]
    done = {
        "case": name,
        "seed": seed,
        "defects": [key for key, value in asdict(defects).items() if value],
        "distinct_ids": len(np.unique(ids)),
        "lowest_id": int(ids.min()),
        "highest_id": int(ids.max()),
        "updates": len(rates),
        "updates_with_lr": sum(rate > 0 for rate in rates),
        "train_ce": rows[-1]["ce"],
        "untrained_ce": untrained,
        "dev_ce": dev_ce,
        "dev_ce_ensemble": ensemble_ce,
        "kl_to_ce": float(np.mean([row["kl_to_ce"] for row in rows])),
        "correction": float(np.mean([row["correction"] for row in outer])),
        "peer_weights": state.peer_weights.tolist(),
        "accuracy": _accuracies(state, used, out, without_capitals(tokenizer) if defects.lost_case else tokenizer),
        "seconds": time.perf_counter() - began,
    }
    paths.write_json(folder / "done.json", done)
    return done


def _epochs(state: State, setting: Setting) -> Iterator[dict[str, Any]]:
    """One row of metrics an epoch."""
    replay = setting.config.replay
    for epoch in range(replay.num_epochs):
        row = train_epoch(state, setting, epoch)
        outer = None
        if epoch % replay.weight_update_every == 0:
            outer = outer_problem(state, setting, epoch, row["lr"][-1])
        yield {"epoch": epoch, **row, "peer_weights": state.peer_weights.tolist(), "outer": outer}


def _accuracies(state: State, config: Config, out: Path, tokenizer: PreTrainedTokenizerFast) -> list[float]:
    """Accuracy of each peer on a sample of minimal pairs, percent, macro over paradigms."""
    suite = config.evaluate.suites[0]
    document, _ = evaluate_pairs(
        state.models,
        tokenizer,
        pairs_folder(config, suite, out),
        suite=suite,
        protocol=config.evaluate.protocol,
        ties=config.evaluate.ties,
        per_paradigm=config.replay.per_paradigm,
        token_budget=config.evaluate.token_budget,
    )
    scores = {member["member"]: float(member["score"]) for member in document["members"]}
    return [scores[f"peer_{i + 1}"] for i in range(len(state.peers))]


def run_all(
    config: Config, out: Path, names: Sequence[str] = (), progress: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
    """Every case of T9 (or those in `names`) with every seed of ``replay.seeds``; finished ones are read.

    ``replay.workers`` processes side by side. Raises UserError for a name that is no case.
    """
    unknown = [name for name in names if name not in cases()]
    if unknown:
        raise UserError(f"there is no case {unknown[0]!r}; expected some of {', '.join(cases())}")
    prepared: dict[DataConfig, Prepared] = {}  # before any process starts: they would all prepare the same
    jobs = []
    for name, defects in cases().items():
        if names and name not in names:
            continue
        data = replay_config(config, defects, 0).data
        if data not in prepared:
            prepared[data] = prepare(data, out)
        jobs += [(config, out, name, defects, seed, prepared[data]) for seed in config.replay.seeds]
    pairs_folder(config, config.evaluate.suites[0], out)
    waiting = [job for job in jobs if not (replay_folder(*job) / "done.json").is_file()]
    workers = min(config.replay.workers, len(waiting))
    if workers <= 1:
        return [_reported(run(*job), progress) for job in jobs]
    # spawn: a forked child would share this process's threads, and CUDA refuses it
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, *job) for job in jobs]
        return [_reported(future.result(), progress) for future in futures]


def _reported(done: dict[str, Any], progress: Callable[[str], None] | None) -> dict[str, Any]:
    if progress:
        dev_ce = float(np.mean(done["dev_ce"]))
        progress(f"{done['case']} seed {done['seed']}: dev CE {dev_ce:.3f} after {done['updates']} updates")
    return done


def replay_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """T9: one row a case, means over peers and seeds; `peer_weights` and `values` (dev CE of each seed) are texts.

    updates_with_lr: optimizer steps with a learning rate above 0. kl_to_ce: the KL terms of L1 over its CE terms.
    correction: |correction| / |explicit term| of the hypergradient. weight_ratio: largest over smallest weight.
    dev_ce: nats per scored token of true dev text; untrained_ce the same before training; train_ce of what was read.
    """
    table = pd.DataFrame(records)
    for name in ("train_ce", "untrained_ce", "dev_ce", "accuracy"):
        table[name] = [float(np.mean(values)) for values in table[name]]
    table["weight_ratio"] = [max(weights) / min(weights) for weights in table["peer_weights"]]
    rows = []
    for case, own in table.groupby("case", sort=False):
        row = {"case": case, "finding": FINDINGS.get(str(case), ""), "n_seeds": len(own)}
        for name in ("distinct_ids", "lowest_id", "highest_id", "updates", "updates_with_lr"):
            row[name] = int(own[name].iloc[0])
        for name in ("train_ce", "untrained_ce", "dev_ce", "kl_to_ce", "correction", "weight_ratio", "accuracy"):
            row[name] = float(own[name].mean())
        row["peer_weights"] = " ".join(f"{value:.4f}" for value in np.mean(own["peer_weights"].tolist(), axis=0))
        row["values"] = ", ".join(f"{value:.3f}" for value in own["dev_ce"])
        rows.append(row)
    return pd.DataFrame(rows)
