"""Unpacking archives that come from elsewhere: only plain files, only below the target, only so much."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from ..errors import UserError
from .download import check_space

MOST_ENTRIES = 100_000
LARGEST_TOTAL = 16 << 30  # bytes unpacked; the 100M corpora take less than 1 GiB
LARGEST_RATIO = 200  # unpacked to packed; text reaches about 4, the best case of the format 1000
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, RuntimeError),  # cut off; unknown compression; encrypted
)


def is_archive(name: str) -> bool:
    """Whether `unpack` handles a file of this name."""
    return name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2"))


def unpack(archive: Path, target: Path, place: Callable[[PurePosixPath], PurePosixPath | None]) -> list[Path]:
    """Write files of a zip or tar `archive` below `target`; returns their paths.

    `place` says where an entry belongs, relative to `target`, or None to leave it out. Raises UserError, with
    nothing written outside `target`, for entries that point elsewhere, links, devices, encrypted or damaged
    archives, and archives that grow beyond the limits.
    """
    limit = min(LARGEST_TOTAL, LARGEST_RATIO * archive.stat().st_size + (1 << 20))
    written: list[Path] = []
    total = 0
    try:
        for count, (name, size, stream) in enumerate(_entries(archive), 1):
            if count > MOST_ENTRIES:
                raise UserError(f"{archive} holds more than {MOST_ENTRIES} entries; expected fewer; check its source")
            inner = plain_path(archive, name)
            wanted = place(inner)
            if wanted is None:
                continue
            path = target / plain_path(archive, wanted.as_posix())
            if total + size > limit:
                raise _too_large(archive, limit)
            path.parent.mkdir(parents=True, exist_ok=True)
            check_space(path.parent, size)
            with path.open("xb") as file:
                while block := stream.read(1 << 20):
                    total += len(block)
                    if total > limit:  # what the archive says about sizes need not be true
                        raise _too_large(archive, limit)
                    file.write(block)
            written.append(path)
    except FileExistsError as error:
        raise UserError(f"{archive} holds {error.filename} twice; expected it once; check its source") from None
    except _DAMAGED as error:
        raise UserError(
            f"{archive} cannot be unpacked ({error}); expected a whole zip or tar; fetch it again"
        ) from None
    return written


def _too_large(archive: Path, limit: int) -> UserError:
    return UserError(
        f"{archive} ({archive.stat().st_size} bytes) unpacks to over {limit} bytes; expected text; check its source"
    )


def plain_path(archive: Path, name: str, marks: str = "\\:\0") -> PurePosixPath:
    """The path of an entry called `name`; UserError unless it stays below the folder that it is unpacked into.

    marks: what no name may hold; a backslash or a colon would mean another place on Windows.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or any(mark in name for mark in marks):
        raise UserError(
            f"{archive} holds an entry {name!r} that points elsewhere; expected plain names; do not trust it"
        )
    return path


def _entries(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, announced size and content of every file; folders are left out, anything else is refused."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if entry.is_dir():
                    continue
                if kind not in (0, stat.S_IFREG):
                    raise _not_a_file(archive, entry.filename)
                with packed.open(entry) as stream:
                    yield entry.filename, entry.file_size, stream
        return
    with tarfile.open(archive, "r|*") as packed_tar:
        for member in packed_tar:
            if member.isdir():
                continue
            stream_or_none = packed_tar.extractfile(member) if member.isreg() else None
            if stream_or_none is None:
                raise _not_a_file(archive, member.name)
            yield member.name, member.size, stream_or_none


def _not_a_file(archive: Path, name: str) -> UserError:
    return UserError(f"{archive} holds {name!r}, a link or device; expected plain files; do not trust it")
