"""The hypergradient against finite differences through the real inner step, and mirror descent's properties."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_batch, make_peers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from wmlkit import losses
from wmlkit.bilevel import entropy, hypergradient, inner_gradients, mirror_step, outer_loss, sgd_update
from wmlkit.forward import inner_batch, outer_batch, parameters_of
from wmlkit.losses import MutualOptions

INNER_LR = 0.5  # large, so that the correction is far from rounding


def outer_value(peers, weights: Tensor, targets_from: Tensor, inner, outer, options, objective: str) -> Tensor:
    """L2(w) through a real inner step whose detached targets are those at `targets_from`.

    The detached targets are constants of L1, and so is the weight they were detached at: finite
    differences must move w in L1's coefficients only, which `inner_gradients` at unchanged theta does.
    """
    parameters = [parameters_of(peer) for peer in peers]
    gradients = inner_gradients(parameters, weights, inner, options)
    stepped = [sgd_update(p, g, INNER_LR) for p, g in zip(parameters, gradients, strict=True)]
    logits = [forward(p) for forward, p in zip(outer.forward, stepped, strict=True)]
    return outer_loss(logits, outer.targets, weights, objective)


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
@pytest.mark.parametrize("objective", ["logit_ensemble", "probability_mixture", "weighted_ce"])
@pytest.mark.parametrize(("kl_weight", "ce_weight"), list(itertools.product(["target", "student"], ["one", "peer"])))
@pytest.mark.parametrize("detach", [True, False])
def test_hypergradient_equals_finite_differences(family, objective, kl_weight, ce_weight, detach):
    peers = make_peers(family, shapes=((1, 8), (2, 8), (1, 16)), dtype=torch.float64)
    options = MutualOptions(0.4, kl_weight, ce_weight, detach, temperature=1.5)
    inner = inner_batch(peers, make_batch(family, seed=1), "scored")
    outer = outer_batch(peers, make_batch(family, seed=2))
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    gradient, _ = hypergradient(
        [parameters_of(peer) for peer in peers], weights, inner, outer, options, inner_lr=INNER_LR, objective=objective
    )
    direct, _ = hypergradient(
        [parameters_of(peer) for peer in peers],
        weights,
        inner,
        outer,
        options,
        inner_lr=INNER_LR,
        objective=objective,
        method="direct",
    )
    step = 1e-5
    for m in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[m] = step
        high = outer_value(peers, weights + shift, weights, inner, outer, options, objective)
        low = outer_value(peers, weights - shift, weights, inner, outer, options, objective)
        assert ((high - low) / (2 * step)).item() == pytest.approx(float(gradient[m]), abs=1e-6)
    # The correction is there: leaving it out (what the released code does) is seen by this test.
    assert float((gradient - direct).abs().max()) > 1e-4


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
        fresh, _ = hypergradient(parameters, weights, inner, outer, options, inner_lr=0.1)
        reused, _ = hypergradient(parameters, weights, inner, outer, options, inner_lr=0.1, gradients=grads)
    torch.testing.assert_close(fresh, reused, rtol=1e-9, atol=1e-12)


def test_hypergradient_leaves_the_models_alone():
    peers = make_peers("roberta")
    before = [p.clone() for peer in peers for p in peer.parameters()]
    inner = inner_batch(peers, make_batch("roberta", seed=1), "scored")
    outer = outer_batch(peers, make_batch("roberta", seed=2))
    hypergradient([parameters_of(p) for p in peers], torch.ones(2) / 2, inner, outer, MutualOptions(), inner_lr=0.1)
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
    with pytest.raises(ValueError, match="exceeds 1"):
        mirror_step(torch.ones(3) / 3, torch.zeros(3), 0.1, min_weight=0.5)


def test_entropy():
    assert entropy(torch.full((4,), 0.25)) == pytest.approx(1.3862944)
    assert entropy(torch.tensor([1.0, 0.0])) == 0.0
