"""What to ask of a machine with a card before anything is trained on it: one command that ends in time.

    python -m tests.card OUT [--minutes 9] [--preset modern-10m] [--set KEY=VALUE]...

Parts in this order: what `wmlkit doctor` finds; the tests of the training loop; the parts of a step in the preset's
sizes with their utilisation; tokens a second of one run, of two and three side by side, and of one with train.compile;
the benchmarks of step and loss. Each part is a process of its own; one that does not fit into the time that is left is
not begun, one that outlasts it or its own limit is stopped. OUT/card.json has what is known as soon as a part ends.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wmlkit import paths

TESTS = "wait_for_the_card or equals or dropout or bf16"  # those that say something new on a card
STOPPING = 20.0  # seconds that a part which is asked to stop has for its checkpoint
STEPS = 200  # of a run whose speed is measured; the first ten do not count


@dataclass(frozen=True)
class Part:
    """Commands that run side by side, the fewest seconds with which it makes sense to begin them, and the most."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    seconds: float = 20.0
    most: float = math.inf


def parts(out: Path, preset: str, settings: Sequence[str]) -> list[Part]:
    """All parts in their order."""

    def wmlkit(*words: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "wmlkit", *words)

    def training(name: str, seeds: Sequence[int], *more: str) -> Part:
        changes = (
            "data.corpus=nursery", "data.words=300000", "data.max_passes=none", f"train.steps={STEPS}",
            "train.log_every=10", f"train.eval_every={STEPS}", f"train.checkpoint_every={STEPS}", "evaluate.curve=[]",
            "data.block_schedule=[]",  # rows of one length: another may be planned anew, within what is timed
            *settings, *more,
        )  # fmt: skip
        given = [word for change in changes for word in ("--set", change)]
        run = ("train", "--preset", preset, "--arm", "wml", "--out", str(out / "runs"))
        return Part(name, tuple(wmlkit(*run, "--seed", str(seed), *given) for seed in seeds), 60.0)

    changed = [word for change in settings for word in ("--set", change)]
    return [
        Part("doctor", (wmlkit("doctor", "--json"),), most=60.0),
        Part("tests", ((sys.executable, "-m", "pytest", "-q", "tests/test_train.py", "-k", TESTS),), most=120.0),
        Part(
            "bench train",
            (wmlkit("bench", "train", "--preset", preset, "--repeats", "5", "--json", *changed),),
            most=120.0,
        ),
        # one folder for all, so that the text is prepared once: no seed may come twice
        training("runs 1", [0]),
        training("runs 2", [1, 2]),
        training("runs 3", [3, 4, 5]),
        training("compiled", [0], "train.compile=true"),  # after what plans a study: compiling may take minutes
        *(
            Part(f"bench {name} {size}", (wmlkit("bench", name, "--setting", size, "--json"),))
            for name, size in (("step", "small"), ("step", "paper"), ("loss", "small"))
        ),
    ]


def ask(every: Sequence[Part], out: Path, minutes: float) -> dict[str, Any]:
    """Run the parts one after the other; returns what is also in ``OUT/card.json``."""
    end = time.monotonic() + 60 * minutes
    found: dict[str, Any] = {"minutes": minutes, "parts": []}
    for part in every:
        left = end - time.monotonic()
        begun = {"name": part.name, "commands": [" ".join(words[1:]) for words in part.commands]}
        result = _run(part, min(left, part.most)) if left >= part.seconds else {"status": "no time left"}
        found["parts"].append(begun | result)
        paths.write_json(out / "card.json", found)
        print(f"{part.name}: {result['status']}{_told(result)}", flush=True)
    return found


def _run(part: Part, seconds: float) -> dict[str, Any]:
    """One part, stopped after so many seconds. What a command prints is kept as JSON where it is, else its end."""
    start = time.monotonic()
    running = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        for words in part.commands
    ]
    printed, codes = [], []
    try:
        for process in running:
            try:
                text, errors = process.communicate(timeout=max(0.0, start + seconds - time.monotonic()))
            except subprocess.TimeoutExpired:
                text, errors = _stopped(process)
            codes.append(process.returncode)
            printed.append(_printed(text, errors, process.returncode))
    finally:  # after Ctrl-C, which does not reach them
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    late = time.monotonic() - start > seconds
    status = "stopped" if late else "done" if not any(codes) else f"failed with {max(codes, key=abs)}"
    return {"status": status, "seconds": time.monotonic() - start, "printed": printed, **_speed(printed)}


def _told(result: dict[str, Any]) -> str:
    """The speed of runs, for whoever has to decide from it how many to put side by side."""
    if "tokens_per_second" not in result:
        return ""
    speed, flop = result["tokens_per_second"], result["flop_per_second"]
    return f", {speed:,.0f} tokens/s, {flop / 1e12:.3g} TFLOP/s, {result['peak_memory']:,.0f} MiB a run"


def _stopped(process: subprocess.Popen[str]) -> tuple[str, str]:
    """End a process and all that it started, which may hold its output open: first asked, so that a run leaves a
    checkpoint, then not. Returns what it printed."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        return process.communicate(timeout=STOPPING)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()


def _printed(text: str, errors: str, code: int) -> Any:
    try:
        document = json.loads(text)  # the doctor's findings end with 2 where one is broken
    except ValueError:
        return (text if code == 0 else text + errors)[-2000:]
    return document if code == 0 else {"document": document, "errors": errors[-2000:]}


def _speed(printed: Sequence[Any]) -> dict[str, Any]:
    """Tokens a second of all runs that a part trained together, while all of them did: begun a second apart, three runs
    that share a card would else seem faster than one. From their rows after the first ten steps."""
    folders = [Path(text.strip().splitlines()[-1]) for text in printed if isinstance(text, str) and text.strip()]
    folders = [folder for folder in folders if (folder / "done.json").is_file()]
    if not folders:
        return {}
    runs = [_rows(folder / "metrics.jsonl") for folder in folders]
    first, last = max(times[0] for times, _ in runs), min(times[-1] for times, _ in runs)
    if last <= first:
        return {"speed": "none: the runs did not train at the same time"}
    tokens = sum(float(np.diff(np.interp([first, last], times, tokens))[0]) for times, tokens in runs)
    done = paths.read_json(folders[0] / "done.json")
    return {
        "seconds_together": last - first,
        "tokens_per_second": tokens / (last - first),
        "flop_per_second": tokens / (last - first) * done["flops"] / done["tokens"],
        "peak_memory": done["peak_memory"],
    }


def _rows(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """(time of the clock, tokens read so far) of each row of a metrics.jsonl whose last row has just been written."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    seconds = np.array([row["seconds"] for row in rows])
    return file.stat().st_mtime + seconds - seconds[-1], np.array([row["tokens"] for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.card", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--preset", default="modern-10m")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    given = parser.parse_args()
    found = ask(parts(given.out, given.preset, given.settings), given.out, given.minutes)
    sys.exit(any(part["status"].startswith("failed") for part in found["parts"]))


if __name__ == "__main__":
    main()
