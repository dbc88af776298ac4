"""What a user is told: mistakes that can be mended, and a run that was asked to stop."""

from __future__ import annotations

import errno
import signal

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, quota, limit of a file's size


class UserError(Exception):
    """What was found, what was expected, what to do: one sentence. The command line exits with status 2."""


class Stopped(Exception):
    """A signal asked a run to stop; it did, with a checkpoint. The command line exits with status 128 + signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number

    @property
    def status(self) -> int:
        """Exit status, as a shell gives it to a process that a signal ended."""
        return 128 + self.number


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class where it has none: what one sentence can quote."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def signal_name(number: int) -> str:
    """``15`` -> ``"SIGTERM"``."""
    return signal.Signals(number).name


def disk_is_full(error: BaseException) -> bool:
    """Whether `error` says that there is no room to write; safetensors has an error of its own for that."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return type(error).__name__ == "SafetensorError" and any(f"os error {number})" in str(error) for number in _FULL)
