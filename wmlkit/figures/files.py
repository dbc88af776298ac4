"""The figures that the finished runs of a folder give, drawn and written without a notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from .. import evaluations, paths, results
from ..provenance import forget_provenance, from_a_notebook, of_runs, read_provenance, record_provenance
from ..results import main_setting, most_peers
from ..run_files import Run
from ..runs import finished_runs
from ..study_plan import CLOSELY
from .method import plot_method
from .scores import plot_accuracy_by_words, plot_phenomena, plot_protocols, plot_scores_by_peers
from .style import COLUMN, panels, save_figure
from .training import plot_hypergradients, plot_losses, plot_peer_weights


def write_figures(folder: Path, command: str = "wmlkit report", overwrite: bool = True) -> list[Path]:
    """Draw what the finished runs of a preset's folder give into ``<folder>/figures``; returns the PNG files written.

    Only runs of the main setting and, where there are several, only the protocol of the runs' configuration; a figure
    that they do not give any more is removed. F2, F3 and F6 show `wml` (or the first arm there is) with the largest
    number of peers that was measured, F7 and F8 all arms with that number. F5 needs more than the runs know and is left
    to the notebooks. Without `overwrite`, what a notebook drew stays.
    """
    runs = [run for run in finished_runs(folder) if not run.setting]
    scores = results.scores_table(folder)
    scores = main_setting(scores[scores["suite"] != "glue"] if len(scores) else scores)  # of GLUE no share is right
    metrics = _foremost(main_setting(results.metrics_table(folder)))
    drawings: dict[str, Callable[[], Any]] = {
        "F1": lambda: plot_method().figure,
        "F2": lambda: losses_figure(metrics, _floor(runs)),
        "F3": lambda: outer_figure(metrics),
    }
    if len(scores):
        suite, protocol = results.main_evaluation(runs, scores)
        shown = {"suite": suite, "protocol": protocol}
        drawings["F4"] = lambda: scores_figure(main_setting(scores, **shown))
        drawings["F6"] = lambda: plot_phenomena(_foremost(main_setting(results.paradigm_table(folder), **shown))).figure
    protocols = most_peers(main_setting(evaluations.several_protocols(evaluations.protocol_table(folder))))
    if len(protocols):
        of_first = protocols[protocols["suite"] == protocols["suite"].iloc[0]]
        drawings["F7"] = lambda: plot_protocols(of_first).figure
    curve = main_setting(evaluations.curve_table(folder))
    if len(curve):
        suite, protocol = results.main_evaluation(runs, curve)
        points = most_peers(main_setting(curve, suite=suite, protocol=protocol))
        drawings["F8"] = lambda: plot_accuracy_by_words(points).figure
    noted = of_runs(runs, command, "wmlkit.figures.files.write_figures")
    for name in {"F4", "F6", "F7", "F8"} - set(drawings):  # of evaluations that are gone
        if overwrite or not from_a_notebook(paths.figures(folder), name):
            remove_figure(paths.figures(folder), name)
    written = []
    for name, draw in drawings.items():
        there = (paths.figures(folder) / f"{name}.png").is_file()
        if not there or overwrite or not from_a_notebook(paths.figures(folder), name):
            # The drawing of the method shows no run.
            provenance = noted if name != "F1" else {**noted, "seeds": []}
            written.append(save_noted(draw(), paths.figures(folder), name, **provenance))
    return written


def save_noted(figure: Any, folder: Path, name: str, **provenance: Any) -> Path:
    """`save_figure`, and in the folder's ``provenance.json`` what made it. One that comes out the same keeps the note
    of what made that, as tables do."""
    path = folder / f"{name}.png"
    before = path.read_bytes() if path.is_file() else None
    save_figure(figure, folder, name)
    if path.read_bytes() != before or name not in read_provenance(folder):
        record_provenance(folder, name, **provenance)
    return path


def remove_figure(folder: Path, name: str) -> None:
    """Remove what `save_figure` wrote, and the note of it."""
    for kind in ("png", "pdf", "svg", "csv"):
        (folder / f"{name}.{kind}").unlink(missing_ok=True)
    forget_provenance(folder, name)


def _foremost(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `wml`, or of the first arm that the table has, with its largest number of peers."""
    arm = next(name for name in CLOSELY if (table["arm"] == name).any())
    return most_peers(table[table["arm"] == arm])


def _floor(runs: Sequence[Run]) -> float | None:
    """The least loss that any model can reach on average, where it is known and the runs' text lies beside them."""
    from ..data.coverage import loss_floor  # here: it needs transformers, and reading results must not wait for that

    config = runs[0].config
    if not (runs[0].prepared / "train.tokens").is_file():
        return None
    found = loss_floor(
        runs[0].prepared, config["data"]["corpus"], config["model"]["objective"], config["train"]["mask_ratio"]
    )
    return found[0] if found else None


def losses_figure(metrics: pd.DataFrame, entropy_floor: float | None) -> Figure:
    """F2: losses on training text beside those on dev text, of `results.metrics_table` of one arm."""
    figure, axes = panels(2, height=2.7)  # each with its own axis: dev loss is first measured when most is learned
    plot_losses(metrics, "train", entropy_floor, ax=axes[0])
    plot_losses(metrics, "dev", entropy_floor, ax=axes[1]).set_ylabel("dev loss (nats / scored token)")
    return figure


def outer_figure(metrics: pd.DataFrame) -> Figure:
    """F3: peer weights and, where there is an outer loop, their hypergradients."""
    if "hypergradient" not in set(metrics["quantity"]):
        figure, axes = panels(1, width=COLUMN, height=2.5)
        plot_peer_weights(metrics, ax=axes)
        return figure
    figure, axes = panels(2, height=2.5)
    plot_peer_weights(metrics, ax=axes[0])
    plot_hypergradients(metrics, ax=axes[1])
    return figure


def scores_figure(scores: pd.DataFrame) -> Figure:
    """F4: the best peer beside the ensemble, of `results.scores_table` of one suite and protocol."""
    members = [name for name in ("best_peer", "ensemble") if name in set(scores["member"])]
    figure, axes = panels(len(members), width=COLUMN * len(members), height=2.6, sharey=True, squeeze=False)
    for ax, member in zip(axes[0], members, strict=True):
        plot_scores_by_peers(scores, member, ax=ax)
    return figure
