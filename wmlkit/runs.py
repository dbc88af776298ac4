"""Finished runs of a preset's folder, with their evaluations and learning curves, read and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from . import paths
from .config import Config
from .errors import UserError
from .identity import SHAPING, idle_keys
from .run_files import RUN_NAME, Run, other_format, read_lines, read_object, run_document
from .run_settings import all_settings, beside_main, difference, settings_apart
from .settings import Arm

ARMS: tuple[str, ...] = get_args(Arm)  # in the order of tables and figures: from control to claim
MEMBERS = (  # of runs, in that order
    "best_peer", "mean_peer", "ensemble", "uniform_ensemble", "fitted_ensemble", "teacher",
)  # fmt: skip
COMPARED = ("best_peer", "mean_peer", "ensemble", "fitted_ensemble")  # of one arm with those of another

_DONE = (
    "steps", "tokens", "words", "seconds", "best_peer", "held_out_ce", "dev_ce", "dev_ce_ensemble", "parameters",
    "flops", "peak_memory", "peer_weights",
)  # fmt: skip

_PER_PEER = ("held_out_ce", "dev_ce", "parameters", "peer_weights")  # lists of P values among them
_PER_PEER_OPTIONAL = ("clipped",)  # not counted without train.grad_clip


def read_runs(folder: Path) -> list[Run]:
    """All finished runs below a preset's folder, in the order of arms, peers, settings and seeds. A text has one name,
    that of the first run that read it, whatever its folder was called elsewhere.

    A teacher's run is no arm of the comparison and is left out: it is known through the runs that learned from it.
    Raises UserError, naming the file, where one is not JSON or lacks what this version of wmlkit writes.
    """
    read = [_read_run(path) for path in _finished(folder) if not path.name.startswith("teacher-")]
    called = {str(run.data["hash"]): run.corpus for run in reversed(read)}
    named = [
        replace(run, setting=setting, corpus=called[str(run.data["hash"])])
        for run, setting in zip(read, settings_apart(read), strict=True)
    ]
    return sorted(named, key=lambda run: (ARMS.index(run.arm), run.peers, run.setting, run.seed))


def finished_runs(folder: Path) -> list[Run]:
    """`read_runs`, of which there must be some: raises UserError where there are none."""
    found = read_runs(folder)
    if not found:
        remedy = "train first: wmlkit reproduce, or notebook 03"
        if _holds_run(folder):
            remedy = "it is a run itself: give the folder that it lies in"
        elif renamed := renamed_runs(folder):
            remedy = f"a run counts under the name that it was given, which {', '.join(renamed)} has no more: rename it"
        elif inside := [path for path in sorted(folder.iterdir()) if path.is_dir() and _finished(path)]:
            remedy = f"give the preset's folder in it: {inside[0]}"
        raise UserError(f"{folder} holds no finished run; expected at least one; {remedy}")
    return found


def unfinished_runs(folder: Path) -> list[str]:
    """Names of the run folders that have no ``done.json``; no table counts them."""
    return [path.name for path in _run_folders(folder) if not (path / "done.json").is_file()]


def evaluations(run: Run) -> Iterator[dict[str, Any]]:
    """The evaluation documents of a run. Two members join: `best_peer`, the peer that the held-out text chose, and
    `teacher`, from the same evaluation of the teacher's own run, where there is one."""
    for path in sorted(paths.evaluations(run.folder).glob("*.json")):
        document = read_object(path, ("suite", "protocol", "settings", "data_hash", "members"))
        if not isinstance(document["settings"], dict):
            raise other_format(path, f"object as 'settings' where it has {type(document['settings']).__name__}")
        _check_rows(path, document["members"], ("member", "paradigms"), ("score", "ties", "n"))
        score = "score" if document["suite"] == "glue" else "accuracy"
        for member in document["members"]:
            _check_rows(path, member["paradigms"], ("paradigm", "phenomenon", "field"), (score, "ties", "n"))
        more = [*_best_member(run, document), *_teacher_member(run, path.name, document)]
        yield {**document, "members": [*document["members"], *more]}


def _check_rows(path: Path, rows: Any, keys: Sequence[str], numbers: Sequence[str]) -> None:
    """Raises UserError unless `rows` are objects with `keys`, and numbers under `numbers`."""
    if not isinstance(rows, list):
        raise other_format(path, f"list where it has {type(rows).__name__}")
    for row in rows:
        for key in (*keys, *numbers):
            if not isinstance(row, dict) or key not in row:
                raise other_format(path, repr(key))
        for key in numbers:
            if not _is_number(row[key]):
                raise other_format(path, f"number as {key!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _teacher_member(run: Run, name: str, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    if run.teacher_folder is None:
        return []
    path = paths.evaluations(run.teacher_folder) / name
    if not path.is_file():
        return []
    found = read_object(path, ("settings", "data_hash", "members"))
    both = [{k: v for k, v in one["settings"].items() if k != "ensemble_weights"} for one in (found, document)]
    if both[0] != both[1] or found["data_hash"] != document["data_hash"]:
        return []  # evaluated otherwise, so not comparable
    return [{**member, "member": "teacher"} for member in found["members"] if member["member"] == "peer_1"]


def curve_points(run: Run) -> Iterator[dict[str, Any]]:
    """The points of a run's learning curve in the order of training; `best_peer` joins as in `evaluations`."""
    points = []
    for path in paths.curve(run.folder).glob("*.json"):
        point = read_object(path, ("target_words",))
        _check_rows(path, [point], ("evaluations",), ("words", "tokens", "step"))
        _check_rows(path, point["evaluations"], ("suite", "protocol", "settings", "data_hash", "members"), ())
        for document in point["evaluations"]:
            _check_rows(path, document["members"], ("member",), ("score", "ties", "n"))
        points.append(point)
    for point in sorted(points, key=lambda found: (found["step"], found["target_words"] or math.inf)):
        documents = [{**one, "members": [*one["members"], *_best_member(run, one)]} for one in point["evaluations"]]
        yield {**point, "evaluations": documents}


def _best_member(run: Run, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**member, "member": "best_peer"} for member in document["members"] if member["member"] == run.best_member]


def metric_lines(run_folder: Path) -> Iterator[dict[str, Any]]:
    """The logged steps of a run, finished or not, in the order of the file."""
    return read_lines(run_folder / "metrics.jsonl", ("step", "tokens", "words"))


def check_alike(folder: Path, config: Config, data_hash: Callable[[], str]) -> None:
    """Raises UserError where a preset's `folder` has runs of other settings than `config` (`beside_main`): its tables
    and figures are those of its main runs, and would be noted as made with these settings. data_hash: gives that of the
    prepared text, "" where there is none to be had."""
    runs = read_runs(folder) if folder.is_dir() else []
    otherwise = beside_main(runs, config, data_hash()) if runs else ""
    if otherwise:
        raise UserError(
            f"{folder} holds runs of other settings, and its tables, figures and answer are of those; expected a "
            f"folder of their own for runs with {otherwise}; give one (--out, in a notebook `out`), or "
            "the settings of these runs"
        )


def unfinished_beside(folder: Path, resolved: Mapping[str, Any]) -> list[str]:
    """For a run in `folder` that has not begun, with the `resolved` settings: the unfinished runs beside it of the same
    arm, peers and seed, each as a sentence that says what it has otherwise. One that cannot be read is left out."""
    if folder.exists() or not folder.parent.is_dir():
        return []
    told, same = [], folder.name.rpartition("-")[0]
    for name in unfinished_runs(folder.parent):
        if name.rpartition("-")[0] != same or not (folder.parent / name / "config.json").is_file():
            continue
        try:
            other = run_document(folder.parent / name, ("config",))["config"]
            what = difference(all_settings(other), all_settings(resolved))
        except (UserError, KeyError, TypeError, AttributeError):
            continue
        if what:
            told.append(f"{name} is not finished and has {what}: with the same settings it would go on")
    return told


def environment_of(runs: Iterable[Run], name: str) -> str:
    """The different commits or devices of runs, each once: ``environment.json`` of one that was continued has several
    (`environment.continued`)."""
    return distinct(part for run in runs for part in (run.environment[name] or "unknown").split(", "))


def distinct(values: Iterable[Any]) -> str:
    """The different values, in the order in which they first come, joined by commas; None reads ``unknown``."""
    return ", ".join(dict.fromkeys("unknown" if value is None else str(value) for value in values))


def renamed_runs(folder: Path) -> list[str]:
    """Folders of a preset's folder that hold a finished run under another name than its own, and so are not read."""
    there = folder.iterdir() if folder.is_dir() else ()
    names = [path.name for path in there if _holds_run(path)]
    return sorted(name for name in names if not RUN_NAME.fullmatch(name) and not name.startswith("."))


def _holds_run(folder: Path) -> bool:
    return (folder / "done.json").is_file() and (folder / "metrics.jsonl").is_file()


def _run_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; expected a preset's folder with runs in it; train first")
    return sorted(path for path in folder.iterdir() if path.is_dir() and RUN_NAME.fullmatch(path.name))


def _finished(folder: Path) -> list[Path]:
    return [path for path in _run_folders(folder) if (path / "done.json").is_file()]


def _read_run(folder: Path) -> Run:
    document = run_document(folder)
    done = read_object(folder / "done.json", _DONE)
    environment = read_object(folder / "environment.json", ("commit", "device", "precision", "command"))
    config, data = document["config"], document["data"]
    try:
        arm, peers, seed = config["mutual"]["arm"], config["mutual"]["num_peers"], config["train"]["seed"]
        corpus, _, _ = data["name"], data["hash"], data["folder"]
        for section in (*SHAPING, "evaluate"):
            config[section].items()
        idle_keys(config)  # for the keys that it reads
    except (KeyError, TypeError, AttributeError) as error:
        raise other_format(folder / "config.json", str(error)) from None
    if arm not in ARMS or not _fits(done, peers):
        raise UserError(
            f"{folder / 'done.json'} does not fit {peers} peers of arm {arm!r} in config.json; expected one value a "
            f"peer and best_peer from 1 to {peers}; remove the run's folder and train it again"
        )
    return Run(folder, arm, peers, seed, "", config, corpus, data, document["students"], environment, done)


def _fits(done: Mapping[str, Any], peers: Any) -> bool:
    """Whether ``done.json`` has numbers, one a peer where there is one for each."""
    lists = [done[key] for key in (*_PER_PEER, *_PER_PEER_OPTIONAL) if key in done]
    values = [done[key] for key in _DONE if key not in _PER_PEER]
    sizes = all(isinstance(one, list) and len(one) == peers for one in lists)
    if not sizes or not all(_is_number(value) for value in (*values, *(value for one in lists for value in one))):
        return False
    return bool(1 <= done["best_peer"] <= peers)
