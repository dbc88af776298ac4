"""A notebook's view of the package: its settings, and one place that saves what it shows.

A notebook begins with `start` and ends with `Session.finish`, which writes the file that the runner waits for.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from . import environment, paths
from .captions import caption
from .config import Config, load_preset, parse_assignment
from .data.prepare import hash_of_text
from .device import setup
from .errors import UserError
from .figures.files import save_noted
from .runs import check_alike
from .study_plan import Part, unread
from .tables import save_table

ABLATIONS = "06_ablations"  # the notebook whose runs are those of [ablations]


@dataclass
class Session:
    """The settings of one notebook, and the files that it has saved so far."""

    notebook: str
    preset: str
    overrides: list[str]
    config: Config
    out: Path
    folder: Path
    files: list[Path] = field(default_factory=list)

    def provenance(self, seeds: Sequence[int]) -> dict[str, Any]:
        """What made a table or figure of this notebook."""
        words = ["wmlkit", "reproduce", "--preset", self.preset, "--only", self.notebook[:2]]
        words += ["--out", str(self.out)] if self.out != paths.output() else []
        words += [word for override in self.overrides for word in ("--set", override)]
        return {
            "command": shlex.join(environment.without_places(word) for word in words),
            "commit": environment.commit() or environment.NO_CHECKOUT,
            "seeds": list(seeds),
            "device": setup().name,
            "created_by": f"notebooks/{self.notebook}.ipynb",
        }

    def table(self, name: str, table: pd.DataFrame, seeds: Sequence[int] = ()) -> pd.DataFrame:
        """Save ``tables/<name>.csv`` and return the table, to be shown; its caption is shown here."""
        self.files.append(save_table(paths.tables(self.folder), name, table, **self.provenance(seeds)))
        _show_caption(name)
        return table

    def figure(self, name: str, figure: Any, seeds: Sequence[int] = ()) -> None:
        """Save ``figures/<name>`` as PNG, PDF and SVG with what made it; its caption is shown here."""
        self.files.append(save_noted(figure, paths.figures(self.folder), name, **self.provenance(seeds)))
        _show_caption(name)

    def finish(self, numbers: Mapping[str, float]) -> None:
        """Write ``notebooks/<name>.done.json``: the saved files with their checksums, and the main numbers.

        Raises UserError for a number that is not finite: a notebook without a result has failed.
        """
        broken = [name for name, value in numbers.items() if not math.isfinite(value)]
        if broken:
            raise UserError(
                f"{self.notebook} ends with {broken[0]} = {numbers[broken[0]]}; expected a finite number; look at "
                "the runs that it is made from: one has diverged, or has no evaluation"
            )
        document = {
            "notebook": self.notebook,
            "files": {str(path.relative_to(self.folder)): paths.file_sha256(path) for path in self.files},
            "numbers": {name: float(value) for name, value in numbers.items()},
        }
        paths.write_json(paths.executed(self.folder) / f"{self.notebook}.done.json", document)


def start(notebook: str, preset: str, out: str, overrides: Sequence[str]) -> Session:
    """Open a notebook's session and print what it runs on. `out` empty: the default output folder.

    Raises UserError where the folder has runs of other settings, or `overrides` is no list.
    """
    if not isinstance(overrides, (list, tuple)):
        raise UserError(f'overrides is {overrides!r}; expected a list of texts, for example ["mutual.alpha=0.9"]')
    config = load_preset(preset, list(overrides))
    root = paths.output(out or None)
    check_alike(paths.preset(root, preset), config, partial(hash_of_text, config.data, root, config.needs_mask))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"Python {sys.version.split()[0]}, wmlkit {environment.own_version()}, {versions}")
    print(f"preset {preset}, corpus {Path(config.data.corpus).name}; {setup(config.train.precision).reason}")
    part: Part = "ablations" if notebook == ABLATIONS else "runs"
    for sentence in unread(dict(map(parse_assignment, overrides)), config, part):
        print(sentence)
    _show_figures()
    return Session(notebook, preset, list(overrides), config, root, paths.preset(root, preset))


def _show_figures() -> None:
    """Let the notebook show a figure that is the last value of a cell; without pyplot it would only print its name."""
    from IPython.core.getipython import get_ipython
    from IPython.core.pylabtools import select_figure_formats

    shell = get_ipython()
    if shell is not None:
        select_figure_formats(shell, "png", dpi=160)


def _show_caption(name: str) -> None:
    """Of a table or figure, in a notebook: nobody has to know what a column or a mark stands for."""
    from IPython.core.getipython import get_ipython
    from IPython.display import Markdown, display

    if get_ipython() is not None:
        display(Markdown(f"*{name.replace('_', ' ')}.* {caption(name).replace('_', chr(92) + '_')}"))
