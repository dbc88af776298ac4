"""Kernels for notebooks that nobody looks at: this very Python, with this very wmlkit, ended when they were used."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from . import paths
from .errors import UserError
from .guard import LIVE


@contextmanager
def started(cwd: Path, imports: Sequence[str] = ()) -> Iterator[Any]:
    """The manager of a kernel that runs in the folder `cwd`; the kernel is ended with the block.

    imports: modules that the kernel imports before it listens. They leave no name in the notebook's namespace, so a
    notebook still has to import what it uses. Raises UserError where this Python has no kernel.
    """
    from jupyter_client.utils import run_sync

    arguments = ["--HistoryManager.hist_file=:memory:"]  # as papermill's client starts one
    if imports:
        lines = [f"__import__({name!r})" for name in imports]
        arguments.append(f"--IPKernelApp.exec_lines={lines!r}")
    with tempfile.TemporaryDirectory(prefix="wmlkit-", ignore_cleanup_errors=True) as folder:
        manager = _manager(os.path.join(folder, "kernel"))
        run_sync(manager.start_kernel)(cwd=str(cwd), extra_arguments=arguments)
        try:
            yield manager
        finally:  # papermill leaves a kernel running that it did not make, with all its memory
            run_sync(manager.shutdown_kernel)(now=True)


def one_ahead(count: int, cwd: Path, imports: Sequence[str]) -> Generator[Any, None, None]:
    """`count` kernels one after the other, each `started` while the one before it is in use.

    Importing torch and transformers takes longer than most notebooks need, and a notebook that trains nothing uses one
    core. Close this generator where it may not be read to its end: that ends the kernels.
    """
    with ExitStack() as waiting:
        following = waiting.enter_context(started(cwd, imports))
        for left in reversed(range(count)):
            with waiting.pop_all():
                current = following
                if left:
                    following = waiting.enter_context(started(cwd, imports))
                yield current


def _manager(address: str) -> Any:
    """A kernel that is this interpreter, whatever kernels are registered on the machine under the name python3.

    address: where its sockets lie, ``<address>-1`` to ``<address>-5``, in a folder that only this user can enter.
    """
    if importlib.util.find_spec("ipykernel") is None:
        raise UserError(
            f"the Python at {sys.executable} has no Jupyter kernel; expected the package ipykernel: "
            "install it with `make setup` or `pip install ipykernel`"
        )
    import zmq
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    # Without any folder to look in there is only ipykernel's own specification, which names sys.executable.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    # A TCP port is chosen by the manager and bound by the kernel seconds later, when any process may have it
    # ("Address already in use"). Sockets that are files have no such gap, and other users cannot read along.
    if zmq.has("ipc") and len(f"{address}-1".encode()) <= zmq.IPC_PATH_MAX_LEN:
        manager.transport, manager.ip = "ipc", address
    elif zmq.has("curve"):  # on Windows, or for a very long path; the kernel does not warn that they can
        manager.transport_encryption = "auto"
    environment = {
        # Nothing is fetched while notebooks run, unless the user says so.
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        # Nobody looks: text instead of pictures that change, and no widgets.
        LIVE: "0",
        # No warning on standard error about a debugger that nobody uses.
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    if "site-packages" not in paths.PACKAGE.parts:
        # A checkout that is not installed is found from any working directory.
        environment["PYTHONPATH"] = os.pathsep.join(
            part for part in (str(paths.PACKAGE.parent), os.environ.get("PYTHONPATH", "")) if part
        )
    specification = manager.kernel_spec
    assert specification is not None  # it has a name
    specification.env.update(environment)
    return manager
