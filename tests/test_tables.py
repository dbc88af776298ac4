from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_runs import PARADIGMS, write_evaluation, write_glue, write_prepared, write_run, write_study

from wmlkit import environment, items, paths, results, tables
from wmlkit.config import load_preset, preset_names
from wmlkit.diversity import UNIFORM, diversity, diversity_table
from wmlkit.errors import UserError
from wmlkit.figures.files import write_figures
from wmlkit.hyperparameters import hyperparameters, value_sources
from wmlkit.provenance import read_provenance, record_provenance
from wmlkit.readable import readable
from wmlkit.readings import loss_difference, loss_in_short
from wmlkit.runs import read_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = (("independent", 2), ("wml", 2), ("distill", 2))
    return write_study(tmp_path_factory.mktemp("out") / "nursery", study, protocols=("babylm2025",))


def test_corpora_by_hand(tmp_path: Path) -> None:
    table = tables.corpora(write_prepared(tmp_path)).set_index(["split", "domain"])
    assert list(table.index) == [
        ("train", "childes"), ("train", "simple_wiki"), ("train", "all"),
        ("dev", "childes"), ("dev", "simple_wiki"), ("dev", "all"),
    ]  # fmt: skip
    assert table.loc[("train", "childes"), "words_before"] == 50_300
    assert table.loc[("train", "all"), "words_after"] == 150_000
    assert table.loc[("train", "all"), "used_words"] == 150_000  # training and held-out text
    assert table.loc[("dev", "all"), "used_words"] == 10_000
    assert table.loc[("train", "all"), "fertility_after"] == 1.25
    assert table.loc[("train", "all"), "fertility_before"] == pytest.approx(225_000 / 150_600)
    with pytest.raises(UserError, match="expected a prepared corpus"):
        tables.corpora(tmp_path / "absent")


def test_dev_text_cut_from_the_training_text_counts_as_such(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path)
    document = paths.read_json(prepared / "statistics.json")
    source = [record for record in document["domains"] if record["split"] == "train"]
    paths.write_json(prepared / "statistics.json", {**document, "domains": source})  # a source without dev files
    table = tables.corpora(prepared).set_index(["split", "domain"])
    assert table.loc[("train", "childes"), "used_words"] == 50_000 + 5_000
    assert table.loc[("train", "all"), "used_words"] == 160_000


def test_sources_are_the_comments_of_the_values() -> None:
    text = """
    # a comment of its own
    [data]
    name = "a # b"  # in a string # and after
    words = [
        1,  # not the last
        2,
    ]  # two lines
    curve = [[0.7, 64],
      [0.3, 128]]  # a list of lists
    block_size = 64  # still of data
    [train]
    lr = 0.1
    """
    assert value_sources(text) == {
        "data.name": "in a string # and after", "data.words": "two lines", "data.curve": "a list of lists",
        "data.block_size": "still of data", "train.lr": "no source given",
    }  # fmt: skip


@pytest.mark.parametrize("preset", preset_names())
def test_every_setting_of_every_preset_is_listed(preset: str) -> None:
    table = hyperparameters(preset)
    shipped = load_preset(preset).resolved()
    listed = {f"{row.section}.{row.name_}" for row in table.rename(columns={"name": "name_"}).itertuples()}
    assert listed == {
        f"{section}.{name}" for section, names in shipped.items() if section != "preset" for name in names
    }
    assert table["source"].str.len().gt(0).all() and "no source given" not in set(table["source"])


def test_a_changed_setting_says_what_the_preset_has() -> None:
    preset = preset_names()[0]
    shipped = load_preset(preset).resolved()
    config = load_preset(preset, {"train.steps": 77, "train.seed": 5}).resolved()
    table = hyperparameters(preset, config).set_index(["section", "name"])
    row = table.loc[("train", "steps")]
    assert row["value"] == "77"
    assert row["source"].startswith(f"set for these runs; the preset has {shipped['train']['steps']} (")
    assert not table.loc[("train", "seed"), "source"].startswith("set for")  # differs from run to run anyway


def test_where_a_folder_lies_is_not_in_the_table(tmp_path: Path) -> None:
    preset = preset_names()[0]
    config = load_preset(preset, {"data.corpus": str(tmp_path / "mine")}).resolved()
    table = hyperparameters(preset, config).set_index(["section", "name"])
    assert table.loc[("data", "corpus"), "value"] == "mine" and str(tmp_path) not in table.to_csv()


def test_trained_students_by_hand(tmp_path: Path) -> None:
    write_run(tmp_path / "nursery", "wml", 2, 0)
    (run,) = read_runs(tmp_path / "nursery")
    shape = {"num_layers": 2, "num_heads": 2, "hidden_size": 8, "intermediate_size": 32}
    run = replace(run, students=[{**shape, "parameters": 90, "target": 100}, {**shape, "parameters": 60, "target": 50}])
    table = tables.trained_students(run)
    assert list(table["method"]) == ["exact", "exact"] and list(table["peer"]) == [1, 2]
    assert list(table["error_percent"]) == [-10.0, 20.0] and list(table["hidden_size"]) == [8, 8]


def test_students_are_those_of_a_run_with_the_most_peers(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("independent", 1), ("wml", 3)), seeds=(0,), protocols=())
    tables.write_tables(folder)
    assert list(pd.read_csv(folder / "tables" / "T3.csv")["peer"]) == [1, 2, 3]


def test_published_numbers_carry_their_provenance() -> None:
    table = tables.read_published()
    assert set(table["provenance"]) <= set(tables.PROVENANCES)
    assert (table["value"].isna() == (table["provenance"] == "unknown")).all()
    assert (table.loc[table["provenance"] != "unknown", "source"].str.len() > 0).all()
    paper = table[(table["kind"] == "paper") & table["suite"].isin(["blimp", "supplement", "ewok", "glue"])]
    assert len(paper) == 40 and paper["value"].isna().all()  # nobody here has read the paper's tables
    baseline = table[(table["system"] == "LTG-BERT") & (table["corpus"] == "BabyLM 10M") & (table["task"] == "")]
    assert dict(zip(baseline["suite"], baseline["value"], strict=True)) == {
        "blimp": 60.6, "supplement": 60.8, "ewok": 48.9, "glue": 60.3, "macro": 57.7
    }  # fmt: skip


def test_published_subtasks_average_to_the_published_scores() -> None:
    table = tables.read_published()
    table = table[table["source"].str.contains("pipeline-2024") & table["suite"].isin(["supplement", "glue"])]
    groups = list(table.groupby(["system", "corpus", "suite"]))
    assert len(groups) == 8
    for _, group in groups:
        whole = group.loc[group["task"] == "", "value"].item()
        assert group.loc[group["task"] != "", "value"].mean() == pytest.approx(whole, abs=0.07)


@pytest.mark.parametrize(("value", "provenance"), [(50.0, "unknown"), (None, "published"), (50.0, "recalled")])
def test_a_value_that_contradicts_its_provenance_is_refused(
    tmp_path: Path, value: float | None, provenance: str
) -> None:
    row = {"kind": "paper", "system": "x", "suite": "blimp", "value": value, "provenance": provenance, "peers": None}
    path = paths.write_json(tmp_path / "published.json", {"scores": [row], "sources": {}})
    with pytest.raises(UserError, match="mend it"):
        tables.read_published(path)


def test_main_result_has_runs_controls_baselines_and_empty_cells_of_the_paper(folder: Path) -> None:
    scores = results.scores_table(folder)
    table = tables.main_result(tables.all_scores(folder), tables.read_published())
    measured = table[table["kind"] == "measured"]
    assert set(measured["corpus"]) == {"nursery"}
    assert {"best_peer", "mean_peer", "ensemble"} <= set(measured["member"])
    assert set(measured["suite"]) == {"nursery", "dev_ce"}
    keys = ["arm", "peers", "member", "suite"]
    row = measured.set_index(keys).sort_index().loc[("wml", 2, "best_peer", "nursery")]
    of_best = scores[(scores["arm"] == "wml") & (scores["member"] == "best_peer")]
    values = of_best["score"]
    assert row["mean"] == pytest.approx(values.mean())
    assert row["ties"] == pytest.approx(of_best["ties"].mean()) and of_best["ties"].nunique() > 1
    assert set(measured["provenance"]) == {"measured"} and set(measured["source"]) == {"these runs"}
    assert (row["low"], row["high"]) == pytest.approx(results.interval(list(values)))
    assert row["n_seeds"] == 3 and row["seeds"] == "0 1 2"
    assert [float(value) for value in row["values"].split()] == pytest.approx(list(values), abs=0.01)
    paper = table[(table["kind"] == "paper") & (table["provenance"] == "unknown")]
    assert len(paper) and paper["mean"].isna().all()
    assert set(table[table["kind"] == "official_baseline"]["protocol"]) >= {"babylm2024-released", "babylm2025"}
    assert table["low"].notna().sum() == measured["low"].notna().sum()


def test_a_mean_s_unit_stands_behind_its_protocol(folder: Path) -> None:
    scores = tables.all_scores(folder)
    for table in (tables.main_result(scores), tables.main_result(scores, tables.read_published()),
                  tables.differences(scores)):  # fmt: skip
        assert list(table)[list(table).index("protocol") + 1] == "unit"
        assert set(zip(table["suite"] == "dev_ce", table["unit"], strict=True)) == {(True, "nats"), (False, "percent")}


def test_one_peer_is_the_first_of_the_independent_ones(folder: Path) -> None:
    scores = results.scores_table(folder)
    table = tables.main_result(scores)
    alone = table[(table["peers"] == 1) & (table["member"] == "best_peer")]
    first = scores[(scores["arm"] == "independent") & (scores["member"] == "peer_1")]["score"]
    assert list(alone["arm"]) == ["independent"]
    assert alone["mean"].item() == pytest.approx(first.mean())


def test_differences_have_an_interval_over_seeds_and_one_over_items(folder: Path) -> None:
    table = tables.differences(tables.all_scores(folder), read_runs(folder), resamples=200)
    assert set(zip(table["a"], table["b"], strict=True)) == {
        ("wml", "distill"), ("wml", "independent"), ("distill", "independent"),
    }  # fmt: skip
    pairs = table[table["suite"] == "nursery"]
    assert (pairs["item_low"] <= pairs["mean"]).all() and (pairs["mean"] <= pairs["item_high"]).all()
    assert table[table["suite"] == "dev_ce"]["item_low"].isna().all()
    again = tables.differences(tables.all_scores(folder), read_runs(folder), resamples=200)
    pd.testing.assert_frame_equal(table, again)


def test_no_table_or_figure_tells_of_runs_and_evaluations_that_are_gone(tmp_path: Path) -> None:
    both = ("babylm2025", "babylm2024-fixed")
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("distill", 2)), seeds=(0, 1), protocols=both)
    for run in read_runs(folder):
        write_glue(run.folder, {"rte": [50.0, 52.0]})
    made = {path.stem for path in [*tables.write_tables(folder), *write_figures(folder)]}
    gone = {"T4_differences", "T4_protocols", "T6", "F7"}
    assert gone < made
    (folder / "tables" / "T8.csv").write_text("of ablations that lie elsewhere\n")
    for run in read_runs(folder):
        if run.arm == "distill":
            shutil.rmtree(run.folder)
        else:
            for path in (run.folder / "evaluation").glob("*"):
                if "glue" in path.name or "fixed" in path.name:
                    path.unlink()
    left = {path.stem for path in [*tables.write_tables(folder), *write_figures(folder)]}
    assert left == made - gone
    there = {path.stem for kind in ("tables", "figures") for path in (folder / kind).iterdir()}
    assert there - {"provenance", ".provenance"} == left | {"T8"}
    noted = read_provenance(folder / "tables").keys() | read_provenance(folder / "figures").keys()
    assert noted == left


def test_truth_values_and_one_peer_in_words() -> None:
    table = pd.DataFrame({"protocol": ["a", "b"], "ordering_fault": [True, False], "nearest": [None, True]})
    ((_, shown),) = readable("T4_protocols", table)
    assert shown.to_numpy().tolist() == [["a", "yes", ""], ["b", "no", "yes"]]
    one = {"suite": "x", "protocol": "y", "member": "best_peer", "arm": "wml", "phenomenon": "z", "paradigms": 1}
    numbers = {"mean": 50.0, "low": None, "high": None, "values": "50", "n_seeds": 1}
    ((_, shown),) = readable("T5", pd.DataFrame([{**one, **numbers, "peers": 1}, {**one, **numbers, "peers": 2}]))
    assert list(shown) == ["phenomenon", "paradigms", "wml, 1 peer", "wml, 2 peers"]


def test_items_are_those_of_runs_with_a_score(folder: Path) -> None:
    runs, scores = read_runs(folder), tables.all_scores(folder)
    left_out = next(run for run in runs if run.arm == "wml")
    found = items.items_of(runs, scores[scores["run"] != left_out.folder.name], "nursery", "babylm2025")
    seeds = sorted((arm, sorted(by_seed)) for (_, _, arm), by_seed in found.items())
    rest = [seed for seed in (0, 1, 2) if seed != left_out.seed]
    assert seeds == [("distill", [0, 1, 2]), ("independent", [0, 1, 2]), ("wml", rest)]


def test_phenomena_weigh_their_paradigms_equally() -> None:
    rows = [("a", "x", 50.0), ("b", "x", 70.0), ("c", "y", 90.0)]
    table = pd.DataFrame(rows, columns=["paradigm", "phenomenon", "accuracy"])
    table = table.assign(run="r", setting="", note="", corpus="c", suite="s", protocol="p", arm="wml", peers=2, seed=0)
    found = tables.by_phenomenon(table.assign(member="ensemble")).set_index("phenomenon")
    assert dict(found["mean"]) == {"x": 60.0, "y": 90.0}
    assert dict(found["paradigms"]) == {"x": 2, "y": 1}
    assert found["low"].isna().all()  # one seed
    own, peer = (table.assign(member=member) for member in ("ensemble", "peer_1"))
    assert set(tables.by_phenomenon(pd.concat([own, peer]))["member"]) == {"ensemble"}


def test_hyper_parameters_are_those_of_the_method_in_the_main_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """T2 shows `outer` and `mutual`, which other arms do not read; without a run of the method the first there is."""
    monkeypatch.setattr(tables, "config_of_run", lambda config, path: config)
    kinds = (("independent", "", "first"), ("wml", "alpha = 0.9", "an ablation"), ("wml", "", "the method's"))
    runs = [SimpleNamespace(arm=arm, setting=setting, config=config, folder=Path()) for arm, setting, config in kinds]
    assert tables._configured(runs) == "the method's" and tables._configured(runs[:2]) == "first"


def test_cost_by_hand(folder: Path) -> None:
    runs = results.runs_table(folder)
    tokens = runs[runs["arm"] == "wml"]["tokens"].mean()
    table = tables.cost(runs).set_index("arm")
    assert table.loc["wml", "parameters"] == 180_000 + 150_000
    assert table.loc["wml", "tokens"] == pytest.approx(tokens)
    for name in ("flops", "flops_with_teacher"):  # it has none
        assert table.loc["wml", name] == pytest.approx(6 * tokens * 330_000)
    assert table.loc["wml", "tokens_per_second"] == pytest.approx(tokens / 100)
    assert table.loc["wml", "n_seeds"] == 3 and table.loc["wml", "seeds"] == "0 1 2"
    seconds = [f"{value:.4g}" for value in runs[runs["arm"] == "wml"]["seconds"]]
    assert table.loc["wml", "seconds_values"].split() == seconds


def test_tables_are_written_with_their_provenance(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("dml", 2)), seeds=(0, 1), protocols=("babylm2025",))
    written = tables.write_tables(folder, command="wmlkit report")
    made = ["T1", "T2", "T3", "T4", "T4_differences", "T4_diversity", "T4_lengths", "T5", "T7"]
    assert [path.stem for path in written] == made
    noted = read_provenance(folder / "tables")
    assert set(noted) == {path.stem for path in written}
    assert noted["T4"] == {
        "command": "wmlkit report", "commit": environment.commit() or environment.NO_CHECKOUT, "seeds": [0, 1],
        "device": "cpu", "created_by": "wmlkit.tables.write_tables", "runs_commit": "0123abc",
    }  # fmt: skip
    before = {path.name: path.read_bytes() for path in written}
    noted_by = noted["T4"] | {"created_by": "notebooks/05_results.ipynb"}
    tables.save_table(folder / "tables", "T4", pd.DataFrame({"a": [1]}), **noted_by)
    (folder / "tables" / "T5.csv").write_text("of earlier runs\n")
    again = [path.stem for path in tables.write_tables(folder, overwrite=False)]
    assert again == [name for name in made if name != "T4"]  # which a notebook made
    assert (folder / "tables" / "T4.csv").read_text() == "a\n1\n"
    tables.write_tables(folder)
    assert before == {path.name: path.read_bytes() for path in written}
    tables.write_tables(folder, command="another command")
    assert read_provenance(folder / "tables") == noted  # what comes out the same keeps the note of what made it
    tables.save_table(
        folder / "tables", "T4", pd.DataFrame({"a": [1]}), **(noted["T4"] | {"command": "another command"})
    )
    assert read_provenance(folder / "tables")["T4"]["command"] == "another command"
    tables.save_table(folder / "tables", "T3", pd.DataFrame({"a": [1]}), **noted_by)
    assert "T3" not in [path.stem for path in tables.write_tables(folder)]  # a notebook compares methods too
    (folder / "tables" / "T3.csv").unlink()
    assert "T3" in [path.stem for path in tables.write_tables(folder)]
    with pytest.raises(UserError, match="no finished run"):
        tables.write_tables(tmp_path)


@pytest.mark.parametrize("killed_at", ["T4.csv", "provenance.json"])
def test_a_table_cut_off_from_its_note_gets_both_the_next_time(
    killed_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = {"command": "first", "commit": "c", "seeds": [0], "device": "cpu", "created_by": "wmlkit"}
    tables.save_table(tmp_path, "T4", pd.DataFrame({"a": [1]}), **noted)
    write = paths.write_atomic

    def killed(path: Path, *rest: Any, **more: Any) -> Path:
        if path.name == killed_at:
            raise KeyboardInterrupt
        return write(path, *rest, **more)

    monkeypatch.setattr(paths, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        tables.save_table(tmp_path, "T4", pd.DataFrame({"a": [2]}), **(noted | {"command": "second"}))
    monkeypatch.undo()
    tables.save_table(tmp_path, "T4", pd.DataFrame({"a": [2]}), **(noted | {"command": "second"}))
    assert read_provenance(tmp_path)["T4"]["command"] == "second" and "2" in (tmp_path / "T4.csv").read_text()


def test_provenance_keeps_the_other_notes_and_names_a_broken_file(tmp_path: Path) -> None:
    known = {"command": "c", "commit": "d", "device": "cpu", "created_by": "f"}
    record_provenance(tmp_path, "T1", seeds=[1, 0, 1], **known)
    record_provenance(tmp_path, "T2", seeds=[], **known)
    assert {name: note["seeds"] for name, note in read_provenance(tmp_path).items()} == {"T1": [0, 1], "T2": []}
    (tmp_path / "provenance.json").write_text("{")
    with pytest.raises(UserError, match="provenance.json is not JSON"):
        record_provenance(tmp_path, "T1", seeds=[0], **known)


def test_two_reports_at_once_lose_no_note(tmp_path: Path) -> None:
    known = {"command": "c", "commit": "d", "device": "cpu", "created_by": "f", "seeds": [0]}
    names = [f"T{number}" for number in range(40)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: record_provenance(tmp_path, name, **known), names))
    assert set(read_provenance(tmp_path)) == set(names)


def test_readable_main_result_puts_interval_and_seeds_into_one_cell(folder: Path, tmp_path: Path) -> None:
    table = tables.main_result(tables.all_scores(folder), tables.read_published())
    path = tmp_path / "T4.csv"
    table.to_csv(path, index=False)
    (_, measured), (title, published) = readable("T4", pd.read_csv(path))
    row = measured[(measured["arm"] == "wml") & (measured["member"] == "best_peer")].iloc[0]
    source = table.set_index(["arm", "member", "suite"]).sort_index().loc[("wml", "best_peer", "nursery")]
    low, high = f"{source['low']:.1f}", f"{source['high']:.1f}"
    cell = row["nursery babylm2025 (%)"]
    assert cell.startswith(f"{source['mean']:.1f} [{low}, {high}]\n") and len(cell.split("\n")[1].split()) == 3
    assert list(measured["arm"].unique()) == ["independent", "wml", "distill"]
    assert "not comparable" in title
    unknown = published[(published["kind"] == "paper") & (published["provenance"] == "unknown")]
    assert (unknown[["blimp", "supplement", "ewok", "glue"]] == "").all().all()


def test_a_difference_of_fewer_seeds_than_its_row_says_so() -> None:
    row = {"arm": "wml", "peers": 2, "quantity": UNIFORM, "mean": 0.04, "low": 0.03, "high": 0.05, "n_seeds": 3,
           "values": "0.03 0.04 0.05", "note": "", "difference": -0.02, "difference_low": -0.05,
           "difference_high": 0.01, "differences": "-0.03 -0.01", "difference_n_seeds": 2, "p": 0.2,
           "p_adjusted": 0.3}  # fmt: skip
    ((_, shown),) = readable("T4_diversity", pd.DataFrame([row]))
    assert shown["at equal weights, minus independent's [95 %]"].item().endswith("-0.030  -0.010 (2 of 3 seeds)")
    ((_, shown),) = readable("T4_diversity", pd.DataFrame([{**row, "difference_n_seeds": 3}]))
    assert "seeds" not in shown["at equal weights, minus independent's [95 %]"].item()


def test_readable_bits_a_byte_have_three_decimals() -> None:
    row = {"arm": "wml", "peers": 2, "domain": "all", "mean": 0.5399, "low": 0.5312, "high": 0.5486, "floor": 0.45}
    ((_, shown),) = readable("T4_text", pd.DataFrame([row]))
    assert shown.loc[0, ["mean", "low", "high", "floor"]].tolist() == ["0.540", "0.531", "0.549", "0.450"]


def test_readable_replays_begin_with_what_a_defect_does() -> None:
    """And leave out the ends of intervals that one seed does not have."""
    table = pd.DataFrame(
        {"case": ["none", "x"], "finding": [np.nan, "D1"], "mode": "mutual", "updates": 250, "train_ce": 4.2568,
         "dev_ce": [4.13986, 12.86747], "dev_ce_low": np.nan, "change": [0.0, 8.7276], "change_low": np.nan,
         "accuracy": 62.06, "kl_to_ce": 0.007659}
    )  # fmt: skip
    ((_, shown),) = readable("T9", table)
    heads = ["case", "finding", "dev_ce", "change", "accuracy", "mode", "updates", "train_ce", "kl_to_ce"]
    assert list(shown) == heads
    assert list(shown.loc[1]) == ["x", "D1", "12.867", "8.728", "62.1", "mutual", "250", "4.257", "0.00766"]
    assert "dev_ce_low" in readable("T9", table.assign(dev_ce_low=[4.0, 12.0]))[0][1]


def test_the_difference_in_loss_is_told_as_its_interval_carries_it() -> None:
    ends = {"ensemble": (0.015, 0.011, 0.02), "best_peer": (0.012, -0.008, 0.033), "mean_peer": (-0.03, -0.04, -0.02),
            "teacher": (1.0, 0.5, 1.5), "uniform_ensemble": (1.0, 0.5, 1.5)}  # fmt: skip
    rows = [{"suite": "dev_ce", "member": member, "mean": mean, "low": low, "high": high}
            for member, (mean, low, high) in ends.items()]  # fmt: skip
    table = pd.DataFrame(rows).assign(setting="", peers=4, a="wml", b="independent", n_seeds=3)
    table["p_adjusted"] = table["member"].map({"ensemble": 0.087, "best_peer": 0.3, "mean_peer": 0.02})
    others = [table.assign(peers=2, mean=9.0), table.assign(setting="x", mean=9.0), table.assign(suite="blimp")]
    assert loss_difference(pd.concat([*others, table]), "wml", "independent") == (
        "In dev loss (nats a scored token), wml minus independent, 4 peers, 3 seeds: best peer +0.012 (95 % interval "
        "-0.008 to +0.033; not shown: the interval contains 0); mean peer -0.030 (95 % interval -0.040 to -0.020; "
        "better: the loss is lower); ensemble +0.015 (95 % interval +0.011 to +0.020; worse: the loss is higher, but "
        "adjusted p is 0.087)."
    )
    one = table[table["member"] == "best_peer"].assign(n_seeds=1, low=np.nan, high=np.nan, setting=np.nan)
    assert loss_difference(one, "wml", "independent").endswith(", 1 seed: best peer +0.012 (no interval: one seed).")
    assert loss_difference(table, "wml", "distill") == "These runs do not compare wml with distill."
    tiny = table[table["member"] == "mean_peer"].assign(mean=-0.0003, low=-0.0004, high=-0.0002)
    assert loss_difference(tiny, "wml", "independent").endswith("-0.000 to -0.000; less than three digits tell).")
    assert "no difference is shown (mean peer -0.000)" in loss_in_short(tiny, "wml", "independent", 4, 3)


def test_where_no_arms_are_compared_there_is_an_empty_table(tmp_path: Path) -> None:
    folder = write_study(tmp_path, (("wml", 2),), protocols=("babylm2025",))
    empty = tables.differences(tables.all_scores(folder))
    ((_, shown),) = readable("T4_differences", empty)
    assert shown.empty and loss_difference(empty, "wml", "independent").startswith("These runs do not compare")


def test_readable_shows_a_single_peer_once(tmp_path: Path) -> None:
    folder = write_study(tmp_path, (("independent", 1), ("wml", 2)), seeds=(0,), protocols=("babylm2025",))
    ((_, shown),) = readable("T4", tables.main_result(tables.all_scores(folder)))
    assert list(shown[shown["peers"] == "1"]["member"]) == ["best_peer"]


def test_runs_of_another_setting_stay_apart(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "wml", 2, seed)
    write_run(tmp_path, "wml", 2, 0, {"mutual.alpha": 0.9})
    table = tables.main_result(results.dev_table(tmp_path))
    best = table[table["member"] == "best_peer"].set_index("setting")["n_seeds"]
    assert dict(best) == {"": 2, "mutual.alpha=0.9": 1}
    assert json.loads(table.to_json(orient="records"))


def test_a_loss_of_more_masks_is_told_apart(tmp_path: Path) -> None:
    """Its accuracy on the same pairs compares; its loss does not, nor does what its ensemble gains."""
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0, 1), protocols=("babylm2025",))
    for name, value in (("train.mask_ratio", 0.6), ("mutual.alpha", 0.9)):
        aside = write_run(folder, "wml", 2, 0, {name: value})
        write_evaluation(aside, "wml", 2, 0, "nursery", "babylm2025", PARADIGMS)
    for table in (
        tables.main_result(tables.all_scores(folder), None, read_runs(folder)),
        diversity(diversity_table(read_runs(folder))),
    ):
        of_loss = table["suite"] == "dev_ce" if "suite" in table else table["corpus"].notna()
        others = of_loss & (table["setting"] == "train.mask_ratio=0.6")
        assert others.any() and table["note"].eq("loss of other tokens").equals(others)
        assert set(table["setting"]) == {"", "train.mask_ratio=0.6", "mutual.alpha=0.9"}


def test_thirds_of_blimp_by_hand(tmp_path: Path) -> None:
    """The 13 paradigms in the order of their phenomena: every third is tuned on, five of them."""
    folder = write_study(tmp_path / "nursery", (("wml", 2),), protocols=("babylm2025",), suite="blimp")
    table = tables.thirds(results.paradigm_table(folder)).set_index(["member", "part"])
    chosen = {
        "anaphor_number_agreement", "existential_there_subject_raising", "wh_vs_that_with_gap_long_distance",
        "sentential_negation_npi_licensor_present", "irregular_plural_subject_verb_agreement_1",
    }  # fmt: skip
    peers = {}
    for run in read_runs(folder):
        document = paths.read_json(run.folder / "evaluation" / "blimp-babylm2025.json")
        for member in document["members"]:
            for part in ("tuning", "untouched"):
                rows = [row for row in member["paradigms"] if (row["paradigm"] in chosen) == (part == "tuning")]
                accuracy = np.mean([row["accuracy"] for row in rows])
                peers.setdefault((member["member"], part), []).append(accuracy)
    for part, paradigms in (("tuning", 5), ("untouched", 8)):
        row = table.loc[("ensemble", part)]
        assert row["paradigms"] == paradigms and row["n_seeds"] == 3
        assert row["mean"] == pytest.approx(np.mean(peers["ensemble", part]))
        mean_peer = np.mean([peers["peer_1", part], peers["peer_2", part]])
        assert table.loc[("mean_peer", part), "mean"] == pytest.approx(mean_peer)
    assert "T4_thirds" in [path.stem for path in tables.write_tables(folder)]


def test_other_suites_have_no_thirds(folder: Path) -> None:
    assert tables.thirds(results.paradigm_table(folder)).empty


@pytest.mark.parametrize(
    ("value", "shown"), [(99.46, "99.5"), (999.4, "999"), (999.6, "1,000"), (-999.7, "-1,000"), (1234.5, "1,234")]
)
def test_large_numbers_have_all_their_digits(value: float, shown: str) -> None:
    ((_, table),) = readable("T2", pd.DataFrame({"anything": [value], "other": ["x"]}))
    assert table.to_dict("list") == {"anything": [shown], "other": ["x"]}


def test_sizes_stand_before_and_after_cleaning() -> None:
    table = pd.DataFrame({"domain": ["all"], "words_before": [1200], "words_after": [1100], "documents": [3]})
    ((_, shown),) = readable("T1", table)
    assert shown.to_dict("records") == [{"domain": "all", "documents": "3", "words": "1,200 \u2192 1,100"}]


def measured_row(**changes: Any) -> dict[str, Any]:
    row = {
        "kind": "measured", "system": "", "corpus": "c", "setting": "", "arm": "distill", "peers": 1,
        "member": "best_peer", "suite": "nursery", "protocol": "p", "mean": 70.0, "low": 69.0, "high": 71.0,
        "n_seeds": 3, "values": "69.5 70 70.5", "note": "",
    }  # fmt: skip
    return row | changes


def test_a_teacher_of_a_single_peer_is_a_row_and_a_loss_has_three_decimals() -> None:
    loss = {"suite": "dev_ce", "protocol": "", "mean": 2.12345, "low": 2.1, "high": 2.2, "values": "2.1 2.2 2.1"}
    rows = [measured_row(), measured_row(**loss), measured_row(member="ensemble"), measured_row(member="teacher")]
    ((_, shown),) = readable("T4", pd.DataFrame(rows))
    assert list(shown["member"]) == ["best_peer", "teacher"]
    assert shown["dev loss (nats)"][0].split("\n")[0] == "2.123 [2.100, 2.200]"


def test_a_setting_of_some_rows_is_shown() -> None:
    """Read from a file, the main setting is an empty cell."""
    table = pd.DataFrame({"setting": [np.nan, "mutual.alpha=0.9"], "arm": ["wml", "wml"], "corpus": ["c", "c"]})
    ((_, shown),) = readable("T7", table)
    assert shown.to_dict("list") == {"setting": ["", "mutual.alpha=0.9"], "arm": ["wml", "wml"]}


def test_differences_in_loss_stand_behind_those_of_the_suites() -> None:
    tests = {"a": "wml", "b": "dml", "p": 0.5, "p_adjusted": 0.5, "item_low": np.nan, "item_high": np.nan}
    rows = [measured_row(suite=suite, **tests) for suite in ("dev_ce", "nursery", "blimp")]
    ((_, shown),) = readable("T4_differences", pd.DataFrame(rows))
    assert list(shown["measure"]) == ["blimp p", "nursery p", "dev loss (nats)"]


def test_a_setting_that_a_run_does_not_know_is_the_preset_s() -> None:
    preset = preset_names()[0]
    config = load_preset(preset).resolved()
    del config["train"]["ema_decay"]
    pd.testing.assert_frame_equal(hyperparameters(preset, config), hyperparameters(preset))
