"""L1: a case by hand, properties, and the fast form against the reference for every option."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from wmlkit import closed_form
from wmlkit.errors import UserError
from wmlkit.losses import MutualOptions, kl_matrix, mutual_loss, mutual_loss_reference

OPTIONS = [
    MutualOptions(0.3, *values)
    for values in itertools.product(
        ["target", "student"], ["one", "peer"], [True, False], ["token_mean", "batchmean"], [1.0, 2.5]
    )
]


def random_case(peers: int = 3, positions: int = 7, vocabulary: int = 11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = [
        torch.randn(positions, vocabulary, generator=generator, dtype=dtype).requires_grad_() for _ in range(peers)
    ]
    targets = torch.randint(0, vocabulary, (positions,), generator=generator)
    weights = torch.softmax(torch.randn(peers, generator=generator, dtype=dtype), 0)
    scored = torch.tensor([True, False, True, True, False, False, True])[:positions]
    return logits, targets, weights, scored


def hand_case():
    """Two peers, three positions, two words. p_1 = (1/2, 1/2), p_2 = (3/4, 1/4) everywhere; the truth is word 0."""
    logits = [torch.zeros(3, 2, dtype=torch.float64), torch.tensor([[3.0, 1.0]] * 3, dtype=torch.float64).log()]
    return logits, torch.zeros(3, dtype=torch.long), torch.tensor([0.25, 0.75], dtype=torch.float64)


CE_1, CE_2 = math.log(2), -math.log(0.75)
KL_12 = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)  # KL(p_1 || p_2) = 0.1438
KL_21 = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # KL(p_2 || p_1) = 0.1308


@pytest.mark.parametrize("form", [mutual_loss_reference, mutual_loss])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (MutualOptions(0.5), 0.5 * (CE_1 + CE_2) + 0.5 * (0.25 * KL_12 + 0.75 * KL_21)),
        (MutualOptions(0.5, "student"), 0.5 * (CE_1 + CE_2) + 0.5 * (0.75 * KL_12 + 0.25 * KL_21)),
        (MutualOptions(0.5, ce_weight="peer"), 0.5 * (0.25 * CE_1 + 0.75 * CE_2) + 0.5 * (0.25 * KL_12 + 0.75 * KL_21)),
        # three positions in a batch of one sequence: three times the KL of a token
        (MutualOptions(0.5, kl_reduction="batchmean"), 0.5 * (CE_1 + CE_2) + 1.5 * (0.25 * KL_12 + 0.75 * KL_21)),
        (MutualOptions(1.0), 0.25 * KL_12 + 0.75 * KL_21),
        (MutualOptions(0.0), CE_1 + CE_2),
    ],
)
def test_hand_case(form, options, expected):
    loss = form(*hand_case(), options)
    assert float(loss.total) == pytest.approx(expected, abs=1e-12)


def test_temperature_by_hand():
    """At tau = 2 peer 2 has odds sqrt(3): the KL of the softened distributions, times 4."""
    p = math.sqrt(3) / (1 + math.sqrt(3))
    expected = 4 * (0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)))
    kl = kl_matrix(hand_case()[0], MutualOptions(temperature=2.0), 1)
    assert float(kl[0, 1]) == pytest.approx(expected, abs=1e-12)


def test_kl_equals_torch():
    logits, *_ = random_case()
    kl = kl_matrix(logits, MutualOptions(), 1)
    log_p = [z.log_softmax(-1) for z in logits]
    expected = torch.nn.functional.kl_div(log_p[2], log_p[0], reduction="batchmean", log_target=True)
    torch.testing.assert_close(kl[0, 2], expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("chunk", [1 << 17, 22])  # all at once, and two positions at a time
def test_fast_form_equals_reference(options, chunk, monkeypatch):
    monkeypatch.setattr(closed_form, "CHUNK", chunk)
    logits, targets, weights, scored = random_case()
    slow = mutual_loss_reference(logits, targets, weights, options, 2, scored)
    fast = mutual_loss(logits, targets, weights, options, 2, scored)
    for name in ("total", "ce", "kl"):
        torch.testing.assert_close(getattr(fast, name), getattr(slow, name).detach(), rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(fast.total, logits), torch.autograd.grad(slow.total, logits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("form", [mutual_loss_reference, mutual_loss])
def test_identical_peers_have_no_mutual_loss(form):
    logits, targets, _, _ = random_case(1)
    loss = form(logits * 3, targets, torch.ones(3) / 3, MutualOptions())
    torch.testing.assert_close(loss.kl, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", [mutual_loss_reference, mutual_loss])
def test_a_target_that_is_no_token_is_refused(form):
    """As an index it would be a token from the vocabulary's end."""
    logits, targets, weights, scored = random_case(vocabulary=200)
    targets[-1] = -100
    for own in (scored, None):
        with pytest.raises(UserError, match="targets hold -100, which is no token"):
            form(logits, targets, weights, OPTIONS[0], scored=own)


def test_permuting_the_peers_permutes_the_result():
    logits, targets, weights, scored = random_case()
    order = [2, 0, 1]
    loss = mutual_loss(logits, targets, weights, MutualOptions(), 1, scored)
    permuted = mutual_loss([logits[i] for i in order], targets, weights[order], MutualOptions(), 1, scored)
    torch.testing.assert_close(permuted.total, loss.total)
    for name in ("ce", "kl"):
        torch.testing.assert_close(getattr(permuted, name), getattr(loss, name)[order])


def test_alpha_zero_is_independent_training_to_the_bit():
    logits, targets, weights, _ = random_case(dtype=torch.float32)
    together = mutual_loss(logits, targets, weights, MutualOptions(0.0)).total
    grads = torch.autograd.grad(together, logits)
    for z, grad in zip(logits, grads, strict=True):
        (alone,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z, targets), z)
        assert torch.equal(grad, alone)


@pytest.mark.parametrize("form", [mutual_loss_reference, mutual_loss])
def test_gradient_flow_into_targets(form):
    """With alpha = 1 and all weight on peer 1 as a target, peer 1 learns from nobody unless targets are attached."""
    logits, targets, _, _ = random_case(2)
    weights = torch.tensor([1.0, 0.0])
    detached = torch.autograd.grad(form(logits, targets, weights, MutualOptions(1.0)).total, logits)
    attached = torch.autograd.grad(
        form(logits, targets, weights, MutualOptions(1.0, detach_targets=False)).total, logits
    )
    torch.testing.assert_close(detached[0], torch.zeros_like(detached[0]), atol=1e-15, rtol=0)
    assert float(attached[0].abs().max()) > 1e-3 and float(detached[1].abs().max()) > 1e-3


def test_half_precision_logits_are_scored_in_float32():
    logits, targets, weights, _ = random_case()
    half = [z.detach().bfloat16().requires_grad_() for z in logits]
    loss = mutual_loss(half, targets, weights, MutualOptions())
    assert loss.ce.dtype == torch.float32
    assert torch.autograd.grad(loss.total, half)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("form", [mutual_loss_reference, mutual_loss])
def test_a_batch_without_scored_positions_is_refused(form):
    logits, targets, weights, _ = random_case()
    with pytest.raises(UserError, match="no position of the batch is scored"):
        form(logits, targets, weights, MutualOptions(), 1, torch.zeros(7, dtype=torch.bool))
