"""Kernels that start ahead of their notebooks: what they know, and that none lives on."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import tempfile
import time
from contextlib import closing

import psutil
import pytest

from tests.test_notebooks_runner import SAVE, make, write
from wmlkit import kernels
from wmlkit.errors import UserError
from wmlkit.notebooks import run_notebook

# A module of the standard library that neither ipykernel nor wmlkit imports.
MODULE = "wave"
FACTS = f"""
import json, os, pathlib, sys
facts = {{"pid": os.getpid(), "cwd": os.getcwd(), "imported": "{MODULE}" in sys.modules, "named": "{MODULE}" in dir()}}
facts["cells"] = len(In) - number
pathlib.Path(result).write_text(json.dumps(facts))
"""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def running() -> list[int]:
    """Process numbers of this process's kernels."""
    return [one.pid for one in psutil.Process().children() if alive(one.pid) and "ipykernel" in " ".join(one.cmdline())]


def ask(folder, kernel) -> dict:
    result = folder / "result.json"
    given = {"number": 1, "result": result}
    run_notebook(write(folder, make(FACTS)), folder / "out" / "01_test.ipynb", given, [result], kernel=kernel)
    return json.loads(result.read_text())


def test_each_kernel_is_there_before_its_turn_and_gone_after_it(tmp_path):
    seen = []
    with closing(kernels.one_ahead(3, tmp_path, [MODULE])) as ahead:
        for number, kernel in enumerate(ahead):
            assert kernel.provisioner.pid in running() and not any(alive(pid) for pid in seen)
            assert len(running()) == (2 if number < 2 else 1)
            facts = ask(tmp_path, kernel)
            assert facts["pid"] == kernel.provisioner.pid and facts["cwd"] == str(tmp_path)
            # Imported, but a notebook that forgets to import it does not see it, and its cells are numbered from 1:
            # the parameters, those given, this one.
            assert facts["imported"] and not facts["named"] and facts["cells"] == 3
            assert alive(facts["pid"])  # whoever started it ends it
            seen.append(facts["pid"])
    assert len(set(seen)) == 3 and not any(alive(pid) for pid in seen)


@pytest.mark.skipif(os.name != "posix", reason="sockets that are files need POSIX")
def test_a_kernel_waits_for_no_port_that_another_process_can_take(tmp_path):
    with kernels.started(tmp_path) as kernel:
        assert ask(tmp_path, kernel)["pid"] == kernel.provisioner.pid
        folder = pathlib.Path(kernel.ip).parent
        assert folder.stat().st_mode & 0o077 == 0 and sum(path.is_socket() for path in folder.iterdir()) == 5
    assert not folder.exists()


@pytest.mark.skipif(os.name != "posix", reason="elsewhere every kernel is one of ports")
def test_where_the_path_is_too_long_for_a_socket_ports_are_used_and_encrypted(tmp_path, monkeypatch, capfd):
    far = tmp_path / ("long" * 30)
    far.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(far))
    with kernels.started(tmp_path) as kernel:
        assert ask(tmp_path, kernel)["pid"] == kernel.provisioner.pid
        assert kernel.transport == "tcp" and kernel.curve_publickey
    assert "without encryption" not in capfd.readouterr().err


def test_a_loop_that_is_left_leaves_no_kernel(tmp_path):
    with pytest.raises(UserError, match="failed in cell 4"), closing(kernels.one_ahead(3, tmp_path, [])) as ahead:
        kernel = next(ahead)
        started = running()
        assert len(started) == 2
        run_notebook(write(tmp_path, make("number, result", "1 / 0")), tmp_path / "out.ipynb", {}, kernel=kernel)
    assert not any(alive(pid) for pid in started)


def test_a_kernel_that_died_while_it_waited_is_named(tmp_path):
    given = {"number": 1, "result": str(tmp_path / "result.json")}
    with kernels.started(tmp_path) as kernel:
        os.kill(kernel.provisioner.pid, signal.SIGKILL)
        while alive(kernel.provisioner.pid):
            time.sleep(0.01)
        with pytest.raises(UserError, match="the kernel of 01_test.ipynb died; .* Probably memory"):
            run_notebook(write(tmp_path, make(SAVE)), tmp_path / "out.ipynb", given, kernel=kernel)
    assert not (tmp_path / "out.ipynb").exists()
