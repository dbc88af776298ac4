"""T9, T9_repairs, T9_scoring and T9_search from what the replays found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..results import interval
from .released import FINDINGS, IN_TURN, cases, repairs
from .scoring import RULE_FINDINGS
from .search import SEARCH_FINDINGS

PER_PEER = ("train_ce", "untrained_ce", "dev_ce", "accuracy")
CONTROLS = {"mutual": "none", "teacher": "distill"}  # the case without a defect, to which others are compared


def replay_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """T9: one row a case; numbers are means over peers and seeds, empty where a case has no such number.

    low, high: 95 % t-interval over seeds of the value before them, empty for one seed. dev_ce: nats per scored token of
    true dev text; untrained_ce the same before training; train_ce of what was read; change: dev_ce less that of the
    case without defects (`none`, or `distill` where a teacher is imitated), paired by seed. updates_with_lr: optimizer
    steps with a learning rate above 0. kl_to_ce: the KL terms of the loss over its CE terms. correction: |correction| /
    |explicit term| of the hypergradient. weight_ratio: largest over smallest weight. teacher_ce: dev_ce of the teacher,
    reading the students' ids. peer_weights: means over seeds. values: dev_ce of each seed.
    """
    by_case = _by_case(records)
    rows = [
        _row(name, FINDINGS.get(name, ""), case.mode, by_case[name], by_case.get(CONTROLS[case.mode]))
        for name, case in cases().items()
        if name in by_case
    ]
    return pd.DataFrame(rows)


def repairs_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """T9_repairs: the released code (`all`), then one defect fewer in each row, down to the method as described
    (`none`). Columns as in T9, but finding: of the defect that is gone; change: dev_ce less that of the row before,
    paired by seed."""
    by_case = _by_case(records)
    rows: list[dict[str, Any]] = []
    for name, gone in zip(repairs(), ["", *IN_TURN], strict=True):
        if name in by_case:
            before = by_case[rows[-1]["case"]] if rows else None
            rows.append(_row(name, FINDINGS.get(gone, ""), "mutual", by_case[name], before))
    return pd.DataFrame(rows)


def _by_case(records: Sequence[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """Replays of each case by seed, in the order of seeds; numbers of peers are their means."""
    table = pd.DataFrame(records)
    for name in PER_PEER:
        table[name] = [np.nan if values is None else float(np.mean(values)) for values in table[name]]
    table["weight_ratio"] = [np.nan if w is None else max(w) / min(w) for w in table["peer_weights"]]
    for name in ("kl_to_ce", "correction", "teacher_ce"):
        table[name] = table[name].astype(float) if name in table else np.nan
    return {str(case): own.sort_values("seed").set_index("seed") for case, own in table.groupby("case", sort=False)}


def _row(name: str, finding: str, mode: str, own: pd.DataFrame, control: pd.DataFrame | None) -> dict[str, Any]:
    """One row of T9: `own` replays, and their change against those of `control`."""
    row = {"case": name, "finding": finding, "mode": mode, "n_seeds": len(own)}
    for key in ("distinct_ids", "lowest_id", "highest_id", "updates", "updates_with_lr"):
        row[key] = int(own[key].iloc[0])
    reference = pd.Series(np.nan, own.index) if control is None else control["dev_ce"].reindex(own.index)
    change = own["dev_ce"] - reference
    for key in ("train_ce", "untrained_ce"):
        row[key] = float(own[key].mean())
    for key, values in (("dev_ce", own["dev_ce"]), ("change", change), ("accuracy", own["accuracy"])):
        low, high = interval(values.dropna().tolist())
        row |= {key: float(values.mean()), f"{key}_low": low, f"{key}_high": high}
    for key in ("kl_to_ce", "correction", "weight_ratio", "teacher_ce"):
        row[key] = float(own[key].mean())
    weights = own["peer_weights"].dropna().tolist()
    row["peer_weights"] = " ".join(f"{value:.4f}" for value in np.mean(weights, axis=0)) if weights else ""
    row["values"] = ", ".join(f"{value:.3f}" for value in own["dev_ce"])
    return row


def scoring_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """T9_scoring: the peers of case `none` and two scorers that are no models under every rule.

    items: the suite's pairs, or the EWoK-shaped `crossed` ones made from them. accuracy, low, high: percent, mean over
    peers and seeds with a 95 % t-interval over seeds. ties, displaced: percent of items that tie, and of scores that do
    not come back in their place.
    """
    rows = pd.DataFrame([row | {"seed": record["seed"]} for record in records for row in record.get("scoring", ())])
    rows["scorer"] = rows["scorer"].replace(r"peer_\d+", "peers", regex=True)
    by = ["items", "scorer", "case"]
    seeds = rows.groupby([*by, "seed"], sort=False)[["accuracy", "ties", "displaced", "n"]].mean().reset_index()
    table = []
    for key, own in seeds.groupby(by, sort=False):
        low, high = interval(own["accuracy"].tolist())
        numbers = {"accuracy": own["accuracy"].mean(), "low": low, "high": high, "n_seeds": len(own)}
        named = dict(zip(by, key, strict=True))
        finding = {"finding": RULE_FINDINGS.get(named["case"], "")}
        more = {"ties": own["ties"].mean(), "displaced": own["displaced"].mean(), "n": int(own["n"].iloc[0])}
        table.append({**named, **finding, **numbers, **more})
    return pd.DataFrame(table)


def search_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """T9_search: rows of `search.search_case` with the finding's id."""
    table = pd.DataFrame(rows)
    table.insert(1, "finding", [SEARCH_FINDINGS.get(case, "") for case in table["case"]])
    return table
