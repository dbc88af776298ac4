"""The loss from hidden states on, in chunks: equal to the reference for every option, down to the decoders' weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from small import make_batch, make_peers
from torch.func import grad, jvp

from wmlkit import closed_form, losses
from wmlkit.closed_form import Head
from wmlkit.errors import UserError
from wmlkit.forward import kl_positions
from wmlkit.losses import MutualOptions, mutual_loss, mutual_loss_of_heads, mutual_loss_reference, weight_loss_slopes

OPTIONS = [
    MutualOptions(alpha, *values, frozen=frozen)
    for frozen in (0, 1)
    for alpha in (0.3, 1.0)
    for values in itertools.product(
        ["target", "student"], ["one", "peer"], [True, False], ["token_mean", "batchmean"], [1.0, 2.5]
    )
]
ALONE = [MutualOptions(0.0), MutualOptions(0.0, ce_weight="peer")]  # nobody learns from anybody
WIDTHS, POSITIONS, VOCABULARY = (3, 5, 4), 7, 11
SCORED = torch.tensor([True, False, True, True, False, False, True])


def random_heads(dtype=torch.float64, frozen: int = 0) -> list[Head]:
    """Three heads of different widths, the second without bias; gradients to all but a frozen one."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int, learns: bool) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(learns)

    heads = []
    for i, width in enumerate(WIDTHS):
        learns = i < len(WIDTHS) - frozen
        bias = None if i == 1 else leaf(VOCABULARY, learns=learns)
        heads.append(Head(leaf(POSITIONS, width, learns=learns), leaf(VOCABULARY, width, learns=learns), bias))
    return heads


def leaves(heads: list[Head]) -> list[torch.Tensor]:
    return [tensor for head in heads for tensor in head if tensor is not None and tensor.requires_grad]


def chunk_heads(monkeypatch, limit: int) -> None:
    """Logits of a peer that exist at one time."""
    monkeypatch.setattr(losses, "AT_ONCE", limit)
    monkeypatch.setattr(closed_form, "HEAD_CHUNK", limit)
    monkeypatch.setattr(closed_form, "HEAD_ROWS", 1)


TARGETS = torch.randint(0, VOCABULARY, (POSITIONS,), generator=torch.Generator().manual_seed(1))
PEER_WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("scored", [None, SCORED], ids=["all scored", "some scored"])
@pytest.mark.parametrize("options", [options for options in OPTIONS if options.alpha < 1] + ALONE, ids=str)
@pytest.mark.parametrize("limits", [(1 << 17, 1 << 22), (33, 55), (11, 22)], ids=str)
def test_fused_form_equals_the_reference(options, scored, limits, monkeypatch):
    """In one chunk; in chunks of five positions that are handled three at a time; of two, one at a time."""
    monkeypatch.setattr(closed_form, "CHUNK", limits[0])
    chunk_heads(monkeypatch, limits[1])
    heads = random_heads(frozen=options.frozen)
    slow = mutual_loss_reference([head.logits() for head in heads], TARGETS, PEER_WEIGHTS, options, 2, scored)
    expected = torch.autograd.grad(slow.total, leaves(heads))
    fast = mutual_loss_of_heads(iter(heads), TARGETS, PEER_WEIGHTS, options, 2, scored)
    for name in ("total", "ce", "kl"):
        torch.testing.assert_close(getattr(fast, name), getattr(slow, name).detach(), rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad(3 * fast.total, leaves(heads))  # a factor, as of gradient accumulation
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, 3 * b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kl_weight", ["target", "student"])
def test_a_high_temperature_leaves_the_kl_its_digits(kl_weight):
    """Every p_i is near 1/V then, and the KL is some ten thousandths of the sums it is the difference of."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(40, 8192, generator=generator, dtype=torch.float64) for _ in WIDTHS]
    targets = torch.randint(0, 8192, (40,), generator=generator)
    options = MutualOptions(temperature=20.0, kl_weight=kl_weight)
    exact = mutual_loss_reference(logits, targets, PEER_WEIGHTS, options, 4)
    found = mutual_loss([z.float() for z in logits], targets, PEER_WEIGHTS.float(), options, 4)
    torch.testing.assert_close(found.kl.double(), exact.kl, rtol=1e-4, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_chunks_do_not_depend_on_the_other_peers(alpha, monkeypatch):
    """With alpha = 0 a peer of three has the gradients that it has alone, to the bit."""
    chunk_heads(monkeypatch, 22)
    heads = random_heads(torch.float32)
    together = mutual_loss_of_heads(heads, TARGETS, PEER_WEIGHTS, MutualOptions(alpha))
    alone = mutual_loss_of_heads(heads[:1], TARGETS, torch.ones(1), MutualOptions(0.0))
    assert torch.equal(together.ce[:1], alone.ce)
    first = [torch.autograd.grad(loss.total, leaves(heads[:1])) for loss in (together, alone)]
    same = [torch.equal(a, b) for a, b in zip(*first, strict=True)]
    assert all(same) if alpha == 0 else not any(same)


@pytest.mark.parametrize("family", ["roberta", "modernbert", "gpt2", "llama"])
@pytest.mark.parametrize("positions", ["scored", "all"])
def test_gradients_of_whole_models_with_tied_weights(family, positions, monkeypatch):
    """The embeddings get their gradient from both ends: as the decoder and as the input."""
    peers = make_peers(family, ((1, 8), (2, 16)), torch.float64)
    batch = make_batch(family, seed=1)
    index, scored = kl_positions(batch, positions)
    options, weights = MutualOptions(0.4, detach_targets=False), torch.tensor([0.3, 0.7], dtype=torch.float64)
    arguments = (batch.targets[index], weights, options, 4, scored)
    everything = [p for peer in peers for p in peer.parameters()]
    assert any(p is peers[0].model.get_output_embeddings().weight for p in everything)
    expected = torch.autograd.grad(
        mutual_loss_reference([peer(batch, index) for peer in peers], *arguments).total, everything, allow_unused=True
    )
    for limit in (1 << 22, 100):
        chunk_heads(monkeypatch, limit)
        loss = mutual_loss_of_heads((peer.head(batch, index) for peer in peers), *arguments)
        found = torch.autograd.grad(loss.total, everything, allow_unused=True)
        for a, b in zip(found, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS + [MutualOptions(0.0, ce_weight="peer")], ids=str)
@pytest.mark.parametrize("chunk", [1 << 17, 22])
def test_slopes_of_the_weight_losses_equal_forward_mode(options, chunk, monkeypatch):
    monkeypatch.setattr(closed_form, "CHUNK", chunk)
    monkeypatch.setattr(losses, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(2)
    logits = [2 * torch.randn(POSITIONS, VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(3)]
    students = len(logits) - options.frozen
    tangents = [torch.randn(z.shape, generator=generator, dtype=torch.float64) for z in logits[:students]]

    def weight_losses(*z: torch.Tensor) -> torch.Tensor:
        """A_m = dL1/dw_m, as the equation is written."""
        together = [*z, *logits[students:]]
        return grad(lambda w: mutual_loss_reference(together, TARGETS, w, options, 2, SCORED).total)(PEER_WEIGHTS)

    expected = jvp(weight_losses, tuple(logits[:students]), tuple(tangents))[1]
    found = weight_loss_slopes(logits, tangents, TARGETS, options, 2, SCORED)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    if options.alpha == 1.0 and options.kl_weight == "target":
        assert expected.abs().min() > 1e-3


def test_half_precision_heads_are_scored_in_float32(monkeypatch):
    """bf16 hidden states: logits to bf16, softmax and the sums of weight gradients in float32."""
    chunk_heads(monkeypatch, 22)
    heads, exact = random_heads(torch.bfloat16), random_heads()
    loss = mutual_loss_of_heads(heads, TARGETS, PEER_WEIGHTS, MutualOptions())
    expected = mutual_loss_reference([h.logits() for h in exact], TARGETS, PEER_WEIGHTS, MutualOptions())
    assert loss.ce.dtype == loss.total.dtype == torch.float32
    torch.testing.assert_close(loss.ce.double(), expected.ce, rtol=2e-2, atol=2e-2)
    found = torch.autograd.grad(loss.total, leaves(heads))
    wanted = torch.autograd.grad(expected.total, leaves(exact))
    assert all(gradient.dtype == torch.bfloat16 for gradient in found)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=5e-2, atol=2e-2)


def test_autocast_keeps_master_weights(monkeypatch):
    """Under autocast, float32 hidden states and weights get float32 gradients of bf16 products, in chunks or not."""
    gradients = []
    for limit in (1 << 22, 22):
        chunk_heads(monkeypatch, limit)
        heads = random_heads(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            loss = mutual_loss_of_heads(heads, TARGETS, PEER_WEIGHTS, MutualOptions())
        assert loss.total.dtype == torch.float32
        gradients.append(torch.autograd.grad(loss.total, leaves(heads)))
    exact = random_heads(torch.float32)
    plain = mutual_loss_of_heads(exact, TARGETS, PEER_WEIGHTS, MutualOptions())
    for a, b, c in zip(*gradients, torch.autograd.grad(plain.total, leaves(exact)), strict=True):
        assert a.dtype == b.dtype == torch.float32 and not torch.equal(a, c)
        torch.testing.assert_close(a, b, rtol=3e-2, atol=1e-2)
        torch.testing.assert_close(a, c, rtol=5e-2, atol=2e-2)


def test_logits_of_a_caller_are_left_alone():
    logits = [head.logits().detach().requires_grad_() for head in random_heads()]
    before = [z.detach().clone() for z in logits]
    mutual_loss(logits, TARGETS, PEER_WEIGHTS, MutualOptions()).total.backward()
    assert all(torch.equal(a, b) for a, b in zip(logits, before, strict=True))


def test_large_logits_with_a_common_offset():
    """The normaliser is found from the largest entry: neither overflow nor loss of precision."""
    logits = [head.logits().detach() * 50 for head in random_heads()]
    shifted = [z + 1e4 for z in logits]
    near, far = (mutual_loss(z, TARGETS, PEER_WEIGHTS, MutualOptions()) for z in (logits, shifted))
    torch.testing.assert_close(far.total, near.total, rtol=1e-9, atol=1e-9)
    assert torch.isfinite(mutual_loss([z.float() for z in shifted], TARGETS, PEER_WEIGHTS, MutualOptions()).total)


@pytest.mark.parametrize("limit", [1 << 22, 22])
def test_a_batch_without_scored_positions_is_refused(limit, monkeypatch):
    chunk_heads(monkeypatch, limit)
    nothing = torch.zeros(POSITIONS, dtype=torch.bool)
    with pytest.raises(UserError, match="no position of the batch is scored"):
        mutual_loss_of_heads(random_heads(), TARGETS, PEER_WEIGHTS, MutualOptions(), 1, nothing)
