"""Rows and masks: documents apart, special tokens untouched, batches from (seed, step) alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small import BLOCK, make_batch, make_rows, make_tokenizer, make_tokens
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from wmlkit.config import load_preset
from wmlkit.data.batches import Rows, joined, pack, segments
from wmlkit.data.encode import open_documents, open_tokens
from wmlkit.data.masking import Masking, mask_tokens, spans
from wmlkit.data.prepare import prepare
from wmlkit.data.statistics import read_statistics
from wmlkit.data.texts import Stage, open_texts, stages
from wmlkit.data.tokenizer import load_tokenizer
from wmlkit.errors import UserError
from wmlkit.settings import DataConfig
from wmlkit.teacher import teacher_config


def test_segments_break_at_line_ends():
    """<s> a b </s> c d e </s>, blocks of five: the second line does not fit behind the first."""
    tokens = np.array([0, 5, 6, 2, 7, 8, 9, 2])
    pieces = segments(tokens, np.array([0]), 5, eos_id=2)
    assert pieces.tolist() == [[1, 3], [4, 4]]


def test_a_piece_has_as_many_lines_as_fit_or_one():
    """<s> a b </s> c </s> d e </s>, blocks of six: two lines, and the third behind them."""
    tokens = np.array([0, 5, 6, 2, 7, 2, 8, 9, 2])
    assert segments(tokens, np.array([0]), 6, eos_id=2).tolist() == [[1, 5], [6, 3]]
    assert segments(tokens, np.array([0]), 6, eos_id=2, by_line=True).tolist() == [[1, 3], [4, 2], [6, 3]]


def test_a_line_longer_than_a_block_is_cut():
    tokens = np.array([0, *range(5, 15), 2])
    pieces = segments(tokens, np.array([0]), 6, eos_id=2)
    assert pieces.tolist() == [[1, 5], [6, 5], [11, 1]]


def test_every_token_is_in_exactly_one_piece():
    tokens, documents = make_tokens(3)
    pieces = segments(tokens, documents, BLOCK, eos_id=2)
    covered = np.concatenate([np.arange(start, start + length) for start, length in pieces])
    expected = np.setdiff1d(np.arange(len(tokens)), documents.astype(int))
    assert np.array_equal(np.sort(covered), expected)
    assert pieces[:, 1].max() <= BLOCK - 1


def test_pack_fills_rows_without_overflow():
    lengths = np.array([7, 3, 3, 11, 2])
    rows = pack(lengths, 12, np.arange(5))
    assert sorted(piece for row in rows for piece in row) == [0, 1, 2, 3, 4]
    assert all(sum(lengths[piece] + 1 for piece in row) <= 12 for row in rows)
    assert [0, 1] in rows  # 8 + 4 fills the row exactly


def test_an_epoch_shows_every_piece_once():
    rows = make_rows()
    seen = []
    for step in range(len(rows)):
        ids, document, _ = rows.take(step, 1)
        seen += sorted(set(document[document >= 0].tolist()))
    assert sorted(seen) == list(range(len(rows.pieces)))


@pytest.mark.parametrize("packing", ["documents", "lines"])
def test_rows_hold_the_text(packing):
    """Each piece as it stands in the text, behind a start token, its places counted from 0; padding behind all."""
    tokens, documents = make_tokens(4)
    rows = Rows(tokens, documents, make_tokenizer(), BLOCK, packing, 4, "train")
    for step in range(len(rows) // 3):
        for ids, document, position in zip(*rows.take(step, 3), strict=True):
            shown = [int(piece) for piece in dict.fromkeys(document.tolist()) if piece >= 0]
            spans = [rows.pieces[piece] for piece in shown]
            expected = [[0, *tokens[start : start + length]] for start, length in spans]
            padding = BLOCK - sum(map(len, expected))
            assert ids.tolist() == [*(t for piece in expected for t in piece), *[1] * padding]
            assert position.tolist() == [*(place for piece in expected for place in range(len(piece))), *[0] * padding]


def test_batches_depend_on_seed_and_step_alone():
    one, other = make_rows(1), make_rows(1)
    for step in (3, 40, 7):  # out of order, over several epochs
        one.take(step, 5)
    a, b = one.masked_batch(11, 5, 4, 0.3), other.masked_batch(11, 5, 4, 0.3)
    assert torch.equal(a.input_ids, b.input_ids) and torch.equal(a.scored, b.scored)
    assert not torch.equal(a.input_ids, one.masked_batch(12, 5, 4, 0.3).input_ids)
    assert not torch.equal(a.input_ids, make_rows(2).masked_batch(11, 5, 4, 0.3).input_ids)


def test_every_pass_has_its_own_order_and_every_step_its_own_masks():
    rows = make_rows()
    first, second = rows.epoch_order(0), rows.epoch_order(1)
    assert sorted(first) == sorted(second) == list(range(len(rows))) and list(first) != list(second)
    one_row = Rows(np.array([0, 5, 6, 7, 8, 9, 10, 11, 2]), np.array([0]), make_tokenizer(), BLOCK, "lines", 0, "train")
    masks = {tuple(one_row.masked_batch(step, 1, 4, 0.5).scored.tolist()) for step in range(8)}
    assert len(masks) > 4  # of the same row, pass after pass


def test_streams_differ():
    train = make_rows(1)
    dev = Rows(*make_tokens(1), make_tokenizer(), BLOCK, "documents", 1, "dev")
    assert not np.array_equal(train.take(0, 8)[0], dev.take(0, 8)[0])


def test_masking_scores_an_exact_number_and_never_special_tokens():
    rows = make_rows()
    ids, document, _ = rows.take(0, 16)
    batch = rows.masked_batch(0, 16, 4, 0.3)
    candidates = (ids > 4).sum()
    assert len(batch.scored) == round(0.3 * candidates)
    inputs = batch.input_ids.flatten()
    assert bool((batch.targets[batch.scored] > 4).all())
    assert bool((inputs[batch.scored] == 4).all())
    untouched = np.setdiff1d(np.arange(ids.size), batch.scored.numpy())
    assert np.array_equal(inputs.numpy()[untouched], ids.flatten()[untouched])


def test_masking_shares():
    ids = np.full((10, 100), 7)
    shares, rng = Masking(random=0.1, keep=0.2), np.random.default_rng(0)
    inputs, scored = mask_tokens(ids, ids > 4, np.arange(8, 21), 4, ratio=0.5, masking=shares, rng=rng)
    shown = inputs[scored]
    assert scored.sum() == 500
    assert (shown == 7).sum() == 100 and (shown == 4).sum() == 350
    assert ((shown >= 8) & (shown <= 20)).sum() == 50  # random tokens are ordinary ones


class Lengths:
    """A generator whose spans have these lengths."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = lengths

    def integers(self, low: int, high: int, size: tuple[int, int]) -> np.ndarray:
        assert (low, high, size) == (1, max(self.lengths) + 1, (len(self.lengths), 1))
        return np.array(self.lengths)[:, None]


def test_spans_end_before_special_tokens_and_at_the_end_of_their_row():
    """Two rows of six; place 3 is special. 2 does not go on behind it, 5 not in the next row, and 8 is in two spans."""
    candidates = np.array([[1, 1, 1, 0, 1, 1], [1] * 6], dtype=bool)
    places = spans(np.array([7, 2, 5, 8, 11]), candidates, 3, Lengths(2, 3, 3, 3, 1))
    assert places.tolist() == [7, 8, 2, 5, 9, 10, 11]


def test_masks_come_in_spans():
    """Their number is exact; where few are drawn, runs of one, two and three neighbours are as frequent as another."""
    ids = np.where(np.arange(200_000) % 40 == 39, 2, 7).reshape(500, 400)
    inputs, scored = mask_tokens(ids, ids > 4, np.arange(8, 21), 4, 0.01, Masking(span=3), np.random.default_rng(0))
    assert scored.sum() == round(0.01 * (ids > 4).sum()) and not scored[ids == 2].any()
    assert np.array_equal(inputs == 4, scored)
    ends = np.diff(np.pad(scored, ((0, 0), (1, 1))).astype(int), axis=1)
    lengths = np.bincount(np.nonzero(ends == -1)[1] - np.nonzero(ends == 1)[1])
    assert lengths[1:4] == pytest.approx(lengths.sum() / 3, rel=0.12)
    assert lengths[4:].sum() < 0.05 * lengths.sum()  # two that touch


def test_a_span_shows_one_kind_of_input():
    """Random tokens, true ones and masks are shared out span by span, not place by place."""
    ids = np.full((10, 100), 7)
    shares, rng = Masking(random=0.1, keep=0.2, span=3), np.random.default_rng(0)
    inputs, scored = mask_tokens(ids, ids > 4, np.arange(8, 21), 4, ratio=0.1, masking=shares, rng=rng)
    kind = np.select([~scored, inputs == 4, inputs == 7], [0, 1, 2], 3)
    assert [(kind == k).sum() for k in (1, 2, 3)] == [70, 20, 10]
    pairs = np.stack([kind[:, :-1], kind[:, 1:]])[:, (kind[:, :-1] > 0) & (kind[:, 1:] > 0)]
    assert (pairs[0] == pairs[1]).mean() > 0.8  # where spans touch, and in the two that a share cuts, they may differ


def test_attention_stays_inside_a_document():
    rows = make_rows()
    batch = rows.masked_batch(0, 8, 4, 0.3)
    _, document, position = rows.take(0, 8)
    assert batch.attention_mask is not None
    allowed = batch.attention_mask[:, 0].numpy()
    assert np.array_equal(allowed, document[:, :, None] == document[:, None, :])
    assert allowed.any(axis=-1).all()  # no empty row: its softmax would be NaN
    starts = (document[:, 1:] != document[:, :-1]) & (document[:, 1:] >= 0)
    assert (position[:, 1:][starts] == 0).all()


def test_causal_targets_are_the_next_token_of_the_same_document():
    rows = make_rows()
    ids, document, _ = rows.take(2, 8)
    batch = rows.causal_batch(2, 8)
    for flat in batch.scored.tolist():
        b, t = divmod(flat, BLOCK)
        assert document[b, t] == document[b, t + 1] >= 0
        assert int(batch.targets[flat]) == ids[b, t + 1]
    expected = sum(len(set(row[row >= 0].tolist())) for row in document)
    assert len(batch.scored) == (document >= 0).sum() - expected  # all but the last token of each piece
    assert batch.attention_mask is not None  # and nobody sees what comes later, or another document
    assert np.array_equal(batch.attention_mask[:, 0], np.tril(document[:, :, None] == document[:, None, :]))


def test_words_are_counted_exactly():
    """The tokenizer of the test has one token a word, so words are the tokens that are not special."""
    rows = make_rows()
    ids, _, _ = rows.take(0, 8)
    assert rows.masked_batch(0, 8, 4, 0.3).words == int((ids > 4).sum())


@pytest.mark.parametrize(
    ("entries", "text", "words"),
    [
        ("Ġ Ġthe Ġcat s . ▁ ##", "the Ġcat s .", 2),  # "cats."
        ("▁the ▁cat s . Ġ ▁ ##s", "▁the ▁cat s .", 2),
        ("the cat ##s . ▁ ##ing 7", "the cat ##s . 7", 3),
        ("the cat s .", "the cat .", 2),  # whole words, no mark at all
    ],
)
def test_words_are_counted_by_the_tokenizers_own_mark(entries, text, words):
    """The first token of a text begins a word even where no space is before it."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {entry: i for i, entry in enumerate([*special, *dict.fromkeys((entries + " " + text).split())])}
    names = zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True)
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **dict(names))
    tokens = np.array([0, *(vocabulary[entry] for entry in text.split()), 2])
    rows = Rows(tokens, np.array([0]), tokenizer, BLOCK, "lines", 0, "train")
    assert rows.causal_batch(0, 1).words == words


@pytest.mark.parametrize("packing", ["lines", "documents"])
@pytest.mark.parametrize("text", ["\tx\ty z\n\t\tone\ttwo", "def f(x):\n    if x:\n        return  x", "a b\n c"])
def test_words_of_text_that_keeps_its_white_space_are_what_it_parts(tmp_path, text, packing):
    """Blanks before a word have entries of their own and are no words; behind a tab a word has no mark."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.train").write_text("\n\n".join(f"{text} {number}" for number in range(60)))
    prepared = prepare(DataConfig(corpus=str(tmp_path / "mine"), vocab_size=320, clean=False), tmp_path).folder
    tokens, documents = prepared / "train.tokens", open_documents(prepared / "train.tokens")
    rows = Rows(open_tokens(tokens)[0], documents, load_tokenizer(prepared / "tokenizer"), 512, packing, 0, "train")
    expected = sum(row["words"] for row in read_statistics(prepared)["splits"] if row["split"] == "train")
    assert sum(rows.causal_batch(row, 1).words for row in range(len(rows))) == expected


def test_windows_come_from_anywhere_in_the_stream():
    rows = make_rows(packing="windows")
    ids, document, _ = rows.take(0, 200)
    tokens, _ = make_tokens(0)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, BLOCK)
    assert all((windows == row).all(axis=1).any() for row in ids)
    assert (document == 0).all() and rows.masked_batch(0, 4, 4, 0.3).attention_mask is None
    assert not np.array_equal(rows.take(1, 200)[0], ids)
    two = Rows(tokens[: BLOCK + 1], np.zeros(1, np.uint64), make_tokenizer(), BLOCK, "windows", 0, "train")
    assert np.array_equal(np.unique(two.take(0, 50)[0], axis=0), np.unique(windows[:2], axis=0))  # the last one too


def test_sequence_length_schedule():
    """Half the steps with rows of 32, then 64: tokens a step stay the same, and each stage begins its text anew."""
    config = load_preset("smoke", {"data.block_schedule": [[0.5, 32], [0.5, 64]], "train.steps": 11})
    assert stages(config) == [Stage(0, 32, 16), Stage(6, 64, 8)]
    assert config.data.longest_block == 64
    with pytest.raises(UserError, match="shares that sum to 0.7"):
        load_preset("smoke", {"data.block_schedule": [[0.5, 32], [0.2, 64]]})


def test_passes_are_counted_and_capped(tmp_path):
    """6 steps of 16 rows of 32 tokens, then 6 of 8 rows of 64, over the rows that each stage cuts the text into."""
    config = load_preset("smoke", {"data.words": 3000, "data.dev_words": 1000})
    config = config.updated({"data.block_schedule": [[0.5, 32], [0.5, 64]]})
    prepared = prepare(config.data, tmp_path)
    tokenizer = load_tokenizer(prepared.folder / "tokenizer")
    texts = open_texts(config, prepared, tokenizer)
    shown = [texts.train(step, 0.3) for step in range(12)]
    assert [tuple(batch.input_ids.shape) for batch in shown] == [(16, 32)] * 6 + [(8, 64)] * 6
    path = prepared.folder / "train.tokens"
    rows = [Rows(open_tokens(path)[0], open_documents(path), tokenizer, t, "lines", 0, "train") for t in (32, 64)]
    assert texts.passes == pytest.approx(6 * 16 / len(rows[0]) + 6 * 8 / len(rows[1]))
    with pytest.raises(UserError, match="data.max_passes is 0.5.*lower train.steps to"):
        open_texts(config.updated({"data.max_passes": 0.5}), prepared, tokenizer)
    with pytest.raises(UserError, match="data.max_passes is 0.0001.*lower train.batch_size or use more text"):
        open_texts(config.updated({"data.max_passes": 0.0001}), prepared, tokenizer)  # not even one step
    longer = config.updated({"data.max_passes": 0.5, "mutual.arm": "distill", "mutual.teacher_steps": 40})
    with pytest.raises(UserError, match="the teacher would read .* lower mutual.teacher_steps .else train.steps. to"):
        open_texts(teacher_config(longer), prepared, tokenizer)


def test_every_batch_is_of_the_text_that_it_should_be_of(tmp_path):
    """Training and outer batches in the run's order, measured ones in the order of seed 0, each from its own file."""
    changes = {"data.words": 3000, "data.dev_words": 1000, "train.seed": 5, "outer.batch_size": 3}
    config = load_preset("smoke", changes)
    prepared = prepare(config.data, tmp_path)
    tokenizer = load_tokenizer(prepared.folder / "tokenizer")
    texts = open_texts(config, prepared, tokenizer)
    length = config.data.block_size
    for source, split, size, seed in (
        (texts.train, "train", config.train.batch_size, 5),
        (texts.outer, "held_out", 3, 5),
        (texts.held_out.source, "held_out", texts.held_out.batch_size, 0),
        (texts.dev.source, "dev", texts.dev.batch_size, 0),
    ):
        path = prepared.folder / f"{split}.tokens"
        rows = Rows(open_tokens(path)[0], open_documents(path), tokenizer, length, "lines", seed, split)
        expected = rows.masked_batch(1, size, tokenizer.mask_token_id, 0.3)
        assert torch.equal(source(1, 0.3).input_ids, expected.input_ids)


def test_a_row_length_that_comes_back_goes_on_in_the_text(tmp_path):
    """As if its steps were one stage: no batch is shown twice before the text is through."""
    config = load_preset("smoke", {"data.words": 3000, "data.dev_words": 1000, "train.steps": 8})
    prepared = prepare(config.data, tmp_path)
    tokenizer = load_tokenizer(prepared.folder / "tokenizer")

    def shown(*schedule: list) -> list:
        texts = open_texts(config.updated({"data.block_schedule": schedule}), prepared, tokenizer)
        return [texts.train(step, 0.3).input_ids for step in range(8)]

    there_and_back = shown([0.25, 32], [0.5, 64], [0.25, 32])
    for step, whole in zip((0, 1, 6, 7), shown([0.5, 32], [0.5, 64]), strict=False):
        assert torch.equal(there_and_back[step], whole)


def test_too_little_text_is_refused():
    with pytest.raises(UserError, match="fewer than one window"):
        Rows(np.array([0, 5, 2]), np.array([0]), make_tokenizer(), BLOCK, "windows", 0, "train")
    with pytest.raises(UserError, match="text is empty"):
        Rows(
            np.array([], dtype=np.uint16), np.array([], dtype=np.uint64), make_tokenizer(), BLOCK, "documents", 0, "dev"
        )


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_joined_batches_are_their_rows_in_order(family):
    batches = [make_batch(family, seed, size) for seed, size in ((0, 4), (1, 2))]
    alone = replace(batches[1], documents=None)  # a batch of whole rows, beside one of several documents a row
    whole = joined([batches[0], alone])
    assert whole.input_ids.shape[0] == 6 and torch.equal(whole.input_ids[4:], batches[1].input_ids)
    for name in ("scored", "real"):
        own = [getattr(batch, name) for batch in batches]
        assert torch.equal(getattr(whole, name), torch.cat([own[0], own[1] + batches[0].input_ids.numel()]))
    assert torch.equal(whole.targets[whole.scored], torch.cat([b.targets[b.scored] for b in batches]))
    assert whole.tokens == sum(batch.tokens for batch in batches) and (whole.causal is None) == (family == "roberta")
    assert torch.equal(whole.attention_mask[:4], batches[0].attention_mask)
    everything = torch.ones(whole.input_ids.shape[1], whole.input_ids.shape[1], dtype=torch.bool)
    assert torch.equal(whole.attention_mask[4, 0], everything if whole.causal is None else everything.tril())
    assert joined(batches[:1]) is batches[0]
    assert joined([alone, alone]).documents is None


def test_a_piece_goes_to_the_fullest_row_that_it_fits_into():
    assert sorted(pack(np.array([9, 13, 5]), 20, np.arange(3))) == [[0], [1, 2]]
