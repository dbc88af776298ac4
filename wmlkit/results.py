"""Run folders -> tidy tables, and statistics over seeds.

All tables share the columns ``run`` (folder name), ``setting`` (how the run's configuration differs from the
folder's main one; empty for the main one), ``arm``, ``peers`` and ``seed``. A run counts once it has ``done.json``.
In tables of scores ``setting`` also says where an evaluation differs from most (`alike.read_evaluations`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from .alike import read_evaluations, trial_limits
from .errors import UserError
from .run_files import Run, other_format
from .run_settings import OF_OTHER_TOKENS, of_other_tokens
from .runs import distinct, metric_lines, read_runs

# lists of P values
PER_PEER = (
    "ce", "kl", "total", "peer_weights", "hypergradient", "clipped", "dev_ce", "held_out_ce", "dev_ce_unaveraged",
)  # fmt: skip
PER_RUN = (
    "peer_weights_entropy", "lr", "muon_lr", "outer_lr", "alpha", "dev_ce_ensemble", "held_out_ce_ensemble",
    "tokens_per_second", "peak_memory", "seconds",
)  # fmt: skip
TEACHER_COST = ("tokens", "words", "flops", "seconds")
# (a, b): the difference a - b. The first is the question of the paper's title, the others its controls.
CONTRASTS = (
    ("wml", "distill"), ("dml", "distill"), ("wml", "dml"),
    ("wml", "independent"), ("dml", "independent"), ("distill", "independent"),
)  # fmt: skip


def runs_table(folder: Path) -> pd.DataFrame:
    """One row a finished run: what it is, where it ran and what it cost.

    `parameters` and `flops` are summed over the peers, `peak_memory` is in MiB, cross-entropies in nats per
    scored token; `clipped` is the share of updates with a clipped gradient, mean over the peers, NaN where it was not
    counted; `dev_ce` and `held_out_ce` are those of the best peer. `teacher` names whom the peers learned from;
    teacher_tokens, ... are the cost of its training, which the other columns leave out: 0 without one, NaN if unknown.
    """
    rows = []
    for run in read_runs(folder):
        done, best = run.done, run.done["best_peer"] - 1
        teacher = run.teacher or {"name": "", **dict.fromkeys(TEACHER_COST, 0)}
        rows.append(
            {
                **run.keys,
                "corpus": run.corpus,
                "data_hash": run.data["hash"],
                "steps": done["steps"],
                "tokens": done["tokens"],
                "words": done["words"],
                "parameters": sum(done["parameters"]),
                "flops": done["flops"],
                "seconds": done["seconds"],
                "peak_memory": done["peak_memory"],
                "clipped": np.mean(done["clipped"]) if done.get("clipped") else np.nan,
                "best_peer": done["best_peer"],
                "dev_ce": done["dev_ce"][best],
                "held_out_ce": done["held_out_ce"][best],
                "dev_ce_ensemble": done["dev_ce_ensemble"],
                "teacher": teacher["name"],
                **{f"teacher_{name}": np.nan if teacher[name] is None else teacher[name] for name in TEACHER_COST},
                "note": run.note,
                **{name: run.environment[name] for name in ("commit", "device", "precision", "command")},
            }
        )
    return pd.DataFrame(rows)


def metrics_table(folder: Path) -> pd.DataFrame:
    """Every logged value of every finished run, long form: the shared columns and those of `run_metrics`."""
    frames = []
    for run in read_runs(folder):
        logged = run_metrics(run.folder)
        frames.append(pd.concat([pd.DataFrame(run.keys, index=logged.index), logged], axis=1))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def run_metrics(run_folder: Path) -> pd.DataFrame:
    """Logged values of one run, finished or not: step, tokens, words, peer, quantity, value.

    `peer` is 1-based, and missing for a quantity of the whole run. `quantity` is a name of ``metrics.jsonl``
    (`ce`, `kl`, `total`, `peer_weights`, `hypergradient`, `dev_ce`, ...). A step logged twice counts once, the
    last time. Raises UserError for a broken line.
    """
    try:
        return tidy_metrics(metric_lines(run_folder))
    except (ValueError, TypeError) as error:  # a text where a number belongs
        raise other_format(run_folder / "metrics.jsonl", f"numbers alone ({error})") from None


def tidy_metrics(logged: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The frame of `run_metrics` from rows of ``metrics.jsonl``."""
    lines = {line["step"]: line for line in logged}
    rows: list[tuple[Any, ...]] = []
    for step in sorted(lines):
        line = lines[step]
        place = (step, line["tokens"], line["words"])
        for quantity in PER_PEER:
            for index, value in enumerate(line.get(quantity) or (), start=1):
                rows.append((*place, index, quantity, value))
        for quantity in PER_RUN:
            if line.get(quantity) is not None:
                rows.append((*place, None, quantity, line[quantity]))
    frame = pd.DataFrame(rows, columns=["step", "tokens", "words", "peer", "quantity", "value"])
    return frame.astype({"peer": "Int64", "value": float})


def scores_table(folder: Path) -> pd.DataFrame:
    """One row a member's score: suite, protocol, member, score (0-100, macro over paradigms), ties (% of items), n.

    Members are those of the evaluation files, `best_peer`, which repeats the peer that the held-out text chose, and
    `teacher`, whom the peers of the run learned from. `note` says which tasks a score of (Super)GLUE is the mean of.
    """
    rows = []
    for shared, document in read_evaluations(folder):
        if document["suite"] == "glue":
            tasks = f"glue: mean of {distinct(row['paradigm'] for row in document['members'][0]['paradigms'])}"
            limits = trial_limits(document["settings"])
            shared["note"] = distinct(filter(None, (shared["note"], f"{tasks} ({limits})" if limits else tasks)))
        for member in document["members"]:
            rows.append({**shared, **{name: member[name] for name in ("member", "score", "ties", "n")}})
    return pd.DataFrame(rows)


def paradigm_table(folder: Path) -> pd.DataFrame:
    """One row a member and a paradigm of minimal pairs: suite, protocol, member, paradigm, phenomenon, field, accuracy,
    ties, n.

    Tasks of (Super)GLUE, whose metrics differ, are in `evaluations.glue_table`.
    """
    columns = ("paradigm", "phenomenon", "field", "accuracy", "ties", "n")
    rows = []
    for shared, document in read_evaluations(folder):
        for member in document["members"] if document["suite"] != "glue" else ():
            for row in member["paradigms"]:
                rows.append({**shared, "member": member["member"], **{name: row[name] for name in columns}})
    return pd.DataFrame(rows)


def dev_table(folder: Path) -> pd.DataFrame:
    """Final dev cross-entropy in nats per scored token, in the form of `scores_table`: suite `dev_ce`, no protocol."""
    rows = []
    for run in read_runs(folder):
        rows += dev_rows(run, run.done["dev_ce"], run.done["dev_ce_ensemble"], run.done["best_peer"])
        rows += [{**rows[-1], "member": name, "score": value} for name, value in run.other_ensembles.items()]
        if run.teacher.get("dev_ce") is not None:
            rows.append({**rows[-1], "member": "teacher", "score": run.teacher["dev_ce"]})
    return pd.DataFrame(rows)


def dev_rows(run: Run, dev_ce: Sequence[float], ensemble: float, best_peer: int) -> list[dict[str, Any]]:
    """Rows of `dev_table` from dev losses of a run: its peers, the best of which has number best_peer; ensemble."""
    values = {f"peer_{index}": value for index, value in enumerate(dev_ce, start=1)}
    if run.peers > 1:
        values["ensemble"] = ensemble
    values["best_peer"] = dev_ce[best_peer - 1]
    shared = {**run.shared, "suite": "dev_ce", "protocol": ""}
    return [{**shared, "member": member, "score": value} for member, value in values.items()]


def with_mean_peer(scores: pd.DataFrame) -> pd.DataFrame:
    """`scores` and one more member a run, `mean_peer`: the mean over its peers of score, ties and n.

    Where only some peers of a run were scored, there is no such mean.
    """
    if scores.empty:
        return scores
    peers = scores[scores["member"].str.fullmatch(r"peer_\d+")]
    numbers = [name for name in ("score", "ties", "n") if name in scores]
    shared = [name for name in scores if name not in (*numbers, "member")]
    grouped = peers.groupby(shared, sort=False, dropna=False)
    mean = grouped[numbers].mean().reset_index().assign(member="mean_peer")
    mean = mean[grouped.size().to_numpy() == mean["peers"].to_numpy()]
    return pd.concat([scores, mean[list(scores.columns)]], ignore_index=True)


def with_single_peer(scores: pd.DataFrame) -> pd.DataFrame:
    """`scores` and, for each setting and suite of which no run has one peer, rows of `peers` 1: the first peer of
    `independent`, of the number of peers that most seeds have, the larger of several.

    Independent peers share nothing but the order of the text, so the first learns what it would learn alone. Where it
    was scored in some runs only, perhaps those in which it is the best peer, there are no such rows.
    """
    if scores.empty:
        return scores
    firsts = []
    alike = [name for name in ("setting", "corpus", "suite", "protocol") if name in scores]
    for _, group in scores.groupby(alike, sort=False, dropna=False):
        own = group[group["arm"] == "independent"]
        first = own[own["member"] == "peer_1"]
        seeds, all_seeds = (rows.groupby("peers")["seed"].nunique() for rows in (first, own))
        seeds = seeds[seeds == all_seeds.reindex(seeds.index)]
        if len(seeds) and not (group["peers"] == 1).any():
            firsts.append(first[first["peers"] == seeds[seeds == seeds.max()].index.max()])
    if not firsts:
        return scores
    found = pd.concat(firsts).sort_index()
    alone = [found.assign(peers=1, member=member) for member in ("peer_1", "best_peer")]
    return pd.concat([scores, *alone], ignore_index=True)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Two-sided 95 % t-interval of the mean, values independent (one a seed). Empty (NaN, NaN) where none can be had:
    for fewer than two values, and for values without any spread."""
    if len(values) < 2 or np.ptp(values) < 1e-9:
        return np.nan, np.nan
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def over_seeds(table: pd.DataFrame, by: Sequence[str], value: str = "score") -> pd.DataFrame:
    """One row a group of `by`: mean, low, high (95 % t-interval over seeds), n_seeds, seeds, values (in that order).

    Raises UserError where a group holds one seed twice: that would make the interval too narrow.
    """
    rows = []
    for key, group in table.groupby(list(by), sort=False, dropna=False):
        group = group.sort_values("seed")
        if group["seed"].duplicated().any():
            raise UserError(
                f"{distinct(group.loc[group['seed'].duplicated(keep=False), 'run'])} repeat a seed of "
                f"{dict(zip(by, key, strict=True))}; expected one run a seed; move all but one away"
            )
        rows.append({**dict(zip(by, key, strict=True)), **_described(group[value].tolist(), group["seed"].tolist())})
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "n_seeds", "seeds", "values"])


def with_notes(table: pd.DataFrame, rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`table`, one row a group of `by`, with a column `note`: what the `rows` of the group have in theirs."""
    notes = rows.groupby(list(by), dropna=False)["note"].agg(lambda found: distinct(text for text in found if text))
    return table.merge(notes.reset_index(), on=list(by), how="left")


def with_unit(table: pd.DataFrame) -> pd.DataFrame:
    """`table` and, behind `protocol`, `unit`: what its means are in, nats (a scored token; `dev_ce`) or percent."""
    found = table.copy()
    found.insert(found.columns.get_loc("protocol") + 1, "unit", np.where(table["suite"] == "dev_ce", "nats", "percent"))
    return found


def noting_other_tokens(table: pd.DataFrame) -> pd.DataFrame:
    """A table by `setting`, whose `note` says which losses are of other tokens than those of the main setting.

    In a table with suites that is `dev_ce`; one without has losses alone.
    """
    others = table["setting"].map(of_other_tokens) & (table["suite"] == "dev_ce" if "suite" in table else True)
    notes = [
        distinct([*filter(None, [note]), *([OF_OTHER_TOKENS] if other else [])])
        for note, other in zip(table["note"], others, strict=True)
    ]
    return table.assign(note=notes)


def with_means(table: pd.DataFrame, rows: pd.DataFrame, by: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """`table`, one row a group of `by`, with columns `names`: their means over the `rows` of the group."""
    means = rows.groupby(list(by), dropna=False)[list(names)].mean().reset_index()
    return table.merge(means, on=list(by), how="left")


def paired_differences(scores: pd.DataFrame) -> pd.DataFrame:
    """Differences a - b between arms (`CONTRASTS`) on the seeds that both have, one row a contrast and group.

    Columns: setting, corpus, suite, protocol, peers, member, a, b, mean, low, high (95 % t-interval over the seeds'
    differences), p (two-sided paired t-test, for one comparison), p_adjusted (Benjamini-Hochberg over the contrasts of
    a group), n_seeds, seeds, values, note. One seed has neither interval nor p; `over_seeds` refuses one that is there
    twice.
    """
    by, rows = ["setting", "corpus", "suite", "protocol", "peers", "member"], []
    over_seeds(scores, ["arm", *by])
    for a, b in CONTRASTS:
        left, right = scores[scores["arm"] == a], scores[scores["arm"] == b]
        both = left.merge(right, on=[*by, "seed"], suffixes=("_a", "_b"), validate="one_to_one")
        for key, group in both.groupby(by, sort=False, dropna=False):
            group = group.sort_values("seed")
            differences = (group["score_a"] - group["score_b"]).tolist()
            described = _described(differences, group["seed"].tolist())
            notes = [text for side in ("note_a", "note_b") for text in group[side] if text]
            known = {"a": a, "b": b, **described, "p": paired_p(differences), "note": distinct(notes)}
            rows.append({**dict(zip(by, key, strict=True)), **known})
    columns = [*by, "a", "b", "mean", "low", "high", "p", "p_adjusted", "n_seeds", "seeds", "values", "note"]
    found = pd.DataFrame(rows, columns=columns)
    return found.assign(p_adjusted=found.groupby(by, dropna=False)["p"].transform(adjusted))


def against(table: pd.DataFrame, name: str, control: str, by: Sequence[str], value: str = "score") -> pd.DataFrame:
    """Every other value of the column `name` minus `control`, seed by seed, one row each and group of `by`.

    Columns: name, by, difference, difference_low, difference_high (95 % t-interval over the seeds that both have),
    differences, difference_n_seeds, p (two-sided paired t-test, for one comparison).
    """
    is_control, each, paired = table[name] == control, [name, *by], [*by, "seed"]
    both = table[~is_control].merge(table[is_control][[*paired, value]], on=paired, suffixes=("", "_control"))
    both = both.assign(difference=both[value] - both[f"{value}_control"])
    rows = over_seeds(both, each, value="difference")
    p = both.groupby(each, sort=False, dropna=False)["difference"].agg(paired_p).rename("p").reset_index()
    shown = {
        "mean": "difference", "low": "difference_low", "high": "difference_high", "values": "differences",
        "n_seeds": "difference_n_seeds",
    }  # fmt: skip
    return rows.merge(p, on=each, how="left").rename(columns=shown)[[*each, *shown.values(), "p"]]


def _described(values: list[float], seeds: list[int]) -> dict[str, Any]:
    low, high = interval(values)
    return {
        "mean": float(np.mean(values)), "low": low, "high": high, "n_seeds": len(values),
        "seeds": " ".join(str(seed) for seed in seeds), "values": " ".join(f"{number:.4g}" for number in values),
    }  # fmt: skip


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided paired t-test of differences, one a seed; NaN where there is nothing to test: one seed, no spread."""
    testable = not np.isnan(interval(differences)[0])
    return float(stats.ttest_1samp(differences, 0).pvalue) if testable else np.nan


def adjusted(p: pd.Series) -> pd.Series:
    """Benjamini-Hochberg: p-values of a family as the smallest false discovery rate at which each is a discovery."""
    known = p.dropna()
    return pd.Series(stats.false_discovery_control(known), known.index).reindex(p.index) if len(known) else p


def main_setting(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """Rows of the folder's main setting that have these `values`, ``main_setting(scores, arm="wml", peers=4)``."""
    if table.empty:
        return table
    table = table[table["setting"].isna() | (table["setting"] == "")]  # a CSV file has nothing there
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def most_peers(table: pd.DataFrame) -> pd.DataFrame:
    """Rows with the table's largest number of peers."""
    return table[table["peers"] == table["peers"].max()] if len(table) else table


def most_peers_compared(differences: pd.DataFrame) -> pd.DataFrame:
    """Rows of T4_differences with the largest number of peers of which several seeds are compared, else the largest:
    a study that has begun with more peers does not hide what it has found with fewer."""
    several = differences[differences["n_seeds"] > 1]
    return differences[differences["peers"] == most_peers(several if len(several) else differences)["peers"].max()]


def main_evaluation(runs: Sequence[Run], scores: pd.DataFrame) -> tuple[str, str]:
    """(suite, protocol) that the runs' configuration names first, else the first in `scores`, which has some."""
    found = list(dict.fromkeys(zip(scores["suite"], scores["protocol"], strict=True)))
    configured = runs[0].config["evaluate"]
    wanted = [(suite, configured["protocol"]) for suite in configured["suites"]]
    return next((pair for pair in wanted if pair in found), found[0])
