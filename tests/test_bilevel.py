"""The hypergradient against finite differences through the real inner step, and mirror descent's properties."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_batch, make_peers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from wmlkit import losses
from wmlkit.bilevel import (
    entropy,
    hypergradient,
    inner_gradients,
    log_mirror_step,
    mirror_step,
    on_simplex,
    outer_gradients,
    outer_loss,
)
from wmlkit.forward import inner_batch, outer_batch, parameters_of
from wmlkit.losses import MutualOptions
from wmlkit.optim import build_optimizers
from wmlkit.settings import TrainConfig
from wmlkit.updates import optimizer_update, sgd_update

SHAPES = ((1, 8), (2, 8), (1, 16))
OPTIONS = list(itertools.product(["target", "student"], ["one", "peer"], [True, False]))


def make_updates(peers, kind: str, batch):
    """Inner steps, large enough that the correction is far from rounding; optimizers after two real steps."""
    if kind == "sgd":
        return [sgd_update(parameters_of(peer), 0.5) for peer in peers]
    settings = TrainConfig(optimizer=kind, lr=0.02, muon_lr=0.05, weight_decay=0.1)
    updates = []
    for peer in peers:
        optimizers = build_optimizers(peer.model, settings, torch.device("cpu"))
        for _ in range(2):
            torch.nn.functional.cross_entropy(peer(batch, batch.scored), batch.targets[batch.scored]).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        updates.append(optimizer_update(peer, optimizers, grad_clip=0.0))
    return updates


def outer_value(parameters, updates, weights: Tensor, inner, outer, options, objective: str) -> Tensor:
    """L2(w) through the real inner step. Detached targets are constants of L1: theta does not move with w here."""
    gradients = inner_gradients(parameters, weights, inner, options)
    stepped = [update(g) for update, g in zip(updates, gradients, strict=True)]
    logits = [forward(p) for forward, p in zip(outer.forward, stepped, strict=True)]
    return outer_loss(logits, outer.targets, weights, objective)


def assert_is_the_slope(gradient, parameters, updates, weights: Tensor, *arguments, step: float = 1e-5) -> None:
    """`gradient` equals central finite differences of `outer_value` in every weight."""
    for m in range(len(weights)):
        shift = torch.zeros_like(weights)
        shift[m] = step
        high, low = (outer_value(parameters, updates, weights + sign * shift, *arguments) for sign in (1, -1))
        assert ((high - low) / (2 * step)).item() == pytest.approx(gradient[m].item(), abs=1e-6)


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
@pytest.mark.parametrize("kind", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("objective", ["logit_ensemble", "probability_mixture", "weighted_ce"])
@pytest.mark.parametrize(("kl_weight", "ce_weight", "detach"), OPTIONS)
def test_hypergradient_equals_finite_differences(family, kind, objective, kl_weight, ce_weight, detach):
    peers = make_peers(family, SHAPES, dtype=torch.float64)
    updates = make_updates(peers, kind, make_batch(family, seed=3))
    parameters = [parameters_of(peer) for peer in peers]
    options = MutualOptions(0.4, kl_weight, ce_weight, detach, temperature=1.5)
    inner = inner_batch(peers, make_batch(family, seed=1), "scored")
    outer = outer_batch(peers, make_batch(family, seed=2))
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    gradient, value = hypergradient(parameters, weights, inner, outer, options, updates=updates, objective=objective)
    arguments = (inner, outer, options, objective)
    assert value.item() == pytest.approx(outer_value(parameters, updates, weights, *arguments).item(), abs=1e-12)
    assert_is_the_slope(gradient, parameters, updates, weights, *arguments)
    # The correction is there: leaving it out, as the released code does, is seen by this test.
    gradients = inner_gradients(parameters, weights, inner, options)
    stepped = [update(g) for update, g in zip(updates, gradients, strict=True)]
    direct, _, _ = outer_gradients(stepped, weights, outer, objective, respond=False)
    if (kind, kl_weight, ce_weight) != ("adamw", "student", "peer") and kind != "muon":
        assert (gradient - direct).abs().max().item() > 1e-5


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
@pytest.mark.parametrize("kind", ["sgd", "adamw", "muon"])
@pytest.mark.parametrize("shapes", [((1, 8), (2, 16)), ((1, 8), (2, 8), (1, 16), (2, 16))], ids=["P=2", "P=4"])
def test_hypergradient_of_two_and_four_peers(family, kind, shapes):
    peers = make_peers(family, shapes, dtype=torch.float64)
    updates = make_updates(peers, kind, make_batch(family, seed=3))
    parameters = [parameters_of(peer) for peer in peers]
    inner = inner_batch(peers, make_batch(family, seed=1), "scored")
    outer = outer_batch(peers, make_batch(family, seed=2))
    options = MutualOptions(0.5)
    weights = torch.full((len(peers),), 1 / len(peers), dtype=torch.float64)
    gradient, _ = hypergradient(parameters, weights, inner, outer, options, updates=updates)
    assert_is_the_slope(gradient, parameters, updates, weights, inner, outer, options, "logit_ensemble")


@pytest.mark.parametrize("family", ["roberta", "gpt2"])  # the others compute parts in float32 whatever they get
@pytest.mark.parametrize(
    ("positions", "reduction"), [("all", "token_mean"), ("all", "batchmean"), ("scored", "batchmean")]
)
@pytest.mark.parametrize("detach", [True, False])
def test_hypergradient_of_other_positions_and_reductions(family, positions, reduction, detach):
    peers = make_peers(family, SHAPES, dtype=torch.float64)
    updates = make_updates(peers, "adamw", make_batch(family, seed=3))
    parameters = [parameters_of(peer) for peer in peers]
    inner = inner_batch(peers, make_batch(family, seed=1), positions)
    outer = outer_batch(peers, make_batch(family, seed=2))
    options = MutualOptions(0.3, detach_targets=detach, kl_reduction=reduction)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    gradient, _ = hypergradient(parameters, weights, inner, outer, options, updates=updates)
    assert_is_the_slope(gradient, parameters, updates, weights, inner, outer, options, "logit_ensemble")


@pytest.mark.parametrize(("family", "kind"), [("roberta", "adamw"), ("roberta", "muon"), ("gpt2", "muon")])
@pytest.mark.parametrize("grad_clip", [0.0, 0.3, 1e3])  # none, one that shortens the gradient, one that need not
def test_update_is_what_the_optimizer_does(family, kind, grad_clip, monkeypatch):
    """The differentiable step equals torch's, from a state of two steps; Muon's iteration kept in float32."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    (peer,) = make_peers(family, ((1, 16),))
    batch = make_batch(family, seed=1)
    optimizers = build_optimizers(peer.model, TrainConfig(optimizer=kind, weight_decay=0.1), torch.device("cpu"))
    for number in range(3):
        torch.nn.functional.cross_entropy(peer(batch, batch.scored), batch.targets[batch.scored]).backward()
        if number == 2:
            gradients = {name: p.grad.clone() for name, p in parameters_of(peer).items()}
            expected = optimizer_update(peer, optimizers, grad_clip)(gradients)
        if grad_clip:
            torch.nn.utils.clip_grad_norm_(peer.parameters(), grad_clip)
        before = {name: p.detach().clone() for name, p in parameters_of(peer).items()}
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in parameters_of(peer).items():
        moved = (parameter - before[name]).norm()
        assert (expected[name] - parameter).norm() <= 1e-3 * moved + 1e-7, name


def test_hypergradient_reuses_the_gradients_of_the_training_step():
    peers = make_peers("roberta", dtype=torch.float64)
    options = MutualOptions()
    inner = inner_batch(peers, make_batch("roberta", seed=1), "scored")
    outer = outer_batch(peers, make_batch("roberta", seed=2))
    weights = torch.full((2,), 0.5, dtype=torch.float64)
    parameters = [parameters_of(peer) for peer in peers]
    loss = losses.mutual_loss(
        [f(p) for f, p in zip(inner.forward, parameters, strict=True)], inner.targets, weights, options
    )
    loss.total.backward()
    grads = [{k: p.grad for k, p in own.items()} for own in parameters]
    with sdpa_kernel(SDPBackend.MATH):
        updates = [sgd_update(own, 0.1) for own in parameters]
        fresh, _ = hypergradient(parameters, weights, inner, outer, options, updates=updates)
        reused, _ = hypergradient(parameters, weights, inner, outer, options, updates=updates, gradients=grads)
    torch.testing.assert_close(fresh, reused, rtol=1e-9, atol=1e-12)


def test_hypergradient_leaves_the_models_alone():
    peers = make_peers("roberta")
    before = [p.clone() for peer in peers for p in peer.parameters()]
    inner = inner_batch(peers, make_batch("roberta", seed=1), "scored")
    outer = outer_batch(peers, make_batch("roberta", seed=2))
    parameters = [parameters_of(peer) for peer in peers]
    updates = [sgd_update(own, 0.1) for own in parameters]
    hypergradient(parameters, torch.ones(2) / 2, inner, outer, MutualOptions(), updates=updates)
    after = [p for peer in peers for p in peer.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)


def test_outer_objectives_by_hand():
    """Two peers, one position, two words: p_1 = (1/2, 1/2), p_2 = (4/5, 1/5), the truth is word 0."""
    z = [torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]) + torch.tensor([[4.0, 1.0]]).log()]
    weights, truth = torch.tensor([0.5, 0.5]), torch.tensor([0])
    assert float(outer_loss(z, truth, weights, "probability_mixture")) == pytest.approx(0.4307829)  # -log(0.65)
    assert float(outer_loss(z, truth, weights, "weighted_ce")) == pytest.approx(0.4581454)  # -(log .5 + log .8) / 2
    assert float(outer_loss(z, truth, weights, "logit_ensemble")) == pytest.approx(0.4054651)  # log odds are log 2


def test_a_mixture_of_peers_that_are_both_far_off_is_no_infinity():
    """The truth has e^-120 in both peers, less than float32 holds, and so in the mixture."""
    z, weights = torch.tensor([[0.0, 120.0]]), torch.tensor([0.5, 0.5], requires_grad=True)
    loss = outer_loss([z, z], torch.tensor([0]), weights, "probability_mixture")
    (slope,) = torch.autograd.grad(loss, weights)
    assert float(loss.detach()) == pytest.approx(120.0)
    assert slope.tolist() == [-1.0, -1.0]  # - p_i / mixture


@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
def test_a_peer_without_weight_and_so_without_gradient_has_a_hypergradient(grad_clip):
    peers = make_peers("roberta")
    settings = TrainConfig(optimizer="adamw")
    optimizers = [build_optimizers(peer.model, settings, torch.device("cpu")) for peer in peers]
    updates = [optimizer_update(peer, own, grad_clip) for peer, own in zip(peers, optimizers, strict=True)]
    inner = inner_batch(peers, make_batch("roberta", seed=1), "scored")
    outer = outer_batch(peers, make_batch("roberta", seed=2))
    options = MutualOptions(kl_weight="student", ce_weight="peer")
    parameters, weights = [parameters_of(peer) for peer in peers], torch.tensor([1.0, 0.0])
    with sdpa_kernel(SDPBackend.MATH):
        gradient, _ = hypergradient(parameters, weights, inner, outer, options, updates=updates)
    assert torch.isfinite(gradient).all() and gradient.abs().min() > 0


@pytest.mark.parametrize("grad_clip", [0.0, 1.0])
def test_the_first_step_of_adamw_has_no_slope(grad_clip):
    """It is a sign: the correction that its spikes at |g| near eps would make predicts nothing. The second has one."""
    peers = [peer.float() for peer in make_peers("roberta")]
    batch = make_batch("roberta", seed=1)
    inner, outer = inner_batch(peers, batch, "scored"), outer_batch(peers, make_batch("roberta", seed=2))
    parameters, weights = [parameters_of(peer) for peer in peers], torch.tensor([0.3, 0.7])
    optimizers = [build_optimizers(peer.model, TrainConfig(optimizer="adamw"), torch.device("cpu")) for peer in peers]

    def slope(updates):
        with sdpa_kernel(SDPBackend.MATH):
            return hypergradient(parameters, weights, inner, outer, MutualOptions(), updates=updates)[0]

    def both():
        """The hypergradient, and the explicit term alone, at the same theta'."""
        updates = [optimizer_update(peer, own, grad_clip) for peer, own in zip(peers, optimizers, strict=True)]
        return slope(updates), slope([lambda g, u=u: {k: v.detach() for k, v in u(g).items()} for u in updates])

    torch.testing.assert_close(*both())
    for peer, own in zip(peers, optimizers, strict=True):
        torch.nn.functional.cross_entropy(peer(batch, batch.scored), batch.targets[batch.scored]).backward()
        for optimizer in own:
            optimizer.step()
    second, explicit = both()
    assert (second - explicit).abs().max() > 1e-6


def test_mirror_step_by_hand():
    """Equal weights, gradient (0, log 2), step 1: the second weight halves against the first."""
    weights = mirror_step(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 2.0]).exp().log() * 0.34657359, 1.0)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 1 / 3], dtype=torch.float64))


simplex = st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=6).map(lambda v: [x / sum(v) for x in v])


@settings(deadline=None, max_examples=300)
@given(simplex, st.floats(-50, 50), st.floats(0, 5), st.integers(0, 2**31))
def test_mirror_step_properties(values, constant, lr, seed):
    weights = torch.tensor(values, dtype=torch.float64)
    gradient = torch.randn(len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    stepped = mirror_step(weights, gradient, lr)
    assert float(stepped.sum()) == 1.0 and bool((stepped >= 0).all())
    torch.testing.assert_close(stepped, mirror_step(weights, gradient + constant, lr), rtol=1e-9, atol=1e-12)
    permutation = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    permuted = mirror_step(weights[permutation], gradient[permutation], lr)
    torch.testing.assert_close(stepped[permutation], permuted, rtol=1e-9, atol=1e-12)


def test_mirror_step_moves_weight_down_the_gradient_and_keeps_the_floor():
    weights = torch.full((3,), 1 / 3)
    for _ in range(200):
        weights = mirror_step(weights, torch.tensor([1.0, 0.0, 0.5]), 0.5, min_weight=0.05)
    torch.testing.assert_close(weights, torch.tensor([0.05, 0.9, 0.05], dtype=torch.float64))
    everywhere = mirror_step(torch.tensor([0.9, 0.1]), torch.tensor([1.0, 0.0]), 0.5, min_weight=0.5)
    assert everywhere.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="exceeds 1"):
        mirror_step(torch.ones(3) / 3, torch.zeros(3), 0.1, min_weight=0.5)


def test_a_weight_that_is_nothing_beside_the_others_comes_back():
    """400 steps of slope 0.4 make it e^-160, under what is left beside 1; 400 back make it what it was."""
    slope, log_weights = torch.tensor([0.4, 0.0]), torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    for _ in range(400):
        log_weights = log_mirror_step(log_weights, slope, 1.0)
    assert on_simplex(log_weights).tolist() == [0.0, 1.0]
    assert float(log_weights[0]) == pytest.approx(math.log(0.25 / 0.75) - 160)
    for _ in range(400):
        log_weights = log_mirror_step(log_weights, -slope, 1.0)
    torch.testing.assert_close(on_simplex(log_weights), torch.tensor([0.25, 0.75], dtype=torch.float64))


def test_entropy():
    assert entropy(torch.full((4,), 0.25)) == pytest.approx(1.3862944)
    assert entropy(torch.tensor([1.0, 0.0])) == 0.0
