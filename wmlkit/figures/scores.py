"""Scores by number of peers (F4), phenomenon (F6), protocol (F7) and words (F8)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .. import results
from .marks import arms_of, expect_one, mean_and_seeds
from .style import ARM_COLOURS, COLUMN, TEXT, finish, new_axes, short_number, styled


@styled
def plot_scores_by_peers(scores: pd.DataFrame, member: str = "best_peer", ax: Axes | None = None) -> Axes:
    """F4: `results.scores_table` of one suite and protocol, score of `member` against the number of peers.

    Where no run has one peer, its place shows the first peer of `independent` (`results.with_single_peer`). A member
    `teacher`, where there is one, is a horizontal line.
    """
    expect_one(scores, "suite", "protocol")
    ax = new_axes(ax, COLUMN, 2.5)
    shown = results.with_mean_peer(results.with_single_peer(scores))
    teacher = shown[shown["member"] == "teacher"]
    shown = shown[shown["member"] == member]
    places = {peers: place for place, peers in enumerate(sorted(shown["peers"].unique()))}
    arms = arms_of(shown)
    side_by_side = {peers: [arm for arm in arms if arm in set(rows["arm"])] for peers, rows in shown.groupby("peers")}
    for arm in arms:
        of_arm = shown[shown["arm"] == arm]
        beside = [side_by_side[peers] for peers in of_arm["peers"]]
        offset = [0.16 * (there.index(arm) - (len(there) - 1) / 2) for there in beside]
        mean_and_seeds(ax, of_arm.assign(place=of_arm["peers"].map(places) + offset), "place", arm)
    if len(teacher):
        of_seeds = teacher.groupby("seed")["score"].mean()  # students of several numbers share a seed's teacher
        look: dict[str, Any] = {"color": ARM_COLOURS["distill"], "linestyle": "--", "linewidth": 0.9}
        # No `axhline`: it is measured, and such lines are left out of a figure's numbers
        ax.plot([-0.5, len(places) - 0.5], [of_seeds.mean()] * 2, label="teacher", **look)
    ax.set_xticks(list(places.values()), [str(peers) for peers in places])
    ax.set_xlim(-0.5, len(places) - 0.5)
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("number of peers")
    ax.set_ylabel(f"{member.replace('_', ' ')}: accuracy (%)")
    return finish(ax, legend=2)


@styled
def plot_phenomena(paradigms: pd.DataFrame, by: str = "phenomenon", ax: Axes | None = None) -> Axes:
    """F6: heat map of `results.paradigm_table` of one arm, number of peers, suite and protocol: `by` x member.

    `by` is ``phenomenon`` or ``paradigm``; cells are means over paradigms, then seeds.
    """
    expect_one(paradigms, "arm", "peers", "setting", "suite", "protocol")
    shown = paradigms[paradigms["member"].str.fullmatch(r"peer_\d+|ensemble|teacher")]
    means = (
        shown.groupby([by, "member", "seed"], sort=False)["accuracy"].mean().groupby([by, "member"], sort=False).mean()
    )
    table = means.unstack("member").sort_index()
    table = table[sorted(table.columns, key=lambda name: (not name.startswith("peer_"), len(name), name))]
    width = min(TEXT, 2.1 + 0.02 * max(map(len, table.index)) + 0.48 * len(table.columns))
    ax = new_axes(ax, width, max(1.25, 0.75 + 0.155 * len(table)))  # the words beside the colours want their room
    image = ax.imshow(table, cmap=sns.color_palette("vlag_r", as_cmap=True), vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(*table.shape):
        value = table.iat[row, column]
        if not np.isnan(value):
            colour = "black" if 18 < value < 82 else "white"
            ax.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    ax.axvline(sum(name.startswith("peer_") for name in table.columns) - 0.5, color="white", linewidth=2)
    ax.set_xticks(range(table.shape[1]), [name.replace("_", " ") for name in table.columns], rotation=30, ha="right")
    ax.set_yticks(range(len(table)), [str(name).replace("_", " ") for name in table.index], parse_math=False)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    bar = ax.figure.colorbar(image, ax=ax, shrink=min(1.0, 12 / len(table)), pad=0.02)
    bar.set_label("accuracy (%),\n50 is chance")
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    return finish(ax)


@styled
def plot_protocols(scores: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """F7: `evaluations.protocol_table` of one suite: the score of the same best peers under every protocol.

    Black marks are what the protocol says of a perfect scorer, where the table has it: on these pairs, and on each
    pair followed by its swapped copy.
    """
    expect_one(scores, "suite")
    perfect = {name: scores[scores["member"] == name] for name in ("perfect_scorer", "perfect_swapped")}
    shown = scores[scores["member"] == "best_peer"]
    protocols = sorted(shown["protocol"].unique(), reverse=True)
    arms = arms_of(shown)
    ax = new_axes(ax, 1.4 * COLUMN, 1.15 + 0.14 * len(protocols) * max(len(arms), 2))
    for number, arm in enumerate(arms):
        offset = -0.7 * (number - (len(arms) - 1) / 2) / max(len(arms), 2)
        of_arm = shown[shown["arm"] == arm].assign(place=lambda rows: rows["protocol"].map(protocols.index) + 0.0)
        mean_and_seeds(ax, of_arm, "place", arm, offset, horizontal=True)
    looks = {"perfect_scorer": ("*", "perfect scorer", 0.45), "perfect_swapped": ("x", "perfect, swapped copies", 0.25)}
    for name, rows in perfect.items():
        means = rows.groupby("protocol")["score"].mean()
        if len(means):
            at = [protocols.index(protocol) + looks[name][2] for protocol in means.index]
            ax.plot(means, at, looks[name][0], color="black", markersize=5, linestyle="", label=looks[name][1])
    ax.axvline(50, color="black", linewidth=0.8, linestyle=":", label="chance")
    ax.set_yticks(range(len(protocols)), protocols)
    ax.set_ylim(-0.6, len(protocols) - 0.3)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("best peer: accuracy (%)")
    return finish(ax, legend=2)


@styled
def plot_accuracy_by_words(table: pd.DataFrame, member: str = "best_peer", ax: Axes | None = None) -> Axes:
    """F8: `evaluations.curve_table` of one suite, protocol and number of peers: `member` against words seen."""
    expect_one(table, "suite", "protocol", "peers")
    ax = new_axes(ax, COLUMN, 2.5)
    shown = results.with_mean_peer(table)
    shown = shown[shown["member"] == member]
    shown = shown.drop_duplicates(["run", "step"], keep="last")  # a step may pass two points, the last one among them
    # A point is due at the same number of words in every run, and passed a few words later.
    due = shown["target_words"].fillna(-1)
    shown = shown.assign(point=shown.groupby(due)["words"].transform("mean"))
    wide = shown["words"].max() > 10 * shown["words"].min()
    arms = arms_of(shown)
    for number, arm in enumerate(arms):
        apart = 3.2 * (number - (len(arms) - 1) / 2)
        mean_and_seeds(ax, shown[shown["arm"] == arm], "point", arm, apart=apart, line=True)
    if wide:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(FuncFormatter(short_number))
    if ax.get_ylim()[0] <= 55:
        ax.axhline(50, color="black", linewidth=0.8, linestyle=":", label="chance")
    ax.set_xlabel("words seen")
    ax.set_ylabel(f"{member.replace('_', ' ')}: accuracy (%)")
    return finish(ax, legend=3)
