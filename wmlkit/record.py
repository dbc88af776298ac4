"""What a run tells of its course and end, as documents: rows of metrics.jsonl, done.json, model cards of its peers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import bilevel, losses
from .config import Config
from .device import Device, peak_memory
from .environment import own_version
from .models import body_parameters
from .search import Found
from .state import State
from .steps import mutual_options, outer_lr, read_by_teacher
from .teacher import Teacher


def metrics_row(
    state: State, loss: losses.MutualLoss, weights: Tensor, lr: float, config: Config, device: Device
) -> dict[str, Any]:
    """One line of metrics.jsonl. A loss that is not finite, of a step that was skipped, is null.

    weights: those of `loss`, a frozen teacher's too; an outer step of the same step has changed the state's.
    """
    options = mutual_options(config, state.step - 1)
    weights = weights[: len(state.peers)] if options.ce_weight == "peer" else torch.ones(len(state.peers))
    ce, kl = loss.ce.cpu().double(), loss.kl.cpu().double()  # on the CPU: MPS has no float64
    rates = {}
    if config.train.optimizer == "muon":
        rates["muon_lr"] = config.train.muon_lr * lr / config.train.lr  # one schedule for both
    if config.mutual.arm == "wml":
        rates["outer_lr"] = outer_lr(config, state.step - 1)
    rare: dict[str, Any] = {"parts": state.parts} if state.parts > config.train.accumulate else {}
    rare |= {"skipped": state.skipped} if state.skipped else {}
    return {
        "step": state.step,
        "tokens": state.tokens,
        "words": state.words,
        "lr": lr,
        **rates,
        "alpha": options.alpha,
        "ce": _or_null(ce),
        "kl": _or_null(kl),
        "total": _or_null((1 - options.alpha) * weights * ce + options.alpha * kl),
        "peer_weights": state.peer_weights.tolist(),
        "peer_weights_entropy": bilevel.entropy(state.peer_weights),
        "hypergradient": state.hypergradient,
        "seconds": state.seconds,
        "peak_memory": peak_memory(device.device),
        **state.clipped_shares,
        **rare,
    }


def _or_null(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def done_document(
    state: State, final: dict[str, Any], config: Config, passes: float, device: Device, teacher: Teacher | None
) -> dict[str, Any]:
    """done.json of a run. final: losses on dev and held-out text (`evaluation_row`); passes: over the training text."""
    best = min(range(len(state.peers)), key=lambda i: final["held_out_ce"][i])
    flops = sum(6.0 * body_parameters(model) * (state.tokens + state.outer_tokens) for model in state.models)
    of_teacher: dict[str, Any] = {}
    if teacher is not None:
        flops += teacher.flop_per_token * read_by_teacher(state, config.outer.hypergradient)
        outside = config.mutual.teacher is not None and not config.mutual.teacher_within_budget
        of_teacher = {"teacher": teacher.record, "teacher_outside_budget": outside}
        if len(state.peer_weights) > len(state.peers):
            of_teacher["teacher_weight"] = float(state.peer_weights[-1])
    return {
        "steps": state.step,
        "tokens": state.tokens,
        "words": state.words,
        "outer_tokens": state.outer_tokens,
        "passes": passes,
        "seconds": state.seconds,
        "peer_weights": state.ensemble_weights.tolist(),
        "best_peer": best + 1,
        "parameters": [model.num_parameters() for model in state.models],
        "flops": flops,
        "peak_memory": peak_memory(device.device),
        **state.clipped_shares,
        **final,
        **of_teacher,
    }


def model_card(config: Config, student: Found, peer: int, dev_ce: float, words: int) -> str:
    """README.md of an exported peer. A licence is named where all of the text is wmlkit's own."""
    mutual, model = config.mutual, config.model
    own_text = config.data.corpus == "nursery" and not mutual.teacher
    licence = "license: mit\n" if own_text else ""
    remark = (
        "The nursery's text is written by a grammar: a model trained on it knows nothing of English."
        if own_text
        else "No licence is named here: it follows from that of the text. Name it before the model is published."
    )
    shape = f"{student.num_layers}, {student.num_heads}, {student.hidden_size}, {student.intermediate_size}"
    return f"""---
{licence}library_name: transformers
pipeline_tag: {"fill-mask" if model.masked else "text-generation"}
tags: [babylm, wmlkit]
---
# Peer {peer} of {mutual.num_peers}, arm `{mutual.arm}`, preset `{config.preset}`, seed {config.train.seed}

Trained by wmlkit {own_version()}, a reproduction of "When Babies Teach Babies" (arXiv 2411.16487).

| | |
|---|---|
| family | {model.family} ({model.objective}) |
| layers, heads, width, FFN | {shape} |
| parameters | {student.parameters:,} |
| corpus | {Path(config.data.corpus).name} |
| words seen, repetitions counted | {words:,} |
| dev loss | {dev_ce:.4f} nats per scored token |

{remark}
"""
