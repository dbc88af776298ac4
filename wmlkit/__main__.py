"""Entry point of ``wmlkit`` and ``python -m wmlkit``: what has to hold before the command line is read."""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """Run the command line. Ctrl-C ends it with status 130 while modules are still loaded, as it does later."""
    try:
        os.getcwd()
    except FileNotFoundError:
        print("wmlkit: the working directory is gone; expected one that is there; go to another", file=sys.stderr)
        sys.exit(2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have signs that the terminal has not
    try:
        from .cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
