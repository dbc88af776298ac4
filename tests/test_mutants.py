"""The list of faults fits the code, and the script tells a fault that is noticed from one that is not."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

import mutants
import pytest

MUTANTS = mutants.read_mutants()
EXAMPLE = mutants.Mutant("sign", "sums.py", "a minus", "a + b", "a - b", "tests/test_sums.py")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_fault_can_be_planted(mutant):
    """Its text is in the file once, the file with the fault is still Python, and the tests that look for it exist."""
    text = (mutants.ROOT / "wmlkit" / mutant.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutants.mutated(text, mutant))) != ast.dump(ast.parse(text))
    files = re.findall(r"tests/\w+\.py", mutant.tests)
    assert files and all((mutants.ROOT / file).is_file() for file in files)


def test_the_page_has_the_faults_of_the_list_and_nine_in_ten_are_found():
    lines = mutants.written_lines()
    assert list(lines) == [mutant.name for mutant in MUTANTS] and len(lines) >= 25
    assert len(MUTANTS) == len({mutant.name for mutant in MUTANTS})
    found = []
    for mutant in MUTANTS:
        start = mutants.line(mutants.Outcome(mutant, "", 0.0)).removesuffix("none |")
        assert lines[mutant.name].startswith(start), f"run `python -m tests.mutants --write {mutant.name}`"
        found += re.findall(r"`(\w+\.py)::(\w+)` \|$", lines[mutant.name])
    assert len(found) >= mutants.REQUIRED * len(MUTANTS)
    for file, name in found:  # and the tests that found them are still there
        assert f"\ndef {name}(" in (mutants.ROOT / "tests" / file).read_text(encoding="utf-8")


@pytest.fixture
def project(tmp_path):
    """A package of one function, with a test that looks at it and one that looks away."""
    files = {
        "wmlkit/__init__.py": "",
        "wmlkit/sums.py": "def add(a, b):\n    return a + b\n",
        "tests/test_sums.py": "from wmlkit.sums import add\n\n\ndef test_add():\n    assert add(2, 1) == 3\n",
        "tests/test_other.py": "def test_other():\n    assert True\n\n\ndef test_broken():\n    assert False\n",
        "pyproject.toml": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_fault_is_found_by_the_test_that_fails_with_it_only(project, capsys):
    unseen = replace(EXAMPLE, name="unseen", tests="tests/test_other.py -k 'not broken'")
    one, other = mutants.try_all([EXAMPLE, unseen], project, modules=())
    assert (one.killed_by, other.killed_by) == ("tests/test_sums.py::test_add", "")
    assert "SURVIVED" in capsys.readouterr().out and "a + b" in (project / "wmlkit" / "sums.py").read_text()
    page = project / "page.md"
    page.write_text(f"before\n{mutants.BEGIN}\n{mutants.END}\nafter\n")
    mutants.write([one, other], [EXAMPLE, unseen], page)
    assert page.read_text().splitlines() == [
        "before", mutants.BEGIN, "", "1 of 2 faults are found.", "", "| name | file | fault | found by |",
        "|---|---|---|---|", "| sign | sums.py | a minus | `test_sums.py::test_add` |",
        "| unseen | sums.py | a minus | none |", mutants.END, "after",
    ]  # fmt: skip
    assert list(mutants.written_lines(page)) == ["sign", "unseen"]
    mutants.write([replace(other, killed_by="tests/test_sums.py::test_add[1]")], [unseen, EXAMPLE], page)
    assert "2 of 2 faults" in page.read_text() and list(mutants.written_lines(page)) == ["unseen", "sign"]
    with pytest.raises(RuntimeError, match="test_broken fails without a fault too"):
        mutants.try_all([replace(EXAMPLE, tests="tests/test_other.py")], project, ())


def test_what_cannot_be_planted_or_tested_is_no_result(project):
    with pytest.raises(ValueError, match="sign: the text is 0 times in sums.py, expected once"):
        mutants.mutated("a * b", EXAMPLE)
    with pytest.raises(ValueError, match="2 times"):
        mutants.mutated("a + b, a + b", EXAMPLE)
    with pytest.raises(RuntimeError, match="ended with 5"):  # no test chosen
        mutants.try_all([replace(EXAMPLE, tests="tests/test_sums.py -k nothing")], project, ())
