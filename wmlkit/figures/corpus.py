"""The pictures of a corpus: line lengths, growth of the vocabulary, who has the words, and tokens a word.

A domain has one colour and one marker in all of them. More than ten domains are too many to tell apart: the ten with
the most words are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ..data.splits import SPLITS
from ..errors import UserError
from .style import COLOURS, COLUMN, TEXT, finish, new_axes, panels, sequence, short_number, styled

MOST_DOMAINS = len(COLOURS)
LONGEST_NAME = 18  # characters
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")


@styled
def plot_line_lengths(lengths: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Percent of a domain's training lines with at most so many words, of `statistics.line_lengths`.

    Cumulative, because the classes of length differ in width. The last, open class lies outside the picture.
    """
    ax = new_axes(ax, COLUMN, 2.7)
    for rows, look in _by_domain(lengths, "lines"):
        rows = rows.dropna(subset=["up_to"])
        ax.plot(rows["up_to"], 100 * rows["share"], markersize=3, **look)
    ax.set_xscale("log")
    ax.set_xticks([1, 2, 5, 10, 20, 50, 100, 200])
    ax.xaxis.set_major_formatter(FuncFormatter(short_number))
    ax.minorticks_off()
    ax.set_ylim(0, 102)
    ax.set_xlabel("words in a line, at most")
    ax.set_ylabel("lines (%)")
    return finish(ax, legend=2)


@styled
def plot_vocabulary_growth(growth: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Distinct words against words of training text read, of `statistics.vocabulary_growth`: the last four decades,
    logarithmic."""
    ax = new_axes(ax, COLUMN, 2.7)
    growth = growth[(growth["split"] == "train") & (growth["words"] * 10_000 >= growth["words"].max())]
    for rows, look in _by_domain(growth, "words"):
        ax.plot(rows["words"], rows["distinct"], markersize=3, **look)
    first, most = growth["words"].min(), growth["distinct"].max()
    ax.plot([first, most], [first, most], color="black", linewidth=0.8, linestyle=":")
    # left of the line's end; where that would lie across the axis, right of its middle
    short = most < first * (growth["words"].max() / first) ** 0.44  # of the picture's width
    end, off, align = ((first * most) ** 0.5, 12, "left") if short else (most, -6, "right")
    ax.annotate("every word new", (end, end), (off, 0), textcoords="offset points", ha=align, va="center", fontsize=7)
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(short_number))
        axis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("words read, without punctuation")
    ax.set_ylabel("distinct words")
    return finish(ax, legend=2)


@styled
def plot_domain_mix(mix: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Share of each domain in the words of training, held-out and dev text, of `statistics.domain_mix`."""
    shown = _largest(mix, "words")
    ax = new_axes(ax, 0.65 * TEXT, 0.9 + 0.3 * len(shown))
    splits = [split for split in SPLITS if split in set(mix["split"])]
    for number, (split, colour) in enumerate(zip(splits, sequence(len(splits)), strict=True)):
        rows = mix[(mix["split"] == split) & mix["domain"].isin(shown)]
        places = rows["domain"].map(shown.index) + 0.26 * (number - (len(splits) - 1) / 2)
        total = short_number(float(f"{mix.loc[mix['split'] == split, 'words'].sum():.2g}"))
        ax.barh(places, 100 * rows["share"], 0.24, color=colour, label=f"{split.replace('_', '-')} ({total})")
    _domains_axis(ax, shown)
    ax.set_xlabel("share of the words (%)")
    return finish(ax, legend=3)


@styled
def plot_fertility(corpora: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Tokens a word by domain, before and after cleaning and in dev text, of T1 (`wmlkit.tables.corpora`)."""
    domains = corpora[corpora["domain"] != "all"]
    shown = _largest(domains.assign(words=domains["words_after"]), "words")
    ax = new_axes(ax, COLUMN, 0.9 + 0.3 * len(shown))
    before: dict[str, Any] = {"marker": "o", "fillstyle": "none", "color": COLOURS[7]}
    after: dict[str, Any] = {"marker": "o", "color": COLOURS[0]}
    dev: dict[str, Any] = {"marker": "x", "color": "black"}
    kinds = (
        ("raw", "train", "before", before),
        ("cleaned", "train", "after", after),
        ("dev", "dev", "after", dev),
    )
    for label, split, when, look in kinds:
        rows = domains[(domains["split"] == split) & domains["domain"].isin(shown)]
        if len(rows):
            places = rows["domain"].map(shown.index)
            ax.plot(rows[f"fertility_{when}"], places, linestyle="", markersize=4.5, label=label, **look)
    _domains_axis(ax, shown)
    ax.set_xlabel("tokens a word")
    return finish(ax, legend=3)


def mix_figure(mix: pd.DataFrame, corpora: pd.DataFrame) -> Figure:
    """`plot_domain_mix` and `plot_fertility` side by side; each has its own domains, so each names them."""
    domains = min(MOST_DOMAINS, mix["domain"].nunique())
    figure, (left, right) = panels(2, height=1.0 + 0.3 * domains)
    plot_domain_mix(mix, ax=left)
    plot_fertility(corpora, ax=right)
    return figure


def _domains_axis(ax: Axes, shown: list[str]) -> None:
    ax.set_yticks(range(len(shown)), _shown(shown), parse_math=False)
    ax.set_ylim(len(shown) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def _by_domain(table: pd.DataFrame, size: str) -> list[tuple[pd.DataFrame, dict[str, Any]]]:
    """The training rows of each domain that is shown, and its look."""
    rows = table[table["split"] == "train"]
    domains = _largest(table, size)
    looks = zip(domains, _shown(domains), COLOURS, _MARKERS, strict=False)
    return [
        (rows[rows["domain"] == domain], {"color": colour, "marker": marker, "label": name})
        for domain, name, colour, marker in looks
    ]


def _largest(table: pd.DataFrame, size: str) -> list[str]:
    """The domains of training text by their names; of more than `MOST_DOMAINS`, the largest by `size`."""
    rows = table[table["split"] == "train"]
    if rows.empty:
        found = ", ".join(map(str, table["split"].unique())) or "no split"
        raise UserError(f"the table has no rows of 'train'; expected some (it has {found}); give the whole table")
    sizes = rows.groupby("domain")[size].max()
    return sorted(sizes.sort_values(ascending=False, kind="stable").index[:MOST_DOMAINS])


def _shown(domains: Sequence[str]) -> list[str]:
    """The domains' names with spaces; of one that would take the picture's place the middle is left out, and where two
    are then alike, their number among all stands behind."""
    names = [domain.replace("_", " ") for domain in domains]
    short = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 8]}…{name[-7:]}" for name in names]
    return [name if short.count(name) == 1 else f"{name[:-3]} {number}" for number, name in enumerate(short, start=1)]
