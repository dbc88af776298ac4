"""summary.json: what a preset's folder found, for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import paths
from .results import scores_table
from .runs import environment_of, read_runs


def summary(folder: Path, minutes: Mapping[str, float]) -> dict[str, Any]:
    """The document of ``summary.json``: preset, commit, device, minutes and the results of the main setting.

    Commits and devices are those of the runs. minutes: "train" is the time of all runs and of the teachers trained for
    them together, as they noted it, more than the clock's where runs trained side by side; "evaluate" and "total" are
    the clock's, of the main job that trained them, and null unless given.
    """
    runs = [run for run in read_runs(folder) if not run.setting]
    of_teachers = {run.teacher["name"]: run.teacher["seconds"] or 0 for run in runs if run.teacher}  # some share one
    train = (sum(run.done["seconds"] for run in runs) + sum(of_teachers.values())) / 60
    scores, results = scores_table(folder), []
    if len(scores):
        wanted = scores[(scores["setting"] == "") & scores["member"].str.fullmatch(r"peer_\d+|best_peer|ensemble")]
        columns = ["arm", "peers", "seed", "suite", "protocol", "member", "score", "ties", "n"]
        results = json.loads(wanted[columns].to_json(orient="records", double_precision=10))
    return {
        "preset": str(runs[0].config["preset"]) if runs else folder.name,
        "commit": environment_of(runs, "commit"),
        "device": environment_of(runs, "device"),
        "minutes": {"train": train, "evaluate": None, "total": None, **minutes},
        "results": results,
    }


def write_summary(folder: Path, minutes: Mapping[str, float] | None = None) -> Path:
    """Write ``summary.json`` into a preset's folder; arguments as of `summary`.

    Minutes that are not given, and that the file has already, are kept: to make tables again is not the main job.
    """
    path = folder / "summary.json"
    try:
        noted = paths.read_json(path)["minutes"]
        kept = {key: noted[key] for key in ("evaluate", "total") if isinstance(noted.get(key), (int, float))}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no such file, or none of ours
        kept = {}
    return paths.write_json(path, summary(folder, kept if minutes is None else minutes))
