"""A run folder has one process at a time; one that is asked to stop leaves a checkpoint; children end with parents."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from . import paths
from .errors import UserError

PATIENCE = 5.0  # seconds: a child of a killed process, a notebook's kernel above all, notices within a second or two
WATCHED = "WMLKIT_ENDS_WITH_STDIN"  # variable of a child process: it ends when its standard input does
LIVE = "WMLKIT_LIVE"  # variable of a kernel: "0" where nobody looks, see `wmlkit.live`


def end_with_parent() -> None:
    """In a child process that was started with `WATCHED`: end it when its parent does, even if that was killed.

    The parent holds the other end of standard input and writes nothing: it ends when the parent ends, in any way. The
    child may be killed at any moment, so it is not asked first. A child that lived on would hold its run folder.
    """

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin: a thread that waits for it keeps Python from ending
            pass
        os._exit(1)

    if os.environ.pop(WATCHED, None):  # not for the child's own children
        threading.Thread(target=watch, daemon=True).start()


def started_together() -> bool:
    """Whether a launcher (``accelerate launch``, ``torchrun``) started this process and others for the same runs."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder`, which need not exist, for this process. The kernel lets go of it when the process ends, killed or
    not. Raises UserError with the holder's process number and host where another process holds it for `PATIENCE`
    seconds more."""
    paths.make_folder(folder.parent)
    lock = FileLock(folder.with_name(f".{folder.name}.run.lock"))
    holder = folder.with_name(f".{folder.name}.run.json")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        known = paths.read_json(holder) if holder.is_file() else {"pid": "unknown", "host": "unknown"}
        raise UserError(
            f"{folder} is in use by process {known['pid']} on host {known['host']}; expected one process a run; "
            "wait for it or stop it, then run again"
        ) from None
    try:
        paths.write_json(holder, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def stop_signals(tell: Callable[[int], None] | None = None) -> Iterator[Callable[[], int]]:
    """Within the block SIGTERM, Ctrl-C and the end of the terminal (SIGHUP) set a flag instead of ending the process: a
    function that returns the signal's number, 0 before. A second Ctrl-C interrupts at once; SIGHUP that the process
    ignores, as under nohup, stays ignored. Elsewhere than in the main thread, where Python allows no handlers, the
    block changes nothing. tell: called with the number of each signal that sets the flag, within the handler.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in received:
            raise KeyboardInterrupt
        received.append(number)
        if tell is not None:
            tell(number)

    in_main = threading.current_thread() is threading.main_thread()
    watched = [signal.SIGTERM, signal.SIGINT] if in_main else []
    if in_main and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        watched.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in watched}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
