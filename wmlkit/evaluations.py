"""What the evaluations of runs say beyond their scores, as tidy tables: protocols, GLUE tasks, dev text, curves.

The tables share the columns of `results`: run, setting, arm, peers, seed, note, corpus.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import paths
from .alike import read_evaluations, shared_columns, trial_limits
from .run_files import read_object
from .runs import curve_points, read_runs

BESIDE = ("unigram", "floor")  # what stands beside the models in suite lm, `evaluate.run_text`
RULES = ("reduction", "prefix", "ordering_fault")  # of a protocol for the objective of the models it scores


def glue_table(folder: Path) -> pd.DataFrame:
    """One row a member and a (Super)GLUE task: metric, score, n, majority_class, selected_by, and what each
    fine-tuning gave (finetune_seeds, and per_seed, their list); accuracy, whatever the metric is: of the pipeline's two
    scripts one counts F1 for MRPC and QQP and one the accuracy. `limits`: fewer rows or epochs than the protocol has,
    which only a trial has. A skipped task is a row with an empty member and a `reason`."""
    rows = []
    for shared, document in read_evaluations(folder):
        if document["suite"] != "glue":
            continue
        settings = document["settings"]
        seeds = " ".join(str(seed) for seed in settings["seeds"])
        for member in document["members"]:
            for row in member["paradigms"]:
                rows.append(
                    {
                        **shared, "member": member["member"], "task": row["paradigm"], "score": row["score"],
                        **{name: row[name] for name in ("metric", "n", "majority_class", "selected_by")},
                        "finetune_seeds": seeds, "per_seed": row["per_seed"],
                        "accuracy": row["all_metrics"]["accuracy"], "reason": "", "limits": trial_limits(settings),
                    }
                )  # fmt: skip
        rows += [{**shared, "member": "", **one} for one in document["skipped"]]
    return pd.DataFrame(rows)


def protocol_table(folder: Path) -> pd.DataFrame:
    """`scores_table` with each protocol's own tie rule: what the pipeline of that year would have printed. Columns
    `reduction`, `prefix` and `ordering_fault` say how sentences were scored.

    Two members more: `perfect_scorer`, which prefers the good sentence of every pair, and `perfect_swapped`, the same
    on each pair followed by a copy in which the other sentence is right, as EWoK is written.
    """
    rows = []
    for shared, document in read_evaluations(folder):
        if "perfect_scorer" not in document:  # glue
            continue
        shared |= {name: document["settings"].get(name) for name in RULES}
        for member in document["members"]:
            known = {"member": member["member"], "score": member["official_score"]}
            rows.append({**shared, **known, "ties": member["ties"], "n": member["n"]})
        perfect, n = document["perfect_scorer"], document["members"][0]["n"]
        for member, key, times in (("perfect_scorer", "score", 1), ("perfect_swapped", "with_swapped_copies", 2)):
            rows.append({**shared, "member": member, "score": perfect[key], "ties": np.nan, "n": times * n})
    return pd.DataFrame(rows)


def of_common_protocols(scores: pd.DataFrame, named: Collection[str | None] = ()) -> pd.DataFrame:
    """`scores` under the protocol of a suite that the most runs of a setting were scored under, or several such, and
    under those that are `named`: the configuration's stays the main one where an evaluation of it is missing.

    Under the others only some runs were scored, which compares less. Where runs were scored, some rows are left.
    """
    if scores.empty:
        return scores
    runs = scores.groupby(["setting", "suite", "protocol"])["run"].transform("nunique")
    most = runs == runs.groupby([scores["setting"], scores["suite"]]).transform("max")
    return scores[most | scores["protocol"].isin(named)]


def text_table(folder: Path) -> pd.DataFrame:
    """Loss on dev text, one row a member and a domain (`all`: pooled): bits_per_byte, nats_per_token, perplexity,
    tokens, bytes, objective, and the bits a byte of two predictors: `unigram`, which knows how often each token comes,
    and `floor`, which knows the grammar (nursery only).

    Text that was drawn or read otherwise than for most runs is told apart as in all tables of evaluations.
    """
    names = ("bits_per_byte", "nats_per_token", "perplexity", "tokens", "bytes")
    measured = [run for run in read_runs(folder) if paths.language_modelling(run.folder).is_file()]
    found = []
    for run in measured:
        document = read_object(paths.language_modelling(run.folder), ("objective", "settings", "members"))
        found.append((run, {"suite": "lm", "protocol": "", "data_hash": run.data["hash"], **document}))
    rows = []
    for shared, (run, document) in zip(shared_columns(found), found, strict=True):
        beside = {name: _by_domain(document.get(name)) for name in BESIDE}
        members = {one["member"]: one for one in document["members"]}
        members["best_peer"] = members[run.best_member]
        for name, member in members.items():
            for row in ({**member, "domain": "all"}, *member["domains"]):
                place = {"member": name, "domain": row["domain"], "objective": document["objective"]}
                values = {key: row[key] for key in names}
                values |= {known: beside[known].get(row["domain"], np.nan) for known in BESIDE}
                rows.append({**shared, **place, **values})
    return pd.DataFrame(rows)


def _by_domain(known: Mapping[str, Any] | None) -> dict[str, float]:
    """Bits a byte by domain, "all" too, of what stands beside the models in a document of suite lm; {} without it."""
    if not known:
        return {}
    return {row.get("domain", "all"): row["bits_per_byte"] for row in (known, *known["domains"])}


def curve_table(folder: Path) -> pd.DataFrame:
    """One row a member's score at a point of the learning curve, in the form of `scores_table`.

    More columns: step, tokens, words seen, and target_words, for which the point was due; NA for the end of training.
    A curve of other pairs than most is told apart as in all tables of evaluations.
    """
    points = [
        (run, point, one) for run in read_runs(folder) for point in curve_points(run) for one in point["evaluations"]
    ]
    scored_otherwise = "its learning curve was scored otherwise than most; only training again scores it again"
    shared = shared_columns([(run, one) for run, _, one in points], scored_otherwise)
    rows = []
    for columns, (_, point, document) in zip(shared, points, strict=True):
        place = {name: point[name] for name in ("target_words", "words", "tokens", "step")}
        for member in document["members"]:
            rows.append({**columns, **place, **{name: member[name] for name in ("member", "score", "ties", "n")}})
    return pd.DataFrame(rows).astype({"target_words": "Int64"}) if rows else pd.DataFrame()


def several_protocols(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `protocol_table` whose run was scored under more than one protocol of the suite."""
    if table.empty:
        return table
    return table[table.groupby(["run", "suite"])["protocol"].transform("nunique") > 1]
