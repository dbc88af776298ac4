"""What is noted of an own text: white space that cleaning took, files that were not read, text that is there twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from wmlkit import paths
from wmlkit.config import load_preset
from wmlkit.data import notes
from wmlkit.data.corpora import find_source
from wmlkit.data.encode import open_tokens
from wmlkit.data.prepare import prepare
from wmlkit.data.tokenizer import load_tokenizer
from wmlkit.settings import DataConfig

LINES = [f"the child saw number {index}." for index in range(400)]
CODE = [line for index in range(200) for line in (f"def f{index}(x):", f"    return x  + {index}")]


def notes_of(folder: Path, **changes: object) -> list[str]:
    data = DataConfig(corpus=str(folder), vocab_size=300, **changes)  # type: ignore[arg-type]
    corpus = prepare(data, folder.parent / "out").folder
    found = paths.read_json(corpus / "statistics.json")["notes"]
    assert found == paths.read_json(corpus / "corpus.json")["notes"]
    return [note for note in found if "no dev text" not in note and "documents are taken whole" not in note]


def write(folder: Path, **files: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (folder / name.replace("__", ".")).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_indentation_that_cleaning_takes_is_noted_and_data_clean_keeps_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "mine", a__txt=CODE)
    (note,) = notes_of(folder)
    assert note.startswith("white space was collapsed in 200 lines (indentation of code or verse among it); data.clean")
    assert note in caplog.text
    kept = prepare(DataConfig(corpus=str(folder), vocab_size=300, clean=False), tmp_path).folder
    assert paths.read_json(kept / "corpus.json")["notes"][1:] == []
    tokens, _ = open_tokens(kept / "train.tokens")
    assert "    return x  + 7" in str(load_tokenizer(kept / "tokenizer").decode(tokens.tolist()))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([*LINES, *["two  spaces"] * 12], []),  # 12 of 412 lines: slips
        ([*LINES, *["two  spaces"] * 13], ["white space was collapsed in 13 lines; data.clean=false keeps it"]),
        ([*LINES, *["trailing  ", "a\ttab", "a\u00a0space that holds"] * 20], []),  # nothing is lost
    ],
)
def test_only_white_space_that_has_a_meaning_is_noted(tmp_path: Path, lines: list[str], expected: list[str]) -> None:
    assert notes_of(write(tmp_path / "mine", a__txt=lines)) == expected


def test_white_space_of_a_known_format_is_no_loss(tmp_path: Path) -> None:
    found = notes_of(write(tmp_path / "mine", childes__train=[f"  *MOT:\t {line}" for line in LINES]))
    assert not any("white space" in note for note in found)


def test_a_script_without_spaces_is_noted(tmp_path: Path) -> None:
    lines = [chr(0x4E00 + index % 500) * 40 + chr(0x4E00 + index) for index in range(400)]
    (note,) = notes_of(write(tmp_path / "mine", a__txt=lines))
    assert note.startswith("41 characters stand between two spaces of this text") and "evaluate.text_words" in note


def test_rules_that_a_name_brings_are_noted(tmp_path: Path) -> None:
    """A folder `wikipedia` of one's own: its heading marks go, as in BabyLM's file of that name."""
    own, other = [*LINES, "= = = A heading = = =", "= = = Another = = ="], [f"{line} Indeed." for line in LINES]
    (note,) = notes_of(write(tmp_path / "mine" / "wikipedia", a__txt=own).parent)
    assert note.startswith("cleaned by the rules for BabyLM's text of the same name: wikipedia (2 deletions); where it")
    (note,) = notes_of(write(tmp_path / "alone", wikipedia__train=own))
    assert "wikipedia (2 deletions)" in note
    (note,) = notes_of(write(tmp_path / "beside", wikipedia__train=own, my__train=other))
    assert "name: wikipedia (2 deletions);" in note
    assert notes_of(write(tmp_path / "babylm", wikipedia__train=own, childes__train=other)) == []
    assert notes_of(write(tmp_path / "nothing", wikipedia__train=LINES)) == []
    assert notes_of(write(tmp_path / "kept", wikipedia__train=own), clean=False) == []
    assert notes_of(write(tmp_path / "other", wiki__train=own)) == []


def test_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", a__txt=LINES, README__md=["about"], LICENSE=["free"], readme_de__rst=["dazu"])
    assert notes_of(folder) == []
    write(folder, more__md=LINES, b__txt__gz=["x"], __hidden=["x"])
    (note,) = notes_of(write(folder, a__txt=LINES[1:]))
    assert note.startswith("not read, as their names end in none of .train, .txt, .dev: b.txt.gz, more.md; unpack or")
    write(folder, c__pdf=["x"], d__pdf=["x"], a__txt=LINES[2:])
    assert ": b.txt.gz, c.pdf, d.pdf and 1 more; " in notes_of(folder)[0]


def test_a_fetched_corpus_has_files_of_the_package_beside_its_text(tmp_path: Path) -> None:
    write(paths.fetched(tmp_path, "some-corpus"), a__train=LINES, fetch__json=["{}"])
    assert find_source("some-corpus", tmp_path).skipped == ()


def test_text_that_is_there_twice_is_noted_with_its_share(tmp_path: Path) -> None:
    apart = [line for pair in zip(LINES, [""] * len(LINES), strict=True) for line in pair]  # a line a document
    folder = write(tmp_path / "mine", a__txt=apart)
    assert notes_of(folder) == []
    write(folder, b__txt=apart)  # the file once more: of a drawn document the copy is nearly always training text
    told = [note for note in notes_of(folder) if "documents occur in the training text too" in note]
    assert [note.partition(" of the ")[2].partition(" ")[0] for note in told] == ["dev", "held-out"]
    write(folder, b__txt=["new"], a__dev=[*apart[:4], *(f"\nnew {index}" for index in range(18))])
    (note,) = notes_of(folder)
    assert note.startswith("10% of the dev documents occur in the training text too, so its loss says little of new")


def test_nothing_is_noted_of_the_nursery_s_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notes, "REPEATED", -1)
    prepare(DataConfig(words=6000, dev_words=600, vocab_size=300), tmp_path)
    assert "training text too" not in caplog.text


def test_settings_that_change_nothing_beside_a_given_tokenizer_are_noted() -> None:
    """Not refused: presets have them, and so have configurations of finished runs."""
    own = {"data.tokenizer": "somebody/tokenizer"}
    (both,) = notes.idle_settings(load_preset("paper-10m", own).data)
    assert both.startswith("without effect: data.lowercase and data.nfkc; the given tokenizer is taken as it is")
    (one,) = notes.idle_settings(load_preset("smoke", own | {"data.nfkc": True}).data)
    assert one.startswith("without effect: data.nfkc; ")
    assert (
        notes.idle_settings(load_preset("paper-10m").data) == notes.idle_settings(load_preset("smoke", own).data) == []
    )
