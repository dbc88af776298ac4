"""The teacher of `distill` and of mutual learning with a frozen teacher: where it comes from, checked and frozen.

By default it is the base model, trained like any run on the same text with the same tokenizer, order of batches and
number of updates (arm `teacher`, one run folder a seed). With ``mutual.teacher_size = "peer"`` it has the shape of peer
1 instead: what `distill` then gains is not owed to a larger model; `mutual.teacher_steps` gives it a number of updates
of its own. `mutual.teacher` names a Hugging Face model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from . import paths
from .config import Config
from .data.tokenizer import load_tokenizer, tokenizer_hash
from .device import Device
from .errors import UserError, first_line
from .forward import AtPositions
from .identity import digest
from .models import (
    body_parameters,
    declared_architecture,
    hidden_states,
    lm_logits,
    load_model,
    max_length,
    objective_of_class,
    window_length,
)
from .run_files import peer_folder
from .settings import MutualConfig, SearchConfig

# Weights as safetensors, configuration and tokenizer: never code, never pickles
FILES = ("config.json", "model.safetensors", "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt")


@dataclass(frozen=True)
class Teacher:
    """A frozen model, its FLOP a token of a forward pass, and what done.json says of it (`record`)."""

    module: AtPositions
    flop_per_token: float
    record: dict[str, Any]


def teacher_config(config: Config) -> Config:
    """The run that trains the teacher of `config`: one model with the same data, seed and training settings, for
    `mutual.teacher_steps` steps where those are given.

    Nothing else of `config` shapes it but, for a teacher of a peer's size, the search; so all arms, numbers of peers
    and values of alpha share one teacher a seed.
    """
    size = config.mutual.teacher_size
    own = Config(
        preset=config.preset,
        data=config.data,
        model=config.model,
        search=config.search if size == "peer" else SearchConfig(),
        train=config.train,
        # The name is that of the run that was asked for
        track=config.track if config.mutual.arm == "teacher" else config.track.model_copy(update={"run_name": None}),
        mutual=MutualConfig(arm="teacher", num_peers=1, teacher_size=size),
        evaluate=config.evaluate,
    )
    return own.updated({"train.steps": config.mutual.teacher_steps or config.train.steps})


@lru_cache
def given_folder(name: str) -> Path:
    """The folder of `mutual.teacher`: a local one, or what the Hugging Face hub (or its cache) holds under that id."""
    if (folder := paths.given(name)).is_dir():
        return folder
    if paths.is_place(name):
        raise UserError(f"there is no teacher folder {name!r}; give mutual.teacher a folder or an id of the hub")
    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # no network, no such model, no right to it: each a class of its own
        raise UserError(
            f"the teacher {name!r} could not be fetched ({first_line(error)}); expected a folder or an id of the hub; "
            "check mutual.teacher"
        ) from None


def given_weights(name: str, key: str) -> Path:
    """Weights of the teacher `name`, which setting `key` gives. Raises UserError where it has none as safetensors."""
    weights = given_folder(name) / "model.safetensors"
    if not weights.is_file():
        raise UserError(
            f"the teacher {name!r} has no model.safetensors; wmlkit loads weights from such a file only, because other "
            f"formats can run code: convert the model or choose another for {key}"
        )
    return weights


def given_hash(config: Config) -> str:
    """SHA-256 of the model that `mutual.teacher` names, part of a run's identity; empty for the trained teacher."""
    if not config.mutual.uses_teacher or config.mutual.teacher is None:
        return ""
    folder = given_weights(config.mutual.teacher, "mutual.teacher").parent
    names = ("config.json", "tokenizer.json", "model.safetensors")
    return digest({name: paths.file_sha256(folder / name) for name in names if (folder / name).is_file()})


def trained_teacher(run_folder: Path, config: Config, tokenizer: PreTrainedTokenizerFast, device: Device) -> Teacher:
    """The model that the finished run `run_folder` (of `teacher_config`) trained. Its cost is in `record`."""
    done = paths.read_json(run_folder / "done.json")
    cost = {name: done[name] for name in ("tokens", "words", "flops", "seconds")}
    record = {"name": run_folder.name, "run": run_folder.name, "dev_ce": done["dev_ce"][0], **cost}
    return _opened(peer_folder(run_folder, 1), "the trained teacher", record, config, tokenizer, device)


def given_teacher(config: Config, tokenizer: PreTrainedTokenizerFast, device: Device) -> Teacher:
    """The model that `mutual.teacher` names; outside the data budget unless `mutual.teacher_within_budget`.

    Raises UserError where its tokenizer is not the data's (with both hashes), where it is of the other objective,
    takes shorter rows than the data's or sees them through a narrower window, cannot be split into trunk and head, or
    does not keep the documents of a row apart.
    """
    name = str(config.mutual.teacher)
    folder = given_folder(name)
    unknown = dict.fromkeys(("dev_ce", "tokens", "words", "flops", "seconds"))
    # the hash: by it runs are known to have had the same teacher, wherever that lay
    shown = folder.name if paths.given(name).is_dir() else name
    record = {"name": shown, "run": None, "hash": given_hash(config), **unknown}
    return _opened(folder, f"the teacher {name!r}", record, config, tokenizer, device)


def _opened(
    folder: Path, who: str, record: dict[str, Any], config: Config, tokenizer: PreTrainedTokenizerFast, device: Device
) -> Teacher:
    expected, found = tokenizer_hash(tokenizer), tokenizer_hash(load_tokenizer(folder))
    if found != expected:
        raise UserError(
            f"{who} has a tokenizer of hash {found}; expected that of the data, {expected}; choose a teacher that was "
            "trained with this tokenizer, or set data.tokenizer to the teacher's"
        )
    model = frozen_model(folder, who, config, tokenizer)
    model.to(device.device)  # type: ignore[arg-type]  # transformers wraps `to` in a type that loses its arguments
    record["parameters"] = model.num_parameters()
    return Teacher(AtPositions(model, config.train.compile), 2.0 * body_parameters(model), record)


def frozen_model(folder: Path, who: str, config: Config, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The model in `folder` with one logit for each entry of `tokenizer`, which need not be its own; learns nothing.

    Raises UserError (`who` names the model) where it is of the other objective, takes shorter rows than the data's or
    sees them through a narrower window, has too few logits, cannot be split into trunk and head, or does not keep the
    documents of a row apart.
    """
    model = _loaded(folder, who, config.model.objective)
    if max_length(model) < config.data.longest_block:
        raise UserError(
            f"{who} takes {max_length(model)} tokens and the data's rows have {config.data.longest_block}; "
            "choose another teacher or lower data.block_size"
        )
    if window_length(model) < config.data.longest_block:
        raise UserError(
            f"{who} ({model.config.model_type}) has layers whose sliding window or chunk covers rows of "
            f"{window_length(model)} tokens, and the data's have {config.data.longest_block}; expected a window that "
            "covers the longest row, because packed rows are read without it; lower data.block_size (and what "
            "data.block_schedule has) or choose another teacher"
        )
    if model.config.vocab_size < len(tokenizer):
        raise UserError(
            f"{who} has {model.config.vocab_size} logits; expected one for each of the tokenizer's {len(tokenizer)} "
            "tokens; choose another teacher"
        )
    if model.config.vocab_size > len(tokenizer):
        model.resize_token_embeddings(len(tokenizer))  # rows that pad the vocabulary stand for no token
    model.float().eval().requires_grad_(False)
    _check_parts(model, who, tokenizer)
    return model


def _loaded(folder: Path, who: str, objective: str) -> PreTrainedModel:
    kind = "a masked" if objective == "mlm" else "a causal"
    # AutoModelForCausalLM would take a masked one too
    if objective_of_class(declared_architecture(folder)) != objective:
        raise UserError(f"{who} is not {kind} language model; expected one for objective {objective}; choose another")
    return load_model(folder, objective)


@torch.no_grad()
def _check_parts(model: PreTrainedModel, who: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Trunk, then head, on two sentences in one row must give what the whole model gives of each by itself: not so for
    families that scale or cap their logits, or that carry a state from token to token, whatever the mask."""
    half = max_length(model) // 2
    texts = ["The cat sat.", "A dog ran to the cat."]
    alone = [torch.tensor(ids) for ids in tokenizer(texts, truncation=True, max_length=half)["input_ids"]]
    seen = torch.block_diag(*(torch.ones(len(ids), len(ids)) for ids in alone)).bool()
    if objective_of_class(type(model).__name__) == "clm":
        seen = seen.tril()
    positions = torch.cat([torch.arange(len(ids)) for ids in alone])[None]
    try:
        parts = lm_logits(model, hidden_states(model, torch.cat(alone)[None], seen[None, None], positions))[0]
    except (AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"{who} cannot be taken apart ({error}); expected a family as RoBERTa or Llama; choose another"
        ) from None
    first, second = (
        torch.allclose(part, model(ids[None]).logits[0], rtol=1e-3, atol=1e-4)
        for part, ids in zip(parts.split([len(ids) for ids in alone]), alone, strict=True)
    )
    if not first:
        raise UserError(
            f"{who} ({model.config.model_type}) gives other logits in parts than as a whole; expected a family whose "
            "logits are the head of the last hidden states; choose another"
        )
    if not second:
        raise UserError(
            f"{who} ({model.config.model_type}) reads a sentence otherwise behind another one in the same row, though "
            "a mask parts them; expected a family with attention alone, because rows are packed; choose another"
        )
