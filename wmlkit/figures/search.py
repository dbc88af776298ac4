"""The student search: the shapes and those that were found (F5)."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from .style import COLOURS, COLUMN, finish, log_if_wide, new_axes, sequence, styled


@styled
def plot_search(grid: pd.DataFrame, found: pd.DataFrame | None = None, ax: Axes | None = None) -> Axes:
    """F5: parameters of every shape in `grid` (num_layers, hidden_size, parameters) against hidden size.

    `found` is T3: its targets are dotted lines, its students crosses.
    """
    ax = new_axes(ax, COLUMN, 2.7)
    layers = sorted(grid["num_layers"].unique())
    widths = {width: place for place, width in enumerate(sorted(grid["hidden_size"].unique()))}
    # Sorted by depth, so that the deepest is the darkest.
    for colour, depth in zip(reversed(sequence(len(layers))), layers, strict=True):
        line = grid[grid["num_layers"] == depth].groupby("hidden_size")["parameters"].mean()
        ax.plot([widths[width] for width in line.index], line / 1e6, marker=".", color=colour, label=f"{depth} layers")
    if found is not None:
        for peer, target in enumerate(found["target"].unique(), start=1):
            ax.axhline(target / 1e6, color="black", linewidth=0.7, linestyle=":", label="targets")
            if peer <= 5:  # further ones stand too close to label
                ax.annotate(
                    f"N/{peer + 1}", (1.01, target / 1e6), xycoords=ax.get_yaxis_transform(), va="center", fontsize=7
                )
        places = found["hidden_size"].map(widths)
        ax.plot(places, found["parameters"] / 1e6, "x", color="black", markersize=6, markeredgewidth=1.4, label="found")
    ax.set_xticks(list(widths.values()), [str(width) for width in widths])
    log_if_wide(ax, "y", grid["parameters"])
    ax.set_xlabel("hidden size")
    ax.set_ylabel("parameters (millions)")
    return finish(ax, legend=3)


@styled
def plot_pareto(table: pd.DataFrame, unit: str = "step (ms)", ax: Axes | None = None) -> Axes:
    """F5: every shape's `step_ms` against its parameters; a line joins those that the boolean column `pareto` marks."""
    ax = new_axes(ax, COLUMN, 2.5)
    ax.plot(table["parameters"] / 1e6, table["step_ms"], "o", color="0.65", markersize=3, label="shapes")
    front = table[table["pareto"]].sort_values("parameters")
    ax.plot(
        front["parameters"] / 1e6, front["step_ms"], marker="D", markersize=3.5, color=COLOURS[3], label="Pareto front"
    )
    log_if_wide(ax, "x", table["parameters"])
    log_if_wide(ax, "y", table["step_ms"])
    ax.set_xlabel("parameters (millions)")
    ax.set_ylabel(unit)
    return finish(ax, legend=2)
