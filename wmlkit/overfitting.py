"""Runs that went on after their loss on dev text was lowest.

A small text that is read often is learned by heart. Arms that are compared after equal updates then differ in how far
past their lowest loss they are, and a teacher hands down what it has learned by heart (docs/log.md 25).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from .results import run_metrics
from .runs import Run

MEANS = ("rise", "lowest", "lowest_step", "steps")
RISE = 0.01  # share of the lowest loss; every measurement on the way is of the same rows and masks, so it is no noise


def risen(runs: Sequence[Run]) -> pd.DataFrame:
    """Arms, and their teachers, whose dev loss rose by more than `RISE` from its lowest to its last logged value.

    Columns: who, rise, lowest (nats a scored token), lowest_step, steps; means over seeds, of each run the mean over
    its peers.
    """
    rows = []
    for run in runs:
        rows.append({"who": run.arm, **_of_one(run.folder)})
        teacher = run.folder.parent / str((run.done.get("teacher") or {}).get("run"))
        if (teacher / "metrics.jsonl").is_file():
            rows.append({"who": f"the teacher of {run.arm}", **_of_one(teacher)})
    table = pd.DataFrame(rows, columns=["who", *MEANS]).groupby("who", sort=False).mean().reset_index()
    return table[table["rise"] > RISE * table["lowest"]]


def _of_one(run_folder: Path) -> dict[str, float]:
    logged = run_metrics(run_folder)
    way = logged[logged["quantity"] == "dev_ce"].groupby("step")["value"].mean()
    if way.empty:  # a log that was cut or edited: nothing is known, and the rest of the answer stands
        return dict.fromkeys(MEANS, math.nan)
    return dict(zip(MEANS, (way.iloc[-1] - way.min(), way.min(), way.idxmin(), way.index[-1]), strict=True))
