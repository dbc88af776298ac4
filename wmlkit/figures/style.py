"""One look for all figures: sizes, colours, fonts, and files that are the same bytes for the same data."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .. import paths
from .data import figure_data

COLUMN, TEXT = 3.3, 6.9  # inches: the width of a column and of the text in print
COLOURS = sns.color_palette("colorblind").as_hex()
ARM_COLOURS = {"independent": COLOURS[7], "dml": COLOURS[0], "wml": COLOURS[3], "distill": COLOURS[2]}
ARM_MARKERS = {"independent": "o", "dml": "s", "wml": "D", "distill": "^"}
STYLE = {
    "font.family": ["DejaVu Sans", *mpl.rcParams["font.family"]],  # the user's own for signs that the first lacks
    "font.size": 7.5, "axes.labelsize": 8, "axes.titlesize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "legend.frameon": False, "legend.handlelength": 2.2,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.2,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.linewidth": 0.4, "grid.alpha": 0.35,
    "axes.axisbelow": True, "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "wmlkit",
    "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip

_NO_GLYPH = re.compile(r"Glyph (\d+) ")  # matplotlib's warning

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")


def styled(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Run `function` under `STYLE`, whatever the caller's settings are."""

    @wraps(function)
    def under_style(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # the stubs know no str-keyed mixture of values
            return function(*args, **kwargs)

    return under_style


@styled
def panels(columns: int, width: float = TEXT, height: float = 2.4, **options: Any) -> tuple[Figure, Any]:
    """An empty figure of `columns` axes side by side, in inches, to pass to the plot functions as `ax`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, **options)


@styled
def save_figure(figure: Any, folder: Path, name: str) -> Path:
    """Write ``<name>.png`` (200 dpi), ``.pdf`` (fonts embedded) and ``.svg``; returns the PNG's path.

    What was plotted goes into ``<name>.csv`` (`data.figure_data`), unless nothing but shapes was drawn. The same data
    gives the same bytes: no dates, no versions, fixed ids. Signs that no font has, as of another script, are told.
    """
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        "svg": {"Date": None, "Creator": None},
    }
    with _missing_signs_told(name):
        for kind, fixed in metadata.items():

            def save(temporary: Path, kind: str = kind, fixed: dict[str, Any] = fixed) -> None:
                figure.savefig(temporary, format=kind, dpi=200, metadata=fixed)

            paths.write_atomic(folder / f"{name}.{kind}", save)
    data = figure_data(figure)
    if len(data):
        paths.write_text(folder / f"{name}.csv", data.to_csv(index=False, lineterminator="\n"))
    return folder / f"{name}.png"


@contextmanager
def _missing_signs_told(name: str) -> Iterator[None]:
    """One sentence on signs of the figure `name` that no font has, for matplotlib's warning of each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    signs: dict[str, None] = {}
    for one in {str(one.message): one for one in caught}.values():  # each once, not once a format
        found = _NO_GLYPH.match(str(one.message))
        if found:
            signs[chr(int(found[1]))] = None
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if signs:
        log.warning(
            "figure %s has boxes for %s: no font of it has these signs; name one that has under font.family in your "
            "matplotlibrc and make the figures again",
            name,
            "".join(signs),
        )


def new_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """`ax`, or new axes in a figure of that size in inches."""
    return ax if ax is not None else Figure(figsize=(width, height), layout="constrained").subplots()


def finish(ax: Axes, legend: int = 0) -> Axes:
    """Sizes that must hold outside `STYLE` too, and a legend of `legend` columns above the axes, never over data."""
    ax.tick_params(labelsize=7)
    if legend:
        handles, labels = ax.get_legend_handles_labels()
        entries = {label: handles[labels.index(label)] for label in labels}  # one a label, the first
        arms_first = sorted(entries, key=lambda label: label not in ARM_COLOURS)
        texts = ax.legend(
            [entries[label] for label in arms_first], arms_first, loc="lower left", bbox_to_anchor=(0, 1.0),
            ncols=legend, borderaxespad=0.2, columnspacing=1.0, handletextpad=0.5, frameon=False,
            fontsize=7,
        ).get_texts()  # fmt: skip
        for text in texts:
            text.set_parse_math(False)  # a user's own name is a name, whatever signs are in it
    return ax


def sequence(count: int) -> list[str]:
    """Colours from dark to light for things in order (peer 1, 2, ...); lightness alone tells them apart, hue helps."""
    if count == 1:
        return COLOURS[:1]
    return [to_hex(mpl.colormaps["viridis"](0.82 * i / (count - 1))) for i in range(count)]


def tokens_axis(ax: Axes) -> None:
    """Name and ticks of an x axis of tokens."""
    ax.set_xlabel("tokens seen")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(short_number))


def short_number(value: float, position: int | None = None) -> str:
    """A number for an axis.

    >>> short_number(1_500_000), short_number(250)
    ('1.5M', '250')
    """
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def log_if_wide(ax: Axes, which: Literal["x", "y"], values: Iterable[float]) -> None:
    """A logarithmic axis where the largest value is more than eight times the least; plain numbers at its ticks."""
    values = list(values)
    if max(values) <= 8 * min(values):
        return
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))
