"""What token counts alone say of minimal pairs: the baseline below which a score is no evidence of grammar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from .data.encode import open_tokens
from .evaluate.protocols import credit
from .evaluate.suites import Pair

SMOOTHING = 0.1  # added to every count


class Counts:
    """Unigram and bigram counts of a token stream; p(b | a) = (n(a, b) + s) / (n(a) + s V)."""

    def __init__(self, tokens: np.ndarray, vocab_size: int) -> None:
        ids = tokens.astype(np.int64)
        self.vocab_size = vocab_size
        self.unigrams = np.bincount(ids, minlength=vocab_size).astype(float)
        self.keys, self.values = np.unique(ids[:-1] * vocab_size + ids[1:], return_counts=True)

    def _bigrams(self, ids: np.ndarray) -> np.ndarray:
        keys = ids[:-1] * self.vocab_size + ids[1:]
        places = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.values[places], 0)

    def unigram_score(self, ids: np.ndarray) -> float:
        """Log-probability of the words, order ignored (nats)."""
        return float(np.log((self.unigrams[ids] + SMOOTHING) / (self.unigrams + SMOOTHING).sum()).sum())

    def bigram_score(self, ids: np.ndarray) -> float:
        """Log-probability of each token given the one before (nats); `ids` begins with the end of a line."""
        before = self.unigrams[ids[:-1]] + SMOOTHING * self.vocab_size
        return float(np.log((self._bigrams(ids) + SMOOTHING) / before).sum())


def accuracy_table(prepared_folder: Path, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> pd.DataFrame:
    """Accuracy in percent of unigram and bigram counts of the training tokens, by paradigm; a tie counts half."""
    tokens, _ = open_tokens(prepared_folder / "train.tokens")
    counts = Counts(np.asarray(tokens), len(tokenizer))

    scores: dict[str, list[list[float]]] = {"unigram": [], "bigram": []}  # (good, bad) of each pair
    for pair in pairs:
        both = [np.array(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (pair.good, pair.bad)]
        framed = [np.concatenate([[tokenizer.eos_token_id], ids, [tokenizer.eos_token_id]]) for ids in both]
        scores["unigram"].append([counts.unigram_score(ids) for ids in both])
        scores["bigram"].append([counts.bigram_score(ids) for ids in framed])
    columns = {name: np.array(rows).T for name, rows in scores.items()}
    earned = {name: 100 * credit(good, bad, "half") for name, (good, bad) in columns.items()}
    return pd.DataFrame({"paradigm": [pair.paradigm for pair in pairs], **earned}).groupby("paradigm").mean()
