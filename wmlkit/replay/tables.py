"""T9, T9_scoring and T9_search from what the replays found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..results import interval
from .released import FINDINGS, cases
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
    known = cases()
    table = pd.DataFrame(records).assign(mode=[known[record["case"]].mode for record in records])
    for name in PER_PEER:
        table[name] = [np.nan if values is None else float(np.mean(values)) for values in table[name]]
    table["weight_ratio"] = [np.nan if w is None else max(w) / min(w) for w in table["peer_weights"]]
    for name in ("kl_to_ce", "correction", "teacher_ce"):
        table[name] = table[name].astype(float) if name in table else np.nan
    by_seed = table.set_index(["case", "seed"])["dev_ce"]
    rows = []
    for case, own in table.groupby("case", sort=False):
        own = own.sort_values("seed")
        mode = own["mode"].iloc[0]
        row = {"case": case, "finding": FINDINGS.get(str(case), ""), "mode": mode, "n_seeds": len(own)}
        for name in ("distinct_ids", "lowest_id", "highest_id", "updates", "updates_with_lr"):
            row[name] = int(own[name].iloc[0])
        control = [by_seed.get((CONTROLS[mode], seed), np.nan) for seed in own["seed"]]
        change = own["dev_ce"] - control
        for name in ("train_ce", "untrained_ce"):
            row[name] = float(own[name].mean())
        for name, values in (("dev_ce", own["dev_ce"]), ("change", change), ("accuracy", own["accuracy"])):
            low, high = interval(values.dropna().tolist())
            row |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
        for name in ("kl_to_ce", "correction", "weight_ratio", "teacher_ce"):
            row[name] = float(own[name].mean())
        weights = own["peer_weights"].dropna().tolist()
        row["peer_weights"] = " ".join(f"{value:.4f}" for value in np.mean(weights, axis=0)) if weights else ""
        row["values"] = ", ".join(f"{value:.3f}" for value in own["dev_ce"])
        rows.append(row)
    return pd.DataFrame(rows)


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
