"""(Super)GLUE as the BabyLM pipelines of 2024 and 2025 run it: tasks, settings, metrics, one document of results.

Both pipelines choose the best epoch on the validation file and report that epoch's score on the same file, so the
numbers are optimistic; they are kept this way to be comparable, and every document says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import paths
from ..errors import UserError
from ..models import max_length
from .finetune import Example, Recipe, finetune
from .minimal_pairs import objective_of
from .pairs import load_peers, run_facts
from .spans import Objective
from .suites import read_rows

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


def evaluate_glue(
    models: PreTrainedModel | Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    protocol: str = "babylm2025",
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    max_train: int | None = None,
    max_valid: int | None = None,
    epochs: int | None = None,
    objective: Objective | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Fine-tune each model on each task and score it on the task's validation file.

    folder: ``<task>.train.jsonl`` and ``<task>.valid.jsonl``; a task without its files is listed under "skipped"
    with the reason and left out of the score.
    protocol: a key of `GLUE_PROTOCOLS`. tasks: some of its columns (None: all).
    seeds: one training a seed; None: the protocol's own seed and the two after it.
    max_train, max_valid: the first so many rows only; epochs: fewer or more; for trials, recorded in the settings.

    Returns the evaluation document; a task's "accuracy" is its reported metric (accuracy, F1 or Matthews
    correlation, named in "metric") in percent, the mean over `seeds` of the best epoch on validation; "score" is the
    unweighted mean over tasks. A single model is member "model", peers are "peer_1" ...
    Raises UserError for an unknown name, a bad row, or when no task has its files.
    """
    rules = _get_protocol(protocol)
    chosen = tuple(tasks) if tasks is not None else rules.tasks
    for task in chosen:
        if task not in rules.tasks:
            raise UserError(f"{protocol} has no task {task!r}; expected some of {', '.join(rules.tasks)}")
    seeds = tuple(seeds) if seeds is not None else tuple(rules.seed + i for i in range(3))
    if not seeds:
        raise UserError("seeds is empty; expected at least one seed")
    single = isinstance(models, PreTrainedModel)
    peers = [models] if isinstance(models, PreTrainedModel) else list(models)
    objective = objective or objective_of(peers[0])
    folder = Path(folder)
    skipped = {task: reason for task in chosen if (reason := _missing(task, folder))}
    present = [task for task in chosen if task not in skipped]
    if not present:
        raise UserError(
            f"{folder} has the files of no task; expected <task>.train.jsonl and <task>.valid.jsonl for some of "
            f"{', '.join(chosen)}; point evaluate.pairs at the (Super)GLUE folder"
        )
    data = {name: _read(folder / name, max_train, max_valid) for name in sorted(_files(present))}
    trainings = list(dict.fromkeys(_trained(task) for task in present))  # mnli-mm is scored by the model of mnli
    progress = tqdm(total=len(peers) * len(trainings), desc="glue", unit="task", disable=None, leave=False)
    members = []
    for index, model in enumerate(peers, 1):
        rows: dict[str, dict[str, Any]] = {}
        for task in trainings:
            scored = [name for name in present if _trained(name) == task]
            recipe = replace(rules.recipe, **rules.overrides.get(task, {}))
            recipe = recipe if epochs is None else replace(recipe, epochs=epochs)
            rows |= _task_rows(model, tokenizer, task, scored, data, recipe, rules, seeds, objective, device)
            progress.update()
        ordered = [rows[task] for task in present]
        members.append(
            {
                "member": "model" if single else f"peer_{index}",
                "score": float(np.mean([row["accuracy"] for row in ordered])),
                "ties": 0.0,
                "n": sum(row["n"] for row in ordered),
                "paradigms": ordered,
            }
        )
    progress.close()
    recipe_document = asdict(rules.recipe)
    recipe_document["max_length"] = min(rules.recipe.max_length, *(max_length(model) for model in peers))
    return {
        "suite": "glue",
        "protocol": protocol,
        "settings": {
            "objective": objective,
            "recipe": recipe_document,
            "overrides": rules.overrides,
            "epochs": epochs,
            "seeds": list(seeds),
            "max_train": max_train,
            "max_valid": max_valid,
            "scored_epoch": "best on the validation file, which is also the file that is scored",
        },
        "data_hash": _data_hash(folder, present),
        "skipped": [{"task": task, "reason": reason} for task, reason in skipped.items()],
        "members": members,
    }


def evaluate_run_glue(run_folder: Path, folder: str | Path, **options: Any) -> dict[str, Any]:
    """`evaluate_glue` of a finished run's peers, with its options; written into the run folder."""
    models, tokenizer = load_peers(run_folder)
    document = evaluate_glue(models, tokenizer, folder, objective=run_facts(run_folder)[1], **options)
    paths.write_json(paths.evaluation(run_folder, "glue", document["protocol"]), document)
    return document


def metrics(labels: np.ndarray, predictions: np.ndarray, num_labels: int) -> dict[Metric, float]:
    """Accuracy, Matthews correlation and, of two classes, F1 of class 1; as fractions."""
    values: dict[Metric, float] = {
        "accuracy": float(accuracy_score(labels, predictions)),
        "mcc": float(matthews_corrcoef(labels, predictions)),
    }
    if num_labels == 2:
        values["f1"] = float(f1_score(labels, predictions, zero_division=0.0))
    return values


def _task_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    scored: Sequence[str],
    data: dict[str, list[Example]],
    recipe: Recipe,
    rules: GlueProtocol,
    seeds: Sequence[int],
    objective: Objective,
    device: str | None,
) -> dict[str, dict[str, Any]]:
    """Rows of the result for the columns `scored`, all from trainings on `task`."""
    select_by: Metric = "f1" if task in rules.f1_selects else "accuracy"
    num_labels = TASKS[task].num_labels
    valid = {name: data[f"{name}.valid.jsonl"] for name in dict.fromkeys([task, *scored])}
    trained = [
        finetune(
            model,
            tokenizer,
            data[f"{task}.train.jsonl"],
            valid,
            objective=objective,
            num_labels=num_labels,
            recipe=recipe,
            seed=seed,
            select=lambda labels, predictions: metrics(labels, predictions, num_labels)[select_by],
            device=device,
        )
        for seed in seeds
    ]
    rows = {}
    for name in scored:
        labels = np.array([example.label for example in valid[name]])
        per_seed = [metrics(labels, result.predictions[name], num_labels) for result in trained]
        reported = [100 * values[TASKS[name].metric] for values in per_seed]
        rows[name] = {
            "paradigm": name,
            "phenomenon": name,
            "field": "glue",
            "accuracy": float(np.mean(reported)),
            "ties": 0.0,
            "n": len(labels),
            "metric": TASKS[name].metric,
            "selected_by": select_by,
            "per_seed": reported,
            "all_metrics": {key: 100 * float(np.mean([v[key] for v in per_seed])) for key in per_seed[0]},
            "majority_class": 100 * float(np.bincount(labels).max() / len(labels)),
            "best_epochs": [result.best_epoch for result in trained],
        }
    return rows


def _get_protocol(name: str) -> GlueProtocol:
    if name not in GLUE_PROTOCOLS:
        raise UserError(f"there is no GLUE protocol {name!r}; expected one of {', '.join(GLUE_PROTOCOLS)}")
    return GLUE_PROTOCOLS[name]


def _trained(task: str) -> str:
    return "mnli" if task == "mnli-mm" else task


def _needed(task: str) -> list[str]:
    """The files that a column is trained, selected and scored on."""
    source = _trained(task)
    return list(dict.fromkeys([f"{source}.train.jsonl", f"{source}.valid.jsonl", f"{task}.valid.jsonl"]))


def _files(tasks: Sequence[str]) -> set[str]:
    return {name for task in tasks for name in _needed(task)}


def _missing(task: str, folder: Path) -> str:
    """Why a task cannot run, or ""."""
    absent = [name for name in _needed(task) if not (folder / name).is_file()]
    return f"no {' and no '.join(absent)} in {folder.name}" if absent else ""


def _read(file: Path, max_train: int | None, max_valid: int | None) -> list[Example]:
    task = TASKS[file.name.split(".")[0]]
    limit = max_train if file.name.endswith(".train.jsonl") else max_valid
    examples: list[Example] = []
    for number, row in read_rows(file):
        if limit is not None and len(examples) == limit:
            break
        label = row.get("label")
        try:
            first = task.first.format(**row)
            second = None if task.second is None else task.second.format(**row)
        except KeyError as key:
            raise UserError(f"{file.name} line {number} has no key {key}; expected it in every row; add it") from None
        if type(label) is not int or not 0 <= label < task.num_labels:
            raise UserError(
                f"{file.name} line {number} has label {label!r}; expected a whole number from 0 to "
                f"{task.num_labels - 1}; rows without a public label cannot be used"
            )
        examples.append(Example(first, second, label))
    if not examples:
        raise UserError(f"{file.name} has no rows; expected one example a line; fetch it again")
    return examples


def _data_hash(folder: Path, tasks: Sequence[str]) -> str:
    total = hashlib.sha256()
    for name in sorted(_files(tasks)):
        total.update(f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
