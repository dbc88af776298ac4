"""The text as the released training reads it: digit pairs, one flat stream, capitals lost on reload.

The released code writes the *text* of a list of ids (``[0, 713, 5, ...]``) and reads the file back as 16-bit
numbers, so every "token" is a pair of characters. Nothing fails, because all pairs are below 50,265.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, normalizers
from transformers import PreTrainedTokenizerFast

from ..config import Config
from ..data.batches import Rows
from ..data.encode import open_documents, open_tokens
from ..data.prepared import Prepared
from .released import Defects

DIGITS = "0123456789"


def digit_pair_ids(ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint16]:
    """The text of the list `ids`, read as little-endian 16-bit numbers: two characters a number.

    A text of odd length loses its last character, the closing bracket, as in the released loader.
    """
    text = str([int(i) for i in ids]).encode("ascii")
    return np.frombuffer(text, dtype="<u2", count=len(text) // 2)


def possible_pairs() -> NDArray[np.uint16]:
    """Every number that `digit_pair_ids` can give, sorted: two characters that can stand side by side in a list."""
    pairs = [a + b for a, b in product(DIGITS, DIGITS)] + [", "]
    pairs += [pair for d in DIGITS for pair in (d + ",", " " + d, "[" + d, d + "]")]
    return np.unique(np.frombuffer("".join(pairs).encode("ascii"), dtype="<u2"))


def one_stream(tokens: NDArray[np.integer], tokenizer: PreTrainedTokenizerFast) -> NDArray[np.int64]:
    """All tokens as one text: one start token and one end token in all, wherever documents and lines ended."""
    plain = tokens[~np.isin(tokens, tokenizer.all_special_ids)]
    return np.concatenate([[tokenizer.bos_token_id], plain, [tokenizer.eos_token_id]]).astype(np.int64)


def widened(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer with one entry more for each digit pair that is no id of it.

    With a vocabulary of 50,265 there is none. A smaller one would need 14,650 rows for about 120 that are read;
    the rows between, which no text uses, are left out of the models.
    """
    wide = copy.deepcopy(tokenizer)
    wide.add_tokens([f"<pair {pair}>" for pair in possible_pairs() if pair >= len(tokenizer)])
    return wide


def rows_of_pairs(pairs: NDArray[np.uint16], vocab_size: int) -> NDArray[np.int64]:
    """Where digit pairs stand in the vocabulary of `widened`: their own id, or the added entry."""
    added = possible_pairs()
    added = added[added >= vocab_size]
    ids = pairs.astype(np.int64)
    return np.where(ids < vocab_size, ids, vocab_size + np.searchsorted(added, ids))


def without_capitals(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy that drops capital letters: what reloading leaves of a vocabulary trained behind lower-casing.

    The released code saves vocabulary and merges only; no capital letter is among them.
    """
    reloaded = copy.deepcopy(tokenizer)
    reloaded.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"\p{Lu}"), "")
    return reloaded


def text_rows(
    config: Config,
    prepared: Prepared,
    split: str,
    tokenizer: PreTrainedTokenizerFast,
    wide: PreTrainedTokenizerFast,
    defects: Defects,
) -> tuple[Rows, NDArray[np.integer]]:
    """(rows of one split, the ids that were read: digit pairs before they move to added entries).

    Of the defects those of the text count: `digit_pairs`, `one_stream`, `masked_specials`. Digit pairs have no
    documents, so they are read from one stream too.
    """
    path = prepared.folder / f"{split}.tokens"
    tokens, _ = open_tokens(path)
    documents, packing, ids = open_documents(path), config.data.packing, tokens
    if defects.one_stream or defects.digit_pairs:
        tokens = ids = one_stream(tokens, tokenizer)
        packing = "windows"
    if defects.digit_pairs:
        ids = digit_pair_ids(tokens)
        tokens = rows_of_pairs(ids, len(tokenizer))
    rows = Rows(tokens, documents, wide, config.data.block_size, packing, config.train.seed, split)
    if defects.masked_specials:
        rows.special[:] = False
        rows.special[rows.pad_id] = True
    return rows, ids
