"""What several figures draw, and what they ask of a table.

Every arm has one colour and one marker in all figures; peers go from dark to light in their order. An error bar is
a 95 % t-interval over seeds unless the axis says otherwise.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from .. import results
from ..errors import UserError
from ..runs import ARMS
from .style import ARM_COLOURS, ARM_MARKERS


def arms_of(table: pd.DataFrame) -> list[str]:
    """The arms in a table, from control to claim."""
    return [arm for arm in ARMS if (table["arm"] == arm).any()]


def band(ax: Axes, rows: pd.DataFrame, colour: str, **line: Any) -> None:
    """Mean of `value` over seeds against tokens, and the span of the seeds."""
    if rows.empty:
        return
    # By step: runs of other seeds see slightly other numbers of tokens at the same step.
    value = rows.groupby("step").agg(
        tokens=("tokens", "mean"), mean=("value", "mean"), low=("value", "min"), high=("value", "max")
    )
    point = {"marker": "."} if len(value) == 1 else {}  # a line of one point cannot be seen
    ax.plot(value["tokens"], value["mean"], color=colour, **{"markersize": 4, **point, **line})
    if rows["seed"].nunique() > 1:
        ax.fill_between(value["tokens"], value["low"], value["high"], color=colour, alpha=0.18, linewidth=0)


def mean_and_seeds(
    ax: Axes,
    rows: pd.DataFrame,
    place: str,
    arm: str,
    offset: float = 0.0,
    apart: float = 0.0,
    horizontal: bool = False,
    line: bool = False,
) -> None:
    """Means with their interval over seeds, and the single seeds as small open marks.

    Arms stand a little apart so that their bars can be told apart: by `offset` along an axis of names, by `apart`
    points of print along one of numbers, which are those plotted all the same.
    """
    means = results.over_seeds(rows.assign(run=rows.get("run", "")), [place])
    colour, marker = ARM_COLOURS[arm], ARM_MARKERS[arm]
    at = means[place] + offset
    error = [means["mean"] - means["low"], means["high"] - means["mean"]]
    look: dict[str, Any] = {
        "fmt": f"{marker}-" if line else marker, "color": colour, "markersize": 4.5, "elinewidth": 1.0, "capsize": 2.0,
        "label": arm,
    }  # fmt: skip
    seeds: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "", "markersize": 2.6, "fillstyle": "none",
                             "markeredgewidth": 0.6, "alpha": 0.8}  # fmt: skip
    if apart:
        look["transform"] = seeds["transform"] = ax.transData + ScaledTranslation(apart / 72, 0, _inches(ax))
        ends = means[["low", "high"]].fillna({"low": means["mean"], "high": means["mean"]}).to_numpy()
        ax.update_datalim([*zip(at, ends[:, 0], strict=True), *zip(at, ends[:, 1], strict=True)])  # not done for these
    if horizontal:
        ax.errorbar(means["mean"], at, xerr=error, **look)
        ax.plot(rows["score"], rows[place] + offset, **seeds)
    else:
        ax.errorbar(at, means["mean"], yerr=error, **look)
        ax.plot(rows[place] + offset, rows["score"], **seeds)


def _inches(ax: Axes) -> Any:
    return ax.get_figure(root=True).dpi_scale_trans  # type: ignore[union-attr]


def expect_one(table: pd.DataFrame, *columns: str) -> None:
    """Raises UserError where one of `columns` has not exactly one value in `table`: a picture would mix them."""
    for column in columns:
        values = list(table[column].unique()) if len(table) else []
        if len(values) != 1:
            found = f"the table has {len(values)} values of {column!r} ({values})"
            raise UserError(f"{found}; expected one; filter it first")
