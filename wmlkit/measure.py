"""Losses of a run's peers and of their ensemble on dev and held-out text, the same rows and masks every time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import bilevel, faults, losses
from .config import Config
from .data.batches import joined
from .data.texts import Measured, Texts
from .device import Device
from .forward import AtPositions, evaluation_mode
from .state import State

AT_ONCE = {"cuda": 8}  # batches that a card is given in one, by arithmetic: one is mostly launches there


def measure(
    state: State,
    text: Measured,
    config: Config,
    device: Device,
    rows: int | None,
    peers: Sequence[AtPositions] | None = None,
) -> tuple[list[float], float]:
    """(CE of each peer, CE of the weighted logit ensemble) over the first `rows` rows of `text`, see `losses_on`.

    peers: what to measure; None: what the run reports (`State.reported`). Raises UserError for a loss that is not
    finite.
    """
    peers = state.reported if peers is None else peers
    *each, ensemble_ce = losses_on(text, peers, state.ensemble_weights[None], config, device, rows)
    for number, value in enumerate(each):
        if not math.isfinite(value):
            raise faults.not_finite(state.step, "loss on measured text", number)
    return each, ensemble_ce


@torch.inference_mode()
def losses_on(
    text: Measured,
    peers: Sequence[AtPositions],
    ensembles: Tensor,
    config: Config,
    device: Device,
    rows: int | None,
) -> list[float]:
    """(P + E,) cross-entropies of P peers and of their logit ensembles under each row of weights `ensembles` (E, P),
    over the first `rows` rows of `text`, None: all, in nats per scored token.

    Peers come back in the mode, of training or not, that they were in.
    """
    found: list[Tensor] = []  # kept on the device: to ask for them one by one would make it wait
    counts: list[int] = []
    weights = ensembles.float().to(device.device)
    numbers = range(device.index, text.batches(rows), device.processes)  # processes take turns
    at_once = AT_ONCE.get(device.device.type, 1)
    with evaluation_mode([peer.model for peer in peers]):
        for some in (numbers[first : first + at_once] for first in range(0, len(numbers), at_once)):
            batch = joined([text.source(number, config.train.mask_ratio) for number in some]).to(device.device)
            targets = batch.targets[batch.scored]
            with device.autocast():
                logits = [peer(batch, batch.scored).float() for peer in peers]
            together = [bilevel.outer_loss(logits, targets, row, "logit_ensemble") for row in weights]
            found.append(torch.cat([losses.cross_entropies(logits, targets), torch.stack(together)]))
            counts.append(len(targets))
    # In double precision where there is one, so the sum hardly feels the order.
    total, count = torch.zeros(len(peers) + len(ensembles), dtype=torch.float64), sum(counts)
    for own, losses_then in zip(counts, torch.stack(found).cpu().double() if found else (), strict=True):
        total += own * losses_then
    if device.processes > 1:
        total, counted = device.total([total.to(device.device), torch.tensor(float(count), device=device.device)])
        count = int(counted)
    each: list[float] = (total / count).tolist()
    return each


@torch.no_grad()  # not inference_mode: weights are fitted on these
def logits_on(
    text: Measured, peers: Sequence[AtPositions], config: Config, device: torch.device, cells: int
) -> tuple[Tensor, Tensor]:
    """Logits (P, N, V), float32, and targets (N,) of the scored tokens of `text`, in the rows and with the masks that
    training ends with measuring: of the first ones, as many as `cells` logits hold, and one at least."""
    logits: list[Tensor] = []
    targets: list[Tensor] = []
    room = max(cells // (len(peers) * peers[0].model.config.vocab_size), 1)
    with evaluation_mode([peer.model for peer in peers]):
        for number in range(text.batches(config.train.final_eval_rows)):
            batch = text.source(number, config.train.mask_ratio).to(device)
            index = batch.scored[:room]
            logits.append(torch.stack([peer(batch, index).float() for peer in peers]))
            targets.append(batch.targets[index])
            room -= len(index)
            if not room:
                break
    return torch.cat(logits, dim=1), torch.cat(targets)


def evaluation_row(state: State, texts: Texts, config: Config, device: Device, rows: int | None) -> dict[str, Any]:
    """Losses on dev text (for reports) and on held-out text (for choosing the best peer), on `rows` rows of each.

    With averages these are theirs, and the peers' own on dev text are there for comparison.
    """
    dev, dev_ensemble = measure(state, texts.dev, config, device, rows)
    held_out, held_out_ensemble = measure(state, texts.held_out, config, device, rows)
    own = {}
    if state.averages:
        own["dev_ce_unaveraged"] = measure(state, texts.dev, config, device, rows, state.peers)[0]
    return {
        "dev_ce": dev,
        "held_out_ce": held_out,
        "dev_ce_ensemble": dev_ensemble,
        "held_out_ce_ensemble": held_out_ensemble,
        **own,
    }
