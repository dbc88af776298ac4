"""The embedded corpus: six BabyLM domains written by one grammar with known probabilities.

A teaching and testing corpus: nothing learned from it is a fact about English. The text is free of the
lexical combinations that the minimal pairs are built from (`grammar.kept_out`, `nursery_pairs`).
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

from .. import paths
from . import grammar

# How a domain differs from the common mixture: factors on the patterns' weights, lines in a document.
DOMAINS: dict[str, tuple[dict[str, float], int]] = {
    "bnc_spoken": ({"know_question": 2.0, "past": 1.5}, 20),
    "childes": ({"question": 3.0, "agreement": 1.5, "there": 1.5, "ellipsis": 0.5}, 24),
    "gutenberg": ({"agreement_object_relative": 1.3, "know_that": 1.5, "question": 0.5}, 16),
    "open_subtitles": ({"question": 2.0, "polar_adjunct": 1.5, "control": 1.5}, 20),
    "simple_wiki": ({"copula": 2.0, "demonstrative": 1.2, "question": 0.2, "know_question": 0.2}, 12),
    "switchboard": ({"reflexive_embedded": 1.3, "know_question": 2.0, "modal_transitive": 1.5}, 20),
}

TITLES = grammar.category("Place.sg").words  # of simple_wiki's articles


def uniform_numbers(seed: int, *stream: int) -> Callable[[], float]:
    """Numbers in [0, 1), the same on every machine; drawn in blocks because single draws are slow."""
    rng = np.random.default_rng([seed, *stream])
    blocks = (value for _ in itertools.count() for value in rng.random(1 << 14).tolist())
    return blocks.__next__


def words_of(chosen: tuple[grammar.Slot, ...], picked: list[int]) -> list[str]:
    return [grammar.category(slot.category).words[i] for slot, i in zip(chosen, picked, strict=True)]


def sentences(domain: str, seed: int, stream: int = 0) -> Iterator[str]:
    """Endless sentences of `domain`, independent of each other."""
    factor, _ = DOMAINS[domain]
    uniform = uniform_numbers(seed, list(DOMAINS).index(domain), stream)
    shapes = grammar.shapes()
    steps = list(itertools.accumulate(shape.weight * factor.get(shape.name, 1.0) for shape in shapes))
    while True:
        chosen = shapes[bisect_right(steps, uniform() * steps[-1])].slots
        yield grammar.realise(words_of(chosen, grammar.draw(chosen, uniform)))


def lines(domain: str, words: int, seed: int, stream: int = 0) -> Iterator[str]:
    """About `words` words of `domain` in the format of its BabyLM file, markup and noise included."""
    source = sentences(domain, seed, stream)
    chance = uniform_numbers(seed, list(DOMAINS).index(domain), stream, 1)
    _, length = DOMAINS[domain]
    written = 0
    while written < words:
        document = list(itertools.islice(source, length))
        written += sum(len(sentence.split()) for sentence in document)
        yield from _format(domain, document, chance)


def _format(domain: str, document: list[str], chance: Callable[[], float]) -> Iterator[str]:
    """One document as the domain's file shows it."""
    if domain == "simple_wiki":
        yield f"= = = {TITLES[int(chance() * len(TITLES))].capitalize()} = = ="
    for number, sentence in enumerate(document):
        odd = chance() < 0.05
        if domain == "childes":
            speaker = "*CHI:" if number % 3 == 2 else "*MOT:"
            yield f"{speaker} {sentence}" + (" [points to the picture]" if odd else "")
        elif domain == "switchboard":
            yield f"{'AB'[number % 2]}:\t{sentence}"
        elif domain == "open_subtitles":
            if odd:
                yield "[ music ]"
            yield f"- {sentence}" if chance() < 0.3 else sentence
        elif domain == "gutenberg" and odd:
            first, space, rest = sentence.partition(" ")
            yield f"_{first}_{space}{rest}"
        else:
            yield sentence
    if domain == "gutenberg":
        yield "* * *"
    yield ""


def write_corpus(folder: Path, words: int, dev_words: int, seed: int) -> None:
    """Write ``<domain>.train`` and ``<domain>.dev``: `words` and `dev_words` words over the six domains.

    Dev text comes from a stream of its own; the same arguments give the same bytes.
    """
    paths.make_folder(folder)
    for domain in DOMAINS:
        for stream, (split, total) in enumerate((("train", words), ("dev", dev_words))):
            text = "".join(line + "\n" for line in lines(domain, math.ceil(total / len(DOMAINS)), seed, stream))
            paths.write_text(folder / f"{domain}.{split}", text)


def entropy_floor(objective: str, mask_ratio: float, per_domain: int = 400) -> tuple[float, float]:
    """(floor, standard error): the least loss, in nats per scored token, that any model can reach in expectation.

    A sample of `per_domain` lines of each domain, scored by a predictor that knows grammar and domain:

    clm  -log p(sentence) over its words and its end, which is certain after the full stop
    mlm  each word is masked with probability `mask_ratio`; a masked word costs
         -log p(word | visible words) = -log p(visible and word) + log p(visible), both exact

    Exact for a tokenizer that keeps words whole: sentences are independent given the domain, so wider context
    cannot do better. A title of simple_wiki is one word out of equally likely ones.
    """
    lines_floor = _causal_floor if objective == "clm" else _masked_floor
    rng = np.random.default_rng([0, 77])
    values = []
    for domain, (factor, length) in DOMAINS.items():
        titles = per_domain // length if domain == "simple_wiki" else 0
        for sentence in itertools.islice(sentences(domain, seed=0, stream=9), per_domain - titles):
            values.append(lines_floor(grammar.unrealise(sentence), factor, mask_ratio, rng))
        chosen = (rng.random(titles) < mask_ratio).astype(float) if objective == "mlm" else np.ones(titles)
        values += [(math.log(len(TITLES)) * c, c if objective == "mlm" else 2.0) for c in chosen]
    nats, counts = np.array(values).T
    floor = nats.sum() / counts.sum()
    return float(floor), float(np.sqrt(((nats - floor * counts) ** 2).sum()) / counts.sum())  # of a ratio


@cache
def line_floor(line: str, domain: str, objective: str) -> tuple[float, int] | None:
    """(nats, words) of a cleaned line for a predictor that knows grammar and domain; None if it is no line of them.

    clm: -log p(line), whatever the tokenizer. mlm: the sum over its words of -log p(word | all others), so for a
    tokenizer that keeps words whole. What `entropy_floor` is in expectation, for one text: a model can only do better
    by luck.
    """
    if domain == "simple_wiki" and line.lower() in TITLES:
        return math.log(len(TITLES)), 1
    words, factor = grammar.unrealise(line), DOMAINS[domain][0]
    whole = grammar.visible_probability(list(words), factor)
    if whole == 0:
        return None
    if objective == "clm":
        return -math.log(whole), len(words)
    without = (grammar.visible_probability([*words[:i], None, *words[i + 1 :]], factor) for i in range(len(words)))
    return math.fsum(math.log(others / whole) for others in without), len(words)


def _causal_floor(
    words: list[str], factor: dict[str, float], mask_ratio: float, rng: np.random.Generator
) -> tuple[float, float]:
    """(nats, tokens) of one line."""
    return -math.log(grammar.visible_probability(list(words), factor)), len(words) + 1


def _masked_floor(
    words: list[str], factor: dict[str, float], mask_ratio: float, rng: np.random.Generator
) -> tuple[float, float]:
    """(nats, masked words) of one line under one random mask."""
    hidden = np.flatnonzero(rng.random(len(words)) < mask_ratio)
    if not len(hidden):
        return 0.0, 0.0
    visible: list[str | None] = [None if i in hidden else word for i, word in enumerate(words)]
    total = grammar.visible_probability(visible, factor)
    nats = 0.0
    for i in hidden:
        one_more = [*visible[:i], words[i], *visible[i + 1 :]]
        nats -= math.log(grammar.visible_probability(one_more, factor) / total)
    return nats, len(hidden)
