"""What a run is: a hash over all that shapes its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from .config import Config
from .settings import OuterConfig

SHAPING = ("data", "model", "search", "mutual", "outer", "train")  # sections of what a run learns from, and how
# Where a run's text lies and what is said of it for people: no part of what a run is, the text's content is
PLACES = ("data.corpus", "data.tokenizer", "data.legality")
FILES = ("search.saved", "mutual.teacher")  # their content counts: without it they are compared by their names
OF_EACH_RUN = ("mutual.arm", "mutual.num_peers", "train.seed")  # what the runs of one study differ in
# Settings that came later. With these values a run is what it was without them, and keeps its name
LATER: dict[str, dict[str, Any]] = {
    "mutual": {"frozen_teacher": False, "teacher_size": "base", "teacher_steps": None, "peer_weights": None},
    "outer": {"min_lr_ratio": None},
    "train": {"skip_not_finite": 0, "ema_decay": 0.0, "mask_span": 1, "mntp_share": 0.0},
}
OF_OUTER = tuple(f"outer.{key}" for key in OuterConfig.model_fields)
# of peers that learn from one another
OF_PEERS = tuple(f"mutual.{key}" for key in ("kl_weight", "ce_weight", "detach_targets", "peer_weights"))
OF_KL = tuple(f"mutual.{key}" for key in ("alpha", "temperature", "kl_positions", "kl_reduction", "kl_warmup_steps"))
OF_MASKS = ("mask_ratio", "mask_ratio_end", "mask_random", "mask_keep", "mask_span")


def digest(document: Any) -> str:
    """SHA-256 of a JSON document in canonical form, as hexadecimal digits."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """``{"train.lr": ..., ...}``: what of a configuration shapes runs."""
    return {f"{section}.{name}": value for section in SHAPING for name, value in config[section].items()}


def by_name(place: str | None) -> str | None:
    """The last part of a path or of a hub's id: the same file may lie elsewhere."""
    return place and PurePath(place).name


def idle_keys(config: Mapping[str, Any]) -> list[str]:
    """``["mutual.teacher", ...]``: settings that say nothing about a run of `config` (JSON types, perhaps older than
    some settings), those of a teacher or of an outer problem that its arm does not have, of a term of the loss without
    which it trains, and of masks that a causal run does not draw."""
    arm, masks = config["mutual"]["arm"], config["model"]["objective"] == "mlm" or config["train"].get("mntp_share", 0)
    idle = [] if masks else [f"train.{key}" for key in OF_MASKS]
    idle += [] if arm == "wml" else OF_OUTER
    idle += [] if arm in ("dml", "wml") else OF_PEERS
    idle += OF_KL if arm in ("independent", "teacher") else []
    return idle + [f"mutual.{key}" for key in _idle_teacher_keys(config["mutual"])]


def _idle_teacher_keys(mutual: Mapping[str, Any]) -> list[str]:
    can_have = mutual["arm"] in ("dml", "wml")
    has = mutual["arm"] == "distill" or (can_have and mutual.get("frozen_teacher", False))
    idle = [] if can_have else ["frozen_teacher"]
    if not has:
        idle += ["teacher", "teacher_within_budget"]
    trained = mutual["arm"] == "teacher" or (has and mutual["teacher"] is None)
    return idle if trained else [*idle, "teacher_size", "teacher_steps"]


def run_hash(config: Config, data_hash: str, teacher_hash: str = "", students_hash: str = "") -> str:
    """Identity of a run: the settings that shape its result and the content hashes of its data, of a given teacher and
    of a saved search."""
    return digest({"config": shaping(config, teacher_hash, students_hash), "data": data_hash})


def shaping(config: Config, teacher_hash: str = "", students_hash: str = "") -> dict[str, Any]:
    """The settings that shape what a run learns, as JSON types.

    Evaluation and study settings are left out (they choose what is done with runs, not what a run is), and so is
    where the corpus, the teacher and a saved search lie: their content counts.
    """
    document = {section: values for section, values in config.resolved().items() if section in SHAPING}
    for key in (*PLACES, *idle_keys(document)):
        section, name = key.split(".")
        del document[section][name]
    for section, values in LATER.items():
        document[section] = {k: v for k, v in document[section].items() if k not in values or v != values[k]}
    if document["mutual"].get("teacher") is not None:
        document["mutual"]["teacher"] = teacher_hash
    if document["search"]["saved"] is not None:
        document["search"] = {"saved": students_hash}
    return document
