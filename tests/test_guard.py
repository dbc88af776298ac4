"""A run that is asked to stop, a run folder that is in use, a disk that is full: nothing is lost, and one sentence."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from compare import rows, weights

from wmlkit import checkpoint, guard, train
from wmlkit.config import load_preset
from wmlkit.errors import Stopped, UserError, disk_is_full
from wmlkit.guard import exclusive, stop_signals


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train.run(load_preset("smoke"), tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_the_run_ends_in_the_same_bytes(number, undisturbed, tmp_path):
    def ask(row):
        if row["step"] == 4:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"{number.name} at step 4 of 12, with a checkpoint; run the same") as stop:
        train.run(load_preset("smoke"), tmp_path, progress=ask)
    assert stop.value.status == 128 + number and signal.getsignal(number) == before
    folder = train.run_folder(load_preset("smoke"), tmp_path)
    assert not (folder / "done.json").exists()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000004"]
    assert train.run(load_preset("smoke"), tmp_path) == folder
    assert weights(folder) == weights(undisturbed) and rows(folder) == rows(undisturbed)


@pytest.mark.parametrize("moment", ["last step", "last checkpoint"])
def test_a_signal_at_the_end_of_training_is_not_lost(moment, undisturbed, tmp_path, monkeypatch):
    """A study would train its next run, until the cluster kills it."""

    def ask(*step):
        if 12 in step:
            os.kill(os.getpid(), signal.SIGTERM)

    save = checkpoint.save
    if moment == "last checkpoint":
        monkeypatch.setattr(checkpoint, "save", lambda to, step, *more: (ask(step), save(to, step, *more)))
    with pytest.raises(Stopped, match="SIGTERM at step 12 of 12, with a checkpoint"):
        train.run(load_preset("smoke"), tmp_path, progress=(lambda row: ask(row["step"])) if "step" in moment else None)
    monkeypatch.undo()
    folder = train.run(load_preset("smoke"), tmp_path)
    assert weights(folder) == weights(undisturbed) and rows(folder) == rows(undisturbed)


def test_a_second_interrupt_does_not_wait():
    with stop_signals() as asked:
        assert asked() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked() == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("before", "seen"), [(signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, 0)])
def test_the_end_of_a_terminal_stops_too_but_not_under_nohup(before, seen):
    told = []
    found = signal.signal(signal.SIGHUP, before)  # whatever this very process was started under
    try:
        with stop_signals(told.append) as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert asked() == seen and told == ([seen] if seen else [])
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, found)


def test_other_threads_have_no_signals():
    seen = []

    def work():
        with stop_signals() as asked:
            seen.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]


def test_a_run_folder_in_use_names_its_process(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "PATIENCE", 0.0)
    folder = tmp_path / "run"
    program = (
        "import sys; from pathlib import Path; from wmlkit.guard import exclusive\n"
        f"with exclusive(Path({str(folder)!r})):\n print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    message = f"in use by process {holder.pid} on host .*; expected one process a run"
    with pytest.raises(UserError, match=message), exclusive(folder):
        raise AssertionError("both hold it")
    holder.kill()
    holder.communicate()
    with exclusive(folder):  # the kernel let go of it
        pass
    assert [path.name for path in tmp_path.iterdir()] in ([], [".run.run.lock"])


def test_a_run_in_use_is_refused_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "PATIENCE", 0.0)
    config = load_preset("smoke")
    folder = train.run_folder(config, tmp_path)
    with exclusive(folder), pytest.raises(UserError, match="is in use by process"):
        train.run(config, tmp_path)
    assert not folder.exists()


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_later(undisturbed, tmp_path):
    """A limit on the size of files stands for the full disk: a checkpoint is far larger than all else written here."""
    config = load_preset("smoke", {"train.checkpoint_every": 3})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(row):
        if row["step"] == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    try:
        with pytest.raises(UserError, match="there is no room left to write .* goes on from step-00000003"):
            train.run(config, tmp_path, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder = train.run_folder(config, tmp_path)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000003"]
    train.run(config, tmp_path)
    assert weights(folder) == weights(undisturbed) and rows(folder) == rows(undisturbed)


def test_which_errors_mean_a_full_disk():
    assert disk_is_full(OSError(28, "No space left on device"))
    assert not disk_is_full(OSError(13, "Permission denied")) and not disk_is_full(ValueError("(os error 28)"))


PARENT = """
import os, subprocess, sys
from wmlkit.guard import WATCHED
program = (
    "import time; from wmlkit.guard import end_with_parent; end_with_parent(); print('up', flush=True); time.sleep(60)"
)
child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, env=os.environ | {WATCHED: "1"})
print(child.pid, flush=True)
child.wait()
"""


def test_the_children_of_a_killed_study_do_not_live_on():
    """They would hold their run folders, and the study that is started again would be refused."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "up\n"
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not alive(child):
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child lives on")


def test_a_child_with_a_parent_ends_as_always():
    program = "import sys; from wmlkit.guard import end_with_parent; end_with_parent(); sys.exit(7)"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | {guard.WATCHED: "1"}) as child:
        child.wait(60)  # while the other end of its standard input is open
        assert child.returncode == 7


def alive(pid):
    """A child whose parent is gone may stay as a zombie where nobody collects it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
