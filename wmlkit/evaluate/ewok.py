"""EWoK's filter and copies: from the gated test split to a folder of JSONL files, as the 2024 pipeline writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from .. import paths
from ..errors import UserError
from .suites import EWOK_HELP, EWOK_KEYS, read_rows, text_of
from .treebank import treebank_words


def write_ewok(source: str | Path, folder: str | Path, vocabulary: Iterable[str] | None = None) -> dict[str, int]:
    """Filter EWoK's test split (JSONL) and write one file a domain into `folder`; returns the rows of each.

    A row stays if every word of its contexts and targets, lower-cased, is in `vocabulary` (None: all stay). Each is
    followed by its swapped copy, second context and second target first, as the 2024 pipeline writes it
    (ewok/dl_and_filter.py). Words are those of `treebank_words`: punctuation and clitics on their own.
    What an earlier call left in `folder` is replaced, all of it. Raises UserError where no row stays, and for a folder
    that holds anything else.
    """
    source, folder = Path(source), Path(folder)
    if not source.is_file():
        raise UserError(f"there is no file {source}; expected EWoK's test split as JSONL; {EWOK_HELP}")
    known = None if vocabulary is None else {word.strip().lower() for word in vocabulary}
    by_domain: dict[str, list[str]] = {}
    for number, row in read_rows(source):
        origin = f"{source.name} line {number}"
        texts = [text_of(row, key, origin) for key in EWOK_KEYS]
        if known is not None and not all(word in known for text in texts for word in treebank_words(text)):
            continue
        swapped = row | {
            "Context1": row["Context2"],
            "Context2": row["Context1"],
            "Target1": row["Target2"],
            "Target2": row["Target1"],
        }
        domain = text_of(row, "Domain", origin)
        if not _FILE_NAME.fullmatch(domain):
            raise UserError(f"{origin} has {domain!r} as Domain; expected a plain name, as it names a file; mend it")
        lines = by_domain.setdefault(domain, [])
        lines.extend(json.dumps(each, ensure_ascii=False) for each in (row, swapped))
    if not by_domain:
        raise UserError(
            f"no row of {source.name} is left; expected some whose words are all in the vocabulary; give the words of "
            "ewok/vocab.txt one by one, or no vocabulary"
        )
    others = [file.name for file in sorted(folder.iterdir()) if not _is_domain(file)] if folder.is_dir() else []
    if others:
        raise UserError(
            f"{folder} holds {others[0]}, which is no domain of EWoK and would be deleted; expected a new folder or "
            "one that write_ewok wrote; give another"
        )

    def write(temporary: Path) -> None:
        for domain, lines in by_domain.items():
            paths.write_text(temporary / f"{domain}.jsonl", "\n".join(lines) + "\n")

    paths.write_folder(folder, write)
    return {domain: len(lines) for domain, lines in sorted(by_domain.items())}


_FILE_NAME = re.compile(r"\w[\w .&-]*")


def _is_domain(file: Path) -> bool:
    """Whether `write_ewok` can have written a file."""
    if file.suffix != ".jsonl" or not file.is_file():
        return False
    return next((row.get("Domain") for _, row in read_rows(file)), None) == file.stem
