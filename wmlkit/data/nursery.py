"""The embedded corpus: six BabyLM domains and minimal pairs, written by one grammar with known probabilities.

A teaching and testing corpus: nothing learned from it is a fact about English. The text is free of the
lexical combinations that the pairs are built from (`grammar.held_out`).
"""

from __future__ import annotations

import itertools
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
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

# paradigm, linguistics_term, field (all three as in BLiMP), then (good, bad) templates used in turn.
# In `bad`, "=x" repeats the good sentence's word labelled x and "=x:Category" its lemma in another form.
PAIRS: tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "anaphor_gender_agreement",
        "anaphor_agreement",
        "morphology",
        (
            (
                "Name.g:s Prep:p Det.n:d Place.n:q<s Vr.past:v!s Refl.g.sg .",
                "=s =p =d =q =v Refl.-g.sg .",
            ),
        ),
    ),
    (
        "anaphor_number_agreement",
        "anaphor_agreement",
        "morphology",
        (
            (
                "Det.n:d Kin.g.n:s Prep:p Det.-n:e Place.-n:q<s Vr.past:v!s Refl.g.n .",
                "=d =s =p =e =q =v Refl.g.-n .",
            ),
        ),
    ),
    (
        "principle_A_domain",
        "binding",
        "syntax_semantics",
        (
            (
                "Name.g:s Vs.past:u<s that Name.-g:t Vr.past:v!t Refl.-g.sg .",
                "=s =u that =t =v Refl.g.sg .",
            ),
        ),
    ),
    (
        "determiner_noun_agreement_with_adjective",
        "determiner_noun_agreement",
        "morphology",
        (("Name.g:s Vt.sg:v<s Dem.n:d Adj:b Thing.n:o!b .", "=s =v =d =b =o:Thing.-n ."),),
    ),
    (
        "determiner_noun_agreement_with_adj_irregular",
        "determiner_noun_agreement",
        "morphology",
        (("Name.g:s Vt.sg:v<s Dem.n:d Adj:b IrrThing.n:o!b .", "=s =v =d =b =o:IrrThing.-n ."),),
    ),
    (
        "distractor_agreement_relational_noun",
        "subject_verb_agreement",
        "morphology",
        (("Det.n:d Anim.n:s Prep:p Det.-n:e Place.-n:q<s Vi.n:v!s .", "=d =s =p =e =q =v:Vi.-n ."),),
    ),
    (
        "distractor_agreement_relative_clause",
        "subject_verb_agreement",
        "morphology",
        (("Det.n:d Anim.n:s that Vt.n:r<s Det.-n:e Thing.-n:q Vi.n:v!s .", "=d =s that =r =e =q =v:Vi.-n ."),),
    ),
    (
        "irregular_plural_subject_verb_agreement",
        "subject_verb_agreement",
        "morphology",
        (("Det.n:d IrrAnim.n:s Freq:f Vi.n:v!s .", "=d =s =f =v:Vi.-n ."),),
    ),
    (
        "animate_subject_trans",
        "argument_structure",
        "syntax_semantics",
        (("Det.n:d Anim.n:s Modal:k Vt.base:v!s Det.m:e Thing.m:o .", "=d Thing.n =k =v =e =o ."),),
    ),
    (
        "transitive",
        "argument_structure",
        "syntax",
        (("Det.n:d Anim.n:s Modal:k Vt.base:v!s Det.m:e Thing.m:o .", "=d =s =k Vi.base =e =o ."),),
    ),
    (
        "irregular_past_participle_verbs",
        "irregular_forms",
        "morphology",
        (
            ("Name.g:s has Manner:k Vx.pp:v!s Det.m:e Thing.m:o .", "=s has =k =v:Vx.past =e =o ."),
            ("Name.g:s Manner:k Vx.past:v!s Det.m:e Thing.m:o .", "=s =k =v:Vx.pp =e =o ."),
        ),
    ),
    (
        "wh_vs_that",
        "filler_gap_dependency",
        "syntax",
        (
            (
                "Name.g:s Vk.past:u<s what Det.n:d Anim.n:t Prep:p Det.m:e Place.m:q<t Vt.past:v!t .",
                "=s =u that =d =t =p =e =q =v .",
            ),
            (
                "Name.g:s Vk.past:u<s that Det.n:d Anim.n:t Prep:p Det.m:e Place.m:q<t Vt.past:v!t Det.k:f Thing.k:o .",
                "=s =u what =d =t =p =e =q =v =f =o .",
            ),
        ),
    ),
    (
        "adjunct_island",
        "island_effects",
        "syntax",
        (
            (
                "what did Name.g:s Vt.base:v!s Sub:c Name.h:t Vt.past:w<t Det.m:e Thing.m:o ?",
                "what did =s =v =e =o =c =t =w ?",
            ),
        ),
    ),
    (
        "npi_present",
        "npi_licensing",
        "semantics",
        (
            (
                "no Anim.n:s Prep:p Det.m:e Place.m:q<s Have.n:h ever Vi.pp:v!s .",
                "no =s =p =e =q =h already =v .",
            ),
            (
                "Pos.n:d Anim.n:s Prep:p Det.m:e Place.m:q<s Have.n:h already Vi.pp:v!s .",
                "=d =s =p =e =q =h ever =v .",
            ),
        ),
    ),
    (
        "existential_there_quantifiers",
        "quantifiers",
        "semantics",
        (("there Be.n:b Weak.n Thing.n:s Prep:p Det.m:e Place.m:q!s .", "there =b Strong.n =s =p =e =q ."),),
    ),
    (
        "existential_there_raising",
        "control_raising",
        "syntax_semantics",
        (
            (
                "there Modal:k Raise.base to be Weak.n:w Thing.n:s Prep:p Det.m:e Place.m:q!s .",
                "there =k Control.base to be =w =s =p =e =q .",
            ),
        ),
    ),
    (
        "ellipsis_n_bar",
        "ellipsis",
        "syntax",
        (
            (
                "Name.g:s Vt.past:v<s Num.n:k Adj:a Thing.n:o!a and Name.h:t Vt.past:w<t Num.pl:l .",
                "=s =v =k =o and =t =w =l =a .",
            ),
        ),
    ),
)


def _uniform(seed: int, *stream: int) -> Callable[[], float]:
    """Numbers in [0, 1), the same on every machine; drawn in blocks because single draws are slow."""
    rng = np.random.default_rng([seed, *stream])
    blocks = (value for _ in itertools.count() for value in rng.random(1 << 14).tolist())
    return blocks.__next__


def _words(chosen: tuple[grammar.Slot, ...], picked: list[int]) -> list[str]:
    return [grammar.category(slot.category).words[i] for slot, i in zip(chosen, picked, strict=True)]


def sentences(domain: str, seed: int, stream: int = 0) -> Iterator[str]:
    """Endless sentences of `domain`, independent of each other."""
    factor, _ = DOMAINS[domain]
    uniform = _uniform(seed, list(DOMAINS).index(domain), stream)
    shapes = grammar.shapes()
    steps = list(itertools.accumulate(shape.weight * factor.get(shape.name, 1.0) for shape in shapes))
    while True:
        chosen = shapes[bisect_right(steps, uniform() * steps[-1])].slots
        yield grammar.realise(_words(chosen, grammar.draw(chosen, uniform)))


def lines(domain: str, words: int, seed: int, stream: int = 0) -> Iterator[str]:
    """About `words` words of `domain` in the format of its BabyLM file, markup and noise included."""
    source = sentences(domain, seed, stream)
    chance = _uniform(seed, list(DOMAINS).index(domain), stream, 1)
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
    folder.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        for stream, (split, total) in enumerate((("train", words), ("dev", dev_words))):
            text = "".join(line + "\n" for line in lines(domain, math.ceil(total / len(DOMAINS)), seed, stream))
            paths.write_text(folder / f"{domain}.{split}", text)


def _pair(template: tuple[str, str], uniform: Callable[[], float]) -> tuple[str, str]:
    """One good and one bad sentence; the held-out combination is in the good one."""
    good_pattern, bad_pattern = template
    letters = sorted(set(grammar.FEATURES) & set("".join(c if c.isalpha() or c == "." else " " for c in good_pattern)))
    features = {letter: grammar.FEATURES[letter][int(uniform() * 2)] for letter in letters}
    good = grammar.slots(good_pattern, features)
    picked = grammar.draw(good, uniform)
    labels = {slot.label: (slot, index) for slot, index in zip(good, picked, strict=True) if slot.label}
    bad = []
    for token in bad_pattern.split():
        if token.startswith("="):
            label, _, form = token[1:].partition(":")
            slot, index = labels[label]
            name = grammar.slots(form, features)[0].category if form else slot.category
            bad.append(grammar.category(name).words[index])
        else:
            slot = grammar.slots(token, features)[0]
            bad.append(grammar.category(slot.category).words[grammar.draw((slot,), uniform)[0]])
    return grammar.realise(_words(good, picked)), grammar.realise(bad)


def pairs(paradigm: int, seed: int) -> Iterator[tuple[str, str]]:
    """Endless distinct (good, bad) pairs of paradigm number `paradigm` of `PAIRS`."""
    templates = PAIRS[paradigm][3]
    uniform = _uniform(seed, 1000 + paradigm)
    seen: set[str] = set()
    for turn in itertools.count():
        try:
            good, bad = _pair(templates[turn % len(templates)], uniform)
        except LookupError:  # this parent has no held-out child: draw again
            continue
        if good not in seen:
            seen.add(good)
            yield good, bad


def write_pairs(folder: Path, seed: int, per_paradigm: int = 100) -> None:
    """Write ``<paradigm>.jsonl`` for every paradigm, keys as in BLiMP."""
    for number, (paradigm, term, field, _) in enumerate(PAIRS):
        rows = [
            {
                "sentence_good": good,
                "sentence_bad": bad,
                "field": field,
                "linguistics_term": term,
                "UID": paradigm,
                "simple_LM_method": True,
                "pair_id": str(index),
            }
            for index, (good, bad) in enumerate(itertools.islice(pairs(number, seed), per_paradigm))
        ]
        paths.write_text(folder / f"{paradigm}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def entropy_floor(objective: str, mask_ratio: float, seed: int = 0, per_domain: int = 400) -> tuple[float, float]:
    """(floor, standard error): the least loss, in nats per scored token, that any model can reach in expectation.

    A sample of `per_domain` lines of each domain, scored by a predictor that knows grammar and domain:

    clm  -log p(sentence) over its words and its end, which is certain after the full stop
    mlm  each word is masked with probability `mask_ratio`; a masked word costs
         -log p(word | visible words) = -log p(visible and word) + log p(visible), both exact

    Exact for a tokenizer that keeps words whole: sentences are independent given the domain, so wider context
    cannot do better. A title of simple_wiki is one word out of equally likely ones.
    """
    lines_floor = _causal_floor if objective == "clm" else _masked_floor
    rng = np.random.default_rng([seed, 77])
    values = []
    for domain, (factor, length) in DOMAINS.items():
        titles = per_domain // length if domain == "simple_wiki" else 0
        for sentence in itertools.islice(sentences(domain, seed, stream=9), per_domain - titles):
            values.append(lines_floor(grammar.unrealise(sentence), factor, mask_ratio, rng))
        chosen = (rng.random(titles) < mask_ratio).astype(float) if objective == "mlm" else np.ones(titles)
        values += [(math.log(len(TITLES)) * c, c if objective == "mlm" else 2.0) for c in chosen]
    nats, counts = np.array(values).T
    floor = nats.sum() / counts.sum()
    return float(floor), float(np.sqrt(((nats - floor * counts) ** 2).sum()) / counts.sum())  # of a ratio


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
