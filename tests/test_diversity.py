"""What an ensemble gains over its peers is how much they differ: the identity, the tables, the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_runs import weigh, write_run, write_study
from torch.nn import functional as F

from wmlkit import bilevel, diversity, results, tables
from wmlkit.errors import UserError
from wmlkit.figures import plot_diversity
from wmlkit.losses import cross_entropies
from wmlkit.readable import readable
from wmlkit.runs import metric_lines, read_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("out") / "nursery", protocols=("babylm2025",))
    weigh(folder)
    return folder


def test_the_loss_of_averaged_logits_is_that_of_the_peers_less_their_divergence_from_it() -> None:
    logits = list(3 * torch.randn(3, 50, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    targets = torch.arange(50) % 20
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    ensemble = float(bilevel.outer_loss(logits, targets, weights, "logit_ensemble"))
    found = diversity.decomposed(cross_entropies(logits, targets).tolist(), ensemble, weights.tolist())
    log_p = [F.log_softmax(z, -1) for z in logits]
    log_ens = F.log_softmax(sum(w * z for w, z in zip(weights, logits, strict=True)), -1)
    kl = [float((log_ens.exp() * (log_ens - own)).sum(-1).mean()) for own in log_p]
    assert found["diversity"] == pytest.approx(sum(w * one for w, one in zip(weights.tolist(), kl, strict=True)))
    assert found["diversity"] > 0.1
    assert found["weighted_mean_peer"] - found["diversity"] == pytest.approx(found["ensemble"])
    alike = diversity.decomposed([2.0, 2.0], 2.0, [0.9, 0.1])
    assert alike["diversity"] == pytest.approx(0)


def test_a_frozen_teacher_is_no_member() -> None:
    found = diversity.decomposed([1.0, 2.0], 1.0, [0.1, 0.3, 0.6])
    assert found == pytest.approx({"weighted_mean_peer": 1.75, "ensemble": 1.0, "diversity": 0.75})


def test_the_table_holds_the_numbers_of_each_arm_and_the_difference_from_the_control(folder: Path) -> None:
    table = (
        diversity.diversity(diversity.diversity_table(read_runs(folder)))
        .set_index(["arm", "peers", "quantity"])
        .sort_index()
    )
    assert set(table.index) == {
        (arm, peers, quantity)
        for arm, peers in (("independent", 4), ("dml", 4), ("wml", 2), ("wml", 4), ("distill", 4))
        for quantity in ("weighted_mean_peer", "ensemble", "diversity", "uniform_diversity")
    }
    runs = {(run.arm, run.peers, run.seed): run.done for run in read_runs(folder)}

    def by_hand(arm: str, seed: int) -> float:
        done = runs[arm, 4, seed]
        members = np.dot(done["peer_weights"], done["dev_ce"])
        return float(members - done["dev_ce_ensemble"])

    own = [by_hand("wml", seed) for seed in range(3)]
    row = table.loc[("wml", 4, "diversity")]
    assert row["mean"] == pytest.approx(np.mean(own)) and row["seeds"] == "0 1 2"
    change = [one - by_hand("independent", seed) for seed, one in enumerate(own)]
    assert row["difference"] == pytest.approx(np.mean(change)) and 0 < row["p"] <= row["p_adjusted"] <= 1
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    assert table.loc[("wml", 2), "difference"].isna().all()  # no independent run with two peers
    assert table.loc[("independent", 4), "p"].isna().all()
    whole = table.groupby(level=["arm", "peers"]).apply(lambda rows: rows.droplevel([0, 1])["mean"])
    assert np.allclose(whole["weighted_mean_peer"] - whole["ensemble"], whole["diversity"])
    alike = [
        float(np.mean(runs["wml", 4, seed]["dev_ce"]) - runs["wml", 4, seed]["dev_ce_ensemble"]) for seed in range(3)
    ]
    assert table.loc[("wml", 4, "uniform_diversity"), "mean"] == pytest.approx(np.mean(alike) + 0.25)  # `weigh`
    assert np.mean(alike) > np.mean(own) + 0.001  # equal weights lie on more peers
    assert "T4_diversity" in [path.stem for path in tables.write_tables(folder)]


def test_the_readable_table_has_an_arm_a_row(folder: Path) -> None:
    ((_, shown),) = readable("T4_diversity", diversity.diversity(diversity.diversity_table(read_runs(folder))))
    assert list(shown["arm"] + shown["peers"]) == ["independent4", "dml4", "wml2", "wml4", "distill4"]
    change = shown["at equal weights, minus independent's [95 %]"]
    assert all("[" in cell for cell in shown["diversity at equal weights"])
    assert change[0] == "" == change[2] and "[" in change[1] and shown["p"][3] != ""
    assert all("[" in cell for cell in shown["weighted mean of the peers"])


def test_single_peers_and_a_missing_control_give_no_difference(tmp_path: Path) -> None:
    write_run(tmp_path / "nursery", "independent", 1, 0)
    assert diversity.diversity(diversity.diversity_table(read_runs(tmp_path / "nursery"))).empty
    write_run(tmp_path / "nursery", "wml", 2, 0)
    table = diversity.diversity(diversity.diversity_table(read_runs(tmp_path / "nursery")))
    assert set(table["arm"]) == {"wml"} and table["difference"].isna().all() and table["low"].isna().all()
    assert len(readable("T4_diversity", table)[0][1]) == 1


def test_on_the_way_it_is_that_of_each_measured_step(folder: Path) -> None:
    table = diversity.diversity_by_step(read_runs(folder))
    one = next(run for run in read_runs(folder) if (run.arm, run.peers, run.seed) == ("wml", 4, 1))
    own = table[(table["run"] == one.folder.name) & (table["quantity"] == "diversity")]
    assert own["step"].tolist() == list(range(100, 1001, 100))
    end = diversity.decomposed(one.done["dev_ce"], one.done["dev_ce_ensemble"], one.done["peer_weights"])
    assert own["value"].iloc[-1] == pytest.approx(end["diversity"])  # of made-up runs both are of the same rows
    ax = plot_diversity(table[table["peers"] == 4])
    drawn = {line.get_label(): np.asarray(line.get_ydata()) for line in ax.get_lines()}
    assert list(drawn) == ["independent", "dml", "wml", "distill"]
    shown = table[(table["arm"] == "wml") & (table["peers"] == 4) & (table["quantity"] == "diversity")]
    assert np.allclose(drawn["wml"], shown.groupby("step")["value"].mean())
    for wrong, count in ((table, 2), (table[:0], 0)):
        with pytest.raises(UserError, match=f"the table has {count} values of 'peers'"):
            plot_diversity(wrong)


def test_runs_of_another_setting_stand_apart(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("independent", 2)), seeds=(0, 1), protocols=())
    write_study(folder, (("wml", 2),), seeds=(0, 1), protocols=(), overrides={"mutual.alpha": 0.9})
    table = diversity.diversity(diversity.diversity_table(read_runs(folder)))
    of_diversity = table[(table["quantity"] == "diversity") & (table["arm"] == "wml")].set_index("setting")
    assert set(of_diversity.index) == {"", "mutual.alpha=0.9"}
    assert pd.isna(of_diversity.loc["mutual.alpha=0.9", "difference"]) and pd.notna(of_diversity.loc["", "difference"])


def test_p_is_adjusted_over_the_arms_of_a_quantity(tmp_path: Path) -> None:
    study = [(arm, 2) for arm in ("independent", "dml", "wml", "distill")]
    runs = read_runs(write_study(tmp_path / "nursery", study, protocols=()))
    for _, rows in diversity.diversity(diversity.diversity_table(runs)).groupby("quantity"):
        assert rows["p"].notna().sum() == 3 and (rows["p_adjusted"] > rows["p"]).any()
        assert rows["p_adjusted"].tolist() == pytest.approx(results.adjusted(rows["p"]).tolist(), nan_ok=True)


def test_p_is_adjusted_over_the_arms_of_one_number_of_peers(tmp_path: Path) -> None:
    study = [(arm, peers) for arm in ("independent", "dml", "wml") for peers in (2, 3)]
    runs = read_runs(write_study(tmp_path / "nursery", study, protocols=()))
    table = diversity.diversity(diversity.diversity_table(runs)).dropna(subset="p")
    assert table.groupby(["peers", "quantity"])["p"].size().eq(2).all()
    for _, rows in table.groupby(["peers", "quantity"]):
        rows = rows.sort_values("p")
        low, high = rows["p"]  # of two, the larger stays and the smaller doubles, up to the larger
        assert rows["p_adjusted"].tolist() == pytest.approx([min(2 * low, high), high])


def test_a_step_s_diversity_has_the_weights_of_that_step(tmp_path: Path) -> None:
    (run,) = read_runs(write_study(tmp_path / "nursery", (("wml", 2),), (0,), protocols=()))
    lines = [line for line in metric_lines(run.folder) if line.get("dev_ce")]
    assert len({tuple(line["peer_weights"]) for line in lines}) == len(lines) > 1
    found = diversity.diversity_by_step([run]).query("quantity == 'weighted_mean_peer'")
    by_hand = [np.dot(line["peer_weights"], line["dev_ce"]) for line in lines]  # weights that add up to 1
    assert found["value"].tolist() == pytest.approx(by_hand)
