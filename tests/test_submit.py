"""Shards as jobs, with submitit's local executor."""

from __future__ import annotations

import pytest

from wmlkit import submit
from wmlkit.config import load_preset
from wmlkit.errors import UserError
from wmlkit.study_plan import plan
from wmlkit.train import run_folder

OVERRIDES = ['study.runs=[["wml", 2], ["dml", 1]]', "study.seeds=[0]", "train.steps=2", "evaluate.per_paradigm=1"]


def test_local_jobs_do_the_study(tmp_path):
    pytest.importorskip("submitit")
    jobs = submit.submit("smoke", OVERRIDES, tmp_path, 2, cluster="local", minutes=5, cpus_per_task=1)
    folders = sorted(folder for job in jobs for folder in job.result())
    assert folders == sorted(str(run_folder(one, tmp_path)) for one in plan(load_preset("smoke", OVERRIDES)))
    for pattern in ("done.json", "evaluation/*.items.jsonl"):
        assert len(list(tmp_path.glob(f"smoke/*/{pattern}"))) == 2
    shard = submit.Shard("smoke", tuple(OVERRIDES), str(tmp_path), 1, 2, "all", "runs")
    assert shard.checkpoint().function == shard  # what a stopped job is queued with: the same slice, which goes on


@pytest.mark.parametrize("count", [0, 3])
def test_more_shards_than_runs_are_refused(count, tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "find_spec", lambda name: True)
    with pytest.raises(UserError, match=f"--shards got {count}; expected 1 to 2"):
        submit.submit("smoke", OVERRIDES, tmp_path, count)


def test_without_submitit_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"submitit is not installed; .* `wmlkit study run --shard I/N`"):
        submit.submit("smoke", OVERRIDES, tmp_path, 1)
