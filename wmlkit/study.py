"""A study: many runs (arms x peers x seeds) of one preset, in slices that anything can drive.

`plan` is a table; `run_shard` does slice I of N in this process, so a SLURM array, a CI matrix or a shell
loop can drive it; `run` starts one process a slice on this machine. Finished runs are not repeated.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from . import paths
from .config import Config, load_preset
from .data import nursery_pairs
from .data.prepare import prepare
from .data.tokenizer import load_tokenizer
from .errors import UserError
from .evaluate.glue import evaluate_run_glue
from .evaluate.language_modelling import evaluate_run_text
from .evaluate.pairs import evaluate_pairs, evaluate_run
from .models import load_model
from .train import run as train_run
from .train import run_folder


def plan(config: Config) -> list[Config]:
    """One configuration a run, seeds outermost, so that an interrupted study has whole seeds first."""
    return [
        config.updated({"mutual.arm": arm, "mutual.num_peers": peers, "train.seed": seed})
        for seed in config.study.seeds
        for arm, peers in config.study.runs
    ]


def plan_table(config: Config) -> pd.DataFrame:
    """The plan as a table: one row a run."""
    rows = [
        {"arm": run.mutual.arm, "peers": run.mutual.num_peers, "seed": run.train.seed, "steps": run.train.steps}
        for run in plan(config)
    ]
    return pd.DataFrame(rows)


def shard(runs: Sequence[Config], index: int, count: int) -> list[Config]:
    """Slice `index` (1-based) of `count`: each run goes to the slice with the least work so far, dearest first.

    The work of a run is taken as its number of peers, so the slices end at about the same time.
    """
    if not 1 <= index <= count:
        raise UserError(f"shard {index}/{count} does not exist; expected I/N with 1 <= I <= N, for example 1/2")
    load = [0.0] * count
    slices: list[list[int]] = [[] for _ in range(count)]
    for position in sorted(range(len(runs)), key=lambda i: (-runs[i].mutual.num_peers, i)):
        lightest = min(range(count), key=lambda s: load[s])
        slices[lightest].append(position)
        load[lightest] += runs[position].mutual.num_peers
    return [runs[position] for position in sorted(slices[index - 1])]


def dev_lines(show: Callable[[str], None]) -> Callable[[str], None]:
    """A filter for notebooks: of a study's progress only the losses on dev text and what is finished."""

    def progress(text: str) -> None:
        if " train CE " not in text:
            show(text)

    return progress


def parse_shard(text: str) -> tuple[int, int]:
    """A slice of a study, and of how many.

    >>> parse_shard("2/8")
    (2, 8)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise UserError(f"--shard got {text!r}; expected I/N with 1 <= I <= N, for example 1/2")
    return int(match[1]), int(match[2])


def run_shard(
    config: Config,
    out: Path,
    index: int = 1,
    count: int = 1,
    stage: str = "all",
    progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Do one slice of the plan in this process; `stage` is train, evaluate or all. Returns the run folders."""
    say = progress or (lambda text: None)
    folders = []
    for one in shard(plan(config), index, count):
        name = f"{one.mutual.arm} P={one.mutual.num_peers} seed {one.train.seed}"
        if stage in ("train", "all"):
            folder = train_run(one, out, progress=partial(_report, say, one))
            say(f"{name}: trained")
        if stage in ("evaluate", "all"):
            folder = run_folder(one, out)
            evaluate_all(folder, one, out)
            say(f"{name}: evaluated")
        folders.append(folder)
    return folders


def _report(say: Callable[[str], None], config: Config, row: dict[str, Any]) -> None:
    say(progress_line(config, row))


def progress_line(config: Config, row: dict[str, Any]) -> str:
    """One line of text for a row of metrics.jsonl."""
    ce = " ".join(f"{value:.3f}" for value in row.get("dev_ce", row["ce"]))
    weights = " ".join(f"{value:.3f}" for value in row["peer_weights"])
    kind = "dev" if "dev_ce" in row else "train"
    name = f"{config.mutual.arm} P={config.mutual.num_peers} seed {config.train.seed}"
    if row.get("teacher"):
        name = f"teacher of {config.mutual.arm}, seed {config.train.seed}"
    return f"{name}: step {row['step']}/{config.train.steps} {kind} CE {ce} weights {weights}"


def pairs_folder(config: Config, suite: str, out: Path) -> Path:
    """The folder of a suite's pairs; the nursery's are written on first use."""
    if suite == "nursery":
        folder = out / "data" / f"nursery-pairs-s{config.data.seed}-n{config.evaluate.per_paradigm or 200}"
        if not (folder / "done.json").is_file():
            nursery_pairs.write_pairs(folder, config.data.seed, config.evaluate.per_paradigm or 200)
            paths.write_json(folder / "done.json", {"paradigms": len(nursery_pairs.PAIRS)})
        return folder
    if config.evaluate.pairs is None:
        raise UserError(
            f"suite {suite!r} needs its JSONL files, and evaluate.pairs is not set; "
            "give their folder with --set evaluate.pairs=FOLDER"
        )
    base = Path(config.evaluate.pairs)
    return next((base / name for name in (f"{suite}_filtered", suite) if (base / name).is_dir()), base)


def evaluate_all(folder: Path, config: Config, out: Path) -> list[dict[str, Any]]:
    """Every suite of the configuration on one finished run, and on the run of its teacher before; what is there already
    is not scored again. Returns the documents of the run itself."""
    teacher = paths.read_json(folder / "done.json").get("teacher") if (folder / "done.json").is_file() else None
    if teacher and teacher["run"]:
        evaluate_all(folder.parent / teacher["run"], config, out)
    return [
        evaluate_run(folder, suite, pairs_folder(config, suite, out), config.evaluate)
        for suite in config.evaluate.suites
    ]


def prepared_of(run: Path) -> Path:
    """The prepared corpus of a run folder ``OUT/<preset>/<run>``."""
    return run.resolve().parents[1] / "data" / paths.read_json(run / "config.json")["data"]["folder"]


def evaluate_target(target: Path, suite: str, config: Config, out: Path, force: bool = False) -> dict[str, Any]:
    """Evaluate a run folder (written into it), or a single model folder (only returned)."""
    is_run = (target / "done.json").is_file()
    if not is_run and not (target / "config.json").is_file():
        raise UserError(
            f"{target} is neither a finished run nor a model folder; expected done.json or config.json in it"
        )
    if suite == "lm":
        if not is_run:
            raise UserError(f"{target} is not a run folder; suite lm needs the corpus of a run: give a run folder")
        return evaluate_run_text(target, prepared_of(target))
    folder = pairs_folder(config, suite, out)
    if suite == "glue":
        if not is_run:
            raise UserError(f"{target} is not a run folder; suite glue is written into one: give a run folder")
        year = "babylm2024" if config.evaluate.protocol.startswith("babylm2024") else "babylm2025"
        return evaluate_run_glue(target, folder, protocol=year)
    if is_run:
        return evaluate_run(target, suite, folder, config.evaluate, force=force)
    tokenizer = load_tokenizer(target)
    model = load_model(target, "mlm" if tokenizer.mask_token else "clm")
    document, _ = evaluate_pairs(
        model,
        tokenizer,
        folder,
        suite=suite,
        protocol=config.evaluate.protocol,
        ties=config.evaluate.ties,
        per_paradigm=config.evaluate.per_paradigm,
        token_budget=config.evaluate.token_budget,
    )
    return document


def run(
    preset: str, overrides: Sequence[str], out: Path, stage: str = "all", progress: Callable[[str], None] = print
) -> list[Path]:
    """One stage of all runs of the study, `study.workers` processes side by side; returns the run folders.

    Nothing is started when nothing is left to do. Each process is ``wmlkit study run --shard I/N``, so what happens
    here can be done by hand on N machines. The corpus is prepared first: the processes would otherwise all do it.
    Raises UserError when one fails.
    """
    config = load_preset(preset, overrides)
    for suite in config.evaluate.suites:
        pairs_folder(config, suite, out)
    prepared = prepare(config.data, out)
    folders = [run_folder(one, out, prepared) for one in plan(config)]
    if all(_is_done(folder, config, stage) for folder in folders):
        return folders
    count = min(config.study.workers, len(plan(config)))
    arguments = [argument for override in overrides for argument in ("--set", override)]
    environment = os.environ | {"OMP_NUM_THREADS": str(config.train.threads), "PYTHONUNBUFFERED": "1"}
    processes = []
    for index in range(1, count + 1):
        command = [sys.executable, "-m", "wmlkit", "study", "run", "--preset", preset, "--out", str(out)]
        command += ["--shard", f"{index}/{count}", "--stage", stage, *arguments]
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        )
    tails: list[str] = [""] * count
    threads = [
        threading.Thread(target=_follow, args=(process, tails, index, progress))
        for index, process in enumerate(processes)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:  # Ctrl-C in a notebook: the children stop with us; their checkpoints stay
        for process in processes:
            process.terminate()
        raise
    failed = [index for index, process in enumerate(processes) if process.wait() != 0]
    if failed:
        raise UserError(
            f"{len(failed)} of {count} training processes failed; the last line was: {tails[failed[0]].strip()}; "
            "mend that and run again: finished runs and checkpoints are kept"
        )
    return folders


def _is_done(folder: Path, config: Config, stage: str) -> bool:
    evaluated = all(
        paths.evaluation(folder, suite, config.evaluate.protocol).is_file() for suite in config.evaluate.suites
    )
    return (folder / "done.json").is_file() and (stage == "train" or evaluated)


def _follow(process: subprocess.Popen[str], tails: list[str], index: int, progress: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        tails[index] = line
        progress(line.rstrip())
