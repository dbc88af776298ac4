from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from wmlkit import paths
from wmlkit.data import corpora
from wmlkit.errors import UserError


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


FILES: dict[str, str | bytes] = {
    "train/childes.train": "*MOT: one.\n*CHI: two.\n",
    "train/cbt.train": "three .",
    "dev/childes.dev": "*MOT: four.\n",
    "a.txt": "five\n",
    "poems/b.txt": "six\n",
    "poems/c.txt": "seven\n",
    "README.md": "not text",
    ".hidden.txt": "not text",
    ".git/x.txt": "not text",
}


def lines_of(source: corpora.Source) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for file in source.files:
        found.setdefault((file.domain, file.split), []).extend(corpora.read_lines(file))
    return found


def test_folder_and_zip_are_the_same_source(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", FILES)
    with zipfile.ZipFile(tmp_path / "mine.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
        archive.writestr("__MACOSX/._a.txt", "not text")
    expected = {
        ("childes", "train"): ["*MOT: one.", "*CHI: two."],
        ("childes", "dev"): ["*MOT: four."],
        ("cbt", "train"): ["three ."],
        ("mine", "train"): ["five"],
        ("poems", "train"): ["six", "seven"],
    }
    sources = [corpora.find_source(str(path), tmp_path) for path in (folder, tmp_path / "mine.zip")]
    for source in sources:
        assert source.name == "mine"
        assert lines_of(source) == expected
        assert source.domains() == ["cbt", "childes", "mine", "poems"]
    first, second = ([(f.domain, f.split, f.name, f.size, f.sha256) for f in source.files] for source in sources)
    assert first == second
    childes = sources[0].of("childes", "train")[0]
    content = FILES["train/childes.train"]
    assert isinstance(content, str)
    assert childes.sha256 == hashlib.sha256(content.encode()).hexdigest()


def test_fetched_corpus_is_found_by_its_name(tmp_path: Path) -> None:
    write(paths.fetched(tmp_path, "some-corpus"), {"a.train": "one\n"})
    source = corpora.find_source("some-corpus", tmp_path)
    assert source.name == "some-corpus" and lines_of(source) == {("a", "train"): ["one"]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"one\r\ntwo\rthree\n", ["one", "two", "three"]),
        (b"\xef\xbb\xbfone\n\ntwo", ["one", "", "two"]),
        ("caf\u00e9\u2028x\x85y\x0cz\n".encode(), ["café\u2028x\x85y\x0cz"]),
        (b"", []),
        (b"\n\n", ["", ""]),
    ],
)
def test_line_ends(tmp_path: Path, content: bytes, expected: list[str]) -> None:
    write(tmp_path, {"a.train": content, "b.train": "x"})
    file = corpora.find_source(str(tmp_path), tmp_path).of("a", "train")[0]
    assert list(corpora.read_lines(file)) == expected


def test_a_line_without_end_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "LONGEST_LINE", 10)
    text = "one two three four five six\nseven\n" + "x" * 25 + "\nend"
    write(tmp_path, {"a.train": text})
    file = corpora.find_source(str(tmp_path), tmp_path).of("a", "train")[0]
    pieces = list(corpora.read_lines(file))
    assert " ".join(pieces[:3]) == "one two three four five six"
    assert pieces[-5:] == ["seven", "x" * 10, "x" * 10, "x" * 5, "end"]
    assert max(map(len, pieces)) <= 20


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no training text"),
        ({"a.dev": "x"}, "no training text"),
        ({"readme.md": "x"}, "no training text"),
        ({"a.train": "", "b.txt": ""}, "are empty"),
        ({"train_10M/a.train": "x", "train_100M/a.train": "x"}, "two files"),
    ],
)
def test_folders_without_usable_text(tmp_path: Path, files: dict[str, str | bytes], message: str) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    with pytest.raises(UserError, match=message):
        corpora.find_source(str(write(folder, files)), tmp_path)


def test_what_is_no_corpus(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "x", "broken.zip": "not a zip", "latin.d/a.txt": b"caf\xe9\n"})
    for corpus, message in [
        (tmp_path / "nowhere", "there is no corpus"),
        (tmp_path / "a.txt", "single file"),
        (tmp_path / "broken.zip", "cannot be read"),
        ("no-such-name", "there is no corpus"),
    ]:
        with pytest.raises(UserError, match=message):
            corpora.find_source(str(corpus), tmp_path)
    source = corpora.find_source(str(tmp_path / "latin.d"), tmp_path)
    with pytest.raises(UserError, match="not UTF-8"):
        list(corpora.read_lines(source.files[0]))


def test_zip_bombs_and_damaged_zips(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b"\n" * (8 << 20))
    with pytest.raises(UserError, match="grows from"):
        corpora.find_source(str(bomb), tmp_path)
    damaged = tmp_path / "damaged.zip"
    with zipfile.ZipFile(damaged, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.txt", b"some text of a corpus\n" * 10)
    damaged.write_bytes(damaged.read_bytes().replace(b"corpus", b"CORPSE", 1))
    with pytest.raises(UserError, match="cannot be read"):
        corpora.find_source(str(damaged), tmp_path)
