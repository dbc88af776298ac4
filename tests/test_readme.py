"""README's result table is what the committed tables give."""

from __future__ import annotations

import re
import shutil

import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer

from wmlkit import paths
from wmlkit.errors import UserError
from wmlkit.readme import BEGIN, END, results_section, write_reference, write_section

README = paths.REPOSITORY / "README.md"


def test_the_result_section_comes_from_the_committed_tables():
    text = README.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == results_section(paths.REFERENCE_FIGURES).strip()


def test_every_committed_table_and_figure_says_what_made_it():
    for kind, suffix in (("tables", "csv"), ("figures", "svg")):
        folder = paths.REFERENCE_FIGURES / kind
        notes = paths.read_json(folder / "provenance.json")
        assert {path.stem for path in folder.glob(f"*.{suffix}")} <= set(notes)
        assert all(note["commit"] and note["command"] for note in notes.values())


def test_links_and_files_that_the_readme_names_exist():
    text = README.read_text(encoding="utf-8")
    for name in ("docs/notation.md", "docs/paper_index.md", "docs/deviations.md", "docs/metrics.md", "docs/log.md"):
        assert f"({name})" in text and (paths.REPOSITORY / name).is_file()
    tree = text.partition("## The tree")[2]
    modules = {path.name for path in (paths.REPOSITORY / "wmlkit").rglob("*.py") if path.name != "__init__.py"}
    missing = {name for name in modules if name not in tree and "evaluate" not in name}
    evaluate = {path.name for path in (paths.REPOSITORY / "wmlkit" / "evaluate").glob("*.py")}
    assert missing <= evaluate, f"README's tree does not name {sorted(missing - evaluate)}"


def test_pictures_that_the_readme_shows_are_there_and_small():
    shown = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert len(shown) >= 3 and all(words for words, _ in shown)
    for _, name in shown:
        assert (paths.REPOSITORY / name).stat().st_size < 200_000


def test_the_lines_for_an_own_corpus_give_a_model_that_transformers_loads(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line and not line.startswith(("from", "import"))]) <= 5
    (tmp_path / "my_texts").mkdir()
    lines = [f"Das {adjective} {noun} steht am {place}." for adjective in ("alte", "neue", "kleine", "rote")
             for noun in ("Haus", "Boot", "Rad", "Tor") for place in ("Ufer", "Berg", "Markt", "See")]  # fmt: skip
    (tmp_path / "my_texts" / "deutsch.txt").write_text("\n".join(lines * 20), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    smaller = (("2000", "4"), ("4096", "300"))  # of what the lines say, only the size is changed
    for old, new in smaller:
        assert code.count(old) == 1
        code = code.replace(old, new)
    given: dict = {}
    exec(code, given)
    model = AutoModelForMaskedLM.from_pretrained(given["folder"] / "peers" / "peer_1")
    tokenizer = AutoTokenizer.from_pretrained(given["folder"] / "peers" / "peer_1")
    assert model(**tokenizer("Das alte Haus.", return_tensors="pt")).logits.isfinite().all()


def test_the_reference_keeps_the_screenshots(tmp_path):
    for name in ("tables", "figures"):
        shutil.copytree(paths.REFERENCE_FIGURES / name, tmp_path / "new" / name)
        shutil.copytree(paths.REFERENCE_FIGURES / name, tmp_path / "old" / name)
    shutil.copy(paths.REFERENCE_FIGURES / "summary.json", tmp_path / "new")
    (tmp_path / "old" / "screenshots").mkdir()
    (tmp_path / "old" / "screenshots" / "a.png").write_bytes(b"picture")
    shutil.copy(README, tmp_path)
    shutil.copy(paths.REPOSITORY / "docs" / "deviations.md", tmp_path)
    write_reference(tmp_path / "new", tmp_path / "old", tmp_path / "README.md", tmp_path / "deviations.md")
    assert (tmp_path / "old" / "screenshots" / "a.png").read_bytes() == b"picture"


def test_a_readme_without_marks_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("# nothing\n")
    with pytest.raises(UserError, match="has no result section"):
        write_section(tmp_path / "README.md", paths.REFERENCE_FIGURES)
