"""The scoring benchmark on two pairs: same scores from all three scorers, and the fields that others read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wmlkit.bench import scoring as bench
from wmlkit.errors import UserError


def test_the_benchmark_compares_equal_scores() -> None:
    result = bench.bench_scoring("small", repeats=1, pairs=2)
    assert set(result["ratios"]) == {"speedup_vs_naive", "speedup_vs_batched"}
    assert all(ratio > 0 for ratio in result["ratios"].values())
    times = {variant["name"]: variant["median_ms"] for variant in result["variants"]}
    assert result["ratios"]["speedup_vs_naive"] == pytest.approx(times["naive"] / times["wmlkit"])
    assert result["ratios"]["speedup_vs_batched"] == pytest.approx(times["batched"] / times["wmlkit"])
    assert result["pairs"] == 2 and result["max_difference"] < 1e-4
    json.dumps(result, allow_nan=False)


def test_scorers_that_disagree_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "score_sentences", lambda model, tokenizer, sentences: np.zeros(len(sentences)))
    with pytest.raises(RuntimeError, match="the scorers disagree by"):
        bench.bench_scoring("small", repeats=1, pairs=1)


def test_unknown_setting_is_named() -> None:
    with pytest.raises(UserError, match="no scoring setting 'huge'"):
        bench.bench_scoring("huge")
