"""Runs that went on after their loss on dev text was lowest.

A small text that is read often is learned by heart. Arms that are compared after equal updates then differ in how far
past their lowest loss they are, and a teacher hands down what it has learned by heart (docs/log.md 25). So the arms are
compared once more where each run would have been stopped by a loss that is neither dev nor test: that on held-out text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from .results import dev_rows, run_metrics
from .run_files import Run
from .runs import metric_lines

MEANS = ("rise", "lowest", "lowest_step", "steps")
_SHARED = ("run", "setting", "arm", "peers", "seed", "note", "corpus")
RISE = 0.01  # share of the lowest loss; every measurement on the way is of the same rows and masks, so it is no noise


def risen(runs: Sequence[Run]) -> pd.DataFrame:
    """Arms, and their teachers, whose dev loss rose by more than `RISE` from its lowest to its last logged value; of
    the main setting, at the arm's largest number of peers.

    Columns: who, rise, lowest (nats a scored token), lowest_step, steps; means over seeds, of each run the mean over
    its peers.
    """
    runs = [run for run in runs if not run.setting]
    most = {arm: max(run.peers for run in runs if run.arm == arm) for arm in {run.arm for run in runs}}
    rows = []
    for run in (run for run in runs if run.peers == most[run.arm]):
        rows.append({"who": run.arm, **_of_one(run.folder)})
        if run.teacher_folder is not None and (run.teacher_folder / "metrics.jsonl").is_file():
            rows.append({"who": f"the teacher of {run.arm}", **_of_one(run.teacher_folder)})
    table = pd.DataFrame(rows, columns=["who", *MEANS]).groupby("who", sort=False).mean().reset_index()
    return table[table["rise"] > RISE * table["lowest"]]


def stopped(runs: Sequence[Run]) -> pd.DataFrame:
    """Dev losses (nats a scored token) at the logged step at which a run's held-out loss, the mean over its peers, was
    lowest, in the form of `results.dev_table`; no rows unless some arm, not its teacher, is among the `risen`.

    best_peer has the lowest held-out loss of that step. Both losses are of `train.eval_rows` rows. The learning rate
    was still on its way down there, so a run of so few steps may end lower.
    """
    rows: list[dict[str, Any]] = []
    for run in runs if set(risen(runs)["who"]) & {run.arm for run in runs} else ():
        at = [line for line in metric_lines(run.folder) if line.get("held_out_ce") and line.get("dev_ce")]
        if not at:
            continue
        stop = min(at, key=lambda line: fmean(line["held_out_ce"]))
        best_peer = stop["held_out_ce"].index(min(stop["held_out_ce"])) + 1
        rows += dev_rows(run, stop["dev_ce"], stop["dev_ce_ensemble"], best_peer)
    return pd.DataFrame(rows, columns=[*_SHARED, "suite", "protocol", "member", "score"])


def _of_one(run_folder: Path) -> dict[str, float]:
    logged = run_metrics(run_folder)
    way = logged[logged["quantity"] == "dev_ce"].groupby("step")["value"].mean()
    if way.empty:  # a log that was cut or edited: nothing is known, and the rest of the answer stands
        return dict.fromkeys(MEANS, math.nan)
    return dict(zip(MEANS, (way.iloc[-1] - way.min(), way.min(), way.idxmin(), way.index[-1]), strict=True))
