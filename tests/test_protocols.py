"""What the protocols do with scores: ties, the 2024 ordering fault, averages; parity with the official pipelines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmlkit.errors import UserError
from wmlkit.evaluate.protocols import (
    PROTOCOLS,
    TIE_TOLERANCE,
    as_returned,
    credit,
    get_protocol,
    is_tie,
    macro_average,
    paradigm_rows,
    perfect_score,
    released_order,
    tie_rule,
)
from wmlkit.evaluate.suites import Pair, read_suite
from wmlkit.study_settings import ProtocolName

BLIMP = Path(__file__).parents[2] / "shared" / "data" / "babylm_eval" / "blimp_filtered"
needs_blimp = pytest.mark.skipif(
    not BLIMP.is_dir(), reason="needs the BLiMP files of ../shared/data, which are not shipped"
)


@pytest.fixture(scope="module")
def blimp() -> list[Pair]:
    return read_suite(BLIMP, PROTOCOLS["babylm2025"])


def made_up(paradigms: dict[str, list[tuple[str, str]]], context: str = "") -> list[Pair]:
    return [
        Pair(name, name, "f", str(i), good, bad, context, context, f"{name} line {i}")
        for name, rows in paradigms.items()
        for i, (good, bad) in enumerate(rows)
    ]


def ewok_shaped(n: int) -> list[Pair]:
    """Each item followed by its swapped copy, as the 2024 pipeline writes EWoK."""
    pairs = []
    for i in range(n):
        contexts = [f"context {i} a", f"context {i} b is longer"]
        targets = [f"target {i} a", f"target {i} b"]
        for good in (0, 1):
            context = contexts[good]
            pairs.append(Pair("d", "d", "ewok", str(i), targets[good], targets[1 - good], context, context, ""))
    return pairs


def score(
    pairs: list[Pair],
    good: np.ndarray,
    bad: np.ndarray,
    protocol: str,
    ties: str = "protocol",
    objective: str = "mlm",
) -> float:
    """Macro accuracy of given scores under a protocol."""
    rules = PROTOCOLS[protocol]
    if rules.ordering_fault and objective == "mlm":
        sentences = [sentence for pair in pairs for sentence in (pair.good, pair.bad)]
        contexts = [context for pair in pairs for context in (pair.good_context, pair.bad_context)]
        good, bad = as_returned(good, bad, released_order(sentences, [(len(c.split()), c) for c in contexts]))
    earned = credit(good, bad, tie_rule(rules, ties), seed=0)
    names = [pair.paradigm for pair in pairs]
    return macro_average(paradigm_rows(names, names, names, earned, is_tie(good, bad)))


def perfect(pairs: list[Pair]) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(len(pairs)), np.zeros(len(pairs))


def uniform(pairs: list[Pair], reduction: str) -> tuple[np.ndarray, np.ndarray]:
    """A model that knows nothing, over words and punctuation marks of a vocabulary of 1,000."""

    def one(sentence: str) -> float:
        count = len(re.findall(r"\w+|[^\w\s]", sentence))
        return -np.log(1000) * (count if reduction == "sum" else 1)

    return np.array([one(pair.good) for pair in pairs]), np.array([one(pair.bad) for pair in pairs])


# The parity kit on the real pairs: percentages that the official pipelines give for scorers of known quality.


@needs_blimp
def test_parity_perfect_scorer(blimp: list[Pair]) -> None:
    assert len(blimp) == 59_875 and len({pair.paradigm for pair in blimp}) == 67
    assert score(blimp, *perfect(blimp), "babylm2024-released") == pytest.approx(80.3, abs=0.05)
    for name in ("babylm2024-fixed", "babylm2025", "babylm2026"):
        assert score(blimp, *perfect(blimp), name) == 100


@needs_blimp
def test_parity_displaced_requests(blimp: list[Pair]) -> None:
    sentences = [sentence for pair in blimp for sentence in (pair.good, pair.bad)]
    order = released_order(sentences, [(0, "")] * len(sentences))
    assert (order != np.arange(len(order))).sum() == 60_592
    assert len(sentences) - len(set(sentences)) == 46


@needs_blimp
@pytest.mark.parametrize(("paradigm", "accuracy"), [("transitive", 100), ("intransitive", 60.6)])
def test_one_call_a_paradigm_hurts_only_repeated_sentences(blimp: list[Pair], paradigm: str, accuracy: float) -> None:
    pairs = [pair for pair in blimp if pair.paradigm == paradigm]
    assert score(pairs, *perfect(pairs), "babylm2024-released") == pytest.approx(accuracy, abs=0.05)


@needs_blimp
def test_parity_constant_scorer(blimp: list[Pair]) -> None:
    same = np.zeros(len(blimp)), np.zeros(len(blimp))
    assert score(blimp, *same, "babylm2024-released") == 100
    assert score(blimp, *same, "babylm2024-fixed") == 100
    assert score(blimp, *same, "babylm2025") == 100
    # 59,875 fair coins, averaged over 67 paradigms: standard deviation 0.2 percent
    assert score(blimp, *same, "babylm2026") == pytest.approx(50, abs=1)
    for name in PROTOCOLS:
        assert score(blimp, *same, name, ties="half") == 50


@needs_blimp
def test_parity_uniform_scorer(blimp: list[Pair]) -> None:
    assert score(blimp, *uniform(blimp, "mean"), "babylm2024-released") == 100
    assert score(blimp, *uniform(blimp, "mean"), "babylm2024-fixed") == 100
    assert score(blimp, *uniform(blimp, "sum"), "babylm2025") == pytest.approx(97.95, abs=0.005)
    assert score(blimp, *uniform(blimp, "sum"), "babylm2026") == pytest.approx(51.05, abs=1)
    assert score(blimp, *uniform(blimp, "sum"), "babylm2025", ties="half") == pytest.approx(51.05, abs=0.05)


@needs_blimp
def test_parity_causal_models_of_2024(blimp: list[Pair]) -> None:
    """Their scores come back in order and are sums: both names of 2024 say the same of them."""
    same = np.zeros(len(blimp)), np.zeros(len(blimp))
    for name in ("babylm2024-released", "babylm2024-fixed"):
        assert PROTOCOLS[name].reduction("clm") == "sum" and PROTOCOLS[name].reduction("mlm") == "mean"
        assert score(blimp, *perfect(blimp), name, objective="clm") == 100
        assert score(blimp, *same, name, objective="clm") == 100
        found = score(blimp, *uniform(blimp, PROTOCOLS[name].reduction("clm")), name, objective="clm")
        assert found == pytest.approx(97.95, abs=0.005)


@needs_blimp
def test_parity_word_order_alone(blimp: list[Pair]) -> None:
    """What an order-blind scorer can know: 12 paradigms are permutations of the same words, 18.4 % of all pairs."""

    def words(text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", text.lower())

    same = np.array([sorted(words(pair.good)) == sorted(words(pair.bad)) for pair in blimp])
    names = np.array([pair.paradigm for pair in blimp])
    permuted = [name for name in set(names) if same[names == name].all()]
    assert len(permuted) == 12 and 100 * same.mean() == pytest.approx(18.4, abs=0.05)
    longer = np.sign([len(words(pair.good)) - len(words(pair.bad)) for pair in blimp])
    shares = {
        sign: 100 * np.mean([(longer[names == name] == sign).mean() for name in set(names)]) for sign in (-1, 0, 1)
    }
    assert [shares[sign] for sign in (-1, 0, 1)] == pytest.approx([4.2, 93.8, 2.0], abs=0.06)


@needs_blimp
def test_parity_perfect_score_of_the_package(blimp: list[Pair]) -> None:
    names = [pair.paradigm for pair in blimp]
    requests = [sentence for pair in blimp for sentence in (pair.good, pair.bad)], [(0, "")] * (2 * len(blimp))
    found = {name: perfect_score(names, *requests, rules, "mlm") for name, rules in PROTOCOLS.items()}
    assert found.pop("babylm2024-released") == pytest.approx(80.3, abs=0.05) and set(found.values()) == {100}
    swapped = perfect_score(names, *requests, PROTOCOLS["babylm2024-released"], "mlm", swapped_copies=True)
    assert swapped == pytest.approx(50, abs=0.1)  # exactly 50 where no two pairs share a sentence
    assert perfect_score(names, *requests, PROTOCOLS["babylm2024-released"], "clm", swapped_copies=True) == 100


@needs_blimp
def test_the_twelve_phenomena_of_blimp(blimp: list[Pair]) -> None:
    names = [pair.paradigm for pair in blimp]
    rows = paradigm_rows(
        names, [p.phenomenon for p in blimp], [p.field for p in blimp], np.ones(len(blimp)), np.zeros(len(blimp))
    )
    assert len({row["phenomenon"] for row in rows}) == 12
    assert {row["field"] for row in rows} == {"morphology", "syntax", "semantics", "syntax_semantics"}


# The same kit on items of the same shape.


def test_parity_ewok_shaped_items() -> None:
    pairs = ewok_shaped(25)
    assert score(pairs, *perfect(pairs), "babylm2024-released") == 50
    for name in ("babylm2024-fixed", "babylm2025", "babylm2026"):
        assert score(pairs, *perfect(pairs), name) == 100
    same = np.zeros(len(pairs)), np.zeros(len(pairs))
    assert [score(pairs, *same, name) for name in ("babylm2024-released", "babylm2024-fixed", "babylm2025")] == [
        100
    ] * 3
    assert 20 < score(pairs, *same, "babylm2026") < 80
    assert score(pairs, *same, "babylm2025", ties="half") == 50


def test_parity_shape_of_blimp() -> None:
    """Two paradigms share a sentence, so all requests between its two places move by one."""
    pairs = made_up(
        {
            "a": [("a1 good", "a1 bad"), ("shared text", "a2 bad")],
            "b": [("b1 good", "b1 bad"), ("b2 good", "shared text"), ("b3 good", "b3 bad")],
            "c": [("c1 same", "c1 same"), ("c2 good", "c2 bad is longer")],
        }
    )
    # returned: a1g a1b | shared shared(bad of b2) | a2b b1g | b1b b2g | b3g b3b | c1 c1 | c2g c2b
    assert score(pairs, *perfect(pairs), "babylm2024-released") == pytest.approx(100 * (1 + 1 / 3 + 1) / 3)
    assert score(pairs, *perfect(pairs), "babylm2024-fixed") == 100
    # words alone: only the last pair differs in length
    assert score(pairs, *uniform(pairs, "sum"), "babylm2025") == 100
    assert score(pairs, *uniform(pairs, "sum"), "babylm2025", ties="half") == pytest.approx((50 + 50 + 75) / 3)
    assert score(pairs, *uniform(pairs, "mean"), "babylm2025", ties="half") == 50


def test_released_order_by_hand() -> None:
    assert released_order(["x", "y", "x", "z", "y"], [(0, "")] * 5).tolist() == [0, 2, 1, 4, 3]
    # inside a group the longest context comes first, then the alphabet decides
    assert released_order(["t", "t", "t"], [(2, "b"), (3, "c"), (2, "a")]).tolist() == [1, 2, 0]
    good, bad = as_returned(np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([0, 2, 1, 3]))
    assert good.tolist() == [1.0, 3.0] and bad.tolist() == [2.0, 4.0]


def test_perfect_score_by_hand() -> None:
    sentences = [f"{name} {kind}" for name in "abc" for kind in ("right", "wrong")]
    contexts = [(1, "x"), (1, "x"), (2, "y"), (2, "y"), (3, "z"), (3, "z")]
    # with the swapped copies a's requests are right x, wrong x, wrong x', right x', of which the first and the third
    # are the good ones; they come back as right x, right x', wrong x, wrong x': good, bad, bad, good
    for name, rules in PROTOCOLS.items():
        swapped = perfect_score("pqr", sentences, contexts, rules, "mlm", swapped_copies=True)
        assert swapped == (50 if name == "babylm2024-released" else 100)
        assert perfect_score("pqr", sentences, contexts, rules, "mlm") == 100
        # the fault is one of the masked models' scorer, and so is the mean over tokens
        assert perfect_score("pqr", sentences, contexts, rules, "clm", swapped_copies=True) == 100
        assert rules.reduction("clm") == "sum"
        assert rules.reduction("mlm") == ("mean" if name.startswith("babylm2024") else "sum")


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30))
def test_released_order_is_a_permutation_that_spares_different_sentences(sentences: list[str]) -> None:
    order = released_order(sentences, [(0, "")] * len(sentences))
    assert sorted(order.tolist()) == list(range(len(sentences)))
    if len(set(sentences)) == len(sentences):
        assert order.tolist() == list(range(len(sentences)))


def test_ties_by_hand() -> None:
    good = np.array([-1.0, -2.0, -3.0, -4.0])
    bad = np.array([-2.0, -1.0, -3.0, -4.0 + TIE_TOLERANCE / 2])
    assert credit(good, bad, "half").tolist() == [1, 0, 0.5, 0.5]
    assert credit(good, bad, "first").tolist() == [1, 0, 1, 1]
    assert is_tie(good, bad).tolist() == [False, False, True, True]


def test_random_ties_follow_their_seed_and_touch_ties_only() -> None:
    good, bad = np.zeros(4000), np.zeros(4000)
    good[0], bad[1] = 1, 1
    first = credit(good, bad, "random", seed=3)
    assert (first == credit(good, bad, "random", seed=3)).all()
    assert (first != credit(good, bad, "random", seed=4)).any()
    assert first[0] == 1 and first[1] == 0
    assert 0.45 < first.mean() < 0.55  # six standard deviations


@pytest.mark.parametrize("ties", ["half", "first", "random"])
def test_what_is_no_number_earns_nothing(ties: str) -> None:
    nan = np.array([np.nan, 1.0, np.nan])
    assert (credit(nan, np.array([0.0, np.nan, np.nan]), ties) == 0).all()  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.floats(-50, 0), st.floats(-50, 0)), min_size=1, max_size=20))
def test_swapping_good_and_bad_turns_half_credit_round(scores: list[tuple[float, float]]) -> None:
    good, bad = (np.array(column) for column in zip(*scores, strict=True))
    np.testing.assert_allclose(credit(good, bad, "half") + credit(bad, good, "half"), 1)


def test_averages_by_hand() -> None:
    rows = paradigm_rows(
        ["p", "p", "q", "p", "r"],
        ["x", "x", "x", "x", "y"],
        ["f", "f", "f", "f", "g"],
        np.array([1.0, 0.0, 1.0, 0.5, 0.0]),
        np.array([False, False, False, True, False]),
    )
    assert [(row["paradigm"], row["accuracy"], row["n"]) for row in rows] == [("p", 50, 3), ("q", 100, 1), ("r", 0, 1)]
    assert rows[0]["ties"] == pytest.approx(100 / 3)
    assert macro_average(rows) == 50  # each paradigm counts once, whatever its size


def test_tie_rule_of_the_year() -> None:
    assert [tie_rule(PROTOCOLS[name], "protocol") for name in PROTOCOLS] == ["first", "first", "first", "random"]
    assert tie_rule(PROTOCOLS["babylm2025"], "half") == "half"
    with pytest.raises(UserError, match="tie rule is 'last'"):
        tie_rule(PROTOCOLS["babylm2025"], "last")  # type: ignore[arg-type]


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'babylm2025'"):
        get_protocol("babylm-2025")


def test_the_setting_names_the_protocols_that_there_are():
    assert get_args(ProtocolName) == tuple(PROTOCOLS)
