"""A prepared corpus in its folder: what identifies it, and that every file is as it was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from .. import paths
from ..errors import UserError
from .corpora import Source


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus: its folder, the hash of its content and settings, and the name of its source."""

    folder: Path
    hash: str
    name: str


def seal(folder: Path, source: Source, settings: dict[str, Any], content: str, notes: list[str]) -> None:
    """Write what identifies the corpus and the checksums of all its files, ``done.json`` last."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": paths.file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    document = {
        "name": source.name,
        "hash": content,
        "settings": settings,
        "sources": [
            {"domain": file.domain, "split": file.split, "file": file.name, "size": file.size, "sha256": file.sha256}
            for file in source.files
        ],
        "notes": notes,
        "versions": {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__},
        "files": files,
    }
    paths.write_json(folder / "corpus.json", document)
    paths.write_text(folder / "done.json", _done_text(folder, content))


def _done_text(folder: Path, content: str) -> str:
    """All of ``done.json``."""
    return paths.json_text({"hash": content, "corpus.json": paths.file_sha256(folder / "corpus.json")})


def open_prepared(folder: Path) -> Prepared:
    """The prepared corpus in `folder`, after checking every file named in ``corpus.json`` by size and SHA-256.

    Raises UserError naming the file that is missing or differs.
    """
    remedy = "delete the folder and prepare the corpus again"
    for name in ("done.json", "corpus.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; expected a complete prepared corpus; {remedy}")
    try:
        document = paths.read_json(folder / "corpus.json")
        expected = {name: entry["sha256"] for name, entry in document["files"].items()}
        prepared = Prepared(folder, document["hash"], document["name"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / 'corpus.json'} is damaged; expected what prepare wrote; {remedy}") from None
    if (folder / "done.json").read_bytes() != _done_text(folder, prepared.hash).encode():
        raise UserError(f"done.json and corpus.json in {folder} do not belong together; expected one pair; {remedy}")
    for name, checksum in expected.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; expected every file named in corpus.json; {remedy}")
        size = document["files"][name]["size"]
        if path.stat().st_size != size:
            raise UserError(f"{path} has {path.stat().st_size} bytes; expected {size}; {remedy}")
        found = paths.file_sha256(path)
        if found != checksum:
            raise UserError(f"{path} has SHA-256 {found}; expected {checksum}; {remedy}")
    return prepared
