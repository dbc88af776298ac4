"""What the parts of a run's training step cost: batch, inner step, optimizer, outer step."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .. import paths
from ..config import Config, load_preset, parse_assignment
from ..data.prepare import prepare
from ..data.texts import open_texts
from ..data.tokenizer import load_tokenizer
from ..device import Device, setup
from ..errors import UserError
from ..faults import gradient_norms
from ..models import body_parameters
from ..optim import set_learning_rate
from ..state import build_state
from ..steps import clip_and_update, inner_loss, mutual_options, outer_gradient
from ..students import find_students
from .measure import Run, check_repeats, interleaved, matrix_product, peaks, rows, warm_peaks

WORDS = 60_000  # of nursery text: enough for the preset's vocabulary


def bench_train(preset: str, repeats: int, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The parts of a step of arm `wml` in a preset's sizes, on nursery text unless `overrides` (KEY=VALUE) name other.

    inner: forward, loss, backward of all peers. outer: one outer step, of which a run takes one every `outer.every`
    steps; `step_ms` is the whole step with that share of it. utilisation: the peers' FLOP (6 a token and parameter
    without embeddings) in the time of a step, as a share of the rate of a matrix product.
    """
    check_repeats(repeats)
    nursery = {"data.corpus": "nursery", "data.words": WORDS, "data.dev_words": 5000, "mutual.arm": "wml"}
    changes = dict(map(parse_assignment, overrides))
    config = load_preset(preset, nursery | changes).updated({"data.max_passes": None})
    if config.mutual.arm != "wml":
        raise UserError(f"mutual.arm is {config.mutual.arm!r}; bench train measures arm wml; leave that setting out")
    with tempfile.TemporaryDirectory() as folder:
        facts, variants, device = _parts(config, Path(folder))
        variants["matrix product"], product_flop = matrix_product(device.device, device.precision)
        times = interleaved(variants, repeats, device.device)
        memory = peaks(train_peaks, config, Path(folder))
    own = f"outer, {facts['hypergradient']}"
    inner = times["inner"]["median_ms"]
    step = (
        sum(times[name]["median_ms"] for name in ("batch", "inner", "optimizer"))
        + times[own]["median_ms"] / facts["every"]
    )
    rate = product_flop / times["matrix product"]["median_ms"]  # FLOP a millisecond
    return {
        "setting": preset,
        "changes": [f"{key}={json.dumps(value)}" for key, value in changes.items()],
        **facts,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "variants": rows(times, memory),
        "ratios": {
            "step_ms": step,
            "outer_to_inner": times[own]["median_ms"] / inner,
            "utilisation": facts["flop_of_a_step"] / step / rate,
        },
    }


def train_peaks(config: Config, folder: Path) -> dict[str, float]:
    """Peak memory of each part in this process; `folder` is the output folder with the prepared text."""
    _, variants, device = _parts(config, folder)
    return warm_peaks(variants, device.device)


def _parts(config: Config, folder: Path) -> tuple[dict[str, Any], dict[str, Run], Device]:
    prepared = prepare(config.data, folder, config.needs_mask)
    tokenizer = load_tokenizer(paths.tokenizer(prepared.folder))
    device = setup(config.train.precision, torch.get_num_threads())
    state = build_state(config, find_students(config, len(tokenizer)), tokenizer, device)
    texts = open_texts(config, prepared, tokenizer)
    ratio = config.train.mask_ratio
    batch = texts.train(0, ratio).to(device.device)
    outer_text = texts.outer(0, ratio).to(device.device)
    options = mutual_options(config, 0)
    lr = [set_learning_rate(own, config.train, 0) for own in state.optimizers][0]

    def inner() -> None:
        for model in state.models:
            model.zero_grad()
        inner_loss(state, batch, config, options, device).total.backward()

    def outer(kind: str) -> Run:
        settings = config.updated({"outer.hypergradient": kind})
        return lambda: outer_gradient(state, [batch], batch, outer_text, settings, options, lr, device)

    facts = {
        "tokens": batch.tokens,
        "scored": len(batch.scored),
        "vocab_size": len(tokenizer),
        "parameters": [model.num_parameters() for model in state.models],
        "flop_of_a_step": sum(6.0 * body_parameters(model) for model in state.models) * batch.tokens,
        "hypergradient": config.outer.hypergradient,
        "every": config.outer.every,
    }
    runs: dict[str, Run] = {
        "batch": lambda: texts.train(0, ratio),
        "inner": inner,
        "optimizer": lambda: clip_and_update(state, config, gradient_norms(peer.weights for peer in state.peers)),
        **{f"outer, {kind}": outer(kind) for kind in ("direct", "sgd", "adam")},
    }
    return facts, runs, device
