"""Muon in batches is torch's Muon, what the outer problem differentiates is what it does; schedules by hand."""

from __future__ import annotations

import inspect

import pytest
import torch
from small import make_peers

from wmlkit.config import load_preset
from wmlkit.identity import run_hash
from wmlkit.optim import Muon, build_optimizers, mask_ratio, schedule, set_learning_rate
from wmlkit.settings import TrainConfig
from wmlkit.state import State
from wmlkit.steps import inner_updates, outer_lr
from wmlkit.updates import muon_step

SHAPES = [(4, 6), (6, 4), (5, 5), (6, 4), (4, 6)]


def run(kind, steps: int = 3):
    """Parameters, state and updates of a few steps from the same start."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    idle = torch.nn.Parameter(torch.ones(3, 3))  # has no gradient, so it must not move
    optimizer = kind([*parameters, idle], lr=0.05, weight_decay=0.1)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    assert torch.equal(idle, torch.ones(3, 3))
    return [*parameters, idle], optimizer


def test_batched_muon_is_torchs(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch's own in float32
    (ours, own), (theirs, other) = run(Muon), run(torch.optim.Muon)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(dict(own.state[a]), dict(other.state[b]))


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_the_differentiable_step_is_the_real_one(shape):
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = Muon([parameter], lr=0.05, weight_decay=0.1)
    for _ in range(3):
        parameter.grad = torch.randn(shape, generator=generator)
        state, group = dict(optimizer.state[parameter]), optimizer.param_groups[0]
        state = {name: value.clone() for name, value in state.items()}
        expected = muon_step(parameter.detach().clone(), parameter.grad, state, group)
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)


def test_gpt2_takes_the_step_of_the_same_matrices_stored_the_other_way():
    """GPT-2 keeps (inputs, outputs): its first step is that of its transposed matrices, in both forms of it."""
    model = make_peers("gpt2")[0].model
    _, muon = build_optimizers(model, TrainConfig(optimizer="muon", muon_lr=0.05), torch.device("cpu"))
    (group,) = muon.param_groups
    assert {(8, 24), (8, 16), (16, 8)} < {tuple(p.shape) for p in group["params"]}  # both kinds of change in width
    usual = [torch.nn.Parameter(p.detach().T.clone()) for p in group["params"]]
    expected = Muon(usual, lr=group["lr"], weight_decay=group["weight_decay"], momentum=group["momentum"])
    generator = torch.Generator().manual_seed(0)
    for parameter, other in zip(group["params"], usual, strict=True):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        other.grad = parameter.grad.T.clone()
    differentiable = [muon_step(p.detach(), p.grad, {}, group) for p in group["params"]]
    muon.step()
    expected.step()
    for parameter, other, step in zip(group["params"], usual, differentiable, strict=True):
        torch.testing.assert_close(parameter, other.T, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(step, parameter.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 0.775, 0.55, 0.325, 0.1]),
        ("cosine", [0.25, 0.5, 0.75, 1, 1, 0.868198, 0.55, 0.231802, 0.1]),
    ],
)
def test_schedule_by_hand(shape, expected):
    """Four steps of warm-up, the first of them with a quarter of the rate, then four down to a tenth."""
    train = TrainConfig(steps=8, warmup_steps=4, schedule=shape, min_lr_ratio=0.1)
    assert [schedule(train, step) for step in range(9)] == pytest.approx(expected, abs=1e-6)
    assert schedule(TrainConfig(steps=8, warmup_steps=0, schedule=shape, min_lr_ratio=0.1), 0) == 1


def test_the_outer_step_size_has_the_shape_of_the_schedule_and_a_minimum_of_its_own():
    """The published pair: from 0.25 down to 0.0025, where the learning rate ends at a tenth."""
    ends = {}
    for name in ("paper-10m", "paper-100m", "released"):
        config = load_preset(name)
        ends[name] = [outer_lr(config, config.train.warmup_steps), outer_lr(config, config.train.steps)]
        assert schedule(config.train, config.train.steps) == pytest.approx(0.1)
    assert ends == {name: pytest.approx([0.25, 0.0025]) for name in ends}
    # a cosine whatever the learning rate does: half-way down at half of the steps after the warm-up
    linear = {"train.schedule": "linear", "train.steps": 8, "train.warmup_steps": 0, "outer.lr": 0.5}
    falling = load_preset("smoke", linear | {"outer.schedule": "cosine", "outer.min_lr_ratio": 0.0})
    assert [outer_lr(falling, step) for step in (0, 2, 4, 8)] == pytest.approx([0.5, 0.4267767, 0.25, 0.0], abs=1e-6)
    smoke = load_preset("smoke", {"outer.lr": 0.5})
    assert {outer_lr(smoke, step) for step in range(10)} == {0.5}
    assert run_hash(smoke, "x") != run_hash(smoke.updated({"outer.min_lr_ratio": 0.5}), "x")


def test_mask_ratio_goes_from_its_start_at_the_first_step_to_its_end_at_the_last():
    train = TrainConfig(steps=5, mask_ratio=0.4, mask_ratio_end=0.2)
    assert [mask_ratio(train, step) for step in range(5)] == pytest.approx([0.4, 0.35, 0.3, 0.25, 0.2])
    assert mask_ratio(TrainConfig(mask_ratio=0.3), 7) == 0.3


@pytest.mark.parametrize("kind", ["direct", "sgd", "adam"])
def test_the_setting_names_the_inner_step_of_the_outer_problem(kind):
    """None, theta - gamma g, or what the optimizer in use does next."""
    peer = make_peers("roberta")[0]
    config = load_preset("smoke", {"outer.hypergradient": kind, "train.optimizer": "adamw", "train.grad_clip": 0.0})
    optimizers = build_optimizers(peer, config.train, torch.device("cpu"))
    set_learning_rate(optimizers, config.train, 0)
    updates = inner_updates(State([peer], [optimizers], torch.zeros(1, dtype=torch.float64)), config, 0.5)
    if kind == "direct":
        assert updates is None
        return
    (update,) = updates
    generator = torch.Generator().manual_seed(0)
    own = dict(peer.named_parameters())
    gradients = {name: torch.randn(value.shape, generator=generator) for name, value in own.items()}
    moved = {name: value.detach() for name, value in update(gradients).items()}
    before = {name: value.detach().clone() for name, value in own.items()}
    if kind == "sgd":
        torch.testing.assert_close(moved, {name: value - 0.5 * gradients[name] for name, value in before.items()})
        return
    for name, value in own.items():
        value.grad = gradients[name]
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(moved, {name: value.detach() for name, value in own.items()})


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("family", ["roberta", "modernbert", "gpt2", "llama"])
def test_who_optimizes_and_decays_what(family, kind):
    """Every parameter once; vectors do not decay; Muon has the trunk's matrices, so no embedding and no head."""
    model = make_peers(family)[0].model
    train = TrainConfig(
        optimizer=kind, lr=0.1, muon_lr=0.2, weight_decay=0.03, beta1=0.8, beta2=0.7, warmup_steps=2, steps=9
    )
    optimizers = build_optimizers(model, train, torch.device("cpu"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [(type(o), group) for o in optimizers for group in o.param_groups]
    owners = [(names[id(p)], owner, group["weight_decay"], p.ndim) for owner, group in groups for p in group["params"]]
    assert sorted(name for name, *_ in owners) == sorted(names.values())
    assert all(decay == (0.03 if ndim > 1 else 0) for _, _, decay, ndim in owners)
    assert {group["betas"] for owner, group in groups if owner is not Muon} == {(0.8, 0.7)}
    muons = {name for name, owner, *_ in owners if owner is Muon}
    assert bool(muons) == (kind == "muon") and not any("embed" in name or "wte" in name for name in muons)
    assert all(name.startswith(("roberta.", "model.", "transformer.")) for name in muons)
    assert set_learning_rate(optimizers, train, 0) == 0.05  # the first of two steps of warm-up; of AdamW
    assert {(owner is Muon, group["lr"]) for owner, group in groups} <= {(False, 0.05), (True, 0.1)}


def test_muon_has_torch_s_momentum():
    _, muon = build_optimizers(make_peers("roberta")[0].model, TrainConfig(optimizer="muon"), torch.device("cpu"))
    usual = inspect.signature(torch.optim.Muon).parameters["momentum"].default
    assert {group["momentum"] for group in muon.param_groups} == {usual} == {0.95}
