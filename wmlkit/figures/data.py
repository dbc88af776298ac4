"""The numbers that a figure shows, read back from what is drawn, so that a download is what was plotted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

COLUMNS = ["panel", "kind", "series", "x", "y", "low", "high"]


def figure_data(figure: Figure) -> pd.DataFrame:
    """One row a point, bar or cell of every panel: panel (from 1), kind, series, x, y, low, high.

    kind is line, dashed line, point, error bar, band, bar or cell; low and high are the ends of an error bar or a band;
    y of a cell is its value. Where an axis has names instead of numbers, x or y is the name. What has no label of its
    own belongs to the series of its colour. Reference lines across a panel are left out.
    """
    panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    rows = [(number, *row) for number, ax in enumerate(panels, start=1) for row in _rows(ax)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.drop(columns=[name for name in ("low", "high") if table[name].isna().all()])


def _rows(ax: Axes) -> Iterator[tuple[Any, ...]]:
    x_name, y_name = _names(ax, "x"), _names(ax, "y")
    in_containers: set[int] = set()
    lines = [line for line in ax.lines if not _across(ax, line)]
    series_of = {to_hex(line.get_color()): str(line.get_label()) for line in lines if _named(line)}
    for container in ax.containers:
        series = str(container.get_label())
        if isinstance(container, ErrorbarContainer):
            line, caps, _ = container.lines
            in_containers |= {id(one) for one in (line, *caps)}
            series_of[to_hex(line.get_color())] = series
            for x, y, low, high in _error_bars(container):
                yield "error bar", series, x_name(x), y_name(y), low, high
        elif isinstance(container, BarContainer):
            flat = container.orientation == "horizontal"
            for patch in container.patches:
                middle = patch.get_y() + patch.get_height() / 2 if flat else patch.get_x() + patch.get_width() / 2
                x, y = (patch.get_width(), y_name(middle)) if flat else (x_name(middle), patch.get_height())
                yield "bar", series, x, y, np.nan, np.nan
    for line in lines:
        if id(line) not in in_containers:
            series = str(line.get_label()) if _named(line) else series_of.get(to_hex(line.get_color()), "")
            kind = {"None": "point", "": "point", "--": "dashed line"}.get(str(line.get_linestyle()), "line")
            for x, y in _points(line):
                yield kind, series, x_name(x), y_name(y), np.nan, np.nan
    for band in ax.collections:
        if isinstance(band, FillBetweenPolyCollection):
            series = series_of.get(to_hex(tuple(np.asarray(band.get_facecolor())[0, :3])), "")
            corners = np.asarray(band.get_paths()[0].vertices)
            count = (len(corners) - 3) // 2  # start, low edge, end, high edge backwards, start
            for low, high in zip(corners[1 : 1 + count], corners[2 + count : 2 + 2 * count][::-1], strict=True):
                yield "band", series, x_name(low[0]), np.nan, low[1], high[1]
    for image in ax.images:
        for (row, column), value in np.ndenumerate(np.asarray(image.get_array(), dtype=float)):
            yield "cell", y_name(row), x_name(column), value, np.nan, np.nan


def _across(ax: Axes, line: Line2D) -> bool:
    """Whether it is a reference line. By identity: equal are also transforms that give the same numbers."""
    return any(line.get_transform() is one("grid") for one in (ax.get_xaxis_transform, ax.get_yaxis_transform))


def _error_bars(container: ErrorbarContainer) -> Iterator[tuple[float, float, float, float]]:
    line, _, bars = container.lines
    ends = [segment for bar in bars for segment in bar.get_segments()]
    for place, (x, y) in enumerate(_points(line)):
        low, high = np.nan, np.nan
        if place < len(ends) and len(ends[place]):
            along = ends[place][:, 0] if container.has_xerr else ends[place][:, 1]
            low, high = along.min(), along.max()
        yield x, y, low, high


def _points(line: Line2D) -> Iterator[tuple[float, float]]:
    for x, y in np.asarray(line.get_data(orig=False), dtype=float).T:
        yield float(x), float(y)


def _named(line: Line2D) -> bool:
    return not str(line.get_label()).startswith("_")


def _names(ax: Axes, which: str) -> Callable[[float], Any]:
    """Places -> the axis' own names for them, where `set_xticks` or `set_yticks` gave it names."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    formatter = axis.get_major_formatter()
    if not (isinstance(formatter, FuncFormatter) and isinstance(formatter.func, partial)):
        return float
    names = {float(at): str(formatter(at)) for at in axis.get_ticklocs()}
    # Marks of one place stand a little apart, so that they can be told apart.
    return lambda place: next((name for at, name in names.items() if abs(at - place) < 0.5), float(place))
