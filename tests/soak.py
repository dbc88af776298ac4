"""Train long at the size of the preset `smoke`, and watch memory and open files.

    python -m tests.soak 2000

A run of `steps` steps with dev losses, checkpoints and a logged row every ten steps, in this process. Prints resident
memory (MiB) and open files by tenths of the run, and exits with 1 where one of them grows by 2 % or more from the
second tenth to the last.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

from wmlkit import train
from wmlkit.config import load_preset

EVERY = 10  # steps between two looks
LIMIT = 0.02  # of growth


def soak(steps: int, out: Path) -> list[tuple[float, float]]:
    """(mean resident memory in MiB, mean number of open files) of each tenth of a run of `steps` steps."""
    every = {f"train.{name}_every": EVERY for name in ("log", "eval", "checkpoint")}
    config = load_preset("smoke", {"train.steps": steps, "evaluate.curve": [], **every})
    process, seen = psutil.Process(), []

    def look(row: dict[str, Any]) -> None:
        seen.append((process.memory_info().rss / 2**20, process.num_fds()))

    train.run(config, out, progress=look)
    tenth = len(seen) // 10
    parts = [seen[i * tenth : (i + 1) * tenth] for i in range(10)]
    return [(mean(memory for memory, _ in part), mean(files for _, files in part)) for part in parts]


def growth(tenths: list[tuple[float, float]]) -> tuple[float, float]:
    """Growth of memory and of open files after the first tenth, as shares: the last tenth against the second."""
    (memory, files), (last_memory, last_files) = tenths[1], tenths[-1]
    return last_memory / memory - 1, last_files / files - 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("steps", type=int, nargs="?", default=2000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tenths = soak(given.steps, Path(name))
    print("tenth  memory (MiB)  open files")
    for number, (memory, files) in enumerate(tenths, 1):
        print(f"{number:5}  {memory:12.1f}  {files:10.1f}")
    memory, files = growth(tenths)
    print(f"{given.steps} steps, after the first tenth: memory {100 * memory:+.2f} %, open files {100 * files:+.2f} %")
    sys.exit(max(memory, files) >= LIMIT)


if __name__ == "__main__":
    main()
