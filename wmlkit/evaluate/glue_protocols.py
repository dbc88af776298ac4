"""The (Super)GLUE tasks and the settings of each year's pipeline, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import UserError
from .finetune import Recipe

Metric = Literal["accuracy", "f1", "mcc"]


@dataclass(frozen=True)
class Task:
    """One column: the templates of its texts and its metric."""

    first: str
    second: str | None
    num_labels: int = 2
    metric: Metric = "accuracy"  # the reported one


TASKS: dict[str, Task] = {
    "boolq": Task("{question}", "{passage}"),
    "cola": Task("{sentence}", None, metric="mcc"),
    "mnli": Task("{premise}", "{hypothesis}", num_labels=3),
    "mnli-mm": Task("{premise}", "{hypothesis}", num_labels=3),  # the mnli model on other genres
    "mrpc": Task("{sentence1}", "{sentence2}", metric="f1"),
    "multirc": Task("Question: {question} Answer: {answer}", "{paragraph}"),
    "qnli": Task("{question}", "{sentence}"),
    "qqp": Task("{question1}", "{question2}", metric="f1"),
    "rte": Task("{sentence1}", "{sentence2}"),
    "sst2": Task("{sentence}", None),
    "wsc": Task('Does "{span2_text}" refer to "{span1_text}" in this passage?', "{text}"),
}


@dataclass(frozen=True)
class GlueProtocol:
    """One year's columns and settings."""

    tasks: tuple[str, ...]
    recipe: Recipe
    overrides: dict[str, dict[str, Any]]  # task -> settings that differ from the recipe
    f1_selects: tuple[str, ...]  # tasks whose best epoch F1 chooses; accuracy chooses for the others
    seed: int


GLUE_PROTOCOLS: dict[str, GlueProtocol] = {
    # finetune_model.sh and finetune_classification.py; what they leave out is the Trainer's default
    "babylm2024": GlueProtocol(
        tasks=tuple(TASKS),
        recipe=Recipe(
            lr=5e-5,
            batch_size=64,
            epochs=10,
            max_length=128,
            weight_decay=0.0,
            schedule="linear",
            warmup_ratio=0.0,
            min_lr_ratio=0.0,
            grad_clip=1.0,
            patience=3,
            threshold=1e-3,
            drop_last=False,
            head="tanh",
            dropout=0.1,
        ),
        overrides={},
        f1_selects=tuple(name for name, task in TASKS.items() if task.num_labels == 2),
        seed=12,
    ),
    # eval_finetuning.sh and finetune/{run,trainer,classifier_model}.py
    "babylm2025": GlueProtocol(
        tasks=("boolq", "mnli", "mrpc", "multirc", "qqp", "rte", "wsc"),
        recipe=Recipe(
            lr=3e-5,
            batch_size=32,
            epochs=10,
            max_length=512,
            weight_decay=0.01,
            schedule="cosine",
            warmup_ratio=0.06,
            min_lr_ratio=0.1,
            grad_clip=0.0,
            patience=None,
            threshold=0.0,
            drop_last=True,
            head="gelu",
            dropout=0.1,
        ),
        overrides={"boolq": {"batch_size": 16}, "multirc": {"batch_size": 16}, "wsc": {"epochs": 30}},
        f1_selects=("mrpc", "qqp"),
        seed=42,
    ),
}


def get_glue_protocol(name: str) -> GlueProtocol:
    """The settings of one year; UserError for an unknown name."""
    if name not in GLUE_PROTOCOLS:
        raise UserError(f"there is no GLUE protocol {name!r}; expected one of {', '.join(GLUE_PROTOCOLS)}")
    return GLUE_PROTOCOLS[name]
