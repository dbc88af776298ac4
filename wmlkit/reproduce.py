"""The main job: notebooks in order, then tables, figures, report.html and summary.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from . import environment, paths
from .config import Config, load_preset
from .data.prepare import hash_of_text, prepare
from .errors import UserError
from .guard import exclusive
from .kernels import one_ahead
from .notebooks import run_notebook
from .report import write_report
from .runs import check_alike
from .study_plan import plan
from .summary import write_summary
from .teacher import teacher_config
from .train import run_folder

# What most notebooks import, and what takes seconds.
IMPORTS = ("wmlkit.study", "wmlkit.results", "wmlkit.figures")


def notebook_sources(only: Sequence[str] = ()) -> list[Path]:
    """The numbered notebooks in order, or those whose numbers are in `only`."""
    found = sorted(paths.notebooks().glob("[0-9][0-9]_*.ipynb"))
    numbers = [path.name[:2] for path in found]
    unknown = [number for number in only if number.zfill(2) not in numbers]
    if unknown:
        raise UserError(f"--only got {unknown[0]!r}; expected numbers of notebooks: {', '.join(numbers)}")
    return [path for path in found if not only or path.name[:2] in {number.zfill(2) for number in only}]


def reproduce(
    preset: str, overrides: Sequence[str], out: Path, only: Sequence[str], force: bool, say: Callable[[str], None]
) -> Path:
    """Run the notebooks of a preset and write its report; returns the preset's folder.

    Each notebook is told `preset`, `out` and `overrides`, and must leave its ``.done.json``. Finished runs are
    kept; with `force` those that this call would make are trained again, and no others are touched. Raises UserError
    for `force` together with `only`, and where the folder has runs of other settings.
    """
    config = load_preset(preset, overrides)  # a mistake is found before anything is started
    sources = notebook_sources(only)
    if force and only:
        raise UserError(
            "got --force with --only; expected --force for all notebooks: it trains the runs of the preset again; "
            "leave out one of the two, or force one run with `wmlkit train --force`"
        )
    folder = paths.preset(out, preset)
    check_alike(folder, config, partial(hash_of_text, config.data, out, config.needs_mask))
    with exclusive(folder):
        if force:
            _forget_runs(config, out)
        for own in ("notebooks", "tables", "figures"):  # not the runs: others may train there
            paths.remove_leftovers(folder / own)
        return _reproduce(preset, overrides, out, folder, sources, say)


def _forget_runs(config: Config, out: Path) -> None:
    """Remove the runs of the plan, their teachers' and the replays, after it is clear that the text to train them again
    is there. Raises UserError where a process trains one of them."""
    prepared = prepare(config.data, out, config.needs_mask)
    plans = [*plan(config), *plan(config, "ablations")]
    plans += [teacher_config(run) for run in plans if run.mutual.uses_teacher and run.mutual.teacher is None]
    for run in plans:
        own = run_folder(run, out, prepared if run.data == config.data else None)
        with exclusive(own):
            paths.remove(own)
    paths.remove(paths.replays(paths.preset(out, config.preset)))


def _reproduce(
    preset: str,
    overrides: Sequence[str],
    out: Path,
    folder: Path,
    sources: Sequence[Path],
    say: Callable[[str], None],
) -> Path:
    began = time.perf_counter()
    begun_before = _runs_with("config.json", folder)
    minutes = {}
    with closing(one_ahead(len(sources), Path.cwd(), IMPORTS)) as kernels:
        for source, kernel in zip(sources, kernels, strict=True):
            started = time.perf_counter()
            target = paths.executed(folder) / source.name
            sentinel = target.with_suffix(".done.json")
            parameters = {"preset": preset, "out": str(out), "overrides": list(overrides)}
            run_notebook(source, target, parameters, required=[sentinel], kernel=kernel, progress=say)
            minutes[source.stem] = (time.perf_counter() - started) / 60
    # Of a call that did the whole job: one that went on with runs, or ran some notebooks, says nothing about its time.
    done = _runs_with("done.json", folder)
    whole = len(minutes) == len(notebook_sources()) and bool(done) and not done & begun_before
    known = {"evaluate": minutes.get("04_evaluation", 0.0), "total": (time.perf_counter() - began) / 60}
    write_summary(folder, known if whole else None)
    write_report(folder, command=environment.command())
    return folder


def _runs_with(file: str, folder: Path) -> set[str]:
    """Names of the run folders of a preset's folder that have `file`."""
    return {path.parent.name for path in folder.glob(f"*/{file}")}
