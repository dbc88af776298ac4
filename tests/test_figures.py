from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from fake_runs import PARADIGMS, write_curve, write_evaluation, write_glue, write_run, write_study
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from wmlkit import captions, evaluations, figures, results
from wmlkit.errors import UserError
from wmlkit.figures.ablations import plot_ablations
from wmlkit.figures.corpus import plot_domain_mix, plot_line_lengths
from wmlkit.figures.data import figure_data
from wmlkit.figures.files import write_figures
from wmlkit.figures.marks import arms_of
from wmlkit.figures.method import plot_method
from wmlkit.figures.style import ARM_COLOURS, ARM_MARKERS, STYLE, TEXT, finish, panels, save_figure
from wmlkit.provenance import read_provenance, record_provenance
from wmlkit.runs import ARMS

STUDY = (("independent", 4), ("dml", 4), ("wml", 2), ("wml", 4), ("distill", 4))
PROTOCOLS = ("babylm2025", "babylm2024-released")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("out") / "nursery", STUDY, seeds=(0, 1), protocols=PROTOCOLS)


@pytest.fixture(scope="module")
def metrics(folder: Path) -> pd.DataFrame:
    return results.metrics_table(folder).query("arm == 'wml' and peers == 4")


@pytest.fixture(scope="module")
def scores(folder: Path) -> pd.DataFrame:
    return results.scores_table(folder)


@pytest.fixture(scope="module")
def protocols(folder: Path) -> pd.DataFrame:
    return evaluations.protocol_table(folder).query("peers == 4")


@pytest.fixture(scope="module")
def curve(folder: Path) -> pd.DataFrame:
    return evaluations.curve_table(folder).query("peers == 4")


@pytest.fixture(scope="module")
def paradigms(folder: Path) -> pd.DataFrame:
    return results.paradigm_table(folder).query("arm == 'wml' and peers == 4 and protocol == 'babylm2025'")


def grid() -> pd.DataFrame:
    rows = [
        {"num_layers": layers, "hidden_size": hidden, "parameters": 50_000 * hidden + 12 * layers * hidden**2}
        for layers, hidden in itertools.product((6, 8, 12), (256, 512, 1024))
    ]
    table = pd.DataFrame(rows).sort_values("parameters")
    return table.assign(step_ms=np.arange(1.0, 10.0), pareto=[True, False, True] * 3)


def found() -> pd.DataFrame:
    rows = [(1, 60e6, 512, 58e6), (2, 40e6, 512, 41e6), (3, 30e6, 256, 31e6), (4, 24e6, 256, 20e6)]
    return pd.DataFrame(rows, columns=["peer", "target", "hidden_size", "parameters"])


def blimp() -> pd.DataFrame:
    """Twelve phenomena of 67 paradigms with BLiMP's longest names, eight peers."""
    longest = "coordinate_structure_constraint_complex_left_branch"
    rows = [
        {"paradigm": f"{longest}_{number}", "phenomenon": PARADIGMS[number % 12][1], "member": member, "accuracy": 60.0}
        for number in range(67)
        for member in (*(f"peer_{index}" for index in range(1, 9)), "ensemble")
    ]
    return pd.DataFrame(rows).assign(arm="wml", peers=8, setting="", suite="blimp", protocol="p", seed=0)


def faults(ax: Axes) -> list[str]:
    """What is wrong with the layout: something drawn over the edge of the figure, a legend over the axes."""
    figure = ax.figure
    FigureCanvasAgg(figure).draw()  # type: ignore[arg-type]
    drawn, page = figure.get_tightbbox(), figure.bbox_inches  # type: ignore[union-attr]
    found = []
    if min(drawn.x0, drawn.y0) < -0.01 or drawn.x1 > page.x1 + 0.01 or drawn.y1 > page.y1 + 0.01:
        found.append("over the edge")
    legend = ax.get_legend()
    if legend is not None and legend.get_window_extent().y0 < ax.get_window_extent().y1 - 1:
        found.append("legend over the axes")
    return found


@pytest.fixture(scope="module")
def drawings(
    metrics: pd.DataFrame,
    scores: pd.DataFrame,
    paradigms: pd.DataFrame,
    protocols: pd.DataFrame,
    curve: pd.DataFrame,
) -> dict[str, Callable[[], Axes]]:
    main = scores[scores["protocol"] == "babylm2025"]
    one_seed = scores[(scores["seed"] == 0) & (scores["protocol"] == "babylm2025")]
    return {
        "method": plot_method,
        "losses": lambda: figures.plot_losses(metrics, entropy_floor=1.9),
        "losses, dev": lambda: figures.plot_losses(metrics, "dev"),
        "peer weights": lambda: figures.plot_peer_weights(metrics),
        "hypergradients": lambda: figures.plot_hypergradients(metrics),
        "scores": lambda: figures.plot_scores_by_peers(main),
        "scores, one seed": lambda: figures.plot_scores_by_peers(one_seed, "ensemble"),
        "search": lambda: figures.plot_search(grid(), found()),
        "pareto": lambda: figures.plot_pareto(grid()),
        "phenomena": lambda: figures.plot_phenomena(paradigms),
        "phenomena, BLiMP": lambda: figures.plot_phenomena(blimp()),
        "paradigms, BLiMP": lambda: figures.plot_phenomena(blimp(), "paradigm"),
        "protocols": lambda: figures.plot_protocols(protocols),
        "protocols, one arm": lambda: figures.plot_protocols(protocols.query("arm == 'wml'")),
        "words": lambda: figures.plot_accuracy_by_words(curve),
    }


NAMES = (
    "method", "losses", "losses, dev", "peer weights", "hypergradients", "scores", "scores, one seed", "search",
    "pareto", "phenomena", "phenomena, BLiMP", "paradigms, BLiMP", "protocols", "protocols, one arm", "words",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_readable_in_print(drawings: dict[str, Callable[[], Axes]], name: str) -> None:
    ax = drawings[name]()
    assert faults(ax) == []
    assert ax.figure.get_size_inches()[0] <= TEXT + 1e-6  # type: ignore[union-attr]
    texts = [text for text in ax.figure.findobj(Text) if isinstance(text, Text) and text.get_text().strip()]
    assert min(float(text.get_fontsize()) for text in texts) >= 7


def test_the_check_of_the_layout_sees_faults(drawings: dict[str, Callable[[], Axes]]) -> None:
    ax = drawings["words"]()
    ax.text(1.4, 0.5, "far out", transform=ax.transAxes)
    assert faults(ax) == ["over the edge"]
    ax = drawings["words"]()
    ax.legend(loc="upper left")
    assert faults(ax) == ["legend over the axes"]


def test_axes_that_are_given_are_used(metrics: pd.DataFrame) -> None:
    figure, axes = panels(2)
    assert figures.plot_peer_weights(metrics, ax=axes[0]) is axes[0]
    assert figures.plot_hypergradients(metrics, ax=axes[1]).figure is figure


def test_drawn_values_are_those_of_the_table(metrics: pd.DataFrame) -> None:
    ax = figures.plot_peer_weights(metrics)
    chosen = metrics[(metrics["quantity"] == "peer_weights") & (metrics["peer"] == 3)]
    assert chosen["tokens"].nunique() == len(chosen)  # seeds differ in tokens, but their steps are drawn together
    mean = chosen.groupby("step")[["tokens", "value"]].mean()
    line = next(line for line in ax.get_lines() if line.get_label() == "peer 3")
    assert np.allclose(line.get_xdata(), mean["tokens"])  # type: ignore[arg-type]
    assert np.allclose(line.get_ydata(), mean["value"])  # type: ignore[arg-type]


def test_a_frozen_teacher_s_weight_is_drawn_and_equal_counts_it(metrics: pd.DataFrame) -> None:
    own = metrics["quantity"].isin(["peer_weights", "hypergradient"])
    last = metrics[own & (metrics["peer"] == metrics["peers"])]
    beside = pd.concat([metrics, last.assign(peer=last["peer"] + 1)], ignore_index=True)
    peers = int(metrics["peers"].iloc[0])
    for draw in (figures.plot_peer_weights, figures.plot_hypergradients):
        labels = [line.get_label() for line in draw(beside).get_lines()]
        assert labels[:-1] == [*(f"peer {i}" for i in range(1, peers + 1)), "teacher"]
    (equal,) = [line for line in figures.plot_peer_weights(beside).get_lines() if line.get_label() == "equal"]
    assert equal.get_ydata()[0] == pytest.approx(1 / (peers + 1))  # type: ignore[index]


def test_the_teacher_s_line_counts_each_seed_once(scores: pd.DataFrame) -> None:
    chosen = scores[(scores["protocol"] == "babylm2025") & (scores["arm"] == "distill")]
    best = chosen[chosen["member"] == "best_peer"]
    teacher = best.assign(member="teacher", score=best["seed"].map({0: 60.0, 1: 80.0, 2: 40.0}))
    again = teacher[teacher["seed"] == 1].assign(peers=2)  # students of another number had the same teacher
    ax = figures.plot_scores_by_peers(pd.concat([chosen, teacher, again], ignore_index=True))
    (line,) = [line for line in ax.get_lines() if line.get_label() == "teacher"]
    assert line.get_ydata()[0] == pytest.approx(teacher["score"].mean()) != 60  # type: ignore[index]
    data = figure_data(ax.figure)  # type: ignore[arg-type]
    assert set(data[data["series"] == "teacher"]["y"]) == {line.get_ydata()[0]}  # type: ignore[index]


@pytest.mark.parametrize("kinds", [1, 2, 3, 4, 6, 8])
def test_few_phenomena_leave_room_for_the_words_at_their_side(paradigms: pd.DataFrame, kinds: int) -> None:
    few = paradigms[paradigms["arm"].eq("wml") & paradigms["peers"].eq(4) & paradigms["protocol"].eq("babylm2025")]
    few = pd.concat([few[few["seed"] == 0].head(3).assign(phenomenon=f"kind {i}") for i in range(kinds)])
    figure = figures.plot_phenomena(few).figure
    FigureCanvasAgg(figure).draw()  # type: ignore[arg-type]
    (bar,) = [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]
    words = bar.yaxis.label.get_window_extent()
    assert words.y0 >= 0 and words.y1 <= figure.bbox.height


def test_signs_of_formulas_in_a_user_s_names_are_drawn_as_they_are(paradigms: pd.DataFrame) -> None:
    name = "cost $\\x$ 5"  # no formula: matplotlib's reader of them refuses it
    pairs = paradigms[paradigms["seed"] == 0].assign(phenomenon=name)
    words = pd.DataFrame({"split": ["train"], "domain": [name], "words": [9], "share": [1.0]})
    lengths = pd.DataFrame({"split": "train", "domain": name, "up_to": [1.0, 2.0], "lines": [1, 1], "share": [0.5, 1]})
    change = {
        "suite": ["dev_ce"],
        "member": ["mean_peer"],
        "protocol": [None],
        "ablation": [name],
        "differences": "0.1",
    }
    ablation = pd.DataFrame(change).assign(difference=0.1, difference_low=np.nan, difference_high=np.nan)
    drawn = (
        figures.plot_phenomena(pairs),
        plot_domain_mix(words),
        plot_line_lengths(lengths),
        plot_ablations(ablation, "dev_ce"),
    )
    for ax in drawn:
        FigureCanvasAgg(ax.figure).draw()  # type: ignore[arg-type]
        assert name in [text.get_text() for text in ax.findobj(Text)]


def test_signs_that_no_font_has_are_told_in_one_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    figure, ax = panels(1)
    ax.set_xlabel("\u65e5\u672c \u65e5")
    save_figure(figure, tmp_path, "F1")
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == [
        "figure F1 has boxes for \u65e5\u672c"
    ]
    assert not recwarn.list
    mended, ax = panels(1)
    ax.set_xlabel("mended")
    save = mended.savefig

    def warned(*given: Any, **options: Any) -> None:
        warnings.warn("of another kind", UserWarning, stacklevel=1)
        save(*given, **options)

    mended.savefig = warned
    save_figure(mended, tmp_path, "F2")
    assert {str(one.message) for one in recwarn.list} == {"of another kind"} and len(caplog.records) == 1


def test_the_user_s_own_fonts_stand_behind_the_first() -> None:
    assert STYLE["font.family"] == ["DejaVu Sans", *mpl.rcParamsDefault["font.family"]]


def test_the_dotted_line_of_the_losses_is_called_the_floor_as_in_the_caption(metrics: pd.DataFrame) -> None:
    lines = figures.plot_losses(metrics, entropy_floor=1.9).get_lines()
    (label,) = [line.get_label() for line in lines if line.get_linestyle() == ":"]
    assert label == "floor" and "is split: the floor," in captions.FIGURES["F2"]


def test_a_line_of_one_point_is_seen(metrics: pd.DataFrame) -> None:
    first = metrics[metrics["step"] == metrics["step"].min()]
    for rows, marker in ((first, "."), (metrics, "None")):
        drawn = [line for line in figures.plot_peer_weights(rows).get_lines() if str(line.get_label())[:4] == "peer"]
        assert drawn and {line.get_marker() for line in drawn} == {marker}


def test_arms_stand_around_the_tick_of_their_number_of_peers(scores: pd.DataFrame) -> None:
    """Four arms with four peers, and one of them alone with two, and the first of `independent` with one."""
    ax = figures.plot_scores_by_peers(scores[scores["protocol"] == "babylm2025"])
    places = np.concatenate([bar.lines[0].get_xdata() for bar in ax.containers])  # type: ignore[attr-defined]
    assert sorted(places) == pytest.approx([0, 1, 2 - 0.24, 2 - 0.08, 2 + 0.08, 2 + 0.24])


def test_a_legend_is_small_and_without_a_frame_outside_the_style_too() -> None:
    ax = Figure().subplots()
    ax.plot([0, 1], [0, 1], label="a line")
    legend = finish(ax, legend=1).get_legend()
    assert not legend.get_frame_on() and {text.get_fontsize() for text in legend.get_texts()} == {7}


def test_error_bars_are_the_intervals_over_seeds(scores: pd.DataFrame) -> None:
    chosen = scores[(scores["protocol"] == "babylm2025") & (scores["arm"] == "distill")]
    ax = figures.plot_scores_by_peers(chosen)
    values = chosen[chosen["member"] == "best_peer"]["score"]
    (bar,) = [line for line in ax.containers[0].lines[2]]  # type: ignore[attr-defined]
    assert sorted(bar.get_segments()[0][:, 1]) == pytest.approx(results.interval(list(values)))
    seeds = next(line for line in ax.get_lines() if line.get_fillstyle() == "none")
    assert np.allclose(np.sort(seeds.get_ydata()), np.sort(values))  # type: ignore[arg-type]


def test_an_arm_has_one_colour_and_one_marker_whatever_else_is_shown(scores: pd.DataFrame) -> None:
    assert len(set(ARM_COLOURS.values())) == len(set(ARM_MARKERS.values())) == len(ARMS)
    main = scores[scores["protocol"] == "babylm2025"]
    for shown in (main, main[main["arm"] == "wml"]):
        ax = figures.plot_scores_by_peers(shown)
        marks = {bar.get_label(): bar.lines[0] for bar in ax.containers}  # type: ignore[attr-defined]
        assert to_hex(marks["wml"].get_color()) == ARM_COLOURS["wml"].lower()
        assert marks["wml"].get_marker() == ARM_MARKERS["wml"]


def test_one_peer_comes_from_the_independent_ones(scores: pd.DataFrame) -> None:
    ax = figures.plot_scores_by_peers(scores[scores["protocol"] == "babylm2025"])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4"]


def test_a_perfect_scorer_stands_beside_the_models(protocols: pd.DataFrame) -> None:
    ax = figures.plot_protocols(protocols)
    marks = {line.get_label(): line for line in ax.get_lines()}
    names = [label.get_text() for label in ax.get_yticklabels()]
    for label, released in (("perfect scorer", 100), ("perfect, swapped copies", 50)):
        found = dict(zip([names[int(y)] for y in marks[label].get_ydata()], marks[label].get_xdata(), strict=True))
        assert found == {"babylm2025": 100, "babylm2024-released": released}


def test_a_curve_joins_the_points_that_were_due_at_the_same_words(curve: pd.DataFrame) -> None:
    ax = figures.plot_accuracy_by_words(curve, "peer_2")
    line = next(bar for bar in ax.containers if bar.get_label() == "dml").lines[0]  # type: ignore[attr-defined]
    assert np.allclose(line.get_ydata(), [53.5, 63.5, 73.5])  # 50 + step / 40 - 2, mean of seeds 0 and 1
    assert np.allclose(line.get_xdata(), [300_003.5, 900_003.5, 1_500_003.5])
    # Arms stand apart in print, not in the numbers, and nothing is outside the frame
    table = figure_data(ax.figure)  # type: ignore[arg-type]
    places = table.groupby("series")["x"].unique()
    assert len(places) > 1 and all(np.allclose(sorted(set(own)), [300_003.5, 900_003.5, 1_500_003.5]) for own in places)
    drawn = {bar.get_label(): bar.lines[0].get_transform().transform((9e5, 60))[0] for bar in ax.containers}  # type: ignore[attr-defined]
    assert len(set(drawn.values())) == len(drawn)
    bars = table[table["kind"] == "error bar"]
    assert ax.get_xlim()[0] < bars["x"].min() < bars["x"].max() < ax.get_xlim()[1]
    assert ax.get_ylim()[0] < bars["low"].min() and bars["high"].max() < ax.get_ylim()[1]


def test_a_step_that_passes_two_points_is_one(curve: pd.DataFrame) -> None:
    """As where the last step is the one that passes a target, or steps are long."""
    twice = curve[curve["target_words"] == curve["target_words"].min()]
    both = pd.concat([curve, twice.assign(target_words=twice["target_words"] + 1)]).sort_index(kind="stable")
    drawn, once = (figure_data(figures.plot_accuracy_by_words(table).figure) for table in (both, curve))  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(drawn, once)


def test_mixed_runs_are_refused(folder: Path, scores: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="values of 'arm'"):
        figures.plot_losses(results.metrics_table(folder))
    with pytest.raises(UserError, match="values of 'protocol'"):
        figures.plot_scores_by_peers(scores)


def test_the_same_data_gives_the_same_bytes(metrics: pd.DataFrame, paradigms: pd.DataFrame, tmp_path: Path) -> None:
    for name, draw in (
        ("F3", lambda: figures.plot_peer_weights(metrics)),
        ("F6", lambda: figures.plot_phenomena(paradigms)),
    ):
        save_figure(draw().figure, tmp_path / "a", name)
        # Neither the time nor the caller's style may matter.
        with mpl.rc_context({"font.size": 20, "axes.grid": False, "svg.hashsalt": "other", "pdf.fonttype": 3}):
            assert save_figure(draw().figure, tmp_path / "b", name) == tmp_path / "b" / f"{name}.png"
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [f"{name}.{kind}" for name in ("F3", "F6") for kind in ("csv", "pdf", "png", "svg")]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_fonts_are_embedded_as_type_42(metrics: pd.DataFrame, tmp_path: Path) -> None:
    save_figure(figures.plot_peer_weights(metrics).figure, tmp_path, "F3")
    pdf = (tmp_path / "F3.pdf").read_bytes()
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf


def test_all_figures_of_a_folder(folder: Path) -> None:
    written = write_figures(folder, command="wmlkit report")
    assert [path.name for path in written] == [f"F{number}.png" for number in (1, 2, 3, 4, 6, 7, 8)]
    noted = read_provenance(folder / "figures")
    assert noted["F1"]["seeds"] == []  # it shows no run
    assert noted["F4"]["seeds"] == [0, 1] and noted["F4"]["created_by"] == "wmlkit.figures.files.write_figures"
    names = [path.name for path in written]
    assert [path.name for path in write_figures(folder, overwrite=False)] == names  # none of them is a notebook's
    record_provenance(folder / "figures", "F4", **(noted["F4"] | {"created_by": "notebooks/05_results.ipynb"}))
    assert [path.name for path in write_figures(folder, overwrite=False)] == [one for one in names if one != "F4.png"]
    record_provenance(folder / "figures", "F4", **noted["F4"])
    shutil.copy(folder / "figures" / "F3.png", folder / "figures" / "F4.png")
    write_figures(folder, command="another command")
    changed = {"F4": {**noted["F4"], "command": "another command"}}  # the others come out as they were
    assert read_provenance(folder / "figures") == noted | changed


def test_figures_where_the_run_with_most_peers_is_not_evaluated_yet(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("dml", 2)), seeds=(0, 1))
    before = [path.name for path in write_figures(folder)]
    data = (folder / "figures" / "F6.csv").read_bytes()
    write_run(folder, "wml", 4, 0)
    assert [path.name for path in write_figures(folder)] == before == [f"F{n}.png" for n in (1, 2, 3, 4, 6, 7, 8)]
    assert (folder / "figures" / "F6.csv").read_bytes() == data


def test_figures_where_only_runs_of_another_setting_are_evaluated(tmp_path: Path) -> None:
    """By their scores, and by the points of their learning curves."""
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0, 1), protocols=())
    aside = write_run(folder, "wml", 2, 0, {"mutual.alpha": 0.9})
    write_evaluation(aside, "wml", 2, 0, "nursery", "babylm2025", PARADIGMS)
    write_curve(aside, 2, 0, "nursery", "babylm2025")
    assert [path.name for path in write_figures(folder)] == ["F1.png", "F2.png", "F3.png"]


def test_scores_of_fine_tuning_are_no_share_of_pairs(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0,), protocols=())
    run = next(folder.glob("wml-*"))
    write_glue(run, {"cola": [4.0] * 3})
    assert [path.name for path in write_figures(folder)] == ["F1.png", "F2.png", "F3.png"]
    write_evaluation(run, "wml", 2, 0, "supplement", "babylm2025", PARADIGMS)
    names = [path.name for path in write_figures(folder)]
    assert names == ["F1.png", "F2.png", "F3.png", "F4.png", "F6.png"]


def test_figures_of_runs_without_evaluation_or_outer_loop(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("dml", 2),), seeds=(0,), protocols=())
    assert [path.name for path in write_figures(folder)] == ["F1.png", "F2.png", "F3.png"]
    with pytest.raises(UserError, match="no finished run"):
        write_figures(tmp_path)


def test_arms_stand_from_control_to_claim() -> None:
    table = pd.DataFrame({"arm": ["distill", "wml", "wml", "independent"]})
    assert arms_of(table) == ["independent", "wml", "distill"]
