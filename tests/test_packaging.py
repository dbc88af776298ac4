"""The packaging files against each other: one set of pins, and nothing that is imported without being declared."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement
from supply import EXTRAS, PROJECT, ROOT, normal, read_pins, version_of

from wmlkit import environment

OPTIONAL = {"tensorboard", "wandb", "submitit"}
PINS = {name: version_of(pin) for name, pin in read_pins().items()}


def test_pins_have_no_local_versions_or_paths():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert not any(sign in line for line in text.splitlines() if "==" in line for sign in ("+", "/", "@"))
    assert PINS["torch"] == "2.13.0"
    assert "torch==2.13.0" in PROJECT["dependencies"]  # exactly, also for who installs without the constraints


@pytest.mark.parametrize("requirement", PROJECT["dependencies"] + sum(EXTRAS.values(), []))
def test_every_direct_dependency_is_pinned_within_its_bounds(requirement):
    parsed = Requirement(requirement)
    version = PINS[normal(parsed.name)]
    assert parsed.specifier.contains(version), f"{requirement} against {version}"
    assert len(parsed.specifier) == 2 or parsed.name == "torch"  # a lower and an upper bound


def test_environment_has_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, last = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert last["pip"][:2] == ["-c constraints.txt", "-e ."]
    listed = dict(line.split("==") for line in last["pip"][2:])
    assert len(listed) == len(last["pip"][2:])
    direct = {normal(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert {normal(name) for name in listed} == direct
    assert {normal(name): version for name, version in listed.items()} == {name: PINS[name] for name in direct}


def test_everything_imported_is_declared():
    providers = packages_distributions()
    declared = {normal(Requirement(text).name) for text in PROJECT["dependencies"]}
    for path in (ROOT / "wmlkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - OPTIONAL - {"wmlkit"}:
                assert declared & {normal(d) for d in providers.get(name, [name])}, f"{path.name} imports {name}"


def test_optional_extras_are_the_documented_ones():
    assert set(EXTRAS) == OPTIONAL | {"dev"}
    assert PROJECT["scripts"] == {"wmlkit": "wmlkit.__main__:main"}
    from wmlkit.__main__ import main

    assert callable(main)


def test_hooks_keep_tags_and_ids_and_use_the_pinned_tools():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    by_name = {hook["id"]: hook for hook in hooks}
    strip = by_name["nbstripout"]
    assert strip["args"] == [
        "--keep-id",
        "--extra-keys",
        "metadata.papermill cell.metadata.papermill metadata.language_info.version",
    ]
    notebooks = list((ROOT / "notebooks").glob("*.ipynb"))
    assert notebooks and all(re.search(strip["files"], f"notebooks/{path.name}") for path in notebooks)
    for hook in hooks:
        for pinned in hook["additional_dependencies"]:
            name, version = pinned.split("==")
            assert PINS[normal(name)] == version


def test_stripping_committed_notebooks_changes_nothing(tmp_path):
    sources = sorted((ROOT / "notebooks").glob("*.ipynb"))
    copies = [tmp_path / source.name for source in sources]
    for source, copy in zip(sources, copies, strict=True):
        copy.write_bytes(source.read_bytes())
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    (arguments,) = [hook["args"] for hook in hooks if hook["id"] == "nbstripout"]
    subprocess.run([sys.executable, "-m", "nbstripout", *arguments, *copies], check=True, capture_output=True)
    assert [
        copy.name for copy, source in zip(copies, sources, strict=True) if copy.read_bytes() != source.read_bytes()
    ] == []


def test_make_has_its_four_targets():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("setup", "reproduce", "test", "clean"):
        assert re.search(rf"^{target}:", text, re.MULTILINE), target
    assert "install --quiet -c constraints.txt -e '.[dev]'" in text
    for command in ("ruff check .", "ruff format --check .", "mypy", "pytest"):
        assert command in text


def test_version_and_citation_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    paper = citation["preferred-citation"]
    assert (paper["start"], paper["end"], paper["year"]) == (197, 211, 2024)
    assert {"arXiv:2411.16487", "2024.conll-babylm.17"} <= {entry["value"] for entry in paper["identifiers"]}


def test_a_folder_that_is_not_installed_knows_its_version(monkeypatch):
    """As where the packages are there and nothing may be installed: the version is then that of pyproject.toml."""

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(environment, "version", missing)
    assert environment.own_version() == PROJECT["version"]
