"""What the widgets of notebook 08 show: pure functions from a finished run and some input to tables.

All of them rest on one reading: the peers' logits z_i at the scored tokens of some texts, computed once. Whatever
weights w are tried then, the ensemble softmax(sum_i w_i z_i) is arithmetic on what is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from . import bilevel, paths, train
from .config import Config, config_of_run, load_preset
from .data.prepare import prepare
from .data.texts import open_measured
from .errors import UserError
from .evaluate.minimal_pairs import check_fit, window_of
from .evaluate.pairs import load_peers, origins_of, read_pairs, texts_of
from .evaluate.protocols import credit, is_tie
from .evaluate.spans import Encoded, encode_spans
from .evaluate.suites import pairs_folder
from .forward import AtPositions, evaluation_mode
from .measure import logits_on
from .models import hidden_states, lm_logits
from .run_files import run_document, run_facts
from .runs import read_runs
from .settings import Objective
from .shapes import SHAPE
from .study_plan import plan

CELLS = 16_000_000  # numbers in the logits of a sample, all peers together: 64 MB, and a slider that answers at once
TOKENS = 8192  # a forward pass
BLANK = re.compile(r"_{2,}|\[MASK\]|<mask>")


@dataclass(frozen=True)
class Peers:
    """The peers of a finished run, their learned weights (P,) and what they were trained with."""

    run: Path
    config: Config
    models: list[PreTrainedModel]
    tokenizer: PreTrainedTokenizerFast
    weights: np.ndarray
    objective: Objective

    @property
    def names(self) -> list[str]:
        """peer 1, peer 2, ..., ensemble."""
        return [*(f"peer {i}" for i in range(1, len(self.models) + 1)), "ensemble"]


@dataclass(frozen=True)
class Reading:
    """What the peers make of N tokens."""

    logits: Tensor  # (P, N, V)
    targets: Tensor  # (N,) the tokens that stand there
    text: np.ndarray  # (N,) which text each is from

    def members(self, weights: np.ndarray) -> Tensor:
        """Log-probability of each token under every peer and the ensemble with `weights` (P,): (P + 1, N)."""
        ensemble = torch.einsum("p,pnv->nv", torch.as_tensor(weights, dtype=self.logits.dtype), self.logits)
        return torch.stack([_chosen(z, self.targets) for z in (*self.logits, ensemble)])


@dataclass(frozen=True)
class Sample:
    """Dev text and minimal pairs as the peers read them, for trying weights."""

    dev: Reading
    pairs: Reading  # texts in the order good, bad, good, ...
    count: int  # pairs


def demo_config(config: Config) -> Config:
    """Two weighted peers on the nursery: with the settings of `config`, or of preset nursery if it has other text."""
    small = _on_nursery(config)
    two = {"mutual.arm": "wml", "mutual.num_peers": 2, "mutual.frozen_teacher": False}
    return small.updated({**two, "train.seed": small.study.seeds[0]})


def _on_nursery(config: Config) -> Config:
    return config if config.data.corpus == "nursery" else load_preset("nursery")


def demo_out(config: Config, out: Path) -> Path:
    """Where that run belongs: among the study's runs if it is one of them, else apart, so that no table counts it."""
    return out if demo_config(config) in plan(_on_nursery(config)) else paths.start(out)


def choose_run(config: Config, out: Path, progress: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """The finished weighted run with the most peers, of the lowest seed; without one, the small run, trained now."""
    folder = paths.preset(out, config.preset)
    found = [run for run in read_runs(folder) if run.arm == "wml" and run.peers > 1] if folder.is_dir() else []
    if not found:
        return train.run(demo_config(config), demo_out(config, out), progress=progress)
    return min(found, key=lambda run: (-run.peers, bool(run.setting), run.seed)).folder


def open_run(run_folder: Path) -> Peers:
    """Load the peers of a finished run. Raises UserError if it is not finished."""
    weights, objective = run_facts(run_folder)
    models, tokenizer = load_peers(run_folder)
    config = config_of_run(run_document(run_folder)["config"], run_folder / "config.json")
    return Peers(run_folder, config, models, tokenizer, np.array(weights), objective)


def read_texts(peers: Peers, texts: Sequence[str]) -> Reading:
    """The peers' logits at every scored token: masked in turn, or after what stands before it (causal models).

    Raises UserError for an empty text or one longer than the models' window.
    """
    names = [f"sentence {number}" for number in range(1, len(texts) + 1)]
    encoded = encode_spans(peers.tokenizer, texts, [""] * len(texts), peers.objective, "none", names)
    check_fit(peers.models, peers.tokenizer, encoded, names)
    return _read(peers, encoded)


@torch.inference_mode()
def _read(peers: Peers, encoded: Sequence[Encoded]) -> Reading:
    places = [(text, position) for text, item in enumerate(encoded) for position in item.scored]
    sizes = np.array([len(encoded[text].ids) for text, _ in places])
    logits = torch.empty(len(peers.models), len(places), len(peers.tokenizer))
    with evaluation_mode(peers.models):
        for length in np.unique(sizes):
            same = np.flatnonzero(sizes == length)
            for part in np.array_split(same, -(-len(same) * length // TOKENS)):
                ids = torch.tensor([encoded[places[n][0]].ids for n in part])
                rows, position = torch.arange(len(part)), torch.tensor([places[n][1] for n in part])
                if peers.objective == "mlm":
                    ids[rows, position] = peers.tokenizer.mask_token_id
                else:
                    position = position - 1
                for model, own in zip(peers.models, logits, strict=True):
                    own[part] = lm_logits(model, hidden_states(model, ids)[rows, position]).float()
    targets = torch.tensor([encoded[text].ids[position] for text, position in places])
    return Reading(logits, targets, np.array([text for text, _ in places]))


def compare(peers: Peers, first: str, second: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Two sentences under every member: (tokens of the first, tokens of the second, verdict).

    Tokens: one column a token, one row a member, log-probabilities in nats. Verdict: for each member the sums, their
    difference and which sentence it prefers.
    """
    reading = read_texts(peers, [first, second])
    scores = reading.members(peers.weights).double().numpy()
    tokens, sums = [], []
    for text in (0, 1):
        chosen = reading.text == text
        # A number in front: a sentence may have the same token twice.
        labels = [f"{n} {token}" for n, token in enumerate(_shown(peers, reading.targets[chosen]), start=1)]
        tokens.append(pd.DataFrame(scores[:, chosen], index=peers.names, columns=labels))
        sums.append(scores[:, chosen].sum(axis=1))
    preferred = np.where(is_tie(*sums), "neither", np.where(sums[0] > sums[1], "the first", "the second"))
    verdict = pd.DataFrame(
        {"first": sums[0], "second": sums[1], "difference": sums[0] - sums[1], "prefers": preferred}, index=peers.names
    )
    return tokens[0], tokens[1], verdict


@torch.inference_mode()
def fill(peers: Peers, text: str, top: int = 5) -> pd.DataFrame:
    """The `top` likeliest words for the blank in `text` (``__``), a column a member: "cat 31.2 %".

    A masked model sees both sides of the blank, a causal one what stands before it.
    Raises UserError where there is not exactly one blank.
    """
    blanks = BLANK.findall(text)
    if len(blanks) != 1:
        raise UserError(f"the text has {len(blanks)} blanks; expected one, written as two underscores: the cat __ here")
    before, after = BLANK.split(text)
    if peers.objective == "mlm":
        # The tokens of this family carry the space before them, so the mask takes the place of both.
        ids = peers.tokenizer(f"{before.rstrip()}{peers.tokenizer.mask_token}{after}")["input_ids"]
        position = ids.index(peers.tokenizer.mask_token_id)
    else:
        start = [peers.tokenizer.bos_token_id] if peers.tokenizer.bos_token_id is not None else []
        ids = start + peers.tokenizer(before.rstrip(), add_special_tokens=False)["input_ids"]
        position = len(ids) - 1
        if position < 0:
            raise UserError("nothing stands before the blank; expected a word or more: a causal model reads those only")
    check_fit(peers.models, peers.tokenizer, [Encoded(tuple(ids), (), ())], ["the text"])
    with evaluation_mode(peers.models):
        inputs = torch.tensor([ids])
        logits = torch.stack([lm_logits(model, hidden_states(model, inputs)[0, position]) for model in peers.models])
    mixture = torch.as_tensor(peers.weights, dtype=logits.dtype) @ logits
    columns = {}
    for name, z in zip(peers.names, (*logits, mixture), strict=True):
        best = z.softmax(dim=-1).topk(min(top, len(z)))
        words = _told_apart(peers, best.indices)
        columns[name] = [f"{word} {100 * p:.1f} %" for word, p in zip(words, best.values.tolist(), strict=True)]
    table = pd.DataFrame(columns)
    return table.set_index(pd.RangeIndex(1, len(table) + 1, name="rank"))


def draw_sample(peers: Peers, out: Path, cells: int = CELLS) -> Sample:
    """Read dev text and pairs of the run's own suite once, as many as `cells` logits hold. Pairs that are longer than
    the models' window are left out: the nursery's may be, to a tokenizer of text in another script.

    The dev text is that on which training measures its dev loss, with the same masks; of it, what half of the cells
    hold. `out`: the output folder that the run lies in.
    """
    config = peers.config
    text = open_measured("dev", config, prepare(config.data, out), peers.tokenizer)
    models = [AtPositions(model) for model in peers.models]
    logits, targets = logits_on(text, models, config, torch.device("cpu"), cells // 2)
    dev = Reading(logits, targets, np.zeros(len(targets), dtype=int))
    suite = config.evaluate.suites[0] if config.evaluate.pairs or config.evaluate.suites[0] == "nursery" else "nursery"
    found = read_pairs(pairs_folder(config, suite, out), "babylm2025", 24)
    pairs = [found[n] for n in np.random.default_rng(0).permutation(len(found))]
    origins = origins_of(pairs)
    encoded = encode_spans(peers.tokenizer, *texts_of(pairs), peers.objective, "none", origins)
    window = window_of(peers.models, peers.tokenizer)
    fitting = [n for n in range(len(pairs)) if all(len(item.ids) <= window for item in encoded[2 * n : 2 * n + 2])]
    places = [place for n in fitting or [0] for place in (2 * n, 2 * n + 1)]  # none: the first is named below
    encoded, origins = [encoded[place] for place in places], [origins[place] for place in places]
    room = (cells - dev.logits.numel()) // (len(peers.models) * len(peers.tokenizer))
    used = np.cumsum([len(item.scored) for item in encoded])[1::2]
    count = max(1, int(np.searchsorted(used, room, side="right")))
    check_fit(peers.models, peers.tokenizer, encoded[: 2 * count], origins[: 2 * count])
    return Sample(dev, _read(peers, encoded[: 2 * count]), count)


def normalised(parts: Sequence[float]) -> np.ndarray:
    """Numbers that are not negative -> weights that sum to 1; all zero -> equal weights.

    >>> normalised([1, 3])
    array([0.25, 0.75])
    """
    values = np.asarray(parts, dtype=float)
    if len(values) == 0 or (values < 0).any() or not np.isfinite(values).all():
        raise UserError(f"the weights are {values.tolist()}; expected numbers that are not negative")
    return values / values.sum() if values.sum() > 0 else np.full(len(values), 1 / len(values))


@torch.inference_mode()
def ensemble_effect(sample: Sample, weights: np.ndarray) -> tuple[float, float]:
    """(dev loss in nats per scored token, accuracy on the pairs in percent) of the ensemble with `weights` (P,)."""
    w = torch.as_tensor(weights, dtype=torch.float32)
    loss = bilevel.outer_loss(list(sample.dev.logits), sample.dev.targets, w, "logit_ensemble")
    chosen = _chosen(torch.einsum("p,pnv->nv", w, sample.pairs.logits), sample.pairs.targets).double().numpy()
    scores = np.bincount(sample.pairs.text, weights=chosen, minlength=2 * sample.count)
    good, bad = scores[0::2], scores[1::2]
    return float(loss), 100 * float(credit(good, bad, "half").mean())


def edges(sample: Sample, weights: np.ndarray, points: int = 11) -> pd.DataFrame:
    """What happens when one peer's weight goes from 0 to 1 and the others keep their proportions in `weights`.

    Columns peer, weight, dev_ce, accuracy. The picture of a simplex of any size.
    """
    rows = []
    for peer in range(len(weights)):
        for share in np.linspace(0, 1, points):
            loss, accuracy = ensemble_effect(sample, with_weight(weights, peer, share))
            rows.append({"peer": peer + 1, "weight": share, "dev_ce": loss, "accuracy": accuracy})
    return pd.DataFrame(rows)


def with_weight(weights: np.ndarray, peer: int, share: float) -> np.ndarray:
    """`weights` with that of `peer` (from 0) set to `share` and the others scaled to what is left.

    >>> with_weight(np.array([0.25, 0.25, 0.5]), peer=2, share=0.25).tolist()
    [0.375, 0.375, 0.25]
    """
    others = np.array(weights, dtype=float)
    others[peer] = 0
    if len(weights) == 1:
        return np.ones(1)
    if others.sum() == 0:
        others = np.where(np.arange(len(weights)) == peer, 0.0, 1.0)
    moved = others / others.sum() * (1 - share)
    moved[peer] = share
    return moved


def nearest_shapes(grid: pd.DataFrame, target: float, max_step_ms: float) -> pd.DataFrame:
    """The five shapes of `search_cost.landscape` nearest to `target` parameters among those with a step short enough.

    Adds `error_percent`; for one size only the first number of heads is kept. Raises UserError if no step is.
    """
    allowed = grid[grid["step_ms"] <= max_step_ms]
    if allowed.empty:
        raise UserError(f"no shape has a step of at most {max_step_ms:g} ms; expected some: allow a longer step")
    error = 100 * (allowed["parameters"] - target) / target
    ranked = allowed.assign(error_percent=error, distance=error.abs()).sort_values("distance", kind="stable")
    ranked = ranked.drop_duplicates(["num_layers", "hidden_size"]).head(5).reset_index(drop=True)
    return ranked[[*SHAPE, "parameters", "error_percent", "step_ms", "memory_mib"]]


def weights_at(metrics: pd.DataFrame, step: int) -> pd.DataFrame:
    """Last weights, hypergradients and training losses that `results.run_metrics` has up to `step`, a row a peer.

    `change`: what the last change that was logged added to the weight. The hypergradient alone does not tell: a weight
    falls where its own is above a mean in which the weights count.
    """
    seen = metrics[(metrics["step"] <= step) & metrics["peer"].notna()]
    kept = seen[seen["quantity"].isin(["peer_weights", "hypergradient", "ce"])]
    last = kept.sort_values("step").groupby(["peer", "quantity"])["value"].last()
    now = last.unstack("quantity").rename_axis(columns=None)
    weights = seen[seen["quantity"] == "peer_weights"].pivot_table(index="step", columns="peer", values="value")
    earlier = weights[(weights != now["peer_weights"]).any(axis=1)]
    return now.assign(change=now["peer_weights"] - (earlier.iloc[-1] if len(earlier) else 1 / len(now)))


def _chosen(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax of (N, V) logits at the targets (N,): (N,)."""
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(dim=-1)


def _shown(peers: Peers, ids: Tensor) -> list[str]:
    return [str(peers.tokenizer.decode([token])).strip() or "·" for token in ids.tolist()]


def _told_apart(peers: Peers, ids: Tensor) -> list[str]:
    """`_shown`, where of two tokens that differ in the space before them the one without it goes on with a word."""
    words = _shown(peers, ids)
    spaced = [str(peers.tokenizer.decode([token])).startswith(" ") for token in ids.tolist()]
    return [word if space or words.count(word) == 1 else f"-{word}" for word, space in zip(words, spaced, strict=True)]
