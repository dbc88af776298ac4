"""A batch in parts, in time or among processes, gives what it gives in one piece."""

from __future__ import annotations

import itertools

import pytest
import torch
from small import make_batch, make_peers

from wmlkit import train
from wmlkit.bilevel import hypergradient, inner_gradients
from wmlkit.config import load_preset
from wmlkit.device import setup
from wmlkit.forward import inner_batch, kl_positions, outer_batch, parameters_of, share_of
from wmlkit.losses import MutualOptions, mutual_loss, mutual_loss_reference
from wmlkit.steps import own_parts
from wmlkit.updates import sgd_update

OPTIONS = [
    (positions, MutualOptions(0.4, kl_weight, "peer", detach, reduction, 1.5))
    for positions, kl_weight, detach, reduction in itertools.product(
        ["scored", "all"], ["target", "student"], [True, False], ["token_mean", "batchmean"]
    )
]
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)


def split(batch, count):
    return [batch.part(i, count) for i in range(count)]


def test_a_part_holds_its_rows():
    batch = make_batch("roberta", seed=1, batch_size=5)
    parts = split(batch, 2)
    assert [len(part.input_ids) for part in parts] == [3, 2]
    rows, length = batch.input_ids.shape
    for first, part in enumerate(parts):
        assert torch.equal(part.input_ids, batch.input_ids[first::2])
        assert torch.equal(part.attention_mask, batch.attention_mask[first::2])
        for name in ("scored", "real"):
            found = torch.zeros(part.input_ids.shape, dtype=torch.bool).flatten()
            found[getattr(part, name)] = True
            expected = torch.zeros(rows * length, dtype=torch.bool)
            expected[getattr(batch, name)] = True
            assert torch.equal(found, expected.view(rows, length)[first::2].flatten())
        assert torch.equal(part.targets, batch.targets.view(rows, length)[first::2].flatten())
    assert sum(len(part.scored) for part in parts) == len(batch.scored)


@pytest.mark.parametrize("form", [mutual_loss, mutual_loss_reference])
@pytest.mark.parametrize(("positions", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("count", [2, 4])
def test_losses_and_gradients_of_the_parts_add_up(form, positions, options, count):
    peers = make_peers("roberta", dtype=torch.float64)
    batch = make_batch("roberta", seed=1)

    def computed(parts):
        found = []
        for part in parts:
            index, scored = kl_positions(part, positions)
            logits = [peer(part, index) for peer in peers]
            share = share_of(part, batch, positions, options)
            loss = form(logits, part.targets[index], WEIGHTS, options, len(part.input_ids), scored, share)
            loss.total.backward()
            found.append(torch.cat([loss.total.detach()[None], loss.ce, loss.kl]))
        gradients = [p.grad.clone() for peer in peers for p in peer.parameters() if p.grad is not None]
        for peer in peers:
            peer.zero_grad()
        return torch.stack(found).sum(dim=0), gradients

    whole, parts = computed([batch]), computed(split(batch, count))
    torch.testing.assert_close(whole[0], parts[0], rtol=1e-12, atol=1e-12)
    for a, b in zip(whole[1], parts[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("objective", ["logit_ensemble", "probability_mixture", "weighted_ce"])
@pytest.mark.parametrize(("positions", "kl_weight"), [("scored", "target"), ("all", "target"), ("scored", "student")])
def test_hypergradient_of_the_parts_is_that_of_the_batch(objective, positions, kl_weight):
    peers = make_peers("gpt2" if positions == "scored" else "roberta", dtype=torch.float64)
    family = "gpt2" if positions == "scored" else "roberta"
    parameters = [parameters_of(peer) for peer in peers]
    updates = [sgd_update(own, 0.3) for own in parameters]
    options = MutualOptions(0.4, kl_weight)
    batch, held_out = make_batch(family, seed=1), make_batch(family, seed=2)

    def computed(count):
        inner = [
            inner_batch(peers, part, positions, None, share_of(part, batch, positions, options))
            for part in split(batch, count)
        ]
        outer = [
            outer_batch(peers, part, None, len(part.scored) / len(held_out.scored)) for part in split(held_out, count)
        ]
        gradients = inner_gradients(parameters, WEIGHTS, inner, options)
        arguments = {"updates": updates, "objective": objective}
        return hypergradient(parameters, WEIGHTS, inner, outer, options, **arguments, gradients=gradients)

    for whole, parts in zip(computed(1), computed(3), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)


def test_more_parts_than_rows_are_as_many_as_rows():
    batch = make_batch("modernbert", 0, 3)
    whole = [part.input_ids.tolist() for part in own_parts(batch, 3, setup("fp32"))]
    assert [part.input_ids.tolist() for part in own_parts(batch, 10**15, setup("fp32"))] == whole


def test_a_run_that_accumulates_is_the_run_in_one_piece(tmp_path):
    """To rounding in float32: 12 steps of AdamW, outer steps included; also in more parts than there are rows."""
    settings = {"train.optimizer": "adamw", "mutual.kl_positions": "all", "train.log_every": 1}
    rows = {}
    for parts in (1, 4, 24):
        folder = train.run(load_preset("smoke", settings | {"train.accumulate": parts}), tmp_path)
        rows[parts] = train.paths.read_json(folder / "done.json")
    for name in ("dev_ce", "held_out_ce", "peer_weights"):
        for parts in (4, 24):
            assert rows[parts][name] == pytest.approx(rows[1][name], rel=1e-4), name
    assert rows[4]["tokens"] == rows[1]["tokens"] and rows[4]["words"] == rows[1]["words"]
