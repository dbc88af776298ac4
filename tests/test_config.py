"""Presets load; a mistake is one sentence that names the nearest valid key; the hash means what it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmlkit.config import load_preset, parse_assignment, preset_names
from wmlkit.errors import UserError
from wmlkit.identity import run_hash


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_say_where_their_numbers_come_from(name):
    config = load_preset(name)
    assert config.preset == name
    assert load_preset(name, {f"train.{k}": v for k, v in config.resolved()["train"].items()}) == config


def test_the_presets_of_the_design_are_there():
    assert {"smoke", "nursery", "modern-10m", "paper-10m", "paper-100m"} <= set(preset_names())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "unknown config key 'train.stepz'; the nearest valid key is 'train.steps'"),
        ("alpha=0.3", "unknown config key 'alpha'; the nearest valid key is 'mutual.alpha'"),
        ("trian.steps=3", "the nearest valid key is 'train.steps'"),
        ("mutual.num_peers=0", "config key 'mutual.num_peers' is 0: input should be greater than or equal to 1"),
        ("mutual.alpha=1.5", "config key 'mutual.alpha' is 1.5"),
        ("train.lr=nan", "config key 'train.lr' is nan"),
        ("train.steps=many", "config key 'train.steps' is 'many'"),
        ("mutual.arm=best", "config key 'mutual.arm' is 'best'"),
        ("model.objective=clm", "model.family 'roberta' cannot be trained with objective 'clm'; use gpt2 or llama"),
        ("model.num_heads=7", "model.hidden_size 80 is not a multiple of num_heads 7"),
        ("train.steps", "expected KEY=VALUE"),
    ],
)
def test_mistakes(override, message):
    with pytest.raises(UserError) as error:
        load_preset("nursery", [override])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_unknown_preset():
    with pytest.raises(UserError, match="there is no preset 'nursary'; expected one of .*nursery"):
        load_preset("nursary")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.lr=1e-3", ("train.lr", 0.001)),
        ("study.seeds=[0, 1]", ("study.seeds", [0, 1])),
        ("data.corpus=../text=2", ("data.corpus", "../text=2")),
        ("data.words=none", ("data.words", None)),
        ("data.clean=false", ("data.clean", False)),
    ],
)
def test_parse_assignment(text, expected):
    assert parse_assignment(text) == expected


@given(st.text())
def test_any_text_as_an_override_is_taken_or_refused_with_a_sentence(text):
    try:
        load_preset("smoke", [text])
    except UserError as error:
        assert str(error)


def test_hash_covers_what_shapes_a_run_and_nothing_else():
    config = load_preset("smoke")
    base = run_hash(config, "data")
    for changes in (
        {"train.lr": 0.5},
        {"mutual.alpha": 0.1},
        {"data.packing": "windows"},
        {"outer.every": 3},
        {"train.compile": True},
    ):
        assert run_hash(config.updated(changes), "data") != base
    for changes in ({"evaluate.ties": "first"}, {"study.seeds": [7]}, {"data.corpus": "elsewhere"}):
        assert run_hash(config.updated(changes), "data") == base
    assert run_hash(config, "other data") != base


def test_configurations_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        load_preset("smoke").train.steps = 3
