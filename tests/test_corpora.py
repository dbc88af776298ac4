from __future__ import annotations

import hashlib
import os
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


def test_a_zip_is_opened_twice_however_many_texts_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For its list, and for all texts; the time to open one grows with the number of its members."""
    names = ["Chapter 1: Start.txt", "b\\c.txt", *(f"{i}.txt" for i in range(20))]
    pack(tmp_path / "many.zip", {name: name for name in names})
    opened, open_zip = [], zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda *given: opened.append(given) or open_zip(*given))
    source = corpora.find_source(str(tmp_path / "many.zip"), tmp_path)
    assert lines_of(source) == {("many", "train"): sorted(names)} and len(opened) == 2


def test_a_zip_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    for number, text in enumerate(("old", "new")):
        pack(tmp_path / "a.zip", {"a.train": text})
        os.utime(tmp_path / "a.zip", ns=(number, number))
        assert lines_of(corpora.find_source(str(tmp_path / "a.zip"), tmp_path)) == {("a", "train"): [text]}


def pack(path: Path, files: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def test_linked_folders_and_files_are_read(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", {"b.txt": "linked\n", "deep/c.txt": "deeper\n"})
    folder = write(tmp_path / "mine", {"a.txt": "five\n"})
    (folder / "poems").symlink_to(elsewhere)
    (folder / "d.txt").symlink_to(write(tmp_path / "third", {"e.txt": "alone\n"}) / "e.txt")
    assert lines_of(corpora.find_source(str(folder), tmp_path)) == {
        ("mine", "train"): ["five", "alone"],
        ("poems", "train"): ["linked"],
        ("poems.deep", "train"): ["deeper"],
    }


@pytest.mark.parametrize("target", [".", "..", "poems", "poems/a.txt", "nothing"])
def test_links_that_would_lose_or_repeat_text(tmp_path: Path, target: str) -> None:
    """To the corpus itself, to what holds it, to a part of it, to nothing: refused, without walking round and round."""
    paths.make_folder(tmp_path / "mine" / "lost+found")  # of a disk, not of the corpus
    folder = write(tmp_path / "mine", {"poems/a.txt": "five\n"})
    (folder / "link.txt").symlink_to(target)
    expected = "is a link to nothing; expected a file" if target == "nothing" else "remove the link that leads there"
    with pytest.raises(UserError, match=expected):
        corpora.find_source(str(folder), tmp_path)
    (folder / "link.txt").rename(folder / ".link")  # hidden ones are not read
    assert lines_of(corpora.find_source(str(folder), tmp_path)) == {("poems", "train"): ["five"]}


def test_a_folder_that_cannot_be_listed_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "mine", {"a.txt": "five\n", "locked/b.txt": "six\n"})
    scandir = os.scandir

    def scan(path: str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(UserError, match=r"locked cannot be read \(Permission denied\); expected a folder of text"):
        corpora.find_source(str(folder), tmp_path)


def test_fetched_corpus_is_found_by_its_name(tmp_path: Path) -> None:
    write(paths.fetched(tmp_path, "some-corpus"), {"a.train": "one\n"})
    source = corpora.find_source("some-corpus", tmp_path)
    assert source.name == "some-corpus" and lines_of(source) == {("a", "train"): ["one"]}


def test_a_name_that_is_no_text_is_refused_before_any_work(tmp_path: Path) -> None:
    write(tmp_path / "mine", {"a.train": "one\n"})
    (tmp_path / "mine" / os.fsdecode(b"caf\xe9.txt")).write_text("two\n")
    with pytest.raises(UserError, match="whose name cannot be written as text, .*caf.*expected names in UTF-8"):
        corpora.find_source(str(tmp_path / "mine"), tmp_path)


def test_the_working_folder_is_no_fetched_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.` names the folder of downloads too, with other people's text in it."""
    out, mine = tmp_path / "out", tmp_path / "mine"
    write(paths.fetched(out, "some-corpus"), {"a.train": "fetched\n"})
    write(mine / "texts", {"a.train": "mine\n"})
    monkeypatch.chdir(mine / "texts")
    for corpus, name in ((".", "texts"), ("..", "mine")):
        source = corpora.find_source(corpus, out)
        assert source.name == name and list(lines_of(source).values()) == [["mine"]]
    for nothing in ("", "~nobody-of-this-name/texts"):
        with pytest.raises(UserError, match=f"there is no corpus '{nothing}'"):
            corpora.find_source(nothing, out)


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


def test_a_line_as_long_as_a_piece_leaves_no_empty_one_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "LONGEST_LINE", 4)
    folder = write(tmp_path / "c", {"a.train": "abcd\ny\n\nab c\n\nabcdefgh\n"})
    assert list(corpora.lines_of(folder, "a.train")) == ["abcd", "y", "", "ab", "c", "", "abcd", "efgh"]


def test_a_line_without_end_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "LONGEST_LINE", 10)
    text = "one two three four five six\nseven\n" + "x" * 25 + "\nend"
    write(tmp_path, {"a.train": text})
    file = corpora.find_source(str(tmp_path), tmp_path).of("a", "train")[0]
    pieces = list(corpora.read_lines(file))
    assert " ".join(pieces[:3]) == "one two three four five six"
    assert pieces[-5:] == ["seven", "x" * 10, "x" * 10, "x" * 5, "end"]
    assert max(map(len, pieces)) <= 20
