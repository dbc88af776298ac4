"""Downloads that survive cuts: retry with growing pauses, resume by HTTP Range, checksum before the final name.

Written on requests: pooch, the usual choice for files with known checksums, starts a broken download from the
beginning, and corpora of several hundred MB need to go on where they stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3
from tqdm import tqdm

from .. import paths
from ..errors import UserError, first_line

CHUNK = 1 << 18  # bytes
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before the next attempt; an attempt that got further starts them anew
TIMEOUT = 30.0  # seconds without a byte before an attempt is given up
LARGEST_LISTING = 16 << 20  # bytes of one JSON answer
LARGEST_FILE = 20 << 30  # bytes of a file whose size nobody announced
# Servers that are busy say so with these; any other error status will not change by asking again.
BUSY = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Patience:
    """How long to wait; tests use shorter times."""

    pauses: tuple[float, ...] = PAUSES
    timeout: float = TIMEOUT
    sleep: Callable[[float], None] = time.sleep


PATIENT = Patience()


class _Interrupted(Exception):
    """An attempt failed in a way that another attempt may mend."""


def get_json(url: str, patience: Patience) -> Any:
    """The JSON document at `url`. Raises UserError when it cannot be had."""

    def attempt() -> Any:
        with _request(url, 0, patience) as response:
            content = bytearray()
            for block in _blocks(response):
                content += block
                if len(content) > LARGEST_LISTING:
                    raise UserError(f"{url} sends more than {LARGEST_LISTING} bytes; expected a short list; check it")
        try:
            return json.loads(content)
        except ValueError:
            raise _Interrupted("the answer is not JSON") from None

    return _persist(url, attempt, lambda: 0, patience)


def download(
    url: str,
    path: Path,
    size: int | None = None,
    sha256: str | None = None,
    patience: Patience = PATIENT,
) -> Path:
    """Fetch `url` into `path`, which appears only when it is complete and has the given size and SHA-256.

    What an earlier, broken attempt left (``.<name>.part``) is continued. A file that is there already is kept
    if it fits and fetched again if not. Raises UserError when it cannot be had or is not what was expected.
    """
    if path.is_file():
        if size in (None, path.stat().st_size) and sha256 in (None, paths.file_sha256(path)):
            return path
        path.unlink()
    paths.make_folder(path.parent)
    part = path.with_name(f".{path.name}.part")
    check_space(path.parent, max(0, (size or 0) - _length(part)))
    _persist(url, lambda: _continue(url, part, size, patience), lambda: _length(part), patience)
    if sha256 is not None and paths.file_sha256(part) != sha256:
        # A part from an older version of the file, or bytes changed on the way: once more, from the start.
        part.unlink()
        _persist(url, lambda: _continue(url, part, size, patience), lambda: _length(part), patience)
        found = paths.file_sha256(part)
        if found != sha256:
            part.unlink()
            raise UserError(f"{url} has SHA-256 {found}; expected {sha256}; try again later or from another source")
    part.replace(path)
    return path


def _continue(url: str, part: Path, size: int | None, patience: Patience) -> None:
    """One attempt: append what is missing to `part`."""
    have = _length(part)
    if size is not None and have > size:
        part.unlink()
        have = 0
    if size is not None and have == size:
        part.touch()
        return
    with _request(url, have, patience) as response:
        if response.status_code == 416:  # nothing behind what we have, and the size is unknown or differs
            part.unlink(missing_ok=True)
            raise _Interrupted("the server refuses to continue")
        resumed = response.status_code == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise _Interrupted("the server sent another part than asked for")
        start = have if resumed else 0
        compressed = response.headers.get("Content-Encoding", "identity") != "identity"
        announced = "" if compressed else response.headers.get("Content-Length", "")
        total = start + int(announced) if announced.isdigit() else None
        if size is not None and total not in (None, size):
            raise UserError(f"{url} has {total} bytes; expected {size}; try again later or from another source")
        limit = size if size is not None else total or LARGEST_FILE
        # Unbuffered: what has arrived is on disk when the process is killed.
        with part.open("ab" if resumed else "wb", buffering=0) as file, _bar(url, start, limit) as bar:
            for block in _blocks(response):
                start += len(block)
                if start > limit:
                    raise UserError(f"{url} sends more than {limit} bytes; expected no more; check the source")
                file.write(block)
                bar.update(len(block))
    expected = size if size is not None else total
    if expected is not None and start < expected:
        raise _Interrupted(f"the connection ended after {start} of {expected} bytes")


def _request(url: str, start: int, patience: Patience) -> requests.Response:
    # identity: a compressed transfer could not be continued at a byte of the file.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=patience.timeout)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _Interrupted(first_line(error)) from None
    except requests.RequestException as error:
        raise UserError(f"{url} cannot be fetched ({first_line(error)}); expected a web address; check it") from None
    if url.startswith("https:") and not response.url.startswith("https:"):
        response.close()
        raise UserError(f"{url} leads to the unprotected {response.url}; expected https; check the source")
    if response.status_code in BUSY:
        response.close()
        raise _Interrupted(f"status {response.status_code}")
    if response.status_code >= 400 and response.status_code != 416:
        response.close()
        raise UserError(
            f"{url} answers with status {response.status_code} {response.reason}; expected a file; check the name"
        )
    return response


def _blocks(response: requests.Response) -> Iterator[bytes]:
    # Not response.iter_content: it waits for a whole chunk, and loses what it has of one when the connection ends.
    try:
        while block := response.raw.read1(CHUNK, decode_content=True):
            yield block
    except urllib3.exceptions.HTTPError as error:
        raise _Interrupted(first_line(error)) from None


def _persist(url: str, attempt: Callable[[], Any], progress: Callable[[], int], patience: Patience) -> Any:
    """Call `attempt` until it succeeds; give up when all pauses passed without `progress` growing."""
    failures = 0
    reached = progress()
    while True:
        try:
            return attempt()
        except _Interrupted as error:
            if progress() > reached:
                reached = progress()
                failures = 0
            if failures == len(patience.pauses):
                raise UserError(
                    f"{url} could not be fetched ({error}, {failures + 1} attempts); expected a complete answer;"
                    " check the connection and start again: it goes on where it stopped"
                ) from None
            patience.sleep(patience.pauses[failures])
            failures += 1


def _bar(url: str, start: int, total: int) -> Any:
    name = url.rstrip("/").rsplit("/", 1)[-1]
    total_shown = total if total != LARGEST_FILE else None
    return tqdm(
        desc=name,
        initial=start,
        total=total_shown,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None,
    )


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError unless `needed` bytes, and a little for the rest of the system, are free at `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed + (64 << 20):
        raise UserError(
            f"{folder} has {free >> 20} MiB free; expected {(needed >> 20) + 64} MiB; free some space or use --out"
        )


def git_blob_id(path: Path) -> str:
    """The id under which git stores the content of a file: SHA-1 of ``blob <size>``, a zero byte, the content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()
