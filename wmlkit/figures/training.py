"""While training goes on: losses (F2), peer weights and hypergradients (F3), diversity of the peers (F05)."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from .marks import arms_of, band, expect_one
from .style import ARM_COLOURS, ARM_MARKERS, COLUMN, finish, new_axes, sequence, styled, tokens_axis


@styled
def plot_losses(
    metrics: pd.DataFrame, split: str = "both", entropy_floor: float | None = None, ax: Axes | None = None
) -> Axes:
    """F2: `results.metrics_table` of one arm, number of peers and setting.

    `split` is ``train`` (solid), ``dev`` (dashed, with marks) or ``both``; `entropy_floor` in nats per scored token.
    """
    expect_one(metrics, "arm", "peers", "setting")
    ax = new_axes(ax, COLUMN, 2.7)
    looks = {"train": ("ce", {}), "dev": ("dev_ce", {"linestyle": "--", "marker": "."})}
    for peer, colour in enumerate(sequence(int(metrics["peers"].iloc[0])), start=1):
        for name in ("train", "dev") if split == "both" else (split,):
            quantity, look = looks[name]
            chosen = metrics[(metrics["peer"] == peer) & (metrics["quantity"] == quantity)]
            band(ax, chosen, colour, label=f"peer {peer}, {name}" if split != "both" else f"peer {peer}", **look)
    if split != "train":
        ensemble = metrics[metrics["quantity"] == "dev_ce_ensemble"]
        band(ax, ensemble, "black", linestyle="--", marker="x", label="ensemble")
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
    for arm in arms_of(dev):
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
def plot_diversity(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Diversity over tokens, of `diversity.diversity_by_step` for one number of peers and setting: the mean over seeds
    of each arm and the span of the seeds. Raises UserError where the table has none or more than one of these."""
    expect_one(table, "peers", "setting")
    ax = new_axes(ax, COLUMN, 2.4)
    shown = table[table["quantity"] == "diversity"]
    for arm in arms_of(shown):
        band(ax, shown[shown["arm"] == arm], ARM_COLOURS[arm], label=arm, marker=ARM_MARKERS[arm], markersize=3)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("diversity (nats / scored token)")
    tokens_axis(ax)
    return finish(ax, legend=2)


def _over_tokens(metrics: pd.DataFrame, quantity: str, ax: Axes | None) -> Axes:
    expect_one(metrics, "arm", "peers", "setting")
    ax = new_axes(ax, COLUMN, 2.4)
    peers = int(metrics["peers"].iloc[0])
    for member, colour in enumerate(sequence(_members(metrics, quantity)), start=1):
        chosen = metrics[(metrics["quantity"] == quantity) & (metrics["peer"] == member)]
        band(ax, chosen, colour, label=member_name(member, peers))
    tokens_axis(ax)
    return ax


def member_name(member: int, peers: int) -> str:
    """What a member of a run is called: its peers by their number, and a frozen teacher behind them."""
    return f"peer {member}" if member <= peers else "teacher"


def _members(metrics: pd.DataFrame, quantity: str) -> int:
    """How many have a value of `quantity`: the peers, and where it is one more peer, their teacher behind them."""
    last = metrics[metrics["quantity"] == quantity]["peer"].max()
    return int(metrics["peers"].iloc[0] if pd.isna(last) else max(last, metrics["peers"].iloc[0]))
