"""Fetching, against a server on this machine that cuts, corrupts, stalls and redirects."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import pytest

from wmlkit import paths
from wmlkit.data import archives, fetch
from wmlkit.data import download as download_module
from wmlkit.data.corpora import find_source
from wmlkit.data.download import Patience, download, get_json, git_blob_id
from wmlkit.errors import UserError

QUICK = Patience(pauses=(0.0, 0.0, 0.0), timeout=10.0, sleep=lambda seconds: None)
DATA = bytes(range(256)) * 400  # 100 KiB


class Server:
    """Serves `files`; `faults[path]` holds what to do wrong with the next requests for it, in order."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str]] = []  # path, Range header
        self.on_bytes: Callable[[str], None] = lambda path: None
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def _handler(server: Server) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                path = self.path.split("?")[0] if self.path not in server.files else self.path
                asked = self.headers.get("Range", "")
                server.requests.append((path, asked))
                faults = server.faults.get(path, [])
                fault, _, value = (faults.pop(0) if faults else "").partition("=")
                if fault == "status":
                    self.send_error(int(value))
                    return
                if fault == "redirect":
                    self.send_response(302)
                    self.send_header("Location", value)
                    self.end_headers()
                    return
                if path not in server.files:
                    self.send_error(404)
                    return
                content = server.files[path]
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and fault != "whole" else 0
                if start > len(content) - 1 and asked:
                    self.send_error(416)
                    return
                if fault == "corrupt":
                    content = content[:-1] + bytes([content[-1] ^ 1])
                self.send_response(206 if start else 200)
                if start:
                    shown = start + 1 if fault == "wrongrange" else start
                    self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
                if fault != "nolength":
                    self.send_header("Content-Length", str(len(content) - start + (fault == "longer")))
                self.end_headers()
                body = content[start:]
                body = body[: int(value)] if fault in ("cut", "stall") else body
                body = body + b"x" if fault == "longer" else body
                for position in range(0, len(body), 4096):
                    try:
                        self.wfile.write(body[position : position + 4096])
                        server.on_bytes(path)
                    except OSError:  # the client was killed
                        return
                if fault == "stall":
                    self.wfile.flush()
                    time.sleep(1.0)

        return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        ([], [""]),
        (["cut=5000", "cut=7000"], ["", "bytes=5000-", "bytes=12000-"]),
        (["status=503", "status=429", "status=500"], [""] * 4),
        (["cut=5000", "whole"], ["", "bytes=5000-"]),  # a server that does not know Range
        (["cut=5000", "wrongrange"], ["", "bytes=5000-", "bytes=5000-"]),
        (["cut=1000"] * 6, ["", *(f"bytes={n}000-" for n in range(1, 7))]),  # more cuts than pauses, but it gets on
        (["nolength"], [""]),
        (["corrupt"], ["", ""]),
    ],
)
def test_download_in_spite_of(server: Server, tmp_path: Path, faults: list[str], ranges: list[str]) -> None:
    server.files["/f"] = DATA
    server.faults["/f"] = list(faults)
    path = download(f"{server.url}/f", tmp_path / "f", len(DATA), sha256(DATA), QUICK)
    assert path.read_bytes() == DATA
    assert [asked for _, asked in server.requests] == ranges
    assert [item.name for item in tmp_path.iterdir()] == ["f"]


def test_a_server_that_falls_silent(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = DATA
    server.faults["/f"] = ["stall=5000"]
    hasty = Patience(pauses=(0.0,) * 5, timeout=0.5, sleep=lambda seconds: None)
    assert download(f"{server.url}/f", tmp_path / "f", len(DATA), sha256(DATA), hasty).read_bytes() == DATA
    assert server.requests[1] == ("/f", "bytes=5000-")


def test_pauses_grow(server: Server, tmp_path: Path) -> None:
    slept: list[float] = []
    server.faults["/f"] = ["status=503"] * 9
    with pytest.raises(UserError):
        download(f"{server.url}/f", tmp_path / "f", patience=Patience((1.0, 2.0, 4.0), 10.0, slept.append))
    assert slept == [1.0, 2.0, 4.0]


def test_download_without_known_size(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = DATA
    server.faults["/f"] = ["cut=5000"]
    assert download(f"{server.url}/f", tmp_path / "f", patience=QUICK).read_bytes() == DATA


def test_redirects_keep_the_range(server: Server, tmp_path: Path) -> None:
    server.files["/there"] = DATA
    server.faults["/here"] = ["redirect=/there", "redirect=/there"]
    server.faults["/there"] = ["cut=5000"]
    assert download(f"{server.url}/here", tmp_path / "f", len(DATA), patience=QUICK).read_bytes() == DATA
    assert server.requests[-1] == ("/there", "bytes=5000-")


@pytest.mark.parametrize(
    ("faults", "size", "checksum", "message"),
    [
        (["status=404"], None, None, "status 404"),
        (["status=503"] * 9, None, None, "4 attempts"),
        (["cut=0"] * 9, len(DATA), None, "ended after 0 of|IncompleteRead"),
        (["corrupt", "corrupt"], len(DATA), sha256(DATA), "SHA-256"),
        ([], 5, None, "expected 5"),
        (["nolength"], 5000, None, "sends more than 5000"),
    ],
)
def test_download_gives_up(
    server: Server, tmp_path: Path, faults: list[str], size: int | None, checksum: str | None, message: str
) -> None:
    server.files["/f"] = DATA
    server.faults["/f"] = list(faults)
    with pytest.raises(UserError, match=message):
        download(f"{server.url}/f", tmp_path / "f", size, checksum, QUICK)
    assert not (tmp_path / "f").exists()


def test_what_is_there_is_kept_if_it_fits(server: Server, tmp_path: Path) -> None:
    server.files["/f"] = DATA
    (tmp_path / "f").write_bytes(DATA)
    download(f"{server.url}/f", tmp_path / "f", len(DATA), sha256(DATA), QUICK)
    assert server.requests == []
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / ".f.part").write_bytes(b"bytes of another file")  # found out by the checksum
    path = download(f"{server.url}/f", tmp_path / "f", len(DATA), sha256(DATA), QUICK)
    assert path.read_bytes() == DATA
    (tmp_path / "f").unlink()
    (tmp_path / ".f.part").write_bytes(DATA)  # complete, but for the rename
    assert download(f"{server.url}/f", tmp_path / "f", len(DATA), sha256(DATA), QUICK).read_bytes() == DATA


def test_other_mistakes(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="could not be fetched"):
        download("http://127.0.0.1:9/f", tmp_path / "f", patience=QUICK)
    with pytest.raises(UserError, match="cannot be fetched"):
        download("not an address", tmp_path / "f", patience=QUICK)
    server.files["/j"] = b"<html>"
    with pytest.raises(UserError, match="not JSON"):
        get_json(f"{server.url}/j", QUICK)
    with pytest.raises(UserError, match="MiB free"):
        download(f"{server.url}/f", tmp_path / "f", size=1 << 60, patience=QUICK)
    monkeypatch.setattr(download_module, "LARGEST_LISTING", 3)
    with pytest.raises(UserError, match="more than 3 bytes"):
        get_json(f"{server.url}/j", QUICK)


def test_git_blob_id(tmp_path: Path) -> None:
    # `printf 'what is up, doc?' | git hash-object --stdin`, an example of the git book.
    (tmp_path / "f").write_bytes(b"what is up, doc?")
    assert git_blob_id(tmp_path / "f") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"


def test_official_ids() -> None:
    ids = fetch.official_ids()
    assert len(ids) == 48 and all(len(blob) == 40 and int(blob, 16) for blob in ids.values())
    assert ids["train_10M/childes.train"].startswith("b819ab4d") and ids["babylm_dev/qed.dev"].startswith("46391312")


# --- archives


def make_zip(files: dict[str, bytes], path: Path | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    if path:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def make_tar(path: Path, *members: tuple[str, bytes, bytes]) -> None:
    """Members are (name, type, content); the content of a link is where it leads."""
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if kind == tarfile.REGTYPE:
                member.size = len(content)
            else:
                member.linkname = content.decode()
            archive.addfile(member, io.BytesIO(content) if kind == tarfile.REGTYPE else None)


def everything(inner: PurePosixPath) -> PurePosixPath:
    return inner


def test_unpack(tmp_path: Path) -> None:
    make_zip({"a/x.train": b"one", "b.txt": b"two", "skip/c": b"three"}, tmp_path / "z.zip")
    make_tar(tmp_path / "t.tar.gz", ("a/x.train", tarfile.REGTYPE, b"one"), ("b.txt", tarfile.REGTYPE, b"two"))
    for archive in ("z.zip", "t.tar.gz"):
        target = tmp_path / f"{archive}.d"
        written = archives.unpack(
            tmp_path / archive, target, lambda inner: None if inner.parts[0] == "skip" else "new" / inner
        )
        assert [path.relative_to(target).as_posix() for path in written] == ["new/a/x.train", "new/b.txt"]
        assert (target / "new/a/x.train").read_bytes() == b"one"
        assert not (target / "new/skip").exists()


def zip_with_link(path: Path) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, "/etc/passwd")


EVIL: list[tuple[str, Callable[[Path], Any], str]] = [
    ("up.zip", lambda path: make_zip({"../evil": b"x"}, path), "points elsewhere"),
    ("deep.zip", lambda path: make_zip({"a/../../evil": b"x"}, path), "points elsewhere"),
    ("root.zip", lambda path: make_zip({"/evil": b"x"}, path), "points elsewhere"),
    ("drive.zip", lambda path: make_zip({"C:evil": b"x"}, path), "points elsewhere"),
    ("link.zip", zip_with_link, "link or device"),
    ("up.tar.gz", lambda path: make_tar(path, ("../evil", tarfile.REGTYPE, b"x")), "points elsewhere"),
    ("link.tar.gz", lambda path: make_tar(path, ("a", tarfile.SYMTYPE, b"/etc")), "link or device"),
    ("hard.tar.gz", lambda path: make_tar(path, ("a", tarfile.LNKTYPE, b"../x")), "link or device"),
    ("pipe.tar.gz", lambda path: make_tar(path, ("a", tarfile.FIFOTYPE, b"")), "link or device"),
    ("twice.tar.gz", lambda path: make_tar(path, *[("a", tarfile.REGTYPE, b"x")] * 2), "twice"),
    ("bomb.zip", lambda path: make_zip({"a": bytes(8 << 20)}, path), "unpacks to over"),
    ("bomb.tar.gz", lambda path: make_tar(path, ("a", tarfile.REGTYPE, bytes(8 << 20))), "unpacks to over"),
    ("cut.zip", lambda path: path.write_bytes(make_zip({"a": b"x" * 99})[:-30]), "cannot be unpacked"),
    ("noise.tar.gz", lambda path: path.write_bytes(b"noise" * 99), "cannot be unpacked"),
]


@pytest.mark.parametrize(("name", "make", "message"), EVIL, ids=[row[0] for row in EVIL])
def test_evil_archives(tmp_path: Path, name: str, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path / name)
    with pytest.raises(UserError, match=message):
        archives.unpack(tmp_path / name, tmp_path / "target" / "corpus", everything)
    assert not (tmp_path / "evil").exists() and not (tmp_path / "target" / "evil").exists()


def test_archive_that_lies_about_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_zip({"a": bytes(3 << 20)}, tmp_path / "z.zip")
    entries = archives._entries
    monkeypatch.setattr(archives, "_entries", lambda path: ((name, 1, stream) for name, _, stream in entries(path)))
    with pytest.raises(UserError, match="unpacks to over"):
        archives.unpack(tmp_path / "z.zip", tmp_path / "target", everything)


# --- the releases

TRAIN = {f"train_10M/{domain}.train": f"text of {domain}\n".encode() * 2000 for domain in ("childes", "switchboard")}
DEV = {"childes.dev": b"dev text\n", "switchboard.dev": b"more dev text\n"}


def publish(server: Server, tree: dict[str, Any], base: str = "/nodes/ad7qg/files/osfstorage/") -> None:
    """Serve a tree of folders (dict) and files (bytes) in the shape of the OSF's API, two entries a page."""
    entries = []
    for name, item in tree.items():
        if isinstance(item, dict):
            below = f"{base}{name}-id/"
            publish(server, item, below)
            links = {"files": {"links": {"related": {"href": server.url + below, "meta": {}}}}}
            entries.append({"attributes": {"name": name, "kind": "folder"}, "relationships": links, "links": {}})
        else:
            url = f"/download{base}{name}"
            server.files[url] = item
            extra = {"hashes": {"md5": "", "sha256": sha256(item)}}
            attributes = {"name": name, "kind": "file", "size": len(item), "extra": extra}
            entries.append({"attributes": attributes, "links": {"download": server.url + url}})
    pages = [entries[start : start + 2] for start in range(0, len(entries), 2)] or [[]]
    for number, page in enumerate(pages):
        following = f"{server.url}{base}?page={number + 2}" if number + 1 < len(pages) else None
        document = {"data": page, "links": {"first": None, "next": following, "meta": {"total": len(entries)}}}
        server.files[base if number == 0 else f"{base}?page={number + 1}"] = json.dumps(document).encode()


RELEASE: dict[str, Any] = {
    "README.md": b"about",
    "multimodal_data": {"train_10M.zip": b"not this one"},
    "text_data": {
        "train_10M.zip": make_zip({**TRAIN, "__MACOSX/train_10M/x.train": b"junk"}),
        "train_100M.zip": b"unused",
        "dev.zip": make_zip(DEV),  # without the folder's name inside
        "test.zip": b"unused",
    },
    "evaluation_data": {
        "blimp_filtered": {"one.jsonl": b"{}\n", "two.jsonl": b"{}\n", "three.jsonl": b"{}\n"},
        "glue_filtered": {"rte": {"rte.train.jsonl": b"{}\n"}},
        "supplement_filtered.zip": make_zip({"supplement_filtered/four.jsonl": b"{}\n"}),
    },
}


@pytest.fixture
def unofficial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of these tests are not the official ones."""
    monkeypatch.setattr(fetch, "official_ids", dict)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_fetch_text(server: Server, tmp_path: Path, unofficial: None) -> None:
    publish(server, RELEASE)
    folder = fetch.fetch("babylm2024-10m", tmp_path, server.url, patience=QUICK)
    found = content(folder)
    record = json.loads(found.pop("fetch.json"))
    assert found == {**TRAIN, **{f"dev/{name}": text for name, text in DEV.items()}}
    assert record["files"]["dev/childes.dev"] == {"size": 9, "sha256": sha256(b"dev text\n"), "official": None}
    assert [source["path"] for source in record["sources"]] == ["text_data/train_10M.zip", "text_data/dev.zip"]
    assert not any("100M" in path or "multimodal_data-id" in path for path, _ in server.requests)
    assert {path.name for path in folder.parent.iterdir()} == {"babylm2024-10m", ".babylm2024-10m.lock"}
    source = find_source("babylm2024-10m", tmp_path)
    assert [(file.domain, file.split) for file in source.files] == [
        *(("childes", "dev"), ("switchboard", "dev"), ("childes", "train"), ("switchboard", "train"))
    ]
    # A second call asks nobody; a damaged file is fetched again.
    before = len(server.requests)
    assert fetch.fetch("babylm2024-10m", tmp_path, server.url, patience=QUICK) == folder
    assert len(server.requests) == before
    (folder / "dev/childes.dev").write_bytes(b"damaged")
    fetch.fetch("babylm2024-10m", tmp_path, server.url, patience=QUICK)
    assert (folder / "dev/childes.dev").read_bytes() == DEV["childes.dev"]
    listed = {row["name"]: row["folder"] for row in fetch.list_releases(tmp_path)}
    assert listed["babylm2024-10m"] == str(folder) and listed["babylm2023-10m"] is None


def test_a_folder_nearest_to_the_top_is_taken_and_room_is_for_what_is_unpacked(
    server: Server, tmp_path: Path, unofficial: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = [
        fetch.Remote(PurePosixPath(path), 1, None, path) for path in ("old/2023/dev/a", "text/dev/a", "x/y/dev/a")
    ]
    assert [remote.url for remote in fetch.locate("dev", listing, {})] == ["text/dev/a"]
    archives_of = [fetch.Remote(PurePosixPath(path), 1, None, path) for path in ("old/2023/dev.zip", "text/dev.zip")]
    assert [remote.url for remote in fetch.locate("dev", archives_of, {})] == ["text/dev.zip"]
    publish(server, RELEASE)
    asked: list[float] = []
    monkeypatch.setattr(fetch, "check_space", lambda folder, size: asked.append(size))
    folder = fetch.fetch("babylm2024-10m", tmp_path, server.url, patience=QUICK)
    sources = json.loads((folder / "fetch.json").read_text())["sources"]
    assert asked == [(1 + fetch.UNPACKED_RATIO) * sum(source["size"] for source in sources)] and asked[0] > 0


def test_fetch_evaluation_data(server: Server, tmp_path: Path) -> None:
    publish(server, RELEASE)
    server.faults["/download/nodes/ad7qg/files/osfstorage/evaluation_data-id/blimp_filtered-id/two.jsonl"] = ["cut=1"]
    folder = fetch.fetch("babylm2024-evaluation", tmp_path, server.url, patience=QUICK)
    expected = {"blimp_filtered/one.jsonl", "blimp_filtered/two.jsonl", "blimp_filtered/three.jsonl"}
    expected |= {"supplement_filtered/four.jsonl", "glue_filtered/rte/rte.train.jsonl", "fetch.json"}
    assert set(content(folder)) == expected


def test_fetch_2023_from_where_it_was_first_published(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "babylm_data/babylm_10M/cbt.train": b"text",
        "babylm_data/babylm_dev/cbt.dev": b"dev",
        "babylm_data/x": b"",
    }
    publish(server, RELEASE)
    server.files["/babylm_data.zip"] = make_zip(files)
    elsewhere = {"babylm_data.zip": f"{server.url}/babylm_data.zip"}
    # No checksum is known for this address, so files that are not the official ones are refused.
    with pytest.raises(UserError, match="babylm_10M/cbt.train has git blob id"):
        fetch.fetch("babylm2023-10m", tmp_path, server.url, elsewhere, QUICK)
    assert not paths.fetched(tmp_path, "babylm2023-10m").exists()
    (tmp_path / "f").write_bytes(b"text")
    (tmp_path / "g").write_bytes(b"dev")
    ids = {"babylm_10M/cbt.train": git_blob_id(tmp_path / "f"), "babylm_dev/cbt.dev": git_blob_id(tmp_path / "g")}
    monkeypatch.setattr(fetch, "official_ids", lambda: ids)
    folder = fetch.fetch("babylm2023-10m", tmp_path, server.url, elsewhere, QUICK)
    assert set(content(folder)) == {"babylm_10M/cbt.train", "babylm_dev/cbt.dev", "fetch.json"}
    record = json.loads((folder / "fetch.json").read_text())
    assert all(entry["official"] for entry in record["files"].values())


def test_other_files_than_the_official_ones_are_named(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(server, RELEASE)
    folder = fetch.fetch("babylm2024-10m", tmp_path, server.url, patience=QUICK)
    assert "train_10M/childes.train has git blob id" in caplog.text
    assert json.loads((folder / "fetch.json").read_text())["files"]["dev/childes.dev"]["official"] is False


def test_damaged_download_is_refused(server: Server, tmp_path: Path, unofficial: None) -> None:
    publish(server, RELEASE)
    server.faults["/download/nodes/ad7qg/files/osfstorage/text_data-id/dev.zip"] = ["corrupt"] * 3
    with pytest.raises(UserError, match="SHA-256"):
        fetch.fetch("babylm2024-10m", tmp_path, server.url, patience=QUICK)
    assert not paths.fetched(tmp_path, "babylm2024-10m").exists()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"other.zip": b""}, "lists no train_10M"),
        ({"train_10M.zip": make_zip({"..x": b"", "../evil": b"x"}), "dev.zip": make_zip(DEV)}, "points elsewhere"),
        ({"../train_10M.zip": b"", "dev.zip": b""}, "plain name"),
    ],
)
def test_releases_that_cannot_be_used(
    server: Server, tmp_path: Path, tree: dict[str, Any], message: str, unofficial: None
) -> None:
    publish(server, tree)
    with pytest.raises(UserError, match=message):
        fetch.fetch("babylm2024-10m", tmp_path / "out", server.url, patience=QUICK)
    assert not paths.fetched(tmp_path / "out", "babylm2024-10m").exists()
    assert not (tmp_path / "evil").exists()


def test_names_and_addresses(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nearest is 'babylm2024-10m'"):
        fetch.fetch("babylm-2024-10M", tmp_path)
    server.files["/nodes/ad7qg/files/osfstorage/"] = b'{"data": [{"name": "x"}]}'
    with pytest.raises(UserError, match="not a list of files"):
        fetch.fetch("babylm2024-10m", tmp_path, server.url, patience=QUICK)


def test_two_processes_do_not_fetch_the_same(server: Server, tmp_path: Path) -> None:
    folder = paths.fetched(tmp_path, "babylm2024-10m")
    folder.parent.mkdir(parents=True)
    with fetch.FileLock(folder.with_name(".babylm2024-10m.lock")), pytest.raises(UserError, match="another process"):
        fetch.fetch("babylm2024-10m", tmp_path, server.url, patience=QUICK)


FETCH = """
import sys
from pathlib import Path
from wmlkit.data import download, fetch
fetch.official_ids = dict
download.CHUNK = 4096
fetch.fetch("babylm2024-10m", Path(sys.argv[1]), sys.argv[2], patience=download.Patience((0.0,), 5.0))
"""


def test_killed_and_started_again(server: Server, tmp_path: Path, unofficial: None) -> None:
    """Four kills while bytes flow; what has arrived is not asked for again, and the end is the same."""
    big = {f"train_10M/{name}.train": hashlib.shake_256(name.encode()).digest(300_000) for name in ("childes", "other")}
    publish(server, {"train_10M.zip": make_zip(big), "dev.zip": make_zip(DEV)})
    command = [sys.executable, "-c", FETCH, str(tmp_path / "killed"), server.url]
    part = paths.fetched(tmp_path / "killed", ".babylm2024-10m.partial") / "files" / ".train_10M.zip.part"

    def arrived() -> int:
        return part.stat().st_size if part.is_file() else 0

    for kill_at in (1, 100_000, 300_000, 450_000):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
        sent = [arrived()]

        def kill(path: str, process: Any = process, kill_at: int = kill_at, sent: list[int] = sent) -> None:
            if not path.endswith("train_10M.zip"):
                return
            sent[0] += 4096
            end = time.monotonic() + 20
            while sent[0] - arrived() > 100_000 and time.monotonic() < end:  # let the client keep up
                time.sleep(0.0005)
            if arrived() >= kill_at:
                process.send_signal(signal.SIGKILL)
                process.wait()
                raise OSError("nobody listens")

        server.on_bytes = kill
        assert process.wait() == -signal.SIGKILL
        assert not paths.fetched(tmp_path / "killed", "babylm2024-10m").exists()
    server.on_bytes = lambda path: None
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True)
    whole = fetch.fetch("babylm2024-10m", tmp_path / "whole", server.url, patience=QUICK)
    assert content(paths.fetched(tmp_path / "killed", "babylm2024-10m")) == content(whole)
    ranges = [int(asked[6:-1]) for path, asked in server.requests if path.endswith("train_10M.zip") and asked]
    assert len(ranges) == 4 and ranges == sorted(ranges) and ranges[0] > 0 and ranges[-1] >= 450_000


def test_a_dataset_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows:
        column_names = ("text",)

        def __iter__(self) -> Iterator[dict[str, str]]:
            yield {"text": "one"}
            raise ConnectionError("reset by peer")

    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: {"train": Rows()})
    with pytest.raises(UserError, match=r"'me/text' broke off \(reset by peer\); nothing of it is kept"):
        fetch.fetch_hub("me/text", tmp_path)
    assert not paths.fetched(tmp_path, "me--text").exists()


def test_splits_of_one_kind_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(list[dict[str, str]]):
        column_names = ("text",)

    splits = {name: Rows([{"text": name}]) for name in ("train", "validation", "dev")}
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: splits)
    found = fetch.fetch_hub("me/text", tmp_path)
    assert content(found) == {"me--text.train": b"train\n", "me--text.dev": b"validation\ndev\n"}


def test_text_from_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = tmp_path / "hub"
    folder.mkdir()
    pd.DataFrame({"text": ["One line.", "Two\nlines.", None, "Élodie", "Und", "x\ny", "ö\nü"]}).to_parquet(
        folder / "train.parquet"
    )
    pd.DataFrame({"text": ["Dev."]}).to_parquet(folder / "validation.parquet")
    monkeypatch.chdir(tmp_path)  # where the library finds the folder under its name
    found = fetch.fetch("hf:hub", tmp_path / "out")
    assert content(found) == {
        "hub.train": "One line.\n\nTwo\nlines.\n\n\nÉlodie\nUnd\n\nx\ny\n\nö\nü\n\n".encode(),
        "hub.dev": b"Dev.\n",
    }
    with pytest.raises(UserError, match="has the columns text; expected 'story'; choose another"):
        fetch.fetch_hub("hub", tmp_path / "out", column="story")
    with pytest.raises(UserError, match="cannot be opened"):
        fetch.fetch_hub("nothing", tmp_path / "out")
