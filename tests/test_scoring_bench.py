"""The scoring benchmark on two pairs: same scores from all three scorers, and the fields that others read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from wmlkit.bench import scoring as bench
from wmlkit.cli import app
from wmlkit.errors import UserError


@pytest.fixture
def measured_apart(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what `peaks` measured: here, and not in a process of its own, which takes seconds to start."""
    called = []

    def here(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
        called.append(function.__name__)
        return function(*arguments)

    monkeypatch.setattr(bench, "peaks", here)
    monkeypatch.setattr(bench, "BATCH_SIZES", (1, 8))
    return called


def test_the_benchmark_compares_equal_scores(measured_apart: list[str]) -> None:
    result = bench.bench_scoring("small", repeats=1, pairs=2)
    assert set(result["ratios"]) == {"speedup_vs_naive", "speedup_vs_batched"}
    assert all(ratio > 0 for ratio in result["ratios"].values())
    times = {variant["name"]: variant["median_ms"] for variant in result["variants"]}
    assert result["ratios"]["speedup_vs_naive"] == pytest.approx(times["naive"] / times["wmlkit"])
    assert result["ratios"]["speedup_vs_batched"] == pytest.approx(times["batched"] / times["wmlkit"])
    assert result["pairs"] == 2 and result["max_difference"] < 1e-4
    assert measured_apart == ["scoring_peaks"]  # not beside what is timed
    assert all(set(one) == {"name", "median_ms", "cpu_ms", "peak_mib"} for one in result["variants"])
    assert list(times) == ["wmlkit", "batched", "naive"] and result["batch_size_of_batched"] in bench.BATCH_SIZES
    json.dumps(result, allow_nan=False)


def test_threads_are_an_option(measured_apart: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's command names them, and the document says how many there were."""
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: given[-1])
    arguments = ["bench", "scoring", "--setting", "small", "--repeats", "1", "--pairs", "1", "--threads", "2", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and json.loads(result.stdout)["threads"] == 2


def test_scorers_that_disagree_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "score_sentences", lambda model, tokenizer, sentences: np.zeros(len(sentences)))
    with pytest.raises(RuntimeError, match="the scorers disagree by"):
        bench.bench_scoring("small", repeats=1, pairs=1)


def test_unknown_setting_is_named() -> None:
    with pytest.raises(UserError, match="no scoring setting 'huge'"):
        bench.bench_scoring("huge")
