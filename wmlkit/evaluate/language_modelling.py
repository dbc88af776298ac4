"""How well models predict dev text, by domain: perplexity, and bits per byte, which compares causal models' tokenizers.

Causal models get the perplexity, masked models the pseudo-perplexity (each token masked in turn, Salazar et al.
2020); the two are different quantities and only models of one objective compare. Per-token numbers depend on how
long a tokenizer's tokens are; bits per byte of causal models do not, because the same bytes are predicted. A masked
model guesses a piece of a word with its other pieces in sight, so its bits per byte fall as a tokenizer cuts more, and
compare masked models of one tokenizer only. All this for tokenizers that keep the text: what lower-cases, normalises
(NFKC), writes <unk> or leaves characters out predicts less than the bytes it is divided by, and its bits per byte are
too low to compare. Unknown tokens and what is left out are counted (`unknown`, `left_out`), the other two are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..data.batches import segments
from ..data.encode import encode_documents, left_out
from ..data.tokenizer import unknown_id
from ..errors import UserError
from ..settings import Objective
from .minimal_pairs import check_fit, members_of, objective_of, window_of
from .scoring import score_encoded
from .spans import Encoded

SEED = 0  # of the units that are drawn
_COUNTED = ("unknown", "tokens", "left_out", "characters")
UNIT_WORDS = 64  # texts are cut into units of about this many words, whatever the tokenizer

Documents = Sequence[Sequence[str]]  # documents of lines


@dataclass(frozen=True)
class Read:
    """What the members make of the text of one domain."""

    nats: np.ndarray  # (members,), summed
    tokens: int
    bytes: int
    unknown: int  # tokens among them
    left_out: int = 0  # characters that no token stands for
    characters: int = 0  # without white space


def evaluate_text(
    models: PreTrainedModel | Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, Documents],
    *,
    objective: Objective | None = None,
    words_per_domain: int | None = 2000,
    by_line: bool = False,
    ensemble_weights: Sequence[float] | None = None,
    token_budget: int | None = None,
    device: str | torch.device | None = None,
    known: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Loss of one model (member "model") or of peers and their ensembles on `texts`, domain -> documents of lines.

    Documents are cut into units of consecutive lines, `words_per_domain` words of units are drawn
    (None: all; masked models need one forward pass a token), and each unit is read as ``<s> line </s> line </s>``, in
    the pieces that training cuts (`segments`), as long as the models allow; by_line: each line is a piece, for models
    that saw no line beside another (`data.packing` "lines"). Every token of the text is scored once, start and end
    tokens never. The drawn text does not depend on the tokenizer, nor on by_line. known: the ids of each line, where
    the texts were decoded from them: of an unknown token comes back its name, which would be read as text.

    Returns {"objective", "settings", "members": [{"member", "nats_per_token", "perplexity", "bits_per_byte",
    "tokens", "bytes", "domains": [the same by "domain"]}]}; a member's own numbers pool all tokens. Where the
    tokenizer knows some of the text only as its unknown token, also "unknown": the share of such tokens; where it has
    no token at all for some, "left_out": the share of such characters.
    Raises UserError for a domain without text or a loss that is not finite.
    """
    peers, ensembles, names = members_of(models, ensemble_weights)
    objective = objective or objective_of(peers[0])
    window = window_of(peers, tokenizer)
    unknown = unknown_id(tokenizer)

    def read(domain: str, documents: Documents) -> Read:
        units = draw_units(documents, words_per_domain, SEED)
        if not units:
            raise UserError(f"domain {domain!r} has no text; expected at least one line; leave the domain out")
        documents_of_ids = ids_of_units(tokenizer, units, known)
        encoded = [item for ids in documents_of_ids for item in pieces(ids, window, tokenizer, by_line)]
        if not any(item.scored for item in encoded):
            raise UserError(
                f"the tokenizer makes no token of the text of domain {domain!r}; expected one at least; "
                "leave the domain out, or evaluate a model that knows its script"
            )
        check_fit(peers, tokenizer, encoded, [domain] * len(encoded))
        totals = score_encoded(
            peers,
            tokenizer.mask_token_id,
            encoded,
            objective=objective,
            weights=ensembles,
            token_budget=token_budget,
            device=device,
        )
        lines = [line for unit in units for line in unit] if known is None else []
        without, characters = left_out(tokenizer, lines)
        return Read(
            nats=-totals.sum(axis=1),
            tokens=sum(len(item.scored) for item in encoded),
            bytes=sum(len(line.encode()) for unit in units for line in unit),
            unknown=sum(item.ids[i] == unknown for item in encoded for i in item.scored),
            left_out=without,
            characters=characters,
        )

    domains = {domain: read(domain, documents) for domain, documents in texts.items()}
    members = [member_of(name, row, domains) for row, name in enumerate(names)]
    settings = {
        "words_per_domain": words_per_domain,
        "seed": SEED,
        "temperature": 1.0,
        "window": window,
        "by_line": by_line,
        "ensemble_weights": None if ensemble_weights is None else [float(weight) for weight in ensemble_weights],
        "dtype": str(peers[0].dtype).removeprefix("torch."),
    }
    document: dict[str, Any] = {"objective": objective, "settings": settings, "members": members}
    sums = {name: sum(getattr(one, name) for one in domains.values()) for name in _COUNTED}
    lost = {"unknown": sums["unknown"] / sums["tokens"], "left_out": sums["left_out"] / max(sums["characters"], 1)}
    return document | {name: share for name, share in lost.items() if share}


def member_of(name: str, row: int, read: Mapping[str, Read]) -> dict[str, Any]:
    """The losses of one member, by domain and over all tokens."""
    domains = [
        {"domain": domain, **_measures(float(one.nats[row]), one.tokens, one.bytes, f"{name} on {domain}")}
        for domain, one in read.items()
    ]
    loss = sum(float(one.nats[row]) for one in read.values())
    tokens, size = sum(one.tokens for one in read.values()), sum(one.bytes for one in read.values())
    return {"member": name, **_measures(loss, tokens, size, name), "domains": domains}


def ids_of_units(
    tokenizer: PreTrainedTokenizerFast, units: Documents, known: Mapping[str, np.ndarray] | None
) -> Iterable[np.ndarray]:
    """One array of ids a unit, ``<s> line </s> line </s>``; known: the ids of each line, where they are stored."""
    if known is None:
        yield from encode_documents(tokenizer, units)
        return
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for unit in units:
        yield np.array([start, *(token for line in unit for token in (*known[line].tolist(), end))])


def draw_units(documents: Documents, words: int | None, seed: int) -> list[list[str]]:
    """Units of consecutive lines of one document, `UNIT_WORDS` words or one longer line; about `words` words, seeded.

    Drawn units stay in the order of the text.
    """
    units: list[list[str]] = []
    sizes: list[int] = []
    for lines in documents:
        room = 0  # a document starts a unit
        for line in lines:
            if not line.strip():
                continue
            size = len(line.split())
            if room <= 0:
                units.append([])
                sizes.append(0)
                room = UNIT_WORDS
            units[-1].append(line)
            sizes[-1] += size
            room -= size
    if words is None:
        return units
    drawn: list[int] = []
    total = 0
    for index in np.random.default_rng(seed).permutation(len(units)):
        if total >= words:
            break
        drawn.append(int(index))
        total += sizes[index]
    return [units[index] for index in sorted(drawn)]


def pieces(
    ids: np.ndarray, window: int, tokenizer: PreTrainedTokenizerFast, by_line: bool = False
) -> Iterable[Encoded]:
    """A document's ids in pieces of at most `window` tokens, each after the start token; every text token scored."""
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if window < 2:
        raise UserError(f"the model's window is {window} tokens; expected at least 2; train with a larger block_size")
    for begin, length in segments(ids, np.zeros(1, dtype=np.int64), window, end, by_line).tolist():
        piece = (start, *ids[begin : begin + length].tolist())
        scored = tuple(i for i, token in enumerate(piece) if i > 0 and token not in (start, end))
        if scored:
            yield Encoded(piece, scored, words=())


def _measures(loss: float, tokens: int, size: int, what: str) -> dict[str, Any]:
    """Loss in nats over a number of tokens and bytes, per token and per byte."""
    if not math.isfinite(loss):
        raise UserError(f"the loss of {what} is {loss}; expected a finite number; the model has probably diverged")
    return {
        "nats_per_token": loss / tokens,
        "perplexity": math.exp(min(loss / tokens, 700.0)),  # above 700 a float overflows
        "bits_per_byte": loss / math.log(2) / size,
        "tokens": tokens,
        "bytes": size,
    }
