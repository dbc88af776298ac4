"""Checkpoints that resume to the bit, and export to Hugging Face format. safetensors and JSON only."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from . import paths
from .data.tokenizer import continuing, load_tokenizer, save_tokenizer, template_of
from .errors import UserError
from .models import load_model, max_length, objective_of_class
from .run_files import other_format, peer_folder, read_object, run_facts

VERSION = 2
WRITTEN = ("tensors.safetensors", "state.json")
CHECKSUMS = "checksums.json"  # their SHA-256


def save(
    folder: Path,
    step: int,
    models: list[PreTrainedModel],
    optimizers: list[list[Optimizer]],
    state: dict[str, Any],
    keep: int,
    averages: Sequence[PreTrainedModel] = (),
) -> Path:
    """Write ``folder/step-<step>/``: one safetensors file, one JSON file and the checksums of both, then drop all but
    the last `keep`.

    averages: of the models' weights, where they are kept.
    state: JSON types; what else the run must remember (peer weights, length of metrics.jsonl, ...).
    The folder gets its name when it is complete, so a half-written checkpoint is never seen.
    """
    tensors: dict[str, Tensor] = {"rng/torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        tensors["rng/mps"] = torch.mps.get_rng_state()
    for i, average in enumerate(averages, 1):
        for name, parameter in average.named_parameters():
            tensors[f"peer_{i}/average/{name}"] = parameter.contiguous()
    groups = []
    for i, (model, own) in enumerate(zip(models, optimizers, strict=True), 1):
        for name, parameter in model.named_parameters():
            tensors[f"peer_{i}/model/{name}"] = parameter.detach().contiguous()
        for o, optimizer in enumerate(own):
            document = optimizer.state_dict()
            groups.append(document["param_groups"])
            for index, entries in document["state"].items():
                for key, value in entries.items():
                    tensors[f"peer_{i}/optimizer_{o}/{index}/{key}"] = torch.as_tensor(value).contiguous()
    version, keys, gauss = random.getstate()
    numpy_name, numpy_keys, *numpy_rest = np.random.get_state()
    document = {
        "version": VERSION,
        "step": step,
        "state": state,
        "param_groups": groups,
        "rng": {
            "python": [version, list(keys), gauss],
            "numpy": [numpy_name, np.asarray(numpy_keys).tolist(), *numpy_rest],
        },
    }

    def write(temporary: Path) -> None:
        save_file(tensors, temporary / "tensors.safetensors")
        paths.write_json(temporary / "state.json", document)
        paths.write_json(temporary / CHECKSUMS, {name: paths.file_sha256(temporary / name) for name in WRITTEN})

    target = paths.write_folder(folder / f"step-{step:08d}", write)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}", path.name))


def restore(
    path: Path,
    models: list[PreTrainedModel],
    optimizers: list[list[Optimizer]],
    averages: Sequence[PreTrainedModel] = (),
) -> tuple[int, dict[str, Any]]:
    """Load a checkpoint into models and optimizers of the same shapes; returns (step, state).

    Raises UserError for a damaged checkpoint or one of another version, naming the file.
    """
    try:
        _check_whole(path)
        document = paths.read_json(path / "state.json")
        tensors = load_file(path / "tensors.safetensors")
        version = document["version"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:  # not memory that ran out
        raise _damaged(path, error) from None
    if version != VERSION:
        raise UserError(
            f"checkpoint {path} has version {version}, expected {VERSION}; delete the run folder and train again"
        )
    try:
        _apply(document, tensors, models, optimizers)
        with torch.no_grad():
            for i, average in enumerate(averages, 1):
                for name, parameter in average.named_parameters():
                    parameter.copy_(tensors[f"peer_{i}/average/{name}"])
        return document["step"], document["state"]
    except (KeyError, IndexError, TypeError, ValueError, StopIteration) as error:  # not the parts that a run has
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"checkpoint {path} cannot be read ({error}); expected the files as they were written; delete that folder to "
        "use the one before"
    )


def _apply(
    document: dict[str, Any],
    tensors: dict[str, Tensor],
    models: list[PreTrainedModel],
    optimizers: list[list[Optimizer]],
) -> None:
    """Put what a checkpoint holds into models, optimizers and random generators."""
    groups = iter(document["param_groups"])
    for i, (model, own) in enumerate(zip(models, optimizers, strict=True), 1):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"peer_{i}/model/{name}"])
        for o, optimizer in enumerate(own):
            prefix = f"peer_{i}/optimizer_{o}/"
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(prefix):
                    index, name = key.removeprefix(prefix).split("/")
                    state.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({"state": state, "param_groups": next(groups)})
    torch.set_rng_state(tensors["rng/torch"])
    if "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"])
    if "rng/mps" in tensors and torch.backends.mps.is_available():
        torch.mps.set_rng_state(tensors["rng/mps"])
    version, keys, gauss = document["rng"]["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numpy_keys, *rest = document["rng"]["numpy"]
    np.random.set_state((name, np.array(numpy_keys, dtype=np.uint32), *rest))


def _check_whole(path: Path) -> None:
    """Raises ValueError where a file of a checkpoint is not what was written: a changed bit would be trained on."""
    checksums = paths.read_json(path / CHECKSUMS)
    for name in WRITTEN:
        found = paths.file_sha256(path / name)
        if found != checksums[name]:
            raise ValueError(f"{name} has SHA-256 {found} and was written with {checksums[name]}")


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, card: str, packing: str = ""
) -> Path:
    """A folder that ``AutoModelFor...from_pretrained`` and ``AutoTokenizer.from_pretrained`` load without wmlkit.

    packing: `data.packing` of what the model was trained on, by which `wmlkit evaluate` reads running text. The
    tokenizer of a causal model leaves a text open, so that the model can go on with it.
    """
    causal = objective_of_class(type(model).__name__) == "clm"
    beside = continuing(tokenizer) if causal else tokenizer
    # for wmlkit: how training read text, and of a causal model the template there
    known: dict[str, Any] = {"packing": packing} if packing else {}
    known |= {"post_processor": template_of(tokenizer)} if causal else {}

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)
        for weights in temporary.glob("*.safetensors"):  # else for their owner's eyes only
            shutil.copymode(temporary / "config.json", weights)
        save_tokenizer(beside, temporary, max_length(model))
        paths.write_text(temporary / "README.md", card)
        if known:
            paths.write_json(paths.trained_on(temporary), known)

    return paths.write_folder(folder, write)


def export_peer(run_folder: Path, peer: str, to: Path) -> Path:
    """Copy an exported peer of a finished run to the folder `to`: number `peer`, or "best" on held-out text.

    Raises UserError for another `peer`, a `to` that exists, or a run whose files are damaged.
    """
    weights, objective = run_facts(run_folder)
    best = read_object(run_folder / "done.json", ("best_peer",))["best_peer"]
    if type(best) is not int:
        raise other_format(run_folder / "done.json", "number as 'best_peer'")
    if peer != "best" and not (peer.isdecimal() and 1 <= int(peer) <= len(weights)):
        raise UserError(f"--peer got {peer!r}; expected best or a number from 1 to {len(weights)}")
    if to.exists():
        raise UserError(f"{to} exists already; give --to a folder that does not, so that nothing is overwritten")
    source = peer_folder(run_folder, best if peer == "best" else int(peer))
    load_model(source, objective), load_tokenizer(source)  # what cannot be loaded is not handed on

    def write(temporary: Path) -> None:
        for file in source.iterdir():  # copytree's error for a full disk has no number
            shutil.copy(file, temporary)

    return paths.write_folder(to, write)
