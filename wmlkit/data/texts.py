"""The three texts of a prepared corpus as sources of batches: train, held-out, dev."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from ..config import Config
from ..errors import UserError
from ..settings import TrainConfig
from .batches import Batch, Rows, batch_source
from .encode import check_tokenizer, open_documents, open_tokens
from .masking import Masking
from .prepared import Prepared

Source = Callable[[int, float], Batch]  # (step, mask ratio) -> batch

MEASURED_TOKENS = 2048  # of a batch that is measured: with the rows' order it fixes the masks, so no run may choose it


@dataclass(frozen=True)
class Stage:
    """A part of training with rows of one length: from step `first` on, `batch_size` rows of `block_size` tokens."""

    first: int
    block_size: int
    batch_size: int


@dataclass(frozen=True)
class Measured:
    """A text as losses on it are measured: rows and, for one share of masks, masks are the same for every run on this
    text, whatever its seed and arm, and for its teacher, so that their losses differ by the models alone."""

    source: Source
    batch_size: int
    rows: int

    def batches(self, rows: int | None = None) -> int:
        """Batches that cover `rows` rows, None: all; the last is filled up with rows of the next."""
        return math.ceil(min(self.rows, rows or self.rows) / self.batch_size)


@dataclass(frozen=True)
class Texts:
    """Batches of the texts, and how often training reads its own. Held-out text serves twice: `outer` are the batches
    of the outer problem, `held_out` is what the best peer is chosen on."""

    train: Source
    outer: Source
    held_out: Measured
    dev: Measured
    passes: float


def stages(config: Config) -> list[Stage]:
    """The sequence-length schedule; tokens a step stay what train.batch_size and data.block_size make them."""
    data, train = config.data, config.train
    tokens = train.batch_size * data.block_size
    done, result = 0.0, []
    for share, block_size in data.block_schedule or ((1.0, data.block_size),):
        result.append(Stage(round(done * train.steps), block_size, tokens // block_size))
        done += share
    return result


def masking(train: TrainConfig) -> Masking:
    """How a run masks its training text. The outer problem and all that is measured mask single tokens, and all, of a
    masked model, and none of a causal one."""
    return Masking(train.mask_random, train.mask_keep, train.mask_span, train.mntp_share)


def open_texts(config: Config, prepared: Prepared, tokenizer: PreTrainedTokenizerFast) -> Texts:
    """The batches of a prepared corpus, after checking that its tokens and the tokenizer belong together.

    Raises UserError when a run would read its training text, or the outer problem the part of it that is held out,
    more often than `data.max_passes`.
    """
    data, train, objective = config.data, config.train, config.model.objective

    def rows(split: str, block_size: int) -> Rows:
        return _rows(split, block_size, train.seed, data.packing, prepared, tokenizer)

    plan = stages(config)
    texts = [rows("train", stage.block_size) for stage in plan]
    steps = [last - stage.first for stage, last in zip(plan, [*(s.first for s in plan[1:]), train.steps], strict=True)]
    passes = sum(n * stage.batch_size / len(text) for n, stage, text in zip(steps, plan, texts, strict=True))
    _check_passes(config, passes)
    held_out = rows("held_out", data.block_size)
    _check_outer_passes(config, len(held_out))
    sources = [
        batch_source(text, objective, stage.batch_size, tokenizer, masking(train))
        for text, stage in zip(texts, plan, strict=True)
    ]
    return Texts(
        _in_turn(plan, steps, sources),
        batch_source(held_out, objective, config.outer.batch_size, tokenizer),
        open_measured("held_out", config, prepared, tokenizer),
        open_measured("dev", config, prepared, tokenizer),
        passes,
    )


def _in_turn(plan: Sequence[Stage], steps: Sequence[int], sources: Sequence[Source]) -> Source:
    """The batches of the stages of `plan`, which take so many `steps`, one after the other; a length that comes back
    goes on in the text where it left off."""
    before, taken = [], dict.fromkeys((stage.block_size for stage in plan), 0)
    for stage, count in zip(plan, steps, strict=True):
        before.append(taken[stage.block_size])
        taken[stage.block_size] += count
    firsts = [stage.first for stage in plan]

    def batch(step: int, ratio: float) -> Batch:
        number = bisect_right(firsts, step) - 1
        return sources[number](before[number] + step - firsts[number], ratio)

    return batch


def _check_passes(config: Config, passes: float) -> None:
    """Raises UserError where a run reads its training text more often than `data.max_passes`."""
    allowed, train = config.data.max_passes, config.train
    if allowed is None or passes <= allowed:
        return
    enough_steps = int(train.steps * allowed / passes)
    who, steps = "this run", "train.steps"
    if config.mutual.arm == "teacher":
        who, steps = "the teacher", "mutual.teacher_steps (else train.steps)"
    lower = f"lower {steps} to {enough_steps}" if enough_steps else "lower train.batch_size"
    raise UserError(
        f"{who} would read its training text {passes:.2f} times, and data.max_passes is {allowed:g} "
        "(the BabyLM challenge allows 10 passes since 2025); "
        f"{lower} or use more text"
    )


def _check_outer_passes(config: Config, rows: int) -> None:
    """Raises UserError where the outer problem reads the held-out text, of so many rows, more often than
    `data.max_passes`."""
    allowed, outer, steps = config.data.max_passes, config.outer, config.train.steps
    learnt = config.mutual.arm == "wml" and config.mutual.num_peers + config.mutual.teacher_is_peer > 1

    def passes_of(every: int) -> float:
        return len(outer.due(steps, every)) * outer.batch_size / rows

    again = passes_of(outer.every)
    if allowed is None or not learnt or again <= allowed:
        return
    enough = next((every for every in range(outer.every, steps) if passes_of(every) <= allowed), None)
    rarer = f"raise outer.every to {enough} or more, or" if enough else "lower outer.batch_size, or raise"
    raise UserError(
        f"the outer problem would read the held-out text {again:.2f} times, and data.max_passes is "
        f"{allowed:g}: it is training text too; {rarer} data.held_out"
    )


def _rows(
    split: str, block_size: int, seed: int, packing: str, prepared: Prepared, tokenizer: PreTrainedTokenizerFast
) -> Rows:
    path = prepared.folder / f"{split}.tokens"
    tokens, header = open_tokens(path)
    check_tokenizer(header, tokenizer)
    return Rows(tokens, open_documents(path), tokenizer, block_size, packing, seed, split)


def open_measured(split: str, config: Config, prepared: Prepared, tokenizer: PreTrainedTokenizerFast) -> Measured:
    """One text of a prepared corpus, "held_out" or "dev", as losses on it are measured."""
    text = _rows(split, config.data.block_size, 0, config.data.packing, prepared, tokenizer)
    return measured(text, config, tokenizer)


def measured(text: Rows, config: Config, tokenizer: PreTrainedTokenizerFast) -> Measured:
    """`text` as losses on it are measured, with every scored position masked. Its rows must not depend on a run's seed:
    see `Measured`."""
    size = max(1, MEASURED_TOKENS // text.block_size)
    return Measured(batch_source(text, config.model.objective, size, tokenizer), size, len(text))
