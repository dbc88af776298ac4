"""``python -m wmlkit`` is the command ``wmlkit``."""

from .cli import main

main()
