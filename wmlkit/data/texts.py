"""The three texts of a prepared corpus as sources of batches: train, held-out, dev."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from ..config import Config
from .batches import Batch, Rows, batch_source
from .encode import check_tokenizer, open_documents, open_tokens
from .prepare import Prepared

Source = Callable[[int, float], Batch]  # (step, mask ratio) -> batch


@dataclass(frozen=True)
class Texts:
    """Batches of the three texts."""

    train: Source
    held_out: Source
    dev: Source


def open_texts(config: Config, prepared: Prepared, tokenizer: PreTrainedTokenizerFast) -> Texts:
    """The batches of a prepared corpus, after checking that its tokens and the tokenizer belong together."""
    data, train = config.data, config.train

    def source(split: str, batch_size: int) -> Source:
        path = prepared.folder / f"{split}.tokens"
        tokens, header = open_tokens(path)
        check_tokenizer(header, tokenizer)
        documents = open_documents(path)
        rows = Rows(tokens, documents, tokenizer, data.block_size, data.packing, train.seed, split)
        # dev and held-out losses are measured with every scored position masked, so that they compare
        random, keep = (train.mask_random, train.mask_keep) if split == "train" else (0.0, 0.0)
        return batch_source(rows, config.model.objective, batch_size, tokenizer, random, keep)

    return Texts(
        source("train", train.batch_size),
        source("held_out", config.outer.batch_size),
        source("dev", config.outer.batch_size),
    )
