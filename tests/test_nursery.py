"""The embedded corpus: bytes fixed by the seed, pairs certified by the grammar, probabilities that add up."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest

from wmlkit.config import load_preset
from wmlkit.data import cleaning, grammar, nursery, nursery_pairs
from wmlkit.data.corpora import folder_source, read_lines
from wmlkit.errors import UserError
from wmlkit.evaluate.suites import pairs_folder

PARADIGMS = [paradigm for paradigm, *_ in nursery_pairs.PAIRS]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nursery")
    nursery.write_corpus(folder, 60_000, 6_000, seed=0)
    return folder


@pytest.fixture(scope="module")
def train_sentences(corpus):
    """All cleaned training sentences."""
    return {
        line
        for file in folder_source("nursery", corpus).files
        if file.split == "train"
        for line in cleaning.cleaner(file.domain)(read_lines(file))
        if line
    }


@pytest.fixture(scope="module")
def many_pairs():
    return {name: list(itertools.islice(nursery_pairs.pairs(i, 0), 100)) for i, name in enumerate(PARADIGMS)}


def test_same_seed_same_bytes(corpus, tmp_path):
    nursery.write_corpus(tmp_path, 60_000, 6_000, seed=0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(f"{domain}.{split}" for domain in nursery.DOMAINS for split in ("train", "dev"))
    assert all((tmp_path / name).read_bytes() == (corpus / name).read_bytes() for name in names)


def test_the_bytes_are_those_of_every_machine(corpus):
    """A fixed checksum: another NumPy or Python that drew other numbers would change every result."""
    digest = hashlib.sha256(b"".join((corpus / f"{d}.train").read_bytes() for d in nursery.DOMAINS)).hexdigest()
    assert digest[:16] == "9e700776892e4817"


def test_another_seed_gives_other_text(tmp_path, corpus):
    nursery.write_corpus(tmp_path, 6_000, 600, seed=1)
    assert (tmp_path / "childes.train").read_bytes()[:2000] != (corpus / "childes.train").read_bytes()[:2000]


def test_word_counts(corpus):
    words = sum(len((corpus / f"{d}.train").read_text().split()) for d in nursery.DOMAINS)
    assert 60_000 <= words <= 75_000  # the formats add speaker codes and markup


def test_cleaning_leaves_the_grammar_s_sentences(train_sentences):
    """Every cleaned line is a sentence of the grammar, or a title."""
    titles = {title.capitalize() for title in nursery.TITLES}
    odd = [s for s in train_sentences - titles if grammar.visible_probability(grammar.unrealise(s)) == 0]
    assert not odd, odd[:3]


def test_no_test_sentence_is_in_the_training_text(train_sentences, many_pairs):
    sentences = {sentence for pairs in many_pairs.values() for pair in pairs for sentence in pair}
    assert not sentences & train_sentences


def grammatical(words):
    """Whether a pattern admits the words, with combinations that are kept out of the training text too."""
    shapes = (shape.slots for shape in grammar.shapes() if len(shape.slots) == len(words))
    return any(
        all(w in grammar.category(slot.category).words for w, slot in zip(words, own, strict=True)) for own in shapes
    )


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_the_grammar_certifies_each_pair(paradigm, many_pairs):
    """Good sentences are grammatical but use a combination that is kept out; bad ones are ungrammatical."""
    assert len({good for good, _ in many_pairs[paradigm]}) == 100
    for good, bad in many_pairs[paradigm]:
        assert grammatical(grammar.unrealise(good)), good
        assert grammar.visible_probability(grammar.unrealise(good)) == 0, good
        assert not grammatical(grammar.unrealise(bad)), bad


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_pairs_differ_in_one_point(paradigm, many_pairs):
    """One word is exchanged, or the same words stand in another order."""
    for good, bad in many_pairs[paradigm]:
        a, b = good.replace(".", " .").split(), bad.replace(".", " .").split()
        exchanged = len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1
        moved = Counter(good.rstrip(".?").split()) == Counter(bad.rstrip(".?").split())
        assert exchanged or moved, (good, bad)


def test_paradigms_cover_the_phenomena():
    assert len({term for _, term, *_ in nursery_pairs.PAIRS}) == 12  # all of BLiMP's


def test_word_counts_do_not_solve_the_pairs(train_sentences, many_pairs):
    """Smoothed bigrams and unigrams over words: at least 8 paradigms under 60 %."""
    unigrams: Counter[str] = Counter()
    bigrams: Counter[tuple[str, str]] = Counter()
    for sentence in train_sentences:
        words = ["<s>", *grammar.unrealise(sentence)]
        unigrams.update(words)
        bigrams.update(itertools.pairwise(words))

    def bigram(sentence: str) -> float:
        words = ["<s>", *grammar.unrealise(sentence)]
        return sum(
            math.log((bigrams[pair] + 0.1) / (unigrams[pair[0]] + 0.1 * len(unigrams)))
            for pair in itertools.pairwise(words)
        )

    def unigram(sentence: str) -> float:
        return sum(math.log(unigrams[word] + 0.1) for word in grammar.unrealise(sentence))

    for score in (bigram, unigram):
        solved = {
            name: np.mean([1.0 if score(g) > score(b) else 0.5 if score(g) == score(b) else 0.0 for g, b in pairs])
            for name, pairs in many_pairs.items()
        }
        assert sum(value < 0.6 for value in solved.values()) >= 8, solved


def test_pair_files_have_blimp_s_format():
    files = nursery_pairs.pair_files(seed=0, per_paradigm=3)
    assert sorted(files) == sorted(PARADIGMS) and files == nursery_pairs.pair_files(seed=0, per_paradigm=3)
    for content in files.values():
        rows = [json.loads(line) for line in content.splitlines()]
        assert len(rows) == 3
        assert {"sentence_good", "sentence_bad", "field", "linguistics_term", "UID", "pair_id"} <= set(rows[0])


def test_more_pairs_than_a_paradigm_has_are_refused_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(nursery_pairs, "IDLE_DRAWS", 1000)  # as in earnest, but sooner
    config = load_preset("nursery", {"evaluate.per_paradigm": 500})
    with pytest.raises(UserError, match=r"principle_A_domain gives only (\d+) .*per_paradigm at most \1; lower it"):
        pairs_folder(config, "nursery", tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_probabilities_add_up_over_a_masked_word():
    """Summing over all words at one place gives the probability with that place masked."""
    words = grammar.unrealise("Mary has slowly stolen these cups.")
    for place in range(len(words)):
        masked = [None if i == place else word for i, word in enumerate(words)]
        total = sum(
            grammar.visible_probability([w if i == place else word for i, word in enumerate(words)])
            for w in grammar.vocabulary()
        )
        assert grammar.visible_probability(masked) == pytest.approx(total, rel=1e-9)


def test_probability_of_all_words_masked_is_the_share_of_that_length():
    lengths = Counter()
    for shape in grammar.shapes():
        lengths[len(shape.slots)] += shape.weight
    total = sum(lengths.values())
    for length, weight in lengths.items():
        assert grammar.visible_probability([None] * length) == pytest.approx(weight / total)


def test_frequencies_follow_the_probabilities():
    """What is sampled is what the floor is computed from: a common sentence's share within three standard errors."""
    sample = list(itertools.islice(nursery.sentences("childes", 3), 40_000))
    factor, _ = nursery.DOMAINS["childes"]
    for sentence, count in Counter(sample).most_common(5):
        p = grammar.visible_probability(grammar.unrealise(sentence), factor)
        assert abs(count - 40_000 * p) < 4 * math.sqrt(40_000 * p)


def test_floor_is_below_the_entropy_of_single_words():
    masked, error = nursery.entropy_floor("mlm", 0.3, per_domain=100)
    causal, _ = nursery.entropy_floor("clm", 0.3, per_domain=100)
    assert 0 < masked < causal < 4 and 0 < error < 0.1
    fewer_masked, _ = nursery.entropy_floor("mlm", 0.1, per_domain=100)
    assert fewer_masked < masked  # more visible words, less uncertainty


def test_floor_of_causal_models_by_hand() -> None:
    """A line costs its words and its end, which is certain; so does a title, one word of equally likely ones."""
    nats, counts = [], []
    for domain, (_, length) in nursery.DOMAINS.items():
        titles = 60 // length if domain == "simple_wiki" else 0
        for line in itertools.islice(nursery.sentences(domain, 0, stream=9), 60 - titles):
            own, words = nursery.line_floor(line, domain, "clm")
            nats.append(own)
            counts.append(words + 1)
        nats += [math.log(len(nursery.TITLES))] * titles
        counts += [2] * titles
    ratio = sum(nats) / sum(counts)
    squares = sum((own - ratio * count) ** 2 for own, count in zip(nats, counts, strict=True))
    found = nursery.entropy_floor("clm", 0.3, per_domain=60)
    assert found == pytest.approx((ratio, math.sqrt(squares) / sum(counts)))


def test_floor_of_a_text_is_that_of_the_grammar() -> None:
    """By brute force over the vocabulary, and in the mean the floor that is known in expectation."""
    line, factor = next(nursery.sentences("childes", 5)), nursery.DOMAINS["childes"][0]
    words = grammar.unrealise(line)
    whole = grammar.visible_probability(list(words), factor)
    assert nursery.line_floor(line, "childes", "clm") == (pytest.approx(-math.log(whole)), len(words))
    cost = 0.0
    for i in range(len(words)):
        total = sum(
            grammar.visible_probability([*words[:i], other, *words[i + 1 :]], factor) for other in grammar.vocabulary()
        )
        cost -= math.log(whole / total)
    assert nursery.line_floor(line, "childes", "mlm") == (pytest.approx(cost), len(words))
    assert nursery.line_floor("Cat a is there.", "childes", "mlm") is None
    title = nursery.TITLES[0].capitalize()
    assert nursery.line_floor(title, "simple_wiki", "clm") == (pytest.approx(math.log(len(nursery.TITLES))), 1)
    lines = [line for domain in nursery.DOMAINS for line in itertools.islice(nursery.sentences(domain, 3), 60)]
    domains = [domain for domain in nursery.DOMAINS for _ in range(60)]
    nats, counts = np.array([nursery.line_floor(*both, "clm") for both in zip(lines, domains, strict=True)]).T
    floor, error = nursery.entropy_floor("clm", 0.3, per_domain=100)
    assert nats.sum() / (counts.sum() + len(lines)) == pytest.approx(floor, abs=0.15)  # its count has the line ends
