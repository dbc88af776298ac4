"""Options that commands share, and what they print with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def a_path(text: str) -> Path:
    """A path of the command line. "" would be the working directory: perhaps a shell variable is not set."""
    if not text:
        raise typer.BadParameter("'' names nothing; expected a path; give one, or leave it off")
    return Path(text)


A_PATH: dict[str, Any] = {"parser": a_path, "metavar": "PATH"}
Preset = Annotated[str, typer.Option(help="A preset: smoke, nursery, modern-10m, paper-10m, ...")]
Out = Annotated[Path | None, typer.Option(**A_PATH, help="Output folder; default: runs, or $WMLKIT_OUT.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")]


def say(text: str) -> None:
    """A line for people: on standard error, so that standard output stays clean."""
    print(text, file=sys.stderr, flush=True)


def emit(document: Any) -> None:
    """The one JSON document of `--json`."""
    print(json.dumps(document, indent=1, allow_nan=False))
