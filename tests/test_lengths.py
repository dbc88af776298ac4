"""Accuracy by which sentence of a pair has more tokens: counts by hand, shares from the items of runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from fake_runs import write_study

from wmlkit import paths
from wmlkit.data.tokenizer import train_tokenizer
from wmlkit.evaluate.protocols import PROTOCOLS
from wmlkit.evaluate.suites import read_suite
from wmlkit.items import ITEM, items_table
from wmlkit.lengths import TOKENS, by_length, token_counts
from wmlkit.runs import read_runs


def test_tokens_are_counted_as_the_tokenizer_cuts(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the cat sleeps", "the cats sleep now"] * 9, 300)
    lines = [("The cat.", "The cat sleeps now."), ("the cat sleeps", "the cat sleep"), ("the cats sleep now", "the")]
    text = "".join(f'{{"sentence_good": "{good}", "sentence_bad": "{bad}"}}\n' for good, bad in lines)
    paths.write_text(tmp_path / "toy.jsonl", text)
    pairs = read_suite(tmp_path, PROTOCOLS["babylm2025"])
    cut = [[len(tokenizer.tokenize(sentence)) for sentence in pair] for pair in lines]
    assert cut[1][0] == cut[1][1]
    counts = token_counts([*pairs, pairs[0]], tokenizer)
    assert list(counts["tokens"]) == ["fewer", "as many", "more", "fewer"]
    assert list(counts["copy"]) == [0, 0, 0, 1] and list(counts.columns) == [*ITEM, "tokens"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = (("independent", 2), ("wml", 2), ("wml", 1))
    return write_study(tmp_path_factory.mktemp("runs") / "nursery", study, protocols=("babylm2025",))


def test_shares_are_those_of_the_items(folder: Path) -> None:
    runs = read_runs(folder)
    items = items_table(runs[0], "nursery", "babylm2025")
    assert items is not None
    counts = items[ITEM].assign(tokens=[TOKENS[number % 3] for number in range(len(items))])
    counts = counts[counts.index % 7 != 0]  # a pair that was not scored, or is not there any more, is left out
    table = by_length(runs, "nursery", "babylm2025", counts)
    assert list(dict.fromkeys(table["tokens"])) == list(TOKENS)
    assert table.groupby("tokens")["pairs"].unique().str[0].to_dict() == counts["tokens"].value_counts().to_dict()
    wml = [run for run in runs if (run.arm, run.peers) == ("wml", 2)]
    for member in ("best_peer", "mean_peer", "ensemble"):
        own = table[(table["arm"] == "wml") & (table["peers"] == 2) & (table["member"] == member)].set_index("tokens")
        for number, tokens in enumerate(TOKENS):
            expected = []
            for run in wml:
                scored = items_table(run, "nursery", "babylm2025")
                assert scored is not None
                kept = [row for row in range(len(scored)) if row % 3 == number and row % 7]
                expected.append(100 * scored[member].iloc[kept].mean())
            assert own.loc[tokens, "mean"] == pytest.approx(sum(expected) / 3)
            assert own.loc[tokens, "n_seeds"] == 3 and own.loc[tokens, "pairs"] == len(kept)
    assert set(table[table["peers"] == 1]["member"]) == {"best_peer", "mean_peer"}


def test_runs_of_other_settings_are_left_out(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), protocols=("babylm2025",))
    items = items_table(read_runs(folder)[0], "nursery", "babylm2025")
    assert items is not None
    counts = items[ITEM].assign(tokens="more")
    before = by_length(read_runs(folder), "nursery", "babylm2025", counts)
    write_study(folder, (("wml", 2),), (0,), ("babylm2025",), overrides={"mutual.alpha": 0.9})
    assert len(runs := read_runs(folder)) == 4 and sum(bool(run.setting) for run in runs) == 1
    pd.testing.assert_frame_equal(by_length(runs, "nursery", "babylm2025", counts), before)


def test_pairs_and_suites_without_items_are_left_out(folder: Path) -> None:
    runs = read_runs(folder)
    counts = pd.DataFrame({"paradigm": ["none"], "pair_id": ["0"], "copy": [0], "tokens": ["more"]})
    assert by_length(runs, "nursery", "babylm2025", counts).empty
    assert by_length(runs, "blimp", "babylm2025", counts).empty
