"""What may go wrong on this machine, looked for before it does: one finding a subject, each with what to do.

A finding is ``ok``, a ``note`` (works, but worth knowing) or ``broken`` (runs will fail or give wrong numbers). What
needs transformers is imported late: a broken installation has to be found, not to stop the search for it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional as F

from . import paths
from .config import preset_names

if TYPE_CHECKING:
    from .device import Device

Status = Literal["ok", "note", "broken"]

FREE_GIB = 1.0  # a nursery run with its figures takes about 0.1, a prepared 100M-word corpus about 1
ERROR = 1e-4  # of float32 against float64, relative to the largest value; TF32 and bf16 are some hundred times worse


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, what was found, and what to do about it."""

    subject: str
    status: Status
    found: str
    advice: str = ""


def examine(out: Path) -> dict[str, Any]:
    """All findings about this machine for runs below `out`, and the facts that a run notes, as JSON types.

    Where the installation itself is broken, what needs it is not looked at and the facts are missing.
    """
    findings = [python(), packages(), torchvision(), kernel(), threads(), disk(out)]
    facts: dict[str, Any] = {}
    if all(one.status != "broken" for one in findings[:3]):
        from . import environment
        from .device import setup

        device = setup()
        findings += [chosen_device(device), numerics(device.device), determinism(device.device)]
        findings.append(checkout(environment.commit()))
        facts = environment.document(device)
    return facts | {"presets": preset_names(), "findings": [asdict(one) for one in findings]}


def python() -> Finding:
    """The Python of an environment made for this; an older one than 3.11 does not get here."""
    found = f"Python {platform.python_version()} in {sys.prefix}"
    if sys.prefix == sys.base_prefix and not os.environ.get("CONDA_PREFIX"):
        advice = "no virtual environment is active; `make setup` makes one with the exact versions in .venv"
        return Finding("python", "note", found, advice)
    return Finding("python", "ok", found)


def packages(needed: list[str] | None = None) -> Finding:
    """Every package that wmlkit requires is there, in a version within its bounds."""
    from transformers.utils.versions import require_version

    try:
        needed = requires("wmlkit") or [] if needed is None else needed
    except PackageNotFoundError:
        advice = "install it, so that its requirements are known: pip install -c constraints.txt -e ."
        return Finding("packages", "note", "wmlkit is imported from a folder and not installed", advice)
    wrong = []
    for requirement in needed:
        if "extra ==" in requirement:
            continue
        try:
            require_version(requirement)
        except (ImportError, PackageNotFoundError, ValueError):
            found = _version(re.split(r"[^\w.-]", requirement)[0])
            if found.partition("+")[0] != requirement.partition("==")[2]:  # 2.13.0+cpu is 2.13.0, as pip sees it
                wrong.append(f"{requirement} (found {found})")
    if wrong:
        return Finding("packages", "broken", ", ".join(wrong), "pip install -c constraints.txt -e '.[dev]'")
    known = ", ".join(f"{name} {_version(name)}" for name in ("wmlkit", "torch", "transformers", "tokenizers"))
    return Finding("packages", "ok", f"{known}; all requirements are met")


def torchvision() -> Finding:
    """A torchvision of another torch makes transformers fail in places that do not name it."""
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "ok", "not installed, and not needed")
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a mismatch shows as RuntimeError, OSError or ImportError
        found = f"torchvision {_version('torchvision')} does not load with torch {torch.__version__}: {error}"
        advice = "it was built for another torch, and wmlkit does not need it: pip uninstall torchvision"
        return Finding("torchvision", "broken", found, advice)
    return Finding("torchvision", "ok", f"torchvision {_version('torchvision')} loads")


def kernel() -> Finding:
    """The kernel that JupyterLab calls python3 is this very Python."""
    if importlib.util.find_spec("ipykernel") is None:
        return Finding("kernel", "broken", f"{sys.executable} has no Jupyter kernel", "pip install ipykernel")
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        command = ""
    # Jupyter itself puts its own Python in the place of these names.
    own = command in ("python", "python3", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    found = sys.executable if own else shutil.which(command) or command
    if found and Path(found).absolute() == Path(sys.executable).absolute():
        return Finding("kernel", "ok", f"python3 is {found}")
    advice = (
        "`wmlkit reproduce` uses this Python anyhow; for notebooks opened by hand: "
        f"{sys.executable} -m ipykernel install --sys-prefix --name python3"
    )
    where = f"the kernel python3 is {found}" if found else "no kernel is called python3"
    return Finding("kernel", "note", f"{where}, this Python is {sys.executable}", advice)


def chosen_device(device: Device) -> Finding:
    """Device and precision, with the reason."""
    found = f"{device.name}, {device.precision}: {device.reason}"
    if device.device.type == "mps":
        advice = "fine for notebooks; make tables that you publish on a CPU or a CUDA card, and say on which"
        return Finding("device", "note", found, advice)
    if device.device.type == "cpu" and torch.version.cuda:
        advice = "torch was built for CUDA and finds no card; on a machine with one, look at `nvidia-smi`"
        return Finding("device", "note", found, advice)
    return Finding("device", "ok", found)


def threads() -> Finding:
    """How many threads torch takes, and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{torch.get_num_threads()} threads of torch on {cores} cores"
    if torch.get_num_threads() > cores:
        advice = f"more threads than cores slow each other down: set OMP_NUM_THREADS={cores}"
        return Finding("threads", "note", found, advice)
    return Finding("threads", "ok", found)


def disk(out: Path) -> Finding:
    """Room and the right to write where runs go."""
    place = next(folder for folder in (out, *out.parents) if folder.exists())
    free = shutil.disk_usage(place).free / 2**30
    found = f"{free:.1f} GiB free at {out}"
    if not place.is_dir():
        advice = "it or a folder above it has the name of a file: give another folder with --out, or set WMLKIT_OUT"
        return Finding("disk", "broken", f"{place} is a file, so runs cannot go to {out}", advice)
    if not os.access(place, os.W_OK):
        advice = "give another folder with --out, or set WMLKIT_OUT"
        return Finding("disk", "broken", f"{place} cannot be written to", advice)
    if free < FREE_GIB:
        advice = f"under {FREE_GIB:g} GiB a run may stop half-way: make room, or give another folder with --out"
        return Finding("disk", "broken" if free < FREE_GIB / 10 else "note", found, advice)
    return Finding("disk", "ok", found)


def numerics(device: torch.device) -> Finding:
    """A product of matrices, a log-softmax and their gradient in float32 on the device, against float64 on the CPU."""
    error = numeric_error(device)
    found = f"float32 on {device} differs from float64 by {error:.1e} of the largest value"
    if error == error and error < ERROR:  # a NaN is not equal to itself
        return Finding("numerics", "ok", found)
    advice = (
        f"expected under {ERROR:g}: do not trust numbers of this device; update torch or its driver, or use the CPU"
    )
    return Finding("numerics", "broken", found, advice)


def numeric_error(device: torch.device) -> float:
    """Largest difference between float32 on `device` and float64 on the CPU, relative to the largest value."""
    found, expected = _step(device, torch.float32), _step(torch.device("cpu"), torch.float64)
    return max(
        float((a.cpu().double() - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)
    )  # fmt: skip


def determinism(device: torch.device) -> Finding:
    """The same step twice gives the same bits."""
    first, second = _step(device, torch.float32), _step(device, torch.float32)
    if all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        return Finding("determinism", "ok", f"the same step on {device} twice gives the same bits")
    found = f"the same step on {device} twice gives different bits"
    advice = "runs on this device do not repeat to the bit; compare arms over several seeds, or use the CPU"
    return Finding("determinism", "broken" if device.type == "cpu" else "note", found, advice)


def checkout(commit: str | None) -> Finding:
    """Runs note the commit that made them; outside a checkout or with changed files they cannot."""
    if commit is None:
        advice = (
            "runs will not say which commit made them; use a git checkout for results that you publish, and tell git "
            f"of one that belongs to another user: git config --global --add safe.directory {paths.REPOSITORY}"
        )
        return Finding("commit", "note", f"git knows no commit of {paths.PACKAGE}", advice)
    if commit.endswith("-dirty"):
        return Finding("commit", "note", f"{commit}: files are changed", "commit them before runs that you publish")
    return Finding("commit", "ok", commit)


def _step(device: torch.device, kind: torch.dtype) -> list[torch.Tensor]:
    """Log-probabilities of a small linear layer and the gradient of their cross-entropy, from fixed numbers."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 96, generator=generator, dtype=torch.float64).to(kind).to(device)
    weight = torch.randn(96, 512, generator=generator, dtype=torch.float64).to(kind).to(device).requires_grad_()
    targets = torch.randint(512, (64,), generator=generator).to(device)
    log_p = F.log_softmax(inputs @ weight / 96**0.5, dim=-1)
    (slope,) = torch.autograd.grad(F.nll_loss(log_p, targets), weight)
    return [log_p.detach(), slope]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
