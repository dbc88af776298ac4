"""The nursery's grammar: weighted sentence patterns whose probability can be computed exactly.

A pattern is a line of slots. A slot is a literal word, or ``Category.feature`` with an optional label
(``:s``) and an optional parent (``<s``): the word is then drawn from the combinations with its parent
that the training text may contain. ``!s`` asks for a combination that it may not contain (test pairs).
Features ``n``, ``m`` are numbers, ``g``, ``h`` genders; ``-n`` is the other value. ``(0.3 X Y)`` is an
optional group. Dependencies form a forest, so a sentence's probability, with any words masked, is a sum
over few shapes of a product of small sums: `visible_probability`.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from .lexicon import CLOSED, categories

KEPT_OUT_ONE_IN = 5  # one lexical combination in five is kept for the test pairs
FEATURES = {"k": ("sg", "pl"), "n": ("sg", "pl"), "m": ("sg", "pl"), "g": ("m", "f"), "h": ("m", "f")}
OTHER = {"sg": "pl", "pl": "sg", "m": "f", "f": "m"}

# weight, name, pattern. The weights are per mille of sentences before a domain's own factor.
PATTERNS: tuple[tuple[float, str, str], ...] = (
    (60, "agreement", "Det.n (0.3 Adj:a) Anim.n:s<a Vi.n:v<s (0.2 Manner) ."),
    (100, "agreement_pp", "Det.n (0.2 Adj:a) Anim.n:s<a Prep Det.m Place.m:p<s Vi.n:v<s ."),
    (60, "agreement_adverb", "Det.n Anim.n:s Freq Vi.n:v<s ."),
    (50, "agreement_subject_relative", "Det.n Anim.n:s that Vt.n:r<s Det.m Thing.m:q Vi.n:v<s ."),
    (60, "agreement_object_relative", "Det.n Anim.n:s that Det.m Anim.m:q Vt.m:r<q Vi.n:v<s ."),
    (60, "copula", "Det.n Thing.n:s (0.6 Prep Det.m Place.m:p<s) Be.n Adj:a<s ."),
    (50, "transitive", "Det.n Anim.n:s Vt.n:v<s Det.m (0.4 Adj:b) Thing.m:o<b ."),
    (50, "demonstrative", "Name.g:s Vt.sg:v<s Dem.m Adj:b Thing.m:o<b ."),
    (70, "possessive", "Name.g:s Vt.sg:v<s Poss.g (0.3 Adj:b) Thing.m:o<b ."),
    (40, "possessive_noun", "Det.sg Kin.g.sg:s Vt.sg:v<s Poss.g (0.3 Adj:b) Thing.m:o<b ."),
    (50, "emphatic_name", "Name.g:s Refl.g.sg Vt.sg:v<s Det.m Thing.m:o ."),
    (30, "emphatic_noun", "Det.n Kin.g.n:s Refl.g.n Vi.n:v<s ."),
    (70, "pronoun", "Name.g:s Vt.past:v<s Det.m Thing.m:o Sub Pron.g Vi.past:w<s ."),
    (70, "reflexive_name", "Name.g:s (0.5 Prep Det.m Place.m:p<s) Vr.past:v<s Refl.g.sg ."),
    (40, "reflexive_noun", "Det.n Kin.g.n:s (0.5 Prep Det.m Place.m:p<s) Vr.past:v<s Refl.g.n ."),
    (70, "reflexive_embedded", "Name.g:s Vs.past:u<s that Name.h:t Vr.past:v<t Refl.h.sg ."),
    (25, "perfect", "Name.g:s has Manner Vx.pp:v<s Det.m Thing.m:o ."),
    (25, "past", "Name.g:s Manner Vx.past:v<s Det.m Thing.m:o ."),
    (25, "modal_transitive", "Det.n Anim.n:s Modal Vt.base:v<s Det.m Thing.m:o ."),
    (20, "modal_unaccusative", "Det.n Thing.n:s Modal Vu.base:v<s (0.3 Prep Det.m Place.m:p) ."),
    (20, "modal_intransitive", "Det.n Anim.n:s Modal Vi.base:v<s (0.5 Prep Det.m Place.m:p) ."),
    (35, "know_what", "Name.g:s Vk.past:u<s what Det.n Anim.n:t (0.3 Prep Det.m Place.m:p<t) Vt.past:v<t ."),
    (
        35,
        "know_that",
        "Name.g:s Vk.past:u<s that Det.n Anim.n:t (0.3 Prep Det.m Place.m:p<t) Vt.past:v<t Det.k Thing.k:o .",
    ),
    (10, "know_question", "do you know what Name.h:t Vt.past:v<t ?"),
    (15, "question", "what did Name.g:s Vt.base:v<s ?"),
    (20, "question_adjunct", "what did Name.g:s Vt.base:v<s Sub Name.h:t Vt.past:w<t Det.m Thing.m:o ?"),
    (15, "polar_adjunct", "did Name.g:s Vt.base:v<s Det.n Thing.n:q Sub Name.h:t Vt.past:w<t Det.m Thing.m:o ?"),
    (30, "npi_negative", "no Anim.n:s (0.5 Prep Det.m Place.m:p<s) Have.n ever Vi.pp:v<s ."),
    (30, "npi_positive", "Pos.n Anim.n:s (0.5 Prep Det.m Place.m:p<s) Have.n already Vi.pp:v<s ."),
    (35, "there", "there Be.n Weak.n Thing.n:s Prep Det.m Place.m:p<s ."),
    (20, "there_raising", "there Modal Raise.base to be Weak.n Thing.n:s Prep Det.m Place.m:p<s ."),
    (5, "raising", "Name.g:s Modal Raise.base to be Adj:a<s ."),
    (30, "control", "Name.g:s Modal Control.base:c<s to be Adj:a<s ."),
    (35, "ellipsis", "Name.g:s Vt.past:v<s Num.n Adj:a Thing.n:o<a and Name.h:t Vt.past:w<t Num.pl ."),
)


@dataclass(frozen=True)
class Slot:
    """One word of a shape: drawn from `category`, given the word at position `parent` (None: freely)."""

    category: str
    parent: int | None
    kept_out: bool
    label: str


@dataclass(frozen=True)
class Shape:
    """A pattern with all features and optional groups fixed."""

    name: str
    weight: float
    slots: tuple[Slot, ...]


def kept_out(parent: str, child: str) -> bool:
    """Whether the combination of two lemmas is kept out of the training text."""
    return zlib.crc32(f"{min(parent, child)} {max(parent, child)}".encode()) % KEPT_OUT_ONE_IN == 0


@dataclass(frozen=True)
class Category:
    words: tuple[str, ...]  # distinct, in lexicon order
    lemmas: tuple[str, ...]
    probabilities: np.ndarray  # (len(words),), sums to 1


@lru_cache(maxsize=1)
def lexicon() -> dict[str, Category]:
    """All categories. Open classes fall off as 1 / (rank + 12): mild, so that rare words are learnable too."""
    table = {}
    for name, pairs in categories().items():
        weights: dict[tuple[str, str], float] = {}
        for rank, pair in enumerate(pairs):
            weights[pair] = weights.get(pair, 0.0) + (1.0 if name in CLOSED else 1.0 / (rank + 12))
        total = sum(weights.values())
        table[name] = Category(
            tuple(word for word, _ in weights),
            tuple(lemma for _, lemma in weights),
            np.array([value / total for value in weights.values()]),
        )
    return table


def category(name: str) -> Category:
    """The category `name`; a name that is no category is a literal word."""
    return lexicon().get(name) or Category((name,), (name,), np.ones(1))


@cache
def conditional(parent: str, child: str, asked: bool) -> np.ndarray:
    """p(child word | parent word), (parent words, child words), over the combinations on one side of `kept_out`."""
    rows, columns = category(parent), category(child)
    table = np.array(
        [
            [p * (kept_out(a, b) == asked) for b, p in zip(columns.lemmas, columns.probabilities, strict=True)]
            for a in rows.lemmas
        ]
    )
    totals = table.sum(axis=1, keepdims=True)
    return np.divide(table, totals, out=np.zeros_like(table), where=totals > 0)


def slots(pattern: str, features: dict[str, str]) -> tuple[Slot, ...]:
    """Slots of a pattern without optional groups, its feature letters replaced by their values."""
    parsed: list[Slot] = []
    labels: dict[str, int] = {}
    for position, token in enumerate(pattern.split()):
        name, mark, parent_label = re.fullmatch(r"([^<!]+)(?:([<!])(\w))?", token).groups()  # type: ignore[union-attr]
        name, _, label = name.partition(":")
        head, *parts = name.split(".") if len(name) > 1 else [name]
        name = ".".join([head, *(_feature(part, features) for part in parts)])
        # A parent in an optional group that was left out: the word is drawn freely.
        parsed.append(Slot(name, labels.get(parent_label), mark == "!", label))
        if label:
            labels[label] = position
    return tuple(parsed)


def _feature(part: str, features: dict[str, str]) -> str:
    if part.startswith("-"):
        return OTHER[features[part[1:]]]
    return features.get(part, part)


def expand(weight: float, name: str, pattern: str) -> list[Shape]:
    """All shapes of a pattern; their weights sum to `weight`."""
    pieces = re.split(r"\(([^)]*)\)", pattern)  # odd pieces are optional groups
    shapes = []
    for chosen in itertools.product((False, True), repeat=len(pieces) // 2):
        probability, text = 1.0, pieces[0]
        for group, taken, rest in zip(pieces[1::2], chosen, pieces[2::2], strict=True):
            share, _, inside = group.partition(" ")
            probability *= float(share) if taken else 1 - float(share)
            text += (inside if taken else "") + rest
        letters = sorted({part.lstrip("-") for part in re.findall(r"\.(-?\w+)", text)} & set(FEATURES))
        settings = list(itertools.product(*(FEATURES[letter] for letter in letters)))
        shapes += [
            Shape(name, weight * probability / len(settings), slots(text, dict(zip(letters, values, strict=True))))
            for values in settings
        ]
    return shapes


@lru_cache(maxsize=1)
def shapes() -> tuple[Shape, ...]:
    """All shapes of the grammar, weights summing to the sum of the patterns' weights."""
    return tuple(shape for entry in PATTERNS for shape in expand(*entry))


@cache
def _cumulative(name: str) -> list[float]:
    return np.cumsum(category(name).probabilities).tolist()


@cache
def _cumulative_given(parent: str, child: str, kept_out: bool) -> list[list[float]]:
    return np.cumsum(conditional(parent, child, kept_out), axis=1).tolist()


def draw(chosen: tuple[Slot, ...], uniform: Callable[[], float]) -> list[int]:
    """A word index within its category for every slot; `uniform` gives numbers in [0, 1).

    Raises LookupError where a combination that is kept out is asked for and the parent has none.
    """
    picked: list[int] = []
    for slot in chosen:
        if slot.parent is None:
            steps = _cumulative(slot.category)
        else:
            parent = chosen[slot.parent]
            steps = _cumulative_given(parent.category, slot.category, slot.kept_out)[picked[slot.parent]]
        if steps[-1] == 0:
            raise LookupError(f"no combination that is kept out for {slot}")
        # The last step may be 1 - 1e-16: never run past it.
        picked.append(min(bisect_right(steps, uniform() * steps[-1]), len(steps) - 1))
    return picked


def realise(words: list[str]) -> str:
    """Words to a sentence: the first letter a capital, no space before punctuation."""
    text = re.sub(r" ([.,?])", r"\1", " ".join(words))
    return text[0].upper() + text[1:]


def unrealise(sentence: str) -> list[str]:
    """A sentence back to words as the lexicon spells them."""
    words = re.findall(r"\w+|[.,?]", sentence)
    return [words[0] if words[0] in vocabulary() else words[0].lower(), *words[1:]]


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Every word of the grammar -> its index."""
    words = {word for shape in shapes() for slot in shape.slots for word in category(slot.category).words}
    return {word: index for index, word in enumerate(sorted(words))}


@cache
def _of_length(length: int) -> tuple[tuple[Shape, ...], np.ndarray]:
    """Shapes of `length` words, and whether slot t of shape s admits word w: (S, T, W + 1), last column masked."""
    fitting = tuple(shape for shape in shapes() if len(shape.slots) == length)
    admits = np.zeros((len(fitting), length, len(vocabulary()) + 1), dtype=bool)
    admits[:, :, -1] = True
    for s, shape in enumerate(fitting):
        for t, slot in enumerate(shape.slots):
            admits[s, t, [vocabulary()[word] for word in category(slot.category).words]] = True
    return fitting, admits


def visible_probability(words: list[str | None], weights: dict[str, float] | None = None) -> float:
    """Probability of all sentences that agree with `words`, None being a masked word; exact.

    `weights`: factor of each pattern name (a domain's).
    """
    fitting, admits = _of_length(len(words))
    index = [len(vocabulary()) if word is None else vocabulary().get(word, -1) for word in words]
    if not fitting or -1 in index:
        return 0.0
    survivors = np.flatnonzero(admits[:, np.arange(len(words)), index].all(axis=1))
    factor = weights or {}
    total = sum(shape.weight * factor.get(shape.name, 1.0) for shape in shapes())
    found = [fitting[s] for s in survivors]
    return math.fsum(s.weight * factor.get(s.name, 1.0) * _shape_probability(s.slots, words) for s in found) / total


def _shape_probability(chosen: tuple[Slot, ...], words: list[str | None]) -> float:
    """Sum over the masked words by passing messages from children to parents, which always stand before them."""
    messages = [np.ones(len(category(slot.category).words)) for slot in chosen]
    result = 1.0
    for position in range(len(chosen) - 1, -1, -1):
        slot, message = chosen[position], messages[position]
        own = category(slot.category)
        word = words[position]
        if word is not None:
            message = message * np.array([w == word for w in own.words])
        if slot.parent is None:
            result *= float(own.probabilities @ message)
        else:
            messages[slot.parent] = messages[slot.parent] * (
                conditional(chosen[slot.parent].category, slot.category, slot.kept_out) @ message
            )
    return result
