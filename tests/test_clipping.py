"""How often a gradient is clipped, counted: one threshold meets losses that differ between arms."""

from __future__ import annotations

import pytest
import torch
from compare import rows
from fake_runs import write_study

from wmlkit import paths, results, steps, tables, train
from wmlkit.config import load_preset
from wmlkit.readable import readable

SETTINGS = {"train.log_every": 1, "train.checkpoint_every": 4, "evaluate.curve": []}


def config(**changes):
    return load_preset("smoke", SETTINGS | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture
def norms(monkeypatch):
    """(steps, P): norms of the gradients of every step from now on."""
    seen = []
    whole = steps.clip_and_update

    def watched(state, settings, found):
        seen.append(found.clone())
        return whole(state, settings, found)

    monkeypatch.setattr(steps, "clip_and_update", watched)
    return seen


def test_shares_by_hand(norms, tmp_path):
    """Of peer 1 and peer 2 of `independent`: the share of the steps so far whose norm is above the threshold."""
    train.run(config(mutual__arm="independent"), tmp_path / "free")
    threshold = float(torch.stack(norms).cpu().median())
    norms.clear()
    folder = train.run(config(mutual__arm="independent", train__grad_clip=threshold), tmp_path)
    above = (torch.stack(norms).cpu() > threshold).double()
    assert 0 < above.mean() < 1
    logged = rows(folder)
    for step, row in enumerate(logged, start=1):
        assert row["clipped"] == pytest.approx(above[:step].mean(0).tolist())
    done = paths.read_json(folder / "done.json")
    assert done["clipped"] == logged[-1]["clipped"]
    (run,) = results.runs_table(folder.parent).to_dict("records")
    assert run["clipped"] == pytest.approx(float(above.mean()))


def test_a_step_that_is_left_out_is_no_update(norms, tmp_path, monkeypatch):
    def leaves_out_three(state, *more):
        state.skipped += state.step < 3
        return state.step < 3

    monkeypatch.setattr(steps, "_leaves_out", leaves_out_three)
    folder = train.run(config(train__grad_clip=1e-6, train__skip_not_finite=3), tmp_path)
    assert [row.get("clipped") for row in rows(folder)[:4]] == [None, None, None, [1.0, 1.0]]
    assert len(norms) == len(rows(folder)) - 3


def test_without_clipping_nothing_is_told(tmp_path):
    folder = train.run(config(train__grad_clip=0.0), tmp_path)
    assert not any("clipped" in row for row in rows(folder)) and "clipped" not in paths.read_json(folder / "done.json")
    assert results.runs_table(folder.parent)["clipped"].isna().all()


def test_costs_have_the_mean_over_runs(tmp_path):
    folder = write_study(
        tmp_path / "nursery", (("independent", 2), ("dml", 2)), seeds=(0, 1), protocols=("babylm2025",)
    )
    for seed, shares in enumerate([[0.5, 0.7], [0.9, 0.7]]):
        (run,) = folder.glob(f"independent-p2-s{seed}-*")
        paths.write_json(run / "done.json", paths.read_json(run / "done.json") | {"clipped": shares})
    table = tables.cost(results.runs_table(folder)).set_index("arm")
    assert table.loc["independent", "clipped"] == pytest.approx((0.6 + 0.8) / 2)
    assert table["clipped"].isna().tolist() == [False, True]  # a run of an older version has none
    ((_, shown),) = readable("T7", table.reset_index())
    assert shown.set_index("arm")["clipped"].to_dict() == {"independent": "0.7", "dml": ""}
    ((_, shown),) = readable("T7", table.reset_index().query("arm == 'dml'"))
    assert "clipped" not in shown
