"""Training, resuming, scoring, fine-tuning and the replay on a device that is not the processor (`elsewhere.py`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compare import interrupted, rows
from elsewhere import ELSEWHERE, There, elsewhere
from safetensors.torch import load_file
from small import make_peers, make_tokenizer
from test_glue import RECIPE, accuracy, examples

from wmlkit import bilevel, forward_mode, paths, steps, study, train
from wmlkit.config import Config, load_preset
from wmlkit.evaluate.finetune import finetune
from wmlkit.evaluate.run_text import evaluate_run_text, prepared_of
from wmlkit.replay import replays
from wmlkit.replay.released import cases

SHORT = {"data.words": 4000, "data.dev_words": 1000, "train.steps": 6, "train.eval_every": 2, "outer.every": 2}
NO_CURVE = {"evaluate.curve": []}
CAUSAL = {"model.family": "llama", "model.objective": "clm"}
RUNS = {
    "masked peers, one of them with a learning curve": {},
    "causal peers, the step of Adam": CAUSAL | NO_CURVE | {
        "outer.hypergradient": "adam", "model.dropout": 0.1, "train.ema_decay": 0.9, "train.mntp_share": 0.5,
    },
    "in parts, a fault may be left out": NO_CURVE | {"train.accumulate": 2, "train.skip_not_finite": 2},
    "a trained teacher": NO_CURVE | {"mutual.arm": "distill", "train.optimizer": "adamw"},
    "a teacher as a frozen peer, other forms of the loss": NO_CURVE | {
        "mutual.frozen_teacher": True, "mutual.teacher_size": "peer", "outer.objective": "probability_mixture",
        "mutual.kl_positions": "all", "mutual.kl_reduction": "batchmean", "mutual.ce_weight": "peer",
    },
    "modernbert, several sentences a row": NO_CURVE | {
        "model.family": "modernbert", "data.packing": "documents", "outer.hypergradient": "direct",
    },
}  # fmt: skip


def run_of(changes: dict, out: Path) -> tuple[Config, Path]:
    config = load_preset("smoke", SHORT | changes)
    return config, train.run(config, out)


def assert_alike(here: Path, there: Path) -> None:
    """The same run to rounding: which kernel takes attention depends on the device."""
    for one, other in zip(rows(here), rows(there), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == (value if value is None else pytest.approx(value, rel=1e-4, abs=1e-4)), name
    for peer in here.glob("peers/*/model.safetensors"):
        own, others = load_file(peer), load_file(there / peer.relative_to(here))
        assert own.keys() == others.keys()
        for name, value in own.items():
            assert torch.allclose(value, others[name], atol=1e-4), name


def test_what_a_card_refuses_is_refused(monkeypatch):
    linear = torch.nn.Linear(2, 2)
    with elsewhere(monkeypatch):
        linear.to(ELSEWHERE)
        there, here = torch.ones(3, 2).to(ELSEWHERE), torch.ones(3, 2)
        assert isinstance(linear(there), There) and isinstance(linear.weight, torch.nn.Parameter)
        assert isinstance(torch.zeros(2, device=ELSEWHERE), There) and not isinstance(there.cpu(), There)
        assert there[torch.tensor([0, 2])].device == ELSEWHERE  # an index may lie on the processor
        assert float((2 * there + torch.tensor(1.0)).sum()) == 18
        for refused in (
            lambda: linear(here),
            lambda: there + here,
            lambda: here[torch.tensor([0, 2]).to(ELSEWHERE)],
            lambda: there.index_put((torch.tensor([0]),), here[:1]),
            lambda: there.index_put((torch.tensor([0]),), here[:1], accumulate=True),
            lambda: torch.cat([there, here]),
        ):
            with pytest.raises(RuntimeError, match="on the processor"):
                refused()
        with pytest.raises(RuntimeError, match="float64"):
            there.double()
        linear(there).sum().backward()
    assert isinstance(linear.weight.grad, There) and linear.weight.grad.tolist() == [[3, 3], [3, 3]]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_elsewhere_is_that_of_the_processor(name, tmp_path, monkeypatch):
    _, here = run_of(RUNS[name], tmp_path / "here")
    with elsewhere(monkeypatch):
        _, there = run_of(RUNS[name], tmp_path / "there")
    assert str(ELSEWHERE) in paths.read_json(there / "environment.json")["device"]
    assert_alike(here, there)


def test_products_written_out_for_mps_stay_there(tmp_path, monkeypatch):
    _, here = run_of(CAUSAL | NO_CURVE, tmp_path / "here")
    monkeypatch.setattr(bilevel, "differentiable", lambda _: forward_mode.WrittenOut())
    with elsewhere(monkeypatch):
        _, there = run_of(CAUSAL | NO_CURVE, tmp_path / "there")
    assert_alike(here, there)


@pytest.mark.parametrize(
    "changes",
    [
        {"mutual.arm": "distill"},
        {"outer.hypergradient": "direct", "model.dropout": 0.1},
        {"outer.hypergradient": "sgd", "train.accumulate": 2},
        CAUSAL | {"outer.hypergradient": "adam", "train.ema_decay": 0.9},
    ],
)
def test_no_step_waits_for_its_device_but_for_the_hypergradient(changes, tmp_path, monkeypatch):
    """A card is kept busy while the processor prepares the next step; reading one number back would leave it idle."""
    seldom = {"train.log_every": 6, "train.eval_every": 6, "train.checkpoint_every": 6}
    waited = []

    def step(state, *more):
        before = len(waits)
        result = steps.train_step(state, *more)
        waited.append(len(waits) - before)
        return result

    monkeypatch.setattr(train, "train_step", step)
    with elsewhere(monkeypatch) as waits:
        run_of(changes | NO_CURVE | seldom, tmp_path)
    outer = load_preset("smoke", SHORT).outer.due(6)
    assert waited[-6:] == [int("mutual.arm" not in changes and number in outer) for number in range(6)]
    assert len(waits) > sum(waited)  # losses that are logged are read


def test_a_run_goes_on_there(tmp_path, monkeypatch):
    config = load_preset("smoke", SHORT | NO_CURVE | {"train.checkpoint_every": 2, "train.ema_decay": 0.9})
    whole = train.run(config, tmp_path / "whole")
    with elsewhere(monkeypatch):
        interrupted(config, tmp_path / "parts", 4)
        assert_alike(whole, train.run(config, tmp_path / "parts"))


def test_a_batch_too_large_is_taken_in_parts_there(tmp_path, monkeypatch):
    real = steps.inner_loss
    full = iter([True])

    def inner_loss(*arguments, **options):
        if next(full, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments, **options)

    _, here = run_of(NO_CURVE, tmp_path / "here")
    monkeypatch.setattr(steps, "inner_loss", inner_loss)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    with elsewhere(monkeypatch):
        _, there = run_of(NO_CURVE, tmp_path / "there")
    assert rows(there)[-1].pop("parts") == 2
    for one, other in zip(rows(here), rows(there), strict=True):
        assert other["ce"] == pytest.approx(one["ce"], rel=1e-4)


@pytest.mark.parametrize("changes", [{}, CAUSAL], ids=["masked", "causal"])
def test_pairs_and_text_are_scored_there(changes, tmp_path, monkeypatch):
    config, run = run_of(NO_CURVE | changes, tmp_path)
    (here,) = study.evaluate_all(run, config, tmp_path)
    text = evaluate_run_text(run, prepared_of(run), words_per_domain=100)
    paths.remove(run / "evaluation")
    with elsewhere(monkeypatch):
        (there,) = study.evaluate_all(run, config, tmp_path)
        text_there = evaluate_run_text(run, prepared_of(run), words_per_domain=100)
    assert [m["score"] for m in there["members"]] == [m["score"] for m in here["members"]]
    assert [m["bits_per_byte"] for m in text_there["members"]] == pytest.approx(
        [m["bits_per_byte"] for m in text["members"]], rel=1e-4
    )


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_a_classifier_is_trained_there(family, monkeypatch):
    (peer,) = make_peers(family, ((1, 8),))
    objective = "mlm" if family == "roberta" else "clm"
    parts = examples()[:8], {"valid": examples()[8:10]}
    settings = {"objective": objective, "num_labels": 2, "seed": 0, "select": accuracy}
    recipe = replace(RECIPE, epochs=2)
    here = finetune(peer.model, make_tokenizer(), *parts, recipe=recipe, **settings)
    with elsewhere(monkeypatch):
        there = finetune(peer.model, make_tokenizer(), *parts, recipe=recipe, device=ELSEWHERE, **settings)
    assert np.array_equal(here.predictions["valid"], there.predictions["valid"])
    assert there.losses == pytest.approx(here.losses, rel=1e-4)


@pytest.mark.parametrize("name", ["none", "all", "distill"])
def test_the_released_code_is_replayed_there(name, tmp_path, monkeypatch):
    settings = {"data.words": 4000, "data.dev_words": 1500, "replay.per_paradigm": 1, "train.eval_rows": 8}
    config = load_preset("smoke", settings)
    here = replays.run(config, tmp_path / "here", name, cases()[name])
    with elsewhere(monkeypatch):
        there = replays.run(config, tmp_path / "there", name, cases()[name])
    assert there["dev_ce"] == pytest.approx(here["dev_ce"], rel=1e-4)
    assert there["accuracy"] == here["accuracy"]
