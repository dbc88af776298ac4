"""Presets load; a mistake is one sentence that names the nearest valid key; the hash means what it says."""

from __future__ import annotations

import pytest

from wmlkit.config import load_preset, parse_assignment, preset_names
from wmlkit.errors import UserError
from wmlkit.identity import LATER, run_hash, shaping
from wmlkit.study_plan import plan


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_say_where_their_numbers_come_from(name):
    config = load_preset(name)
    assert config.preset == name
    assert load_preset(name, {f"train.{k}": v for k, v in config.resolved()["train"].items()}) == config


def test_the_presets_of_the_design_are_there():
    assert {"smoke", "nursery", "modern-10m", "paper-10m", "paper-100m"} <= set(preset_names())


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


CAUSAL = {"model.family": "llama", "model.objective": "clm"}


@pytest.mark.parametrize(
    ("reads", "reads_not", "changes"),
    [
        ({}, {"mutual.arm": "independent"}, {"mutual.ce_weight": "peer"}),
        ({}, CAUSAL, {"train.mask_ratio": 0.4}),
        ({}, CAUSAL, {"train.mask_ratio_end": 0.1, "train.mask_random": 0.1, "train.mask_keep": 0.1}),
        (CAUSAL | {"train.mntp_share": 0.5}, CAUSAL, {"train.mask_span": 3}),
        ({"mutual.arm": "distill"}, {}, {"mutual.teacher_size": "peer"}),
        ({"mutual.frozen_teacher": True}, {"mutual.arm": "independent"}, {"mutual.teacher_steps": 3}),
        ({}, {"mutual.arm": "dml"}, {"outer.lr": 0.5}),
        ({}, {"mutual.arm": "distill"}, {"outer.objective": "weighted_ce"}),
        ({"mutual.arm": "dml"}, {"mutual.arm": "distill"}, {"mutual.kl_weight": "student"}),
        ({"mutual.arm": "dml"}, {"mutual.arm": "independent"}, {"mutual.peer_weights": [0.3, 0.7]}),
        ({"mutual.arm": "distill"}, {"mutual.arm": "independent"}, {"mutual.alpha": 0.9}),
        ({"mutual.arm": "distill"}, {"mutual.arm": "independent"}, {"mutual.kl_warmup_steps": 2}),
    ],
)
def test_what_a_run_does_not_read_is_no_part_of_its_hash(reads, reads_not, changes):
    """Each arm has terms of the loss of its own; only `wml` has an outer problem; causal rows have masks in MNTP."""
    config = load_preset("smoke", reads_not)
    assert run_hash(config.updated(changes), "data") == run_hash(config, "data")
    config = load_preset("smoke", reads)
    assert run_hash(config.updated(changes), "data") != run_hash(config, "data")


def test_a_setting_that_came_later_is_no_part_of_the_hash_where_it_changes_nothing():
    """So runs from before it keep their names, and are not trained again."""
    learns = shaping(load_preset("smoke", {"outer.min_lr_ratio": None}))
    assert all(key not in learns[section] for section, values in LATER.items() for key in values)
    for section, key, value in (("outer", "min_lr_ratio", 0.5), ("train", "mask_span", 2)):
        assert shaping(load_preset("smoke", {f"{section}.{key}": value}))[section][key] == value


def test_configurations_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        load_preset("smoke").train.steps = 3


def test_the_floor_of_the_weights_leaves_room_for_all_peers_and_a_frozen_teacher():
    most = {"outer.min_weight": 0.24, "mutual.arm": "wml", "mutual.num_peers": 4}
    assert load_preset("nursery", most).outer.min_weight == 0.24
    with pytest.raises(UserError, match="is 0.25 for 4 peers, .* less than 1/4, or no weight could move"):
        load_preset("nursery", {**most, "outer.min_weight": 0.25})
    with pytest.raises(UserError, match="is 0.24 for 4 peers and a frozen teacher, whose 5 weights .* less than 1/5"):
        load_preset("nursery", {**most, "mutual.frozen_teacher": True})
    for free in ("independent", "dml", "distill"):  # these have no outer step
        load_preset("nursery", {**most, "mutual.arm": free, "mutual.num_peers": 5})
    with pytest.raises(UserError, match="is 0.24 for 5 peers"):  # of a study, before anything is trained
        plan(load_preset("nursery", {**most, "study.runs": [["wml", 5]]}))


def test_shares_of_the_masked_positions_may_fill_them():
    assert load_preset("smoke", {"train.mask_random": 0.7, "train.mask_keep": 0.3}).train.mask_keep == 0.3


@pytest.mark.parametrize(
    ("suite", "instead"), [("glue", "wmlkit evaluate RUN --suite glue"), ("lm", "set evaluate.text_words")]
)
def test_what_is_no_suite_of_pairs_is_refused_before_anything_is_trained(suite, instead):
    with pytest.raises(UserError, match=f"names '{suite}'; expected suites of minimal pairs; .*{instead}"):
        load_preset("smoke", {"evaluate.suites": ["nursery", suite]})


@pytest.mark.parametrize("suite", ["turkish/agreement", "../evil", "", ".hidden"])
def test_a_suite_s_name_is_one_of_a_folder(suite: str) -> None:
    with pytest.raises(UserError, match="expected names of letters, digits and _.-"):
        load_preset("smoke", {"evaluate.suites": ["blimp", suite]})
