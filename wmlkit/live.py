"""Training as it happens: in a notebook a picture that is redrawn in place, elsewhere lines of text.

    train.run(config, out, progress=live.view(config))
    study.run(preset, overrides, out, "train", progress=live.study_view(config, out))

A picture is drawn at most once a second and takes at most a fifth of the time. It shows what ``metrics.jsonl`` holds,
so a cell that was interrupted and is run again goes on with its curves where the run goes on.
"""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from . import results, study_plan, train
from .config import Config
from .data.prepare import prepare
from .figures.style import panels
from .figures.training import plot_losses, plot_peer_weights, plot_study_losses
from .guard import LIVE
from .progress import dev_lines, progress_line, steps_of

_FRONT_ENDS = ("JPY_SESSION_NAME", "VSCODE_PID", "VSCODE_CWD", "COLAB_RELEASE_TAG")  # Jupyter, VS Code, Colab
_SECONDS = 1.0  # between two pictures
_SHARE = 0.2  # of the time, at most, goes into pictures
_DOTS = 130  # an inch

Row = Mapping[str, Any]  # of metrics.jsonl


def somebody_looks() -> bool:
    """Does this code run in a notebook that a person has open? Not so under papermill, in a script or a terminal.

    The variable WMLKIT_LIVE says it against all signs: "1" yes, "0" no.
    """
    from IPython.core.getipython import get_ipython

    if getattr(get_ipython(), "kernel", None) is None or os.environ.get(LIVE) == "0":
        return False
    return os.environ.get(LIVE) == "1" or any(name in os.environ for name in _FRONT_ENDS)


def view(config: Config, out: str | Path | None = None) -> Callable[[dict[str, Any]], None]:
    """`progress` for `train.run`: losses and peer weights of the run, or of its teacher while that is trained.

    With `out`, the output folder, rows that the run logged before it was interrupted are shown too.
    """
    if not somebody_looks():
        return lambda row: print(progress_line(config, row)) if "dev_ce" in row else None
    shown: dict[int, Row] = {}  # by step: a step that is logged again counts once
    if out is not None:
        shown = {row["step"]: row for row in _logged(train.run_folder(config, Path(out)))}
    picture = _Picture()

    def show(row: dict[str, Any]) -> None:
        if any(bool(row.get("teacher")) != bool(old.get("teacher")) for old in shown.values()):
            shown.clear()
        shown[row["step"]] = row
        text = progress_line(config, row)
        last = row["step"] == steps_of(config, row)
        picture.draw(lambda: training_figure(config, list(shown.values())), text, last)

    return show


def study_view(config: Config, out: Path) -> Callable[[str], None]:
    """`progress` for `study.run`: the losses of all its runs on dev text, and the weights that moved last."""
    if not somebody_looks():
        return dev_lines(print)
    prepared = prepare(config.data, out)
    runs = [(one, train.run_folder(one, out, prepared)) for one in study_plan.plan(config)]
    picture = _Picture()
    lock = threading.Lock()  # each process of the study reports from a thread of its own

    def show(text: str) -> None:
        with lock:
            picture.draw(lambda: study_figure(runs), text, last="trained" in text)

    return show


def training_figure(config: Config, rows: Sequence[Row]) -> Figure:
    """Losses (train and dev) and peer weights of one run over the tokens seen, from rows of ``metrics.jsonl``."""
    last = max(rows, key=lambda row: row["step"])
    metrics = _tidy(config, rows, peers=len(last["ce"]))
    figure, (left, right) = panels(2, height=3.0)
    plot_losses(metrics, ax=left)
    plot_peer_weights(metrics[metrics["peer"].isna() | (metrics["peer"] <= len(last["ce"]))], ax=right)
    name = "teacher" if last.get("teacher") else config.mutual.arm
    speed = f", {last['tokens_per_second']:,.0f} tokens a second" if "tokens_per_second" in last else ""
    figure.suptitle(f"{name}, step {last['step']} of {steps_of(config, last)}{speed}", fontsize=8)
    return figure


def study_figure(runs: Sequence[tuple[Config, Path]]) -> Figure:
    """Dev losses of all runs of a study, and the peer weights of the weighted run that wrote last."""
    logged = [(config, folder, rows) for config, folder in runs if (rows := _logged(folder))]
    figure, (left, right) = panels(2, height=3.0)
    if logged:
        plot_study_losses(pd.concat([_tidy(config, rows) for config, _, rows in logged], ignore_index=True), ax=left)
    weighted = [one for one in logged if one[0].mutual.arm == "wml" and one[0].mutual.num_peers > 1]
    title = f"{sum((folder / 'done.json').is_file() for _, folder in runs)} of {len(runs)} runs finished"
    if weighted:
        config, _, rows = max(weighted, key=lambda one: (one[1] / "metrics.jsonl").stat().st_mtime_ns)
        plot_peer_weights(_tidy(config, rows), ax=right)
        title += f"; weights of wml, {config.mutual.num_peers} peers, seed {config.train.seed}"
    else:
        right.set_axis_off()
    figure.suptitle(title, fontsize=8)
    return figure


def png(figure: Figure, dots: int = _DOTS) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots)
    return buffer.getvalue()


class _Picture:
    """One picture of a cell's output, replaced as often as `_SECONDS` and `_SHARE` allow, and always at the end."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.next = 0.0

    def draw(self, figure: Callable[[], Figure], text: str, last: bool) -> None:
        from IPython.display import Image, display

        began = time.perf_counter()
        if began < self.next and not last:
            return
        drawn = figure()
        image = Image(data=png(drawn), alt=text, width=round(100 * drawn.get_figwidth()))
        if self.handle is None:
            self.handle = display(image, display_id=True)
        else:
            self.handle.update(image)
        ended = time.perf_counter()
        self.next = ended + max(_SECONDS, (ended - began) / _SHARE)


def _tidy(config: Config, rows: Sequence[Row], peers: int | None = None) -> pd.DataFrame:
    shared = {"arm": config.mutual.arm, "peers": peers or config.mutual.num_peers, "setting": ""}
    return results.tidy_metrics(rows).assign(**shared, seed=config.train.seed)


def _logged(run_folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl so far; another process may be writing the last one."""
    path = run_folder / "metrics.jsonl"
    whole = path.read_bytes().rpartition(b"\n")[0] if path.is_file() else b""
    return [json.loads(line) for line in whole.splitlines()]
