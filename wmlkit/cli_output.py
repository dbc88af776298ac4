"""What all commands print with."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")]


def say(text: str) -> None:
    """A line for people: on standard error, so that standard output stays clean."""
    print(text, file=sys.stderr, flush=True)


def emit(document: Any) -> None:
    """The one JSON document of `--json`."""
    print(json.dumps(document, indent=1, allow_nan=False))
