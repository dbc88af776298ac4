"""What a run tells of itself while it trains: a line of text for a row of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .config import Config


def run_name(config: Config) -> str:
    """Arm, peers and seed of a run, for people."""
    return f"{config.mutual.arm} P={config.mutual.num_peers} seed {config.train.seed}"


def steps_of(config: Config, row: Mapping[str, Any]) -> int:
    """Steps of the run that a row of metrics.jsonl is of: that of `config`, or of its teacher."""
    of_teacher = row.get("teacher") or config.mutual.arm == "teacher"
    return (config.mutual.teacher_steps if of_teacher else None) or config.train.steps


def progress_line(config: Config, row: dict[str, Any], name: str = "") -> str:
    """One line of text for a row of metrics.jsonl; name: of the run, `run_name` unless given."""
    values = row.get("dev_ce", row["ce"])
    ce = " ".join("none" if value is None else f"{value:.3f}" for value in values)
    weights = " ".join(f"{value:.3f}" for value in row["peer_weights"])
    kind = "dev" if "dev_ce" in row else "train"
    name, steps = name or run_name(config), steps_of(config, row)
    if row.get("teacher"):
        name = f"teacher of {name}"
    parts = f", memory ran out: batches in {row['parts']} parts" if "parts" in row else ""
    skipped = f", {row['skipped']} steps skipped, not finite" if "skipped" in row else ""
    return f"{name}: step {row['step']}/{steps} {kind} CE {ce} weights {weights}{parts}{skipped}"


def dev_lines(show: Callable[[str], None]) -> Callable[[str], None]:
    """A filter for notebooks: of a study's progress only the losses on dev text and what is finished."""

    def progress(text: str) -> None:
        if " train CE " not in text:
            show(text)

    return progress
