"""Forward-mode derivatives where a device's kernels have none: as on Apple's MPS, which a stand-in plays here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from small import make_batch, make_peers
from torch.nn import functional as F

from wmlkit import bilevel, forward_mode
from wmlkit.forward import inner_batch, parameters_of
from wmlkit.forward_mode import WrittenOut, attention, linear
from wmlkit.losses import MutualOptions


@contextmanager
def linear_of_its_own() -> Iterator[None]:
    """`linear` as one kernel, as MPS has it: autograd then asks for its derivative, and there is no forward one."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("linear", lambda x, w, b=None: torch.ops.aten.add(x @ w.mT, b) if b is not None else x @ w.mT, "CPU")
    try:
        yield
    finally:
        library._destroy()


def slopes(family: str) -> torch.Tensor:
    """<v, grad A_m> for two peers along fixed directions."""
    peers, batch = make_peers(family, dtype=torch.float64), make_batch(family, 0)
    parameters = [parameters_of(peer) for peer in peers]
    generator = torch.Generator().manual_seed(1)
    along = [
        {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in own.items()} for own in parameters
    ]
    inner = inner_batch(peers, batch, "scored")
    return bilevel.directional_weight_losses(parameters, along, inner, MutualOptions(alpha=0.5))


@pytest.mark.parametrize("family", ["roberta", "modernbert", "gpt2", "llama"])
def test_an_outer_step_is_the_same_where_linear_and_attention_have_no_derivative(family, monkeypatch):
    expected = slopes(family)
    assert expected.abs().min() > 1e-6
    monkeypatch.setattr(bilevel, "differentiable", lambda device: WrittenOut())
    with linear_of_its_own():
        found = slopes(family)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_stand_in_has_no_forward_derivative():
    """Else the test above would say nothing."""
    with linear_of_its_own(), pytest.raises(NotImplementedError, match="forward AD with linear"):
        slopes("roberta")
    slopes("roberta")  # and it is gone


def test_only_mps_is_written_out():
    assert isinstance(forward_mode.differentiable(torch.device("mps")), WrittenOut)
    for kind in ("cpu", "cuda"):
        assert not isinstance(forward_mode.differentiable(torch.device(kind)), WrittenOut)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": (torch.arange(7) < torch.arange(1, 6)[:, None])},
        {"attn_mask": torch.linspace(-2, 1, 35, dtype=torch.float64).view(5, 7)},
    ],
    ids=["plain", "causal", "scale", "boolean", "added"],
)
def test_attention_is_torch_s(options):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    length = 5 if options.get("is_causal") else 7
    key, value = torch.randn(2, 2, 3, length, 4, generator=generator, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(attention(query, key, value, **options), expected)
    with WrittenOut():
        torch.testing.assert_close(F.scaled_dot_product_attention(query, key, value, **options), expected)


def test_heads_that_share_keys_and_a_dropout_of_everything():
    query, (key, value) = torch.randn(1, 4, 5, 8), torch.randn(2, 1, 2, 5, 8)
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(attention(query, key, value, enable_gqa=True), expected)
    assert not attention(query, query, query, dropout_p=1.0).any()


def test_linear_is_torch_s():
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
