"""How much peers differ while they train, by arm."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from ..errors import UserError
from ..runs import ARMS
from .style import ARM_COLOURS, ARM_MARKERS, COLUMN, finish, new_axes, styled, tokens_axis


@styled
def plot_diversity(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Diversity over tokens, of `diversity.diversity_by_step` for one number of peers and setting: the mean over seeds
    of each arm and the span of the seeds. Raises UserError where the table has none or more than one of these."""
    for column in ("peers", "setting"):
        values = list(table[column].unique()) if len(table) else []
        if len(values) != 1:
            found = f"the table has {len(values)} values of {column!r} ({values})"
            raise UserError(f"{found}; expected one; filter it first")
    ax = new_axes(ax, COLUMN, 2.4)
    shown = table[table["quantity"] == "diversity"]
    for arm in [name for name in ARMS if name in set(shown["arm"])]:
        rows = shown[shown["arm"] == arm].groupby("step")  # by step: seeds differ a little in their tokens
        value = rows.agg(tokens=("tokens", "mean"), mean=("value", "mean"), low=("value", "min"), high=("value", "max"))
        look = {"color": ARM_COLOURS[arm], "marker": ARM_MARKERS[arm], "markersize": 3}
        ax.plot(value["tokens"], value["mean"], label=arm, **look)
        ax.fill_between(value["tokens"], value["low"], value["high"], color=ARM_COLOURS[arm], alpha=0.18, linewidth=0)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("diversity (nats / scored token)")
    tokens_axis(ax)
    return finish(ax, legend=2)
