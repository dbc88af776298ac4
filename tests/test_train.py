"""The loop: learning, determinism, resuming, arms, export; on a nursery of a few thousand words."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import math
import random
import shutil
import subprocess
import sys
import weakref
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compare import interrupted, rows, weights
from small import BLOCK, make_batch, make_peers, make_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from wmlkit import checkpoint, environment, models, paths, steps, study, train
from wmlkit.bilevel import hypergradient, mirror_step
from wmlkit.config import load_preset
from wmlkit.data.encode import open_tokens
from wmlkit.errors import UserError, disk_is_full
from wmlkit.forward import AtPositions, inner_batch, outer_batch, parameters_of
from wmlkit.identity import idle_keys
from wmlkit.losses import MutualOptions
from wmlkit.models import build_model, layers, max_length
from wmlkit.optim import build_optimizers, schedule
from wmlkit.record import model_card
from wmlkit.results import run_metrics
from wmlkit.search import Found
from wmlkit.settings import ModelConfig
from wmlkit.shapes import Student
from wmlkit.state import State
from wmlkit.students import find_students
from wmlkit.updates import sgd_update

TINY = {
    "data.words": 4000,
    "data.dev_words": 1500,
    "train.steps": 8,
    "train.eval_every": 4,
    "train.checkpoint_every": 3,
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


def config(**changes):
    return load_preset("smoke", TINY | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture(scope="module")
def finished(out):
    return train.run(config(), out)


@pytest.mark.parametrize("arm", ["independent", "dml", "distill"])
def test_what_is_no_part_of_a_run_changes_nothing_that_it_learns(out, tmp_path, arm):
    """Every setting of `idle_keys` that has another value to take, all at once; the folder's name is the same."""
    others = {
        "outer.objective": "weighted_ce", "outer.hypergradient": "direct", "outer.lr": 0.5, "outer.every": 2,
        "outer.schedule": "cosine", "outer.min_lr_ratio": 0.5, "outer.start": 3, "outer.batch_size": 5,
        "outer.min_weight": 0.1, "mutual.alpha": 0.9, "mutual.temperature": 3.0, "mutual.kl_positions": "all",
        "mutual.kl_reduction": "batchmean", "mutual.kl_warmup_steps": 3, "mutual.kl_weight": "student",
        "mutual.ce_weight": "peer", "mutual.detach_targets": False, "mutual.teacher_steps": 3,
        "mutual.teacher_size": "peer", "mutual.peer_weights": [0.9, 0.1],
    }  # fmt: skip
    plain = config(mutual__arm=arm)
    changed = plain.updated({key: value for key, value in others.items() if key in idle_keys(plain.resolved())})
    assert changed != plain
    folders = [train.run(plain, out), train.run(changed, tmp_path)]
    assert folders[0].name == folders[1].name and weights(folders[0]) == weights(folders[1])


def test_given_weights_are_kept_by_dml_and_moved_by_wml(out):
    given = {"mutual__peer_weights": [0.8, 0.2], "outer__every": 2}
    kept = train.run(config(mutual__arm="dml", **given), out)
    for own in (*rows(kept), paths.read_json(kept / "done.json")):
        assert own["peer_weights"] == pytest.approx([0.8, 0.2], abs=1e-15)
    assert weights(kept) != weights(train.run(config(mutual__arm="dml"), out))  # they weigh whom a peer imitates
    moved = train.run(config(**given, train__log_every=1), out)
    first = next(row for row in rows(moved) if row["hypergradient"] is not None)
    step = mirror_step(torch.tensor([0.8, 0.2]), torch.tensor(first["hypergradient"]), config().outer.lr)
    assert first["peer_weights"] == pytest.approx(step.tolist()) and first["peer_weights"][0] != 0.8
    equal = train.run(config(mutual__arm="dml", mutual__peer_weights=[0.5, 0.5]), out)
    assert weights(equal) == weights(train.run(config(mutual__arm="dml"), out))


def test_given_weights_are_those_of_a_frozen_teacher_too(out):
    taught = {"mutual__arm": "dml", "mutual__frozen_teacher": True}
    folder = train.run(config(**taught, mutual__peer_weights=[0.3, 0.2, 0.5]), out)
    assert rows(folder)[-1]["peer_weights"] == pytest.approx([0.3, 0.2, 0.5])
    done = paths.read_json(folder / "done.json")
    assert done["teacher_weight"] == pytest.approx(0.5) and done["peer_weights"] == pytest.approx([0.6, 0.4])
    with pytest.raises(UserError, match="2 peers and a frozen teacher; expected 3 positive numbers that sum to 1"):
        config(**taught, mutual__peer_weights=[0.5, 0.5])


@pytest.mark.parametrize("wrong", [[0.5, 0.6], [1.0], [0.2, 0.3, 0.5], []])
def test_given_weights_that_are_not_the_peers_are_refused(wrong):
    with pytest.raises(UserError, match="for 2 peers; expected 2 positive numbers that sum to 1"):
        config(mutual__peer_weights=wrong)
    for arm in ("independent", "distill"):  # which have none; a study may hold both
        config(mutual__arm=arm, mutual__peer_weights=wrong)


def test_a_given_weight_of_nothing_is_refused():
    for wrong in ([0.0, 1.0], [-0.5, 1.5]):
        with pytest.raises(UserError, match=r"mutual\.peer_weights\.0.* greater than 0"):
            config(mutual__peer_weights=wrong)


def test_a_folder_that_holds_another_run_is_neither_taken_nor_trained_on(out, tmp_path):
    """As where it was copied or renamed: its checkpoint would go on as a run of these settings."""
    own, other = (train.run_folder(config(train__seed=seed), tmp_path) for seed in (0, 5))
    shutil.copytree(train.run(config(train__seed=5), out), own)
    with pytest.raises(UserError, match="holds another run than its name says .*own name again, or train .* --force"):
        train.run(config(), tmp_path)
    (own / "done.json").unlink()
    kept = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds another run than its name says"):
        train.run(config(), tmp_path)
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == kept
    own.rename(other)
    assert train.run(config(train__seed=5), tmp_path) == other


def test_what_a_killed_force_left_is_removed(tmp_path):
    folder = train.run_folder(config(train__steps=1), tmp_path)
    left, others = (folder.with_name(f".{name}.7.old") for name in (folder.name, "wml-p2-s0-00000000"))
    for path in (left, others):
        path.mkdir(parents=True)
    train.run(config(train__steps=1), tmp_path)
    assert not left.exists() and others.exists()


def test_a_finished_run_whose_peers_were_left_behind_says_so(tmp_path):
    settings = config(train__steps=1, evaluate__per_paradigm=2, evaluate__curve=[])
    folder = train.run(settings, tmp_path)
    shutil.rmtree(folder / "peers")
    with pytest.raises(UserError, match=r"is finished, and its peers are not there .*; bring them, or remove"):
        study.evaluate_all(folder, settings, tmp_path)


def test_run_folder(finished):
    assert finished.name.startswith("wml-p2-s0-")
    done = paths.read_json(finished / "done.json")
    assert done["steps"] == 8 and done["best_peer"] in (1, 2) and sum(done["peer_weights"]) == 1
    assert done["held_out_ce"][done["best_peer"] - 1] == min(done["held_out_ce"])
    assert done["peer_weights"][0] != 0.5  # the outer steps were taken
    found = paths.read_json(finished / "config.json")
    assert [s["parameters"] for s in found["students"]] == done["parameters"]
    for peer, (parameters, dev_ce) in enumerate(zip(done["parameters"], done["dev_ce"], strict=True), 1):
        card = (paths.peer(finished, peer) / "README.md").read_text(encoding="utf-8")
        assert f"# Peer {peer} of 2," in card and f"| parameters | {parameters:,} |" in card
        assert f"| dev loss | {dev_ce:.4f} nats" in card
    row = rows(finished)[-1]
    logged = {name for name, value in row.items() if value is not None} - {"step", "tokens", "words"}
    assert set(run_metrics(finished)["quantity"]) >= logged  # tables have all of it
    assert {"step", "tokens", "words", "lr", "alpha", "ce", "kl", "total", "peer_weights", "hypergradient"} <= set(row)
    assert {"dev_ce", "held_out_ce", "dev_ce_ensemble"} <= set(row)
    train_settings = config().train
    assert row["outer_lr"] == config().outer.lr
    assert row["muon_lr"] / train_settings.muon_lr == pytest.approx(row["lr"] / train_settings.lr)
    for ce, kl, total in zip(row["ce"], row["kl"], row["total"], strict=True):
        assert total == pytest.approx(0.5 * ce + 0.5 * kl)


def test_a_finished_run_is_not_repeated(finished, out, monkeypatch):
    monkeypatch.setattr(train, "_train", lambda *_: pytest.fail("trained again"))
    assert train.run(config(), out) == finished


def test_a_run_that_another_process_finished_meanwhile_is_not_repeated(finished, out, monkeypatch):
    """It was not done when this process looked, and is when it has the folder."""
    done = (finished / "done.json").read_bytes()
    (finished / "done.json").unlink()

    @contextmanager
    def late(folder):
        (folder / "done.json").write_bytes(done)
        yield

    monkeypatch.setattr(train, "exclusive", late)
    monkeypatch.setattr(train, "_train", lambda *_: pytest.fail("trained again"))
    assert train.run(config(), out) == finished and (finished / "done.json").read_bytes() == done


def test_the_logged_total_is_the_loss_also_where_an_outer_step_moves_the_weights(out, monkeypatch):
    """Its peers' terms sum to L1 with the weights that the step began with."""
    totals, step = [], train.train_step

    def noted(*arguments):
        loss, lr = step(*arguments)
        totals.append(loss.total.item())
        return loss, lr

    monkeypatch.setattr(train, "train_step", noted)
    settings = config(
        mutual__ce_weight="peer", mutual__kl_warmup_steps=5, outer__every=1, outer__lr=5.0, outer__schedule="cosine",
        train__log_every=1,
    )  # fmt: skip
    logged = rows(train.run(settings, out))
    assert [sum(row["total"]) for row in logged] == pytest.approx(totals, rel=1e-5)
    assert [row["outer_lr"] for row in logged] == [steps.outer_lr(settings, step) for step in range(8)]
    assert [row["lr"] for row in logged] == [settings.train.lr * schedule(settings.train, step) for step in range(8)]
    assert abs(logged[-1]["peer_weights"][0] - 0.5) > 0.01  # so the weights before and after a step differ


def test_a_weight_that_is_nothing_beside_the_others_comes_back_in_training():
    """The state keeps what its rounded value does not: three steps down to e^-90, three back."""
    state = State([None, None], [], torch.full((2,), 0.5, dtype=torch.float64).log())
    settings = config(outer__lr=1.0, outer__min_weight=0.0)
    for slope in (30.0, 30.0, 30.0, -30.0, -30.0, -30.0):
        steps.outer_step(state, torch.tensor([slope, 0.0]), settings)
    assert state.peer_weights.tolist() == pytest.approx([0.5, 0.5])


def test_a_batch_without_a_scored_position_says_what_to_raise():
    batch = make_batch("roberta", seed=0)
    texts = SimpleNamespace(train=lambda *_: replace(batch, scored=batch.scored[:0]))
    with pytest.raises(UserError, match="no position of step 4's batch is scored.*raise train.mask_ratio"):
        train.train_step(SimpleNamespace(step=3, optimizers=[]), texts, config(), None)


def test_same_seed_same_bytes(finished, out):
    first, metrics = weights(finished), rows(finished)
    again = train.run(config(), out, force=True)
    assert again == finished and weights(again) == first and rows(again) == metrics


def test_dropout_is_seeded_and_resumes(out):
    """Dropout draws from torch's own generator, whose state a run must set at its start and keep in checkpoints."""
    settings = config(model__dropout=0.2, mutual__arm="dml", train__steps=6, train__checkpoint_every=3)
    folder = train.run(settings, out)
    expected = weights(folder), rows(folder)
    torch.rand(7)  # whatever else the process has drawn
    train.run(settings, out, force=True)
    assert (weights(folder), rows(folder)) == expected

    def kill(row):
        if row["step"] == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train.run(settings, out, force=True, progress=kill)
    torch.rand(3)
    train.run(settings, out)
    assert (weights(folder), rows(folder)) == expected


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_equals_uninterrupted(out, optimizer):
    """Stopped behind a checkpoint, with rows of metrics.jsonl that no checkpoint covers."""
    settings = config(train__optimizer=optimizer, train__seed=5)
    whole = train.run(settings, out)
    expected = weights(whole), rows(whole)

    interrupted(settings, out, 6)
    assert not (whole / "done.json").exists()
    assert [path.name for path in checkpoint.checkpoints(whole / "checkpoints")] == ["step-00000003"]
    assert rows(whole)[-1]["step"] > 3
    train.run(settings, out)
    assert (weights(whole), rows(whole)) == expected


def test_what_is_counted_goes_on_behind_a_checkpoint():
    counted = {"tokens": 7, "words": 5, "outer_tokens": 3.5, "seconds": 9.5, "parts": 4, "skipped": 2}
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    state = State([None, None], [], weights, hypergradient=[0.5, -0.5], clipped=torch.tensor([6, 0]), **counted)
    resumed = State([None, None], [], torch.zeros(2, dtype=torch.float64))
    resumed.recall(json.loads(json.dumps(state.record(11))))
    assert resumed.record(11) == state.record(11)
    assert {name: getattr(resumed, name) for name in counted} == counted


def test_a_log_shorter_than_its_checkpoint_is_named(out):
    """Not filled with zeros, which only the report would notice."""
    settings = config(train__seed=6)
    folder = train.run(settings, out)
    (folder / "done.json").unlink()
    log = folder / "metrics.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole[:-5])
    with pytest.raises(
        UserError, match=f"has {len(whole) - 5} bytes, and its last checkpoint was saved after {len(whole)}; expected"
    ):
        train.run(settings, out)
    assert log.read_bytes() == whole[:-5]
    log.write_bytes(whole)
    train.run(settings, out)
    assert log.read_bytes() == whole


def test_a_broken_end_of_a_run_is_named(out):
    settings = config(train__seed=7)
    folder = train.run(settings, out)
    (folder / "done.json").write_text('{"steps": ')
    with pytest.raises(UserError, match=r"done\.json is not JSON"):
        train.run(settings, out)


def test_a_checkpoint_brings_back_every_generator_and_older_ones_go(tmp_path):
    (peer,) = make_peers("roberta", ((1, 8),))
    optimizers = [build_optimizers(peer.model, config().train, torch.device("cpu"))]

    def draw():
        return (
            random.random(),
            random.gauss(0, 1),
            float(np.random.rand()),
            float(np.random.normal()),
            float(torch.rand(1)),
        )

    draw()  # half of a pair of normal numbers waits in both generators
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, [peer.model], optimizers, {"number": step}, keep=2)
    expected = draw()
    draw()
    kept = checkpoint.checkpoints(tmp_path)
    assert [path.name for path in kept] == ["step-00000002", "step-00000003"]
    assert checkpoint.restore(kept[-1], [peer.model], optimizers) == (3, {"number": 3})
    assert draw() == expected


def test_outer_steps_begin_at_their_start_and_come_as_often_as_they_should(out):
    """`outer.start` 3 and `outer.every` 2 of steps 0 ... 6: in steps 4 and 6 only."""
    settings = config(outer__start=3, outer__every=2, train__steps=7, train__log_every=1, train__seed=6)
    found = [row["hypergradient"] for row in rows(train.run(settings, out))]
    assert found[:4] == [None] * 4 and found[4] == found[5] != found[6]


def test_outer_batches_come_in_turn_and_are_masked_as_those_of_training(out):
    settings = config(train__steps=5, train__mask_ratio=0.4, train__mask_ratio_end=0.2, outer__every=2)
    prepared = train.prepare(settings.data, out)
    tokenizer = train.load_tokenizer(prepared.folder / "tokenizer")
    device = train.setup("fp32", 1)
    state = train.build_state(settings, find_students(settings, len(tokenizer)), tokenizer, device)
    texts, asked = train.open_texts(settings, prepared, tokenizer), []

    def noted(name, source):
        return lambda number, ratio: asked.append((name, number, round(ratio, 6))) or source(number, ratio)

    texts = replace(texts, train=noted("train", texts.train), outer=noted("outer", texts.outer))
    for _ in range(5):
        train.train_step(state, texts, settings, device)
    assert asked == [
        ("train", 0, 0.4), ("outer", 0, 0.4), ("train", 1, 0.35), ("train", 2, 0.3), ("outer", 1, 0.3),
        ("train", 3, 0.25), ("train", 4, 0.2), ("outer", 2, 0.2),
    ]  # fmt: skip


def test_the_kl_warms_up():
    """Over four steps: a quarter of alpha in the first, all of it from the fourth on."""
    settings = config(mutual__kl_warmup_steps=4, mutual__alpha=0.8)
    alphas = [steps.mutual_options(settings, step).alpha for step in range(6)]
    assert alphas == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert steps.mutual_options(config(mutual__alpha=0.8), 0).alpha == 0.8


def test_the_loss_of_each_arm_is_that_of_its_settings():
    settings = {
        "mutual__alpha": 0.3, "mutual__kl_weight": "student", "mutual__ce_weight": "peer",
        "mutual__detach_targets": False, "mutual__kl_reduction": "batchmean", "mutual__temperature": 2.5,
    }  # fmt: skip
    loss = MutualOptions(0.3, "student", "peer", False, "batchmean", 2.5)
    unweighted = replace(loss, ce_weight="one")
    expected = {"dml": loss, "wml": loss, "distill": unweighted, "independent": replace(unweighted, alpha=0.0)}
    for arm, options in expected.items():
        assert steps.mutual_options(config(mutual__arm=arm, **settings), 0) == options
    beside_a_teacher = config(mutual__arm="dml", mutual__frozen_teacher=True, **settings)
    assert steps.mutual_options(beside_a_teacher, 0) == replace(loss, frozen=1)


def test_an_outer_step_has_the_rate_of_its_step_and_the_floor_of_the_settings():
    settings = config(outer__lr=1.0, outer__schedule="cosine", outer__min_weight=0.2)
    state = State([None, None], [], torch.full((2,), 0.5, dtype=torch.float64).log(), step=6)
    rate = steps.outer_lr(settings, 6)
    assert 0.05 < rate < 0.5
    steps.outer_step(state, torch.tensor([0.4, 0.0]), settings)
    assert state.peer_weights[0].item() == pytest.approx(1 / (1 + math.exp(0.4 * rate)))
    steps.outer_step(state, torch.tensor([900.0, 0.0]), settings)
    assert state.peer_weights.tolist() == pytest.approx([0.2, 0.8])


def test_peers_of_one_shape_start_apart_and_a_step_leaves_no_gradients(out):
    settings = config()
    prepared = train.prepare(settings.data, out)
    tokenizer = train.load_tokenizer(prepared.folder / "tokenizer")
    device = train.setup("fp32", 1)
    (shape, *_) = find_students(settings, len(tokenizer))
    state = train.build_state(settings, [shape, shape], tokenizer, device)
    one, other = (torch.cat([p.detach().flatten() for p in peer.parameters()]) for peer in state.peers)
    assert not torch.equal(one, other)
    train.train_step(state, train.open_texts(settings, prepared, tokenizer), settings, device)
    assert all(p.grad is None for peer in state.peers for p in peer.parameters())


def test_the_best_peer_is_chosen_on_held_out_text(out, monkeypatch):
    """Not on dev text, which is reported."""
    losses = {"dev_ce": [1.0, 2.0], "held_out_ce": [2.0, 1.0], "dev_ce_ensemble": 1.0, "held_out_ce_ensemble": 1.0}
    monkeypatch.setattr(train, "evaluation_row", lambda *_: dict(losses))
    done = paths.read_json(train.run(config(train__seed=10, train__steps=2), out) / "done.json")
    assert done["best_peer"] == 2 and done["dev_ce"] == [1.0, 2.0]


def test_arms_share_text_order_masks_and_initial_weights(out):
    """The first row is logged after one update from the same point on the same batch: equal CE for all arms."""
    first = []
    for arm in ("independent", "dml", "wml"):
        folder = train.run(config(mutual__arm=arm, train__log_every=1, train__seed=3), out)
        first.append(rows(folder)[0]["ce"])
        last = rows(folder)[-1]
        if arm == "independent":
            assert last["alpha"] == 0 and last["kl"] == [0, 0]
        else:
            assert min(last["kl"]) > 0
        assert (last["peer_weights"] == [0.5, 0.5]) == (arm != "wml")
    assert first[1] == first[2]
    assert first[0] == pytest.approx(first[1], rel=1e-5)  # alpha = 0 takes the plain form of the loss


def test_dropout_is_the_same_in_every_arm(out):
    """Before the first update the peers of every arm are the same, so their losses on the first batch tell."""
    dropped = {"model__dropout": 0.3, "train__log_every": 1, "train__steps": 2, "train__seed": 8}
    arms = ("independent", "dml", "wml", "distill")
    ce = {arm: rows(train.run(config(mutual__arm=arm, **dropped), out))[0]["ce"] for arm in arms}
    plain = rows(train.run(config(mutual__arm="dml", **dropped | {"model__dropout": 0.0}), out))[0]["ce"]
    for arm in arms:
        assert ce[arm] == pytest.approx(ce["dml"], rel=1e-6)
    assert min(abs(a - b) for a, b in zip(ce["dml"], plain, strict=True)) > 1e-4


def test_seed_step_peer_and_part_each_draw_dropout_of_their_own():
    """On one model, so that nothing else differs; the same four give the same numbers."""
    settings = ModelConfig(dropout=0.3)
    model = AtPositions(build_model(Student(2, 2, 16, 32), settings, make_tokenizer(), BLOCK, 0))
    batch = make_batch("roberta", seed=1)

    def drawn(seed: int, step: int, peer: int, part: int) -> torch.Tensor:
        state, own = SimpleNamespace(step=step, peers=[model, model]), config(model__dropout=0.3, train__seed=seed)
        return steps._own_head(state, peer, own, part, batch, batch.scored).hidden

    first = drawn(0, 0, 0, 0)
    torch.rand(5)
    assert torch.equal(drawn(0, 0, 0, 0), first)
    for other in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        assert not torch.equal(drawn(*other), first), other


def test_the_hypergradient_of_a_step_is_of_the_objective_and_the_positions_of_the_settings():
    """Against the outer problem put together from its parts; with another of the two it is another one."""
    settings = config(
        outer__objective="weighted_ce", outer__hypergradient="sgd", mutual__kl_positions="all",
        mutual__kl_reduction="batchmean", mutual__temperature=2.0,
    )  # fmt: skip
    peers, options = make_peers("roberta"), steps.mutual_options(settings, 0)
    device = replace(train.setup("fp32", 1), device=torch.device("cpu"))  # where the peers are
    state = State(peers, [], torch.tensor([0.3, 0.7], dtype=torch.float64).log())
    batch, outer = make_batch("roberta", seed=1), make_batch("roberta", seed=2)
    steps.inner_loss(state, batch, settings, options, device).total.backward()
    found = steps.outer_gradient(state, [batch], batch, outer, settings, options, 0.5, device)

    def wanted(objective: str, positions: str) -> torch.Tensor:
        parameters, inner = [parameters_of(peer) for peer in peers], inner_batch(peers, batch, positions)
        updates = [sgd_update(own, 0.5) for own in parameters]
        weights, of_outer = state.peer_weights.float(), outer_batch(peers, outer)
        return hypergradient(parameters, weights, inner, of_outer, options, updates=updates, objective=objective)[0]

    torch.testing.assert_close(found, wanted("weighted_ce", "all"), rtol=1e-4, atol=1e-5)
    for other in (("logit_ensemble", "all"), ("weighted_ce", "scored")):
        assert (found - wanted(*other)).abs().max() > 1e-3, other


@pytest.mark.parametrize("more", [{}, {"model__dropout": 0.2}, {"mutual__ce_weight": "peer"}], ids=str)
def test_a_peer_of_independent_is_a_peer_trained_alone(out, more):
    """To the bit, with dropout too, and where the cross-entropy of other arms has the peers' weights."""
    together = train.run(config(mutual__arm="independent", train__seed=4, **more), out)
    alone = train.run(config(mutual__arm="independent", mutual__num_peers=1, train__seed=4, **more), out)
    assert weights(together)["peer_1"] == weights(alone)["peer_1"]


def test_student_weights_cannot_matter_under_adamw_and_target_weights_can(out):
    """`student`/`peer` only scales each peer's whole loss, to which AdamW is blind up to epsilon (docs/notation.md)."""

    def peers(kl_weight, ce_weight, start):
        settings = config(
            mutual__arm="dml", mutual__kl_weight=kl_weight, mutual__ce_weight=ce_weight,
            train__optimizer="adamw", train__grad_clip=0.0, train__lr=1e-3,
        )  # fmt: skip
        prepared = train.prepare(settings.data, out)
        tokenizer = train.load_tokenizer(prepared.folder / "tokenizer")
        device = train.setup("fp32", 1)
        state = train.build_state(settings, find_students(settings, len(tokenizer)), tokenizer, device)
        state.log_weights = torch.tensor(start, dtype=torch.float64).log()
        for optimizers in state.optimizers:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["eps"] = 1e-16
        texts = train.open_texts(settings, prepared, tokenizer)
        for _ in range(4):
            train.train_step(state, texts, settings, device)
        return torch.cat([p.detach().flatten() for peer in state.peers for p in peer.parameters()])

    blind = (peers("student", "peer", [0.3, 0.7]) - peers("student", "peer", [0.6, 0.4])).abs()
    seeing = (peers("target", "one", [0.3, 0.7]) - peers("target", "one", [0.6, 0.4])).abs()
    assert float(blind.median()) < 1e-6 and float(seeing.median()) > 20 * float(blind.median())
    assert float(seeing.mean()) > 1e-5


def test_exported_peers_load_without_wmlkit(finished, tmp_path):
    """In a fresh interpreter: the same logits from transformers alone, and the same ids from the tokenizer."""
    folder = paths.peer(finished, 1)
    code = (
        "import json, sys, torch\n"
        "from transformers import AutoModelForMaskedLM, AutoTokenizer\n"
        "model = AutoModelForMaskedLM.from_pretrained(sys.argv[1]).eval()\n"
        "ids = AutoTokenizer.from_pretrained(sys.argv[1])('Mary near the river SEES cats.', return_tensors='pt')\n"
        "assert not any(name.startswith('wmlkit') for name in sys.modules)\n"
        "torch.save([ids['input_ids'], model(**ids).logits.detach()], sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", code, folder, tmp_path / "x.pt"], check=True, cwd=tmp_path)
    ids, logits = torch.load(tmp_path / "x.pt", weights_only=True)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    assert torch.equal(
        ids, AutoTokenizer.from_pretrained(folder)("Mary near the river SEES cats.", return_tensors="pt")["input_ids"]
    )
    assert torch.equal(model(ids).logits, logits)
    settings = paths.read_json(folder / "tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # a name that older versions know too
    assert not {"is_local", "local_files_only"} & set(settings)  # how the training process found it
    assert settings["model_max_length"] == max_length(model) == load_preset("smoke").data.longest_block
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # who may read the card may read the weights
    step = checkpoint.checkpoints(finished / "checkpoints")[-1]
    saved = checkpoint.load_file(step / "tensors.safetensors")
    for name, parameter in model.named_parameters():  # what was exported is what was trained
        assert torch.equal(parameter, saved[f"peer_1/model/{name}"])


@pytest.mark.parametrize(
    ("changes", "licensed"),
    [({}, True), ({"data.corpus": "letters"}, False), ({"mutual.arm": "distill", "mutual.teacher": "./other"}, False)],
)
def test_a_card_names_a_licence_only_where_all_text_is_ours(changes, licensed):
    config = load_preset("smoke", changes)
    card = model_card(config, Found(1, 2, 32, 64, 1000, 1000, 1000, 1), 1, 2.5, 100)
    assert ("license: mit" in card) == licensed and ("knows nothing of English" in card) == licensed
    assert ("No licence is named here" in card) != licensed


def test_export_peer(finished, tmp_path):
    folder = checkpoint.export_peer(finished, "best", tmp_path / "model")
    best = paths.read_json(finished / "done.json")["best_peer"]
    assert (folder / "model.safetensors").read_bytes() == weights(finished)[f"peer_{best}"]
    packing = {"packing": config().data.packing}
    assert paths.read_json(paths.trained_on(folder)) == packing
    with pytest.raises(UserError, match="exists already"):
        checkpoint.export_peer(finished, "1", tmp_path / "model")
    with pytest.raises(UserError, match="expected best or a number from 1 to 2"):
        checkpoint.export_peer(finished, "3", tmp_path / "other")
    with pytest.raises(UserError, match="is no run folder; expected a finished run"):
        checkpoint.export_peer(tmp_path, "1", tmp_path / "other")
    (tmp_path / "environment.json").touch()
    with pytest.raises(UserError, match="so the run is not finished"):
        checkpoint.export_peer(tmp_path, "1", tmp_path / "other")


def test_an_export_to_a_full_disk_says_so(finished, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left") as error:
        checkpoint.export_peer(finished, "best", tmp_path / "model")
    assert disk_is_full(error.value) and list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_peer(out):
    settings = config(train__lr=1e30, train__muon_lr=1e30, train__seed=9, train__log_every=1)
    with pytest.raises(UserError, match=r"step \d+: the (ce|gradient|hypergradient) of peer \d is not finite"):
        train.run(settings, out)
    assert not (train.run_folder(settings, out) / "done.json").exists()


def test_a_damaged_checkpoint_is_named(out):
    settings = config(train__seed=8)
    folder = train.run(settings, out)
    (folder / "done.json").unlink()
    last = checkpoint.checkpoints(folder / "checkpoints")[-1]
    tensors = last / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"checkpoint .*{last.name} cannot be read"):
        train.run(settings, out)


def test_files_are_not_called_damaged_where_memory_ran_out(out, monkeypatch):
    """Who believed it would delete a good checkpoint, or export a good model again."""
    settings = config(train__seed=10, train__steps=1)
    folder = train.run(settings, out)

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(models.AutoModelForMaskedLM, "from_pretrained", full)
    with pytest.raises(MemoryError):
        models.load_model(paths.peer(folder, 1), "mlm")
    (folder / "done.json").unlink()
    monkeypatch.setattr(checkpoint, "load_file", full)
    with pytest.raises(MemoryError):
        train.run(settings, out)


def test_tokens_of_another_tokenizer_are_refused(out, tmp_path):
    prepared = train.prepare(config().data, out)
    other = train.prepare(config(data__vocab_size=500).data, tmp_path)
    tokenizer = train.load_tokenizer(other.folder / "tokenizer")
    with pytest.raises(UserError, match="the tokens were made by tokenizer"):
        train.open_texts(config(), prepared, tokenizer)


def test_one_student_learns(out):
    """The test that the paper's code would have failed: the loss falls well below that of word frequencies."""
    settings = config(
        mutual__arm="independent", mutual__num_peers=1, train__steps=120, train__batch_size=32, train__eval_every=120,
        train__checkpoint_every=120, train__lr=0.01, data__words=30_000, data__packing="lines", data__vocab_size=1312,
        train__seed=1, train__log_every=60,
    )  # fmt: skip
    prepared = train.prepare(settings.data, out)
    tokens, _ = open_tokens(prepared.folder / "dev.tokens")
    counts = torch.bincount(torch.tensor(tokens.astype("int64")))[5:].double()
    frequencies = counts[counts > 0] / counts.sum()
    unigram = float(-(frequencies * frequencies.log()).sum())
    done = paths.read_json(train.run(settings, out) / "done.json")
    assert done["dev_ce"][0] < unigram - 0.8, (done["dev_ce"], unigram)


@pytest.mark.parametrize("family", ["modernbert", "gpt2"])
def test_bf16_is_float32_to_rounding_in_one_process(out, family):
    """What a card that has it trains with: forward passes in bf16, weights and the outer problem in float32."""
    found = []
    for precision in ("fp32", "bf16"):
        settings = config(
            model__family=family, model__objective="mlm" if family == "modernbert" else "clm",
            train__precision=precision, outer__every=2, train__log_every=1, train__seed=11, evaluate__curve=[],
        )  # fmt: skip
        folder = train.run(settings, out)
        assert paths.read_json(folder / "environment.json")["precision"] == precision
        assert checkpoint.load_file(paths.peer(folder, 1) / "model.safetensors").popitem()[1].dtype == torch.float32
        found.append(rows(folder))
    for plain, rounded in zip(*found, strict=True):
        assert rounded["ce"] == pytest.approx(plain["ce"], rel=1e-3) and rounded["ce"] != plain["ce"]
        assert rounded["hypergradient"] == pytest.approx(plain["hypergradient"], rel=0.05, abs=1e-3)
    assert found[1][-1]["dev_ce"] == pytest.approx(found[0][-1]["dev_ce"], rel=1e-3)


ARMS = ("independent", "dml", "wml", "distill")
FAMILIES = {"roberta": "mlm", "modernbert": "mlm", "gpt2": "clm", "llama": "clm"}


def few_steps(family, **changes):
    small = {"train__steps": 3, "train__eval_every": 3, "train__log_every": 1, "train__batch_size": 4}
    small |= {"train__eval_rows": 8, "outer__batch_size": 8, "outer__every": 2, "evaluate__per_paradigm": 2}
    return config(model__family=family, model__objective=FAMILIES[family], **small, **changes)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_peers", [1, 2, 4])
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_and_exports_every_family(arm, num_peers, family, out):
    folder = train.run(few_steps(family, mutual__arm=arm, mutual__num_peers=num_peers), out)
    done, last = paths.read_json(folder / "done.json"), rows(folder)[-1]
    assert done["steps"] == 3 and len(done["dev_ce"]) == len(done["peer_weights"]) == num_peers
    assert sum(done["peer_weights"]) == pytest.approx(1)
    learns_from_others = arm == "distill" or (arm != "independent" and num_peers > 1)
    assert all((kl > 0) == learns_from_others for kl in last["kl"])
    assert (last["hypergradient"] is not None) == (arm == "wml" and num_peers > 1)
    assert ("teacher" in done) == (arm == "distill")
    loader = AutoModelForMaskedLM if FAMILIES[family] == "mlm" else AutoModelForCausalLM
    for i in range(num_peers):
        exported = paths.peer(folder, i + 1)
        model, tokenizer = loader.from_pretrained(exported).eval(), AutoTokenizer.from_pretrained(exported)
        with torch.no_grad():
            logits = model(**tokenizer("The cat sleeps.", return_tensors="pt")).logits
        assert type(model).__name__.lower().startswith(family) and torch.isfinite(logits).all()
        assert sum(p.numel() for p in model.parameters()) == done["parameters"][i]
        if FAMILIES[family] == "clm":  # goes on from a prompt, which its tokenizer leaves open, and keeps what it read
            prompt = tokenizer("The cat", return_tensors="pt")
            assert prompt["input_ids"][0, 0] == tokenizer.bos_token_id
            assert prompt["input_ids"][0, -1] != tokenizer.eos_token_id
            assert model.config.use_cache and model.generation_config.use_cache is not False
            assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt["input_ids"].shape[1]


def test_a_run_names_all_that_trained_it(tmp_path, monkeypatch):
    settings = config(train__seed=3)

    def at(commit: str | None, precision: str = "fp32") -> None:
        now = {"commit": commit, "command": f"wmlkit {commit}", "device": "cpu", "precision": precision}
        monkeypatch.setattr(environment, "document", lambda *_: now)

    def noted() -> tuple[str, str, str]:
        found = paths.read_json(train.run_folder(settings, tmp_path) / "environment.json")
        return found["commit"], found["command"], found["device"]

    at("a" * 40)
    interrupted(settings, tmp_path, 4)
    at("b" * 40, "bf16")
    with pytest.raises(UserError, match="was begun in fp32 on cpu and would go on in bf16 on cpu; .* begin anew"):
        train.run(settings, tmp_path)
    for commit in ("b" * 40, "b" * 40, "b; c", "b; c", None):
        at(commit)
        with pytest.raises(InterruptedError):
            train.run(settings, tmp_path, progress=raise_interrupted)
    at(None)
    train.run(settings, tmp_path)
    told = ", ".join(["a" * 40, "b" * 40, "b; c", environment.NO_CHECKOUT])
    assert noted() == (told, f"wmlkit {'a' * 40}; wmlkit {'b' * 40}; wmlkit b; c; wmlkit None", "cpu")
    at("c" * 40)
    train.run(settings, tmp_path)  # finished: nothing is trained
    assert noted()[0] == told
    train.run(settings, tmp_path, force=True)
    assert noted() == ("c" * 40, f"wmlkit {'c' * 40}", "cpu")


def raise_interrupted(_: dict) -> None:
    raise InterruptedError


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("arm", ["wml", "distill"])
def test_every_family_is_evaluated(arm, family, out):
    settings = few_steps(family, mutual__arm=arm, mutual__num_peers=2)
    (document,) = study.evaluate_all(train.run(settings, out), settings, out)
    members = {member["member"]: member for member in document["members"]}
    assert {"peer_1", "peer_2", "ensemble", "uniform_ensemble"} == set(members)
    assert document["settings"]["objective"] == FAMILIES[family]
    assert all(0 <= member["score"] <= 100 and member["n"] == 17 * 2 for member in members.values())
    if arm == "distill":
        name = paths.read_json(train.run_folder(settings, out) / "done.json")["teacher"]["run"]
        assert paths.evaluation(out / "smoke" / name, "nursery", settings.evaluate.protocol).is_file()


def test_all_arms_of_a_seed_see_the_same_batches(out, monkeypatch):
    """Hashes of what the peers are shown and scored on, in every step, of every arm and number of peers."""
    seen: list[str] = []
    inner_loss = steps.inner_loss

    def watched(state, batch, *rest):
        shown = (batch.input_ids, batch.targets)
        seen.append(hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in shown)).hexdigest())
        return inner_loss(state, batch, *rest)

    monkeypatch.setattr(steps, "inner_loss", watched)
    orders = {}
    for arm, num_peers, seed in [("teacher", 1, 7), *((arm, n, 7) for arm in ARMS for n in (1, 2)), ("dml", 2, 8)]:
        seen.clear()
        settings = few_steps("roberta", mutual__arm=arm, mutual__num_peers=num_peers, train__seed=seed)
        train.run(settings, out, force=True)
        orders[arm, num_peers, seed] = tuple(seen)
    other = orders.pop(("dml", 2, 8))
    (shared,) = set(orders.values())
    assert len(orders) == 9 and len(set(shared)) == 3 and not set(shared) & set(other)


@pytest.mark.parametrize(("family", "run"), [("roberta", 2), ("modernbert", 2), ("gpt2", 3), ("llama", 3)])
def test_compiled_peers_train_the_same_and_keep_their_names(family, run, monkeypatch):
    """Layer by layer, of masked models all but the last, which is read at a few positions; in `head` and nowhere else.
    That the compiler itself is right is torch's business (and takes minutes)."""
    asked, ran = [], []

    def compiled_by_name(function, **given):
        asked.append(given)
        return lambda *arguments, **named: ran.append(1) or function(*arguments, **named)

    monkeypatch.setattr(torch, "compile", compiled_by_name)
    plain, compiled = (AtPositions(make_peers(family, ((3, 8),))[0].model, flag) for flag in (False, True))
    assert asked == 3 * [{"dynamic": True}] and list(plain.state_dict()) == list(compiled.state_dict())
    batch = make_batch(family, seed=1)
    for peer in (plain, compiled):
        peer.head(batch, batch.scored).logits().square().sum().backward()
    assert len(ran) == run
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    compiled(batch, batch.scored)
    assert len(ran) == run and not any("forward" in vars(layer) for layer in layers(compiled.model))


def test_the_compiler_takes_a_layer(monkeypatch):
    """Traced for real, run without the minutes of making code."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **given: real(f, backend="eager", **given))
    plain, compiled = (AtPositions(make_peers("modernbert", ((3, 8),))[0].model, flag) for flag in (False, True))
    batch = make_batch("modernbert", seed=1)
    torch.testing.assert_close(compiled.head(batch, batch.scored).hidden, plain.head(batch, batch.scored).hidden)


def test_a_finished_run_leaves_no_peer_behind():
    """Gone with the last name for it, not when Python next looks for cycles: a card would keep it so long."""
    peer = make_peers("roberta")[0]
    gone = weakref.ref(peer)
    gc.disable()
    try:
        del peer
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("family", ["roberta", "modernbert", "gpt2", "llama"])
def test_a_step_does_not_wait_for_the_card(out, family):
    """Between two logged rows nothing asks the device for a value; an outer step does, once."""
    objective = "mlm" if family in ("roberta", "modernbert") else "clm"
    settings = config(mutual__arm="dml", model__family=family, model__objective=objective)
    prepared = train.prepare(settings.data, out)
    tokenizer = train.load_tokenizer(prepared.folder / "tokenizer")
    device = train.setup("auto", 1)
    state = train.build_state(settings, find_students(settings, len(tokenizer)), tokenizer, device)
    texts = train.open_texts(settings, prepared, tokenizer)
    steps.train_step(state, texts, settings, device)  # what is made once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps.train_step(state, texts, settings, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_study_evaluates_again_when_other_pairs_or_text_are_asked_for(finished, out):
    """Runs scored with other settings must not stand beside one another in a table."""
    few = config(evaluate__per_paradigm=2, evaluate__text_words=8)
    assert not study._is_done(finished, few, out, "evaluate") and study._is_done(finished, few, out, "train")
    study.evaluate_all(finished, few, out)
    assert study._is_done(finished, few, out, "evaluate")
    for changed in (few.updated({"evaluate.per_paradigm": 3}), few.updated({"evaluate.text_words": 9})):
        assert not study._is_done(finished, changed, out, "evaluate")


def test_a_parameter_that_nothing_depended_on_has_a_zero_gradient():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    weights[0].grad = torch.tensor([1.0, 2.0])
    twice = SimpleNamespace(total=lambda gradients: [2 * gradient for gradient in gradients])  # two equal processes
    steps._exchange_gradients(SimpleNamespace(peers=[SimpleNamespace(weights=weights)]), twice)
    assert [weight.grad.tolist() for weight in weights] == [[2.0, 4.0], [0.0, 0.0]]


def test_processes_stop_together_and_only_where_they_meet():
    asked, largest = [0, 15], lambda own: max(own, 2)  # another process was asked with signal 2
    alone, several = (SimpleNamespace(processes=n, largest=largest) for n in (1, 2))
    assert [train._stop_signal(lambda own=own: own, alone, False) for own in asked] == [0, 15]
    assert [train._stop_signal(lambda own=own: own, several, False) for own in asked] == [0, 0]
    assert [train._stop_signal(lambda own=own: own, several, True) for own in asked] == [2, 15]
