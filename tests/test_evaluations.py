"""Tables of what evaluations say beyond their scores: protocols, GLUE tasks, dev text, and results of one seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import PARADIGMS, evaluated, write_evaluation, write_glue, write_study

from wmlkit import evaluations, paths, results, score_tables, tables
from wmlkit.alike import OTHERWISE, told_apart
from wmlkit.evaluate.protocols import credit
from wmlkit.items import ITEM, NO_SPREAD, NONE, OVER_SEEDS, item_bootstrap, items_table
from wmlkit.readable import readable
from wmlkit.runs import evaluations as all_evaluations
from wmlkit.runs import read_runs

CAUSAL = 'model.objective="clm" model.family="gpt2"'
BOTH = ("babylm2025", "babylm2024-released")


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = (("independent", 2), ("wml", 2))
    return write_study(tmp_path_factory.mktemp("out") / "nursery", study, seeds=(4,), protocols=("babylm2025",))


def test_protocols_with_a_perfect_scorer(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0, 1), protocols=BOTH)
    tidy = evaluations.protocol_table(folder)
    assert set(tidy["member"]) == {
        "peer_1",
        "peer_2",
        "ensemble",
        "uniform_ensemble",
        "best_peer",
        *score_tables.PERFECT,
    }
    table = score_tables.protocols(tidy).set_index(["protocol", "member"]).sort_index()
    assert table.loc[("babylm2024-released", "perfect_swapped"), "mean"] == 50
    assert table.loc[("babylm2025", "perfect_scorer"), "mean"] == 100
    assert table.loc[("babylm2024-released", "best_peer"), "reduction"] == "mean"
    documents = [paths.read_json(paths.evaluation(run.folder, "nursery", BOTH[0])) for run in read_runs(folder)]
    official = [document["members"][0]["official_score"] for document in documents]
    own = tidy[(tidy["protocol"] == BOTH[0]) & (tidy["member"] == "peer_1")]["score"]
    assert list(own) == official and table["n_seeds"].eq(2).all() and table["seeds"].eq("0 1").all()
    counts = tidy.groupby("member")["n"].unique().map(list)
    n = documents[0]["members"][0]["n"]
    assert counts["perfect_swapped"] == [2 * n] and counts["perfect_scorer"] == counts["best_peer"] == [n]
    for run in read_runs(folder):  # as of causal models, whose scores are in order
        file = paths.evaluation(run.folder, "nursery", BOTH[1])
        document = paths.read_json(file)
        document["settings"] |= {"reduction": "sum", "ordering_fault": False}
        paths.write_json(file, document)
    causal = score_tables.protocols(evaluations.protocol_table(folder)).set_index(["protocol", "member"])
    for rows, told in ((table, ("mean", True)), (causal, ("sum", False))):
        assert tuple(rows.loc[(BOTH[1], "best_peer"), ["reduction", "ordering_fault"]]) == told


def test_the_main_table_holds_protocols_that_compare_all_runs(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("dml", 2), ("wml", 2)), seeds=(0,), protocols=("babylm2025",))
    wml = next(run for run in read_runs(folder) if run.arm == "wml")
    write_evaluation(wml.folder, "wml", 2, 0, "nursery", "babylm2024-fixed", PARADIGMS)
    assert set(results.scores_table(folder)["protocol"]) == {"babylm2025", "babylm2024-fixed"}
    assert set(tables.all_scores(folder)["protocol"]) == {"babylm2025", ""}
    several = evaluations.several_protocols(evaluations.protocol_table(folder))
    assert set(several["run"]) == {wml.folder.name}
    assert "T4_protocols" in [path.stem for path in tables.write_tables(folder)]


def test_a_run_under_another_protocol_does_not_empty_the_main_table() -> None:
    def kept(*scored: tuple[str, str, str, str]) -> list[str]:
        scores = pd.DataFrame(scored, columns=["setting", "suite", "run", "protocol"])
        return [f"{row.run} {row.protocol}" for row in evaluations.of_common_protocols(scores).itertuples()]

    common = [("", "blimp", run, "2025") for run in "abc"]
    assert kept(*common, ("", "blimp", "d", "2024")) == ["a 2025", "b 2025", "c 2025"]
    assert kept(*common, ("", "blimp", "a", "2024")) == ["a 2025", "b 2025", "c 2025"]
    # another suite and another setting have a protocol of their own
    assert kept(*common, ("", "ewok", "d", "2024"), ("alpha=0.9", "blimp", "e", "2024"))[3:] == ["d 2024", "e 2024"]
    both = [(*row[:3], "2024") for row in common]
    assert len(kept(*common, *both)) == 6 and kept(*common[:1], *both[1:2]) == ["a 2025", "b 2024"]
    assert evaluations.of_common_protocols(pd.DataFrame()).empty


def test_one_missing_evaluation_leaves_the_configured_protocol_the_main_one(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("dml", 2), ("wml", 2)), seeds=(0, 1), protocols=BOTH)
    dml = next(run for run in read_runs(folder) if run.arm == "dml")
    paths.evaluation(dml.folder, "nursery", "babylm2025").unlink()
    scores = tables.all_scores(folder)
    assert set(scores["protocol"]) == {*BOTH, ""}
    assert results.main_evaluation(read_runs(folder), scores) == ("nursery", "babylm2025")


def test_another_evaluation_is_in_no_mean_or_difference_of_the_others(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("distill", 2)), protocols=("babylm2025",))
    before = tables.write_tables(folder)
    alike = {path.stem: pd.read_csv(path, keep_default_na=False) for path in before}
    assert not any(table["setting"].any() for table in alike.values() if "setting" in table)
    other = next(run.folder for run in read_runs(folder) if run.arm == "wml" and run.seed == 0)
    evaluated(other, "nursery", data_hash="dead" * 16, ties="first", per_paradigm=10)
    there = paths.evaluation(other, "nursery", "babylm2025").with_suffix(".items.jsonl")
    some = [line for line in there.read_text().splitlines() if json.loads(line)["pair_id"] in "0123456789"]
    paths.write_text(there, "\n".join(some) + "\n")  # so the items of the two arms could not be paired
    setting = 'evaluation.ties="first" evaluation.per_paradigm=10 evaluation.data_hash="deaddead"'
    runs, scores = read_runs(folder), tables.all_scores(folder)
    table = tables.main_result(scores, None, runs).query("suite == 'nursery' and member == 'best_peer'")
    found = {(row.arm, row.setting): (row.seeds, row.note) for row in table.itertuples()}
    assert found == {
        ("wml", ""): ("1 2", ""), ("wml", setting): ("0", OTHERWISE), ("distill", ""): ("0 1 2", ""),
    }  # fmt: skip
    differences = tables.differences(scores, runs)
    of_suites = differences.groupby("suite")["seeds"].unique()
    assert [*of_suites["nursery"]] == ["1 2"] and [*of_suites["dev_ce"]] == ["0 1 2"]
    assert differences.query("suite == 'nursery' and member == 'best_peer'")["item_low"].notna().all()
    for made in (tables.by_phenomenon(results.paradigm_table(folder), runs), evaluations.protocol_table(folder)):
        assert set(made[made["arm"] == "wml"]["setting"]) == {"", setting}
    assert set(made[made["arm"] == "distill"]["setting"]) == {""}
    assert {path.stem for path in tables.write_tables(folder)} == {path.stem for path in before}


def test_what_does_not_make_an_evaluation_another(tmp_path: Path) -> None:
    """Learned weights, the type of the stored weights, keys that an older document lacks, the setting of the run."""
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0, 1, 2), protocols=("babylm2025",))
    first, second, _ = (run.folder for run in read_runs(folder))
    evaluated(first, "nursery", ensemble_weights=[0.4, 0.6], dtype="bfloat16")
    path = paths.evaluation(second, "nursery", "babylm2025")
    document = paths.read_json(path)
    paths.write_json(path, {**document, "settings": {"ties": "half"}})
    causal = {"model.family": "gpt2", "model.objective": "clm"}
    write_study(folder, (("wml", 2),), (0, 1), ("babylm2025",), overrides=causal)
    for run in read_runs(folder):
        evaluated(run.folder, "nursery", objective=run.config["model"]["objective"], reduction=run.setting or "sum")
    assert set(results.scores_table(folder)["setting"]) == {"", CAUSAL}
    runs = read_runs(folder)
    found = [(run, document) for run in runs for document in all_evaluations(run)]
    assert set(told_apart(found, across_settings=True)) == {""}
    for run in runs:
        evaluated(run.folder, "nursery", ties="first" if run.setting else "half")
    assert set(results.scores_table(folder)["setting"]) == {"", CAUSAL}  # never in one mean
    found = [(run, document) for run in runs for document in all_evaluations(run)]
    assert {run.setting: text for (run, _), text in zip(found, told_apart(found, True), strict=True)} == {
        "": "", CAUSAL: 'evaluation.ties="first"',
    }  # fmt: skip


def test_of_settings_that_as_many_have_the_same_are_called_others_in_any_order(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0, 1), protocols=("babylm2025",))
    for run, ties in zip(read_runs(folder), ("half", "first"), strict=True):
        evaluated(run.folder, "nursery", ties=ties)
    found = [(run, document) for run in read_runs(folder) for document in all_evaluations(run)]
    told = told_apart(found)
    assert sorted(told) == ["", 'evaluation.ties="half"'] and told_apart(found[::-1]) == told[::-1]


def test_each_suite_has_a_protocol_in_the_table_of_phenomena(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0, 1), protocols=BOTH)
    for run in read_runs(folder):
        write_evaluation(run.folder, "wml", 2, run.seed, "blimp", "babylm2024-fixed", PARADIGMS)
    tables.write_tables(folder)
    for name in ("T5", "T4_thirds"):
        table = pd.read_csv(folder / "tables" / f"{name}.csv")
        found = set(zip(table["suite"], table["protocol"], strict=True)) - {("nursery", "babylm2025")}
        assert found == {("blimp", "babylm2024-fixed")}


def test_one_seed_gets_an_interval_of_items_that_says_so(one_seed: Path) -> None:
    runs = read_runs(one_seed)
    table = tables.main_result(tables.all_scores(one_seed), None, runs)
    assert table["low"].isna().all() and (table["n_seeds"] == 1).all() and (table["seeds"] == "4").all()
    scored = table[(table["suite"] == "nursery") & (table["peers"] == 2)]
    assert (scored["interval"] == "items of seed 4 resampled; nothing about other seeds").all()
    assert ((scored["item_low"] < scored["mean"]) & (scored["mean"] < scored["item_high"])).all()
    losses = table[table["suite"] == "dev_ce"]
    assert losses["item_low"].isna().all() and (losses["interval"] == NONE).all()
    # the interval of a single peer is that of the peer whose score it is
    alone = table[(table["peers"] == 1) & (table["suite"] == "nursery")].iloc[0]
    assert alone["item_low"] < alone["mean"] < alone["item_high"]
    of_it = next(run for run in runs if run.arm == "independent")
    assert of_it.best_member == "peer_2"
    first = items_table(of_it, "nursery", "babylm2025")
    assert first is not None
    credit = first[ITEM].assign(seed=0, difference=first["peer_1"])
    bounds = item_bootstrap(credit, np.random.default_rng(1), 4000)
    assert (alone["item_low"], alone["item_high"]) == pytest.approx(bounds, abs=0.5)
    # width by hand: 13 paradigms of 40 items, standard error of a macro mean of Bernoulli items
    row = scored[scored["member"] == "ensemble"].iloc[0]
    run = next(run for run in runs if run.arm == row["arm"])
    items = items_table(run, "nursery", "babylm2025")
    assert items is not None
    variances = items.groupby("paradigm")["ensemble"].var(ddof=0) / 40
    error = 100 * np.sqrt(variances.sum()) / len(variances)
    assert row["item_high"] - row["item_low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    (_, shown), *_ = readable("T4", table.assign(source="these runs"))
    assert shown["nursery babylm2025 (%)"].str.contains("items only").all()


def test_a_row_whose_measures_have_not_the_same_seeds_says_so(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("dml", 2)), protocols=("babylm2025",))
    for path in folder.glob("wml-p2-s1-*/evaluation/*"):
        path.unlink()  # of three seeds two are evaluated
    table = tables.main_result(tables.all_scores(folder), None, read_runs(folder))
    (_, shown), *_ = readable("T4", table.assign(source="these runs"))
    of_best = shown[shown["member"].str.startswith("best")].set_index("arm")["n_seeds"]
    assert of_best.to_dict() == {"wml": "2, 3", "dml": "3"}


def test_phenomena_of_one_seed_have_the_interval_of_their_items(one_seed: Path) -> None:
    table = tables.by_phenomenon(results.paradigm_table(one_seed), read_runs(one_seed))
    row = table[(table["phenomenon"] == "subject_verb_agreement") & (table["member"] == "ensemble")].iloc[0]
    assert row["paradigms"] == 2 and row["item_low"] < row["mean"] < row["item_high"]
    assert row["item_high"] - row["item_low"] > 8  # 80 items: wider than that of the suite


def test_several_seeds_keep_the_interval_over_seeds(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0, 1, 2), protocols=("babylm2025",))
    table = tables.main_result(tables.all_scores(folder), None, read_runs(folder))
    assert table["item_low"].isna().all() and set(table["interval"]) == {OVER_SEEDS}


def test_glue_by_task(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0,), protocols=())
    assert evaluations.glue_table(folder).empty and score_tables.glue(pd.DataFrame()).empty
    write_glue(read_runs(folder)[0].folder, {"rte": [50.0, 52.0, 54.0], "mrpc": [70.0, 70.0, 70.0]}, "sst2")
    table = score_tables.glue(evaluations.glue_table(folder)).set_index("task")
    assert list(table.index) == ["rte", "mrpc", "sst2"]
    assert (table.loc["rte", "low"], table.loc["rte", "high"]) == pytest.approx((52 - 2 * 2.484138, 52 + 2 * 2.484138))
    assert "fine-tuning seeds of one run" in table.loc["rte", "interval"]
    assert table.loc["rte", "finetune_values"] == "50 52 54" and table.loc["rte", "finetune_seeds"] == "42 43 44"
    assert table.loc["mrpc", "interval"].startswith("none: all fine-tuning seeds") and np.isnan(
        table.loc["mrpc", "low"]
    )
    assert table.loc["rte", "limits"] == "max_train 10"
    assert table.loc["mrpc", "metric"] == "f1" and table.loc["mrpc", "mean"] == 70
    assert table.loc["mrpc", "accuracy"] == 35 and table.loc["rte", "accuracy"] == 52
    assert table.loc["sst2", "skipped"] == "no sst2.train.jsonl" and np.isnan(table.loc["sst2", "mean"])
    assert results.paradigm_table(folder).empty  # T5 is of pairs
    assert "T6" in [path.stem for path in tables.write_tables(folder)]
    readable("T6", pd.read_csv(folder / "tables" / "T6.csv"))


def test_two_fine_tuning_seeds_have_an_interval_and_one_has_none(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0,), protocols=())
    write_glue(read_runs(folder)[0].folder, {"rte": [50.0, 52.0], "mrpc": [70.0]})
    table = score_tables.glue(evaluations.glue_table(folder)).set_index("task")
    assert (table.loc["rte", "low"], table.loc["rte", "high"]) == pytest.approx((51 - 12.706205, 51 + 12.706205))
    assert table.loc["rte", "interval"] == score_tables.OVER_FINE_TUNING
    assert np.isnan(table.loc["mrpc", "low"]) and table.loc["mrpc", "interval"] == NONE


def test_a_score_of_few_tasks_says_which(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0, 1), protocols=("babylm2025",))
    for run in read_runs(folder):
        write_glue(run.folder, {"rte": [50.0], "mrpc": [70.0]}, "sst2")
    noted = tables.main_result(tables.all_scores(folder)).groupby("suite")["note"].unique()
    assert noted["glue"].tolist() == ["glue: mean of rte, mrpc (max_train 10)"]
    assert noted["nursery"].tolist() == noted["dev_ce"].tolist() == [""]
    ((_, shown),) = readable("T4", tables.main_result(tables.all_scores(folder)))
    assert set(shown["note"]) == {"glue: mean of rte, mrpc (max_train 10)", ""}  # of ensembles no GLUE


def test_fine_tuning_differs_in_its_recipe_and_not_where_a_model_takes_shorter_texts(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0, 1, 2), protocols=())
    for run, recipe in zip(read_runs(folder), ({}, {"max_length": 64}, {"lr": 1e-4}), strict=True):
        write_glue(run.folder, {"rte": [50.0 + run.seed] * 3})
        path = paths.evaluation(run.folder, "glue", "babylm2025")
        document = paths.read_json(path)
        document["settings"]["recipe"] = {"lr": 3e-5, "max_length": 128, **recipe}
        paths.write_json(path, document)
    table = score_tables.glue(evaluations.glue_table(folder)).set_index("setting")
    assert table["seeds"].to_dict() == {"": "0 1", "evaluation.recipe.lr=0.0001": "2"}


def test_values_that_differ_in_the_fifth_digit_have_an_interval(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0,), protocols=())
    values = [83.2359, 83.2433, 83.2407]
    write_glue(read_runs(folder)[0].folder, {"rte": values})
    row = score_tables.glue(evaluations.glue_table(folder)).iloc[0]
    assert (row["low"], row["high"]) == pytest.approx(results.interval(values)) and row["low"] < 83.24 < row["high"]
    assert row["finetune_values"] == "83.24 83.24 83.24"


def test_glue_over_runs(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0, 1, 2), protocols=())
    for run, value in zip(read_runs(folder), (1.0, 2.0, 3.0), strict=True):
        write_glue(run.folder, {"rte": [value] * 3})
    (row,) = score_tables.glue(evaluations.glue_table(folder)).to_dict("records")
    assert (row["mean"], row["accuracy"], row["n_seeds"], row["values"]) == (2, 2, 3, "1 2 3")
    assert (row["low"], row["high"]) == pytest.approx(results.interval([1.0, 2.0, 3.0]))
    assert row["interval"] == OVER_SEEDS and row["finetune_values"] == "1 1 1; 2 2 2; 3 3 3"
    for run in read_runs(folder):
        write_glue(run.folder, {"rte": [2.0] * 3})
    (row,) = score_tables.glue(evaluations.glue_table(folder)).to_dict("records")
    assert (row["n_seeds"], row["interval"]) == (3, NO_SPREAD) and np.isnan(row["low"])


def test_a_trial_of_fine_tuning_is_a_row_by_itself(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0, 1, 2), protocols=())
    for run, value in zip(read_runs(folder), (1.0, 2.0, 4.0), strict=True):
        write_glue(run.folder, {"rte": [value] * 3})
    evaluated(read_runs(folder)[1].folder, "glue", max_train=5, epochs=1)
    table = score_tables.glue(evaluations.glue_table(folder)).set_index("seeds")
    assert dict(table["mean"]) == {"0 2": 2.5, "1": 2.0}
    assert dict(table["limits"]) == {"0 2": "max_train 10", "1": "max_train 5, epochs 1"}
    assert table.loc["1", "setting"] == "evaluation.max_train=5 evaluation.epochs=1"


def test_other_tasks_of_another_arm_are_not_compared(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("distill", 2)), protocols=())
    for run in read_runs(folder):
        tasks = {"rte": [50.0 + run.seed], "wsc": [60.0]} if run.arm == "wml" else {"rte": [55.0 + run.seed]}
        write_glue(run.folder, tasks)
    assert "glue" in set(tables.differences(tables.all_scores(folder))["suite"])  # where nothing tells them apart
    for run in read_runs(folder):
        evaluated(run.folder, "glue", tasks=["rte", "wsc"] if run.arm == "wml" else ["rte"])
    scores = tables.all_scores(folder)
    assert "glue" not in set(tables.differences(scores)["suite"])
    rows = tables.main_result(scores).query("suite == 'glue' and member == 'best_peer'").set_index("arm")
    assert rows["n_seeds"].eq(3).all() and rows.loc["distill", "setting"] != rows.loc["wml", "setting"]


def test_a_curve_of_other_pairs_is_told_apart(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), protocols=("babylm2025",))
    assert set(evaluations.curve_table(folder)["setting"]) == {""}
    other = read_runs(folder)[1]
    for path in paths.curve(other.folder).glob("*.json"):
        point = paths.read_json(path)
        point["evaluations"][0]["settings"] = {"per_paradigm": 5}
        paths.write_json(path, point)
    table = evaluations.curve_table(folder)
    apart = table[table["setting"] != ""]
    assert set(apart["run"]) == {other.folder.name} and set(apart["setting"]) == {"evaluation.per_paradigm=5"}
    assert all("learning curve" in note for note in apart["note"]) and set(table["run"]) > {other.folder.name}


def test_dev_text_by_domain(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0, 1), protocols=())
    assert evaluations.text_table(folder).empty and score_tables.dev_text(pd.DataFrame()).empty
    for run in read_runs(folder):
        row = {"nats_per_token": 2.0, "perplexity": 7.4, "tokens": 10, "bytes": 40}
        members = [
            {"member": name, "bits_per_byte": 1.0 + run.seed + i, **row,
             "domains": [{"domain": "childes", "bits_per_byte": 1.5 + run.seed + i, **row}]}
            for i, name in enumerate(("peer_1", "peer_2", "ensemble", "uniform_ensemble"))
        ]  # fmt: skip
        floor = {"bits_per_byte": 0.9, "domains": [{"domain": "childes", "bits_per_byte": 0.8}]} if run.seed else None
        settings = {"words_per_domain": 2000, "by_line": False, "ensemble_weights": [0.5, 0.5]}
        document = {"objective": "mlm", "settings": settings, "members": members, "floor": floor}
        if run.seed:  # a document of seed 0 is of a version before
            document["unigram"] = {"bits_per_byte": 3.1, "domains": [{"domain": "childes", "bits_per_byte": 3.2}]}
        paths.write_json(paths.language_modelling(run.folder), document)
    table = score_tables.dev_text(evaluations.text_table(folder)).set_index(["member", "domain"])
    assert set(table.index.get_level_values("member")) == {"best_peer", "ensemble", "uniform_ensemble"}
    assert table.loc[("ensemble", "all"), "values"] == "3 4" and table.loc[("ensemble", "all"), "mean"] == 3.5
    assert table.loc[("ensemble", "childes"), "mean"] == 4.0 and table.loc[("ensemble", "childes"), "floor"] == 0.8
    assert table.loc[("ensemble", "all"), "unigram"] == 3.1 and table.loc[("best_peer", "childes"), "unigram"] == 3.2
    best = [run.done["best_peer"] + run.seed for run in read_runs(folder)]
    assert table.loc[("best_peer", "all"), "values"] == " ".join(str(value) for value in best)
    assert "T4_text" in [path.stem for path in tables.write_tables(folder)]
    first = paths.language_modelling(read_runs(folder)[0].folder)
    document = paths.read_json(first)
    for words, expected in ((2000, {"": "3 4"}), (10, {"": "3", "evaluation.words_per_domain=2000": "4"})):
        settings |= {"words_per_domain": words, "ensemble_weights": [0.2, 0.8]}  # what was learned is no setting
        paths.write_json(first, {**document, "settings": settings})
        table = score_tables.dev_text(evaluations.text_table(folder)).query("member == 'ensemble' and domain == 'all'")
        assert dict(zip(table["setting"], table["values"], strict=True)) == expected
    for number, run in enumerate(read_runs(folder)):
        apart = settings | {"by_line": bool(number)}
        paths.write_json(paths.language_modelling(run.folder), {**document, "settings": apart})
    assert len(set(evaluations.text_table(folder)["setting"])) == 2


def test_items_that_tie_fall_as_in_the_score_that_drew_for_them(tmp_path: Path) -> None:
    (run,) = read_runs(write_study(tmp_path / "nursery", (("wml", 2),), (0,), protocols=("babylm2025",)))
    path = paths.evaluation(run.folder, "nursery", "babylm2025")
    document = paths.read_json(path)
    paths.write_json(path, document | {"settings": document["settings"] | {"ties": "random", "seed": 5}})
    file = path.with_suffix(".items.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    alike = [line | {"scores": dict.fromkeys(line["scores"], [1.0, 1.0])} for line in lines]
    paths.write_text(file, "".join(json.dumps(line) + "\n" for line in alike))
    ones = np.ones(len(lines))
    own, other = (credit(ones, ones, "random", seed).tolist() for seed in (5, 0))
    assert items_table(run, "nursery", "babylm2025")["peer_1"].tolist() == own != other


def test_a_task_that_all_runs_skipped_is_one_row(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0, 1), protocols=())
    for run in read_runs(folder):
        write_glue(run.folder, {"rte": [50.0]}, "sst2")
    table = score_tables.glue(evaluations.glue_table(folder))
    assert table["task"].tolist() == ["rte", "sst2"]
