"""T2: every setting of a preset, its value and where that is from."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from . import paths
from .config import load_preset
from .identity import OF_EACH_RUN


def hyperparameters(preset: str, config: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """T2: section, name, value, source for every setting of a preset.

    The source is the comment at the end of the value's line in ``presets/<preset>.toml``. With `config`, a run's
    resolved configuration, the values are those of the run and a changed one says what the preset has (arm, number
    of peers and seed stay the preset's: they differ from run to run).
    """
    shipped = load_preset(preset).resolved()
    sources = value_sources((paths.PRESETS / f"{preset}.toml").read_text(encoding="utf-8"))
    rows = []
    for section, values in shipped.items():
        if section == "preset":
            continue
        for name, value in values.items():
            source = sources.get(f"{section}.{name}", "default of wmlkit.settings")
            used = value
            if config is not None and f"{section}.{name}" not in OF_EACH_RUN:
                used = config.get(section, {}).get(name, value)
            if used != value:
                source = f"set for these runs; the preset has {_shown(value)} ({source})"
            rows.append({"section": section, "name": name, "value": _shown(used), "source": source})
    return pd.DataFrame(rows)


def _shown(value: Any) -> str:
    if isinstance(value, str) and Path(value).is_absolute():
        value = Path(value).name  # where a folder lies on somebody's machine is not for a table
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def value_sources(text: str) -> dict[str, str]:
    """``{"train.lr": "Table 2", ...}``: the comment at the end of each value of a TOML text of one-level sections."""
    sources, section, pending = {}, "", ""
    for line in text.splitlines():
        pending += line
        try:
            document = tomllib.loads(pending)
        except tomllib.TOMLDecodeError:
            pending += "\n"  # a value that goes on in the next line
            continue
        if pending.lstrip().startswith("["):
            section = next(iter(document))
        else:
            for name in document:
                sources[f"{section}.{name}"] = _comment(pending, document)
        pending = ""
    return sources


def _comment(text: str, document: Mapping[str, Any]) -> str:
    """What follows the first `#` of the last line that is not part of the value."""
    start = text.rfind("\n") + 1
    for position, character in enumerate(text[start:], start):
        if character == "#":
            try:
                complete = tomllib.loads(text[:position]) == document
            except tomllib.TOMLDecodeError:  # this one stands inside a string
                continue
            if complete:
                return text[position + 1 :].strip()
    return "no source given"
