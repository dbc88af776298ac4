"""The nursery's minimal pairs: one paradigm or more for each of BLiMP's twelve phenomena, in BLiMP's format.

A good sentence holds a lexical combination that the training text never has; the bad one differs in one word or
in word order and is not a sentence of the grammar.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator

from ..errors import UserError
from . import grammar
from .nursery import uniform_numbers, words_of

IDLE_DRAWS = 50_000  # draws in a row without a new pair after which a paradigm counts as exhausted

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


def _pair(template: tuple[str, str], uniform: Callable[[], float]) -> tuple[str, str]:
    """One good and one bad sentence; the combination that is kept out is in the good one."""
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
    return grammar.realise(words_of(good, picked)), grammar.realise(bad)


def pairs(paradigm: int, seed: int) -> Iterator[tuple[str, str]]:
    """Distinct (good, bad) pairs of paradigm number `paradigm` of `PAIRS`, as many as are asked for.

    Raises UserError where no new one comes in `IDLE_DRAWS` draws: templates of few words have some hundred pairs only.
    """
    name, _, _, templates = PAIRS[paradigm]
    uniform = uniform_numbers(seed, 1000 + paradigm)
    seen: set[str] = set()
    newest = 0  # turn of the last new pair
    for turn in itertools.count():
        if turn - newest > IDLE_DRAWS:
            raise UserError(
                f"paradigm {name} gives only {len(seen)} different pairs; expected evaluate.per_paradigm at most "
                f"{len(seen)}; lower it (of a benchmark: --pairs)"
            )
        try:
            good, bad = _pair(templates[turn % len(templates)], uniform)
        except LookupError:  # this parent has no child that is kept out: draw again
            continue
        if good not in seen:
            seen.add(good)
            newest = turn
            yield good, bad


def pair_files(seed: int, per_paradigm: int) -> dict[str, bytes]:
    """Paradigm -> its pairs, a JSON object a line, keys as in BLiMP. Raises UserError where one has too few pairs."""
    files: dict[str, bytes] = {}
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
        files[paradigm] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return files
