"""Device and precision, with the reason for them; nobody else asks torch what hardware there is."""

from __future__ import annotations

import resource
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from accelerate import Accelerator


@dataclass(frozen=True)
class Device:
    """Where and how a run computes. `reason` is one line for the log."""

    accelerator: Accelerator
    device: torch.device
    precision: str  # "fp32" or "bf16": of the forward pass; weights and softmax stay in float32
    reason: str

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision where `precision` asks for it."""
        return self.accelerator.autocast()


def setup(precision: str = "auto", threads: int | None = None) -> Device:
    """Choose device and precision: CUDA, else Apple's MPS, else CPU.

    bf16 only on CUDA cards that have it: on MPS and CPU it is slow or wrong in places, so `auto` is fp32
    there. Deterministic algorithms are asked for, so the same seed gives the same bytes on a CPU.
    """
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # on by default with the line above: a pass over every new tensor, to catch reads of what was never written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    chosen = ("bf16" if bf16 else "fp32") if precision == "auto" else precision
    accelerator = Accelerator(mixed_precision="bf16" if chosen == "bf16" else "no")
    device = accelerator.device
    why = f"{device.type} is the best device found"
    if precision != "auto":
        why += f", {chosen} as configured"
    elif chosen == "bf16":
        why += ", bf16 because the card supports it"
    else:
        why += ", fp32 because bf16 is only used on CUDA cards that support it"
    return Device(accelerator, device, chosen, why)


def peak_memory(device: torch.device) -> float:
    """Peak memory in MiB: of the card on CUDA, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB on Linux
