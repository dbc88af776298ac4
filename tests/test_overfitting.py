"""Runs that went on after their dev loss was lowest: found, and told in the answer."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import write_study

from wmlkit import paths, tables
from wmlkit.answer import answer
from wmlkit.overfitting import risen, stopped
from wmlkit.provenance import read_provenance
from wmlkit.readable import readable
from wmlkit.runs import read_runs

STUDY = (("independent", 2), ("wml", 2), ("distill", 2))


def set_dev_losses(run: Path, dev: list[list[float]], held_out: list[list[float]] | None = None) -> None:
    """Leave of a run's log three steps with these dev and held-out losses, one list a step, one value a peer, and an
    ensemble whose dev loss is 0.5 below that of the first."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()][:3]
    kept = [
        {**line, "step": 100 * (i + 1), "dev_ce": dev[i], "held_out_ce": (held_out or dev)[i]}
        | ({"dev_ce_ensemble": dev[i][0] - 0.5} if dev[i] else {})
        for i, line in enumerate(lines)
    ]
    paths.write_text(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two seeds: `independent` rises, `wml` by less than a hundredth, and `distill` not, but its teacher does."""
    folder = write_study(tmp_path / "nursery", STUDY, (0, 1), protocols=("babylm2025",))
    by_arm = {
        "independent": ([[3.0, 3.2], [2.0, 2.2], [2.5, 2.9]], [[3.0, 3.0], [2.6, 2.6], [2.5, 2.7]]),
        "wml": ([[3.0, 3.0], [2.0, 2.0], [2.02, 2.01]],) * 2,
        "distill": ([[3.0, 3.0], [2.5, 2.5], [2.0, 2.0]],) * 2,
    }
    for run in read_runs(folder):
        set_dev_losses(run.folder, by_arm[run.arm][run.seed])
    for seed in (0, 1):
        (student,) = folder.glob(f"distill-p2-s{seed}-*")
        teacher = folder / f"teacher-p1-s{seed}-0123abcd"
        paths.write_text(teacher / "metrics.jsonl", (student / "metrics.jsonl").read_text(encoding="utf-8"))
        set_dev_losses(teacher, [[2.4], [3.0], [3.2]])
        document = paths.read_json(student / "done.json")
        known = {"name": teacher.name, "run": teacher.name, "dev_ce": 3.2}
        cost = {"tokens": 1, "words": 1, "flops": 1.0, "seconds": 1.0, "parameters": 1}
        paths.write_json(student / "done.json", {**document, "teacher": {**known, **cost}})
    return folder


def test_rises_by_hand(folder: Path) -> None:
    """independent: seed 0 from 2.1 to 2.7, seed 1 at 2.6 from step 200 on; so it rises by 0.3 from 2.35 on average."""
    found = risen(read_runs(folder)).set_index("who")
    assert list(found.index) == ["independent", "the teacher of distill"]
    assert found.loc["independent"].tolist() == pytest.approx([0.3, 2.35, 200.0, 300.0])
    assert found.loc["the teacher of distill"].tolist() == pytest.approx([0.8, 2.4, 100.0, 300.0])


def test_the_stop_is_chosen_on_held_out_text(folder: Path) -> None:
    """independent: held-out text says step 300 for seed 0 (though dev loss is lowest at 200) and peer 2 as the best."""
    for run in read_runs(folder):
        if run.arm == "independent" and run.seed == 0:
            set_dev_losses(run.folder, [[3.0, 3.2], [2.0, 2.2], [2.5, 2.9]], [[4.0, 4.0], [3.5, 3.0], [3.0, 2.5]])
    found = stopped(read_runs(folder)).set_index(["arm", "seed", "member"])["score"].sort_index()
    assert found["independent", 0].to_dict() == {"best_peer": 2.9, "ensemble": 2.0, "peer_1": 2.5, "peer_2": 2.9}
    assert found["independent", 1].to_dict() == {"peer_1": 2.6, "peer_2": 2.6, "best_peer": 2.6, "ensemble": 2.1}
    assert found["wml", 1].to_dict() == {"peer_1": 2.0, "peer_2": 2.0, "best_peer": 2.0, "ensemble": 1.5}
    rows = tables.differences(stopped(read_runs(folder))).set_index(["a", "b", "member"])
    assert rows.loc[("wml", "independent", "mean_peer"), "mean"] == pytest.approx((2.0 - 2.7 + 2.0 - 2.6) / 2)
    ((_, shown),) = readable("T4_stopped", rows.reset_index())
    assert set(shown["measure"]) == {"dev loss (nats)"} and "item level [95 %]" not in shown
    assert "T4_stopped" in [path.stem for path in tables.write_tables(folder)]


def test_a_rise_of_the_teacher_alone_stops_nobody(folder: Path) -> None:
    tables.write_tables(folder)
    assert (folder / "tables" / "T4_stopped.csv").is_file()
    for run in read_runs(folder):
        set_dev_losses(run.folder, [[3.0, 3.0], [2.5, 2.5], [2.0, 2.0]])
    assert list(risen(read_runs(folder))["who"]) == ["the teacher of distill"]
    assert tables.differences(stopped(read_runs(folder))).empty
    assert "T4_stopped" not in [path.stem for path in tables.write_tables(folder)]
    assert not (folder / "tables" / "T4_stopped.csv").exists()  # that of the runs before says nothing of these
    assert "T4_stopped" not in read_provenance(folder / "tables")


def test_the_answer_tells_it(folder: Path) -> None:
    def basis() -> str:
        runs, scores = read_runs(folder), tables.all_scores(folder)
        return " ".join(answer(runs, tables.main_result(scores), tables.differences(scores)).basis)

    told = "independent by 0.300 (lowest after 200 of 300 steps); the teacher of distill by 0.800 (lowest after 100 of "
    assert told in basis()
    in_time = (
        "Each run stopped where its loss on held-out text was lowest (T4_stopped): In dev loss (nats a scored token)"
    )
    assert f"{in_time}, wml minus independent, 2 peers, 2 seeds: best peer -0.300 (95 % interval" in basis()
    for run in read_runs(write_study(folder, (("wml", 1),), (0, 1), protocols=())):
        if run.peers == 1:  # not the number of peers that the rest of the answer is about
            set_dev_losses(run.folder, [[3.0], [2.0], [2.9]])
    assert told in basis() and "wml by" not in basis()
    for run in [run.folder for run in read_runs(folder)] + sorted(folder.glob("teacher-*")):
        set_dev_losses(run, [[3.0], [2.5], [2.0]])
    assert "rose before the end" not in basis() and "T4_stopped" not in basis()


def test_a_log_without_dev_losses_says_nothing(folder: Path) -> None:
    for path in folder.glob("wml-*"):
        set_dev_losses(path, [[], [], []])
    assert set(stopped(read_runs(folder))["arm"]) == {"independent", "distill"}  # the others' stand
    for run in read_runs(folder):
        set_dev_losses(run.folder, [[], [], []])
    assert list(risen(read_runs(folder))["who"]) == ["the teacher of distill"]
    assert risen([]).empty and stopped([]).empty and stopped(read_runs(folder)).empty


def test_a_rise_of_another_setting_is_not_told(folder: Path) -> None:
    before = risen(read_runs(folder))
    write_study(folder, (("wml", 2),), (0,), protocols=(), overrides={"mutual.alpha": 0.9})
    (aside,) = [run for run in read_runs(folder) if run.setting]
    set_dev_losses(aside.folder, [[3.0, 3.0], [2.0, 2.0], [9.0, 9.0]])
    pd.testing.assert_frame_equal(risen(read_runs(folder)), before)
