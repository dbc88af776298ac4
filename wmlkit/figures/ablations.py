"""The ablations as a picture: what each change does to a score, against the run that changes nothing."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..errors import UserError
from .style import ARM_COLOURS, COLUMN, finish, new_axes, styled


@styled
def plot_ablations(table: pd.DataFrame, suite: str, ax: Axes | None = None) -> Axes:
    """Differences from the base of T8 (`ablation_table.ablation_table`) for the mean peer on one suite, a line each.

    Diamonds: mean over seeds; bars: its 95 % t-interval over seeds; grey dots: the seeds. Filled where the interval
    leaves out 0. Raises UserError where there is no such row.
    """
    rows = table[(table["suite"] == suite) & (table["member"] == "mean_peer") & table["difference"].notna()]
    if rows.empty:
        raise UserError(f"the ablations have no mean_peer on {suite}; expected a suite of T8; choose another")
    rows = rows[rows["protocol"].fillna("") == rows["protocol"].fillna("").iloc[0]].iloc[::-1].reset_index(drop=True)
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
    ax.set_yticks(range(len(rows)), rows["ablation"])
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ax.grid(axis="y", visible=False)
    what = "dev loss (nats per scored token)" if suite == "dev_ce" else "accuracy (points)"
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel(f"{what},\nminus the base's")
    return finish(ax)
