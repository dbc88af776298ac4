"""The JSON files of a run folder, read one by one and checked; what is said of one that cannot be used."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import paths
from .errors import UserError
from .settings import Objective

FORMAT = 2  # of a run folder, in its config.json

RUN_NAME = re.compile(r"[a-z]+-p\d+-s\d+-[0-9a-f]{8}")  # of a run's folder: arm, peers, seed, hash


@dataclass(frozen=True)
class Run:
    """A finished run: what its JSON files say."""

    folder: Path
    arm: str
    peers: int
    seed: int
    setting: str  # how the configuration differs from the folder's main one; "" for the main one
    config: dict[str, Any]
    corpus: str
    data: dict[str, Any]
    students: list[dict[str, Any]]
    environment: dict[str, Any]
    done: dict[str, Any]

    @property
    def keys(self) -> dict[str, Any]:
        """The columns that all tables share."""
        keys = {"run": self.folder.name, "setting": self.setting, "arm": self.arm, "peers": self.peers}
        return {**keys, "seed": self.seed}

    @property
    def shared(self) -> dict[str, Any]:
        """The columns of every table of measurements."""
        return {**self.keys, "note": self.note, "corpus": self.corpus}

    @property
    def note(self) -> str:
        """What every table has to say of the run."""
        told = ["a teacher is one more peer"] if self.taught_peers else []
        told += ["teacher outside the data budget"] if self.done.get("teacher_outside_budget") else []
        return ", ".join(told)

    @property
    def taught_peers(self) -> bool:
        """Whether these peers learn from one another and from a teacher (``mutual.frozen_teacher``)."""
        return self.arm in ("dml", "wml") and bool(self.config["mutual"].get("frozen_teacher"))

    @property
    def teacher(self) -> dict[str, Any]:
        """Whom the peers learned from, and what its training took; empty without one."""
        return self.done.get("teacher") or {}

    @property
    def teacher_folder(self) -> Path | None:
        """The run of a teacher that was trained for this one."""
        name = self.teacher.get("run")
        return self.folder.parent / name if name else None

    @property
    def prepared(self) -> Path:
        """The prepared corpus that the run read, where it lies in the same output folder."""
        return paths.prepared_named(paths.out_of(self.folder), Path(self.data["folder"]).name)

    @property
    def flops_with_teacher(self) -> float:
        """FLOP of the run, its teacher's training included; NaN where that is unknown."""
        of_teacher = self.teacher.get("flops", None if self.arm == "distill" else 0.0)
        return math.nan if of_teacher is None else float(self.done["flops"] + of_teacher)

    @property
    def other_ensembles(self) -> dict[str, float]:
        """Dev loss of its ensembles under other weights than its own, by member, where that was measured
        (`evaluate.ensembles`)."""
        path = paths.ensembles(self.folder)
        members = read_object(path, ("members",))["members"] if path.is_file() else []
        try:
            return {one["member"]: float(one["dev_ce"]) for one in members if one["member"] != "ensemble"}
        except (TypeError, KeyError, ValueError):
            raise other_format(path, "'member' and 'dev_ce' of each ensemble below 'members'") from None

    @property
    def best_member(self) -> str:
        """Name of the peer with the lowest held-out cross-entropy."""
        return f"peer_{self.done['best_peer']}"


def run_document(folder: Path, required: Sequence[str] = ("config", "data", "hash", "students")) -> dict[str, Any]:
    """``config.json`` of a run folder, finished or not, with the `required` keys. Raises UserError where another
    format is noted."""
    path = folder / "config.json"
    document = read_object(path, required)
    found = document.get("format")
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found!r}, expected {FORMAT}: another version of wmlkit wrote the run; use "
            "that version, or move the folder elsewhere and train again"
        )
    return document


def run_facts(run_folder: Path) -> tuple[list[float], Objective]:
    """Learned peer weights and objective of a finished run."""
    if not (run_folder / "done.json").is_file():
        raise not_finished(run_folder)
    weights = read_object(run_folder / "done.json", ("peer_weights",))["peer_weights"]
    if not isinstance(weights, list) or not all(isinstance(weight, (int, float)) for weight in weights):
        raise other_format(run_folder / "done.json", "list of numbers as 'peer_weights'")
    model = run_document(run_folder, ("config",))["config"]
    model = model.get("model") if isinstance(model, dict) else None
    objective = model.get("objective") if isinstance(model, dict) else None
    if objective not in ("mlm", "clm"):
        raise other_format(run_folder / "config.json", "objective mlm or clm below 'config', 'model'")
    return [float(weight) for weight in weights], objective


def read_object(path: Path, required: Sequence[str]) -> dict[str, Any]:
    """One JSON object that has the `required` keys. Raises UserError, naming the file."""
    if not path.is_file():
        raise UserError(f"{path} is missing; expected it in every finished run; remove that run's folder and repeat it")
    return _parsed(path.read_bytes(), str(path), path, required)


def read_lines(path: Path, required: Sequence[str]) -> Iterator[dict[str, Any]]:
    """JSON objects, one a line, that have the `required` keys. Raises UserError, naming the file and the line."""
    if not path.is_file():
        raise UserError(f"{path} is missing; expected one JSON object a line; remove that run's folder and repeat it")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield _parsed(line, f"line {number} of {path}", path, required)


def known_result(path: Path, required: Sequence[str]) -> dict[str, Any] | None:
    """A result that was written before; None where there is none, or none of this version: it is then made again."""
    try:
        document = read_object(path, required)
    except UserError:
        return None
    return document if isinstance(document.get("settings"), dict) else None


def _parsed(text: bytes, place: str, path: Path, required: Sequence[str]) -> dict[str, Any]:
    try:
        document = paths.parse_json(text)
    except ValueError as error:
        again = "remove that run's folder and repeat the run"
        if path.parent.name == "evaluation":
            again = "remove that file and evaluate the run again"
        raise UserError(f"{place} is not JSON ({error}); expected one JSON object; {again}") from None
    for key in required:
        if not isinstance(document, dict) or key not in document:
            raise other_format(path, repr(key))
    return document


def peer_folder(run_folder: Path, number: int) -> Path:
    """The model folder of an exported peer, from 1, of a finished run. Raises UserError where it was left behind."""
    folder = paths.peer(run_folder, number)
    if not folder.is_dir():
        raise UserError(
            f"{run_folder} is finished, and its peers are not there ({folder.name}), as where results were copied "
            "without them; expected peers/peer_1 and so on; bring them, or remove the run's folder to train it again"
        )
    return folder


def not_finished(run_folder: Path) -> UserError:
    """What to say of a run folder without ``done.json``, or of none."""
    if not run_folder.is_dir():
        beside = sorted(path.name for path in run_folder.parent.glob("*") if RUN_NAME.fullmatch(path.name))
        near = difflib.get_close_matches(run_folder.name, beside, n=1, cutoff=0.0)
        hint = f" (the nearest name there is {near[0]})" if near else ""
        return UserError(
            f"there is no run folder {run_folder}; expected a finished run; train it first, or mend the path{hint}"
        )
    if not (run_folder / "environment.json").is_file():  # which training leaves from its start
        return UserError(f"{run_folder} is no run folder; expected a finished run, OUT/<preset>/<run>; mend the path")
    return UserError(
        f"{run_folder} has no done.json, so the run is not finished; start the same training command again to resume it"
    )


def other_settings(path: Path) -> UserError:
    """What to say where an evaluation would replace one with other settings, which tables may show already."""
    return UserError(
        f"{path} has this evaluation with other settings or data; expected the same again; give --force to replace it, "
        "which the tables will show"
    )


def other_format(path: Path, key: str) -> UserError:
    """What to say of a run's file that lacks `key`."""
    return UserError(
        f"{path} has no {key}; expected the files that this version of wmlkit writes; move runs of other versions "
        "elsewhere and repeat them"
    )
