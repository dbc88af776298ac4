"""Device and precision, with the reason for them; what processes that train together say to one another."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from .errors import OUT_OF_MEMORY, UserError

CLEAR_REFS = Path("/proc/self/clear_refs")  # of Linux: a 5 written there clears the record of the highest memory

Result = TypeVar("Result")


@dataclass(frozen=True)
class Device:
    """Where and how a run computes. `reason` is one line for the log."""

    accelerator: Accelerator
    device: torch.device
    precision: str  # "fp32" or "bf16": of the forward pass; weights and softmax stay in float32
    reason: str
    together: bool = True  # False: this process works for itself, whatever others there are

    @property
    def name(self) -> str:
        """What results are told apart by: "cpu", "mps", or "cuda" with the card."""
        on_cuda = self.device.type == "cuda"
        return f"cuda, {torch.cuda.get_device_name(self.device)}" if on_cuda else str(self.device)

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.accelerator.num_processes if self.together else 1

    @property
    def index(self) -> int:
        """Which of them this is, from 0; number 0 writes the files and talks."""
        return self.accelerator.process_index if self.together else 0

    @property
    def is_main(self) -> bool:
        """Whether this is process 0."""
        return self.index == 0

    def main_first(self) -> AbstractContextManager[None]:
        """Process 0 goes through the block before the others."""
        return self.accelerator.main_process_first() if self.together else nullcontext()

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.processes == 1:
            return number
        return int(self.accelerator.gather(torch.tensor([number], device=self.device)).max())

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over the processes, in one exchange a data type."""
        found = list(tensors)
        if self.processes == 1:
            return found
        for kind in dict.fromkeys(tensor.dtype for tensor in found):
            places = [i for i, tensor in enumerate(found) if tensor.dtype == kind]
            flat = self.accelerator.reduce(torch.cat([found[i].flatten() for i in places]), "sum")
            for i, piece in zip(places, flat.split([found[i].numel() for i in places]), strict=True):
                found[i] = piece.view_as(found[i])
        return found

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.processes > 1:
            self.accelerator.wait_for_everyone()

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision where `precision` asks for it.

        torch's own: accelerate has one precision a process, and a notebook trains in several.
        """
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()


def setup(precision: str = "auto", threads: int | None = None, together: bool = True) -> Device:
    """Choose device and precision: CUDA, else Apple's MPS, else CPU.

    bf16 only on CUDA cards that compute in it: on MPS and CPU it is slow or wrong in places, so `auto` is fp32
    there. On a machine without a card deterministic algorithms are asked for, so the same seed gives the same
    bytes on a CPU; CUDA has none for attention and MPS none for indexing, and those of the rest cost time. Processes
    that ``accelerate launch`` started find one another here, unless not `together`.
    """
    if threads:
        torch.set_num_threads(threads)
    # use_deterministic_algorithms does the same and tells the compiler, which takes it a second to import
    torch.set_deterministic_debug_mode("default" if torch.accelerator.is_available() else "warn")
    # cuDNN's attention gives NaN with a mask at some lengths (pytorch issue 196678) and plans anew for each length
    torch.backends.cuda.enable_cudnn_sdp(False)
    # on by default with the line above: a pass over every new tensor, to catch reads of what was never written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    chosen = ("bf16" if bf16 else "fp32") if precision == "auto" else precision
    # told of a machine without a card, several processes on it find one another
    alone_with_cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=alone_with_cpu, mixed_precision="no")  # see `Device.autocast`
    device = accelerator.device
    why = f"{device.type} is the best device found"
    if precision != "auto":
        why += f", {chosen} as configured"
    elif chosen == "bf16":
        why += ", bf16 because the card supports it"
    else:
        why += ", fp32 because bf16 is only used on CUDA cards that support it"
    return Device(accelerator, device, chosen, why, together)


def leave() -> None:
    """Leave the group of processes that trained together, if there is one: its threads can abort a process that ends
    while they run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def best_device() -> torch.device:
    """What `setup` chooses where one process works alone: CUDA, else Apple's MPS, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`: to CUDA from pinned memory, so that nobody waits for the copy.

    To MPS the copy is waited for: torch may else read memory that was given back (pytorch issues 139550 and 189690).
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)  # a view that repeats cannot be pinned
    return tensor.to(device)


def forget_peak_memory(device: torch.device) -> bool:
    """Let `peak_memory` begin anew, so that it is not that of an earlier run of this process; whether it does. Only of
    the card and, on Linux, of the process, whose record holds what the allocator kept from before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if CLEAR_REFS.exists():
        with suppress(OSError):  # a container may forbid it
            CLEAR_REFS.write_text("5")
            return True
    return False


def peak_memory(device: torch.device) -> float:
    """Peak memory in MiB since `forget_peak_memory`: of the card on CUDA, else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if CLEAR_REFS.exists():
        return process_memory("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB elsewhere


def process_memory(name: str) -> float:
    """Of this process on Linux, MiB: resident now ("VmRSS"), or at most ("VmHWM")."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def side_by_side(function: Callable[..., Result], calls: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """What `function` gives for each tuple of arguments, in their order, from `workers` processes (0, 1: this one).

    Raises UserError where one of them is ended from outside.
    """
    if workers <= 1:
        yield from (function(*arguments) for arguments in calls)
        return
    # spawn: a forked child would share this process's threads, and CUDA refuses it
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(function, *arguments) for arguments in calls]
        try:
            yield from (future.result() for future in futures)
        except BrokenProcessPool:
            raise UserError(
                f"one of {workers} processes side by side was ended from outside; {OUT_OF_MEMORY}"
            ) from None
