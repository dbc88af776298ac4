"""Accuracy by which sentence of a pair has more tokens.

A score is a sum over tokens, so each token more costs, and the flatter a model's distribution the more, up to log V.
The small models of docs/log.md 39 prefer the shorter sentence in three quarters of the pairs of unlike length and more;
pairs of one length are free of that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from . import results
from .evaluate.suites import Pair
from .items import ITEM, items_table
from .readable import MEMBERS
from .run_files import Run

TOKENS = ("fewer", "as many", "more")  # of the good sentence, beside the bad one


def token_counts(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """One row a pair: `ITEM`, and `tokens`, one of `TOKENS`; those of a context before a sentence are not counted."""
    sides = [[pair.good for pair in pairs], [pair.bad for pair in pairs]]
    good, bad = ([len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]] for texts in sides)
    table = pd.DataFrame({"paradigm": [pair.paradigm for pair in pairs], "pair_id": [pair.pair_id for pair in pairs]})
    table["copy"] = table.groupby(["paradigm", "pair_id"]).cumcount()
    return table.assign(tokens=[TOKENS[1 + sign] for sign in np.sign(np.subtract(good, bad))])


def by_length(runs: Sequence[Run], suite: str, protocol: str, counts: pd.DataFrame) -> pd.DataFrame:
    """T4_lengths: accuracy (percent of the pairs, not a mean over paradigms) of the main setting's runs over seeds.

    counts: `token_counts` of the suite's pairs. Columns: setting, corpus, suite, protocol, arm, peers, member, tokens,
    pairs (their number), mean, low, high (95 % t-interval over seeds), n_seeds, seeds, values, note.
    """
    rows = []
    for run in runs:
        items = None if run.setting else items_table(run, suite, protocol)
        if items is None:
            continue
        scored = items.merge(counts, on=ITEM)
        for tokens, own in scored.groupby("tokens"):
            place = {**run.shared, "suite": suite, "protocol": protocol, "tokens": tokens, "pairs": len(own)}
            members = [member for member in MEMBERS if member in own]
            rows += [{**place, "member": member, "score": 100 * own[member].mean()} for member in members]
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows).sort_values("tokens", key=lambda of: of.map(TOKENS.index), kind="stable")
    by = ["setting", "corpus", "suite", "protocol", "arm", "peers", "member", "tokens", "pairs"]
    return results.with_notes(results.over_seeds(table, by), table, by)
