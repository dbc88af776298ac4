"""Rows, masks and batches. A batch is a function of (seed, stream, step) and of nothing else.

Letters: B rows, T tokens a row, K scored positions. No state is kept between steps, so resuming at step n
needs no replay, and every arm of a study sees the same tokens in the same order for a seed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..device import moved
from ..errors import UserError
from .masking import PLAIN, Masking, mask_tokens

STREAMS = {"train": 0, "held_out": 1, "dev": 2}  # keeps the draws of the three texts apart


@dataclass(frozen=True)
class Batch:
    """One batch on its device.

    input_ids (B, T); documents (B, T) int32, the document of each token, -1 on padding, or None where all may
    attend to all; position_ids (B, T), from 0 within each document; targets (B*T,), what each position is scored
    on; scored (K,) and real (N,), flat indices of the scored positions and of all but padding; tokens, words: how
    many the batch shows (tokens without padding, words without special tokens); causal (B,) boolean, the rows where
    nobody sees what follows, or None where all see all.
    """

    input_ids: Tensor
    documents: Tensor | None
    position_ids: Tensor
    targets: Tensor
    scored: Tensor
    real: Tensor
    tokens: int
    words: int
    causal: Tensor | None = None

    @cached_property
    def attention_mask(self) -> Tensor | None:
        """(B, 1, T, T) boolean, true where attention is allowed; None where all may attend to all, or all to what
        came before. Made on the batch's device: it is T times as large as all else."""
        if self.documents is None:
            return None
        # Padding attends to padding: a row of the mask without any true entry would give NaN.
        # transformers takes a mask of this shape as it is: a causal model adds nothing to it.
        allowed = self.documents[:, None, :, None] == self.documents[:, None, None, :]
        return allowed if self.causal is None else torch.where(self.causal.view(-1, 1, 1, 1), allowed.tril(), allowed)

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`. Nobody waits for a copy to a CUDA card: the processor makes the next batch while
        the card is at the last step."""
        if device.type == "cpu":
            return self
        there: dict[str, Any] = {
            field.name: moved(value, device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **there)

    def part(self, index: int, count: int) -> Batch:
        """Rows `index`, `index` + `count`, ... of the batch; `tokens` and `words` stay those of the whole batch."""
        rows, length = self.input_ids.shape
        own = torch.arange(min(index, rows), rows, count, device=self.input_ids.device)  # none, if there are fewer rows

        def kept(places: Tensor) -> Tensor:
            found = torch.zeros(rows * length, dtype=torch.bool, device=places.device)
            found[places] = True
            return found.view(rows, length)[own].flatten().nonzero().squeeze(1)

        return replace(
            self,
            input_ids=self.input_ids[own],
            documents=None if self.documents is None else self.documents[own],
            position_ids=self.position_ids[own],
            targets=self.targets.view(rows, length)[own].flatten(),
            scored=kept(self.scored),
            real=kept(self.real),
            causal=None if self.causal is None else self.causal[own],
        )


def joined(batches: Sequence[Batch]) -> Batch:
    """The rows of several batches of equally long rows as one batch, in their order."""
    if len(batches) == 1:
        return batches[0]
    before = np.cumsum([0, *(batch.input_ids.numel() for batch in batches[:-1])]).tolist()
    documents = None
    if any(batch.documents is not None for batch in batches):
        each = [
            torch.zeros_like(b.input_ids, dtype=torch.int32) if b.documents is None else b.documents for b in batches
        ]
        documents = torch.cat(each)
    return replace(
        batches[0],
        input_ids=torch.cat([batch.input_ids for batch in batches]),
        documents=documents,
        position_ids=torch.cat([batch.position_ids for batch in batches]),
        targets=torch.cat([batch.targets for batch in batches]),
        scored=torch.cat([batch.scored + start for batch, start in zip(batches, before, strict=True)]),
        real=torch.cat([batch.real + start for batch, start in zip(batches, before, strict=True)]),
        tokens=sum(batch.tokens for batch in batches),
        words=sum(batch.words for batch in batches),
        causal=None if batches[0].causal is None else torch.cat([b.causal for b in batches if b.causal is not None]),
    )


def segments(
    tokens: NDArray[np.integer], documents: NDArray[np.integer], block_size: int, eos_id: int, by_line: bool = False
) -> NDArray[np.int64]:
    """Cut documents into pieces of at most `block_size` tokens, start token included, at the last line end that fits,
    in a longer line wherever the piece is full: (S, 2) start, length.

    Every document starts with the start token and ends each line with `eos_id`. A piece that continues a
    document has no start token of its own: `Rows` puts one there, so it is one token shorter.
    by_line: every line is a piece of its own.
    """
    pieces = []
    ends = np.append(documents, len(tokens))[1:].astype(np.int64)
    for start, end in zip(documents.astype(np.int64).tolist(), ends.tolist(), strict=True):
        line_ends = (np.flatnonzero(tokens[start:end] == eos_id) + start + 1).tolist()
        position = start + 1  # after the start token
        while position < end:
            limit = min(position + block_size - 1, end)
            first, behind = bisect_right(line_ends, position), bisect_right(line_ends, limit)
            stop = line_ends[first if by_line else behind - 1] if first < behind else limit
            pieces.append((position, stop - position))
            position = stop
    return np.array(pieces, dtype=np.int64).reshape(-1, 2)


def pack(lengths: NDArray[np.int64], block_size: int, order: NDArray[np.int64]) -> list[list[int]]:
    """Fill rows of `block_size` with pieces (each one token longer, for its start token), in `order`.

    A piece goes to the fullest of the last open rows that has room for it; rows stay open until 32 are.
    """
    done: list[list[int]] = []
    open_rows: list[tuple[int, list[int]]] = []  # (room left, pieces)
    for piece in order.tolist():
        need = int(lengths[piece]) + 1
        fitting = [row for row in open_rows if row[0] >= need]
        if fitting:
            row = min(fitting, key=lambda entry: entry[0])
            open_rows.remove(row)
            row = (row[0] - need, [*row[1], piece])
        else:
            row = (block_size - need, [piece])
        if row[0] < 4:  # shorter than any useful piece
            done.append(row[1])
        else:
            open_rows.append(row)
        if len(open_rows) > 32:
            done.append(open_rows.pop(0)[1])
    return done + [row[1] for row in open_rows]


def word_starts(entries: Sequence[str]) -> NDArray[np.bool_]:
    """(V,): whether each entry of a vocabulary begins a word, by the mark that its kind of tokenizer uses.

    A byte-level BPE writes the space before a word as Ġ, sentencepiece as ▁. WordPiece drops spaces and marks what
    continues a word with ##: there every other entry with a letter or digit begins one, so "don't" counts twice.
    """
    spaced = np.array([entry.startswith(("Ġ", "▁")) for entry in entries])
    continues = np.array([entry.startswith("##") for entry in entries])
    if spaced.any() and spaced.sum() >= continues.sum():  # each kind may know the other's mark as a character
        return spaced
    return ~continues & np.array([any(map(str.isalnum, entry)) for entry in entries])


def blank_entries(entries: Sequence[str]) -> NDArray[np.bool_]:
    """(V,): whether each entry is white space alone, as stands before a word where text is indented or in columns."""
    return np.array([bool(entry) and not entry.strip("ĠĉĊč▁ \t\r\n") for entry in entries])


class Rows:
    """The rows of one text. `packing` "documents": pieces of documents side by side that do not attend to each
    other; "lines": the same with every line a document; "windows": `block_size` tokens from anywhere in the flat
    stream, as the released code draws them."""

    def __init__(
        self,
        tokens: NDArray[np.integer],
        documents: NDArray[np.integer],
        tokenizer: PreTrainedTokenizerBase,
        block_size: int,
        packing: str,
        seed: int,
        stream: str,
    ) -> None:
        self.tokens = tokens
        self.block_size = block_size
        self.packing = packing
        self.seed = [seed, STREAMS[stream]]
        self.pad_id = int(tokenizer.pad_token_id)
        self.bos_id = int(tokenizer.bos_token_id)
        self.special = np.zeros(len(tokenizer), dtype=bool)
        self.special[tokenizer.all_special_ids] = True
        self.ordinary_ids = np.flatnonzero(~self.special)
        entries = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.starts_word, self.blank = word_starts(entries), blank_entries(entries)
        if packing == "windows":
            if len(tokens) < block_size:
                raise UserError(
                    f"the {stream} text has {len(tokens)} tokens, fewer than one window of {block_size}; "
                    "use more text (data.words) or a smaller data.block_size"
                )
            self.pieces = np.zeros((0, 2), dtype=np.int64)
            self.rows: list[list[int]] = []
        else:
            self.pieces = segments(tokens, documents, block_size, int(tokenizer.eos_token_id), packing == "lines")
            order = np.random.default_rng([*self.seed, 0]).permutation(len(self.pieces))
            self.rows = pack(self.pieces[:, 1], block_size, order)
            if not self.rows:
                raise UserError(f"the {stream} text is empty; use more text (data.words) or another corpus")
        self._epoch: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.tokens) // self.block_size if self.packing == "windows" else len(self.rows)

    def epoch_order(self, epoch: int) -> NDArray[np.int64]:
        """The order of the rows in pass number `epoch` over the text."""
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng([*self.seed, 1, epoch]).permutation(len(self.rows)))
        return self._epoch[1]

    def take(self, step: int, batch_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(ids, document, position) of the rows of batch number `step`, each (B, T); document is -1 on padding."""
        shape = (batch_size, self.block_size)
        if self.packing == "windows":
            starts = np.random.default_rng([*self.seed, 2, step]).integers(
                0, len(self.tokens) - self.block_size + 1, batch_size
            )
            ids = np.stack([np.asarray(self.tokens[start : start + self.block_size]) for start in starts]).astype(
                np.int64
            )
            return ids, np.zeros(shape, np.int64), np.tile(np.arange(self.block_size), (batch_size, 1))
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        document = np.full(shape, -1, dtype=np.int64)
        position = np.zeros(shape, dtype=np.int64)
        places = (divmod(number, len(self.rows)) for number in range(step * batch_size, (step + 1) * batch_size))
        rows = [self.rows[self.epoch_order(epoch)[within]] for epoch, within in places]
        counts = np.array([len(row) for row in rows])
        pieces = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
        row_of_piece = np.repeat(np.arange(batch_size), counts)
        widths = self.pieces[pieces, 1] + 1  # with the start token
        before = np.cumsum(widths) - widths  # tokens of the batch before each piece
        first = row_of_piece * self.block_size + before - before[np.cumsum(counts) - counts][row_of_piece]
        within = np.arange(widths.sum()) - np.repeat(before, widths)  # place of each token in its piece
        where = np.repeat(first, widths) + within
        position.flat[where], document.flat[where] = within, np.repeat(pieces, widths)
        ids.flat[where] = self.tokens[np.repeat(self.pieces[pieces, 0] - 1, widths) + within]
        ids.flat[first] = self.bos_id
        return ids, document, position

    def masked_batch(self, step: int, batch_size: int, mask_id: int, ratio: float, masking: Masking = PLAIN) -> Batch:
        """A batch for a masked model: `mask_tokens` on the rows of `step`."""
        ids, document, position = self.take(step, batch_size)
        inputs, scored = self._masked(step, ids, np.ones(batch_size, dtype=bool), mask_id, ratio, masking)
        return self._batch(inputs, document, position, scored, ids, ids)

    def _masked(
        self,
        step: int,
        ids: NDArray[np.int64],
        rows: NDArray[np.bool_],
        mask_id: int,
        ratio: float,
        masking: Masking,
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """`mask_tokens` on the given `rows` (B,) of the batch of `step`."""
        candidates = ~self.special[ids] & rows[:, None]
        rng = np.random.default_rng([*self.seed, 3, step])
        return mask_tokens(ids, candidates, self.ordinary_ids, mask_id, ratio, masking, rng)

    def causal_batch(
        self, step: int, batch_size: int, mask_id: int | None = None, ratio: float = 0.0, masking: Masking = PLAIN
    ) -> Batch:
        """A batch for a causal model: position t is scored on the token at t + 1 of the same document.

        A share `masking.mntp_share` of the rows is for masked next-token prediction (MNTP; GPT-BERT trains so): some
        tokens are masked as by `masked_batch`, all see the whole document, and what stands before a masked token is
        scored on it, nothing else. It needs a `mask_id`.
        """
        ids, document, position = self.take(step, batch_size)
        scored = np.zeros_like(document, dtype=bool)
        scored[:, :-1] = (document[:, 1:] == document[:, :-1]) & (document[:, :-1] >= 0)
        before = (step * batch_size + np.arange(batch_size + 1)) * masking.mntp_share  # rows of MNTP before each row
        both_ways = np.diff(np.floor(before)) > 0
        inputs, following = ids, np.roll(ids, -1, axis=1)
        if both_ways.any():
            assert mask_id is not None  # `Config.needs_mask`: else these rows would see what they are scored on
            inputs, masked = self._masked(step, ids, both_ways, mask_id, ratio, masking)
            scored[both_ways] &= np.roll(masked, -1, axis=1)[both_ways]
        return self._batch(inputs, document, position, scored, following, ids, ~both_ways)

    def _batch(
        self,
        inputs: NDArray[np.int64],
        document: NDArray[np.int64],
        position: NDArray[np.int64],
        scored: NDArray[np.bool_],
        targets: NDArray[np.int64],
        ids: NDArray[np.int64],
        causal: NDArray[np.bool_] | None = None,
    ) -> Batch:
        # Without the documents a causal model takes its own mask, which is causal in all rows
        apart = (document != document[:, :1]).any() or (causal is not None and not causal.all())
        no_text = self.special | self.blank
        before = np.concatenate([np.ones((len(ids), 1), dtype=bool), no_text[ids[:, :-1]]], axis=1)
        words = int(((self.starts_word[ids] | before) & ~no_text[ids]).sum())
        return Batch(
            torch.from_numpy(inputs),
            torch.from_numpy(document.astype(np.int32)) if apart else None,
            torch.from_numpy(position),
            torch.from_numpy(targets.reshape(-1)),
            torch.from_numpy(np.flatnonzero(scored)),
            torch.from_numpy(np.flatnonzero(document >= 0)),
            int((document >= 0).sum()),
            words,
            None if causal is None else torch.from_numpy(causal),
        )


def batch_source(
    rows: Rows, objective: str, batch_size: int, tokenizer: PreTrainedTokenizerBase, masking: Masking = PLAIN
) -> Callable[[int, float], Batch]:
    """(step, mask ratio) -> batch, for the objective in use."""
    mask_id = tokenizer.mask_token_id
    if objective == "clm":
        return lambda step, ratio: rows.causal_batch(step, batch_size, mask_id, ratio, masking)
    return lambda step, ratio: rows.masked_batch(step, batch_size, int(mask_id), ratio, masking)
