from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import PARADIGMS, write_evaluation, write_run, write_study
from typer.testing import CliRunner

from wmlkit import paths, results
from wmlkit.cli import app
from wmlkit.config import Config
from wmlkit.errors import UserError
from wmlkit.items import item_bootstrap, items_table, paired_items
from wmlkit.provenance import of_runs
from wmlkit.run_files import FORMAT
from wmlkit.runs import finished_runs, read_runs, unfinished_beside, unfinished_runs
from wmlkit.summary import write_summary

STUDY = (("independent", 2), ("wml", 2), ("distill", 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("out") / "nursery", STUDY, protocols=("babylm2025",))


def scores(**columns: Sequence[object]) -> pd.DataFrame:
    table = pd.DataFrame(columns)
    for name, value in (("setting", ""), ("corpus", "c"), ("suite", "s"), ("protocol", "p"), ("member", "best_peer")):
        table[name] = value
    return table.assign(peers=4, note="", run=[f"run{i}" for i in range(len(table))])


def test_one_row_a_finished_run(folder: Path) -> None:
    table = results.runs_table(folder)
    assert list(table["arm"]) == ["independent"] * 3 + ["wml"] * 3 + ["distill"] * 3
    assert list(table["seed"]) == [0, 1, 2] * 3
    first = read_runs(folder)[0]
    row = table.iloc[0]
    assert row["parameters"] == sum(first.done["parameters"])
    assert row["dev_ce"] == first.done["dev_ce"][first.done["best_peer"] - 1]
    assert row["device"] == "cpu" and row["commit"] == "0123abc"


def test_unfinished_runs_are_listed_and_counted_nowhere(tmp_path: Path) -> None:
    folder = tmp_path / "nursery"
    write_run(folder, "wml", 2, 0)
    stopped = write_run(folder, "wml", 2, 1)
    (stopped / "done.json").unlink()
    (folder / "tables").mkdir()
    assert unfinished_runs(folder) == [stopped.name]
    assert list(results.runs_table(folder)["seed"]) == [0]
    assert set(results.metrics_table(folder)["seed"]) == {0}


def test_a_folder_without_runs_gives_empty_tables(tmp_path: Path) -> None:
    for table in (results.runs_table, results.metrics_table, results.scores_table, results.paradigm_table):
        assert table(tmp_path).empty
    with pytest.raises(UserError, match="no folder"):
        results.runs_table(tmp_path / "absent")


def test_setting_tells_how_a_run_differs_from_the_main_ones(tmp_path: Path) -> None:
    folder = tmp_path / "some"
    for seed in (0, 1):
        write_run(folder, "wml", 2, seed)
        write_run(folder, "dml", 4, seed)  # arm, peers and seed are no setting
    other = write_run(folder, "wml", 2, 0, {"mutual.alpha": 0.9, "train.steps": 20})
    settings = {run.folder.name: run.setting for run in read_runs(folder)}
    assert settings.pop(other.name) == "mutual.alpha=0.9 train.steps=20"
    assert set(settings.values()) == {""}


def test_rows_of_the_main_setting_and_of_the_most_peers() -> None:
    """And an empty table, which has no columns, stays one."""
    settings, arms = ["", "", "train.lr=1", ""], ["dml", "wml", "wml", "wml"]
    table = pd.DataFrame({"setting": settings, "arm": arms, "peers": [4, 2, 4, 1]})
    assert list(results.main_setting(table).index) == [0, 1, 3]
    assert list(results.most_peers(results.main_setting(table, arm="wml")).index) == [1]
    assert results.most_peers(results.main_setting(pd.DataFrame(), arm="wml")).empty


def test_the_evaluation_told_of_first_is_the_first_configured_one_that_was_made(folder: Path) -> None:
    (run, *_) = read_runs(folder)
    asked = replace(run, config=run.config | {"evaluate": {"suites": ["ewok", "blimp"], "protocol": "babylm2025"}})
    suites, protocols = ["supplement", "blimp", "blimp"], ["babylm2025", "released", "babylm2025"]
    made = pd.DataFrame({"suite": suites, "protocol": protocols})
    assert results.main_evaluation([asked], made) == ("blimp", "babylm2025")
    assert results.main_evaluation([asked], made[:2]) == ("supplement", "babylm2025")  # none of those asked for


def test_means_of_a_group_s_rows() -> None:
    rows = pd.DataFrame({"arm": ["a", "a", "b"], "ties": [1.0, 4.0, 7.0]})
    assert list(results.with_means(pd.DataFrame({"arm": ["b", "a"]}), rows, ["arm"], ["ties"])["ties"]) == [7.0, 2.5]


def test_differences_from_a_control_by_hand() -> None:
    """3 - 1 and 6 - 2 on the seeds that both have; the third seed has no control."""
    table = pd.DataFrame({"arm": ["a"] * 3 + ["b"] * 2, "seed": [1, 2, 3, 2, 1], "on": "x", "run": "r"})
    (row,) = results.against(table.assign(score=[3.0, 6, 9, 2, 1]), "arm", "b", ["on"]).to_dict("records")
    assert (row["arm"], row["on"], row["difference"], row["differences"]) == ("a", "x", 3.0, "2 4")
    assert row["difference_n_seeds"] == 2
    # t-quantile of one degree of freedom 12.706, standard error 1; p = 1 - 2 atan(3) / pi
    assert row["difference_high"] - 3 == pytest.approx(12.706, abs=1e-3)
    assert row["p"] == pytest.approx(1 - 2 * math.atan(3) / math.pi)


@pytest.mark.parametrize(("key", "value"), [("mutual.teacher_size", "peer"), ("train.ema_decay", 0.9)])
def test_a_run_older_than_a_setting_differs_from_one_that_uses_it(tmp_path: Path, key: str, value: object) -> None:
    """As runs of today that have it off do: they are the same runs."""
    section, name = key.split(".")
    old = write_run(tmp_path, "distill", 2, 0)
    document = paths.read_json(old / "config.json")
    del document["config"][section][name]
    paths.write_json(old / "config.json", document)
    for seed in (0, 1):
        write_run(tmp_path, "distill", 2, seed, {key: value})
    write_run(tmp_path, "distill", 2, 1)
    settings = [run.setting for run in read_runs(tmp_path)]
    assert len(settings) == 4 and sorted({*settings}) == ["", f"{key}={json.dumps(value)}"]


def test_a_run_on_other_text_is_another_setting(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "wml", 2, seed)
    path = next(tmp_path.glob("wml-p2-s1-*")) / "config.json"
    paths.write_json(path, {**paths.read_json(path), "data": {"folder": "x", "hash": "f" * 64, "name": "nursery"}})
    assert sorted(run.setting for run in read_runs(tmp_path)) == ["", 'data.hash="ffffffff"']


def test_metrics_are_those_of_the_file(folder: Path) -> None:
    run = next(run for run in read_runs(folder) if run.arm == "wml")
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    table = results.metrics_table(folder)
    table = table[table["run"] == run.folder.name]
    for quantity in ("ce", "peer_weights", "hypergradient"):
        chosen = table[(table["quantity"] == quantity) & (table["peer"] == 2)]
        assert list(chosen["value"]) == [line[quantity][1] for line in lines]
    assert list(table[table["quantity"] == "lr"]["value"]) == [line["lr"] for line in lines]
    assert table[table["quantity"] == "lr"]["peer"].isna().all()
    assert list(table[table["quantity"] == "dev_ce_ensemble"]["step"]) == list(range(100, 1001, 100))
    independent = results.metrics_table(folder).query("arm == 'independent'")
    assert "hypergradient" not in set(independent["quantity"])  # null in the file


def test_a_step_logged_twice_counts_once_the_last_time(tmp_path: Path) -> None:
    line = {"step": 10, "tokens": 1, "words": 1.0, "ce": [2.0], "lr": 0.1}
    text = "".join(json.dumps(entry) + "\n" for entry in (line, {**line, "step": 20}, {**line, "ce": [3.0]}))
    (tmp_path / "metrics.jsonl").write_text(text)
    table = results.run_metrics(tmp_path)
    assert list(table[table["quantity"] == "ce"]["value"]) == [3.0, 2.0]


def test_best_peer_repeats_the_peer_chosen_on_held_out_text(folder: Path) -> None:
    table, paradigms = results.scores_table(folder), results.paradigm_table(folder)
    assert {run.done["best_peer"] for run in read_runs(folder)} == {1, 2}
    for run in read_runs(folder):
        of_run = table[table["run"] == run.folder.name].set_index("member")
        chosen = int(np.argmin(run.done["held_out_ce"])) + 1
        assert of_run.loc["best_peer", "score"] == of_run.loc[f"peer_{chosen}", "score"]
        rows = paradigms[(paradigms["run"] == run.folder.name) & (paradigms["member"] == "best_peer")]
        assert len(rows) == len(PARADIGMS)
        assert rows["accuracy"].mean() == pytest.approx(of_run.loc["best_peer", "score"])
        dev = results.dev_table(folder).query("run == @run.folder.name").set_index("member")["score"]
        assert dev["best_peer"] == run.done["dev_ce"][chosen - 1]
        assert dev["ensemble"] == run.done["dev_ce_ensemble"]


def test_mean_peer_is_the_mean_over_the_peers_of_a_run(folder: Path) -> None:
    table = results.with_mean_peer(results.scores_table(folder))
    of_run = table[table["run"] == table["run"].iloc[0]].set_index("member")["score"]
    assert of_run["mean_peer"] == pytest.approx((of_run["peer_1"] + of_run["peer_2"]) / 2)


def test_some_peers_have_no_mean(folder: Path) -> None:
    """Where only the best peer was scored, its score is not called that of the mean peer."""
    scores = results.scores_table(folder)
    run = scores["run"].iloc[0]
    some = scores[(scores["run"] != run) | (scores["member"] != "peer_1")]
    means = results.with_mean_peer(some).query("member == 'mean_peer'")
    assert run not in set(means["run"]) and len(means)


def test_one_peer_alone_is_the_first_independent_one_of_the_most_seeds(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("independent", 2), ("wml", 2)), protocols=("babylm2025",))
    for arm, peers, overrides in (("independent", 4, {}), ("independent", 1, {"train.lr": 0.9})):
        run = write_run(folder, arm, peers, 0, overrides)
        write_evaluation(run, arm, peers, 0, "nursery", "babylm2025", PARADIGMS)
    scores = results.scores_table(folder)
    before = scores.set_index(["setting", "peers", "arm", "seed", "member"])["score"]
    shown = results.with_single_peer(scores)
    alone = shown[(shown["peers"] == 1) & (shown["setting"] == "")]
    assert sorted(zip(alone["member"], alone["seed"], strict=True)) == [
        (member, seed) for member in ("best_peer", "peer_1") for seed in range(3)
    ]
    for row in alone.to_dict("records"):
        assert row["score"] == before["", 2, "independent", row["seed"], "peer_1"]
    assert len(shown[shown["setting"] != ""]) == len(scores[scores["setting"] != ""])  # that has its own single peer


def test_of_as_many_seeds_the_larger_number_of_peers_gives_the_single_one(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("independent", 2), ("independent", 4)), protocols=("babylm2025",))
    scores = results.scores_table(folder)
    of_four = scores[(scores["peers"] == 4) & (scores["member"] == "peer_1")].set_index("seed")["score"]
    shown = results.with_single_peer(scores)
    alone = shown[(shown["peers"] == 1) & (shown["member"] == "peer_1")].set_index("seed")["score"]
    assert alone.to_dict() == of_four.to_dict() and len(alone) == 3
    assert not alone.equals(scores[(scores["peers"] == 2) & (scores["member"] == "peer_1")].set_index("seed")["score"])


@pytest.mark.parametrize("change", [{}, {"settings": {"ties": "first"}}, {"data_hash": "of other pairs"}])
def test_a_teacher_that_was_evaluated_otherwise_is_not_shown(tmp_path: Path, change: dict[str, object]) -> None:
    (run,) = read_runs(write_study(tmp_path / "nursery", (("distill", 2),), (0,), protocols=("babylm2025",)))
    teacher = {"run": "teacher-p1-s0-0123abcd", "name": "base model"} | dict.fromkeys(results.TEACHER_COST, 1)
    paths.write_json(run.folder / "done.json", run.done | {"teacher": teacher})
    document = paths.read_json(paths.evaluation(run.folder, "nursery", "babylm2025"))
    changed = {**document, **change, "settings": {**document["settings"], **change.get("settings", {})}}
    paths.write_json(paths.evaluation(run.folder.parent / teacher["run"], "nursery", "babylm2025"), changed)
    scores = results.scores_table(run.folder.parent).set_index("member")["score"]
    assert ("teacher" in scores) == (not change)
    assert change or scores["teacher"] == document["members"][0]["score"]


def test_no_single_peer_of_runs_in_which_only_the_best_was_scored(tmp_path: Path) -> None:
    """The first peer where it is the best one would stand for a peer that learned alone."""
    folder = write_study(tmp_path / "nursery", (("independent", 2),), protocols=("babylm2025",))
    scores = results.scores_table(folder)
    first_is_best = scores["seed"] == 1
    some = scores[first_is_best | (scores["member"] != "peer_1")]
    assert not (results.with_single_peer(some)["peers"] == 1).any()
    assert (results.with_single_peer(scores)["peers"] == 1).any()


def test_interval_by_hand() -> None:
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653: 2 -/+ 4.302653 / sqrt(3)
    assert results.interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    # two are enough: standard deviation sqrt(2), t(0.975, 1) = 12.706205
    assert results.interval([1.0, 3.0]) == pytest.approx((2 - 12.706205, 2 + 12.706205), abs=1e-5)


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0]])
def test_no_interval_from_one_seed_or_without_spread(values: list[float]) -> None:
    assert np.isnan(results.interval(values)).all()


def test_over_seeds_keeps_every_value() -> None:
    table = scores(arm=["wml"] * 3, seed=[2, 0, 1], score=[3.0, 1.0, 2.0])
    row = results.over_seeds(table, ["arm", "peers"]).iloc[0]
    assert (row["mean"], row["n_seeds"], row["seeds"], row["values"]) == (2.0, 3, "0 1 2", "1 2 3")


def test_a_seed_may_count_only_once() -> None:
    table = scores(arm=["wml"] * 3, seed=[0, 0, 1], score=[1.0, 2.0, 3.0])
    with pytest.raises(UserError, match="^run0, run1 repeat a seed"):  # and not run2
        results.over_seeds(table, ["arm"])
    other = scores(arm=["dml"] * 2, seed=[0, 1], score=[1.0, 2.0])
    with pytest.raises(UserError, match="^run0, run1 repeat a seed"):
        results.paired_differences(pd.concat([table, other]))


def test_paired_difference_by_hand() -> None:
    table = scores(arm=["wml"] * 4 + ["dml"] * 4, seed=[0, 1, 2, 7, 0, 1, 2, 8], score=[3, 5, 7, 0, 2, 3, 4, 0])
    row = results.paired_differences(table).set_index(["a", "b"]).loc[("wml", "dml")]
    # Differences 1, 2, 3 on the seeds that both have; t = 2 sqrt(3) with 2 degrees of freedom: p = 1 - t/sqrt(t^2 + 2).
    assert (row["mean"], row["n_seeds"], row["seeds"], row["values"]) == (2.0, 3, "0 1 2", "1 2 3")
    assert row["p"] == pytest.approx(1 - np.sqrt(12 / 14))
    assert (row["low"], row["high"]) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)


def test_one_seed_gives_a_difference_without_interval_or_p() -> None:
    table = scores(arm=["wml", "distill"], seed=[0, 0], score=[3.0, 1.0])
    row = results.paired_differences(table).iloc[0]
    assert (row["a"], row["b"], row["mean"], row["n_seeds"]) == ("wml", "distill", 2.0, 1)
    assert np.isnan([row["low"], row["high"], row["p"]]).all()


def test_items_give_the_scores_of_the_evaluation(folder: Path) -> None:
    run = read_runs(folder)[0]
    items = items_table(run, "nursery", "babylm2025")
    assert items is not None
    table = results.scores_table(folder)
    of_run = table[table["run"] == run.folder.name].set_index("member")["score"]
    for member in ("peer_1", "ensemble", "best_peer"):
        assert 100 * items.groupby("paradigm")[member].mean().mean() == pytest.approx(of_run[member])
    assert items_table(run, "nursery", "babylm2026") is None


def test_bootstrap_of_items_agrees_with_plain_resampling() -> None:
    rng = np.random.default_rng(0)
    items = pd.DataFrame(
        {
            "seed": 0,
            "paradigm": ["a"] * 60 + ["b"] * 20,
            "pair_id": [str(number // 2) for number in range(80)],
            "copy": [number % 2 for number in range(80)],
            "difference": rng.choice([-1, 0, 0.5, 1], 80),
        }
    )
    low, high = item_bootstrap(items, np.random.default_rng(1), resamples=4000)
    pairs = items.groupby(["paradigm", "pair_id"])["difference"].mean()  # what is drawn: both copies of a pair
    groups = [group.to_numpy() for _, group in pairs.groupby("paradigm")]
    plain = [np.mean([rng.choice(group, len(group)).mean() for group in groups]) for _ in range(4000)]
    assert (low, high) == pytest.approx(tuple(100 * np.quantile(plain, [0.025, 0.975])), abs=1.5)
    assert low < 100 * np.mean([group.mean() for group in groups]) < high


def test_bootstrap_draws_the_copies_of_a_pair_together() -> None:
    """EWoK has each row with its sentences swapped: a scorer that cannot tell them apart is right in one of the two."""
    rows = [("a", str(pair), copy) for pair in range(30) for copy in (0, 1)]
    items = pd.DataFrame(rows, columns=["paradigm", "pair_id", "copy"]).assign(seed=0)
    blind = items.assign(difference=items["copy"].astype(float))
    assert item_bootstrap(blind, np.random.default_rng(1)) == (50.0, 50.0)
    agreeing = items.assign(difference=[float(int(pair) % 2) for pair in items["pair_id"]])
    half = agreeing[agreeing["copy"] == 0]
    both = [item_bootstrap(one, np.random.default_rng(1)) for one in (agreeing, half)]
    assert both[0] == pytest.approx(both[1]) and both[0][1] - both[0][0] > 20


def test_bootstrap_draws_an_item_for_all_seeds_at_once() -> None:
    """Seeds that behave alike say no more about the items than one of them; seeds that differ are averaged first."""
    rng = np.random.default_rng(0)
    one = pd.DataFrame(
        {
            "seed": 0,
            "paradigm": ["a"] * 50 + ["b"] * 50,
            "pair_id": [str(number % 25) for number in range(100)],  # every name twice in a paradigm
            "copy": [number // 25 % 2 for number in range(100)],
            "difference": rng.choice([-1.0, 0.0, 1.0], 100),
        }
    )
    alike = pd.concat([one.assign(seed=seed).sample(frac=1, random_state=seed) for seed in range(3)])
    alone, together = (item_bootstrap(items, np.random.default_rng(1), 500) for items in (one, alike))
    assert together == pytest.approx(alone, abs=1e-9) and alone[1] - alone[0] > 10
    opposite = pd.concat([one, one.assign(seed=1, difference=-one["difference"])])
    assert item_bootstrap(opposite, np.random.default_rng(1), 500) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_bootstrap_uses_only_the_generator_it_is_given() -> None:
    items = pd.DataFrame({"seed": 0, "paradigm": "a", "pair_id": "0", "copy": range(4), "difference": [1.0, 0, -1, 1]})
    first = item_bootstrap(items, np.random.default_rng(5), resamples=50)
    np.random.seed(3)  # the global generator, which must not matter
    assert item_bootstrap(items, np.random.default_rng(5), resamples=50) == first
    assert item_bootstrap(items.assign(difference=0.0), np.random.default_rng(5)) == (0.0, 0.0)
    assert np.isnan(item_bootstrap(items.iloc[:0], np.random.default_rng(5))).all()


def test_items_are_paired_by_their_names_and_must_be_the_same() -> None:
    a = pd.DataFrame({"paradigm": ["x", "x"], "pair_id": ["0", "1"], "copy": 0, "peer_1": [1.0, 0.0]})
    b = a.iloc[::-1].reset_index(drop=True).assign(peer_1=[1.0, 1.0])
    assert list(paired_items({0: a, 1: a}, {0: b}, "peer_1")["difference"]) == [0.0, -1.0]
    assert paired_items({0: a}, {0: b}, "ensemble").empty
    with pytest.raises(UserError, match="seed 0 scored 2 and 1 items"):
        paired_items({0: a}, {0: b.iloc[:1]}, "peer_1")


def broken(folder: Path, name: str, text: str) -> Path:
    path = next(folder.glob("wml-p2-s0-*")) / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["config.json", "done.json", "environment.json", "evaluation/nursery-babylm2025.json"])
@pytest.mark.parametrize(("text", "message"), [('{"config":', "not JSON"), ("{}", "has no"), ("[1]", "has no")])
def test_a_broken_file_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    write_study(tmp_path, (("wml", 2),), seeds=(0,), protocols=("babylm2025",))
    path = broken(tmp_path, name, text)
    with pytest.raises(UserError, match=message) as caught:
        results.scores_table(tmp_path)
    assert str(path) in str(caught.value)


def with_format(folder: Path, found: object) -> Path:
    path = next(folder.glob("wml-p2-s0-*")) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": found}))
    return path


def test_run_folders_of_another_format_are_refused(tmp_path: Path) -> None:
    write_study(tmp_path, (("wml", 2),), seeds=(0,), protocols=("babylm2025",))
    assert len(results.scores_table(tmp_path))
    for unknown in (FORMAT + 1, 0, "new", None):
        path = with_format(tmp_path, unknown)
        message = f"{re.escape(str(path))} has format {unknown!r}, expected {FORMAT}: another version of wmlkit"
        with pytest.raises(UserError, match=message):
            results.scores_table(tmp_path)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, "wml", 2, 0)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1010, "tok')
    with pytest.raises(UserError, match="line 101 of .*metrics.jsonl is not JSON"):
        results.metrics_table(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, "wml", 2, 0)
    (run / "environment.json").unlink()
    with pytest.raises(UserError, match="environment.json is missing"):
        results.runs_table(tmp_path)


@pytest.mark.parametrize(("arm", "section", "key"), [("wml", "model", "objective"), ("distill", "mutual", "teacher")])
def test_a_configuration_without_what_tells_idle_settings_is_named(
    tmp_path: Path, arm: str, section: str, key: str
) -> None:
    run = write_run(tmp_path, arm, 2, 0)
    document = paths.read_json(run / "config.json")
    del document["config"][section][key]
    paths.write_json(run / "config.json", document)
    with pytest.raises(UserError, match=f"config.json has no '{key}'; expected the files that this version"):
        results.runs_table(tmp_path)


def test_done_must_fit_the_number_of_peers(tmp_path: Path) -> None:
    run = write_run(tmp_path, "wml", 2, 0)
    paths.write_json(run / "done.json", {**paths.read_json(run / "done.json"), "best_peer": 3})
    with pytest.raises(UserError, match="best_peer from 1 to 2"):
        results.runs_table(tmp_path)


def test_a_folder_is_known_by_its_name_also_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0,), protocols=("babylm2025",))
    monkeypatch.chdir(folder)
    assert CliRunner().invoke(app, ["report", "."]).exit_code == 0
    assert paths.read_json(folder / "summary.json")["preset"] == "nursery" and (folder / "tables" / "T1.csv").is_file()
    monkeypatch.chdir(next(folder.glob("wml-*")))
    assert paths.named(Path("..")) == folder and paths.named(Path("tables")) == Path("tables")


def test_what_trained_runs_is_named_once(tmp_path: Path) -> None:
    """Though one of them was begun at one commit and ended at another."""
    folder = write_study(tmp_path / "nursery", (("wml", 2),), protocols=())
    for run, commit in zip(sorted(folder.glob("wml-*")), ("a", "a, b", "b"), strict=True):
        path = run / "environment.json"
        paths.write_json(path, paths.read_json(path) | {"commit": commit})
    write_summary(folder)
    assert paths.read_json(folder / "summary.json")["commit"] == "a, b"
    assert of_runs(read_runs(folder), "command", "here")["runs_commit"] == "a, b"


def test_summary_has_exactly_the_documented_keys(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0,), protocols=("babylm2025",))
    other = write_run(folder, "wml", 2, 0, {"mutual.alpha": 0.9})
    write_evaluation(other, "wml", 2, 5, "nursery", "babylm2025", PARADIGMS)  # other scores
    write_run(folder, "wml", 2, 1)  # a second run of the main setting, not evaluated
    write_summary(folder, {"total": 12.5})
    document = paths.read_json(folder / "summary.json")
    assert list(document) == ["preset", "commit", "device", "minutes", "results"]
    assert document["preset"] == "nursery" and document["device"] == "cpu" and document["commit"] == "0123abc"
    assert document["minutes"] == {"train": pytest.approx(200 / 60), "evaluate": None, "total": 12.5}
    teacher = {"name": "teacher-p1-s0-0a1b2c3d", "tokens": 1, "words": 1, "seconds": 60.0, "flops": 1.0, "dev_ce": 2.0}
    for peers in (2, 3):  # who share their teacher
        path = write_run(folder, "distill", peers, 0) / "done.json"
        paths.write_json(path, paths.read_json(path) | {"teacher": teacher})
    write_summary(folder)  # tables made again: the main job's time stays
    minutes = {"train": pytest.approx((200 + 100 + 150 + 60) / 60), "evaluate": None, "total": 12.5}
    assert paths.read_json(folder / "summary.json") == document | {"minutes": minutes}
    for run in folder.glob("distill-*"):
        shutil.rmtree(run)
    write_summary(folder)
    assert paths.read_json(folder / "summary.json") == document
    (folder / "summary.json").write_text("[]")
    write_summary(folder)
    assert paths.read_json(folder / "summary.json")["minutes"]["total"] is None
    keys = ["arm", "peers", "seed", "suite", "protocol", "member", "score", "ties", "n"]
    assert all(list(row) == keys for row in document["results"])
    members = ["peer_1", "peer_2", "ensemble", "best_peer"]
    assert [row["member"] for row in document["results"]] == members
    table = results.scores_table(folder)
    scored = table[table["setting"] == ""].set_index("member")["score"]
    assert [row["score"] for row in document["results"]] == pytest.approx(list(scored[members]))


def test_an_output_folder_is_told_from_a_preset_s(tmp_path: Path) -> None:
    write_study(tmp_path / "out" / "smoke", (("wml", 2),), seeds=(0,), protocols=())
    with pytest.raises(UserError, match=r"holds no finished run; .* give the preset's folder in it: .*/out/smoke$"):
        finished_runs(tmp_path / "out")
    with pytest.raises(UserError, match="train first: wmlkit reproduce"):
        finished_runs(tmp_path)  # nothing that is one level down


def test_reading_results_waits_for_no_model():
    """In a fresh interpreter: tables and the page are made without torch and transformers."""
    code = "import sys, wmlkit.report; print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_unfinished_runs_beside_a_new_one_are_told_by_all_their_settings(tmp_path: Path) -> None:
    """Also by one that an older configuration lacks; those that cannot be read, and other arms, are left out."""
    folder = tmp_path / "smoke"
    config = Config(preset="smoke").updated({"train.steps": 50})
    old = config.resolved()
    del old["train"]["ema_decay"]
    paths.write_json(folder / "wml-p4-s0-11111111" / "config.json", {"format": FORMAT, "config": old})
    paths.write_json(folder / "wml-p4-s0-22222222" / "config.json", {"format": FORMAT, "config": {"data": {}}})
    paths.write_json(folder / "wml-p4-s0-33333333" / "config.json", {"config": old, "format": 99})
    paths.write_json(folder / "dml-p4-s0-44444444" / "config.json", {"format": FORMAT, "config": old})
    new = config.updated({"train.ema_decay": 0.9, "train.steps": 60}).resolved()
    told = unfinished_beside(folder / "wml-p4-s0-aaaaaaaa", new)
    what = "train.steps=50 train.ema_decay=0.0"
    assert told == [f"wml-p4-s0-11111111 is not finished and has {what}: with the same settings it would go on"]
    assert unfinished_beside(folder / "wml-p4-s0-11111111", new) == []  # it has begun
    assert unfinished_beside(tmp_path / "none" / "wml-p4-s0-aaaaaaaa", new) == []


def test_losses_and_clipping_of_a_run_by_hand(tmp_path: Path) -> None:
    path = write_run(tmp_path, "wml", 2, 0) / "done.json"
    known = {"best_peer": 2, "dev_ce": [1.0, 2.0], "held_out_ce": [4.0, 3.0], "clipped": [0.2, 0.6]}
    paths.write_json(path, paths.read_json(path) | known)
    row = results.runs_table(tmp_path).iloc[0]
    assert (row["dev_ce"], row["held_out_ce"]) == (2.0, 3.0) and row["clipped"] == pytest.approx(0.4)


def test_items_of_one_name_are_numbered_within_their_paradigm(tmp_path: Path) -> None:
    """As EWoK's, of which each has a swapped copy."""
    (run,) = read_runs(write_study(tmp_path / "nursery", (("wml", 2),), (0,), protocols=("babylm2025",)))
    path = paths.evaluation(run.folder, "nursery", "babylm2025").with_suffix(".items.jsonl")
    names = [("a", "0"), ("a", "0"), ("a", "1"), ("b", "0"), ("a", "1"), ("b", "0")]
    lines = path.read_text(encoding="utf-8").splitlines()
    named = [
        json.loads(line) | {"paradigm": paradigm, "pair_id": pair_id}
        for line, (paradigm, pair_id) in zip(lines, names, strict=False)
    ]
    paths.write_text(path, "".join(json.dumps(line) + "\n" for line in named))
    items = items_table(run, "nursery", "babylm2025")
    assert items is not None and items["copy"].tolist() == [0, 1, 0, 0, 1, 1]


def test_a_summary_written_again_keeps_the_minutes_of_the_main_job(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0,), protocols=())
    for given in ({"evaluate": 3.5, "total": 12, "train": 1.0}, None):
        write_summary(folder, given)
        minutes = paths.read_json(folder / "summary.json")["minutes"]
        assert (minutes["evaluate"], minutes["total"]) == (3.5, 12)
    assert minutes["train"] == pytest.approx(100 / 60)  # that of the runs
