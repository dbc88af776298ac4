"""The ablations as pictures: what each change does to a score, against the base; what the peers' weights do."""

from __future__ import annotations

import re

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..errors import UserError
from .style import ARM_COLOURS, ARM_MARKERS, COLUMN, finish, new_axes, styled

OF_WEIGHTS = {"arm", "peer_weights", "outer.lr"}  # what changes of T8 may name that differ in the peers' weights alone


@styled
def plot_ablations(table: pd.DataFrame, suite: str, ax: Axes | None = None) -> Axes:
    """Differences from the base of T8 (`ablation_table.ablation_table`) for the mean peer on one suite, a line each.

    Diamonds: mean over seeds; bars: its 95 % t-interval over seeds; grey dots: the seeds. Filled where the interval
    leaves out 0. Raises UserError where there is no such row, or where some are under another protocol than others.
    """
    rows = table[(table["suite"] == suite) & (table["member"] == "mean_peer") & table["difference"].notna()]
    if rows.empty:
        raise UserError(f"the ablations have no mean_peer on {suite}; expected a suite of T8; choose another")
    if len(several := rows["protocol"].fillna("").unique()) > 1:
        raise UserError(
            f"the ablations were scored on {suite} under {' and '.join(several)}; expected one protocol; keep the rows "
            "of one, as `ablation_table.under` does"
        )
    rows = rows.iloc[::-1].reset_index(drop=True)
    ax = new_axes(ax, COLUMN, 1.05 + 0.19 * len(rows))
    ax.axvline(0, color="0.4", linewidth=0.8, zorder=1)
    colour = ARM_COLOURS["wml"]
    for place, row in rows.iterrows():
        seeds = [float(value) for value in str(row["differences"]).split()]
        ax.plot(seeds, [place] * len(seeds), "o", color="0.65", markersize=2.5, zorder=2)
        if pd.notna(row["difference_low"]):
            ax.plot([row["difference_low"], row["difference_high"]], [place, place], color=colour, zorder=3)
        sure = row["difference_low"] > 0 or row["difference_high"] < 0
        ax.plot(row["difference"], place, "D", color=colour, mfc=colour if sure else "white", markersize=4.5, zorder=4)
    ax.set_yticks(range(len(rows)), rows["ablation"], parse_math=False)
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ax.grid(axis="y", visible=False)
    what = "dev loss (nats per scored token)" if suite == "dev_ce" else "accuracy (points)"
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel(f"{what},\nminus the base's")
    return finish(ax)


def of_weights(table: pd.DataFrame) -> pd.DataFrame:
    """The dev losses of T8 whose runs have two peers and differ from one another in their weights alone: given (`dml`),
    learned (`wml`), or none (`independent`, equal in the ensemble); `weight` is peer 1's at the end."""
    named = table["ablation"].map(lambda change: set(re.findall(r"([a-z_.]+) = ", change)))
    rows = table[(table["suite"] == "dev_ce") & (table["peers"] == 2) & (table["arm"] != "distill")]
    rows = rows[[names <= OF_WEIGHTS for names in named[rows.index]]]
    return rows.assign(weight=[float(weights.split()[0]) for weights in rows["peer_weights"]])


@styled
def plot_given_weights(table: pd.DataFrame, member: str, ax: Axes | None = None) -> Axes:
    """Dev loss of a member, minus the base's, against peer 1's weight at the end, from T8 (`of_weights`): what any
    weights could give, and where the learned ones are.

    Given weights are joined; bars: 95 % t-interval over seeds, paired with the base's; the dotted line: peers that
    train alone. Raises UserError where there are fewer than three given weights.
    """
    rows = of_weights(table)
    rows = rows[rows["member"] == member].sort_values("weight")
    rows["difference"] = rows["difference"].where(rows["ablation"] != "base", 0.0)
    if (given := (rows["arm"] == "dml").sum()) < 3:
        raise UserError(f"T8 has {given} weights that two peers were given; expected three or more; add some to T8")
    ax = new_axes(ax, COLUMN, 2.4)
    for arm in ("dml", "wml"):
        own = rows[rows["arm"] == arm]
        error = [own["difference"] - own["difference_low"], own["difference_high"] - own["difference"]]
        mark = ARM_MARKERS[arm] + "-" * (arm == "dml")
        look = {"color": ARM_COLOURS[arm], "markersize": 4, "elinewidth": 0.8, "capsize": 2.0, "label": arm}
        ax.errorbar(own["weight"], own["difference"], yerr=error, fmt=mark, **look)
    for level in rows.loc[rows["arm"] == "independent", "difference"]:
        ax.axhline(level, color=ARM_COLOURS["independent"], linestyle=":", label="independent")
    ax.set_xlim(0, 1)
    ax.set_xlabel("weight of peer 1, the larger")
    ax.set_ylabel(f"dev loss of the {member.replace('_', ' ')}, minus\nthe base's (nats per scored token)")
    return finish(ax, legend=3)
