"""Rows of masked next-token prediction among those of a causal model (`train.mntp_share`)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compare import interrupted, rows, weights
from small import BLOCK, make_peers, make_rows, make_tokenizer

from wmlkit import paths, train
from wmlkit.config import load_preset
from wmlkit.data.batches import joined
from wmlkit.data.masking import Masking
from wmlkit.data.prepare import prepare
from wmlkit.data.texts import open_texts
from wmlkit.data.tokenizer import load_tokenizer, save_tokenizer
from wmlkit.errors import UserError
from wmlkit.identity import run_hash
from wmlkit.models import hidden_states
from wmlkit.replay.released import Case
from wmlkit.replay.replays import replay_config
from wmlkit.students import workload_of
from wmlkit.teacher import teacher_config

MASK = 4
QUARTER = Masking(mntp_share=0.25)
CAUSAL = {"model.family": "llama", "model.objective": "clm", "train.precision": "fp32", "train.mntp_share": 0.25}


def config(**changes):
    return load_preset("smoke", CAUSAL | {key.replace("__", "."): value for key, value in changes.items()})


def test_a_share_of_the_rows_is_masked_and_the_others_are_what_they_were():
    text = make_rows()
    batch, plain = text.causal_batch(3, 8, MASK, 0.3, QUARTER), text.causal_batch(3, 8)
    assert batch.causal.tolist() == [True, True, True, False] * 2
    ids, _, _ = text.take(3, 8)
    masked = batch.input_ids == MASK
    assert torch.equal(masked.any(dim=1), ~batch.causal)
    assert torch.equal(batch.input_ids[~masked], plain.input_ids[~masked]) and torch.equal(batch.targets, plain.targets)
    candidates = int((ids[~batch.causal.numpy()] > MASK).sum())
    assert int(masked.sum()) == round(0.3 * candidates)
    scored, usual = (torch.zeros(8 * BLOCK, dtype=torch.bool).index_fill(0, b.scored, True) for b in (batch, plain))
    scored, usual = scored.view(8, BLOCK), usual.view(8, BLOCK)
    assert torch.equal(scored[batch.causal], usual[batch.causal])
    assert torch.equal(scored[~batch.causal][:, :-1], masked[~batch.causal][:, 1:])  # one place ahead, and no other
    assert batch.tokens == plain.tokens and batch.words == plain.words


def test_what_is_scored_of_a_masked_row_is_the_token_that_was_there():
    text = make_rows()
    batch, (ids, document, _) = text.causal_batch(0, 40, MASK, 0.3, QUARTER), text.take(0, 40)
    places = [divmod(flat, BLOCK) for flat in batch.scored.tolist()]
    both_ways = [(b, t) for b, t in places if not batch.causal[b]]
    assert len(both_ways) > 10
    for b, t in both_ways:
        assert batch.input_ids[b, t + 1] == MASK and batch.targets[b * BLOCK + t] == ids[b, t + 1]
        assert document[b, t] == document[b, t + 1]


@pytest.mark.parametrize(("share", "batch_size"), [(0.3, 4), (0.125, 5), (0.9, 3), (0.05, 2)])
def test_the_share_is_kept_over_batches_that_it_does_not_divide(share, batch_size):
    text = make_rows()
    kept = torch.cat(
        [text.causal_batch(step, batch_size, MASK, 0.3, Masking(mntp_share=share)).causal for step in range(40)]
    )
    for count in range(1, len(kept) + 1):
        assert abs(int((~kept[:count]).sum()) - share * count) < 1


def test_masked_rows_see_their_whole_document_and_the_others_what_came_before():
    text = make_rows()
    batch, (_, document, _) = text.causal_batch(0, 4, MASK, 0.3, QUARTER), text.take(0, 4)
    same = document[:, :, None] == document[:, None, :]
    expected = np.where(batch.causal.numpy()[:, None, None], np.tril(same), same)
    assert np.array_equal(batch.attention_mask[:, 0].numpy(), expected)
    windows = make_rows(packing="windows")  # where a causal batch needs no mask of its own
    assert windows.causal_batch(0, 4).attention_mask is None
    allowed = windows.causal_batch(0, 4, MASK, 0.3, QUARTER).attention_mask
    assert allowed[3].all() and torch.equal(allowed[0, 0], torch.ones(BLOCK, BLOCK, dtype=torch.bool).tril())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_models_read_masked_rows_both_ways(family):
    """What stands last in a document changes the states of all its tokens there, and of none before it elsewhere."""
    model = make_peers(family, dtype=torch.float64)[0].model.eval()
    batch = make_rows(packing="windows").causal_batch(0, 4, MASK, 0.3, QUARTER)
    changed = batch.input_ids.clone()
    changed[:, -1] = torch.where(changed[:, -1] == 7, 8, 7)
    with torch.no_grad():
        before, after = (
            hidden_states(model, ids, batch.attention_mask, batch.position_ids) for ids in (batch.input_ids, changed)
        )
    moved = (before - after).abs().amax(dim=-1) > 1e-9
    assert moved[3].all() and not moved[:3, :-1].any() and moved[:3, -1].all()


def test_parts_and_joined_batches_keep_the_kinds_of_their_rows():
    text = make_rows()
    batch = text.causal_batch(0, 8, MASK, 0.3, QUARTER)
    parts = [batch.part(i, 3) for i in range(3)]
    for i, part in enumerate(parts):
        assert torch.equal(part.causal, batch.causal[i::3])
        assert torch.equal(part.attention_mask, batch.attention_mask[i::3])
    assert sum(len(part.scored) for part in parts) == len(batch.scored)
    other = text.causal_batch(1, 4)
    both = joined([batch, other])
    assert both.causal.tolist() == [*batch.causal.tolist(), True, True, True, True]
    assert torch.equal(both.attention_mask, torch.cat([batch.attention_mask, other.attention_mask]))


def test_masks_are_drawn_as_a_masked_models_are():
    """Random tokens, spans and the share of masks in use; and without the setting nothing is masked."""
    text = make_rows()
    half = [text.causal_batch(0, 8, MASK, ratio, Masking(mntp_share=0.5)) for ratio in (0.2, 0.6)]
    masked = [int((b.input_ids == MASK).sum()) for b in half]
    assert 2.5 < masked[1] / masked[0] < 3.5
    kept = text.causal_batch(0, 8, MASK, 0.6, Masking(keep=1.0, mntp_share=0.5))
    assert torch.equal(kept.input_ids, text.causal_batch(0, 8).input_ids) and len(kept.scored) == len(half[1].scored)
    assert bool(text.causal_batch(0, 8, MASK, 0.6).causal.all())


def test_only_training_text_has_masked_rows(tmp_path):
    settings = config()
    prepared = prepare(settings.data, tmp_path)
    texts = open_texts(settings, prepared, load_tokenizer(prepared.folder / "tokenizer"))
    assert not texts.train(0, 0.3).causal.all()
    for source in (texts.outer, texts.dev.source, texts.held_out.source):
        assert all(bool(source(number, 0.3).causal.all()) for number in range(3))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_run_with_masked_rows_resumes_and_accumulates(family, tmp_path):
    settings = config(model__family=family, train__checkpoint_every=3, mutual__kl_positions="all")
    whole = train.run(settings, tmp_path)
    expected = weights(whole), rows(whole)
    interrupted(settings, tmp_path, 6)
    train.run(settings, tmp_path)
    assert (weights(whole), rows(whole)) == expected
    in_parts = paths.read_json(train.run(settings.updated({"train.accumulate": 4}), tmp_path) / "done.json")
    in_one = paths.read_json(whole / "done.json")
    for name in ("dev_ce", "held_out_ce", "peer_weights"):
        assert in_parts[name] == pytest.approx(in_one[name], rel=1e-4), name
    without = paths.read_json(train.run(settings.updated({"train.mntp_share": 0.0}), tmp_path) / "done.json")
    assert without["dev_ce"] != in_one["dev_ce"] and without["words"] == in_one["words"]


def test_a_teacher_that_is_trained_has_them_too_and_the_replay_has_none():
    assert teacher_config(config(mutual__arm="distill")).train.mntp_share == 0.25
    assert replay_config(config(), Case(), 0).train.mntp_share == 0
    assert replay_config(config(), Case("teacher"), 0).train.mntp_share == 0


def test_a_run_with_masked_rows_is_another_run_and_its_step_scores_less():
    off = config(train__mntp_share=0.0)
    assert run_hash(config(), "data") != run_hash(off, "data")
    assert workload_of(off).scored == 1
    assert workload_of(config(train__mask_ratio=0.2)).scored == pytest.approx(0.25 * 0.2 + 0.75)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    folder = save_tokenizer(tokenizer, tmp_path / "bare")
    settings = config(data__tokenizer=str(folder))
    with pytest.raises(UserError, match="has no mask token"):
        train.run(settings, tmp_path / "runs")
    assert not config(train__mntp_share=0.0).needs_mask and settings.needs_mask and load_preset("smoke").needs_mask
