"""The engine of sentence scoring: log-probabilities of the scored tokens, for several models in one pass.

Four things make it fast without changing a score: the language-modelling head and, where it can be, most of the
last layer are applied at scored positions only; equal masked copies are computed once; and only texts of one length
share a batch, so nothing is ever padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from ..errors import UserError
from ..forward import evaluation_mode
from ..settings import Objective
from .last_layer import Reader, logits_at
from .spans import Encoded

# Logits held at once. On a CPU they should stay in its cache and below the size from which every allocation is
# new memory (32 MiB in glibc); a card wants fewer and larger calls.
LOGITS = {"cpu": 4_000_000, "mps": 16_000_000, "cuda": 64_000_000}
# Tokens a forward pass where nobody says how many; but for CPUs by arithmetic, as none has been measured. On MPS
# attention is written out: 32,768 tokens in rows of 512, with 8 heads, are 0.5 GB of it.
TOKENS = {"cpu": 8_192, "mps": 32_768, "cuda": 131_072}
MOST_ROWS = 65_535  # of a call: CUDA's attention takes no more (pytorch issue 142228)
COPY_CELLS = 4_000_000  # tokens in the masked copies that are held at once


def score_encoded(
    peers: Sequence[PreTrainedModel],
    mask_id: int | None,
    encoded: Sequence[Encoded],
    *,
    objective: Objective,
    weights: np.ndarray,
    within_word: bool = False,
    temperature: float = 1.0,
    token_budget: int | None = None,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """Summed log-probabilities of the scored tokens, (members, texts) float64.

    Rows are the peers and then one ensemble a row of `weights` (E, P).
    """
    # Equal rows of weights are one ensemble, computed once.
    weights, ensemble_of = np.unique(weights, axis=0, return_inverse=True)
    if objective == "mlm" and mask_id is None:
        raise UserError("the tokenizer has no mask token; a masked model needs one: load the model's own tokenizer")
    for model in peers:
        model.to(device or peers[0].device)  # type: ignore[arg-type]
    token_budget = token_budget or TOKENS.get(peers[0].device.type, TOKENS["cpu"])
    totals = np.zeros((len(peers) + len(weights), len(encoded)))
    by_length: dict[int, list[int]] = {}
    for index, item in enumerate(encoded):
        by_length.setdefault(len(item.ids), []).append(index)
    progress = tqdm(total=len(encoded), desc="scoring", unit="text", disable=None, leave=False, mininterval=1)
    with evaluation_mode(peers), torch.inference_mode(), progress:
        readers = [logits_at(model) for model in peers]
        for length, same_length in sorted(by_length.items()):
            texts_a_part = max(1, COPY_CELLS // length**2)
            for start in range(0, len(same_length), texts_a_part):
                part = same_length[start : start + texts_a_part]
                items = [encoded[i] for i in part]
                if objective == "mlm":
                    jobs = _masked_jobs(items, int(mask_id or 0), within_word)
                else:
                    jobs = _causal_jobs(items)
                scores = np.zeros((len(totals), len(part)))
                _add_scores(peers, readers, jobs, scores, weights, temperature, token_budget)
                totals[:, part] = scores
                progress.update(len(part))
    return totals[[*range(len(peers)), *(len(peers) + ensemble_of.reshape(-1))]]


@dataclass(frozen=True)
class _Jobs:
    """What to compute for texts of one length: rows, the places to read in them, the tokens wanted there."""

    inputs: np.ndarray  # (R, L) token ids
    place_row: np.ndarray  # (K,) ascending; row of each place
    place_position: np.ndarray  # (K,) position whose hidden state predicts the token
    job_place: np.ndarray  # (J,) ascending; several tokens may be read off one place
    job_target: np.ndarray  # (J,) token ids
    job_text: np.ndarray  # (J,) text that the log-probability is added to


def _masked_jobs(items: Sequence[Encoded], mask_id: int, within_word: bool) -> _Jobs:
    """One masked copy a scored token of texts of one length; equal copies are kept once."""
    ids = np.array([item.ids for item in items], dtype=np.int32)
    texts = np.repeat(np.arange(len(items)), [len(item.scored) for item in items])
    positions = np.concatenate([np.array(item.scored, dtype=np.int32) for item in items])
    copies = ids[texts]
    if within_word:
        words = np.array([item.words for item in items])[texts]
        own = words[np.arange(len(texts)), positions, None]
        later = np.arange(ids.shape[1]) > positions[:, None]
        copies[later & (words == own) & (words >= 0)] = mask_id
    copies[np.arange(len(texts)), positions] = mask_id
    # The last column is the position to read: copies are equal only if that is equal too.
    copies = np.concatenate([copies, positions[:, None]], axis=1)
    unique, row_of = np.unique(copies, axis=0, return_inverse=True)
    row_of = row_of.reshape(-1)
    order = np.argsort(row_of, kind="stable")
    return _Jobs(
        inputs=unique[:, :-1],
        place_row=np.arange(len(unique)),
        place_position=unique[:, -1],
        job_place=row_of[order],
        job_target=ids[texts, positions][order],
        job_text=texts[order],
    )


def _causal_jobs(items: Sequence[Encoded]) -> _Jobs:
    """One row a text; the token at position i is predicted from the hidden state at i - 1."""
    inputs = np.array([item.ids for item in items], dtype=np.int32)
    rows = np.array([row for row, item in enumerate(items) for _ in item.scored])
    positions = np.array([position for item in items for position in item.scored])
    return _Jobs(
        inputs=inputs,
        place_row=rows,
        place_position=positions - 1,
        job_place=np.arange(len(rows)),
        job_target=inputs[rows, positions],
        job_text=rows,
    )


def _add_scores(
    peers: Sequence[PreTrainedModel],
    readers: Sequence[Reader],
    jobs: _Jobs,
    totals: np.ndarray,
    weights: np.ndarray,
    temperature: float,
    token_budget: int,
) -> None:
    """Add the log-probabilities of all jobs to `totals`, (members, texts)."""
    device = peers[0].device
    batch_rows = min(MOST_ROWS, max(1, token_budget // jobs.inputs.shape[1]))
    logits_at_once = LOGITS.get(device.type, LOGITS["cpu"])
    if not all(reader.apart for reader in readers):  # logits of whole rows are in memory at once
        batch_rows = max(1, min(batch_rows, logits_at_once // (jobs.inputs.shape[1] * peers[0].config.vocab_size)))
    head_places = max(1, logits_at_once // peers[0].config.vocab_size)
    for start in range(0, len(jobs.inputs), batch_rows):
        rows = slice(start, start + batch_rows)
        ids = torch.from_numpy(jobs.inputs[rows].astype(np.int64)).to(device)
        first, last = np.searchsorted(jobs.place_row, [rows.start, rows.stop])
        row = torch.from_numpy(jobs.place_row[first:last] - start).to(device)
        position = torch.from_numpy(jobs.place_position[first:last].astype(np.int64)).to(device)
        hidden = [reader.states(ids, row, position) for reader in readers]
        for head_first in range(first, last, head_places):
            head_last = min(head_first + head_places, last)
            low, high = np.searchsorted(jobs.job_place, [head_first, head_last])
            values = _log_probabilities(
                readers,
                [states[head_first - first : head_last - first] for states in hidden],
                torch.from_numpy(jobs.job_place[low:high] - head_first).to(device),
                torch.from_numpy(jobs.job_target[low:high].astype(np.int64)).to(device),
                weights,
                temperature,
            )
            for member, added in enumerate(values):
                np.add.at(totals[member], jobs.job_text[low:high], added)


def _log_probabilities(
    readers: Sequence[Reader],
    hidden: Sequence[Tensor],
    place: Tensor,
    target: Tensor,
    weights: np.ndarray,
    temperature: float,
) -> np.ndarray:
    """Log-probability of each target (J,) at its place, (members, J); `hidden` holds the K states of each peer."""
    values = []
    mixtures: list[Tensor] = []
    for i, reader in enumerate(readers):
        logits = reader.logits(hidden[i])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # of bfloat16; float64 stays
        if temperature != 1:
            logits = logits / temperature
        if i == 0:
            mixtures = [float(row[0]) * logits for row in weights]
        else:
            for mixture, row in zip(mixtures, weights, strict=True):
                mixture.add_(logits, alpha=float(row[i]))
        values.append(_picked(logits, place, target))
    values.extend(_picked(mixture, place, target) for mixture in mixtures)
    return torch.stack(values).cpu().double().numpy()  # MPS has no float64


def _picked(logits: Tensor, place: Tensor, target: Tensor) -> Tensor:
    """log softmax of (K, V) logits, read at (place, target) only; overwrites the logits.

    The same sums as torch.logsumexp, which is slower on a CPU because it writes the shifted logits to new memory.
    """
    largest = logits.amax(dim=-1, keepdim=True)
    shifted = logits.sub_(largest)
    chosen = shifted[place, target]
    return chosen - shifted.exp_().sum(dim=-1).log_()[place]
