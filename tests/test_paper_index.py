"""docs/paper_index.md names settings that exist, with the defaults that they have."""

from __future__ import annotations

import re

import pytest

from wmlkit import paths
from wmlkit.config import Config, parse_assignment

TEXT = (paths.REPOSITORY / "docs" / "paper_index.md").read_text(encoding="utf-8")
PARAMETERS = TEXT.split("## Every parameter")[1]
ROWS = re.findall(r"^\| ([^|]+) \| `([a-z_]+\.[a-z_]+)` \| `([^|]+)` \|", PARAMETERS, re.MULTILINE)


@pytest.mark.parametrize(("parameter", "key", "default"), ROWS, ids=[row[0] for row in ROWS])
def test_defaults_of_the_table_are_those_of_the_configuration(parameter, key, default):
    section, name = key.split(".")
    value = Config(preset="x").resolved()[section][name]
    assert parse_assignment(f"{key}={default}") == (key, value)


def test_every_setting_named_in_the_page_exists():
    assert len(ROWS) > 30
    named = re.findall(r"`([a-z_]+)\.([a-z_]+)`", TEXT)
    known = Config(preset="x").resolved()
    assert [f"{section}.{name}" for section, name in named if name not in known.get(section, {})] == []
