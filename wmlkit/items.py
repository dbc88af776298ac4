"""Results pair by pair: what each item of a suite was given, and intervals over items.

Seeds say how much another training would change a result; items say how much other sentences would. The two are
different questions, so no interval mixes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import paths
from .errors import UserError
from .evaluate.protocols import credit
from .run_files import Run, other_format, read_lines, read_object

ITEM = ["paradigm", "pair_id", "copy"]  # columns that name an item of a suite
TOKENS = ["good_tokens", "bad_tokens"]  # columns of an item's sentences
OVER_SEEDS, NO_SPREAD, NONE = "t-interval over seeds", "none: all seeds gave the same", "none: one value"


def items_table(run: Run, suite: str, protocol: str) -> pd.DataFrame | None:
    """Items of one evaluation: paradigm, pair_id, copy (0 unless a pair_id repeats), then a column a member, and
    `TOKENS` where the evaluation noted them.

    A member's cell is the credit that the evaluation gave: 1 for the good sentence preferred, 0 for the bad one, and at
    a tie what its rule says. `best_peer` and `mean_peer` are added.
    Returns None where the run has no item file of that evaluation. Raises UserError for items of another form.
    """
    path = paths.evaluation(run.folder, suite, protocol)
    of_items = path.with_suffix(".items.jsonl")
    if not of_items.is_file():
        return None
    settings = read_object(path, ("settings",))["settings"]
    rows = list(read_lines(of_items, ("paradigm", "pair_id", "scores")))
    if not all(isinstance(row["scores"], dict) and row["scores"].keys() == rows[0]["scores"].keys() for row in rows):
        raise other_format(of_items, "scores of the same members in every line")
    table = pd.DataFrame({name: [str(row[name]) for row in rows] for name in ("paradigm", "pair_id")})
    table["copy"] = table.groupby(["paradigm", "pair_id"]).cumcount()
    if rows and all("tokens" in row for row in rows):
        table[TOKENS] = _good_and_bad([row["tokens"] for row in rows], of_items, "tokens").astype(int)
    for name in rows[0]["scores"] if rows else ():
        good, bad = _good_and_bad([row["scores"][name] for row in rows], of_items, "scores").T
        table[name] = credit(good, bad, settings["ties"], settings.get("seed", 0))
    if run.best_member not in table:
        raise other_format(of_items, f"scores of {run.best_member}")
    table["mean_peer"] = table[[name for name in table if re.fullmatch(r"peer_\d+", str(name))]].mean(axis=1)
    return table.assign(best_peer=table[run.best_member])


def _good_and_bad(found: Sequence[Any], path: Path, key: str) -> np.ndarray:
    """(N, 2) numbers of the good and the bad sentences: `found` as `key` in the N lines of the item file `path`."""
    try:
        return np.array(found, dtype=float).reshape(len(found), 2)
    except (TypeError, ValueError):
        raise other_format(path, f"two numbers, of the good and the bad sentence, as {key!r} of every line") from None


def items_of(
    runs: Sequence[Run], scores: pd.DataFrame, suite: str, protocol: str
) -> dict[tuple[Any, ...], dict[int, pd.DataFrame]]:
    """``{(setting, peers, arm): {seed: items_table}}`` of the runs that `scores` (`results.scores_table`) has under one
    suite and protocol."""
    of_one = scores[(scores["suite"] == suite) & (scores["protocol"] == protocol)]
    settings = dict(zip(of_one["run"], of_one["setting"], strict=True))  # which also tell evaluations apart
    found: dict[tuple[Any, ...], dict[int, pd.DataFrame]] = {}
    for run in runs:
        items = items_table(run, suite, protocol) if run.folder.name in settings else None
        if items is not None:
            found.setdefault((settings[run.folder.name], run.peers, run.arm), {})[run.seed] = items
    return found


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
    seeds, and is drawn or not for all of them at once, and so are the copies of a pair, as EWoK has one of each with
    its sentences swapped. The statistic is the macro mean over paradigms. It says how much the choice of items matters
    for these very runs, nothing about other seeds.
    """
    if items.empty:
        return np.nan, np.nan
    means = []
    over_seeds = items.assign(difference=items["difference"].astype(float)).groupby(ITEM)["difference"].mean()
    copies = over_seeds.groupby(["paradigm", "pair_id"]).agg(["sum", "size"])
    for _, pairs in copies.groupby("paradigm"):
        # Drawing n pairs with replacement is a multinomial draw over their few distinct values.
        levels, counts = np.unique(pairs.to_numpy(dtype=float), axis=0, return_counts=True)
        draws = rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples)  # (resamples, levels)
        means.append((draws @ levels[:, 0]) / (draws @ levels[:, 1]))  # (resamples,)
    low, high = np.quantile(100 * np.mean(means, axis=0), [0.025, 0.975])
    return float(low), float(high)


def with_item_intervals(
    table: pd.DataFrame, rows: pd.DataFrame, by: Sequence[str], runs: Sequence[Run]
) -> pd.DataFrame:
    """`table`, one row a group of `by`, with item_low, item_high and `interval`, which says what its intervals are.

    A row of one seed gets the percentile interval of resampled items (within each paradigm): how much the choice of
    items matters for that very run. It says nothing about other seeds, and `interval` says so. `rows`: those that
    the groups were made of, with the name of their run; a `phenomenon` in `by` restricts the items to its paradigms.
    """
    rng = np.random.default_rng(0)
    named = {run.folder.name: run for run in runs}
    found: dict[tuple[str, str, str], pd.DataFrame | None] = {}
    alone = {
        key: group for key, group in rows.groupby(list(by), dropna=False, sort=False) if len(set(group["run"])) == 1
    }
    bounds, told = [], []
    for row in table.to_dict("records"):
        bounds.append((np.nan, np.nan))
        told.append(what_interval(row))
        group = alone.get(tuple(row[name] for name in by))
        if row["n_seeds"] > 1 or group is None or group["run"].iloc[0] not in named:
            continue
        place = (str(group["run"].iloc[0]), str(row["suite"]), str(row["protocol"]))
        if place not in found:
            found[place] = items_table(named[place[0]], *place[1:])
        items = found[place]
        # One peer of several that is shown as a single one is the first
        member = row["member"] if row["peers"] == named[place[0]].peers else "peer_1"
        if items is None or member not in items:
            continue
        if "phenomenon" in by:
            items = items[items["paradigm"].isin(set(group["paradigm"]))]
        bounds[-1] = item_bootstrap(items[ITEM].assign(seed=0, difference=items[member]), rng)
        told[-1] = f"items of seed {row['seeds']} resampled; nothing about other seeds"
    extra = pd.DataFrame(bounds, columns=["item_low", "item_high"], index=table.index, dtype=float)
    return pd.concat([table, extra, pd.Series(told, name="interval", index=table.index, dtype=object)], axis=1)


def what_interval(row: Mapping[str, Any]) -> str:
    """What the interval of a row of `results.over_seeds` is, or why there is none."""
    if pd.notna(row["low"]):
        return OVER_SEEDS
    return NO_SPREAD if row["n_seeds"] > 1 else NONE
