"""What changes while a run trains: the peers, their optimizers, their weights, and how far it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import averaging, bilevel
from .config import Config
from .device import Device
from .forward import AtPositions
from .models import build_model
from .optim import build_optimizers
from .shapes import Student


@dataclass
class State:
    """What changes while a run trains, and the teacher, which does not.

    `record` is what a checkpoint must remember besides tensors.
    """

    peers: list[AtPositions]
    optimizers: list[list[Optimizer]]
    log_weights: Tensor  # (P,) float64, on the CPU; (P + 1,) where the teacher is a frozen peer, the last one
    teacher: AtPositions | None = None
    averages: list[AtPositions] = field(default_factory=list)  # of the peers' weights, with `train.ema_decay`
    step: int = 0
    tokens: int = 0
    words: int = 0
    outer_tokens: float = 0.0  # what outer steps cost so far, see `steps.outer_tokens`
    hypergradient: list[float] | None = None
    seconds: float = 0.0
    parts: int = 1  # in which a process takes its rows; grows where memory runs out
    skipped: int = 0  # steps without an update, because a number was not finite
    clipped: Tensor | None = None  # (P,): updates with a clipped gradient; None: not counted from the start on
    faults: Tensor | None = None  # of `faults.note`; not remembered, as a run with one stops or has skipped the step

    @property
    def models(self) -> list[PreTrainedModel]:
        return [peer.model for peer in self.peers]

    @property
    def average_models(self) -> list[PreTrainedModel]:
        return [average.model for average in self.averages]

    @property
    def reported(self) -> list[AtPositions]:
        """What is measured, scored and exported: the averages where they are kept, else the peers."""
        return self.averages or self.peers

    @property
    def reported_models(self) -> list[PreTrainedModel]:
        return [peer.model for peer in self.reported]

    @property
    def peer_weights(self) -> Tensor:
        """(P,) or, with a frozen teacher, (P + 1,): on the simplex."""
        return bilevel.on_simplex(self.log_weights)

    @property
    def clipped_shares(self) -> dict[str, list[float]]:
        """`clipped`, of each peer the share of its updates whose gradient was; nothing where that is not known."""
        updates = self.step - self.skipped
        if self.clipped is None or not updates:
            return {}
        return {"clipped": (self.clipped.cpu().double() / updates).tolist()}

    @property
    def ensemble_weights(self) -> Tensor:
        """(P,): the peers' weights without the frozen teacher's, on the simplex."""
        return bilevel.on_simplex(self.log_weights[: len(self.peers)])

    def record(self, metrics_bytes: int) -> dict[str, Any]:
        return {
            "log_weights": self.log_weights.tolist(),
            "hypergradient": self.hypergradient,
            "tokens": self.tokens,
            "words": self.words,
            "outer_tokens": self.outer_tokens,
            "seconds": self.seconds,
            "parts": self.parts,
            "skipped": self.skipped,
            "clipped": None if self.clipped is None else self.clipped.tolist(),
            "metrics_bytes": metrics_bytes,
        }

    def recall(self, record: Mapping[str, Any]) -> None:
        """Take over what `record` gave."""
        self.log_weights = torch.tensor(record["log_weights"], dtype=torch.float64)
        self.hypergradient = record["hypergradient"]
        self.tokens, self.words, self.outer_tokens = record["tokens"], record["words"], record["outer_tokens"]
        self.seconds, self.parts, self.skipped = record["seconds"], record["parts"], record["skipped"]
        self.clipped = None if record["clipped"] is None else torch.tensor(record["clipped"])


def build_state(
    config: Config,
    students: Sequence[Student],
    tokenizer: PreTrainedTokenizerBase,
    device: Device,
    teacher: AtPositions | None = None,
) -> State:
    """Freshly initialised peers: peer i's weights depend on (seed, i) alone, so all arms start alike."""
    # a teacher that has a student's shape must not start as that student
    first = 999 if config.mutual.arm == "teacher" else 0
    peers, optimizers = [], []
    for i, student in enumerate(students, first):
        seed = 1000 * config.train.seed + i
        model = build_model(student, config.model, tokenizer, config.data.longest_block, seed)
        model.to(device.device)  # type: ignore[arg-type]  # transformers wraps `to` in a type that loses its arguments
        peers.append(AtPositions(model, config.train.compile))
        optimizers.append(build_optimizers(model, config.train, device.device))
    count = len(peers) + (teacher is not None and config.mutual.arm != "distill")
    given = config.mutual.peer_weights if config.mutual.arm in ("dml", "wml") else None
    log_weights = [math.log(weight) for weight in given] if given else [-math.log(count)] * count
    averages = [averaging.average_of(peer) for peer in peers] if config.train.ema_decay else []
    clipped = torch.zeros(len(peers), dtype=torch.int64) if config.train.grad_clip else None
    weights = torch.tensor(log_weights, dtype=torch.float64)
    return State(peers, optimizers, weights, teacher, averages, parts=config.train.accumulate, clipped=clipped)
