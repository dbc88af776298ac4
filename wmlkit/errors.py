"""What a user is told: mistakes that can be mended, and a run that was asked to stop."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# What is told of a process that was ended from outside.
OUT_OF_MEMORY = (
    "the system does that where memory runs out: fewer processes take less (--set study.workers=1, replay.workers=1); "
    "run again: what is finished is kept"
)
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


@contextmanager
def unknown_text_told() -> Iterator[None]:
    """Raises UserError where a tokenizer without an unknown token meets text that it does not know; `tokenizers` raises
    a plain Exception then."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception or "unk" not in str(error).lower():
            raise
        raise UserError(
            f"the tokenizer has no token for text that it does not know ({error}); expected an unknown token, or bytes "
            "as tokens; name one in its tokenizer.json, or take text that it knows"
        ) from None
