"""Accuracy by which sentence of a pair has more tokens: counts as the tokenizer cuts, shares from the items of runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import evaluated, write_study

from wmlkit import paths, results
from wmlkit.data.tokenizer import train_tokenizer
from wmlkit.errors import UserError
from wmlkit.evaluate import spans
from wmlkit.items import items_table
from wmlkit.lengths import GOOD_HAS, by_length
from wmlkit.run_files import Run
from wmlkit.runs import read_runs
from wmlkit.tables import write_tables


def table_of(folder: Path) -> pd.DataFrame:
    return by_length(read_runs(folder), results.scores_table(folder))


def test_tokens_are_counted_as_the_tokenizer_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(["the cat sleeps", "the cats sleep now"] * 9, 300)
    texts = ["The cat.", "the cat sleeps", "", "the cats sleep now", "the"]
    monkeypatch.setattr(spans, "CHUNK", 2)
    counts = spans.token_counts(tokenizer, texts)
    assert counts == [len(tokenizer.tokenize(text)) for text in texts] and counts[2] == 0
    assert len(tokenizer("the")["input_ids"]) > counts[4] == 1  # special tokens are no sentence's


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = (("independent", 2), ("wml", 2), ("wml", 1))
    return write_study(tmp_path_factory.mktemp("runs") / "nursery", study, protocols=("babylm2025", "babylm2026"))


def items_of(run: Run, protocol: str = "babylm2025") -> pd.DataFrame:
    items = items_table(run, "nursery", protocol)
    assert items is not None
    return items


def test_shares_are_those_of_the_items(folder: Path) -> None:
    """The items of `fake_runs` have fewer, as many and more tokens in turn."""
    every = table_of(folder)
    assert set(every["protocol"]) == {"babylm2025", "babylm2026"}
    table = every[every["protocol"] == "babylm2025"]
    assert list(dict.fromkeys(table["tokens"])) == list(GOOD_HAS)
    wml = [run for run in read_runs(folder) if (run.arm, run.peers) == ("wml", 2)]
    for member in ("best_peer", "mean_peer", "ensemble"):
        own = table[(table["arm"] == "wml") & (table["peers"] == 2) & (table["member"] == member)].set_index("tokens")
        for number, tokens in enumerate(GOOD_HAS):
            chosen = [items[items["pair_id"].astype(int) % 3 == number] for items in map(items_of, wml)]
            shares = [100 * items[member].mean() for items in chosen]
            assert own.loc[tokens, "mean"] == pytest.approx(sum(shares) / 3)
            assert own.loc[tokens, "n_seeds"] == 3 and own.loc[tokens, "pairs"] == len(chosen[0])
    assert set(table[table["peers"] == 1]["member"]) == {"best_peer", "mean_peer"}


def test_the_report_has_them_under_the_runs_own_protocol(folder: Path) -> None:
    write_tables(folder)
    written = pd.read_csv(folder / "tables" / "T4_lengths.csv")
    assert set(written["protocol"]) == {"babylm2025"}
    expected = table_of(folder)
    expected = expected[expected["protocol"] == "babylm2025"].reset_index(drop=True)
    pd.testing.assert_series_equal(written["mean"], expected["mean"])


def test_runs_of_other_settings_are_left_out(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), protocols=("babylm2025",))
    before = table_of(folder)
    write_study(folder, (("wml", 2),), (0,), ("babylm2025",), overrides={"mutual.alpha": 0.9})
    assert len(runs := read_runs(folder)) == 4 and sum(bool(run.setting) for run in runs) == 1
    pd.testing.assert_frame_equal(table_of(folder), before)


def test_evaluations_made_otherwise_are_left_out(tmp_path: Path) -> None:
    """As T4 keeps apart: another rule for ties is another setting, and in the mean of no other."""
    folder = write_study(tmp_path / "nursery", (("wml", 2),), protocols=("babylm2025",))
    first, *others = read_runs(folder)
    evaluated(first.folder, "nursery", ties="first")
    assert list(dict.fromkeys(table_of(folder)["seeds"])) == [" ".join(str(run.seed) for run in others)]


def test_evaluations_whose_items_have_no_tokens_are_left_out(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), protocols=("babylm2025",))
    first, *others = read_runs(folder)
    path = paths.evaluation(first.folder, "nursery", "babylm2025").with_suffix(".items.jsonl")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    del records[-1]["tokens"]
    paths.write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    assert list(dict.fromkeys(table_of(folder)["seeds"])) == [" ".join(str(run.seed) for run in others)]
    for run in others:
        paths.evaluation(run.folder, "nursery", "babylm2025").with_suffix(".items.jsonl").unlink()
    assert table_of(folder).empty


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"tokens": 5}, "as 'tokens' of every line"),
        ({"tokens": [5, 6, 7]}, "as 'tokens' of every line"),
        ({"scores": {"peer_1": 1.0}}, "as 'scores' of every line"),
        ({"scores": {"peer_1": [1.0, "high"]}}, "as 'scores' of every line"),
        ({"scores": {}}, "scores of the same members"),
        ({"scores": [1.0, 2.0]}, "scores of the same members"),
    ],
)
def test_items_of_another_form_are_named_with_what_was_expected(tmp_path: Path, broken: dict, told: str) -> None:
    folder = write_study(tmp_path / "nursery", (("independent", 1),), (0,), ("babylm2025",))
    path = paths.evaluation(read_runs(folder)[0].folder, "nursery", "babylm2025").with_suffix(".items.jsonl")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    records[3] |= broken
    paths.write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(UserError, match=re.escape(told)) as found:
        table_of(folder)
    assert str(path) in str(found.value) and "move runs of other versions elsewhere" in str(found.value)


def test_items_without_the_best_peer_are_named_too(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("independent", 1),), (0,), ("babylm2025",))
    path = paths.evaluation(read_runs(folder)[0].folder, "nursery", "babylm2025").with_suffix(".items.jsonl")
    paths.write_text(path, path.read_text(encoding="utf-8").replace('"peer_1"', '"peer_7"'))
    with pytest.raises(UserError, match=f"{re.escape(str(path))} has no scores of peer_1"):
        table_of(folder)


def test_every_pair_counts_once_whatever_its_paradigm(tmp_path: Path) -> None:
    """Three pairs of one paradigm are right and the only one of another is wrong: 75 %, where a mean over paradigms
    would be 50 %."""
    folder = write_study(tmp_path / "nursery", (("independent", 1),), (0,), ("babylm2025",))
    path = paths.evaluation(read_runs(folder)[0].folder, "nursery", "babylm2025").with_suffix(".items.jsonl")
    pairs = [("a", 1.0), ("a", 1.0), ("a", 1.0), ("b", -1.0)]
    records = [
        {"paradigm": paradigm, "pair_id": str(number), "tokens": [4, 5], "scores": {"peer_1": [score, 0.0]}}
        for number, (paradigm, score) in enumerate(pairs)
    ]
    paths.write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    table = table_of(folder).set_index(["member", "tokens"])
    assert table.loc[("best_peer", "fewer"), ["mean", "pairs"]].tolist() == [75.0, 4]
