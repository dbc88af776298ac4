"""The pictures of notebook 08."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from .search import plot_pareto
from .style import COLOURS, panels, sequence, styled, tokens_axis
from .training import member_name, plot_peer_weights

DOTS = 110  # an inch, of the pictures that move


@styled
def effect_figure(edges: pd.DataFrame) -> Figure:
    """`playground.edges`: one peer's weight from 0 to 1, the others in proportion; left the dev loss of the ensemble,
    right its accuracy."""
    figure, axes = panels(2, height=2.8)
    colours = sequence(edges["peer"].nunique())
    for ax, column, label in zip(
        axes, ("dev_ce", "accuracy"), ("dev loss of the ensemble (nats)", "pairs right (%)"), strict=True
    ):
        for (peer, rows), colour in zip(edges.groupby("peer"), colours, strict=True):
            ax.plot(rows["weight"], rows[column], color=colour, label=f"peer {peer}")
        ax.plot([], [], color="black", linewidth=0.8, linestyle=":", marker="o", markersize=4, label="weights tried")
        low, high = edges[column].min(), edges[column].max()
        room = 0.1 * (high - low) or 0.5
        ax.set_ylim(low - room, high + room)
        ax.set_xlabel("weight of the peer")
        ax.set_ylabel(label)
        ax.tick_params(labelsize=7)
    # Of the figure: as wide as both panels, it would leave neither room if it were one panel's
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=5)
    return figure


@styled
def effect_picture(edges: pd.DataFrame) -> Callable[[np.ndarray, float, float], bytes]:
    """Draw `effect_figure` once; the returned function marks (weights, dev loss, accuracy) in it, as PNG.

    Marks: the weights tried, one a peer. Only the marks are drawn anew, so that a slider is answered at once.
    """
    figure = effect_figure(edges)
    figure.set_dpi(DOTS)
    axes, colours = figure.axes, sequence(edges["peer"].nunique())
    levels = [ax.axhline(0, color="black", linewidth=0.8, linestyle=":", animated=True) for ax in axes]
    look: dict[str, Any] = {"marker": "o", "markeredgecolor": "black", "markersize": 6, "animated": True}
    marks = [[ax.plot([], [], color=colour, **look)[0] for colour in colours] for ax in axes]
    canvas = FigureCanvasAgg(figure)
    still: list[Any] = []

    def move(weights: np.ndarray, loss: float, accuracy: float) -> bytes:
        for ax, level, own, value in zip(axes, levels, marks, (loss, accuracy), strict=True):
            low, high = ax.get_ylim()
            if not low <= value <= high:  # inside the simplex may lie what no line reaches
                ax.set_ylim(min(low, value), max(high, value))
                still.clear()
            level.set_ydata([value, value])
            for mark, weight in zip(own, weights, strict=True):
                mark.set_data([weight], [value])
        if not still:
            canvas.draw()
            still.append(canvas.copy_from_bbox(figure.bbox))
        canvas.restore_region(still[0])
        for ax, level, own in zip(axes, levels, marks, strict=True):
            for artist in (level, *own):
                ax.draw_artist(artist)
        buffer = io.BytesIO()
        imsave(buffer, canvas.buffer_rgba(), format="png", pil_kwargs={"compress_level": 1})
        return buffer.getvalue()

    return move


@styled
def search_picture(grid: pd.DataFrame, target: float, nearest: pd.DataFrame, max_step_ms: float) -> Figure:
    """All shapes, parameters against the time of a step; the target, the limit and the nearest shape marked."""
    figure, ax = panels(1, width=4.6, height=2.9)
    plot_pareto(grid, unit="time of a step (ms)", ax=ax)
    ax.axvline(target / 1e6, color="black", linewidth=0.8, linestyle=":", label="target")
    ax.axhline(max_step_ms, color="0.4", linewidth=0.8, linestyle="--", label="longest step")
    best = nearest.iloc[0]
    ax.plot(best["parameters"] / 1e6, best["step_ms"], "x", color="black", markersize=8, markeredgewidth=1.8,
            label="nearest shape")  # fmt: skip
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.2)
    return figure


@styled
def replay_picture(metrics: pd.DataFrame, step: int, now: pd.DataFrame) -> Figure:
    """Peer weights up to `step` of `metrics` (as for F3), and as bars those of `playground.weights_at` that step."""
    figure, (left, right) = panels(2, height=2.6, width_ratios=(2, 1))
    plot_peer_weights(metrics[metrics["step"] <= step], ax=left)
    weights = metrics[metrics["quantity"] == "peer_weights"]
    left.set_xlim(0, 1.02 * weights["tokens"].max())
    room = 0.05 * (weights["value"].max() - weights["value"].min()) or 0.05
    left.set_ylim(weights["value"].min() - room, weights["value"].max() + room)
    tokens_axis(left)
    places = np.arange(len(now))
    right.bar(places, now["peer_weights"], color=sequence(len(now)), width=0.7)
    right.axhline(1 / len(now), color="black", linewidth=0.8, linestyle=":")
    for place, (weight, change) in enumerate(zip(now["peer_weights"], now["change"], strict=True)):
        if change:
            arrow = "\N{UPWARDS ARROW}" if change > 0 else "\N{DOWNWARDS ARROW}"
            right.text(place, weight, arrow, ha="center", va="bottom", fontsize=9, color=COLOURS[3])
    right.set_xticks(places, [member_name(peer, int(metrics["peers"].iloc[0])) for peer in now.index])
    right.set_ylim(0, 1.15 * weights["value"].max())
    right.set_ylabel("peer weight")
    right.set_title(f"step {step}", fontsize=8)
    right.tick_params(labelsize=7)
    right.grid(axis="x", visible=False)
    return figure
