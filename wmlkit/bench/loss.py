"""What the loss of a training step costs from hidden states on: by form, and by peers, vocabulary and positions.

Memory is counted above hidden states, decoder weights and their gradients, which are there before; where one size is
varied, the gradients are counted too, because they grow with it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import losses
from ..closed_form import Head
from ..device import setup
from ..losses import MutualOptions
from .measure import Run, backward, check_repeats, interleaved, peak_above, peaks, rows
from .step import MASKED, agreement, find_setting, measured_peaks, ratios, released_loss

WIDTH, VOCABULARY, COUNT = 256, 8192, 128  # of the peers, words and positions that one size is varied of
PEERS, VOCABULARIES, POSITIONS = (1, 2, 4, 8), (8192, 16384, 32768, 65536), (128, 256, 512, 1024)


class Case:
    """Hidden states of B rows of T random tokens under decoders of the given widths, and what is scored of them."""

    def __init__(
        self, widths: tuple[int, ...], vocab_size: int, batch_size: int, block_size: int, share: float
    ) -> None:
        device = setup("fp32", torch.get_num_threads()).device
        count = batch_size * block_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.hidden = [torch.randn(count, width, device=device).requires_grad_() for width in widths]
            self.weight = [(0.02 * torch.randn(vocab_size, w, device=device)).requires_grad_() for w in widths]
            self.bias = [torch.zeros(vocab_size, device=device, requires_grad=True) for _ in widths]
            self.scored = torch.randperm(count)[: round(share * count)].sort().values.to(device)
            self.targets = torch.randint(0, vocab_size, (count,)).to(device)
        self.is_scored = torch.zeros(count, dtype=torch.bool, device=device)
        self.is_scored[self.scored] = True
        self.rows, self.device = batch_size, device
        self.peer_weights = torch.full((len(widths),), 1 / len(widths), device=device)

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.hidden, *self.weight, *self.bias]

    def clear(self, _: str = "") -> None:
        """Let go of all gradients."""
        for leaf in self.leaves:
            leaf.grad = None

    def heads(self, index: Tensor | None) -> list[Head]:
        """The peers' heads at flat positions `index`, or at all."""
        hidden = [h if index is None else h[index] for h in self.hidden]
        return [Head(*parts) for parts in zip(hidden, self.weight, self.bias, strict=True)]

    def released(self) -> float:
        """The released form, on the logits of all positions."""
        logits = [head.logits().unflatten(0, (self.rows, -1)) for head in self.heads(None)]
        return backward(released_loss(logits, self.targets, self.scored, self.peer_weights))

    def reference(self, positions: str, options: MutualOptions) -> float:
        """`losses.mutual_loss_reference` on the logits of the positions of the KL."""
        index, targets, scored = self._at(positions)
        logits = [head.logits() for head in self.heads(index)]
        arguments = (targets, self.peer_weights, options, self.rows, scored)
        return backward(losses.mutual_loss_reference(logits, *arguments).total)

    def fast(self, positions: str, options: MutualOptions) -> float:
        """`losses.mutual_loss_of_heads`, which the training step uses."""
        index, targets, scored = self._at(positions)
        arguments = (targets, self.peer_weights, options, self.rows, scored)
        return backward(losses.mutual_loss_of_heads(self.heads(index), *arguments).total)

    def _at(self, positions: str) -> tuple[Tensor | None, Tensor, Tensor | None]:
        if positions == "all":
            return None, self.targets, self.is_scored
        return self.scored, self.targets[self.scored], None


def _case(name: str) -> tuple[Case, dict[str, Run]]:
    """The case of a setting and its forms."""
    setting = find_setting(name)
    widths = tuple(shape.hidden_size for shape in setting.shapes)
    case = Case(widths, setting.vocab_size, setting.batch_size, setting.block_size, MASKED)
    positions, options = setting.positions, setting.options
    return case, {
        "released": case.released,
        "reference": lambda: case.reference(positions, options),
        "fast": lambda: case.fast(positions, options),
        "ce-only": lambda: case.fast("scored", replace(options, alpha=0.0)),
    }


def _scaled() -> dict[str, Case]:
    """Cases that differ in one size: every position is one of the KL."""
    peers = {f"fast, {n} peers": Case((WIDTH,) * n, VOCABULARY, 1, 2 * COUNT, 1.0) for n in PEERS}
    words = {f"fast, vocabulary {size}": Case((WIDTH,) * 2, size, 1, COUNT, 1.0) for size in VOCABULARIES}
    places = {f"fast, {count} positions": Case((WIDTH,) * 2, VOCABULARY, 1, count, 1.0) for count in POSITIONS}
    return peers | words | places


def _fast(case: Case) -> Run:
    return lambda: case.fast("scored", MutualOptions())


def bench_loss(name: str, repeats: int) -> dict[str, Any]:
    """The loss and its backward pass in each form, then the fast form by peers, vocabulary and positions.

    `time_8_peers_to_2` and `memory_8_peers_to_2` are 4 where the loss is linear in the number of peers.
    Raises RuntimeError where forms of the same loss disagree.
    """
    check_repeats(repeats)
    case, variants = _case(name)
    agreement(variants, "reference", ("fast",))
    if find_setting(name).positions == "all":
        agreement(variants, "released", ("reference",))
    times = interleaved(variants, repeats, case.device, case.clear)
    scaled = _scaled()

    def clear(_: str) -> None:
        for one in scaled.values():
            one.clear()

    more = interleaved({label: _fast(one) for label, one in scaled.items()}, repeats, case.device, clear)
    memory = peaks(loss_peaks, name)
    times |= more
    first, last = f"fast, {PEERS[1]} peers", f"fast, {PEERS[-1]} peers"
    return {
        "setting": name,
        "vocab_size": len(case.weight[0]),
        "positions": len(case.targets),
        "scored": len(case.scored),
        "widths": [h.shape[1] for h in case.hidden],
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "variants": rows(times, memory),
        "ratios": ratios(times, memory)
        | {
            "time_8_peers_to_2": times[last]["median_ms"] / times[first]["median_ms"],
            "memory_8_peers_to_2": memory[last] / memory[first],
        },
    }


def loss_peaks(name: str) -> dict[str, float]:
    """Peak memory of each variant in this process."""
    case, variants = _case(name)
    found = measured_peaks(variants, case.leaves, case.device)
    case.clear()
    for label, one in _scaled().items():
        run = _fast(one)
        run()
        one.clear()
        found[label] = peak_above(run, one.device)
        one.clear()
    return found
