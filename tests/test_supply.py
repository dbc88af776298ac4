"""The pins against what is installed, in both directions; hashes and licences against the pins."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import supply
from packaging.requirements import Requirement

PINS = supply.read_pins()
made_by_setup = pytest.mark.skipif(
    not Path(sys.prefix, "installed").is_file() or sys.version_info[:2] != (3, 11),
    reason="this environment was not made by `make setup` with Python 3.11, so it may hold other versions",
)


@made_by_setup
def test_what_is_installed_is_what_is_pinned():
    assert supply.differences() == []


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("idna==3.20\n", "idna==3.19\n", "idna is 3.20 here and 3.19 in constraints.txt"),
        ("idna==3.20\n", "", "idna is needed and not in constraints.txt"),
        ("idna==3.20\n", "idna==3.20\npip==23.2.1\n", "pip is in constraints.txt and nothing needs it"),
        ("appnope==0.1.4", "wmlkit==0.1.0", "appnope is needed and not in constraints.txt"),  # on a Mac only
    ],
)
@made_by_setup
def test_a_wrong_pin_is_named(old, new, sentence, tmp_path, monkeypatch):
    text = (supply.ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert text.count(old) == 1
    file = tmp_path / "constraints.txt"
    file.write_text(text.replace(old, new), encoding="utf-8")
    pins = supply.read_pins(file)
    monkeypatch.setattr(supply, "read_pins", lambda: pins)
    assert sentence in supply.differences()


def test_a_closure_follows_extras_and_markers(monkeypatch):
    """a needs b with its extra x, which needs c; d is for a Mac; e belongs to an extra that nobody asks for."""
    needs = {"a": ["B[x]>=1", 'd; sys_platform == "darwin"', 'e; extra == "y"'], "b": ['c_c; extra == "x"']}
    monkeypatch.setattr(supply, "needs", lambda name: [Requirement(text) for text in needs.get(name, [])])
    assert supply.closure(["a"], supply.SYSTEMS[:1]) == {"a", "b", "c-c"}
    assert supply.closure(["a"], supply.SYSTEMS) == {"a", "b", "c-c", "d"}
    assert supply.closure(["b"], supply.SYSTEMS) == {"b"}
    assert supply.closure(["b", "b[x]", "triton>=3"], supply.SYSTEMS) == {"b", "c-c"}


def test_hashes_are_of_the_pinned_versions_and_only_of_what_setup_installs():
    hashes = supply.read_pins(supply.HASHES)
    lines = [line for line in supply.HASHES.read_text(encoding="utf-8").splitlines() if "==" in line]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    assert len({line[-64:] for line in lines}) == len(lines) == len(hashes) > 100
    assert {name: supply.version_of(pin) for name, pin in hashes.items()} == {
        name: supply.version_of(PINS[name]) for name in hashes
    }
    direct = {supply.normal(Requirement(text).name) for text in supply.SETUP}
    assert {"transformers", "datasets", "pytest"} < direct & hashes.keys() and "torch" not in hashes


@made_by_setup
def test_every_wheel_that_fits_all_systems_has_its_hash():
    needed = supply.closure(supply.SETUP)
    universal = {name for name in needed if supply.says_universal(supply.distribution(name))}
    # playwright says so too, but packs a driver for each system into a wheel of its own
    assert supply.read_pins(supply.HASHES).keys() == universal - {"playwright"}


def test_setup_installs_by_hash_first():
    text = (supply.ROOT / "Makefile").read_text(encoding="utf-8")
    assert "$(STAMP): pyproject.toml constraints.txt hashes.txt" in text
    hashed, pinned = text.index("--no-deps --require-hashes -r hashes.txt"), text.index("-c constraints.txt -e")
    assert hashed < pinned


def test_the_page_lists_every_pin_with_its_licence():
    rows, hashes = supply.written_rows(), supply.read_pins(supply.HASHES)
    assert rows.keys() == PINS.keys()
    for name, pin in PINS.items():
        cells = [cell.strip() for cell in rows[name].strip("|").split("|")]
        assert cells[:2] == [name, supply.version_of(pin)] and all(cells[2:4]), rows[name]
        assert (cells[4] == "sha256") == (name in hashes)
    for name, line in supply.package_rows().items():  # of what is installed here in its pinned version
        assert rows[name] == line, "write it anew with `python -m tests.supply --write`"


def test_a_licence_is_an_expression_or_a_short_text_or_classifiers():
    class Package:
        def __init__(self, *lines: str) -> None:
            from email import message_from_string

            self.metadata = message_from_string("\n".join(["Name: a", *lines]))

    osi = "Classifier: License :: OSI Approved :: "
    assert supply.licence(Package("License-Expression: MIT", "License: other")) == "MIT"
    assert supply.licence(Package("License: BSD-3-Clause", osi + "BSD License")) == "BSD-3-Clause"
    assert supply.licence(Package("License: " + 70 * "x", osi + "BSD License")) == "BSD License"
    assert supply.licence(Package("License: UNKNOWN", osi + "A", osi + "B")) == "A; B"
    assert supply.licence(Package()) == "see its licence file"
