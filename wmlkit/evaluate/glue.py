"""(Super)GLUE as the BabyLM pipelines of 2024 and 2025 run it: rows, trainings, metrics, one document of results.

Both pipelines choose the best epoch on the validation file and report that epoch's score on the same file, so the
numbers are optimistic; they are kept this way to be comparable, and every document says so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import paths
from ..device import best_device
from ..errors import UserError
from ..run_files import known_result, other_settings, read_object, run_facts
from ..settings import Objective
from .finetune import Example, Recipe, finetune, window
from .glue_protocols import TASKS, GlueProtocol, Metric, get_glue_protocol
from .minimal_pairs import objective_of
from .pairs import load_peers
from .suites import read_rows


@dataclass(frozen=True)
class GlueOptions:
    """What a trial of (Super)GLUE changes, recorded in the result's settings; None: as the protocol has it.

    tasks: some of its columns. seeds: one training a seed; None: the protocol's own seed and the two after it.
    max_train, max_valid: the first so many rows only. epochs: fewer or more. Repeated tasks and seeds count once.
    """

    tasks: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    max_train: int | None = None
    max_valid: int | None = None
    epochs: int | None = None

    @classmethod
    def of(
        cls, tasks: str, seeds: str, max_train: int | None, max_valid: int | None, epochs: int | None
    ) -> GlueOptions:
        """From comma-separated texts, empty for the protocol's own. Raises UserError for seeds that are no numbers."""
        numbers = [part.strip() for part in seeds.split(",") if part.strip()]
        if not all(part.isdecimal() and int(part) < 2**32 for part in numbers):
            raise UserError(f"--seeds got {seeds!r}; expected whole numbers with commas, below 2^32, for example 12,13")
        names = [part.strip() for part in tasks.split(",") if part.strip()]
        return cls(names or None, [int(part) for part in numbers] or None, max_train, max_valid, epochs)


AS_THE_PROTOCOL = GlueOptions()


def evaluate_glue(
    models: PreTrainedModel | Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    options: GlueOptions = AS_THE_PROTOCOL,
    *,
    protocol: str = "babylm2025",
    objective: Objective | None = None,
    device: str | torch.device | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Fine-tune each model on each task and score it on the task's validation file.

    folder: ``<task>.train.jsonl`` and ``<task>.valid.jsonl``; a task without its files is listed under "skipped"
    with the reason and left out of the score. protocol: a key of `GLUE_PROTOCOLS`.

    Returns the evaluation document; a task's "score" is its reported metric (accuracy, F1 or Matthews correlation,
    named in "metric") in percent, the mean over the seeds of the best epoch on validation, and a member's the
    unweighted mean over tasks. A single model is member "model", peers are "peer_1" ..., or what `names` calls them.
    Raises UserError for an unknown name, a bad row, or when no task has its files.
    """
    single = isinstance(models, PreTrainedModel)
    peers = [models] if isinstance(models, PreTrainedModel) else list(models)
    names = names or (["model"] if single else [f"peer_{index}" for index in range(1, len(peers) + 1)])
    plan = _plan(peers, tokenizer, folder, protocol, options, objective)
    present, rules, folder = plan.present, plan.rules, Path(folder)
    data = {name: _read(folder / name, options.max_train, options.max_valid) for name in sorted(_files(present))}
    trainings = list(dict.fromkeys(_trained(task) for task in present))  # mnli-mm is scored by the model of mnli
    progress = tqdm(total=len(peers) * len(trainings), desc="glue", unit="task", disable=None, leave=False)
    members = []
    for name, model in zip(names, peers, strict=True):
        rows: dict[str, dict[str, Any]] = {}
        for task in trainings:
            progress.set_postfix_str(task)
            scored = [column for column in present if _trained(column) == task]
            recipe = replace(rules.recipe, **rules.overrides.get(task, {}))
            recipe = recipe if options.epochs is None else replace(recipe, epochs=options.epochs)
            rows |= _task_rows(model, tokenizer, task, scored, data, recipe, plan, device)
            progress.update()
        ordered = [rows[task] for task in present]
        members.append(
            {
                "member": name,
                "score": float(np.mean([row["score"] for row in ordered])),
                "ties": 0.0,
                "n": sum(row["n"] for row in ordered),
                "paradigms": ordered,
            }
        )
    progress.close()
    return {
        "suite": "glue",
        "protocol": protocol,
        "settings": plan.settings,
        "data_hash": plan.data_hash,
        "skipped": plan.skipped,
        "members": members,
    }


def evaluate_run_glue(
    run_folder: Path,
    folder: str | Path,
    options: GlueOptions = AS_THE_PROTOCOL,
    *,
    protocol: str = "babylm2025",
    best: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """`evaluate_glue` of a finished run's peers, written into the run folder.

    A run that has this document already, with the same settings and data, is not fine-tuned again unless `force`.
    best: only the peer that the held-out text chose, at a fraction of the time.
    Raises UserError where the document is there with other settings or data and `force` is off.
    """
    models, tokenizer = load_peers(run_folder)
    names = [f"peer_{index}" for index in range(1, len(models) + 1)]
    if best:
        chosen = int(read_object(run_folder / "done.json", ("best_peer",))["best_peer"]) - 1
        models, names = [models[chosen]], [names[chosen]]
    objective = run_facts(run_folder)[1]
    path = paths.evaluation(run_folder, "glue", protocol)
    known = None if force else known_result(path, ("settings", "data_hash", "members"))
    if known is not None:
        plan = _plan(models, tokenizer, folder, protocol, options, objective)
        if (known["settings"], known["data_hash"]) != (plan.settings, plan.data_hash):
            raise other_settings(path)
        if set(names) <= {member["member"] for member in known["members"]}:
            return known
    document = evaluate_glue(
        models,
        tokenizer,
        folder,
        options,
        protocol=protocol,
        objective=objective,
        device=best_device(),
        names=names,
    )
    paths.write_json(path, document)
    return document


@dataclass(frozen=True)
class _Plan:
    """What is going to be done: tasks whose files are present, those that are skipped, and all that shapes scores."""

    rules: GlueProtocol
    objective: Objective
    present: list[str]
    skipped: list[dict[str, str]]
    settings: dict[str, Any]
    data_hash: str


def _plan(
    peers: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    protocol: str,
    options: GlueOptions,
    objective: Objective | None,
) -> _Plan:
    rules = get_glue_protocol(protocol)
    chosen = tuple(dict.fromkeys(rules.tasks if options.tasks is None else options.tasks))
    for task in chosen:
        if task not in rules.tasks:
            raise UserError(f"{protocol} has no task {task!r}; expected some of {', '.join(rules.tasks)}")
    seeds = list(dict.fromkeys(range(rules.seed, rules.seed + 3) if options.seeds is None else options.seeds))
    if not seeds:
        raise UserError("seeds is empty; expected at least one seed")
    for name in ("max_train", "max_valid", "epochs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; expected at least 1, or nothing for all")
    objective = objective or objective_of(peers[0])
    folder = Path(folder)
    skipped = {task: reason for task in chosen if (reason := _missing(task, folder))}
    present = [task for task in chosen if task not in skipped]
    if not present:
        raise UserError(
            f"{folder} has the files of no task; expected <task>.train.jsonl and <task>.valid.jsonl for some of "
            f"{', '.join(chosen)}; point evaluate.pairs at the (Super)GLUE folder"
        )
    recipe = asdict(rules.recipe)
    recipe["max_length"] = min(window(rules.recipe, model, tokenizer) for model in peers)
    settings = {
        "objective": objective,
        "recipe": recipe,
        "overrides": rules.overrides,
        "epochs": options.epochs,
        "tasks": list(chosen),
        "seeds": seeds,
        "max_train": options.max_train,
        "max_valid": options.max_valid,
        "scored_epoch": "best on the validation file, which is also the file that is scored",
    }
    stored = sorted({str(model.dtype).removeprefix("torch.") for model in peers} - {"float32"})
    if stored:  # only then: results of float32 models that were stored before this was told stay the same ones
        settings["dtype"] = f"float32 copy of {' and '.join(stored)}"
    reasons = [{"task": task, "reason": reason} for task, reason in skipped.items()]
    return _Plan(rules, objective, present, reasons, settings, paths.files_sha256(folder, sorted(_files(present))))


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
    plan: _Plan,
    device: str | torch.device | None,
) -> dict[str, dict[str, Any]]:
    """Rows of the result for the columns `scored`, all from trainings on `task`."""
    select_by: Metric = "f1" if task in plan.rules.f1_selects else "accuracy"
    num_labels = TASKS[task].num_labels
    valid = {name: data[f"{name}.valid.jsonl"] for name in dict.fromkeys([task, *scored])}
    began = time.perf_counter()
    trained = [
        finetune(
            model,
            tokenizer,
            data[f"{task}.train.jsonl"],
            valid,
            objective=plan.objective,
            num_labels=num_labels,
            recipe=recipe,
            seed=seed,
            select=lambda labels, predictions: metrics(labels, predictions, num_labels)[select_by],
            device=device,
        )
        for seed in plan.settings["seeds"]
    ]
    seconds = time.perf_counter() - began
    rows = {}
    for name in scored:
        labels = np.array([example.label for example in valid[name]])
        per_seed = [metrics(labels, result.predictions[name], num_labels) for result in trained]
        reported = [100 * values[TASKS[name].metric] for values in per_seed]
        rows[name] = {
            "paradigm": name,
            "phenomenon": name,
            "field": "glue",
            "score": float(np.mean(reported)),
            "ties": 0.0,
            "n": len(labels),
            "metric": TASKS[name].metric,
            "selected_by": select_by,
            "per_seed": reported,
            "all_metrics": {key: 100 * float(np.mean([v[key] for v in per_seed])) for key in per_seed[0]},
            "majority_class": 100 * float(np.bincount(labels).max() / len(labels)),
            "best_epochs": [result.best_epoch for result in trained],
            "seconds": seconds if name == scored[0] else 0.0,  # a shared training counts once
        }
    return rows


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
        row = {key: value for key, value in row.items() if value is not None}  # null would be read as "None"
        label = row.get("label")
        try:
            first = task.first.format(**row)
            second = None if task.second is None else task.second.format(**row)
        except KeyError as key:
            raise UserError(
                f"{file.name} line {number} has no value for {key}; expected one in every row; add it"
            ) from None
        if type(label) is not int or not 0 <= label < task.num_labels:
            raise UserError(
                f"{file.name} line {number} has label {label!r}; expected a whole number from 0 to "
                f"{task.num_labels - 1}; rows without a public label cannot be used"
            )
        examples.append(Example(first, second, label))
    if not examples:
        raise UserError(f"{file.name} has no rows; expected one example a line; fetch it again")
    return examples
