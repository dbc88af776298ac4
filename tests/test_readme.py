"""README's result table is what the committed tables give."""

from __future__ import annotations

import pytest

from wmlkit import paths
from wmlkit.errors import UserError
from wmlkit.readme import BEGIN, END, results_section, write_section

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


def test_a_readme_without_marks_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("# nothing\n")
    with pytest.raises(UserError, match="has no result section"):
        write_section(tmp_path / "README.md", paths.REFERENCE_FIGURES)
