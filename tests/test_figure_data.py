"""What is read back from a figure is what was given to it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from wmlkit.figures.data import figure_data
from wmlkit.figures.style import panels, save_figure


def test_lines_points_bands_and_reference_lines():
    figure, (left, right) = panels(2)
    left.plot([1, 2], [3.0, 4.0], color="C1", label="a")
    left.plot([1, 2], [5.0, 6.0], "--", color="C1", label="a")
    left.fill_between([1, 2], [2.5, 3.5], [3.5, 4.5], color="C1", alpha=0.2)
    left.axhline(0, color="C1", label="zero")  # a colour of a line of the figure
    right.plot([7], [8], "o", color="C2", label="b")
    table = figure_data(figure)
    assert table[table["kind"] == "line"][["x", "y"]].values.tolist() == [[1, 3], [2, 4]]
    assert table[table["kind"] == "dashed line"][["x", "y"]].values.tolist() == [[1, 5], [2, 6]]
    band = table[table["kind"] == "band"]
    assert band[["x", "low", "high"]].values.tolist() == [[1, 2.5, 3.5], [2, 3.5, 4.5]]
    assert band["series"].unique().tolist() == ["a"]
    assert table[table["panel"] == 2][["kind", "series", "x", "y"]].values.tolist() == [["point", "b", 7, 8]]
    assert "zero" not in set(table["series"])


def test_error_bars_keep_their_ends_and_the_names_of_their_places():
    figure, ax = panels(1)
    ax.errorbar([0.1, 1.1], [50, 60], yerr=[[1, 2], [3, 4]], fmt="o", color="C0", label="arm")
    ax.plot([0.1, 0.1], [49, 51], "s", color="C0")
    ax.set_xticks([0, 1], ["one", "two"])
    table = figure_data(figure)
    bars = table[table["kind"] == "error bar"]
    assert bars[["series", "x", "y", "low", "high"]].values.tolist() == [
        ["arm", "one", 50, 49, 53],
        ["arm", "two", 60, 58, 64],
    ]
    assert table[table["kind"] == "point"][["series", "x", "y"]].values.tolist() == [
        ["arm", "one", 49],
        ["arm", "one", 51],
    ]


def test_horizontal_error_bars_and_bars():
    figure, (left, right) = panels(2)
    left.errorbar([50.0], [1], xerr=[[2], [3]], fmt="o", label="arm")
    left.set_yticks([0, 1], ["first", "second"])
    right.barh([0, 1], [10, 20], label="share")
    right.set_yticks([0, 1], ["x", "y"])
    table = figure_data(figure)
    assert table[table["panel"] == 1][["x", "y", "low", "high"]].values.tolist() == [[50, "second", 48, 53]]
    assert table[table["panel"] == 2][["series", "x", "y"]].values.tolist() == [["share", 10, "x"], ["share", 20, "y"]]


def test_cells_of_a_heat_map_and_no_colour_bar():
    figure, ax = panels(1)
    image = ax.imshow([[1.0, 2.0], [3.0, np.nan]])
    figure.colorbar(image, ax=ax)
    ax.set_xticks([0, 1], ["peer 1", "peer 2"])
    ax.set_yticks([0, 1], ["binding", "islands"])
    table = figure_data(figure)
    assert table["panel"].unique().tolist() == [1]
    assert table[["series", "x", "y"]].values.tolist()[:3] == [
        ["binding", "peer 1", 1], ["binding", "peer 2", 2], ["islands", "peer 1", 3]
    ]  # fmt: skip


def test_numbers_with_a_fixed_scale_stay_numbers():
    figure, ax = panels(1)
    ax.plot([1.2, 9.9], [0, 1], label="a")
    ax.set_xscale("log")
    ax.set_xticks([1, 10])
    assert figure_data(figure)["x"].tolist() == [1.2, 9.9]


def test_a_figure_is_saved_with_its_numbers_and_a_drawing_without(tmp_path):
    figure, ax = panels(1)
    ax.plot([1, 2], [0.1, 0.2], label="a")
    save_figure(figure, tmp_path, "F2")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "F2.csv"), figure_data(figure))
    first = (tmp_path / "F2.csv").read_bytes()
    save_figure(figure, tmp_path, "F2")
    assert (tmp_path / "F2.csv").read_bytes() == first
    empty, ax = panels(1)
    ax.text(0.5, 0.5, "only words")
    save_figure(empty, tmp_path, "F1")
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == ["F2.csv"]
