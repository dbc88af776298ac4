"""Figures F2 to F8: each function draws one table into axes and returns them (F1: `method`).

Every arm has one colour and one marker in all figures; peers go from dark to light in their order. An error bar is
a 95 % t-interval over seeds unless the axis says otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from .. import results
from ..errors import UserError
from ..runs import ARMS
from .style import (
    ARM_COLOURS,
    ARM_MARKERS,
    COLOURS,
    COLUMN,
    TEXT,
    finish,
    log_if_wide,
    new_axes,
    sequence,
    short_number,
    styled,
    tokens_axis,
)  # fmt: skip


@styled
def plot_losses(
    metrics: pd.DataFrame, split: str = "both", entropy_floor: float | None = None, ax: Axes | None = None
) -> Axes:
    """F2: `results.metrics_table` of one arm, number of peers and setting.

    `split` is ``train`` (solid), ``dev`` (dashed, with marks) or ``both``; `entropy_floor` in nats per scored token.
    """
    _one_kind(metrics)
    ax = new_axes(ax, COLUMN, 2.7)
    looks = {"train": ("ce", {}), "dev": ("dev_ce", {"linestyle": "--", "marker": "."})}
    for peer, colour in enumerate(sequence(int(metrics["peers"].iloc[0])), start=1):
        for name in ("train", "dev") if split == "both" else (split,):
            quantity, look = looks[name]
            chosen = metrics[(metrics["peer"] == peer) & (metrics["quantity"] == quantity)]
            _band(ax, chosen, colour, label=f"peer {peer}, {name}" if split != "both" else f"peer {peer}", **look)
    if split != "train":
        ensemble = metrics[metrics["quantity"] == "dev_ce_ensemble"]
        _band(ax, ensemble, "black", linestyle="--", marker="x", label="ensemble")
    if split == "both":
        ax.plot([], [], color="0.4", label="train")
        ax.plot([], [], color="0.4", linestyle="--", marker=".", markersize=4, label="dev")
    if entropy_floor is not None:
        ax.axhline(entropy_floor, color="black", linewidth=0.8, linestyle=":", label="floor")
    ax.set_ylabel("loss (nats / scored token)")
    tokens_axis(ax)
    return finish(ax, legend=3 if split == "both" else 2)


@styled
def plot_study_losses(metrics: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Dev loss, mean over the peers, of every run in `results.metrics_table`: one thin line a run, coloured by arm."""
    ax = new_axes(ax, COLUMN, 2.4)
    dev = metrics[metrics["quantity"] == "dev_ce"]
    means = dev.groupby(["arm", "peers", "seed", "step"])[["tokens", "value"]].mean()
    for arm in [name for name in ARMS if name in set(dev["arm"])]:
        look: dict[str, Any] = {"color": ARM_COLOURS[arm], "marker": ARM_MARKERS[arm], "markersize": 3}
        for _, rows in means.loc[[arm]].groupby(level=["peers", "seed"]):
            ax.plot(rows["tokens"], rows["value"], linewidth=0.9, label=arm, **look)
    ax.set_ylabel("dev loss (nats / scored token)")
    tokens_axis(ax)
    return finish(ax, legend=2)


@styled
def plot_peer_weights(metrics: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """F3: peer weights over tokens, of `results.metrics_table` for one arm, number of peers and setting. A frozen
    teacher has one too."""
    ax = _over_tokens(metrics, "peer_weights", ax)
    ax.axhline(1 / _members(metrics, "peer_weights"), color="black", linewidth=0.8, linestyle=":", label="equal")
    ax.set_ylabel("peer weight")
    return finish(ax, legend=3)


@styled
def plot_hypergradients(metrics: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """F3: hypergradients over tokens; a positive one lowers the peer's weight."""
    ax = _over_tokens(metrics, "hypergradient", ax)
    ax.axhline(0, color="black", linewidth=0.8, linestyle=":", label="zero")
    ax.set_ylabel("hypergradient (nats)")
    return finish(ax, legend=3)


@styled
def plot_scores_by_peers(scores: pd.DataFrame, member: str = "best_peer", ax: Axes | None = None) -> Axes:
    """F4: `results.scores_table` of one suite and protocol, score of `member` against the number of peers.

    Where no run has one peer, its place shows the first peer of `independent` (`results.with_single_peer`). A member
    `teacher`, where there is one, is a horizontal line.
    """
    _one_evaluation(scores)
    ax = new_axes(ax, COLUMN, 2.5)
    shown = results.with_mean_peer(results.with_single_peer(scores))
    teacher = shown[shown["member"] == "teacher"]
    shown = shown[shown["member"] == member]
    places = {peers: place for place, peers in enumerate(sorted(shown["peers"].unique()))}
    arms = [arm for arm in ARMS if arm in set(shown["arm"])]
    for number, arm in enumerate(arms):
        offset = 0.16 * (number - (len(arms) - 1) / 2)
        of_arm = shown[shown["arm"] == arm].assign(place=lambda rows: rows["peers"].map(places) + 0.0)
        _mean_and_seeds(ax, of_arm, "place", arm, offset)
    if len(teacher):
        of_seeds = teacher.groupby("seed")["score"].mean()  # students of several numbers share a seed's teacher
        ax.axhline(of_seeds.mean(), color=ARM_COLOURS["distill"], linestyle="--", linewidth=0.9, label="teacher")
    ax.set_xticks(list(places.values()), [str(peers) for peers in places])
    ax.set_xlim(-0.5, len(places) - 0.5)
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("number of peers")
    ax.set_ylabel(f"{member.replace('_', ' ')}: accuracy (%)")
    return finish(ax, legend=2)


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
def plot_pareto(table: pd.DataFrame, cost: str = "step_ms", unit: str = "step (ms)", ax: Axes | None = None) -> Axes:
    """F5: every shape's `cost` against its parameters; a line joins those that the boolean column `pareto` marks."""
    ax = new_axes(ax, COLUMN, 2.5)
    ax.plot(table["parameters"] / 1e6, table[cost], "o", color="0.65", markersize=3, label="shapes")
    front = table[table["pareto"]].sort_values("parameters")
    ax.plot(front["parameters"] / 1e6, front[cost], marker="D", markersize=3.5, color=COLOURS[3], label="Pareto front")
    log_if_wide(ax, "x", table["parameters"])
    log_if_wide(ax, "y", table[cost])
    ax.set_xlabel("parameters (millions)")
    ax.set_ylabel(unit)
    return finish(ax, legend=2)


@styled
def plot_phenomena(paradigms: pd.DataFrame, by: str = "phenomenon", ax: Axes | None = None) -> Axes:
    """F6: heat map of `results.paradigm_table` of one arm, number of peers, suite and protocol: `by` x member.

    `by` is ``phenomenon`` or ``paradigm``; cells are means over paradigms, then seeds.
    """
    _one_kind(paradigms)
    _one_evaluation(paradigms)
    shown = paradigms[paradigms["member"].str.fullmatch(r"peer_\d+|ensemble|teacher")]
    means = (
        shown.groupby([by, "member", "seed"], sort=False)["accuracy"].mean().groupby([by, "member"], sort=False).mean()
    )
    table = means.unstack("member").sort_index()
    table = table[sorted(table.columns, key=lambda name: (not name.startswith("peer_"), len(name), name))]
    ax = new_axes(
        ax, min(TEXT, 2.1 + 0.02 * max(map(len, table.index)) + 0.48 * len(table.columns)), 0.75 + 0.155 * len(table)
    )
    image = ax.imshow(table, cmap=sns.color_palette("vlag_r", as_cmap=True), vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(*table.shape):
        value = table.iat[row, column]
        if not np.isnan(value):
            colour = "black" if 18 < value < 82 else "white"
            ax.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    ax.axvline(sum(name.startswith("peer_") for name in table.columns) - 0.5, color="white", linewidth=2)
    ax.set_xticks(range(table.shape[1]), [name.replace("_", " ") for name in table.columns], rotation=30, ha="right")
    ax.set_yticks(range(len(table)), [str(name).replace("_", " ") for name in table.index])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    bar = ax.figure.colorbar(image, ax=ax, shrink=min(1.0, 12 / len(table)), pad=0.02)
    bar.set_label("accuracy (%); 50 is chance")
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return finish(ax)


@styled
def plot_protocols(scores: pd.DataFrame, member: str = "best_peer", ax: Axes | None = None) -> Axes:
    """F7: `evaluations.protocol_table` of one suite: the score of `member` of the same models under every protocol.

    Black marks are what the protocol says of a perfect scorer, where the table has it: on these pairs, and on each
    pair followed by its swapped copy.
    """
    _one(scores, "suite")
    shown = results.with_mean_peer(scores)
    perfect = {name: shown[shown["member"] == name] for name in ("perfect_scorer", "perfect_swapped")}
    shown = shown[shown["member"] == member]
    protocols = sorted(shown["protocol"].unique(), reverse=True)
    arms = [arm for arm in ARMS if arm in set(shown["arm"])]
    ax = new_axes(ax, 1.4 * COLUMN, 1.15 + 0.14 * len(protocols) * max(len(arms), 2))
    for number, arm in enumerate(arms):
        offset = -0.7 * (number - (len(arms) - 1) / 2) / max(len(arms), 2)
        of_arm = shown[shown["arm"] == arm].assign(place=lambda rows: rows["protocol"].map(protocols.index) + 0.0)
        _mean_and_seeds(ax, of_arm, "place", arm, offset, horizontal=True)
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
    ax.set_xlabel(f"{member.replace('_', ' ')}: accuracy (%)")
    return finish(ax, legend=2)


@styled
def plot_accuracy_by_words(table: pd.DataFrame, member: str = "best_peer", ax: Axes | None = None) -> Axes:
    """F8: `evaluations.curve_table` of one suite, protocol and number of peers: `member` against words seen."""
    _one_evaluation(table)
    _one(table, "peers")
    ax = new_axes(ax, COLUMN, 2.5)
    shown = results.with_mean_peer(table)
    shown = shown[shown["member"] == member]
    # A point is due at the same number of words in every run, and passed a few words later.
    due = shown["target_words"].fillna(-1)
    shown = shown.assign(point=shown.groupby(due)["words"].transform("mean"))
    wide = shown["words"].max() > 10 * shown["words"].min()
    arms = [arm for arm in ARMS if arm in set(shown["arm"])]
    for number, arm in enumerate(arms):
        apart = 3.2 * (number - (len(arms) - 1) / 2)
        _mean_and_seeds(ax, shown[shown["arm"] == arm], "point", arm, apart=apart, line=True)
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


def _band(ax: Axes, rows: pd.DataFrame, colour: str, **line: Any) -> None:
    """Mean of `value` over seeds against tokens, and the span of the seeds."""
    if rows.empty:
        return
    # By step: runs of other seeds see slightly other numbers of tokens at the same step.
    value = rows.groupby("step").agg(
        tokens=("tokens", "mean"), mean=("value", "mean"), low=("value", "min"), high=("value", "max")
    )
    ax.plot(value["tokens"], value["mean"], color=colour, markersize=4, **line)
    if rows["seed"].nunique() > 1:
        ax.fill_between(value["tokens"], value["low"], value["high"], color=colour, alpha=0.18, linewidth=0)


def _over_tokens(metrics: pd.DataFrame, quantity: str, ax: Axes | None) -> Axes:
    _one_kind(metrics)
    ax = new_axes(ax, COLUMN, 2.4)
    peers = int(metrics["peers"].iloc[0])
    for member, colour in enumerate(sequence(_members(metrics, quantity)), start=1):
        chosen = metrics[(metrics["quantity"] == quantity) & (metrics["peer"] == member)]
        _band(ax, chosen, colour, label=member_name(member, peers))
    tokens_axis(ax)
    return ax


def member_name(member: int, peers: int) -> str:
    """What a member of a run is called: its peers by their number, and a frozen teacher behind them."""
    return f"peer {member}" if member <= peers else "teacher"


def _members(metrics: pd.DataFrame, quantity: str) -> int:
    """How many have a value of `quantity`: the peers, and where it is one more peer, their teacher behind them."""
    last = metrics[metrics["quantity"] == quantity]["peer"].max()
    return int(metrics["peers"].iloc[0] if pd.isna(last) else max(last, metrics["peers"].iloc[0]))


def _mean_and_seeds(
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


def _one_kind(table: pd.DataFrame) -> None:
    for column in ("arm", "peers", "setting"):
        _one(table, column)


def _one_evaluation(table: pd.DataFrame) -> None:
    for column in ("suite", "protocol"):
        _one(table, column)


def _one(table: pd.DataFrame, column: str) -> None:
    values = list(table[column].unique())
    if len(values) != 1:
        raise UserError(f"the table has {len(values)} values of {column!r} ({values}); expected one; filter it first")
