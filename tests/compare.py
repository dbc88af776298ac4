"""What two runs are compared by: their logged rows without clocks, and the bytes of their peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WALL_CLOCK = ("seconds", "tokens_per_second", "peak_memory")  # all that differs between equal runs


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, clocks and memory left out."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in WALL_CLOCK} for line in lines]


def weights(folder: Path) -> dict[str, bytes]:
    """The exported peers' weights by name."""
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("peers/*/model.safetensors"))}
