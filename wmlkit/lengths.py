"""Accuracy by which sentence of a pair has more tokens.

Where a score is a sum over tokens, each token more costs, and the flatter a model's distribution the more, up to log V.
The small models of docs/log.md 39 prefer the shorter sentence in three quarters of the pairs of unlike length and more;
pairs of one length are free of that, and so is a score that is a mean (masked models under the protocols of 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from . import results
from .items import TOKENS, items_table
from .run_files import Run
from .runs import MEMBERS

GOOD_HAS = ("fewer", "as many", "more")  # tokens than the bad sentence


def by_length(runs: Sequence[Run], scores: pd.DataFrame) -> pd.DataFrame:
    """T4_lengths: accuracy (percent of the pairs, not a mean over paradigms) of the main setting's runs over seeds.

    scores: `results.scores_table`, whose suites and protocols are taken. Columns: setting, corpus, suite, protocol,
    arm, peers, member, tokens (of the good sentence), pairs (their number), mean, low, high (95 % t-interval over
    seeds), n_seeds, seeds, values, note. Evaluations without items, or whose items have no `TOKENS`, are left out.
    """
    rows = []
    for run in runs if len(scores) else ():
        own = scores[(scores["run"] == run.folder.name) & (scores["setting"] == "")]  # of run and evaluation
        for suite, protocol in own[["suite", "protocol"]].drop_duplicates().itertuples(index=False):
            items = items_table(run, suite, protocol)
            if items is None or TOKENS[0] not in items:
                continue
            good_has = np.array(GOOD_HAS)[1 + np.sign(items[TOKENS[0]] - items[TOKENS[1]])]
            for tokens, chosen in items.groupby(good_has):
                place = {**run.shared, "suite": suite, "protocol": protocol, "tokens": tokens, "pairs": len(chosen)}
                members = [member for member in MEMBERS if member in chosen]
                rows += [{**place, "member": member, "score": 100 * chosen[member].mean()} for member in members]
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows).sort_values("tokens", key=lambda of: of.map(GOOD_HAS.index), kind="stable")
    by = ["setting", "corpus", "suite", "protocol", "arm", "peers", "member", "tokens", "pairs"]
    return results.with_notes(results.over_seeds(table, by), table, by)
