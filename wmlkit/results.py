"""Run folders -> tidy tables, and statistics over seeds.

All tables share the columns ``run`` (folder name), ``setting`` (how the run's configuration differs from the
folder's main one; empty for the main one), ``arm``, ``peers`` and ``seed``. A run counts once it has ``done.json``.
In tables of scores ``setting`` also says where an evaluation differs from most (`alike.read_evaluations`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from . import paths
from .alike import read_evaluations
from .errors import UserError
from .evaluate.protocols import credit
from .runs import Run, distinct, metric_lines, other_format, read_lines, read_object, read_runs

# lists of P values
PER_PEER = ("ce", "kl", "total", "peer_weights", "hypergradient", "dev_ce", "held_out_ce", "dev_ce_unaveraged")
PER_RUN = (
    "lr", "muon_lr", "outer_lr", "alpha", "dev_ce_ensemble", "held_out_ce_ensemble", "tokens_per_second", "peak_memory",
    "seconds",
)  # fmt: skip
TEACHER_COST = ("tokens", "words", "flops", "seconds")
ITEM = ["paradigm", "pair_id", "copy"]  # columns that name an item of a suite
# (a, b): the difference a - b. The first is the question of the paper's title, the others its controls.
CONTRASTS = (
    ("wml", "distill"), ("dml", "distill"), ("wml", "dml"),
    ("wml", "independent"), ("dml", "independent"), ("distill", "independent"),
)  # fmt: skip


def runs_table(folder: Path) -> pd.DataFrame:
    """One row a finished run: what it is, where it ran and what it cost.

    `parameters` and `flops` are summed over the peers, `peak_memory` is in MiB, cross-entropies in nats per
    scored token; `dev_ce` and `held_out_ce` are those of the best peer. `teacher` names whom the peers learned from;
    teacher_tokens, ... are the cost of its training, which the other columns leave out: 0 without one, NaN if unknown.
    """
    rows = []
    for run in read_runs(folder):
        done, best = run.done, run.done["best_peer"] - 1
        teacher = done.get("teacher") or {"name": "", **dict.fromkeys(TEACHER_COST, 0)}
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
    `teacher`, whom the peers of the run learned from.
    """
    rows = []
    for shared, document in read_evaluations(folder):
        for member in document["members"]:
            rows.append({**shared, **{name: member[name] for name in ("member", "score", "ties", "n")}})
    return pd.DataFrame(rows)


def paradigm_table(folder: Path) -> pd.DataFrame:
    """One row a member and a paradigm: suite, protocol, member, paradigm, phenomenon, field, accuracy, ties, n."""
    columns = ("paradigm", "phenomenon", "field", "accuracy", "ties", "n")
    rows = []
    for shared, document in read_evaluations(folder):
        for member in document["members"]:
            for row in member["paradigms"]:
                rows.append({**shared, "member": member["member"], **{name: row[name] for name in columns}})
    return pd.DataFrame(rows)


def dev_table(folder: Path) -> pd.DataFrame:
    """Final dev cross-entropy in nats per scored token, in the form of `scores_table`: suite `dev_ce`, no protocol."""
    rows = []
    for run in read_runs(folder):
        values = {f"peer_{index}": value for index, value in enumerate(run.done["dev_ce"], start=1)}
        if run.peers > 1:
            values["ensemble"] = run.done["dev_ce_ensemble"]
        values["best_peer"] = values[run.best_member]
        if (run.done.get("teacher") or {}).get("dev_ce") is not None:
            values["teacher"] = run.done["teacher"]["dev_ce"]
        shared = {**run.shared, "suite": "dev_ce", "protocol": ""}
        rows += [{**shared, "member": member, "score": value} for member, value in values.items()]
    return pd.DataFrame(rows)


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

    Independent peers share nothing but the order of the text, so the first learns what it would learn alone.
    """
    if scores.empty:
        return scores
    firsts = []
    alike = [name for name in ("setting", "corpus", "suite", "protocol") if name in scores]
    for _, group in scores.groupby(alike, sort=False, dropna=False):
        first = group[(group["arm"] == "independent") & (group["member"] == "peer_1")]
        if len(first) and not (group["peers"] == 1).any():
            seeds = first.groupby("peers")["seed"].nunique()
            firsts.append(first[first["peers"] == seeds[seeds == seeds.max()].index.max()])
    if not firsts:
        return scores
    found = pd.concat(firsts).sort_index()
    alone = [found.assign(peers=1, member=member) for member in ("peer_1", "best_peer")]
    return pd.concat([scores, *alone], ignore_index=True)


def items_table(run: Run, suite: str, protocol: str) -> pd.DataFrame | None:
    """Items of one evaluation: paradigm, pair_id, copy (0 unless a pair_id repeats), then a column a member.

    A cell is the credit that the evaluation gave: 1 for the good sentence preferred, 0 for the bad one, and at a tie
    what its rule says. `best_peer` and `mean_peer` are added.
    Returns None where the run has no item file of that evaluation.
    """
    path = paths.evaluation(run.folder, suite, protocol)
    if not path.with_suffix(".items.jsonl").is_file():
        return None
    settings = read_object(path, ("settings",))["settings"]
    rows = list(read_lines(path.with_suffix(".items.jsonl"), ("paradigm", "pair_id", "scores")))
    table = pd.DataFrame({name: [row[name] for row in rows] for name in ("paradigm", "pair_id")})
    table["copy"] = table.groupby(["paradigm", "pair_id"]).cumcount()
    for name in rows[0]["scores"] if rows else ():
        pairs = np.array([row["scores"][name] for row in rows], dtype=float)  # (N, 2): good, bad
        table[name] = credit(pairs[:, 0], pairs[:, 1], settings["ties"], settings.get("seed", 0))
    table["mean_peer"] = table[[name for name in table if re.fullmatch(r"peer_\d+", str(name))]].mean(axis=1)
    return table.assign(best_peer=table[run.best_member])


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
                f"{distinct(group['run'])} repeat a seed of {dict(zip(by, key, strict=True))}; expected one run a "
                "seed; add the column in which they differ to the grouping, or move one away"
            )
        rows.append({**dict(zip(by, key, strict=True)), **_described(group[value].tolist(), group["seed"].tolist())})
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "n_seeds", "seeds", "values"])


def with_notes(table: pd.DataFrame, rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`table`, one row a group of `by`, with a column `note`: what the `rows` of the group have in theirs."""
    if "note" not in rows:
        return table.assign(note="")
    notes = rows.groupby(list(by), dropna=False)["note"].agg(lambda found: distinct(text for text in found if text))
    return table.merge(notes.reset_index(), on=list(by), how="left")


def paired_differences(
    scores: pd.DataFrame,
    by: Sequence[str] = ("setting", "corpus", "suite", "protocol", "peers", "member"),
    value: str = "score",
) -> pd.DataFrame:
    """Differences a - b between arms (`CONTRASTS`) on the seeds that both have, one row a contrast and group of `by`.

    Columns: by, a, b, mean, low, high (95 % t-interval over the seeds' differences), p (two-sided paired t-test,
    for one comparison), n_seeds, seeds, values, note. One seed has neither interval nor p.
    """
    rows = []
    for a, b in CONTRASTS:
        left, right = scores[scores["arm"] == a], scores[scores["arm"] == b]
        both = left.merge(right, on=[*by, "seed"], suffixes=("_a", "_b"), validate="one_to_one")
        for key, group in both.groupby(list(by), sort=False, dropna=False):
            group = group.sort_values("seed")
            differences = (group[f"{value}_a"] - group[f"{value}_b"]).tolist()
            described = _described(differences, group["seed"].tolist())
            notes = [text for side in ("note_a", "note_b") if side in group for text in group[side] if text]
            known = {"a": a, "b": b, **described, "p": paired_p(differences), "note": distinct(notes)}
            rows.append({**dict(zip(by, key, strict=True)), **known})
    columns = [*by, "a", "b", "mean", "low", "high", "p", "n_seeds", "seeds", "values", "note"]
    return pd.DataFrame(rows, columns=columns)


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


def paired_items(a: Mapping[int, pd.DataFrame], b: Mapping[int, pd.DataFrame], member: str) -> pd.DataFrame:
    """Item-by-item differences a - b for the seeds that both have: seed, `ITEM`, difference (-1 to 1).

    `a` and `b` map seeds to the `items_table` of a run. Raises UserError where the two runs of a seed scored other
    items.
    """
    frames = [pd.DataFrame(columns=["seed", *ITEM, "difference"])]
    for seed in sorted(a.keys() & b.keys()):
        if member not in a[seed] or member not in b[seed]:
            continue
        left, right = a[seed][[*ITEM, member]], b[seed][[*ITEM, member]]
        both = left.merge(right, on=ITEM, suffixes=("_a", "_b"))
        if not len(left) == len(right) == len(both):
            raise UserError(
                f"the two runs of seed {seed} scored {len(left)} and {len(right)} items, {len(both)} of them the same; "
                "expected the same items; evaluate both again with the same settings"
            )
        difference = both[f"{member}_a"] - both[f"{member}_b"]
        frames.append(both[ITEM].assign(seed=seed, difference=difference))
    return pd.concat(frames[1:], ignore_index=True) if len(frames) > 1 else frames[0]


def item_bootstrap(items: pd.DataFrame, rng: np.random.Generator, resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile interval, in points, of the mean difference when *items* are resampled within each paradigm.

    `items` is that of `paired_items`. All seeds score the same items, so an item's difference is its mean over the
    seeds, and is drawn or not for all of them at once. The statistic is the macro mean over paradigms. It says how
    much the choice of items matters for these very runs, nothing about other seeds.
    """
    if items.empty:
        return np.nan, np.nan
    means = []
    over_seeds = items.assign(difference=items["difference"].astype(float)).groupby(ITEM)["difference"].mean()
    for _, differences in over_seeds.groupby("paradigm"):
        # Drawing n items with replacement is a multinomial draw over their few distinct values.
        levels, counts = np.unique(differences.to_numpy(), return_counts=True)
        draws = rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples)  # (resamples, levels)
        means.append(draws @ levels / counts.sum())  # (resamples,)
    low, high = np.quantile(100 * np.mean(means, axis=0), [0.025, 0.975])
    return float(low), float(high)


def main_evaluation(runs: Sequence[Run], scores: pd.DataFrame) -> tuple[str, str]:
    """(suite, protocol) that the runs' configuration names first, else the first in `scores`, which has some."""
    found = list(dict.fromkeys(zip(scores["suite"], scores["protocol"], strict=True)))
    configured = runs[0].config.get("evaluate", {})
    wanted = [(suite, configured.get("protocol")) for suite in configured.get("suites", ())]
    return next((pair for pair in wanted if pair in found), found[0])
