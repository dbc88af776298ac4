"""A study: the runs of a plan (`study_plan.py`), in slices that anything can drive.

`run_shard` does slice I of N in this process, so a SLURM array, a CI matrix or a shell loop can drive it; `run` lets
processes of this machine take one run after the other of what is left to do. Finished runs are not repeated.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import paths
from .ablations import ablation_base, ablation_name, changes, note_plan
from .config import Config, load_preset
from .data.prepare import prepare
from .data.tokenizer import load_tokenizer
from .device import side_by_side
from .errors import OUT_OF_MEMORY, Stopped, UserError, signal_name
from .evaluate.curve import points_lacking
from .evaluate.ensembles import evaluate_run_ensembles, has_ensembles, known_ensembles
from .evaluate.pairs import check_suites, evaluate_run, known_evaluation
from .evaluate.protocols import PROTOCOLS
from .evaluate.run_text import evaluate_run_text, known_text, prepared_of
from .evaluate.suites import pairs_folder
from .guard import WATCHED, stop_signals
from .progress import progress_line, run_name
from .run_files import read_object, run_document
from .settings import Arm
from .study_plan import Part, dearest_first, plan, shard
from .train import run as train_run
from .train import run_folder

STAGES = ("train", "evaluate", "all")
TAKEN = "WMLKIT_ROWS_TAKEN"  # variable of processes that share rows: a folder with an empty file for each row taken


def run_shard(
    config: Config,
    out: Path,
    index: int = 1,
    count: int = 1,
    stage: str = "all",
    progress: Callable[[str], None] | None = None,
    part: Part = "runs",
) -> list[Path]:
    """Do one slice of the plan in this process; arguments and result as of `run_rows`."""
    return run_rows(config, out, shard(plan(config, part), index, count), stage, progress, part)


def run_rows(
    config: Config,
    out: Path,
    rows: Sequence[int],
    stage: str = "all",
    progress: Callable[[str], None] | None = None,
    part: Part = "runs",
) -> list[Path]:
    """Do `rows` (from 1) of the plan in this process; `stage` is train, evaluate or all. Returns the run folders.

    Of rows that several processes share (`run`) each does those that it is the first to take. Raises UserError for a
    row that the plan has not, before anything is done.
    """
    check_stage(stage)
    runs = plan(config, part)
    for row in rows:
        if not 1 <= row <= len(runs):
            raise UserError(f"row {row} does not exist; expected 1 to {len(runs)}, see `wmlkit study plan`")
    if part == "ablations":
        note_plan(config, out)
    say = progress or (lambda text: None)
    own = [runs[row - 1] for row in rows]
    if stage == "all":  # what would stop the evaluation must not wait for the end of training
        for one in own:
            for suite in one.evaluate.suites:
                pairs_folder(one, suite, out)
        _check_suites(own, out)
    folders = []
    for one in (runs[row - 1] for row in _taken(rows)):
        name = run_name(one)
        if part == "ablations":
            name = f"{ablation_name(changes(one.resolved(), ablation_base(config)))}, seed {one.train.seed}"
        if stage in ("train", "all"):
            folder = train_run(one, out, progress=partial(_report, say, one, name))
            say(f"{name}: trained")
            _say_lacking(say, one, folder)
        if stage in ("evaluate", "all"):
            folder = run_folder(one, out)
            evaluate_all(folder, one, out)
            say(f"{name}: evaluated")
        folders.append(folder)
    return folders


def _say_lacking(say: Callable[[str], None], config: Config, folder: Path) -> None:
    for sentence in points_lacking(config, folder):
        say(f"wmlkit: {sentence}")


def _taken(rows: Sequence[int]) -> Iterator[int]:
    """Those of `rows` that this process is to do: where others share them, what none of them has taken before."""
    folder = os.environ.get(TAKEN)
    for row in rows:
        try:
            if folder:
                (Path(folder) / str(row)).touch(exist_ok=False)
        except FileExistsError:
            continue
        yield row


def _check_suites(runs: Sequence[Config], out: Path) -> None:
    """Raises UserError where a run that is to be trained could not be evaluated afterwards."""
    checked: list[tuple[Any, ...]] = []
    for one in runs:
        what = (one.data, one.model.objective, one.evaluate)
        if what not in checked and not (run_folder(one, out) / "done.json").is_file():
            tokenizer = load_tokenizer(paths.tokenizer(prepare(one.data, out, one.needs_mask).folder))
            check_suites(one, out, tokenizer)
            checked.append(what)


def check_stage(stage: str) -> None:
    """Raises UserError unless `stage` is one of `STAGES`."""
    if stage not in STAGES:
        raise UserError(f"--stage got {stage!r}; expected one of {', '.join(STAGES)}; change it")


def _report(say: Callable[[str], None], config: Config, name: str, row: dict[str, Any]) -> None:
    say(progress_line(config, row, name))


def evaluate_all(folder: Path, config: Config, out: Path) -> list[dict[str, Any]]:
    """Every suite of the configuration on one finished run, and on the run of its teacher before, the loss on dev text
    where `evaluate.text_words` asks for it, and of several peers the ensembles; what is there is not measured again.
    Returns the documents of the run's suites."""
    done = folder / "done.json"
    teacher = read_object(done, ("steps",)).get("teacher") if done.is_file() else None
    if teacher and teacher["run"]:
        evaluate_all(folder.parent / teacher["run"], config, out)
    documents = [
        evaluate_run(folder, suite, pairs_folder(config, suite, out), config.evaluate)
        for suite in config.evaluate.suites
    ]
    if config.evaluate.text_words is not None:
        evaluate_run_text(
            folder,
            prepared_of(folder),
            words_per_domain=config.evaluate.text_words,
            token_budget=config.evaluate.token_budget,
        )
    if has_ensembles(folder):
        evaluate_run_ensembles(folder)
    return documents


def evaluate_protocols(config: Config, out: Path, arm: Arm, peers: int) -> None:
    """Score the first suite under every protocol, on the runs of one arm and number of peers."""
    suite = config.evaluate.suites[0]
    runs = [one for one in plan(config) if (one.mutual.arm, one.mutual.num_peers) == (arm, peers)]
    folders = [run_folder(one, out) for one in runs]
    calls = []
    for protocol in PROTOCOLS:
        chosen = config.updated({"evaluate.protocol": protocol})
        calls += [(folder, suite, pairs_folder(chosen, suite, out), chosen) for folder in folders]
    if not all(_is_evaluated(folder, suite, one, out) for folder, _, _, one in calls):
        list(side_by_side(_evaluate_alone, calls, config.study.workers))


def _evaluate_alone(folder: Path, suite: str, pairs: Path, config: Config) -> None:
    """One evaluation, with no more threads than a run of the study has."""
    torch.set_num_threads(config.train.threads)
    evaluate_run(folder, suite, pairs, config.evaluate)


def run(
    preset: str,
    overrides: Sequence[str],
    out: Path,
    stage: str = "all",
    progress: Callable[[str], None] = print,
    part: Part = "runs",
) -> list[Path]:
    """One stage of all runs of a part of the study, `study.workers` processes side by side; returns the run folders.

    Each process is ``wmlkit study run --rows ...`` with all that is left to do, seed after seed and the dearest first,
    and takes the next run that no other has: none is idle while there is one. Nothing is started when nothing is left.
    The corpus is prepared first: the processes would otherwise all do it.
    SIGTERM and Ctrl-C are passed on, so each run that trains leaves a checkpoint; then Stopped is raised. Raises
    UserError when a process fails.
    """
    check_stage(stage)
    config = load_preset(preset, overrides)
    for suite in config.evaluate.suites:
        pairs_folder(config, suite, out)
    prepared = prepare(config.data, out, config.needs_mask)
    if part == "ablations":
        note_plan(config, out)
    runs = plan(config, part)
    folders = [run_folder(one, out, prepared if one.data == config.data else None) for one in runs]
    numbered = enumerate(zip(folders, runs, strict=True), start=1)
    left = [row for row, (folder, one) in numbered if not _is_done(folder, one, out, stage)]
    rows = [left[place] for place in dearest_first([runs[row - 1] for row in left])]
    commands = [_command(preset, overrides, out, rows, stage, part)] * min(config.study.workers, len(left))
    with tempfile.TemporaryDirectory() as taken:
        _run_processes(commands, {"OMP_NUM_THREADS": str(config.train.threads), TAKEN: taken}, progress)
    for row, (folder, one) in enumerate(zip(folders, runs, strict=True), start=1):
        if stage != "evaluate" and row not in left:  # the processes tell it of theirs
            _say_lacking(progress, one, folder)
    return folders


def _command(
    preset: str, overrides: Sequence[str], out: Path, rows: Sequence[int], stage: str, part: Part
) -> list[str]:
    """The command that does these rows of the plan."""
    command = [sys.executable, "-m", "wmlkit", "study", "run", "--preset", preset, "--out", str(out)]
    command += ["--rows", ",".join(map(str, rows)), "--stage", stage]
    command += ["--ablations"] if part == "ablations" else []
    return command + [argument for override in overrides for argument in ("--set", override)]


def _run_processes(commands: Sequence[list[str]], variables: dict[str, str], progress: Callable[[str], None]) -> None:
    """Run the commands side by side, with these variables, and hand on their lines. Raises Stopped after a signal that
    asks to stop, and UserError when a process fails."""
    environment = os.environ | variables | {"PYTHONUNBUFFERED": "1", WATCHED: "1"}
    processes: list[subprocess.Popen[str]] = []
    tails = [""] * len(commands)
    broken: list[Exception] = []  # what `progress` raised
    try:
        with stop_signals() as stop_asked:  # before the first process: a signal finds all that were started
            readers = []
            for index, command in enumerate(commands):
                processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        text=True,
                        env=environment,
                    )
                )
                readers.append(
                    threading.Thread(target=_follow, args=(processes[index], tails, index, progress, broken))
                )
                readers[index].start()
            _wait(readers, processes, lambda: bool(stop_asked() or broken))
        if broken:
            raise broken[0]
    except BaseException:  # a second Ctrl-C, or `progress` failed: the processes stop too, each with a checkpoint
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise
    if stop_asked():
        raise Stopped(
            f"the study was stopped by {signal_name(stop_asked())}; runs that trained have a checkpoint; "
            "run the same command again to go on",
            stop_asked(),
        )
    failed = [index for index, process in enumerate(processes) if process.wait() != 0]
    signals = [number for index in failed if (number := _signal_of(processes[index].returncode))]
    if signals:
        remedy = OUT_OF_MEMORY if signals[0] == 9 else "run the same command again to go on: what is finished is kept"
        raise UserError(f"one of {len(commands)} training processes was ended by {signal_name(signals[0])}; {remedy}")
    if failed:
        said = f"the last line was: {tails[failed[0]].strip()}" if tails[failed[0]].strip() else "it said nothing"
        raise UserError(
            f"{len(failed)} of {len(commands)} training processes failed; {said}; mend that and run again: finished "
            "runs and checkpoints are kept"
        )


def _signal_of(status: int) -> int:
    """The signal that ended a process with this exit status, at once or after a checkpoint (`Stopped.status`); or 0."""
    number = -status if status < 0 else status - 128
    return number if number in set(signal.Signals) else 0


def _wait(
    threads: Sequence[threading.Thread], processes: Sequence[subprocess.Popen[str]], stop_asked: Callable[[], bool]
) -> None:
    """Until all threads have ended; as soon as `stop_asked`, the processes are asked to stop."""
    told = False
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)
            if stop_asked() and not told:
                told = True
                for process in processes:
                    process.terminate()


def _is_done(folder: Path, config: Config, out: Path, stage: str) -> bool:
    """Whether a stage of a run is done, with the settings of `config`: others may have been asked for before."""
    if not (folder / "done.json").is_file():
        return False
    if stage == "train":
        return True
    words = config.evaluate.text_words
    return (
        all(_is_evaluated(folder, suite, config, out) for suite in config.evaluate.suites)
        and (words is None or known_text(folder, run_document(folder)["data"]["hash"], words) is not None)
        and (not has_ensembles(folder) or known_ensembles(folder) is not None)
    )


def _is_evaluated(folder: Path, suite: str, config: Config, out: Path) -> bool:
    return known_evaluation(folder, suite, pairs_folder(config, suite, out), config.evaluate) is not None


def _follow(
    process: subprocess.Popen[str],
    tails: list[str],
    index: int,
    progress: Callable[[str], None],
    broken: list[Exception],
) -> None:
    """Hand on the lines of a process. Where that fails, read on: a process whose pipe is full stops for ever."""
    assert process.stdout is not None
    for line in process.stdout:
        tails[index] = line
        if not broken:
            try:
                progress(line.rstrip())
            except Exception as error:  # whatever it is, `_run_processes` raises it
                broken.append(error)
