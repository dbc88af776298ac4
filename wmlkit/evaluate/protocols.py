"""The BabyLM scoring protocols as plain data, and what they do with scores: order, decide, average.

Nothing here runs a model: all functions take arrays of scores.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import UserError
from ..settings import Objective
from .spans import Prefix, Reduction

TieRule = Literal["half", "first", "random"]
Ties = Literal["half", "first", "random", "protocol"]

# Scores are reproducible to this many nats whatever the batches, so a smaller difference is a tie.
TIE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Protocol:
    """One year's rules for zero-shot pairs."""

    name: str
    mlm_reduction: Reduction  # over the scored tokens of a masked model
    clm_reduction: Reduction
    prefix: Prefix  # how the text is built and where the scored span begins, see spans.encode_spans
    ties: Literal["first", "random"]  # the protocol's own rule; "first" counts a tie as correct
    ordering_fault: bool  # masked models: scores come back grouped by sentence instead of in order
    ewok: Literal["same_context", "same_target"]  # P(T1|C1) against P(T2|C1), or against P(T1|C2)

    def reduction(self, objective: Objective) -> Reduction:
        """Sum or mean for a model trained with `objective`."""
        return self.mlm_reduction if objective == "mlm" else self.clm_reduction


# Read in the sources of the evaluation pipelines. 2024: lm_eval/models/huggingface.py (masked scores by minicons'
# conditional_score, causal ones L1044-1281). 2025: evaluation_pipeline/sentence_zero_shot/{dataset,compute_results}.py.
# 2026: the same folder, and decode_ewok in its read_files.py.
PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("babylm2024-released", "mean", "sum", "eos", "first", True, "same_context"),
        Protocol("babylm2024-fixed", "mean", "sum", "eos", "first", False, "same_context"),
        Protocol("babylm2025", "sum", "sum", "none", "first", False, "same_context"),
        # 2026 draws among ties from an unseeded generator; here the draw has a seed.
        Protocol("babylm2026", "sum", "sum", "none", "random", False, "same_target"),
    )
}


def get_protocol(name: str) -> Protocol:
    """The protocol `name`; UserError with the nearest name if there is none."""
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"there is no protocol {name!r}; expected one of {', '.join(PROTOCOLS)}; did you mean {near!r}?"
        )
    return PROTOCOLS[name]


def tie_rule(protocol: Protocol, ties: Ties) -> TieRule:
    """`ties`, or the protocol's own rule for "protocol"."""
    if ties not in ("half", "first", "random", "protocol"):
        raise UserError(f"the tie rule is {ties!r}; expected 'half', 'first', 'random' or 'protocol' (the year's own)")
    return protocol.ties if ties == "protocol" else ties


def released_order(sentences: Sequence[str], contexts: Sequence[tuple[int, str]]) -> np.ndarray:
    """The order in which the 2024 masked-model scorer returns its scores: entry k is the request in place k.

    Requests are grouped by sentence in order of first appearance, sorted inside a group by the context, longest
    first, and never put back; `contexts` gives each request's (tokens of its context, context).
    Source: lm_eval/models/huggingface.py L1549-1609 and Collator in lm_eval/models/utils.py of the 2024 pipeline.
    """
    groups: dict[str, list[int]] = {}
    for index, sentence in enumerate(sentences):
        groups.setdefault(sentence, []).append(index)
    order: list[int] = []
    for group in groups.values():
        # sorted() keeps the order of equal contexts, as the pipeline's sort does.
        order.extend(sorted(group, key=lambda index: (-contexts[index][0], contexts[index][1])))
    return np.array(order, dtype=np.int64)


def as_returned(good: np.ndarray, bad: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) of both members of all pairs as they come back in `order` over the requests good, bad, good, ..."""
    requests = np.stack([good, bad], axis=1).reshape(-1)
    returned = requests[order].reshape(-1, 2)
    return returned[:, 0], returned[:, 1]


def perfect_score(
    paradigms: Sequence[str],
    sentences: Sequence[str],
    contexts: Sequence[tuple[int, str]],
    protocol: Protocol,
    objective: Objective,
    swapped_copies: bool = False,
) -> float:
    """What the protocol says, in percent, of a scorer that prefers the good sentence of every pair.

    100, unless scores come back in another order. `sentences` (2N,) are good, bad, good, bad, ...; `contexts` as for
    `released_order`. swapped_copies: after each pair the same two sentences once more, after another context in which
    the other one is right, as EWoK is written.
    """
    if swapped_copies:
        paradigms = [name for name in paradigms for _ in range(2)]
        sentences = [
            s for good, bad in zip(sentences[0::2], sentences[1::2], strict=True) for s in (good, bad, bad, good)
        ]
        contexts = [c for own in contexts[0::2] for c in (own, own, (own[0], own[1] + "'"), (own[0], own[1] + "'"))]
    good, bad = np.ones(len(paradigms)), np.zeros(len(paradigms))
    if protocol.ordering_fault and objective == "mlm":
        good, bad = as_returned(good, bad, released_order(sentences, contexts))
    earned = credit(good, bad, protocol.ties)
    return macro_average(paradigm_rows(paradigms, paradigms, paradigms, earned, is_tie(good, bad)))


def credit(good: np.ndarray, bad: np.ndarray, ties: TieRule, seed: int = 0) -> np.ndarray:
    """What each pair earns, (N,) of 0, 0.5 or 1: 1 where good scores higher, by the rule where the two tie.

    "half": 0.5; "first": 1, as an argmax over (good, bad) gives; "random": 0 or 1, drawn with `seed`.
    """
    tied = is_tie(good, bad)
    if ties == "half":
        value = np.full(len(good), 0.5)
    elif ties == "first":
        value = np.ones(len(good))
    else:
        value = np.random.default_rng(seed).integers(0, 2, size=len(good)).astype(float)
    return np.where(tied, value, (good > bad).astype(float))


def is_tie(good: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Where two scores are equal to within what a score is reproducible to."""
    return np.abs(good - bad) <= TIE_TOLERANCE


def paradigm_rows(
    paradigms: Sequence[str],
    phenomena: Sequence[str],
    fields: Sequence[str],
    earned: np.ndarray,
    tied: np.ndarray,
) -> list[dict[str, Any]]:
    """Accuracy and ties of each paradigm in percent, in order of first appearance; all arguments (N,)."""
    members: dict[str, list[int]] = {}
    for index, paradigm in enumerate(paradigms):
        members.setdefault(paradigm, []).append(index)
    return [
        {
            "paradigm": paradigm,
            "phenomenon": phenomena[indices[0]],
            "field": fields[indices[0]],
            "accuracy": 100 * float(earned[indices].mean()),
            "ties": 100 * float(tied[indices].mean()),
            "n": len(indices),
        }
        for paradigm, indices in members.items()
    ]


def macro_average(rows: Iterable[dict[str, Any]]) -> float:
    """Unweighted mean accuracy over paradigms: the official score of a suite."""
    return float(np.mean([row["accuracy"] for row in rows]))
