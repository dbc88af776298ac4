"""A real JupyterLab with one of the notebooks, and the browser that opens it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wmlkit import paths

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def jupyter_lab(root: Path, notebook: str, parameters: Mapping[str, str]) -> Iterator[str]:
    """JupyterLab in `root` with a copy of `notebook` whose `parameters` have these values; gives its address."""
    text = (paths.notebooks() / f"{notebook}.ipynb").read_text(encoding="utf-8")
    for name, value in parameters.items():
        text, count = re.subn(rf'"{name} = \\".*?\\"', lambda _, n=name, v=value: f'"{n} = \\"{v}\\"', text)
        assert count == 1, name
    (root / f"{notebook}.ipynb").write_text(text, encoding="utf-8")
    token = secrets.token_hex(16)
    home = root / ".home"  # nobody's settings
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(paths.REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_DATA_DIR": str(home / "data"),
        "IPYTHONDIR": str(home / "ipython"), "JUPYTERLAB_SETTINGS_DIR": str(home / "lab"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--allow-root",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}", "--LabApp.news_url=",
        "--KernelManager.transport=ipc",
    ]  # fmt: skip
    home.mkdir()
    log = home / "lab.log"
    # The kernels' sockets lie there, files that no other process can take; the path of such a file has to be short.
    with tempfile.TemporaryDirectory(dir="/tmp") as runtime, log.open("w") as file:
        environment["JUPYTER_RUNTIME_DIR"] = runtime
        server = subprocess.Popen(command, cwd=root, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            port = _port_of(server, Path(runtime), log)
            yield f"http://127.0.0.1:{port}/lab/tree/{notebook}.ipynb?token={token}"
        finally:
            server.terminate()
            server.wait(timeout=30)


def run_all_cells(page: Any) -> None:
    """Open the menu Run and choose Run All Cells, as a person does."""
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def _port_of(server: subprocess.Popen, runtime: Path, log: Path) -> int:
    """The port that JupyterLab chose, once it answers there: one chosen here could be taken before it listens."""
    for _ in range(300):
        try:
            place = json.loads((runtime / f"jpserver-{server.pid}.json").read_text())
            urllib.request.urlopen(f"{place['url']}api?token={place['token']}", timeout=1)
            return int(place["port"])
        except (OSError, ValueError):  # ValueError: half-written
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not answer: {log.read_text()[-2000:]}")
