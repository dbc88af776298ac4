"""What an ensemble of peers gains over them, which is how much they differ.

The ensemble averages logits, so at every position, whatever the true token is,

    log p_ens = sum_i w_i log p_i + D,    D = sum_i w_i KL(p_ens || p_i) >= 0
    CE(ensemble) = sum_i w_i CE_i - mean of D

exactly (Heskes 1998, Neural Computation 10(6); Wood et al. 2023, arXiv 2301.03962). D is the peers' diversity: it
follows from losses that every run measures, and nothing has to be predicted again. Mutual learning lowers the first
term and, since it draws the p_i together, the second one too.

D depends on the weights as well: with all of them on one peer it is 0, however much the peers differ. So arms are
compared with equal weights in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from . import results
from .run_files import Run
from .runs import metric_lines

CONTROL = "independent"  # what the other arms are compared with
UNIFORM = "uniform_diversity"  # D at equal weights
_OF_ONE = ["setting", "corpus", "peers", "quantity"]


def decomposed(ce: Sequence[float], ensemble_ce: float, weights: Sequence[float]) -> dict[str, float]:
    """Nats a scored token: {"weighted_mean_peer": sum_i w_i CE_i, "ensemble": CE of the ensemble, "diversity": their
    difference}.

    weights: of the peers, and perhaps of a frozen teacher behind them, who is no member: scaled to sum to 1.

    >>> decomposed([3.0, 4.0], 3.25, [0.25, 0.25, 0.5])
    {'weighted_mean_peer': 3.5, 'ensemble': 3.25, 'diversity': 0.25}
    """
    own = weights[: len(ce)]
    mean = sum(w * value for w, value in zip(own, ce, strict=True)) / sum(own)
    return {"weighted_mean_peer": mean, "ensemble": ensemble_ce, "diversity": mean - ensemble_ce}


def diversity_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a finished run of several peers and a quantity, on dev text at the end: the columns that all tables
    share, quantity, value. The quantities are those of `decomposed`, with the run's weights, and `UNIFORM` where the
    loss of the ensemble with equal weights was measured (`evaluate.ensembles`)."""
    rows = []
    for run in runs:
        if run.peers > 1:
            ce = run.done["dev_ce"]
            found = decomposed(ce, run.done["dev_ce_ensemble"], run.done["peer_weights"])
            if "uniform_ensemble" in run.other_ensembles:
                alike = decomposed(ce, run.other_ensembles["uniform_ensemble"], [1.0] * len(ce))
                found[UNIFORM] = alike["diversity"]
            rows += [{**run.shared, "quantity": quantity, "value": value} for quantity, value in found.items()]
    return pd.DataFrame(rows)


def diversity_by_step(runs: Sequence[Run]) -> pd.DataFrame:
    """The same on the way, on the rows of dev text that training measures: step and tokens beside the columns above."""
    rows = []
    for run in runs:
        for line in metric_lines(run.folder):
            if run.peers > 1 and line.get("dev_ce"):
                found = decomposed(line["dev_ce"], line["dev_ce_ensemble"], line["peer_weights"])
                place = {**run.shared, "step": line["step"], "tokens": line["tokens"]}
                rows += [{**place, "quantity": quantity, "value": value} for quantity, value in found.items()]
    return pd.DataFrame(rows)


def diversity(table: pd.DataFrame) -> pd.DataFrame:
    """T4_diversity, from `diversity_table`: one row an arm, number of peers and quantity.

    Columns: setting, corpus, arm, peers, quantity, mean, low, high (95 % t-interval over seeds), n_seeds, seeds,
    values, and the same minus that of `independent`, seed by seed: difference, difference_low, difference_high,
    difference_n_seeds, differences, p (two-sided paired t-test), p_adjusted (Benjamini-Hochberg over the arms of a
    quantity), note.
    """
    if table.empty:
        return table
    by = [*_OF_ONE, "arm"]
    found = results.over_seeds(table, by, value="value")
    against = results.against(table, "arm", CONTROL, _OF_ONE, value="value")
    against["p_adjusted"] = against.groupby(_OF_ONE, dropna=False)["p"].transform(results.adjusted)
    found = results.noting_other_tokens(results.with_notes(found.merge(against, on=by, how="left"), table, by))
    first = ["setting", "corpus", "arm", "peers", "quantity"]
    return found[[*first, *(name for name in found if name not in first)]]
