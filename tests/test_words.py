"""What tables and the answer say where runs are a mixture: each was false in one of these cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_runs import set_weights, write_glue, write_study
from mistakes import edit

from wmlkit import paths, results, tables
from wmlkit.ablations import check_changes
from wmlkit.answer import Answer, answer
from wmlkit.config import load_preset
from wmlkit.errors import UserError
from wmlkit.readings import loss_difference
from wmlkit.reference import glance
from wmlkit.runs import read_runs

BOTH = (("wml", 2), ("distill", 2))
PAIRS = ("babylm2025",)


def given_by(folder: Path) -> Answer:
    runs, scores = read_runs(folder), tables.all_scores(folder)
    return answer(runs, tables.main_result(scores), tables.differences(scores))


def set_done(run: Path, **changes: Any) -> None:
    edit(run / "done.json", lambda document: document | changes)


def fitted(run: Path) -> None:
    loss = paths.read_json(run / "done.json")["dev_ce_ensemble"] - 0.01
    members = [{"member": "fitted_ensemble", "dev_ce": loss}]
    paths.write_json(paths.ensembles(run), {"members": members, "settings": {}, "data_hash": ""})


def test_one_text_is_one_corpus_whatever_its_folder_was_called(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", BOTH, protocols=PAIRS)
    whole = tables.differences(tables.all_scores(folder))
    for run in folder.glob("wml-*"):
        edit(run / "config.json", lambda document: document | {"data": document["data"] | {"name": "copy"}})
    assert len({run.corpus for run in read_runs(folder)}) == 1
    pd.testing.assert_frame_equal(tables.differences(tables.all_scores(folder)), whole)


def test_settings_are_those_of_an_arm_that_reads_them(tmp_path: Path) -> None:
    """`independent`, the first of the runs, may have any step size of the weights."""
    folder = write_study(tmp_path / "nursery", (("independent", 2),), protocols=PAIRS)
    write_study(folder, (("wml", 2),), protocols=PAIRS, overrides={"outer.lr": 9.0, "mutual.alpha": 0.3})
    assert {run.setting for run in read_runs(folder)} == {""}
    tables.write_tables(folder)
    used = pd.read_csv(folder / "tables" / "T2.csv").set_index(["section", "name"])["value"]
    assert (used["outer", "lr"], used["mutual", "alpha"], used["train", "steps"]) == ("9.0", "0.3", "1000")


def test_the_shapes_are_those_of_the_main_runs(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", BOTH, protocols=PAIRS)
    write_study(folder, (("wml", 3),), (0,), protocols=PAIRS, overrides={"train.lr": 0.5})
    tables.write_tables(folder)
    assert len(pd.read_csv(folder / "tables" / "T3.csv")) == 2


def test_a_member_of_fewer_seeds_says_so_and_the_others_do_not(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", BOTH, protocols=PAIRS)
    for run in folder.glob("*-s0-*"):
        fitted(run)
    found = given_by(folder)
    (sentence,) = [one for one in found.basis if "wml minus distill" in one]
    assert "2 peers, 3 seeds: best peer" in sentence and "(no interval: one seed)" in sentence
    assert "lower is better) " in found.headline and " over 1 seed" in found.headline
    for run in folder.glob("*-s1-*"):
        fitted(run)
    (sentence,) = [one for one in given_by(folder).basis if "wml minus distill" in one]
    assert "2 peers, 3 seeds: " in sentence and sentence.count(" over 2 seeds; ") == 1


def test_weights_that_move_apart_in_each_seed_are_not_called_unmoved(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("dml", 2)), (0, 1), protocols=PAIRS)
    for weights in ([0.52, 0.48], [0.48, 0.52]), ([0.9, 0.1], [0.1, 0.9]):
        for seed, own in enumerate(weights):
            set_weights(next(folder.glob(f"wml-p2-s{seed}-*")), own)
        (sentence,) = [one for one in given_by(folder).basis if "learned weights" in one]
        assert "came to 0.500, 0.500" in sentence
        assert ("hardly moved" in sentence) == (weights[0][0] == 0.52)


def test_weights_that_were_given_are_not_called_equal(tmp_path: Path) -> None:
    for given in (None, [0.8, 0.2]):
        study, own = (("wml", 2), ("dml", 2), ("independent", 2)), {"mutual.peer_weights": given}
        folder = write_study(tmp_path / str(given) / "nursery", study, (0, 1), protocols=PAIRS, overrides=own)
        for run in folder.glob("*-p2-*"):
            fitted(run)
        (sentence,) = [one for one in given_by(folder).basis if "fitted ensemble every arm" in one]
        assert ("that of dml as it was given" in sentence) == (given is not None)


def test_a_teacher_that_read_other_text_leaves_a_hint(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", BOTH, protocols=PAIRS)
    for run in folder.glob("distill-*"):
        path = paths.evaluation(run, "nursery", "babylm2025")
        edit(path, lambda document: document | {"members": [one | {"score": 93.0} for one in document["members"]]})
    assert given_by(folder).headline.startswith("No, on nursery")
    for run in folder.glob("distill-*"):
        teacher = {"name": "big", "run": None, "hash": "ab" * 32}
        set_done(run, teacher=teacher, teacher_outside_budget=True)
    headline = given_by(folder).headline
    assert headline.startswith("Only a hint, on nursery") and headline.endswith(
        "; the teacher may have seen other text)."
    )


@pytest.mark.parametrize("ties", [0.9, 25.0])
def test_pairs_that_no_model_tells_apart_are_told(tmp_path: Path, ties: float) -> None:
    folder = write_study(tmp_path / "nursery", BOTH, protocols=PAIRS)
    for path in folder.glob("*/evaluation/*.json"):
        edit(path, lambda document: document | {"members": [one | {"ties": ties} for one in document["members"]]})
    told = [one for one in given_by(folder).basis if one.startswith("25 % of the pairs or more are ties in every row")]
    assert len(told) == (ties > 1)


def test_runs_of_one_peer_hide_no_other_reason(tmp_path: Path) -> None:
    study = (("wml", 4), ("wml", 1), ("distill", 2), ("distill", 1))
    apart = write_study(tmp_path / "1" / "nursery", study, protocols=PAIRS)
    assert "distillation has 2 peers and mutual learning 4, no number in common" in given_by(apart).headline
    seeds = write_study(tmp_path / "2" / "nursery", (("wml", 1), ("distill", 1)), (0,), protocols=PAIRS)
    write_study(seeds, (("wml", 2),), (1, 2), protocols=PAIRS)
    write_study(seeds, (("distill", 2),), (3, 4), protocols=PAIRS)
    assert "distillation has seeds 3, 4 and mutual learning 1, 2, none in common" in given_by(seeds).headline


def test_the_mean_peer_s_accuracy_is_among_the_comparisons(tmp_path: Path) -> None:
    found = given_by(write_study(tmp_path / "nursery", BOTH, protocols=PAIRS))
    assert list(found.comparisons["member"]) == ["best_peer", "mean_peer", "ensemble"]


def test_accuracy_at_a_glance_is_no_score_of_fine_tuning(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", BOTH, protocols=PAIRS)
    for run in read_runs(folder):
        write_glue(run.folder, {"cola": [10.0 + run.seed + (20 + run.seed) * (run.arm == "wml")]})
    table = tables.differences(tables.all_scores(folder))
    (folder / "tables").mkdir()
    table.to_csv(folder / "tables" / "T4_differences.csv", index=False)
    tables.cost(results.runs_table(folder)).to_csv(folder / "tables" / "T7.csv", index=False)
    mean = table[(table["suite"] == "nursery") & (table["member"] == "mean_peer")]["mean"].item()
    assert f"| {mean:+.1f} [" in glance(tmp_path)


def test_an_interval_over_items_is_one_of_all_the_seeds(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", BOTH, protocols=PAIRS)
    next(folder.glob("wml-p2-s1-*/evaluation/*.items.jsonl")).unlink()
    table = tables.differences(tables.all_scores(folder), read_runs(folder), resamples=20)
    assert table["item_low"].isna().all()


def test_ablations_of_files_of_one_name_are_refused() -> None:
    base = {"mutual.arm": "distill", "mutual.num_peers": 2, "mutual.teacher": "/a/peers/peer_1"}
    for given, settings in (
        (base, [{"mutual.teacher": "/b/peers/peer_1"}]),
        (base | {"mutual.teacher": "/a/large"}, [{"mutual.teacher": f"/{place}/peers/peer_1"} for place in "ab"]),
    ):
        config = load_preset("nursery", {"ablations.base": given, "ablations.settings": settings})
        with pytest.raises(UserError, match="peer_1' have one name; expected another mutual.teacher to have"):
            check_changes(config)
    moved = [{"mutual.teacher": "/b/peers/peer_2"}]
    check_changes(load_preset("nursery", {"ablations.base": base, "ablations.settings": moved}))


@pytest.mark.parametrize(
    ("low", "high", "tiny"),
    [(-0.004, -0.001, False), (-0.02, -0.0002, False), (0.0002, 0.02, False), (-0.0004, -0.0002, True)],
)
def test_a_difference_is_tiny_where_no_end_of_its_interval_is_told_from_0(low: float, high: float, tiny: bool) -> None:
    row = {
        "setting": "", "suite": "dev_ce", "member": "best_peer", "peers": 2, "a": "wml", "b": "dml", "n_seeds": 3,
        "mean": (low + high) / 2, "low": low, "high": high, "p_adjusted": 0.01,
    }  # fmt: skip
    assert ("less than three digits tell" in loss_difference(pd.DataFrame([row]), "wml", "dml")) == tiny


def test_ties_are_told_where_every_row_has_many(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", BOTH, (0,), protocols=("babylm2025",))

    def told(**shares: float) -> bool:
        for run in read_runs(folder):
            path = paths.evaluation(run.folder, "nursery", "babylm2025")
            document = paths.read_json(path)
            members = [one | {"ties": shares[run.arm]} for one in document["members"]]
            paths.write_json(path, document | {"members": members})
        return any("ties in every row" in sentence for sentence in given_by(folder).basis)

    assert [told(wml=0.5, distill=3.0), told(wml=2.0, distill=3.0)] == [False, True]


def test_accuracy_at_a_glance_is_under_the_runs_own_protocol(tmp_path: Path) -> None:
    """Of several protocols that all runs were scored under; by name the first is another."""
    folder = write_study(tmp_path / "nursery", BOTH, protocols=("babylm2025", "babylm2024-fixed"))
    tables.write_tables(folder)
    table = pd.read_csv(folder / "tables" / "T4_differences.csv")
    table = table[(table["suite"] == "nursery") & (table["member"] == "mean_peer")].set_index("protocol")["mean"]
    own, other = table["babylm2025"], table["babylm2024-fixed"]
    assert f"{own:+.1f}" != f"{other:+.1f}"
    assert f"| {own:+.1f} [" in glance(tmp_path)
