"""Model and tokenizer folders from elsewhere: read as data, never run.

Such a folder is JSON and safetensors. A few of its settings name something else to load: a Python module beside them, a
kernel of the hub, a file of weights in another format. A folder with one of those is refused before a library opens it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import paths
from .errors import UserError

INDEX = "model.safetensors.index.json"  # of weights in several files


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, a settings file of a model or tokenizer.

    Raises UserError where there is no such file, it is not a JSON object, or it names code or other files.
    """
    if not path.is_file():
        raise UserError(
            f"{path.parent} has no {path.name}; expected a model folder in Hugging Face format; give another"
        )
    try:
        document = paths.read_json(path, finite=False)  # some families have an infinity there
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); expected one JSON object; copy the model again") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} is a {type(document).__name__}; expected one JSON object; copy the model again")
    for key, value in _entries(document):
        _check_entry(path, key, value)
    return document


def _check_entry(path: Path, key: str, value: Any) -> None:
    if key == "auto_map" and value:
        raise UserError(
            f"{path} names code that comes with the model (auto_map); wmlkit runs none: take a model and a tokenizer "
            "of a family that transformers has"
        )
    if key == "transformers_weights" and value:
        raise UserError(
            f"{path} names a file of weights of its own ({value!r}); expected model.safetensors: take the entry "
            "transformers_weights out if the file is one"
        )
    if key.endswith("_implementation") and "/" in str(value):
        raise UserError(
            f"{path} asks for a kernel of the hub, which is code ({key} {value!r}); wmlkit runs none: take that entry "
            "out"
        )


def _entries(document: Any) -> Iterator[tuple[str, Any]]:
    """All keys of a JSON document with their values, at any depth."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def check_model(folder: Path) -> None:
    """Raises UserError unless `folder` is that of a model with its weights as safetensors, and names no code."""
    if not any((folder / name).is_file() for name in ("model.safetensors", INDEX)):
        raise UserError(
            f"{folder} has no model.safetensors; wmlkit loads weights from safetensors only, because other formats can "
            "run code: convert the model; a peer of a run that lost them comes back with `wmlkit train --force`"
        )
    read_settings(folder / "config.json")
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds an adapter of another model; expected a whole model: merge the two first")
    if not (folder / "model.safetensors").is_file():
        _check_index(folder)
    check_names_no_code(folder)


def check_names_no_code(folder: Path) -> None:
    """Raises UserError where the tokenizer's or the model's settings in `folder` name code; both need not be there."""
    for name in ("tokenizer_config.json", "config.json"):
        if (folder / name).is_file():
            read_settings(folder / name)


def _check_index(folder: Path) -> None:
    """The parts of the weights must be safetensors in the same folder."""
    parts = read_settings(folder / INDEX).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"{folder / INDEX} has no weight_map; expected the file of each weight; copy the model again")
    for name in sorted({str(value) for value in parts.values()}):
        plain = name.endswith(".safetensors") and not any(mark in name for mark in "/\\:")
        if not plain or not (folder / name).is_file():
            raise UserError(
                f"{folder / INDEX} names the file {name!r}; expected safetensors files that lie in that folder; do not "
                "trust it, or copy the model again"
            )
