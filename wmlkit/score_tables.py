"""T4's companions and T6 from the tidy tables of `wmlkit.evaluations`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from . import results
from .evaluate.protocols import PROTOCOLS
from .evaluate.suites import tuning_third
from .evaluations import BESIDE, RULES
from .items import what_interval
from .runs import MEMBERS

PERFECT = ("perfect_scorer", "perfect_swapped")
OVER_FINE_TUNING = "t-interval over fine-tuning seeds of one run; nothing about other runs"


def protocols(table: pd.DataFrame) -> pd.DataFrame:
    """T4_protocols: `evaluations.protocol_table` over seeds, one row a protocol, arm, number of peers and member.

    Ties count as in the protocol's own year. Columns: the shared ones, mean, low, high, n_seeds, seeds, values, ties,
    note, and the rules that the score was made by.
    """
    if table.empty:
        return table
    by = ["setting", "corpus", "suite", "protocol", "arm", "peers", "member", *RULES]
    shown = results.with_mean_peer(table)
    shown = shown[shown["member"].isin((*MEMBERS, *PERFECT))]
    found = results.with_means(results.over_seeds(shown, by), shown, by, ["ties"])
    found = results.with_notes(found, shown, by)
    return found.assign(tie_rule=[PROTOCOLS[name].ties for name in found["protocol"]])


def thirds(paradigms: pd.DataFrame) -> pd.DataFrame:
    """T4_thirds: the score of a whole suite on its tuning third, and on the two thirds that no recipe was chosen on.

    `paradigms`: `results.paradigm_table`. Columns: the shared ones, part, paradigms (their number), mean, low, high,
    n_seeds, seeds, values.
    """
    shown = paradigms[paradigms["suite"] == "blimp"] if len(paradigms) else paradigms
    if shown.empty:
        return shown
    chosen = tuning_third(zip(shown["phenomenon"], shown["paradigm"], strict=True))
    shown = shown.assign(part=np.where(shown["paradigm"].isin(chosen), "tuning", "untouched"))
    by = ["setting", "corpus", "suite", "protocol", "arm", "peers", "member", "part"]
    grouped = shown.groupby([*by, "run", "seed", "note"], sort=False, dropna=False)
    means = grouped.agg(score=("accuracy", "mean"), paradigms=("paradigm", "nunique")).reset_index()
    means = results.with_mean_peer(means)
    means = means[means["member"].isin(MEMBERS)]
    return results.with_notes(results.over_seeds(means, [*by, "paradigms"]), means, by)


def dev_text(table: pd.DataFrame) -> pd.DataFrame:
    """T4_text: bits a byte of dev text by domain over seeds, from `evaluations.text_table`.

    Columns: the shared ones, domain, objective, mean, low, high, n_seeds, seeds, values (all bits a byte), unigram,
    floor, and the means of nats_per_token and perplexity.
    """
    if table.empty:
        return table
    by = ["setting", "corpus", "arm", "peers", "member", "objective", "domain"]
    shown = table[table["member"].isin(MEMBERS)]
    found = results.over_seeds(shown, by, value="bits_per_byte")
    found = results.with_means(found, shown, by, [*BESIDE, "nats_per_token", "perplexity"])
    return results.with_notes(found, shown, by)


def glue(table: pd.DataFrame) -> pd.DataFrame:
    """T6: one row a (Super)GLUE task, from `evaluations.glue_table`; empty where nothing was fine-tuned.

    `accuracy` is the mean over fine-tuning seeds and runs whatever the metric, and the same as mean where that is it.
    With one run the interval is over its fine-tuning seeds, and `interval` says so. Skipped tasks close the table,
    with the reason.
    """
    if table.empty:
        return table
    by = ["setting", "corpus", "protocol", "arm", "peers", "member", "task"]
    rows = []
    shown = table[table["member"].isin(MEMBERS)]
    for _, group in shown.groupby(by, sort=False, dropna=False):
        described = results.over_seeds(group, by).iloc[0].to_dict()
        described["interval"] = what_interval(described)
        values = group["per_seed"].iloc[0]
        if described["n_seeds"] == 1 and len(values) > 1:
            described["low"], described["high"] = results.interval(values)
            spread = pd.notna(described["low"])
            described["interval"] = OVER_FINE_TUNING if spread else "none: all fine-tuning seeds gave the same"
        described["accuracy"] = group["accuracy"].mean()
        kept = ("metric", "n", "majority_class", "selected_by", "finetune_seeds", "limits", "note")
        more: Mapping[str, object] = {name: group[name].iloc[0] for name in kept}
        tuned = "; ".join(" ".join(f"{value:.4g}" for value in values) for values in group["per_seed"])
        rows.append({**described, **more, "finetune_values": tuned, "skipped": ""})
    skipped = table[table["member"] == ""].drop_duplicates(["protocol", "task", "reason"])
    for row in skipped.to_dict("records"):
        rows.append({**{name: row[name] for name in by}, "skipped": row["reason"], "note": ""})
    return pd.DataFrame(rows)
