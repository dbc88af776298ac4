"""Muon in batches is torch's Muon, and what the outer problem differentiates is what it does."""

from __future__ import annotations

import pytest
import torch

from wmlkit.optim import Muon
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


def test_a_checkpoint_of_torchs_muon_goes_on():
    parameters, optimizer = run(torch.optim.Muon)
    again = Muon(parameters)
    again.load_state_dict(optimizer.state_dict())
    again.step()
    assert again.param_groups[0]["lr"] == 0.05


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
