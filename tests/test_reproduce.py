"""The main job end to end: the real notebooks under papermill with the `smoke` preset."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from fake_runs import write_run

from wmlkit import paths, session
from wmlkit import reproduce as main_job
from wmlkit.config import load_preset
from wmlkit.errors import UserError
from wmlkit.evaluate.protocols import PROTOCOLS
from wmlkit.report import write_report
from wmlkit.reproduce import _forget_runs, notebook_sources
from wmlkit.study_plan import plan
from wmlkit.teacher import teacher_config
from wmlkit.train import run_folder

NAMES = [path.stem for path in notebook_sources()]


def reproduce(out, *more):
    command = [sys.executable, "-m", "wmlkit", "reproduce", "--preset", "smoke", "--out", str(out), *more]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    done = reproduce(out)
    assert done.returncode == 0, done.stderr[-4000:]
    return out / "smoke"


def test_every_run_is_finished_and_evaluated(folder):
    config = load_preset("smoke")
    runs = sorted(path.parent.name.rsplit("-", 1)[0] for path in folder.glob("*/done.json"))
    study = [*config.study.runs, ("teacher", 1)]  # whom the runs of `distill` learned from
    assert runs == sorted(f"{arm}-p{p}-s{s}" for arm, p in study for s in config.study.seeds)
    assert len(list(folder.glob("*/evaluation/nursery-babylm2025.json"))) == len(runs)
    assert len(list(folder.glob("*/evaluation/nursery-babylm2025.items.jsonl"))) == len(runs)


def test_what_the_notebooks_leave(folder):
    tables = {path.stem for path in (folder / "tables").glob("T*.csv")}
    figures = {path.name for path in (folder / "figures").glob("F*.*")}
    assert {"T1", "T2", "T3", "T4", "T4_differences", "T4_protocols", "T4_text", "T5", "T7"} <= tables
    assert {f"F{i}.{kind}" for i in range(1, 9) for kind in ("png", "pdf", "svg")} <= figures
    for kind in ("tables", "figures"):
        notes = paths.read_json(folder / kind / "provenance.json")
        assert all(note["command"] and note["created_by"] and "commit" in note for note in notes.values())
    for name in NAMES:
        executed = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
        assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
        for cell in executed.cells:
            if cell.source.splitlines()[-1:] in (["figure"], ["axes.figure"]):
                assert "image/png" in cell.outputs[-1]["data"], (name, cell.source)
        done = paths.read_json(folder / "notebooks" / f"{name}.done.json")
        assert done["numbers"] and all(math.isfinite(value) for value in done["numbers"].values())


def test_summary(folder):
    summary = paths.read_json(folder / "summary.json")
    assert summary["preset"] == "smoke" and set(summary["minutes"]) == {"train", "evaluate", "total"}
    assert summary["minutes"]["total"] > summary["minutes"]["train"] > 0
    config = load_preset("smoke")
    for arm, peers in config.study.runs:
        for seed in config.study.seeds:
            rows = [r for r in summary["results"] if (r["arm"], r["peers"], r["seed"]) == (arm, peers, seed)]
            members = {row["member"] for row in rows}
            assert {"best_peer", "ensemble", *(f"peer_{i}" for i in range(1, peers + 1))} <= members
            assert all(0 <= row["score"] <= 100 and row["n"] == 17 * 6 for row in rows)


def test_main_table_has_every_arm_and_the_single_student(folder):
    main = pd.read_csv(folder / "tables" / "T4.csv")
    measured = main[main["kind"] == "measured"]
    assert {("independent", 1), ("independent", 2), ("dml", 2), ("wml", 2), ("distill", 2)} == set(
        zip(measured["arm"], measured["peers"], strict=True)
    )
    assert (measured["corpus"] == "nursery").all()


def test_one_model_is_shown_under_every_protocol(folder):
    table = pd.read_csv(folder / "tables" / "T4_protocols.csv").set_index(["protocol", "member"])["mean"]
    assert set(table.index.get_level_values("protocol")) == set(PROTOCOLS)
    for protocol in PROTOCOLS:
        assert table[protocol, "perfect_scorer"] == 100  # no sentence of the nursery's pairs repeats
        assert table[protocol, "perfect_swapped"] == (50 if protocol == "babylm2024-released" else 100)
    main = pd.read_csv(folder / "tables" / "T4.csv")
    assert set(main[main["kind"] == "measured"]["protocol"].dropna()) == {"babylm2025"}


def test_report_is_self_contained(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in page for name in ("t1", "t4", "t4_text", "f2", "f6", "f7", "f8"))
    for outside in ("<script src", "<link", "@import", 'src="http', "url(http"):
        assert outside not in page


def test_the_report_command_makes_the_tables_and_figures_of_the_notebooks(folder):
    """Bytes and notes: nobody can tell a table that was made again from one that a notebook left."""
    kept = {path: path.read_bytes() for kind in ("tables", "figures") for path in (folder / kind).iterdir()}
    write_report(folder, overwrite=True)
    assert len(kept) > 40
    assert [path.name for path, data in kept.items() if path.read_bytes() != data] == []


def test_again_trains_nothing(folder):
    runs = {path: path.stat().st_mtime_ns for path in folder.glob("*/done.json")}
    metrics = {path: path.read_bytes() for path in folder.glob("*/metrics.jsonl")}
    minutes = paths.read_json(folder / "summary.json")["minutes"]
    done = reproduce(folder.parent)
    assert done.returncode == 0, done.stderr[-4000:]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/done.json")} == runs
    assert {path: path.read_bytes() for path in folder.glob("*/metrics.jsonl")} == metrics
    assert paths.read_json(folder / "summary.json")["minutes"] == minutes  # those of the call that trained


def test_the_results_notebook_scores_runs_that_nobody_has_scored(folder, tmp_path):
    """As after `--only 03,05` in a new folder."""
    out = tmp_path / "out"
    shutil.copytree(folder.parent, out)
    for name in ("tables", "figures", "notebooks"):
        shutil.rmtree(out / "smoke" / name)
    for scored in out.glob("smoke/*-p*-s*/evaluation"):
        shutil.rmtree(scored)
    done = reproduce(out, "--only", "05")
    assert done.returncode == 0, done.stderr[-4000:]
    before, after = (pd.read_csv(one / "smoke" / "tables" / "T4.csv") for one in (folder.parent, out))
    key = ["arm", "peers", "suite", "member"]
    scores = [table[table["protocol"] == "babylm2025"].set_index(key)["mean"].sort_index() for table in (before, after)]
    pd.testing.assert_series_equal(*scores)


def test_runs_of_other_settings_take_another_folder(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    done = reproduce(folder.parent, "--set", "train.steps=7", "--set", "mutual.alpha=0.9", "--only", "03")
    assert (
        done.returncode == 2
        and "folder of their own for runs with mutual.alpha=0.9 train.steps=7; give one (--out" in done.stderr
    )
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_a_notebook_by_hand_refuses_other_settings_than_those_of_the_folder_s_runs(folder):
    with pytest.raises(UserError, match=r"holds runs of other settings.* with mutual\.alpha=0\.9; give one .*`out`"):
        session.start("03_training", "smoke", str(folder.parent), ["mutual.alpha=0.9"])
    assert session.start("03_training", "smoke", str(folder.parent), []).folder == folder


def test_a_preset_without_changes_runs_the_ablations_notebook(tmp_path):
    """As `released` is: the base alone, and the notebooks behind this one still run."""
    folder = tmp_path / "smoke"
    done = reproduce(tmp_path, "--only", "06", "--set", "ablations.settings=[]")
    assert done.returncode == 0, done.stderr[-4000:]
    numbers = paths.read_json(folder / "notebooks" / "06_ablations.done.json")["numbers"]
    assert numbers["ablations"] == 0 and numbers["runs"] == len(load_preset("smoke").ablations.seeds)
    executed = nbformat.read(folder / "notebooks" / "06_ablations.ipynb", as_version=4)
    said = [str(cell.outputs) for cell in executed.cells if cell.cell_type == "code"]
    assert any("this preset lists no changes" in text for text in said)


def test_force_forgets_what_would_be_trained_and_nothing_else(tmp_path):
    config = load_preset("smoke", {"data.words": 3000, "data.dev_words": 1000})
    mine = [run_folder(run, tmp_path) for run in (*plan(config), *plan(config, "ablations"))]
    taught = next(run for run in plan(config) if run.mutual.arm == "distill")
    mine += [run_folder(teacher_config(taught), tmp_path), tmp_path / "smoke" / "replay" / "none-s0-0a1b2c3d"]
    other = run_folder(config.updated({"train.lr": 0.123}), tmp_path)
    kept = [other / "done.json", tmp_path / "smoke" / "thesis.txt", tmp_path / "smoke" / "tables" / "T1.csv"]
    for path in (*(folder / "done.json" for folder in mine), *kept):
        paths.write_text(path, "{}")
    with pytest.raises(UserError, match="nowhere"):
        _forget_runs(config.updated({"data.corpus": "nowhere"}), tmp_path)
    assert all(folder.is_dir() for folder in mine)  # the text was looked for first
    _forget_runs(config, tmp_path)
    assert not any(folder.exists() for folder in mine) and all(path.is_file() for path in kept)


@pytest.mark.parametrize("there_before", [False, True])
def test_minutes_are_told_of_a_call_that_trained_all_runs(there_before, tmp_path, monkeypatch):
    """One that goes on with what an interrupted one left says nothing about the time of the whole."""
    folder = tmp_path / "smoke"
    if there_before:
        write_run(folder, "independent", 2, 0)
    trained = []
    monkeypatch.setattr(
        main_job, "run_notebook", lambda *_, **__: trained or trained.append(write_run(folder, "wml", 2, 0))
    )
    monkeypatch.setattr(main_job, "one_ahead", lambda count, *_: (None for _ in range(count)))
    monkeypatch.setattr(main_job, "write_report", lambda *_, **__: None)
    main_job._reproduce("smoke", (), tmp_path, folder, notebook_sources(), print)
    minutes = paths.read_json(folder / "summary.json")["minutes"]
    assert (minutes["total"] is None) == there_before
