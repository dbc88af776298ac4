"""What a run is: a hash over all that shapes its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from .config import Config

SHAPING = ("data", "model", "search", "mutual", "outer", "train")  # sections of what a run learns from, and how
# Where a run's text lies and what is said of it for people: no part of what a run is, the text's content is
PLACES = ("data.corpus", "data.tokenizer", "data.legality")
OF_EACH_RUN = ("mutual.arm", "mutual.num_peers", "train.seed")  # what the runs of one study differ in


def digest(document: Any) -> str:
    """SHA-256 of a JSON document in canonical form, as hexadecimal digits."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def idle_teacher_keys(mutual: Mapping[str, Any]) -> list[str]:
    """Settings of the teacher that say nothing about a run, because its arm has none. `mutual` as JSON types."""
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
    document["data"] = {k: v for k, v in document["data"].items() if f"data.{k}" not in PLACES}
    if document["search"]["saved"] is not None:
        document["search"] = {"saved": students_hash}
    # a run that skips and averages nothing, masks single tokens and has rows of one kind is what it was before there
    # was a choice
    usual = {"skip_not_finite": 0, "ema_decay": 0.0, "mask_span": 1, "mntp_share": 0.0}
    unused = [key for key, value in usual.items() if document["train"][key] == value]
    document["train"] = {k: v for k, v in document["train"].items() if k not in unused}
    if document["outer"]["min_lr_ratio"] is None:  # so it was before there was a choice
        del document["outer"]["min_lr_ratio"]
    if document["model"]["dropout"]:  # before, peers drew from one stream
        document["model"] = document["model"] | {"dropout_by": "seed, step, peer, part"}
    mutual = document["mutual"]
    if mutual["arm"] == "independent":  # it has no peers' weights; before, "peer" made its loss 1 / P
        mutual = document["mutual"] = mutual | {"ce_weight": "one"}
    # so they were before there was a choice
    off = {"frozen_teacher": False, "teacher_size": "base", "teacher_steps": None}
    dropped = idle_teacher_keys(mutual) + [key for key, value in off.items() if mutual[key] == value]
    document["mutual"] = {k: v for k, v in mutual.items() if k not in dropped}
    if document["mutual"].get("teacher") is not None:
        document["mutual"]["teacher"] = teacher_hash
    return document
