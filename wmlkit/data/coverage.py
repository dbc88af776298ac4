"""Coverage: how many words of a prepared corpus its vocabulary holds whole.

A word is here a stretch of letters, or one of digits, as byte-level tokenizers cut text first: "don't" has the words
"don" and "t" where the two are tokens of their own. A word of several tokens is one that the vocabulary does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
from transformers import PreTrainedTokenizerFast

from .. import paths
from . import nursery
from .batches import word_starts
from .encode import open_documents, open_tokens
from .splits import SPLITS
from .statistics import read_statistics
from .tokenizer import load_tokenizer

_LETTER, _DIGIT, _SPACE = 1, 2, 3


def whole_words(prepared_folder: Path, statistics: Mapping[str, Any]) -> dict[tuple[str, str], tuple[int, int]]:
    """(words of one token, words) of each (split of the source, domain). Held-out text belongs to ``train``, and so
    does dev text where the source has none of its domain."""
    given = {row["domain"] for row in statistics["domains"] if row["split"] == "dev"}
    kinds = _kinds(load_tokenizer(paths.tokenizer(prepared_folder)))
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for split in SPLITS:
        path = prepared_folder / f"{split}.tokens"
        tokens, _ = open_tokens(path)
        ends = [*open_documents(path).tolist(), len(tokens)]
        first = 0
        for row in (row for row in statistics["splits"] if row["split"] == split):  # in the order of the documents
            last = first + row["documents"]
            whole, words = count_whole(tokens[ends[first] : ends[last]], *kinds)
            key = ("dev" if split == "dev" and row["domain"] in given else "train", row["domain"])
            before = counts.get(key, (0, 0))
            counts[key] = (before[0] + whole, before[1] + words)
            first = last
    return counts


def loss_floor(prepared_folder: Path, corpus: str, objective: str, mask_ratio: float) -> tuple[float, float] | None:
    """`nursery.entropy_floor` of a prepared corpus. None for other text than the nursery's, for its text as it is
    before cleaning, whose marks cost less than words, and where its vocabulary splits words: those of several tokens
    cost less a token."""
    if corpus != "nursery" or paths.read_json(prepared_folder / "corpus.json")["settings"]["cleaning_rules"] is None:
        return None
    counts = whole_words(prepared_folder, read_statistics(prepared_folder))
    split = any(whole < words for whole, words in counts.values())
    return None if split else nursery.entropy_floor(objective, mask_ratio)


def count_whole(tokens: np.ndarray, starts: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    """(words of one token, words) in `tokens` (count,). The others have a kind (0: no word) for each id: of its first
    character behind a space, of its very first and of its last character (`_SPACE`: nothing but a space)."""
    goes_on = np.zeros(len(tokens) + 1, dtype=bool)  # whether token i belongs to the word of token i - 1
    goes_on[1:-1] = (begins[tokens[1:]] == ends[tokens[:-1]]) & (begins[tokens[1:]] > 0)
    words = (starts[tokens] > 0) & ~goes_on[:-1]
    whole = words & ~goes_on[1:]
    whole[1:] &= (begins[tokens[1:]] == 0) | (ends[tokens[:-1]] != _SPACE)  # its space is a token of its own
    return int(whole.sum()), int(words.sum())


def _kinds(tokenizer: PreTrainedTokenizerFast) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    special = set(tokenizer.all_special_ids)
    texts = ["" if index in special else str(tokenizer.decode([index])) for index in range(len(tokenizer))]
    begun = word_starts(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    for index in np.flatnonzero(begun).tolist():  # sentencepiece and WordPiece lose the space before a single token
        if index not in special and not texts[index].startswith(" "):
            texts[index] = " " + texts[index]
    texts = [text.removeprefix("##") if len(text) > 2 else text for text in texts]  # WordPiece's mark of what goes on
    chosen = ([text.lstrip(" ")[:1] for text in texts], [text[:1] for text in texts], [text[-1:] for text in texts])
    starts, begins, ends = (np.array([_kind(character) for character in one], dtype=np.int8) for one in chosen)
    ends[[text == " " for text in texts]] = _SPACE
    return starts, begins, ends


def _kind(character: str) -> int:
    of_unicode = category(character)[0] if character else ""  # a letter, too, may be numeric: \u4e09, three
    if of_unicode == "N":
        return _DIGIT
    # Some bytes of a letter that is rarer than the vocabulary is large: they decode to the replacement character.
    return _LETTER if of_unicode == "L" or character == "\ufffd" else 0
