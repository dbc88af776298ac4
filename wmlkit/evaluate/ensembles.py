"""What a run's peers are worth together under three kinds of weights: the run's own, equal ones, and fitted ones.

The weights of `wml` are learned on held-out text, those of the other arms are equal. So their ensembles differ in how
the peers are weighed, beside what the peers have learned. To compare the latter, each arm's weights are fitted on that
text after training:

    w* = argmin over the simplex of CE(softmax(sum_i w_i z_i)),

the outer problem of peers that have stopped learning. It is convex: a log-sum-exp of linear functions of w, less one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from .. import bilevel, paths
from ..config import config_of_run
from ..data.prepared import open_prepared
from ..data.texts import open_measured
from ..device import setup
from ..errors import UserError
from ..forward import AtPositions
from ..measure import logits_on, losses_on
from ..run_files import known_result, run_document, run_facts
from .pairs import load_peers
from .run_text import prepared_of

NAMES = ("ensemble", "uniform_ensemble", "fitted_ensemble")
UNFITTED = 0.01  # nats that a fit may leave, by its own bound; 0.0003 and less were seen of peers that learned
FLOATS = 2**27  # of logits that weights are fitted on: 512 MiB, more than the nursery's held-out text takes


def fitted_weights(logits: Tensor, targets: Tensor) -> np.ndarray:
    """(P,) weights on the simplex whose ensemble of `logits` (P, N, V) has the lowest cross-entropy of `targets` (N,).

    Raises UserError where the loss may be more than `UNFITTED` above the lowest one. As it is convex, it is so by no
    more than the duality gap slope . w - min(slope): its tangent at w falls no further anywhere on the simplex.

    >>> right, wrong = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    >>> fitted_weights(torch.stack([right, wrong]), torch.tensor([0])).round(6).tolist()
    [1.0, 0.0]
    """
    count = len(logits)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.tensor(weights, dtype=logits.dtype, device=logits.device, requires_grad=True)
        value = bilevel.outer_loss(list(logits), targets, w, "logit_ensemble")
        (slope,) = torch.autograd.grad(value, w)
        return value.item(), slope.cpu().double().numpy()

    on_simplex = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(count)}
    equal, precise = np.full(count, 1 / count), {"ftol": 1e-8}
    found = minimize(loss, equal, jac=True, bounds=[(0, 1)] * count, constraints=on_simplex, options=precise)
    weights = found.x.clip(min=0) / found.x.clip(min=0).sum()
    _, slope = loss(weights)
    gap = slope @ weights - slope.min()
    if not gap <= UNFITTED:  # nor of a slope that is no number
        raise UserError(
            f"weights of the ensemble that may be {gap:.2g} nats above the lowest held-out loss were found "
            f"({found.message}); expected {UNFITTED} at most; a peer has probably diverged: look at its training loss"
        )
    return np.asarray(weights)


def evaluate_run_ensembles(run_folder: Path, *, force: bool = False) -> dict[str, Any]:
    """Losses of a finished run's ensembles on dev and held-out text, on the rows and masks that training ends with,
    and their weights; written into the run folder.

    Returns {"settings", "members": [{"member", "weights", "dev_ce", "held_out_ce"}]}, in nats a scored token. A run
    that has it is not measured again unless `force` is set. Raises UserError for a run of one peer.
    """
    known = None if force else known_ensembles(run_folder)
    if known is not None:
        return known
    if not has_ensembles(run_folder):
        raise UserError(
            f"{run_folder.name} has one peer; expected several, which make an ensemble; choose another suite"
        )
    document = run_document(run_folder, ("config",))
    config = config_of_run(document["config"], run_folder / "config.json")
    device = setup(config.train.precision, config.train.threads)
    models, tokenizer = load_peers(run_folder)
    peers = [AtPositions(model).to(device.device) for model in models]
    prepared = open_prepared(prepared_of(run_folder))
    held_out, dev = (open_measured(split, config, prepared, tokenizer) for split in ("held_out", "dev"))
    own, _ = run_facts(run_folder)
    with device.autocast():
        logits, targets = logits_on(held_out, peers, config, device.device, FLOATS)
    weights = np.stack([own, np.full(len(own), 1 / len(own)), fitted_weights(logits, targets)])
    on_dev, on_held_out = (
        losses_on(text, peers, torch.tensor(weights), config, device, config.train.final_eval_rows)[len(peers) :]
        for text in (dev, held_out)
    )
    members = [
        {"member": name, "weights": of.tolist(), "dev_ce": dev_ce, "held_out_ce": held_out_ce}
        for name, of, dev_ce, held_out_ce in zip(NAMES, weights, on_dev, on_held_out, strict=True)
    ]
    found = {"settings": _settings(run_folder), "members": members}
    paths.write_json(paths.ensembles(run_folder), found)
    return found


def known_ensembles(run_folder: Path) -> dict[str, Any] | None:
    """The document of `evaluate_run_ensembles` where the run has it, of these peers; else None."""
    known = known_result(paths.ensembles(run_folder), ("settings", "members"))
    return known if known and known["settings"] == _settings(run_folder) else None


def has_ensembles(run_folder: Path) -> bool:
    """Whether a finished run has several peers."""
    return len(run_facts(run_folder)[0]) > 1


def _settings(run_folder: Path) -> dict[str, Any]:
    """What the losses depend on beside the peers and their text, both of which are the run's."""
    return {"ensemble_weights": run_facts(run_folder)[0], "floats": FLOATS}
