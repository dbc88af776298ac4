"""The examples in docstrings say what happens."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import wmlkit

PACKAGE = Path(wmlkit.__path__[0])
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if "\n    >>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    torch.set_printoptions(profile="default")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0 and result.attempted > 0


def test_the_core_has_examples():
    core = {"wmlkit.bilevel", "wmlkit.config", "wmlkit.losses", "wmlkit.search"}
    assert core <= set(MODULES)
