"""What two runs are compared by: their logged rows without clocks, and the bytes of their peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wmlkit import train
from wmlkit.config import Config

WALL_CLOCK = ("seconds", "tokens_per_second", "peak_memory")  # all that differs between equal runs


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, clocks and memory left out."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in WALL_CLOCK} for line in lines]


def weights(folder: Path) -> dict[str, bytes]:
    """The exported peers' weights by name."""
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("peers/*/model.safetensors"))}


def interrupted(settings: Config, out: Path, step: int) -> None:
    """Train a run from its start, and stop it by an error at logged step `step`, before the checkpoint of that step."""

    def stop(row: dict) -> None:
        if row["step"] == step:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train.run(settings, out, force=True, progress=stop)
