"""T8: what each ablation does to the scores, paired by seed with the base, the run that changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import results
from .ablations import ablation_base, ablation_name, changes
from .alike import told_apart
from .config import Config
from .run_files import Run
from .run_settings import OF_OTHER_TOKENS, OTHER_TOKENS, difference, made_with, most_common
from .runs import COMPARED, evaluations, read_runs

_KEYS = ["suite", "protocol", "member", "evaluated"]


def ablation_table(folder: Path, config: Config) -> pd.DataFrame:
    """T8 from the finished runs in `folder`, those of ``[ablations]`` of `config`.

    One row an ablation, suite, protocol and member: ablation (what it changes; ``base`` changes nothing; in brackets
    what an evaluation has otherwise than most, which is compared with its like alone), corpus, arm, peers, steps, unit,
    mean, low, high, n_seeds, seeds, values as in T4, and the same minus the base's, seed by seed: difference,
    difference_low, difference_high (95 % t-interval over seeds), p (two-sided paired t-test), p_adjusted
    (Benjamini-Hochberg over the ablations of a suite, protocol and member); note as in T4. flops_with_teacher (its
    training included, NaN where that is unknown) and the final peer_weights are means over seeds. Empty without
    finished runs.
    """
    base = ablation_base(config)
    runs = read_runs(folder) if folder.is_dir() else []
    scores = pd.concat([results.scores_table(folder), results.dev_table(folder)], ignore_index=True) if runs else None
    if scores is None or scores.empty:
        return pd.DataFrame()
    changed = {run.folder.name: changes(run.config, base) for run in runs}
    names = {name: ablation_name(own) for name, own in changed.items()}
    scores = results.with_mean_peer(scores)
    scores = scores[scores["member"].isin(COMPARED)].assign(ablation=scores["run"].map(names))
    scores = scores.assign(evaluated=_otherwise(runs, scores, changed))
    by = ["ablation", "corpus", "arm", "peers", *_KEYS]
    rows = results.with_notes(results.over_seeds(scores, by), scores, by)
    against = results.against(scores, "ablation", "base", _KEYS)
    rows = rows.merge(against, on=["ablation", *_KEYS], how="left").merge(_ends(runs, names), on="ablation")
    rows["p_adjusted"] = rows.groupby(_KEYS)["p"].transform(results.adjusted)
    told = [
        f"{name} ({text})" if text else name for name, text in zip(rows["ablation"], rows["evaluated"], strict=True)
    ]
    rows = rows.assign(ablation=told).drop(columns="evaluated")
    order = [ablation_name(own) for own in ({}, *config.ablations.settings)]
    order += [name for name in rows["ablation"].unique() if name not in order]
    rows = rows.sort_values("ablation", key=lambda column: column.map(order.index), kind="stable", ignore_index=True)
    return results.with_unit(rows)


def _otherwise(runs: Sequence[Run], scores: pd.DataFrame, changed: Mapping[str, Any]) -> list[str]:
    """For each row of `scores` what its text or precision has otherwise than those of most of the base's runs, and its
    evaluation than most: only those alike are compared. An ablation may be one of precision, and one of the text, whose
    scores on the same pairs compare; a loss of other tokens, of more or fewer masks or of the other objective does not.

    changed: by a run's name, what its configuration has otherwise than the base's.
    """
    made = {run.folder.name: made_with(run) for run in runs}
    of_base = [own for name, own in made.items() if not changed[name]] or list(made.values())
    common = {key: most_common([own[key] for own in of_base]) for key in of_base[0]}
    of_loss = {name: "" for name in made}
    for name, own in made.items():
        if "train.precision" in changed[name]:
            own["precision"] = common["precision"]
        if any(key.startswith("data.") for key in changed[name]) and own["data.hash"] != common["data.hash"]:
            own["data.hash"], of_loss[name] = common["data.hash"], OF_OTHER_TOKENS
        if set(OTHER_TOKENS) & set(changed[name]):
            of_loss[name] = OF_OTHER_TOKENS
    of_run = {name: difference(own, common) for name, own in made.items()}
    found = [(run, document) for run in runs for document in evaluations(run)]
    told = {
        (run.folder.name, document["suite"], document["protocol"]): text
        for (run, document), text in zip(found, told_apart(found, across_settings=True), strict=True)
    }
    places = zip(scores["run"], scores["suite"], scores["protocol"], strict=True)
    return [
        ", ".join(
            filter(None, (of_run[place[0]], of_loss[place[0]] if place[1] == "dev_ce" else "", told.get(place, "")))
        )
        for place in places
    ]


def _ends(runs: Sequence[Run], names: dict[str, str]) -> pd.DataFrame:
    """Steps, FLOP and final peer weights of each ablation, means over its seeds."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(names[run.folder.name], []).append(run)
    rows = []
    for name, own in found.items():
        weights = np.mean([run.done["peer_weights"] for run in own], axis=0)
        flops = np.mean([run.flops_with_teacher for run in own])
        row = {"ablation": name, "steps": own[0].done["steps"], "flops_with_teacher": flops}
        rows.append({**row, "peer_weights": " ".join(f"{weight:.3f}" for weight in weights)})
    return pd.DataFrame(rows)


def under(table: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """The rows of T8 whose pairs were scored under `protocol`, and the dev losses, which have none."""
    return table[table["protocol"].fillna("").isin(["", protocol])]


def clear(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of T8 whose difference from the base is not explained by the seeds: its 95 % interval leaves out 0."""
    return table[(table["difference_low"] > 0) | (table["difference_high"] < 0)]
