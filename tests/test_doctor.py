"""Each finding where all is well, and where something is not."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from test_cli import wmlkit

from wmlkit import doctor

CPU = torch.device("cpu")


def test_the_command_prints_a_line_a_subject_and_ends_well(tmp_path):
    done = wmlkit("doctor", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for subject in ("python", "packages", "torchvision", "kernel", "device", "threads", "disk", "numerics", "commit"):
        assert any(line.startswith(("ok", "note")) and f" {subject}: " in line for line in lines), subject
    assert not any(line.startswith("broken") for line in lines)
    assert not list(tmp_path.iterdir())


def test_json_has_the_facts_of_a_run_and_the_findings(tmp_path):
    document = json.loads(wmlkit("doctor", "--out", tmp_path, "--json").stdout)
    assert {"versions", "python", "device", "device_reason", "precision", "commit", "presets"} <= set(document)
    assert {tuple(one) for one in document["findings"]} == {("subject", "status", "found", "advice")}
    assert all(one["advice"] for one in document["findings"] if one["status"] != "ok")


def test_something_broken_ends_with_status_2_and_what_to_do(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    done = wmlkit("doctor", "--json", PYTHONPATH=f"{tmp_path}:{Path(doctor.__file__).parents[1]}")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("wmlkit: broken: torchvision;") and "uninstall torchvision" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    (found,) = [one for one in json.loads(done.stdout)["findings"] if one["status"] == "broken"]
    assert "operator torchvision::nms does not exist" in found["found"]


def test_packages_are_held_against_their_bounds():
    assert doctor.packages(["torch>=2", "numpy", "wandb>=0.31; extra == 'wandb'"]).status == "ok"
    wrong = doctor.packages(["torch>=99", "no-such-package>=1", "numpy>=1"])
    assert wrong.status == "broken" and "constraints.txt" in wrong.advice
    assert "torch>=99 (found 2." in wrong.found and "no-such-package>=1 (found none)" in wrong.found
    assert "numpy" not in wrong.found
    # a build for the CPU has the version that pip accepts for the plain one
    assert doctor.packages([f"torch=={torch.__version__.partition('+')[0]}"]).status == "ok"


def test_a_kernel_of_another_python_is_noticed(tmp_path, monkeypatch):
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    for command, status in ((sys.executable, "ok"), ("python", "ok"), ("/elsewhere/bin/python", "note")):
        document = {"argv": [command, "-m", "ipykernel_launcher"], "display_name": "x", "language": "python"}
        (folder / "kernel.json").write_text(json.dumps(document))
        found = doctor.kernel()
        assert (found.status, command in found.found) == (status, True)
    monkeypatch.setattr(doctor.sys, "executable", "/elsewhere/bin/python")
    assert doctor.kernel().status == "ok"
    monkeypatch.undo()
    assert "ipykernel install --sys-prefix" in found.advice
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.kernel().status == "broken"


@pytest.mark.parametrize(("free", "status"), [(5, "ok"), (0.5, "note"), (0.05, "broken")])
def test_room_on_disk(tmp_path, monkeypatch, free, status):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=free * 2**30))
    assert doctor.disk(tmp_path / "not" / "there" / "yet").status == status
    monkeypatch.setattr(doctor.os, "access", lambda place, mode: False)
    assert doctor.disk(tmp_path).status == "broken"


def test_a_file_in_the_place_of_a_folder_is_found(tmp_path):
    (tmp_path / "runs").write_text("a file")
    for out in (tmp_path / "runs", tmp_path / "runs" / "of" / "mine"):
        found = doctor.disk(out)
        assert found.status == "broken" and "is a file" in found.found and "--out" in found.advice


def test_numbers_are_checked_against_double_precision(monkeypatch):
    assert doctor.numerics(CPU).status == "ok" and 0 < doctor.numeric_error(CPU) < 1e-5
    exact = doctor._step

    def rough(device, kind):
        values = exact(device, kind)
        return values if kind == torch.float64 else [value.bfloat16().float() for value in values]

    monkeypatch.setattr(doctor, "_step", rough)
    assert doctor.numerics(CPU).status == "broken"
    monkeypatch.setattr(doctor, "_step", lambda device, kind: [one * float("nan") for one in exact(device, kind)])
    assert doctor.numerics(CPU).status == "broken"


def test_steps_that_do_not_repeat_are_noticed(monkeypatch):
    assert doctor.determinism(CPU).status == "ok"
    exact, calls = doctor._step, []

    def drifting(device, kind):
        calls.append(kind)
        return [one + 1e-7 * len(calls) for one in exact(CPU, kind)]

    monkeypatch.setattr(doctor, "_step", drifting)
    assert doctor.determinism(CPU).status == "broken"
    assert doctor.determinism(torch.device("meta")).status == "note"


def test_changed_files_and_no_checkout_are_noticed():
    for commit, status in (("0123abc", "ok"), ("0123abc-dirty", "note"), (None, "note")):
        assert doctor.checkout(commit).status == status


def test_more_threads_than_cores_are_noticed(monkeypatch):
    assert doctor.threads().status == "ok"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    assert doctor.threads().status == "note" and "OMP_NUM_THREADS" in doctor.threads().advice
