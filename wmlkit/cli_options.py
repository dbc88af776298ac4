"""Options that commands share, and what they print with."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from . import paths
from .config import parse_assignment
from .errors import UserError


def a_path(text: str) -> Path:
    """A path of the command line; a leading ``~``, which a shell leaves in ``--out=~/runs``, is the home folder.

    "" would be the working directory: perhaps a shell variable is not set."""
    if not text:
        raise typer.BadParameter("'' names nothing; expected a path; give one, or leave it off")
    return paths.given(text)


A_PATH: dict[str, Any] = {"parser": a_path, "metavar": "PATH"}
Preset = Annotated[str, typer.Option(help="A preset: smoke, nursery, modern-10m, paper-10m, ...")]
Out = Annotated[Path | None, typer.Option(**A_PATH, help="Output folder; default: runs, or $WMLKIT_OUT.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")]


def with_options(set_: list[str] | None, options: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """What ``--set`` asks for and what options of their own do, ``{"train.seed": ("--seed", 1)}``, all at once: the
    one may be right only for the other. Raises UserError where they ask for different values."""
    asked = dict(map(parse_assignment, set_ or []))
    given = {key: value for key, (_, value) in options.items() if value is not None}
    for key, value in given.items():
        if asked.get(key, value) != value:
            raise UserError(
                f"got {options[key][0]} {value} and --set {key}={asked[key]}; expected one value; leave out one of the "
                "two"
            )
    return asked | given


def say(text: str) -> None:
    """A line for people: on standard error, so that standard output stays clean."""
    print(text, file=sys.stderr, flush=True)


def emit(document: Any) -> None:
    """The one JSON document of `--json`."""
    print(json.dumps(document, indent=1, allow_nan=False))
