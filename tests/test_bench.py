"""The benchmark of the data path: its arithmetic by hand, and one run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from wmlkit.bench import data as bench
from wmlkit.bench.measure import describe
from wmlkit.errors import UserError


class InThisProcess:
    """What `bench_data` uses of a ProcessPoolExecutor, without starting a process."""

    def __init__(self, workers: int, mp_context: Any) -> None:
        assert workers == 1

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future


def test_ratios_by_hand() -> None:
    def run(words: int, seconds: float, peak: float) -> bench.Measured:
        return {"words": words, "seconds": seconds, "cpu": seconds / 2, "start_mib": 50.0, "peak_mib": peak}

    slow = run(1000, 9.0, 100.0)  # one bad moment of three does not count
    result = bench._summary({1: [run(1000, 1.0, 100.0), slow, run(1000, 1.0, 100.0)], 10: [run(10_000, 11.0, 109.0)]})
    first, last = result["variants"]
    assert (first["name"], first["median_ms"], first["words_per_second"]) == ("1x", 1000.0, 1000.0)
    assert last["cpu_ms"] == 5500.0 and last["peak_mib"] == 109.0
    assert result["ratios"] == pytest.approx(
        {"time_a_word_10x": 1.1, "cpu_a_word_10x": 1.1, "mib_a_million_words": 1000.0}
    )


def test_sizes_of_a_folder_hold_different_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BLOCK_LINES", 2)
    lines = [str(number) for number in range(45)]
    tenth, all_of_it = ([line[:-1] for line in bench._blocks(iter(lines), tenths)] for tenths in (1, 10))
    assert tenth == ["0", "1", "20", "21", "40", "41"] and all_of_it == lines


@pytest.mark.parametrize("corpus", ["nursery", "folder"])
def test_the_data_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: str) -> None:
    monkeypatch.setattr(bench, "ProcessPoolExecutor", InThisProcess)
    if corpus == "folder":
        corpus = str(tmp_path / "folder")
        monkeypatch.setattr(bench, "BLOCK_LINES", 20)
        bench.nursery.write_corpus(tmp_path / "folder", 40_000, 8000, seed=0)
    document = describe("data", bench.bench_data(corpus, words=1000, vocab_size=400, repeats=1))
    assert list(document)[:3] == ["setting", "machine", "commit"] and document["setting"] == Path(corpus).name
    assert [variant["name"] for variant in document["variants"]] == ["1x", "4x", "10x"]
    words = [variant["words"] for variant in document["variants"]]
    assert 2 * words[0] < words[1] < words[2] and all(variant["median_ms"] > 0 for variant in document["variants"])
    names = {f"{kind}_a_word_{size}" for kind in ("time", "cpu") for size in ("4x", "10x")}
    assert set(document["ratios"]) == names | {"mib_a_million_words"}
    json.dumps(document, allow_nan=False)


def test_a_text_of_fewer_lines_than_ten_blocks_is_refused(tmp_path: Path) -> None:
    for lines in (90, 600):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / "a.train").write_text("the cat sat on the mat.\n" * lines)
        with pytest.raises(UserError, match="mine is too short to be measured in tenths, .* expected 2,000 lines"):
            bench.bench_data(str(tmp_path / "mine"), vocab_size=300, repeats=1)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="repeats is 0"):
        bench.bench_data(repeats=0)
    with pytest.raises(UserError, match="there is no corpus"):
        bench.bench_data(str(tmp_path / "nothing"))
