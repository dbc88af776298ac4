"""The three texts of a prepared corpus as sources of batches: train, held-out, dev."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from ..config import Config
from ..errors import UserError
from .batches import Batch, Rows, batch_source
from .encode import check_tokenizer, open_documents, open_tokens
from .prepare import Prepared

Source = Callable[[int, float], Batch]  # (step, mask ratio) -> batch


@dataclass(frozen=True)
class Stage:
    """A part of training with rows of one length: from step `first` on, `batch_size` rows of `block_size` tokens."""

    first: int
    block_size: int
    batch_size: int


@dataclass(frozen=True)
class Texts:
    """Batches of the three texts, and how often training reads its text."""

    train: Source
    held_out: Source
    dev: Source
    passes: float


def stages(config: Config) -> list[Stage]:
    """The sequence-length schedule; tokens a step stay what train.batch_size and data.block_size make them."""
    data, train = config.data, config.train
    tokens = train.batch_size * data.block_size
    done, result = 0.0, []
    for share, block_size in data.block_schedule or ((1.0, data.block_size),):
        result.append(Stage(round(done * train.steps), block_size, max(1, tokens // block_size)))
        done += share
    return result


def open_texts(config: Config, prepared: Prepared, tokenizer: PreTrainedTokenizerFast) -> Texts:
    """The batches of a prepared corpus, after checking that its tokens and the tokenizer belong together.

    Raises UserError when training would read its text more often than `data.max_passes`.
    """
    data, train = config.data, config.train

    def rows(split: str, block_size: int) -> Rows:
        path = prepared.folder / f"{split}.tokens"
        tokens, header = open_tokens(path)
        check_tokenizer(header, tokenizer)
        return Rows(tokens, open_documents(path), tokenizer, block_size, data.packing, train.seed, split)

    def source(text: Rows, batch_size: int, random: float = 0.0, keep: float = 0.0) -> Source:
        return batch_source(text, config.model.objective, batch_size, tokenizer, random, keep)

    plan = stages(config)
    texts = [rows("train", stage.block_size) for stage in plan]
    sources = [
        source(text, stage.batch_size, train.mask_random, train.mask_keep)
        for text, stage in zip(texts, plan, strict=True)
    ]
    firsts = [stage.first for stage in plan]

    def of_stage(step: int, ratio: float) -> Batch:
        number = bisect_right(firsts, step) - 1
        return sources[number](step - firsts[number], ratio)

    lengths = [last - first for first, last in zip(firsts, [*firsts[1:], train.steps], strict=True)]
    passes = sum(steps * stage.batch_size / len(text) for steps, stage, text in zip(lengths, plan, texts, strict=True))
    if data.max_passes is not None and passes > data.max_passes:
        raise UserError(
            f"this run would read its training text {passes:.2f} times, and data.max_passes is {data.max_passes:g} "
            "(the BabyLM challenge allows 10 passes since 2025); "
            f"lower train.steps to {int(train.steps * data.max_passes / passes)} or use more text"
        )
    # dev and held-out losses are measured with every scored position masked, so that they compare
    held_out = source(rows("held_out", data.block_size), config.outer.batch_size)
    dev = source(rows("dev", data.block_size), config.outer.batch_size)
    return Texts(of_stage, held_out, dev, passes)
