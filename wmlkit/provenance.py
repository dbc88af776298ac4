"""Which command, commit, seeds and device made a table or a figure: one ``provenance.json`` a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from . import environment, paths
from .errors import UserError
from .run_files import Run
from .runs import environment_of

_KEYS = {"command", "commit", "seeds", "device", "created_by"}
_OF_RUNS = {"runs_commit"}  # what is made from runs has it too; before it, `commit` was that of the runs


def record_provenance(
    folder: Path,
    name: str,
    *,
    command: str,
    commit: str,
    seeds: Sequence[int],
    device: str,
    created_by: str,
    runs_commit: str | None = None,
) -> Path:
    """Note in ``folder/provenance.json`` what made the file `name` (``T4``, ``F2``) there; replaces an older note.

    `commit` is that of the code that made it and `created_by` the function or notebook; `runs_commit` and `device` are
    those of the runs that the numbers come from. Raises UserError where the existing file is not JSON.
    """
    note = {
        "command": command, "commit": commit, "seeds": sorted(set(seeds)), "device": device, "created_by": created_by,
        **({} if runs_commit is None else {"runs_commit": runs_commit}),
    }  # fmt: skip
    paths.make_folder(folder)
    with FileLock(folder / ".provenance.lock"):  # two reports at once would each write what it read before the other
        noted = read_provenance(folder) | {name: note}
        return paths.write_json(folder / "provenance.json", dict(sorted(noted.items())))


def forget_provenance(folder: Path, name: str) -> None:
    """Drop the note of a file that is no longer there."""
    if name in read_provenance(folder):
        with FileLock(folder / ".provenance.lock"):
            noted = {other: note for other, note in read_provenance(folder).items() if other != name}
            paths.write_json(folder / "provenance.json", noted)


def read_provenance(folder: Path) -> dict[str, dict[str, Any]]:
    """All notes of a folder, by name; none where the folder has no ``provenance.json``."""
    path = folder / "provenance.json"
    if not path.is_file():
        return {}
    remedy = "remove it and make the tables and figures again"
    try:
        document = paths.read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); expected one object; {remedy}") from None
    for name, note in document.items() if isinstance(document, dict) else [("it", None)]:
        if not isinstance(note, dict) or set(note) - _OF_RUNS != _KEYS or not isinstance(note["seeds"], list):
            raise UserError(f"{path} does not say what made {name}; expected {', '.join(sorted(_KEYS))}; {remedy}")
    return document


def from_a_notebook(folder: Path, name: str) -> bool:
    """Whether a notebook made the file `name` of a folder, which then may hold more than the runs alone give."""
    return bool(read_provenance(folder).get(name, {}).get("created_by", "").endswith(".ipynb"))


def of_runs(runs: Sequence[Run], command: str, created_by: str) -> dict[str, Any]:
    """Arguments of `record_provenance` for something made from `runs`."""
    return {
        "command": command,
        "commit": environment.commit() or environment.NO_CHECKOUT,
        "runs_commit": environment_of(runs, "commit"),
        "seeds": sorted({run.seed for run in runs}),
        "device": environment_of(runs, "device"),
        "created_by": created_by,
    }
