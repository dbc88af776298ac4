"""Which tokens of a batch are masked, and what they show. Letters: B rows, T tokens a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Masking:
    """How scored positions are drawn and what they show (`mask_tokens`)."""

    random: float = 0.0  # share that shows a random token
    keep: float = 0.0  # share that shows the true one; the rest shows the mask
    span: int = 1  # they come in runs of 1 to `span` neighbours
    mntp_share: float = 0.0  # of a causal model's rows, those that are masked; in a masked model's all are


PLAIN = Masking()  # single tokens, and all of them show the mask


def mask_tokens(
    ids: NDArray[np.int64],
    candidates: NDArray[np.bool_],
    ordinary_ids: NDArray[np.int64],
    mask_id: int,
    ratio: float,
    masking: Masking,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(inputs, scored): round(ratio x candidates) positions scored, at least one of any candidates, drawn without
    replacement.

    ids, candidates: (B, T). Special tokens are no candidates and are never drawn as random replacements.
    Of the scored positions a share `masking.random` shows a random token, `masking.keep` the true one, the rest
    `mask_id`.
    """
    places = np.flatnonzero(candidates)
    count = max(1, round(ratio * len(places)))
    chosen = rng.permutation(places)[:count]
    if masking.span > 1:
        chosen = spans(chosen, candidates, masking.span, rng)[:count]
    inputs, scored = ids.copy(), np.zeros(ids.shape, dtype=bool)
    scored.flat[chosen] = True
    split_random = round(masking.random * len(chosen))
    split_keep = split_random + round(masking.keep * len(chosen))
    inputs.flat[chosen[split_keep:]] = mask_id
    inputs.flat[chosen[:split_random]] = rng.choice(ordinary_ids, split_random)
    return inputs, scored


def spans(
    starts: NDArray[np.int64], candidates: NDArray[np.bool_], longest: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Flat places of the spans that begin at `starts`, span by span, each place once: 1 to `longest` neighbours, each
    length as likely as another, cut off before what is no candidate (B, T) and at the end of its row."""
    offsets = np.arange(longest)
    row_end = (starts // candidates.shape[1] + 1) * candidates.shape[1]
    reached = np.minimum(starts[:, None] + offsets, row_end[:, None] - 1)  # the last place of a row again: once below
    within = (offsets < rng.integers(1, longest + 1, (len(starts), 1))) & candidates.flat[reached]
    places = reached[np.logical_and.accumulate(within, axis=1)]
    _, first = np.unique(places, return_index=True)
    return places[np.sort(first)]
