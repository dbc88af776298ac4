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
    table = mutants.PAGE.read_text(encoding="utf-8").partition(mutants.BEGIN)[2].partition(mutants.END)[0]
    rows = [[cell.strip() for cell in line.split(" | ")] for line in table.splitlines() if line.startswith("| ")][1:]
    assert [(name.removeprefix("| "), file) for name, file, *_ in rows] == [(m.name, m.file) for m in MUTANTS]
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 25
    found = [by.removesuffix(" |") for *_, by in rows if by.startswith("`")]
    assert len(found) >= mutants.REQUIRED * len(MUTANTS)
    for by in found:
        file, _, name = by.strip("`").partition("::")
        assert re.search(rf"^def {name}\(", (mutants.ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def project(tmp_path):
    """A package of one function, with a test that looks at it and one that looks away."""
    files = {
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
    unseen = replace(EXAMPLE, name="unseen", tests="tests/test_other.py -k test_other")
    one, other = mutants.try_all([EXAMPLE, unseen], project)
    assert (one.killed_by, other.killed_by) == ("tests/test_sums.py::test_add", "")
    assert "SURVIVED" in capsys.readouterr().out and "a + b" in (project / "wmlkit" / "sums.py").read_text()
    lines = mutants.table([one, other]).splitlines()
    assert lines[0] == "1 of 2 faults are found."
    assert lines[-2:] == [
        "| sign | sums.py | a minus | `test_sums.py::test_add` |",
        "| unseen | sums.py | a minus | none |",
    ]
    with pytest.raises(RuntimeError, match="test_broken fails without a fault too"):
        mutants.try_all([replace(EXAMPLE, tests="tests/test_other.py")], project)


def test_what_cannot_be_planted_or_tested_is_no_result(project):
    with pytest.raises(ValueError, match="sign: the text is 0 times in sums.py, expected once"):
        mutants.mutated("a * b", EXAMPLE)
    with pytest.raises(ValueError, match="2 times"):
        mutants.mutated("a + b, a + b", EXAMPLE)
    with pytest.raises(RuntimeError, match="ended with 5"):  # no test chosen
        mutants.try_all([replace(EXAMPLE, tests="tests/test_sums.py -k nothing")], project)
