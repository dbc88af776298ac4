"""Any input at all gives a result or a sentence: arbitrary values, text, bytes and JSON for config and the parsers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from committed import notebook_problems
from fake_runs import PARADIGMS, write_study
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wmlkit import notebooks, paths, results, run_files, students
from wmlkit.config import load_preset
from wmlkit.data import corpora
from wmlkit.errors import UserError
from wmlkit.evaluate.protocols import PROTOCOLS
from wmlkit.evaluate.suites import read_suite
from wmlkit.provenance import read_provenance
from wmlkit.untrusted import read_settings

EVALUATION = "evaluation/nursery-babylm2025.json"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
BASE = load_preset("smoke")
# The folder of a test is the same for all its examples: each writes the same file again.
QUICK = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KEYS = [f"{name}.{key}" for name, part in BASE.resolved().items() if name != "preset" for key in part]


@given(st.sampled_from(KEYS), JSON)
@QUICK
def test_any_value_of_any_key_is_taken_or_refused(key: str, value: object) -> None:
    try:
        config = BASE.updated({key: value})
    except UserError as error:
        assert str(error) and "\n" not in str(error)
    else:
        paths.json_text(config.resolved()).encode()  # what a run folder would hold


@given(st.text(st.characters()))
@QUICK
def test_any_text_as_an_override_is_taken_or_refused(given_text: str) -> None:
    try:
        load_preset("smoke", [given_text, f"train.lr={given_text}"])
    except UserError as error:
        assert str(error)


@given(st.binary(max_size=200) | st.text().map(str.encode))
@QUICK
def test_any_bytes_are_lines_of_text_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    try:
        lines = list(corpora.lines_of(tmp_path, "a.txt"))
    except UserError as error:
        assert "a.txt in " in str(error)
    else:
        text_of_it = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        assert "\n".join(lines) == text_of_it.removesuffix("\n")


@given(st.binary(max_size=100) | JSON.map(lambda document: json.dumps(document).encode()))
@QUICK
def test_any_bytes_as_a_notebook_are_taken_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "01_any.ipynb"
    path.write_bytes(content)
    assert notebook_problems(path)  # not one of these is fit to be committed
    with pytest.raises(UserError):
        notebooks.run_notebook(path, tmp_path / "done" / path.name, {})
    assert not (tmp_path / "done").exists()


ANY = st.binary(max_size=200) | JSON.map(lambda document: json.dumps(document).encode())
LIKE = {  # files that wmlkit reads, by what reads them, and a document that is nearly right
    "pairs.jsonl": (lambda path: read_suite(path.parent, PROTOCOLS["babylm2025"]),
                    {"sentence_good": "A", "sentence_bad": "B", "UID": "u", "pair_id": 1}),
    "config.json": (read_settings, {"architectures": ["X"], "auto_map": {}, "layers": [{"auto_map": "x"}]}),
    "provenance.json": (lambda path: read_provenance(path.parent),
                        {"T4": {"command": "", "commit": "", "seeds": [0], "device": "", "created_by": ""}}),
    "shapes.json": (lambda path: students._read_saved(str(path)),
                    [{"num_layers": 1, "num_heads": 2, "hidden_size": 8, "intermediate_size": 9}]),
    "done.json": (lambda path: run_files.read_object(path, ("steps",)), {"steps": 3}),
    "metrics.jsonl": (lambda path: list(run_files.read_lines(path, ("step",))), {"step": 1}),
}  # fmt: skip


@st.composite
def nearly(draw: st.DrawFn, document: object) -> bytes:
    """`document` with one of its values, anywhere, replaced by any other, or cut somewhere."""
    text = json.dumps(document)
    if draw(st.booleans()):
        return text.encode()[: draw(st.integers(0, len(text)))]

    def places(value: object) -> list[tuple]:
        keys = range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
        return [(), *((key, *rest) for key in keys for rest in places(value[key]))]

    def replaced(value: object, place: tuple, new: object) -> object:
        if not place:
            return new
        copy = value.copy()
        copy[place[0]] = replaced(value[place[0]], place[1:], new)
        return copy

    return json.dumps(replaced(document, draw(st.sampled_from(places(document))), draw(JSON))).encode()


@pytest.mark.parametrize("name", LIKE)
@given(data=st.data())
@QUICK
def test_any_bytes_in_a_file_are_taken_or_refused(tmp_path: Path, name: str, data: st.DataObject) -> None:
    read, document = LIKE[name]
    path = tmp_path / name
    path.write_bytes(data.draw(ANY | nearly(document)))
    try:
        read(path)
    except UserError as error:
        assert name in str(error)


@given(data=st.data())
@QUICK
def test_any_change_of_a_run_is_taken_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """One value anywhere in one file of a run is another: tables are made of it, or a sentence names the file."""
    folder = tmp_path / "nursery"
    if not folder.exists():
        write_study(folder, (("wml", 2),), seeds=(0,), protocols=("babylm2025",), paradigms=PARADIGMS[:2])
    run = next(folder.glob("wml-*"))
    name = data.draw(st.sampled_from(["config.json", "done.json", "environment.json", EVALUATION]))
    whole = (run / name).read_bytes()
    (run / name).write_bytes(data.draw(nearly(json.loads(whole))))
    try:
        results.runs_table(folder)
        results.scores_table(folder)
        results.paradigm_table(folder)
    except UserError as error:
        assert run.name in str(error)
    finally:
        (run / name).write_bytes(whole)
