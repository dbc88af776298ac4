"""Token files: documents as one flat array of token ids, memory-mapped, behind a header that is checked.

The released code wrote the *text* of a list of ids and read the bytes of its digits back as 16-bit ids. Nothing
failed, because every pair of digits is a valid id. A token file therefore says what it is, and `open_tokens`
refuses everything that does not agree with its header::

    bytes 0..1023    magic, then a JSON header, padded with spaces and closed by a line end
    bytes 1024..     `count` little-endian numbers of the header's dtype

A document is stored as ``<s> line </s> line </s> ...``: the start token once, the end token after each line, so
that a document of one line is exactly ``tokenizer(line)``.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from .. import paths
from ..errors import UserError, unknown_text_told
from .tokenizer import plain_backend, text_batches, tokenizer_hash, unknown_id

MAGIC = b"WMLTOKEN1\n"
HEADER_BYTES = 1024  # fixed, so that a stream can be written before its length and checksum are known
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4"), "uint64": np.dtype("<u8")}

Header = dict[str, Any]  # dtype, vocab_size, tokenizer_hash, count, sha256, kind


def token_dtype(vocab_size: int) -> str:
    """``uint16`` where every id below `vocab_size` fits, else ``uint32``."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def write_array(
    path: Path, chunks: Iterable[np.ndarray], kind: str, dtype: str, vocab_size: int, made_by: str
) -> Header:
    """Stream `chunks` (one-dimensional arrays) into one file and return its header.

    The file appears under `path` only when it is complete. Memory: one chunk. Raises ValueError for an
    id outside the vocabulary (`kind` "tokens"), which would be a fault of this package.
    """
    header: Header = {}

    def write(temporary: Path) -> None:
        digest = hashlib.sha256()
        count = 0
        with temporary.open("wb") as file:
            file.write(b"\0" * HEADER_BYTES)
            for chunk in chunks:
                if kind == "tokens" and len(chunk) and int(chunk.max()) >= vocab_size:
                    raise ValueError(f"token id {int(chunk.max())} is outside the vocabulary of {vocab_size}")
                payload = np.ascontiguousarray(chunk, dtype=DTYPES[dtype]).tobytes()
                digest.update(payload)
                count += len(chunk)
                file.write(payload)
            header.update(
                kind=kind,
                dtype=dtype,
                vocab_size=vocab_size,
                tokenizer_hash=made_by,
                count=count,
                sha256=digest.hexdigest(),
            )
            text = MAGIC + json.dumps(header).encode()
            file.seek(0)
            file.write(text.ljust(HEADER_BYTES - 1) + b"\n")

    paths.write_atomic(path, write)
    return header


def open_tokens(path: Path) -> tuple[np.ndarray, Header]:
    """The numbers of a token (or document) file as a read-only memory map of shape (count,), and its header.

    Checks the magic, the header, the dtype and that the length of the file is what the header says. Raises UserError
    naming the file and the difference.
    """
    remedy = "prepare the corpus again"
    if not path.is_file():
        raise UserError(f"there is no token file {path}; expected one written by `wmlkit data prepare`; {remedy}")
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    if not start.startswith(MAGIC):
        raise UserError(f"{path} does not begin as a token file does; expected {MAGIC.strip().decode()}; {remedy}")
    if len(start) < HEADER_BYTES:
        raise UserError(f"{path} ends inside its header; expected at least {HEADER_BYTES} bytes; {remedy}")
    try:
        header = json.loads(start[len(MAGIC) :].decode())
        kind, dtype, count = header["kind"], DTYPES[header["dtype"]], header["count"]
        vocab_size, checksum = header["vocab_size"], header["sha256"]
        valid = isinstance(header["tokenizer_hash"], str) and isinstance(checksum, str)
        valid = valid and type(count) is int and count >= 0 and type(vocab_size) is int
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise UserError(f"the header of {path} is damaged; expected the JSON that was written with it; {remedy}")
    expected_dtype = token_dtype(vocab_size) if kind == "tokens" else "uint64"
    if header["dtype"] != expected_dtype:
        raise UserError(
            f"{path} says dtype {header['dtype']}; expected {expected_dtype} for {kind} of a vocabulary of"
            f" {vocab_size}; {remedy}"
        )
    expected = HEADER_BYTES + count * dtype.itemsize
    found = path.stat().st_size
    if found != expected:
        raise UserError(f"{path} has {found} bytes; expected {expected} for {count} entries; {remedy}")
    if count == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype), header
    return np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(count,)), header


def check_tokenizer(header: Header, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise UserError unless the tokens behind `header` were made by `tokenizer`."""
    found = tokenizer_hash(tokenizer)
    if header["tokenizer_hash"] != found or header["vocab_size"] != len(tokenizer):
        raise UserError(
            f"the tokens were made by tokenizer {header['tokenizer_hash']} ({header['vocab_size']} entries), but the"
            f" tokenizer given is {found} ({len(tokenizer)} entries); expected the same one; prepare the corpus with it"
        )


def encode_documents(tokenizer: PreTrainedTokenizerFast, documents: Iterable[Sequence[str]]) -> Iterator[np.ndarray]:
    """One array of ids a document (a list of lines), in order: ``<s> line </s> line </s> ...``.

    Lines go through the tokenizer's own threads in batches, so memory is bounded by a batch plus a document.
    """
    backend = plain_backend(tokenizer)
    dtype = DTYPES[token_dtype(len(tokenizer))]
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for batch in text_batches(documents, lambda document: sum(map(len, document))):
        lines = [line for document in batch for line in document]
        with unknown_text_told():
            encoded = iter(backend.encode_batch_fast(lines, add_special_tokens=False))
        for document in batch:
            ids = [start]
            for _ in document:
                ids.extend(next(encoded).ids)
                ids.append(end)
            yield np.array(ids, dtype=dtype)


def count_tokens(tokenizer: PreTrainedTokenizerFast, lines: Iterable[str]) -> int:
    """Tokens in `lines`, without start and end tokens."""
    backend = plain_backend(tokenizer)
    total = 0
    for batch in text_batches(lines):
        with unknown_text_told():
            total += sum(map(len, backend.encode_batch_fast(batch, add_special_tokens=False)))
    return total


def left_out(tokenizer: PreTrainedTokenizerFast, lines: Iterable[str]) -> tuple[int, int]:
    """Characters of `lines` that no token stands for, and all of them, as normalised and without white space.

    A BPE that has neither all bytes nor an unknown token leaves out what it does not know; other engines raise or write
    an unknown token. Offsets do not tell, as those behind such a character are wrong.
    """
    backend = plain_backend(tokenizer)
    normalizer, backend.normalizer = backend.normalizer, None  # what it joins, as accents, may be unknown apart
    seen: Counter[str] = Counter()
    for line in lines:
        seen.update("".join((normalizer.normalize_str(line) if normalizer else line).split()))
    if not isinstance(backend.model, models.BPE):
        return 0, seen.total()
    # Twice: it may know a character only at the beginning or the end of a word
    encoded = backend.encode_batch_fast([2 * character for character in seen], add_special_tokens=False)
    without = [count for count, found in zip(seen.values(), encoded, strict=True) if not found.ids]
    return sum(without), seen.total()


def unknown_tokens(path: Path, tokenizer: PreTrainedTokenizerFast) -> int:
    """Unknown tokens in a token file; 0 where the token that stands for the unknown ends a text, too."""
    unknown = unknown_id(tokenizer)
    if unknown in (None, tokenizer.bos_token_id, tokenizer.eos_token_id):
        return 0
    return int(np.count_nonzero(open_tokens(path)[0] == unknown))


def write_documents(
    path: Path, tokenizer: PreTrainedTokenizerFast, documents: Iterable[list[str]]
) -> tuple[Header, np.ndarray]:
    """Encode `documents` into ``path`` (``<split>.tokens``) and their starts into ``<split>.documents`` beside it.

    Returns the header of the token file and the number of tokens of every document, shape (documents,).
    """
    lengths: list[int] = []

    def chunks() -> Iterator[np.ndarray]:
        for ids in encode_documents(tokenizer, documents):
            lengths.append(len(ids))
            yield ids

    made_by, size = tokenizer_hash(tokenizer), len(tokenizer)
    header = write_array(path, chunks(), "tokens", token_dtype(size), size, made_by)
    counts = np.array(lengths, dtype=np.uint64)
    starts = np.zeros(len(counts), dtype=np.uint64)
    if len(counts):
        starts[1:] = np.cumsum(counts)[:-1]
    write_array(path.with_suffix(".documents"), [starts], "documents", "uint64", size, made_by)
    return header, counts


def open_documents(path: Path) -> np.ndarray:
    """Starts of the documents of token file ``<split>.tokens``, shape (documents,), read from ``<split>.documents``.

    Raises UserError when the two files do not belong together.
    """
    tokens, header = open_tokens(path)
    starts, other = open_tokens(path.with_suffix(".documents"))
    fits = other["tokenizer_hash"] == header["tokenizer_hash"] and other["kind"] == "documents"
    fits = fits and (len(starts) == 0) == (len(tokens) == 0)
    if fits and len(starts):
        fits = int(starts[0]) == 0 and int(starts[-1]) < len(tokens) and bool(np.all(starts[1:] > starts[:-1]))
    if not fits:
        raise UserError(
            f"{path.with_suffix('.documents')} does not belong to {path.name}; expected rising starts below"
            f" {len(tokens)}; prepare the corpus again"
        )
    return starts


def decoded_documents(path: Path, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[str]]:
    """The documents behind token file ``<split>.tokens``, each a list of lines: what `encode_documents` was given.

    It is the text as the tokenizer sees it: exact for byte-level tokenizers that normalise nothing. Raises UserError
    for a tokenizer that did not make the tokens.
    """
    for lines in stored_lines(path, tokenizer):
        yield tokenizer.backend_tokenizer.decode_batch([line.tolist() for line in lines], skip_special_tokens=False)


def stored_lines(path: Path, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[np.ndarray]]:
    """The ids of these documents, an array a line, without start and end tokens."""
    tokens, header = open_tokens(path)
    check_tokenizer(header, tokenizer)
    starts = open_documents(path).tolist()
    for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
        ids = tokens[start + 1 : stop]  # without the start token, which may be the end token too
        lines = np.split(ids, np.flatnonzero(ids == tokenizer.eos_token_id) + 1)[:-1]
        yield [line[:-1] for line in lines]
