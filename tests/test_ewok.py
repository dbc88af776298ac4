"""EWoK's files: a folder holds what the last call wrote, and nothing of anybody else is deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small import EWOK

from wmlkit.errors import UserError
from wmlkit.evaluate.ewok import write_ewok
from wmlkit.evaluate.protocols import PROTOCOLS
from wmlkit.evaluate.suites import read_suite


def write_rows(path: Path, *rows: dict[str, str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_item_is_followed_by_its_other_half(tmp_path: Path) -> None:
    """Contexts and targets change places, so that each sentence is right once."""
    write_rows(tmp_path / "test.jsonl", EWOK)
    write_ewok(tmp_path / "test.jsonl", tmp_path / "out")
    first, second = map(json.loads, (tmp_path / "out" / "social-relations.jsonl").read_text().splitlines())
    swapped = {
        "Context1": "Anna is Ben's pupil.",
        "Context2": "Anna is Ben's boss.",
        "Target1": "Ben leads Anna.",
        "Target2": "Anna leads Ben.",
    }
    assert first == EWOK and second == EWOK | swapped


def test_ewok_written_again_leaves_no_domain_of_the_call_before(tmp_path: Path) -> None:
    other = EWOK | {"Domain": "physical-dynamics", "Context1": "Anna kicks the zymurgist."}
    write_rows(tmp_path / "test.jsonl", EWOK, other)
    out = tmp_path / "out"
    assert len(write_ewok(tmp_path / "test.jsonl", out)) == 2
    vocabulary = ["anna", "is", "ben", "'s", "boss", "pupil", "leads", "."]
    assert write_ewok(tmp_path / "test.jsonl", out, vocabulary) == {"social-relations": 2}
    assert {pair.paradigm for pair in read_suite(out, PROTOCOLS["babylm2025"])} == {"social-relations"}
    with pytest.raises(UserError, match=r"no row of test.jsonl is left; .* the words of ewok/vocab.txt"):
        write_ewok(tmp_path / "test.jsonl", tmp_path / "none", ["anna"])
    assert not (tmp_path / "none").exists()
    for name in ("notes.txt", "mine.jsonl", "social-relations.txt"):  # the last has its domain as name, and is no JSONL
        write_rows(tmp_path / name[:4] / name, EWOK)
        with pytest.raises(UserError, match=f"holds {name}, which is no domain of EWoK and would be deleted"):
            write_ewok(tmp_path / "test.jsonl", tmp_path / name[:4])
        assert (tmp_path / name[:4] / name).is_file()


def test_a_row_s_domain_names_its_paradigm_and_the_file_where_it_has_none(tmp_path: Path) -> None:
    """So that a file of several domains counts as many paradigms in the mean over them."""
    nameless = {key: value for key, value in EWOK.items() if key != "Domain"}
    write_rows(tmp_path / "set" / "all.jsonl", EWOK, EWOK | {"Domain": "physical-dynamics"}, nameless)
    found = read_suite(tmp_path / "set", PROTOCOLS["babylm2025"])
    assert [pair.paradigm for pair in found] == ["social-relations", "physical-dynamics", "all"]
    assert {pair.field for pair in found} == {"ewok"}


def test_every_word_of_contexts_and_targets_has_to_be_in_the_vocabulary(tmp_path: Path) -> None:
    """Whatever the case of the vocabulary's words."""
    words = ["Anna", "is", "Ben", "'s", "boss", "pupil", "leads", "."]
    for key in ("Context1", "Context2", "Target1", "Target2"):
        write_rows(tmp_path / "test.jsonl", EWOK, EWOK | {"Domain": "others", key: "Anna leads the zymurgist."})
        assert write_ewok(tmp_path / "test.jsonl", tmp_path / "out", words) == {"social-relations": 2}
