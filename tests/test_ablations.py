"""Ablations: the plan, the names of the changes, and T8 against numbers computed by hand from the scores."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from fake_runs import PARADIGMS, evaluated, write_evaluation, write_prepared, write_run
from scipy import stats

from wmlkit import paths, results, tables, train
from wmlkit.ablation_table import ablation_table, clear, under
from wmlkit.ablations import ablation_base, ablation_name, changes, note_plan, noted_plan
from wmlkit.config import Config, load_preset
from wmlkit.errors import UserError
from wmlkit.figures.ablations import of_weights, plot_ablations, plot_given_weights
from wmlkit.readable import p_value, readable
from wmlkit.runs import read_runs
from wmlkit.study_plan import plan, plan_table

SETTINGS = [{"mutual.arm": "independent"}, {"mutual.alpha": 0.9}, {"mutual.alpha": 0.1}]


@pytest.fixture(scope="module")
def config():
    return Config(preset="nursery").updated({"ablations.base": {"mutual.num_peers": 2}, "ablations.settings": SETTINGS})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, config):
    """Three seeds of the base, of `independent` and of alpha = 0.9, whose scores are those of another draw."""
    folder = tmp_path_factory.mktemp("out") / "nursery-ablations"
    write_prepared(folder.parent / "data" / "nursery-0a1b2c3d")
    for seed in range(3):
        for arm, overrides in (("wml", {}), ("independent", {}), ("wml", {"mutual.alpha": 0.9})):
            run = write_run(folder, arm, 2, seed, overrides)
            write_evaluation(run, arm, 2, seed + 10 * bool(overrides), "nursery", "babylm2025", PARADIGMS[:3])
    return folder


def test_the_plan_holds_the_base_and_each_change_once(config):
    repeated = config.updated({"ablations.settings": [*SETTINGS, {"mutual.alpha": 0.5}], "ablations.seeds": [0, 3]})
    runs = plan(repeated, "ablations")
    assert [run.train.seed for run in runs] == [0] * 4 + [3] * 4  # alpha = 0.5 is the base
    assert [run.mutual.num_peers for run in runs] == [2] * 8
    assert [run.mutual.alpha for run in runs[:4]] == [0.5, 0.5, 0.9, 0.1]
    assert {run.preset for run in runs} == {"nursery-ablations"}
    names = plan_table(repeated, "ablations")["ablation"].tolist()
    assert names == 2 * ["base", "arm = independent", "alpha = 0.9", "alpha = 0.1"]


def test_changes_and_their_names(config):
    base = ablation_base(config)
    other = base.updated({"train.seed": 4, "mutual.detach_targets": False, "outer.every": 3})
    assert changes(base.resolved(), base) == {}
    assert changes(base.updated({"data.corpus": "/elsewhere", "data.legality": "none"}).resolved(), base) == {}
    assert changes(other.resolved(), base) == {"mutual.detach_targets": False, "outer.every": 3}
    assert ablation_name(changes(other.resolved(), base)) == "detach_targets = false, every = 3"
    assert ablation_name({}) == "base"
    assert ablation_name({"outer.lr": 0.1}) != ablation_name({"train.lr": 0.1}) == "train.lr = 0.1"


def test_an_evaluation_of_another_kind_is_compared_with_its_like_alone(tmp_path, folder, config):
    copy = shutil.copytree(folder, tmp_path / folder.name)
    for run in read_runs(copy):
        if run.seed == 0 and run.arm == "wml":
            evaluated(run.folder, "nursery", ties="first")
    before, table = (ablation_table(one, config) for one in (folder, copy))
    assert list(before.columns) == list(table.columns)
    shown = table[table["member"] == "best_peer"].set_index(["ablation", "suite"])
    apart = ' (evaluation.ties="first")'
    assert shown["seeds"].to_dict() == {
        ("base", "nursery"): "1 2", ("base", "dev_ce"): "0 1 2", (f"base{apart}", "nursery"): "0",
        ("alpha = 0.9", "nursery"): "1 2", ("alpha = 0.9", "dev_ce"): "0 1 2", (f"alpha = 0.9{apart}", "nursery"): "0",
        ("arm = independent", "nursery"): "0 1 2", ("arm = independent", "dev_ce"): "0 1 2",
    }  # fmt: skip
    whole = before[before["member"] == "best_peer"].set_index(["ablation", "suite"])["differences"].str.split()
    first, *others = whole["alpha = 0.9", "nursery"]
    assert shown.loc[(f"alpha = 0.9{apart}", "nursery"), "differences"] == first
    assert shown.loc[("alpha = 0.9", "nursery"), "differences"].split() == others
    assert (
        shown.loc[("arm = independent", "nursery"), "differences"].split() == whole["arm = independent", "nursery"][1:]
    )
    readable("T8", table)


def test_a_change_whose_evaluations_are_all_of_another_kind_is_not_compared_with_the_base(tmp_path, folder, config):
    copy = shutil.copytree(folder, tmp_path / folder.name)
    for run in read_runs(copy):
        if run.arm == "independent":
            evaluated(run.folder, "nursery", ties="first")
    shown = ablation_table(copy, config).set_index(["ablation", "suite", "member"])
    of_pairs = shown.loc[('arm = independent (evaluation.ties="first")', "nursery", "best_peer")]
    assert of_pairs["seeds"] == "0 1 2" and of_pairs["differences"] != of_pairs["differences"]  # none, with nobody
    assert ("arm = independent", "nursery", "best_peer") not in shown.index


def test_runs_on_other_text_are_compared_with_their_like_alone(tmp_path, folder, config):
    copy = shutil.copytree(folder, tmp_path / folder.name)
    before = ablation_table(copy, config)
    for run in read_runs(copy):
        if run.seed == 0 and run.config["mutual"]["alpha"] == 0.9:
            document = paths.read_json(run.folder / "config.json")
            document["data"]["hash"] = "f" * 64
            paths.write_json(run.folder / "config.json", document)
    shown = ablation_table(copy, config).query("member == 'best_peer'").set_index(["ablation", "suite"])
    whole = before.query("member == 'best_peer'").set_index(["ablation", "suite"])
    for suite in ("nursery", "dev_ce"):
        assert shown.loc[("alpha = 0.9", suite), "seeds"] == "1 2"
        expected = whole.loc[("alpha = 0.9", suite), "differences"].split()[1:]
        assert shown.loc[("alpha = 0.9", suite), "differences"].split() == expected
        apart = shown.loc[('alpha = 0.9 (data.hash="ffffffff")', suite)]
        assert apart["seeds"] == "0" and pd.isna(apart["difference"])  # the base was not trained on that text
        assert shown.loc[("base", suite), "seeds"] == "0 1 2"


def test_what_every_table_says_of_a_run_is_said_here(tmp_path, folder, config):
    """Of a teacher from outside the data budget, and of another precision."""
    copy = shutil.copytree(folder, tmp_path / folder.name)
    for run in read_runs(copy):
        if run.arm == "independent":
            document = paths.read_json(run.folder / "done.json")
            paths.write_json(run.folder / "done.json", document | {"teacher_outside_budget": True})
        elif run.seed == 0:
            facts = paths.read_json(run.folder / "environment.json")
            paths.write_json(run.folder / "environment.json", facts | {"precision": "bf16"})
    table = ablation_table(copy, config)
    noted = table[table["note"] == "teacher outside the data budget"]
    assert set(noted["ablation"]) == {"arm = independent"} == set(table[table["arm"] == "independent"]["ablation"])
    apart = table[table["ablation"] == 'alpha = 0.9 (precision="bf16")']
    assert set(apart["seeds"]) == {"0"} and apart["difference"].notna().all()  # from the base of that precision
    assert set(table[table["ablation"] == "alpha = 0.9"]["seeds"]) == {"1 2"}
    ((_, shown),) = readable("T8", table)
    assert shown.set_index("ablation").loc["arm = independent", "note"] == "teacher outside the data budget"
    assert "note" not in readable("T8", ablation_table(folder, config))[0][1]


def test_precision_as_an_ablation_is_compared_with_the_base(tmp_path, folder, config):
    """Every run but the base's in bf16: the base stays the base, and only who asked for bf16 is compared with it."""
    copy = shutil.copytree(folder, tmp_path / folder.name)
    for run in read_runs(copy):
        if run.config["mutual"]["alpha"] == 0.9 or run.arm == "independent":
            facts = paths.read_json(run.folder / "environment.json")
            paths.write_json(run.folder / "environment.json", facts | {"precision": "bf16"})
        if run.config["mutual"]["alpha"] == 0.9:
            document = paths.read_json(run.folder / "config.json")
            document["config"]["train"]["precision"] = "bf16"
            document["config"]["mutual"]["alpha"] = config.mutual.alpha
            paths.write_json(run.folder / "config.json", document)
    table = ablation_table(copy, config).query("suite == 'dev_ce' and member == 'ensemble'").set_index("ablation")
    assert set(table.index) == {"base", "precision = bf16", 'arm = independent (precision="bf16")'}
    assert table["difference"].notna().to_dict()["precision = bf16"]
    assert pd.isna(table.loc['arm = independent (precision="bf16")', "difference"])


def test_a_base_shorter_than_the_study_needs_no_outer_step(folder, config):
    """Where the study takes outer steps late, tables are still made of what ran."""
    shorter = {"mutual.num_peers": 2, "train.steps": 800}
    late = config.updated({"outer.start": 900, "train.steps": 1000, "ablations.base": shorter})
    assert len(ablation_table(folder, late))
    with pytest.raises(UserError, match="none of the 800 steps .* would have an outer step"):
        train.run(ablation_base(late), folder.parent)  # but that base is not trained


@pytest.mark.parametrize(
    ("key", "message"),
    [("mutual.alpa", "unknown config key 'mutual.alpa'; .* 'mutual.alpha'"), ("alpha", "unknown config key 'alpha'")],
)
def test_an_unknown_key_is_found_before_anything_runs(key, message):
    with pytest.raises(UserError, match=f"the ablations of preset 'smoke' have an {message}"):
        load_preset("smoke", {"ablations.settings": [{key: 1}]})


def test_table_by_hand(folder, config):
    table = ablation_table(folder, config)
    assert table["ablation"].unique().tolist() == ["base", "arm = independent", "alpha = 0.9"]
    assert set(table["member"]) == {"best_peer", "mean_peer", "ensemble"}
    assert set(zip(table["suite"], table["unit"], strict=True)) == {("nursery", "percent"), ("dev_ce", "nats")}
    scores = results.with_mean_peer(results.scores_table(folder))
    own = scores[scores["member"] == "mean_peer"].sort_values("seed")
    base = own[(own["arm"] == "wml") & (own["setting"] == "")]["score"].to_numpy()
    alpha = own[own["setting"].str.contains("alpha")]["score"].to_numpy()
    rows = table[(table["suite"] == "nursery") & (table["member"] == "mean_peer")].set_index("ablation")
    row = rows.loc["alpha = 0.9"]
    assert row["mean"] == pytest.approx(alpha.mean()) and row["difference"] == pytest.approx((alpha - base).mean())
    half = stats.t.ppf(0.975, 2) * np.std(alpha - base, ddof=1) / 3**0.5
    assert row["difference_high"] - row["difference"] == pytest.approx(half)
    assert row["p"] == pytest.approx(stats.ttest_rel(alpha, base).pvalue, rel=1e-9)  # not from the rounded values
    assert row["n_seeds"] == 3 and row["seeds"] == "0 1 2" and len(row["differences"].split()) == 3
    assert np.isnan(rows.loc["base", "difference"])
    flops = [run.done["flops"] for run in read_runs(folder) if run.arm == "independent"]
    assert len(flops) == 3 and rows.loc["arm = independent", "flops_with_teacher"] == pytest.approx(sum(flops) / 3)


def test_adjusted_by_hand():
    """Benjamini-Hochberg of 0.01, 0.04, 0.03: 3 x 0.01 = 0.03, 3/2 x 0.03 = 0.045 above 0.04, hence 0.04 twice."""
    result = results.adjusted(pd.Series([0.01, np.nan, 0.04, 0.03]))
    assert result.tolist() == pytest.approx([0.03, np.nan, 0.04, 0.04], nan_ok=True)
    assert results.adjusted(pd.Series([np.nan])).isna().all()


def test_nothing_to_show(tmp_path, config):
    assert ablation_table(tmp_path / "absent", config).empty
    with pytest.raises(UserError, match="no mean_peer on blimp"):
        plot_ablations(ablation_table(tmp_path / "absent", config).reindex(
            columns=["suite", "member", "difference"]), "blimp")  # fmt: skip


def test_report_finds_the_ablations_beside_the_preset(folder, config):
    beside = folder.with_name("nursery")
    for seed in range(2):
        known = {f"ablations.{name}": getattr(config.ablations, name) for name in ("base", "settings")}
        run = write_run(beside, "wml", 4, seed, known)
        write_evaluation(run, "wml", 4, seed, "nursery", "babylm2025", PARADIGMS[:3])
    written = {path.stem: path for path in tables.write_tables(beside)}
    table = pd.read_csv(written["T8"])
    assert table["ablation"].unique().tolist() == ["base", "arm = independent", "alpha = 0.9"]
    assert not any("alpha" in str(value) for value in pd.read_csv(written["T4"])["setting"])  # T4 has the study only
    notes = paths.read_json(beside / "tables" / "provenance.json")
    assert (notes["T4"]["seeds"], notes["T8"]["seeds"]) == ([0, 1], [0, 1, 2])  # T8 is of the runs that it shows
    ((title, shown),) = readable("T8", table)
    measures = [[f"{name} ({unit})", f"{name} minus base [95 %]", f"{name} p adj."]
                for name, unit in (("dev loss", "nats"), ("nursery", "%"))]  # fmt: skip
    assert list(shown) == ["ablation", *measures[0], *measures[1], "n_seeds", "flops_with_teacher", "weights"]
    assert len(shown) == 3 and title == "mean over the peers of a run; protocol babylm2025"
    row = table[(table["member"] == "mean_peer") & (table["suite"] == "dev_ce") & table["p"].notna()].iloc[0]
    change = shown.set_index("ablation").loc[row["ablation"], "dev loss minus base [95 %]"].split("\n")[0]
    assert change == f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
    # asked for once more with another base: the same runs, seen from there
    other = config.updated({"ablations.base": {"mutual.num_peers": 2, "mutual.arm": "independent"}})
    note_plan(other, folder.parent)
    table = pd.read_csv({path.stem: path for path in tables.write_tables(beside)}["T8"])
    assert table["ablation"].unique().tolist() == ["base", "arm = wml", "arm = wml, alpha = 0.9"]
    assert noted_plan(folder) == other and noted_plan(beside) is None
    settings = pd.read_csv(beside / "tables" / "T2.csv").set_index(["section", "name"])["value"]
    assert json.loads(settings["ablations", "base"]) == other.ablations.base
    # the folder of the ablations by itself, as where the study is yet to be trained
    own = pd.read_csv({path.stem: path for path in tables.write_tables(folder)}["T8"])
    pd.testing.assert_frame_equal(own, table)
    (folder / "ablations.json").unlink()
    shutil.rmtree(folder / "tables")


def test_figure(folder, config):
    table = ablation_table(folder, config)
    ax = plot_ablations(table, "nursery")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["alpha = 0.9", "arm = independent"]
    assert ax.get_xlabel() == "accuracy (points),\nminus the base's"
    diamonds = [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "D"]
    shown = table[(table["suite"] == "nursery") & (table["member"] == "mean_peer")].set_index("ablation")["difference"]
    assert diamonds == pytest.approx([shown["alpha = 0.9"], shown["arm = independent"]])


def test_of_several_protocols_one_is_drawn(folder, config):
    """Not the first by name: whoever asks knows which one the study is of."""
    table = ablation_table(folder, config)
    pairs = table["suite"] == "nursery"
    other = table[pairs].assign(protocol="babylm2024-fixed", difference=table["difference"] + 50)
    both = pd.concat([other, table], ignore_index=True)
    with pytest.raises(UserError, match="scored on nursery under babylm2024-fixed and babylm2025; expected one"):
        plot_ablations(both, "nursery")
    pd.testing.assert_frame_equal(under(both, "babylm2025").reset_index(drop=True), table)
    assert len(plot_ablations(under(both, "babylm2025"), "nursery").get_yticklabels()) == 2
    read = table.assign(protocol=table["protocol"].replace("", np.nan))  # a file has no empty text
    assert set(under(read, "babylm2024-fixed")["suite"]) == {"dev_ce"}


def of_two_peers(ablation="base", by=np.nan, **changes):
    """A row of T8: dev loss of the ensemble of two peers, `by` above the base's."""
    row = {"suite": "dev_ce", "peers": 2, "member": "ensemble", "arm": "dml", "ablation": ablation, "difference": by,
           "difference_low": by - 0.1, "difference_high": by + 0.2, "peer_weights": "0.500 0.500"}  # fmt: skip
    return row | changes


def test_given_weights_are_joined_and_learned_ones_stand_apart():
    given = [
        of_two_peers(f"arm = dml, peer_weights = [{w}, {1 - w}]", w, peer_weights=f"{w:.3f} {1 - w:.3f}")
        for w in (0.8, 0.2)
    ]
    learned = of_two_peers("outer.lr = 2.5", 1.5, arm="wml", peer_weights="0.600 0.400")
    alone = of_two_peers("arm = independent", 1.25, arm="independent")
    others = [of_two_peers("arm = dml, alpha = 0.9", 3.0), of_two_peers("arm = distill", 3.0, arm="distill"),
              of_two_peers("num_peers = 4", 3.0, peers=4), of_two_peers(suite="nursery"),
              of_two_peers("outer.every = 2", 3.0)]  # fmt: skip
    table = pd.DataFrame([of_two_peers(), *given, learned, alone, *others])
    assert list(of_weights(table).index) == [0, 1, 2, 3, 4]
    ax = plot_given_weights(table, "ensemble")
    lines = {line.get_marker(): line for line in ax.get_lines() if line.get_marker() in ("s", "D")}
    assert [list(lines["s"].get_xdata()), list(lines["s"].get_ydata())] == [[0.2, 0.5, 0.8], [0.2, 0.0, 0.8]]
    assert lines["s"].get_linestyle() == "-" and lines["D"].get_linestyle() == "None"
    assert [list(lines["D"].get_xdata()), list(lines["D"].get_ydata())] == [[0.6], [1.5]]
    assert [line.get_ydata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"] == [1.25]
    assert ax.get_ylabel().startswith("dev loss of the ensemble, minus")
    with pytest.raises(UserError, match="T8 has 2 weights that two peers were given; expected three or more"):
        plot_given_weights(table[1:], "ensemble")


def test_other_text_as_an_ablation_is_compared_by_its_scores_alone(tmp_path, folder, config):
    """A loss of other tokens, or of more masks, is no loss on what the base was measured on."""
    copy = shutil.copytree(folder, tmp_path / folder.name)
    both = {"data.vocab_size": 900, "mutual.alpha": 0.2}
    for seed in range(3):
        for overrides in ({"data.vocab_size": 700}, {"train.mask_ratio": 0.6}, both):
            run = write_run(copy, "wml", 2, seed, overrides)
            write_evaluation(run, "wml", 2, seed + 20, "nursery", "babylm2025", PARADIGMS[:3])
            document = paths.read_json(run / "config.json")
            document["data"]["hash"] = "f" * 64 if "data.vocab_size" in overrides else document["data"]["hash"]
            paths.write_json(run / "config.json", document)
    table = ablation_table(copy, config)
    shown = table[table["member"] == "mean_peer"].set_index(["ablation", "suite"])["difference"]
    for change in ("vocab_size = 700", "mask_ratio = 0.6", "vocab_size = 900, alpha = 0.2"):
        assert pd.notna(shown[change, "nursery"]) and (change, "dev_ce") not in shown.index
        assert pd.isna(shown[f"{change} (loss of other tokens)", "dev_ce"])
    assert pd.notna(shown["alpha = 0.9", "dev_ce"])
    readable("T8", table)


@pytest.mark.parametrize("key", ["evaluate.ties", "train.seed", "study.workers", "data.corpus"])
def test_an_ablation_that_changes_no_run_is_refused(config, key):
    value = {"evaluate.ties": "first", "data.corpus": "elsewhere"}.get(key, 1)
    with pytest.raises(UserError, match=rf"ablations\.settings names '{key}', which is no change of a run"):
        plan(config.updated({"ablations.settings": [{"mutual.alpha": 0.1}, {key: value}]}), "ablations")


def test_an_ablation_that_its_arm_does_not_read_is_refused(config):
    for own in (
        {"mutual.teacher_size": "peer"},
        {"mutual.arm": "independent", "mutual.ce_weight": "peer"},
        {"mutual.arm": "independent", "mutual.alpha": 0.9},
        {"mutual.arm": "dml", "outer.lr": 0.5},
        {"mutual.arm": "distill", "mutual.frozen_teacher": True},  # beside distill alone it would be the same run
        {"model.family": "llama", "model.objective": "clm", "train.mask_ratio": 0.5},
    ):
        base = config.updated({"ablations.base": {"mutual.arm": own.get("mutual.arm", "wml")}})
        with pytest.raises(
            UserError, match=rf"settings has {[*own][-1]}, which a run of arm '.*' .* does not read; exp"
        ):
            plan(base.updated({"ablations.settings": [own]}), "ablations")
    with pytest.raises(UserError, match="names arm 'teacher', which no table compares"):
        plan(config.updated({"ablations.settings": [{"mutual.arm": "teacher", "mutual.num_peers": 1}]}), "ablations")


def test_what_a_run_does_not_read_and_where_files_lie_is_no_change():
    base = load_preset("smoke", {"mutual.arm": "wml", "search.saved": "/home/shapes.json"})
    there = {"search.saved": "/scratch/shapes.json", "mutual.teacher_steps": 3}
    assert changes(base.updated(there).resolved(), base) == {}
    other = base.updated({"search.saved": "/home/others.json"}).resolved()
    assert changes(other, base) == {"search.saved": "/home/others.json"}
    taught = base.updated({"mutual.arm": "distill", "mutual.teacher_steps": 3}).resolved()
    assert changes(taught, base) == {"mutual.arm": "distill", "mutual.teacher_steps": 3}


def test_the_notebook_s_last_words_tell_a_difference_that_the_number_of_changes_takes_back() -> None:
    """Its own cell, on the committed T8: the interval of one change leaves out 0, and its adjusted p is above 0.05."""
    document = json.loads((paths.REPOSITORY / "notebooks" / "06_ablations.ipynb").read_text(encoding="utf-8"))
    last = next(
        one for one in map("".join, (cell["source"] for cell in document["cells"])) if one.startswith("lines, ")
    )
    table = pd.read_csv(paths.reference("nursery") / "tables" / "T8.csv")
    rows = table[(table["member"] == "mean_peer") & table["difference"].notna()]
    given = {"mean_peer": rows, "changes": 17, "suite": "nursery", "clear": clear, "p_value": p_value, "Markdown": str}
    exec(last.replace("Markdown(", "told = Markdown("), given)
    shown = clear(rows)
    doubted = shown[(shown["suite"] == "nursery") & (shown["p_adjusted"] > 0.05)].iloc[0]
    sure = shown[(shown["suite"] == "dev_ce") & (shown["p_adjusted"] < 0.05)].iloc[0]
    doubt = f"{doubted['difference']:+.1f} points, but adjusted p is {p_value(doubted['p_adjusted'])}"
    assert f"`{doubted['ablation']}` ({doubt})" in given["told"]
    assert f"`{sure['ablation']}` ({sure['difference']:+.3f} nats)" in given["told"]


def test_p_is_adjusted_over_the_changes_of_a_measure(tmp_path):
    asked = [{"mutual.arm": "independent"}, {"mutual.alpha": 0.9}]
    config = Config(preset="nursery").updated({"ablations.base": {"mutual.num_peers": 2}, "ablations.settings": asked})
    folder = tmp_path / "nursery-ablations"
    for seed in range(3):
        for arm, own in (("wml", {}), ("independent", {}), ("wml", {"mutual.alpha": 0.9})):
            path = write_run(folder, arm, 2, seed, own) / "done.json"
            done = paths.read_json(path)
            paths.write_json(path, done | {"dev_ce": [value + 0.01 * seed * bool(own) for value in done["dev_ce"]]})
    table = ablation_table(folder, config)
    rows = table[(table["suite"] == "dev_ce") & (table["member"] == "best_peer")]
    assert rows["p"].notna().sum() == 2 and (rows["p_adjusted"] > rows["p"]).any()
    assert rows["p_adjusted"].tolist() == pytest.approx(results.adjusted(rows["p"]).tolist(), nan_ok=True)


def test_the_weights_shown_are_the_mean_over_seeds(tmp_path):
    config = Config(preset="nursery").updated({"ablations.base": {"mutual.num_peers": 2}})
    for seed, weights in enumerate(([0.9, 0.1], [0.5, 0.5])):
        path = write_run(tmp_path / "nursery-ablations", "wml", 2, seed) / "done.json"
        paths.write_json(path, paths.read_json(path) | {"peer_weights": weights})
    assert set(ablation_table(tmp_path / "nursery-ablations", config)["peer_weights"]) == {"0.700 0.300"}


def test_a_difference_is_clear_where_its_interval_leaves_out_0():
    intervals = [(0.1, 0.3), (-0.3, -0.1), (-0.1, 0.3), (-0.3, 0.1), (np.nan, np.nan)]
    table = pd.DataFrame(intervals, columns=["difference_low", "difference_high"])
    assert clear(table).index.tolist() == [0, 1]
