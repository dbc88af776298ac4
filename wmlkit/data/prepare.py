"""From a source of text to token files: clean, sample, split, train the tokenizer, encode.

Everything streams. The cleaned text is written once to a spool file inside the unfinished folder and read back
for the tokenizer and for each split, so memory holds one batch of lines, the counts of the documents and the set
of distinct words of one domain. The folder is filled under a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from .. import paths
from ..errors import UserError
from ..identity import digest
from ..settings import DataConfig
from . import cleaning, nursery, splits
from .corpora import Source, Split, find_source, folder_source, read_lines
from .encode import count_tokens, unknown_tokens, write_documents
from .notes import cleaned_by_name, given_back, idle_settings, not_read, repeated, unspaced, white_space
from .prepared import Prepared, open_prepared, seal
from .statistics import DomainCounts, check_tokens, domain_statistics, example_lines
from .tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash, train_tokenizer

# Raise it whenever prepare writes other bytes for the same text and settings.
FORMAT_VERSION = 2
NURSERY_WORDS = 200_000  # of training text, where data.words does not say
# Of the nursery texts that this process has written, by their sizes and seed, which determine every byte: a notebook
# asks for the same corpus several times, and writing it takes half a second.
_nursery_sums: dict[tuple[int, int, int], list[list[str]]] = {}
T = TypeVar("T")

log = logging.getLogger(__name__)


def prepare(data: DataConfig, out: Path, needs_mask: bool = False) -> Prepared:
    """Prepare the corpus `data.corpus` below ``out/data``, or return it when the same content is there already.

    The folder's hash covers the content of the source files and the settings that shape the result; the same
    inputs give the same bytes. needs_mask: for masked models. Raises UserError, leaving nothing behind, when there is
    no text to work with, or a tokenizer that is given lacks a token.
    """
    tokenizer = None if data.tokenizer == "train" else load_tokenizer(data.tokenizer, needs_mask)
    if tokenizer is not None:
        _check_ids(tokenizer, data.tokenizer)
    text = (*_nursery_sizes(data), data.seed)
    source = None if data.corpus == "nursery" else find_source(data.corpus, out)
    if source is not None and source.name == "nursery":  # results and run folders know a corpus by its name
        raise UserError(
            f"data.corpus {data.corpus} would be taken for the embedded text, because of its name; expected another "
            "name than nursery; rename it"
        )
    _remove_leftovers(paths.data(out))
    if sums := _nursery_sums.get(text) if source is None else _sums(source):
        content = _content_hash(sums, data, tokenizer)
        final = paths.prepared(out, "nursery" if source is None else source.name, content)
        if (final / "done.json").is_file():  # found without writing: the folder may be read-only
            return _opened(final, content)
    with _workspace(paths.data(out)) as work:
        if source is None:
            nursery.write_corpus(work / "nursery", *text)
            source = folder_source("nursery", work / "nursery")
            _nursery_sums[text] = _sums(source)
        content = _content_hash(_sums(source), data, tokenizer)
        final = paths.prepared(out, source.name, content)
        if not (final / "done.json").is_file():
            _fill(work, source, data, tokenizer, content)
            _publish(work / "corpus", final)
        return _opened(final, content)


def hash_of_text(data: DataConfig, out: Path, needs_mask: bool) -> str:
    """The hash of `prepare`; "" where it finds no text to work with."""
    try:
        return prepare(data, out, needs_mask).hash
    except UserError:
        return ""


def _opened(final: Path, content: str) -> Prepared:
    prepared = open_prepared(final)
    if prepared.hash != content:
        raise UserError(f"{final} holds the corpus {prepared.hash}; expected {content}; delete that folder")
    return prepared


def _sums(source: Source) -> list[list[str]]:
    return [[file.domain, file.split, file.sha256] for file in source.files]


def _nursery_sizes(data: DataConfig) -> tuple[int, int]:
    words = data.words or NURSERY_WORDS
    return words, data.dev_words or max(words // 20, 1000)


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders for unfinished work that killed processes left below `parent`, where it may be written to."""
    for leftover in parent.glob(".prepare-*/"):
        with suppress(OSError), _held(leftover):  # Timeout, one of them, where its process is alive
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _workspace(parent: Path) -> Iterator[Path]:
    """A folder for unfinished work below `parent`, removed at the end whatever happens.

    Each process holds a lock beside its folder for as long as it lives; process numbers would not do, as containers and
    machines that share the folder have the same ones.
    """
    created = [folder for folder in (parent, parent.parent) if not folder.exists()]
    paths.make_folder(parent)
    work = parent / f".prepare-{uuid.uuid4().hex}"
    try:
        with _held(work):
            work.mkdir()
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
    finally:
        for folder in created:
            with suppress(OSError):  # not empty: something was made
                folder.rmdir()


@contextmanager
def _held(work: Path) -> Iterator[None]:
    """Hold the lock of the folder `work`, and remove its file at the end; Timeout where another process has it."""
    file = work.with_name(f"{work.name}.lock")
    with FileLock(file, timeout=0):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no file that is open
                file.unlink()


def _publish(folder: Path, final: Path) -> None:
    """Rename the complete `folder` to `final`. Another process may have been faster; the bytes are the same."""
    if final.exists() and not (final / "done.json").is_file():
        shutil.rmtree(final)  # someone removed done.json: not a whole corpus any more
    try:
        os.rename(folder, final)
    except OSError:
        if not (final / "done.json").is_file():
            raise


def _check_ids(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Raises UserError where ids lie past the rows that a model has, one for each entry."""
    highest = max(tokenizer.get_vocab().values())
    if highest >= len(tokenizer):
        raise UserError(
            f"the tokenizer {name!r} has {len(tokenizer):,} entries and ids up to {highest:,}; expected ids from 0 on "
            "without gaps, as models have a row for each entry; number them anew, or choose another tokenizer"
        )


def _content_hash(sums: list[list[str]], data: DataConfig, tokenizer: PreTrainedTokenizerFast | None) -> str:
    return digest(
        {
            "format": FORMAT_VERSION,
            "files": sums,
            "settings": _settings(data, tokenizer),
        }
    )


def _settings(data: DataConfig, tokenizer: PreTrainedTokenizerFast | None) -> dict[str, Any]:
    """The settings that shape a prepared corpus. The nursery's sizes are in its text, which is hashed anyway."""
    nursery_made = data.corpus == "nursery"
    settings: dict[str, Any] = {
        "words": None if nursery_made else data.words,
        "dev_words": None if nursery_made else data.dev_words,
        "held_out": data.held_out,
        "seed": data.seed,
        "cleaning_rules": cleaning.RULES_VERSION if data.clean else None,
    }
    if tokenizer is None:
        settings["tokenizer"] = {"vocab_size": data.vocab_size, "lowercase": data.lowercase, "nfkc": data.nfkc}
    else:
        settings["tokenizer"] = tokenizer_hash(tokenizer)
        # Which of its entries begin, end, pad and mask texts is not in the engine, which is hashed above
        settings["special_tokens"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return settings


def _fill(
    work: Path, source: Source, data: DataConfig, tokenizer: PreTrainedTokenizerFast | None, content: str
) -> None:
    folder = work / "corpus"
    folder.mkdir()
    settings = _settings(data, tokenizer)
    source_splits: tuple[Split, ...] = ("train", "dev")
    parts = [
        _clean_part(work / f"{split}-{number}.txt", source, domain, split, data.clean)
        for split in source_splits
        for number, domain in enumerate(source.domains())
        if source.of(domain, split)
    ]
    chosen, told = splits.assign(parts, settings, data.words if data.corpus == "nursery" else None)
    notes = told + not_read(source) + idle_settings(data) + white_space(parts) + cleaned_by_name(source, parts)
    notes += unspaced(parts)
    if data.corpus != "nursery":  # its small grammar repeats itself, as it is meant to
        notes += repeated(parts, chosen)
    given = tokenizer is not None
    if tokenizer is None:
        lines = _progress(_lines(parts, chosen["train"]), "tokenizer", "lines")
        tokenizer = train_tokenizer(lines, data.vocab_size, data.lowercase, data.nfkc)
    save_tokenizer(tokenizer, paths.tokenizer(folder))
    statistics = _encode_splits(folder, source, parts, chosen, tokenizer)
    if given:
        notes += given_back(lambda: _lines(parts, chosen["dev"]), folder / "dev.tokens", tokenizer)
    for note in notes:
        log.warning("%s: %s", source.name, note)
    statistics["tokenizer"] = {
        "entries": len(tokenizer),
        "hash": tokenizer_hash(tokenizer),
        "trained": data.tokenizer == "train",
    }
    statistics["notes"] = notes
    paths.write_json(folder / "statistics.json", statistics)
    if data.clean:
        examples = {
            part.domain: example_lines(part.domain, _source_lines(source, part))
            for part in parts
            if part.split == "train"
        }
        paths.write_json(folder / "examples.json", examples)
    seal(folder, source, settings, content, notes)


def _source_lines(source: Source, part: splits.Part) -> Iterator[str]:
    """The lines of the source behind `part`; a new file starts a new document."""
    for file in source.of(part.domain, part.split):
        yield from read_lines(file)
        yield ""


def _clean_part(spool: Path, source: Source, domain: str, split: Split, clean: bool) -> splits.Part:
    """Clean one split of one domain into a spool file, one line a line; `Part.counts` knows where documents end."""
    part = splits.Part(domain, split, spool, DomainCounts())
    counts = part.counts
    raw = counts.raw(_progress(_source_lines(source, part), f"cleaning {domain}", "lines"))
    function = cleaning.cleaner(domain) if clean else cleaning.untouched
    with part.spool.open("w", encoding="utf-8", newline="\n") as file:
        for document in splits.group_documents(function(raw, counts.removed)):
            counts.add(document)
            file.writelines(f"{line}\n" for line in document)
    counts.close()
    return part


def _documents(parts: list[splits.Part], masks: list[np.ndarray]) -> Iterator[list[str]]:
    for part, mask in zip(parts, masks, strict=True):
        if mask.any():
            yield from part.documents(mask)


def _lines(parts: list[splits.Part], masks: list[np.ndarray]) -> Iterator[str]:
    return (line for document in _documents(parts, masks) for line in document)


def _encode_splits(
    folder: Path,
    source: Source,
    parts: list[splits.Part],
    chosen: dict[str, list[np.ndarray]],
    tokenizer: PreTrainedTokenizerFast,
) -> dict[str, Any]:
    """Write the token files of all splits and return the counts for ``statistics.json``."""
    text_tokens = [0] * len(parts)  # of each part, in all splits, without start and end tokens
    rows: list[dict[str, Any]] = []
    for split in splits.SPLITS:
        documents = _progress(_documents(parts, chosen[split]), f"encoding {split}", "documents")
        _, lengths = write_documents(folder / f"{split}.tokens", tokenizer, documents)
        position = 0
        for index, (part, mask) in enumerate(zip(parts, chosen[split], strict=True)):
            count = int(mask.sum())
            if not count:
                continue
            lines = int(np.array(part.counts.document_lines)[mask].sum())
            tokens = int(lengths[position : position + count].sum())
            position += count
            text_tokens[index] += tokens - lines - count
            sizes = {"documents": count, "lines": lines, "words": int(part.words()[mask].sum()), "tokens": tokens}
            rows.append({"split": split, "domain": part.domain, **sizes})
    check_tokens(rows, {split: unknown_tokens(folder / f"{split}.tokens", tokenizer) for split in splits.SPLITS})
    domains = []
    for index, part in enumerate(parts):
        used = np.logical_or.reduce([chosen[split][index] for split in splits.SPLITS])
        unused = (line for document in part.documents(~used) for line in document)
        tokens = text_tokens[index] + count_tokens(tokenizer, unused)
        raw = _progress(_source_lines(source, part), f"counting {part.domain}", "lines")
        raw_tokens = count_tokens(tokenizer, (line for line in raw if line.strip()))
        domains.append(domain_statistics(part.domain, part.split, part.counts, raw_tokens, tokens))
    return {"corpus": source.name, "splits": rows, "domains": domains}


def _progress(items: Iterable[T], what: str, unit: str) -> Iterable[T]:
    return tqdm(items, desc=what, unit=f" {unit}", leave=False, mininterval=0.5, disable=None)
