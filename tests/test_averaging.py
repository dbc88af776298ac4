"""The moving average of the peers' weights: by hand, apart from training, kept over a stop, and what is reported."""

from __future__ import annotations

import pytest
import torch
from compare import interrupted, rows, weights
from small import make_peers
from test_train import config

from wmlkit import averaging, checkpoint, paths, steps, train
from wmlkit.config import load_preset
from wmlkit.identity import run_hash

AVERAGED = {"train__ema_decay": 0.6, "train__seed": 21}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


def test_by_hand():
    """Weights 1, 2, 3 after three updates: shares 2/11, 3/12, 4/13 of the average are kept."""
    (peer,) = make_peers("roberta", ((1, 8),))
    average = averaging.average_of(peer)
    for number in (1, 2, 3):
        with torch.no_grad():
            for parameter in peer.model.parameters():
                parameter.fill_(number)
        averaging.update([average], [peer], 0.99, number)
        if number == 1:  # what the weights were before training has 2/11
            first = {name: p.clone() for name, p in average.model.named_parameters()}
    for name, parameter in average.model.named_parameters():
        by_hand = (first[name] * 3 / 12 + 2 * 9 / 12) * 4 / 13 + 3 * 9 / 13
        torch.testing.assert_close(parameter, by_hand)
        assert not parameter.requires_grad
    assert (
        average.model.get_input_embeddings().weight is average.model.get_output_embeddings().weight
    )  # tied, as in the peer


def test_the_decay_is_the_limit():
    assert averaging.decay_at(0.5, 100) == 0.5 and averaging.decay_at(0.999, 10) == 11 / 20


def test_training_does_not_see_it_and_what_is_reported_is_the_average(out):
    """The peers of the last checkpoint are those of a run without; the exported ones are the averages beside them."""
    plain = train.run(config(train__seed=21), out)
    folder = train.run(config(**AVERAGED), out)
    last = checkpoint.checkpoints(folder / "checkpoints")[-1]
    saved = checkpoint.load_file(last / "tensors.safetensors")
    own = checkpoint.load_file(paths.peer(plain, 1) / "model.safetensors")
    exported = checkpoint.load_file(paths.peer(folder, 1) / "model.safetensors")
    for name, value in own.items():
        assert torch.equal(saved[f"peer_1/model/{name}"], value)
        assert torch.equal(saved[f"peer_1/average/{name}"], exported[name])
    assert any(not torch.equal(own[name], exported[name]) for name in own)
    reported, expected = rows(folder)[-1], rows(plain)[-1]
    assert reported["dev_ce_unaveraged"] == expected["dev_ce"] != reported["dev_ce"]
    assert {key: reported[key] for key in ("ce", "kl", "peer_weights")} == {
        key: expected[key] for key in ("ce", "kl", "peer_weights")
    }
    assert "dev_ce_unaveraged" not in expected


def test_the_reported_loss_is_that_of_the_exported_model(out):
    """Dev loss by a second way: the exported peers in the place of trained ones."""
    settings = config(**AVERAGED)
    folder = train.run(settings, out)
    prepared = train.prepare(settings.data, out)
    tokenizer = train.load_tokenizer(prepared.folder / "tokenizer")
    device = train.setup("fp32", 1)
    students = train.students_of(settings, out, prepared, tokenizer)
    state = train.build_state(settings, students, tokenizer, device)
    for i, average in enumerate(state.average_models, 1):
        average.load_state_dict(checkpoint.load_file(paths.peer(folder, i) / "model.safetensors"), strict=False)
    done = paths.read_json(folder / "done.json")
    state.log_weights = torch.tensor(done["peer_weights"], dtype=torch.float64).log()
    texts = train.open_texts(settings, prepared, tokenizer)
    found = train.evaluation_row(state, texts, settings, device, settings.train.final_eval_rows)
    assert found["dev_ce"] == done["dev_ce"] and found["held_out_ce_ensemble"] == done["held_out_ce_ensemble"]


@pytest.mark.parametrize("arm", ["wml", "distill"])
def test_resumed_equals_uninterrupted(out, arm):
    settings = config(**AVERAGED, mutual__arm=arm)
    whole = train.run(settings, out)
    expected = weights(whole), rows(whole)

    interrupted(settings, out, 6)
    train.run(settings, out)
    assert (weights(whole), rows(whole)) == expected


def test_a_skipped_step_is_no_update(out, monkeypatch):
    """The second of three steps left out: the average is over two updates, with the shares of the first two."""
    seen = []

    def leaves_out(state, *_):
        left_out = state.step == 1
        state.skipped += left_out
        return left_out

    monkeypatch.setattr(steps, "_leaves_out", leaves_out)
    monkeypatch.setattr(averaging, "update", lambda averages, peers, decay, updates: seen.append(updates))
    train.run(config(**AVERAGED, train__steps=3), out, force=True)
    assert seen == [1, 2]


def test_a_run_without_an_average_or_spans_is_what_it_was():
    """A new setting that is off leaves the identity of runs alone; the hash is that of before there were averages, plus
    `train.final_eval_rows`, which changed what `done.json` says of any run."""
    then = load_preset("smoke", {"train.warmup_steps": 3})  # as the preset was
    assert run_hash(then, "data") == "79921b1e4b32841ff68cb3fd2c72c9ade8194121b543b825bc971b7dccd6fc1d"
    averaged = [run_hash(config(train__ema_decay=decay), "data") for decay in (0.0, 0.5, 0.6)]
    assert len({*averaged, run_hash(config(train__mask_span=3), "data")}) == 4
