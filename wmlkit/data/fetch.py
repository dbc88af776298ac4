"""Fetching the BabyLM releases and their evaluation data, and text from the Hugging Face hub.

The releases lie in one project of the Open Science Framework, whose public API lists folders and files with
their sizes and checksums. Which release folders a name stands for is fixed here; where they lie in the project,
unpacked or in an archive, is found in the listing, because it has been moved around before.
"""

from __future__ import annotations

import difflib
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin

from filelock import FileLock, Timeout

from .. import paths
from ..errors import UserError, first_line
from .archives import is_archive, unpack
from .download import PATIENT, Patience, check_space, download, get_json, git_blob_id

API = "https://api.osf.io/v2"
PROJECT = "ad7qg"
# name -> what it is, and the folders of the release that belong to it
RELEASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "babylm2024-10m": ("BabyLM 2024, strict-small: 10M words of training text, and dev text", ("train_10M", "dev")),
    "babylm2024-100m": ("BabyLM 2024, strict: 100M words of training text, and dev text", ("train_100M", "dev")),
    "babylm2023-10m": (
        "BabyLM 2023, strict-small: 10M words of training text, and dev text",
        ("babylm_10M", "babylm_dev"),
    ),
    "babylm2023-100m": (
        "BabyLM 2023, strict: 100M words of training text, and dev text",
        ("babylm_100M", "babylm_dev"),
    ),
    "babylm2024-evaluation": (
        "BabyLM 2024: BLiMP, its supplement and GLUE, filtered to the vocabulary",
        ("blimp_filtered", "supplement_filtered", "glue_filtered"),
    ),
}
# Archives that hold a release folder beside others.
ALSO_IN = {
    **dict.fromkeys(("babylm_10M", "babylm_100M", "babylm_dev"), "babylm_data.zip"),
    **dict.fromkeys(("blimp_filtered", "supplement_filtered", "glue_filtered"), "evaluation_data.zip"),
}
# Where an archive was first published, for when the project does not list it. No checksum is known for it, so its
# files must be the official ones.
ELSEWHERE = {"babylm_data.zip": "https://github.com/babylm/babylm.github.io/raw/main/babylm_data.zip"}
SKIPPED_FOLDERS = {"multimodal_data"}  # images' features: tens of GB and many pages, no text of ours
MOST_PAGES = 2000
UNPACKED_RATIO = 4  # text to its zip, for the check of free space before the start

_HUB_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """A file in the project: its path there, size in bytes, SHA-256 (None where unknown) and address."""

    path: PurePosixPath
    size: int | None
    sha256: str | None
    url: str


def list_releases(out: Path) -> list[dict[str, Any]]:
    """What `fetch` can get by name, as records with ``name``, ``about`` and ``folder`` (None: not fetched yet)."""
    records = []
    for name, (about, _) in RELEASES.items():
        folder = paths.fetched(out, name)
        records.append({"name": name, "about": about, "folder": str(folder) if folder.is_dir() else None})
    return records


def fetch(
    name: str,
    out: Path,
    api: str = API,
    elsewhere: Mapping[str, str] = ELSEWHERE,
    patience: Patience = PATIENT,
) -> Path:
    """Fetch the release `name`, or ``hf:OWNER/DATASET[@REVISION]``, and return its folder below ``out/downloads``.

    Sizes and SHA-256 are checked against the API, files with a known git blob id against that. A fetch that was
    stopped goes on where it was; one that is complete is checked and kept. Raises UserError.
    """
    if name.startswith("hf:"):
        repository, _, revision = name.removeprefix("hf:").partition("@")
        return fetch_hub(repository, out, revision or None)
    if name not in RELEASES:
        near = difflib.get_close_matches(name, RELEASES, n=1, cutoff=0.0)[0]
        raise UserError(
            f"there is no release {name!r}; expected one of {', '.join(RELEASES)} or hf:OWNER/DATASET;"
            f" the nearest is {near!r}"
        )
    final = paths.fetched(out, name)
    work = final.with_name(f".{name}.partial")
    paths.make_folder(work.parent)
    try:
        with FileLock(work.with_suffix(".lock"), timeout=0):  # released by the system when the process ends
            if not _is_whole(final):
                work.mkdir(exist_ok=True)
                _fetch_release(name, work, api, elsewhere, patience)
                paths.remove(final)
                (work / "corpus").rename(final)
            shutil.rmtree(work, ignore_errors=True)
    except Timeout:
        raise UserError(f"another process is fetching {name} into {final.parent}; wait until it has finished") from None
    return final


def _is_whole(folder: Path) -> bool:
    """Whether a fetched folder still holds what its record says."""
    try:
        files = paths.read_json(folder / "fetch.json")["files"]
        return all(paths.file_sha256(folder / name) == entry["sha256"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fetch_release(name: str, work: Path, api: str, elsewhere: Mapping[str, str], patience: Patience) -> None:
    folders = RELEASES[name][1]
    listing = list(list_project(f"{api}/nodes/{PROJECT}/files/osfstorage/?page[size]=100", patience))
    found = {folder: locate(folder, listing, elsewhere) for folder in folders}
    sources = {remote.url: remote for remotes in found.values() for remote in remotes}
    needed = sum(remote.size or 0 for remote in sources.values())
    check_space(work, needed * (1 + UNPACKED_RATIO))
    corpus = work / "corpus"
    shutil.rmtree(corpus, ignore_errors=True)  # unpacked by a run that was stopped: perhaps not all of it
    for folder, remotes in found.items():
        for remote in remotes:
            local = download(remote.url, work / "files" / remote.path, remote.size, remote.sha256, patience)
            if is_archive(remote.path.name):
                if not unpack(local, corpus, partial(_place, folder, remote)):
                    raise UserError(f"{remote.url} holds no folder {folder}; expected one; the release may have moved")
            else:
                target = corpus / (_below(remote.path, folder) or remote.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(local, target)
    _record(name, corpus, sources)


def list_project(url: str, patience: Patience) -> Iterator[Remote]:
    """All files of an OSF folder listing and the folders below it, following its pages. Raises UserError."""
    waiting = [(url, PurePosixPath())]
    seen: set[str] = set()
    while waiting:
        page, parent = waiting.pop(0)
        if page in seen:
            continue
        seen.add(page)
        if len(seen) > MOST_PAGES:
            raise UserError(f"the listing at {url} has more than {MOST_PAGES} pages; expected fewer; check the address")
        document = get_json(page, patience)
        try:
            for entry in document["data"]:
                attributes = entry["attributes"]
                path = parent / _plain_name(attributes["name"], page)
                if attributes["kind"] == "folder":
                    if path.name not in SKIPPED_FOLDERS:
                        related = entry["relationships"]["files"]["links"]["related"]["href"]
                        waiting.append((urljoin(page, related), path))
                    continue
                checksum = ((attributes.get("extra") or {}).get("hashes") or {}).get("sha256")
                yield Remote(path, attributes.get("size"), checksum, urljoin(page, entry["links"]["download"]))
            following = (document.get("links") or {}).get("next")
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{page} is not a list of files as the OSF sends it; check the address") from None
        if following:
            waiting.insert(0, (urljoin(page, following), parent))


def _plain_name(name: Any, page: str) -> str:
    if not isinstance(name, str) or name in ("", ".", "..") or any(mark in name for mark in "/\\:\0"):
        raise UserError(f"{page} lists a file called {name!r}; expected a plain name; do not trust it")
    return name


def locate(folder: str, listing: list[Remote], elsewhere: Mapping[str, str]) -> list[Remote]:
    """The files of the project that make up the release folder `folder`: its files, or one archive with them.

    Where there are several, the one nearest to the top is taken. Raises UserError when there is none.
    """
    by_depth = sorted(listing, key=lambda remote: (len(remote.path.parts), remote.path))
    inside = [remote for remote in by_depth if folder in remote.path.parts[:-1]]
    if inside:
        top = inside[0].path.parts
        root = top[: top.index(folder) + 1]
        return [remote for remote in inside if remote.path.parts[: len(root)] == root]
    other = ALSO_IN.get(folder, "")
    for matches in (lambda name: name.split(".")[0] == folder, lambda name: name == other):
        for remote in by_depth:
            if is_archive(remote.path.name) and matches(remote.path.name):
                return [remote]
    if other in elsewhere:
        return [Remote(PurePosixPath(other), None, None, elsewhere[other])]
    raise UserError(
        f"the project {PROJECT} lists no {folder} among its {len(listing)} files; expected that folder or an archive of"
        " it; fetch it by hand from osf.io and give its folder as data.corpus"
    )


def _below(path: PurePosixPath, folder: str) -> PurePosixPath | None:
    """`path` from its part `folder` on, None where that is not a part of it."""
    return PurePosixPath(*path.parts[path.parts.index(folder) :]) if folder in path.parts[:-1] else None


def _place(folder: str, remote: Remote, inner: PurePosixPath) -> PurePosixPath | None:
    """Where an entry of an archive belongs in the release; None: nowhere."""
    if any(part.startswith((".", "__MACOSX")) for part in inner.parts):
        return None
    below = _below(inner, folder)
    if below is None and remote.path.name.split(".")[0] == folder:  # the archive of this folder, without its name
        return PurePosixPath(folder) / inner
    return below


def official_ids() -> dict[str, str]:
    """Git blob ids of the official files, by path in the release (``train_10M/childes.train``)."""
    lines = paths.OFFICIAL_BLOBS.read_text(encoding="utf-8").splitlines()
    return {path: blob for blob, path in (line.split() for line in lines if not line.startswith("#"))}


def _record(name: str, corpus: Path, sources: Mapping[str, Remote]) -> None:
    """Compare with the official files and write ``fetch.json``."""
    official = official_ids()
    checked = all(remote.sha256 for remote in sources.values())
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(path for path in corpus.rglob("*") if path.is_file()):
        inner = path.relative_to(corpus).as_posix()
        expected = official.get(inner)
        found = git_blob_id(path) if expected else None
        if found != expected:
            difference = f"{inner} has git blob id {found}; expected {expected} of the official release"
            if not checked:
                raise UserError(f"{difference}; nothing else proves that it is whole; fetch it from another source")
            log.warning("%s: %s; it is what the OSF holds today, so results may differ", name, difference)
        files[inner] = {
            "size": path.stat().st_size,
            "sha256": paths.file_sha256(path),
            "official": found == expected if expected else None,
        }
    document = {
        "name": name,
        "sources": [
            {"path": str(remote.path), "url": remote.url, "size": remote.size, "sha256": remote.sha256}
            for remote in sources.values()
        ],
        "files": files,
    }
    paths.write_json(corpus / "fetch.json", document)


def _texts(rows: Iterable[Mapping[str, Any]], column: str, repository: str) -> Iterator[str]:
    """The text of each row. Raises UserError where the stream breaks."""
    try:
        for row in rows:
            yield str(row[column] or "").strip("\n")
    except Exception as error:  # of the library, or of the network below it
        raise UserError(
            f"the dataset {repository!r} broke off ({first_line(error)}); nothing of it is kept; check the connection "
            "and fetch it again"
        ) from None


def fetch_hub(repository: str, out: Path, revision: str | None = None, column: str = "text") -> Path:
    """Text of a dataset on the Hugging Face hub (parquet, JSON, text; no code is run), as .train and .dev files.

    Split ``train`` becomes training text, ``validation`` or ``dev`` dev text; rows of `column` that hold several
    lines become documents. Raises UserError when there is no such dataset, split or column.
    """
    if not _HUB_NAME.fullmatch(repository):  # the library would take a path for a folder of this machine
        raise UserError(f"hf:{repository} names no dataset of the hub; expected hf:OWNER/DATASET; check the name")
    from datasets import load_dataset  # half a second to import, needed here only

    name = repository.replace("/", "--")
    try:
        dataset = load_dataset(repository, revision=revision, streaming=True)
    except Exception as error:  # the library raises many kinds, its own and those of its parts
        raise UserError(
            f"the dataset {repository!r} cannot be opened ({first_line(error)}); check its name and the connection"
        ) from None
    wanted = {"train": "train", "validation": "dev", "dev": "dev"}
    if "train" not in dataset:
        raise UserError(
            f"the dataset {repository!r} has the splits {', '.join(dataset)}; expected 'train'; choose another"
        )
    columns = dataset["train"].column_names or list(next(iter(dataset["train"]), {}))
    if column not in columns:
        raise UserError(
            f"the dataset {repository!r} has the columns {', '.join(columns)}; expected {column!r}; choose another "
            "dataset, or name its column of text with `wmlkit.data.fetch.fetch_hub(..., column=)`"
        )

    def write(folder: Path) -> None:
        for split, suffix in wanted.items():
            if split not in dataset:
                continue
            with (folder / f"{name}.{suffix}").open("a", encoding="utf-8", newline="\n") as file:
                line_before = False  # a row of several lines is a document of its own, whatever stands before it
                for text in _texts(dataset[split], column, repository):
                    several = "\n" in text
                    file.write("\n" * (several and line_before) + text + ("\n\n" if several else "\n"))
                    line_before = not several

    return paths.write_folder(paths.fetched(out, name), write)
