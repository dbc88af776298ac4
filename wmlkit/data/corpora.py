"""Where text comes from: a folder, a zip file or a corpus that was fetched before.

A source is a list of text files, each with its domain, its split and its checksum; reading one is a stream of
lines. In a folder or zip, ``<domain>.train`` is training text of that domain, ``<domain>.dev`` its dev text, and
every ``.txt`` is training text of a domain named after the folder it lies in. Nothing is unpacked to disk. Files with
other names are not read; a source names them.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from .. import paths
from ..errors import UserError
from .archives import LARGEST_RATIO, plain_path

Split = Literal["train", "dev"]
SUFFIXES: dict[str, Split] = {".train": "train", ".txt": "train", ".dev": "dev"}
# A file without line ends must not fill the memory: a longer line is read in pieces, cut at a space.
LONGEST_LINE = 1 << 20  # characters

_ABOUT = re.compile(r"(?:readme|licen[cs]e|copying|notice)(?![a-z])", re.IGNORECASE)  # names of files about a corpus

# First bytes of files that are often taken for text, or whose first lines can be.
KINDS = {
    b"\xff\xfe": "UTF-16 text", b"\xfe\xff": "UTF-16 text", b"\x1f\x8b": "a gzip archive", b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive", b"PK\x03\x04": "a zip archive", b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)", b"%PDF-": "a PDF file", b"PAR1": "a Parquet file",
}  # fmt: skip


@dataclass(frozen=True)
class TextFile:
    """One file of a source. `name` is its path inside `container`, which is the folder or the zip file."""

    domain: str
    split: Split
    name: str
    container: Path
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Source:
    """A corpus before preparation: its name and its files in a fixed order."""

    name: str
    files: tuple[TextFile, ...]
    skipped: tuple[str, ...]  # names of an own corpus' files that are no text by their names and not about it

    def domains(self) -> list[str]:
        """Names of the domains, training before dev-only ones, alphabetically."""
        train = {file.domain for file in self.files if file.split == "train"}
        return sorted(train) + sorted({file.domain for file in self.files} - train)

    def of(self, domain: str, split: Split) -> list[TextFile]:
        """The files of one domain and split."""
        return [file for file in self.files if file.domain == domain and file.split == split]


def find_source(corpus: str, out: Path) -> Source:
    """The source behind ``data.corpus``: a folder, a ``.zip`` file, or the name of a corpus fetched into `out`.

    Raises UserError when there is no such thing, no training text in it, or two files of one domain and split.
    """
    fetched = paths.fetched(out, corpus)
    is_name = not {"/", "\\"} & set(corpus) and corpus not in ("", ".", "..")
    if is_name and fetched.is_dir():
        # What lies there beside the text is the package's own, so nobody waits for it.
        return replace(_describe(corpus, fetched, files_of_folder(fetched)), skipped=())
    path = paths.given(corpus)
    if corpus and path.is_dir():
        return _describe(path.resolve().name, path, files_of_folder(path))
    if path.is_file() and path.suffix.lower() == ".zip":
        return _describe(path.stem, path, _files_of_zip(path))
    if path.is_file():
        raise UserError(
            f"the corpus {corpus!r} is a single file; expected a folder or .zip file with .train, .dev or .txt files;"
            " put the file into a folder of its own"
        )
    raise UserError(
        f"there is no corpus {corpus!r}; expected 'nursery', a corpus fetched with `wmlkit data fetch`,"
        " or an existing folder or .zip file; check data.corpus"
    )


def folder_source(name: str, folder: Path) -> Source:
    """The source in `folder`, called `name`. Raises UserError as `find_source` does."""
    return _describe(name, folder, files_of_folder(folder))


def files_of_folder(folder: Path) -> list[str]:
    """The files in and below `folder` by their paths inside it, hidden ones left out; links are followed.

    Raises UserError for what would leave text out or take it twice: a folder that cannot be listed, a link to nothing,
    a link to a folder or a text that is read anyway.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}); expected a folder of text; give access to it or move "
            "it away"
        )

    def once(path: Path, real: Path) -> None:
        if real in seen:
            raise UserError(
                f"{path} is {real}, which holds the corpus or was read before; expected everything once; remove the "
                "link that leads there"
            )
        seen.add(real)

    found, seen = [], {*folder.resolve().parents}
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        # "lost+found", at the root of a disk, is for its owner alone
        folders[:] = [name for name in folders if not name.startswith(".") and name != "lost+found"]
        once(Path(place), real := Path(place).resolve())
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if not path.exists():
                raise UserError(f"{path} is a link to nothing; expected a file; mend the link or remove it")
            if path.is_file():
                found.append(path.relative_to(folder).as_posix())
                if path.suffix.lower() in SUFFIXES:
                    once(path, path.resolve() if path.is_symlink() else real / path.name)
    return found


def _files_of_zip(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(
            f"the zip file {path} cannot be read ({error}); expected a complete one; copy it again"
        ) from None
    twice = Counter(entry.filename for entry in entries).most_common(1)
    if twice and twice[0][1] > 1:  # the second would be read both times
        raise UserError(f"{path} holds {twice[0][0]} twice; expected it once; pack the files again")
    for entry in entries:
        plain_path(path, entry.filename, marks="")  # unpacked nowhere: "Chapter 1: Start.txt" is a name like any other
        if entry.flag_bits & 1:
            raise UserError(f"{entry.filename!r} in {path} is encrypted; expected plain text; unpack it first")
        # a zip is read as a stream, so a bomb costs time, not disk or memory
        if entry.file_size > LARGEST_RATIO * max(entry.compress_size, 1) + (1 << 20):
            raise UserError(
                f"{entry.filename!r} in {path} grows from {entry.compress_size} to {entry.file_size} bytes;"
                f" expected at most {LARGEST_RATIO} times; unpack it first if you trust it"
            )
    # "__MACOSX/._x.txt" is what macOS packs beside every file; hidden files are no corpus either.
    names = [entry.filename for entry in entries]
    return [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)]


def _describe(name: str, container: Path, names: list[str]) -> Source:
    files: list[TextFile] = []
    skipped: list[str] = []
    seen: dict[tuple[str, str], str] = {}
    for inner in sorted(names):
        if any("\ud800" <= character <= "\udfff" for character in inner):  # bytes that are no UTF-8: no JSON takes them
            raise UserError(
                f"{container} holds a file whose name cannot be written as text, {inner!a}; expected names in UTF-8; "
                "rename it"
            )
        path = PurePosixPath(inner)
        split = SUFFIXES.get(path.suffix.lower())
        if split is None:
            if not _ABOUT.match(path.name):
                skipped.append(inner)
            continue
        plain = path.suffix.lower() == ".txt"
        domain = (".".join(path.parent.parts) or name) if plain else path.stem
        first = seen.setdefault((domain, split), inner)
        # Any number of .txt files make one domain; no other file may share it with them or with another one.
        if first != inner and not (plain and first.lower().endswith(".txt")):
            raise UserError(
                f"{container} holds two files for the {split} text of {domain!r}, {first} and {inner};"
                " expected one; give the folder of one of them"
            )
        size, sha256 = _digest(container, inner)
        files.append(TextFile(domain, split, inner, container, size, sha256))
    if not any(file.split == "train" for file in files):
        others = [*skipped, *(file.name for file in files)]
        raise UserError(
            f"{container} holds no training text{f', only {few(others)}' if others else ''}; expected <domain>.train or"
            " .txt files; check data.corpus"
        )
    if not any(file.split == "train" and file.size for file in files):
        raise UserError(f"all training files in {container} are empty; expected text; check data.corpus")
    return Source(name, tuple(files), tuple(skipped))


def few(names: Sequence[str]) -> str:
    """The first three names and how many more there are.

    >>> few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def open_binary(container: Path, name: str) -> BinaryIO:
    """One file of a folder or zip, for reading bytes."""
    if container.is_dir():
        return (container / name).open("rb")
    return _archive(container, container.stat().st_mtime_ns, os.getpid()).open(name)  # type: ignore[return-value]


@lru_cache(maxsize=1)
def _archive(path: Path, changed: int, process: int) -> zipfile.ZipFile:
    """The zip file `path` as it was last `changed`: opening one reads the list of all its members, which of many small
    texts takes longer than the texts. process: a forked one would move the place where this one reads."""
    return zipfile.ZipFile(path)


def _digest(container: Path, name: str) -> tuple[int, str]:
    """Size in bytes and SHA-256."""
    try:
        with open_binary(container, name) as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            return file.tell(), checksum
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise UserError(
            f"{name} in {container} cannot be read ({error}); expected a readable text file; copy it again"
        ) from None


def read_lines(file: TextFile) -> Iterator[str]:
    """The lines of `file`, see `lines_of`."""
    return lines_of(file.container, file.name)


def lines_of(container: Path, name: str) -> Iterator[str]:
    """The lines of one file of a folder or zip without their line ends, as a stream; UTF-8, with or without a byte
    order mark.

    Lines end with LF, CR LF or CR. Raises UserError where the file is another kind of file, or its text is not UTF-8.
    """
    with open_binary(container, name) as binary:
        start = binary.read(max(map(len, KINDS)))
    kind = next((kind for mark, kind in KINDS.items() if start.startswith(mark)), None)
    if kind is not None:
        raise UserError(f"{name} in {container} is {kind}; expected text in UTF-8; convert or unpack the file")
    with open_binary(container, name) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig") as text:
        rest, cut = "", False
        try:
            while piece := text.readline(LONGEST_LINE):
                if "\0" in piece:
                    raise UserError(
                        f"{name} in {container} holds a NUL character; expected text in UTF-8, and this may be UTF-16 "
                        "or no text; convert the file"
                    )
                if len(piece) < LONGEST_LINE or piece.endswith("\n"):
                    if piece != "\n" or rest or not cut:  # else the end of a line that was given out as a whole
                        yield rest + piece.removesuffix("\n")
                    rest, cut = "", False
                else:
                    head, space, tail = piece.rpartition(" ")
                    yield rest + (head if space else piece)
                    rest, cut = tail if space else "", True
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name} in {container} is not UTF-8 text (byte {error.object[error.start]:#04x}:"
                f" {error.reason}); expected UTF-8; convert the file"
            ) from None
        if rest:
            yield rest
