"""Defects of the scoring, on the same trained peers: the order of the 2024 scores (E0) and what a tie earns (E1).

Every rule is applied to one and the same set of scores. Beside the peers stand two scorers that show what a rule does
whatever the model: `perfect` prefers every good sentence, `constant` gives all sentences the same score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..config import Config
from ..evaluate import score_sentences
from ..evaluate.pairs import read_pairs, requests_of
from ..evaluate.protocols import as_returned, credit, get_protocol, is_tie, macro_average, paradigm_rows, released_order
from ..evaluate.suites import Pair


@dataclass(frozen=True)
class Rule:
    """How scores become an accuracy."""

    ordering: bool = False  # E0: scores come back grouped by sentence, not in the order of the requests
    ties: Literal["half", "first", "random"] = "half"  # "random": E1; "first": a tie is correct, the official rule


RULES = {
    "none": Rule(),
    "ordering": Rule(ordering=True),
    "random_ties": Rule(ties="random"),
    "official_ties": Rule(ties="first"),
    "all": Rule(ordering=True, ties="random"),
}
RULE_FINDINGS = {"ordering": "E0", "random_ties": "E1", "official_ties": "E1"}


def crossed_items(pairs: Sequence[Pair]) -> list[Pair]:
    """EWoK-shaped items from minimal pairs that end in the same two ways and prefer different ones.

    From "this dog | sleeps / sleep" and "many cats | sleep / sleeps": the first beginning as context, with the good end
    against the bad one, then its swapped copy, as EWoK's files have them. As there, an end is a request of an item and
    of its copy and of nothing else: these two are what the ordering fault mixes up.
    """
    waiting: dict[tuple[str, str, str], tuple[Pair, str]] = {}  # paradigm, good end, bad end -> pair, its beginning
    used: set[str] = set()
    items = []
    for pair in pairs:
        good, bad = pair.good.split(), pair.bad.split()
        same = next((k for k, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b), 0)
        beginning, good_end, bad_end = " ".join(good[:same]), " ".join(good[same:]), " ".join(bad[same:])
        if not same or pair.good_context or used & {good_end, bad_end}:
            continue
        other = waiting.get((pair.paradigm, bad_end, good_end))
        if other is None:
            waiting.setdefault((pair.paradigm, good_end, bad_end), (pair, beginning))
            continue
        used |= {good_end, bad_end}
        items.append(_after(*other, bad_end, good_end))
        items.append(_after(pair, beginning, good_end, bad_end))
    return items


def _after(pair: Pair, beginning: str, good_end: str, bad_end: str) -> Pair:
    return replace(pair, good=good_end, bad=bad_end, good_context=beginning, bad_context=beginning)


def scoring(
    models: Sequence[PreTrainedModel], tokenizer: PreTrainedTokenizerFast, folder: Path, config: Config, seed: int
) -> list[dict[str, Any]]:
    """What each rule gives on a suite's pairs and on the `crossed_items` made from them: one row an items' kind, a
    scorer and a rule with accuracy and ties in percent, and displaced, the share of scores that come back elsewhere.

    Scores are those of the 2024 protocol (mean over the scored tokens), of ``evaluate.per_paradigm`` pairs a paradigm.
    The ordering fault is of masked models; causal ones are scored in order under every rule.
    """
    protocol, objective = get_protocol("babylm2024-fixed"), config.model.objective
    pairs = read_pairs(folder, protocol.name, config.evaluate.per_paradigm)
    rows = []
    for kind, items in (("pairs", pairs), ("crossed", crossed_items(pairs))):
        if not items:
            continue
        sentences, contexts = requests_of(items, tokenizer)
        scores = score_sentences(
            models,
            tokenizer,
            sentences,
            contexts=[text for _, text in contexts],
            objective=objective,
            reduction=protocol.reduction(objective),
            prefix=protocol.prefix,
            token_budget=config.evaluate.token_budget,
        )
        peers = {name: values for name, values in scores.items() if name.startswith("peer_")}
        perfect = np.tile([1.0, 0.0], len(items))
        order = released_order(sentences, contexts) if objective == "mlm" else np.arange(len(sentences))
        for scorer, values in {**peers, "perfect": perfect, "constant": 0 * perfect}.items():
            for name, rule in RULES.items():
                rows.append(
                    {"items": kind, "scorer": scorer, "case": name, **_applied(rule, items, values, order, seed)}
                )
    return rows


def _applied(rule: Rule, items: Sequence[Pair], scores: np.ndarray, order: np.ndarray, seed: int) -> dict[str, Any]:
    good, bad = scores[0::2], scores[1::2]
    if rule.ordering:
        good, bad = as_returned(good, bad, order)
    tied, names = is_tie(good, bad), [item.paradigm for item in items]
    rows = paradigm_rows(names, names, names, credit(good, bad, rule.ties, seed), tied)
    displaced = 100 * float((order != np.arange(len(order))).mean()) if rule.ordering else 0.0
    return {"accuracy": macro_average(rows), "ties": 100 * float(tied.mean()), "displaced": displaced, "n": len(items)}
