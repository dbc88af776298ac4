"""The settings of what is done with runs: evaluation, studies, ablations, and the replay of the released code."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .settings import Arm, Section, Seed, Size

ProtocolName = Literal["babylm2024-released", "babylm2024-fixed", "babylm2025", "babylm2026"]  # evaluate.protocols

# What `wmlkit evaluate` measures beside minimal pairs, and what to do in place of naming it in evaluate.suites
NO_PAIRS = {
    "ensembles": "leave it out: a study measures it of all its runs, `wmlkit evaluate RUN --suite ensembles` of one",
    "glue": "leave it out and fine-tune a finished run with `wmlkit evaluate RUN --suite glue --pairs FOLDER`",
    "lm": "leave it out and set evaluate.text_words, or measure a finished run with `wmlkit evaluate RUN --suite lm`",
}


SUITE_NAME = r"\w[\w.-]*"


class EvaluateConfig(Section):
    suites: tuple[str, ...] = Field(("nursery",), min_length=1)
    pairs: str | None = None  # folder of the suites' JSONL files, or of their folders (blimp_filtered, ...)
    protocol: ProtocolName = "babylm2025"
    ties: Literal["half", "first", "random", "protocol"] = "half"  # "protocol": the rule of the protocol's year
    per_paradigm: int | None = Field(None, ge=1)  # sample of pairs a paradigm; None: all
    token_budget: int | None = Field(None, ge=64)  # tokens a forward pass; None: what suits the device
    # Learning curve: words seen, repetitions counted, at which training scores the peers; the end is one point more
    curve: tuple[int, ...] = ()
    curve_per_paradigm: int = Field(20, ge=1)  # pairs a paradigm at each point, always the same ones
    curve_export: bool = False  # keep the peers of each point too, as model folders
    text_words: int | None = Field(None, ge=1)  # words of dev text a domain for bits per byte; None: not measured

    @field_validator("suites")
    @classmethod
    def _suites_are_of_pairs(cls, suites: tuple[str, ...]) -> tuple[str, ...]:
        for suite, instead in NO_PAIRS.items():
            if suite in suites:
                raise ValueError(f"evaluate.suites names {suite!r}; expected suites of minimal pairs; {instead}")
        if len(set(suites)) < len(suites) or "dev_ce" in suites:
            raise ValueError(
                f"evaluate.suites names {', '.join(suites)}; expected each once, and none dev_ce, which is what tables "
                "call the dev loss; leave out what is there twice, or rename the folder"
            )
        for suite in suites:
            if not re.fullmatch(SUITE_NAME, suite):  # it names folders and files of results
                raise ValueError(
                    f"evaluate.suites names {suite!r}; expected names of letters, digits and _.-, as of folders "
                    "below evaluate.pairs; rename the folder"
                )
        return suites

    @model_validator(mode="after")
    def _curve_rises(self) -> EvaluateConfig:
        if any(words < 1 for words in self.curve) or list(self.curve) != sorted(set(self.curve)):
            raise ValueError(
                f"evaluate.curve is {list(self.curve)}; expected word counts above 0 in rising order, such as "
                "[1_000_000, 2_000_000]"
            )
        return self


class StudyConfig(Section):
    runs: tuple[tuple[Arm, Size], ...] = Field(
        (("independent", 4), ("dml", 4), ("wml", 4), ("distill", 4), ("wml", 2)), min_length=1
    )
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)
    workers: int = Field(2, ge=1)  # runs side by side


class AblationsConfig(Section):
    """Runs that differ from one another in one thing each (T8): the preset with `base`, and that with each of
    `settings` on top. Keys are those of the configuration, ``"mutual.alpha"``."""

    base: dict[str, Any] = {}
    settings: tuple[dict[str, Any], ...] = ()
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)


class ReplayConfig(Section):
    """Sizes of the replay of the released code (`wmlkit.replay`); the defaults are the released values."""

    num_epochs: int = Field(50, ge=1)
    micro_batches: int = Field(60, ge=1)  # an epoch, and an outer problem's evaluation
    batch_size: int = Field(3, ge=1)  # rows a micro-batch
    num_peers: int = Field(4, ge=2)
    lr: float = Field(1e-3, gt=0)  # of the peers, after warm-up
    min_lr: float = Field(1e-4, ge=0)
    grad_clip: float = Field(1.0, ge=0)  # norm of each peer's gradient, and what the clamp cuts the weights' at (O5)
    weight_update_every: int = Field(5, ge=1)  # epochs between two outer problems
    step_size: float = Field(0.25, ge=0)  # of the mirror descent, after warm-up
    min_step_size: float = Field(0.0025, ge=0)
    warmup_epochs: int = Field(5, ge=0)  # of both schedules
    decay_epochs: int = Field(50, ge=1)  # epoch at which both reach their minimum
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)  # the released training has none
    per_paradigm: int = Field(10, ge=1)  # pairs a paradigm to score
    # A Hugging Face folder or id with a logit for each of the students' ids, as RoBERTa-base has 50,265: the teacher of
    # another tokenizer (L9). None: the base model, trained with another tokenizer
    teacher: str | None = Field(None, min_length=1)
    workers: int = Field(1, ge=1)  # replays side by side

    @model_validator(mode="after")
    def _decay_follows_warmup(self) -> ReplayConfig:
        if self.decay_epochs <= self.warmup_epochs:
            raise ValueError(
                f"replay.decay_epochs is {self.decay_epochs}; expected more than replay.warmup_epochs "
                f"({self.warmup_epochs}); change one of the two"
            )
        return self
