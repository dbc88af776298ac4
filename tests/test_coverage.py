"""Coverage by hand, and against the tokenizer's own way of cutting text into words."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_runs import write_study
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from wmlkit import paths, tables
from wmlkit.data import coverage, nursery
from wmlkit.data.coverage import _kinds, count_whole, loss_floor, whole_words
from wmlkit.data.encode import open_tokens
from wmlkit.data.prepare import prepare
from wmlkit.data.statistics import read_statistics
from wmlkit.data.tokenizer import load_tokenizer, plain_backend, train_tokenizer
from wmlkit.figures.files import _floor
from wmlkit.runs import read_runs
from wmlkit.settings import DataConfig


def test_by_hand() -> None:
    # ids: 0 special, 1 " cat", 2 "s", 3 ".", 4 "19", 5 "don", 6 "'", 7 "t", 8 " "
    starts = np.array([0, 1, 1, 0, 2, 1, 0, 1, 0])
    begins = np.array([0, 0, 1, 0, 2, 1, 0, 1, 0])
    ends = np.array([0, 1, 1, 0, 2, 1, 0, 1, 3])
    for tokens, expected in (
        ([0, 5, 1, 3, 0], (2, 2)),  # don| cat|.
        ([0, 1, 2, 0], (0, 1)),  # " cats" in two tokens
        ([0, 5, 2, 2, 1, 0], (1, 2)),  # "donss" in three, " cat" in one
        ([4, 2, 4, 4], (2, 3)),  # "19" | "s" | "1919": digits and letters are apart
        ([5, 6, 7], (2, 2)),  # don't
        ([8, 5, 8, 1], (1, 2)),  # " don" in two tokens, " cat" in one behind another space
        ([2, 0, 2], (2, 2)),  # a line ends between them
        ([], (0, 0)),
    ):
        assert count_whole(np.array(tokens, dtype=np.uint16), starts, begins, ends) == expected


@pytest.mark.parametrize("vocab_size", [300, 500])
def test_against_the_tokenizers_own_words(tmp_path: Path, vocab_size: int) -> None:
    (tmp_path / "mine").mkdir()
    text = "Élodie's 23 cats don't see 1990 well-known «dogs», naïve ones.\n\n" * 5 + "plain words here again\n\n" * 9
    (tmp_path / "mine" / "a.train").write_text(text, encoding="utf-8")
    (tmp_path / "mine" / "a.dev").write_text("unseen Words, zebra 1 cats!\n", encoding="utf-8")
    folder = prepare(DataConfig(corpus=str(tmp_path / "mine"), vocab_size=vocab_size, clean=False), tmp_path).folder
    tokenizer = load_tokenizer(folder / "tokenizer")
    backend = plain_backend(tokenizer)
    whole = words = 0
    for line in tokenizer.decode(open_tokens(folder / "dev.tokens")[0].tolist()).replace("<s>", "").split("</s>"):
        for piece, _ in backend.pre_tokenizer.pre_tokenize_str(line):
            if any(character.isalnum() for character in piece.removeprefix("Ġ")):
                words += 1
                whole += len(backend.model.tokenize(piece)) == 1
    counts = whole_words(folder, read_statistics(folder))
    assert counts["dev", "a"] == (whole, words) and words == 5
    table = tables.corpora(folder).set_index(["split", "domain"])
    assert table.loc[("dev", "all"), "coverage"] == pytest.approx(whole / words)


def test_a_floor_is_known_where_the_vocabulary_holds_every_word_of_the_nursery(tmp_path: Path) -> None:
    sizes = DataConfig(words=100_000, dev_words=4_000, vocab_size=2048)
    whole, split = (prepare(data, tmp_path).folder for data in (sizes, sizes.model_copy(update={"vocab_size": 600})))
    for objective, ratio in (("mlm", 0.2), ("clm", 0.2)):
        assert loss_floor(whole, "nursery", objective, ratio) == nursery.entropy_floor(objective, ratio)
    assert loss_floor(split, "nursery", "mlm", 0.2) is None is loss_floor(whole, "my_texts", "mlm", 0.2)
    raw = prepare(sizes.model_copy(update={"clean": False}), tmp_path).folder  # with marks, which cost less than words
    assert loss_floor(raw, "nursery", "mlm", 0.2) is None
    (run,) = read_runs(write_study(tmp_path / "nursery", (("wml", 2),), (0,), protocols=()))
    text = tmp_path / "data" / run.data["folder"]
    assert _floor([run]) is None  # a run without its tokens beside it
    shutil.rmtree(text)
    shutil.copytree(whole, text)
    assert _floor([run]) == nursery.entropy_floor("mlm", run.config["train"]["mask_ratio"])[0]


def vocabulary(kind: str) -> PreTrainedTokenizerFast:
    """Words of `LINES` whole but "cats", by sentencepiece's or WordPiece's marks."""
    words = ["the", "cat", "dog", "sees", "don", "t", "19"]
    marks = [".", "'"]
    if kind == "wordpiece":
        entries = ["[UNK]", *words, "##s", *marks]
        backend = Tokenizer(models.WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token="[UNK]"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    else:
        entries = ["[UNK]", *(f"▁{word}" for word in words), "s", "t", *marks]
        pieces = [(entry, -1.0) for entry in entries]
        backend = Tokenizer(models.Unigram(pieces, unk_id=0))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


@pytest.mark.parametrize(("kind", "expected"), [("wordpiece", (7, 8)), ("sentencepiece", (6, 7))])
def test_tokenizers_that_lose_the_space_before_a_token(kind: str, expected: tuple[int, int]) -> None:
    """A single token is decoded without it: "the" and "cat" would be one word. "cats" has two tokens; "don't" has two
    words where the apostrophe is a token and what follows it begins another."""
    tokenizer = vocabulary(kind)
    ids = np.array(
        tokenizer(
            "the dog sees the cats. don't 19" if kind == "wordpiece" else "the dog sees the cats. don 19"
        ).input_ids
    )
    assert tokenizer.unk_token_id not in ids
    assert count_whole(ids, *_kinds(tokenizer)) == expected


def test_dev_text_drawn_from_training_text_counts_with_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("the cat sees the dog\n" * 400, encoding="utf-8")
    data = DataConfig(corpus=str(tmp_path / "mine"), vocab_size=270, dev_words=None, held_out=0.1)
    folder = prepare(data, tmp_path).folder  # so small a vocabulary holds some of the words
    splits = {row["split"]: row["words"] for row in read_statistics(folder)["splits"]}
    assert set(splits) == {"train", "held_out", "dev"} and min(splits.values()) > 0
    table = tables.corpora(folder).set_index(["split", "domain"])
    assert table.loc[("train", "all"), "used_words"] == sum(splits.values()) == 2000
    kinds = _kinds(load_tokenizer(folder / "tokenizer"))
    parts = [count_whole(np.asarray(open_tokens(folder / f"{split}.tokens")[0]), *kinds) for split in splits]
    whole, words = (sum(counted) for counted in zip(*parts, strict=True))
    assert 0 < whole < words
    assert whole_words(folder, read_statistics(folder)) == {("train", next(iter(table.index))[1]): (whole, words)}


def test_parts_of_a_letter_belong_to_the_word() -> None:
    tokenizer = train_tokenizer(["abc"] * 3, 262)  # bytes only: é has two tokens
    kinds = _kinds(tokenizer)
    ids = np.array(tokenizer("né a").input_ids)
    assert len(ids) == 2 + 5 and count_whole(ids, *kinds) == (0, 2)  # " a" has two tokens as well


@pytest.mark.parametrize(("held", "known"), [((5, 5), True), ((4, 5), False)])
def test_one_domain_with_a_split_word_is_enough_to_have_no_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: tuple[int, int], known: bool
) -> None:
    paths.write_json(tmp_path / "corpus.json", {"settings": {"cleaning_rules": 1}})
    monkeypatch.setattr(coverage, "read_statistics", lambda folder: {})
    monkeypatch.setattr(coverage, "whole_words", lambda *_: {("train", "a"): (9, 9), ("dev", "a"): held})
    expected = nursery.entropy_floor("mlm", 0.2) if known else None
    assert loss_floor(tmp_path, "nursery", "mlm", 0.2) == expected
