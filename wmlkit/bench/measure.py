"""How benchmarks measure: interleaved times, the highest memory of a piece of work, the rate of a matrix product.

One document a benchmark: ``setting``, ``machine``, ``commit``, ``variants`` (name, median_ms, peak_mib, ...) and
``ratios``.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from tqdm import tqdm
from transformers import RobertaConfig, RobertaForMaskedLM

from .. import environment
from ..device import CLEAR_REFS, forget_peak_memory, peak_memory, process_memory
from ..errors import UserError
from ..shapes import Student

Run = Callable[[], Any]
MALLOC_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD


def describe(benchmark: str, result: dict[str, Any]) -> dict[str, Any]:
    """The document of a benchmark's `result`: its name, machine, load and commit beside what was measured."""
    cores, load = os.cpu_count(), os.getloadavg()[0]
    machine = f"{platform.machine()}, {platform.system()}, {cores} cores, load {load:.1f}, torch {torch.__version__}"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    known = {"setting": result["setting"], "machine": machine, "commit": environment.commit(), "benchmark": benchmark}
    return known | result


def check_repeats(repeats: int) -> None:
    """Raises UserError unless there is something to take a median of."""
    if repeats < 1:
        raise UserError(f"repeats is {repeats}; expected at least 1; give a larger one")


def interleaved(
    variants: Mapping[str, Run], repeats: int, device: torch.device, before: Callable[[str], Any] = lambda _: None
) -> dict[str, dict[str, float]]:
    """Median wall-clock and processor time of each variant, in ms, after one run that does not count.

    Variants take turns, so that a slow moment of the machine falls on all of them. `before` runs before each, with its
    name, off the clock.
    """
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in tqdm(range(repeats + 1), desc="measuring", unit="turn", disable=None, leave=False):
        for name, run in variants.items():
            before(name)
            _wait_for(device)
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            _wait_for(device)
            if repeat:
                wall[name].append(1000 * (time.perf_counter() - start))
                cpu[name].append(1000 * (time.process_time() - start_cpu))
    return {name: {"median_ms": statistics.median(wall[name]), "cpu_ms": statistics.median(cpu[name])} for name in wall}


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def backward(loss: torch.Tensor) -> float:
    """The backward pass of a loss, and its value."""
    loss.backward()
    return float(loss.detach())


def matrix_product(device: torch.device, precision: str) -> tuple[Run, float]:
    """(a square matrix product to time beside the rest, its floating-point operations).

    Large enough to fill what it runs on, in the `precision` (fp32 or bf16) of what is compared with it.
    """
    size, dtype = 8192 if device.type == "cuda" else 1024, torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(size, size, device=device, dtype=dtype), torch.randn(size, size, device=device, dtype=dtype)
    return lambda: a @ b, 2.0 * size**3


def peaks(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """`function(*arguments)`, which measures by `peak_above`, in a process of its own.

    There the allocator hands every larger block to the system as soon as it is free, so that memory that one variant
    left behind does not hide what the next one needs; it would slow down the clock, so nothing is timed there.
    """
    context, threads = get_context("spawn"), (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=threads) as pool:
        return pool.submit(function, *arguments).result()


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    return_memory_at_once()


def return_memory_at_once() -> None:
    """Let glibc take blocks of 64 KiB and more from the system one by one; elsewhere nothing."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(MALLOC_MMAP_THRESHOLD, 1 << 16)


def peak_above(run: Run, device: torch.device) -> float:
    """The most memory that `run` has beyond what was there before, in MiB.

    Of the card on CUDA. On Linux the resident memory of this process, whose record of its highest value is cleared
    first; elsewhere that record is of the whole process, and the result a lower bound.
    """
    gc.collect()
    if device.type != "cuda" and CLEAR_REFS.exists():
        ctypes.CDLL(None).malloc_trim(0)
    if not forget_peak_memory(device):
        before = peak_memory(device)
    elif device.type == "cuda":
        before = torch.cuda.memory_allocated(device) / 2**20
    else:
        before = process_memory("VmRSS")
    run()
    return peak_memory(device) - before


def warm_peaks(variants: Mapping[str, Run], device: torch.device) -> dict[str, float]:
    """`peak_above` of each variant, after one run of all, which makes what is made once."""
    for run in variants.values():
        run()
    return {name: peak_above(run, device) for name, run in variants.items()}


def plain_model(shape: Student, vocab_size: int, block_size: int) -> RobertaForMaskedLM:
    """A RoBERTa of `shape` without dropout, as transformers builds it; no tokenizer is needed."""
    return RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=vocab_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            max_position_embeddings=block_size + 2,
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def rows(times: Mapping[str, Mapping[str, float]], memory: Mapping[str, float]) -> list[dict[str, Any]]:
    """`variants` of a document; those without a measured memory have none."""
    return [
        {"name": name, **measured} | ({"peak_mib": memory[name]} if name in memory else {})
        for name, measured in times.items()
    ]
