"""Which evaluations of a folder may be averaged and paired: those with the same settings, of the same items."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .run_files import Run
from .run_settings import difference, most_common
from .runs import evaluations, read_runs

OTHERWISE = "evaluated otherwise than most runs; `wmlkit evaluate RUN --force` evaluates again"

_OF_THE_RUN = ("ensemble_weights", "dtype", "objective")  # what a run learned or is; no choice of its evaluation
_BY_OBJECTIVE = ("reduction", "ordering_fault")  # which a protocol has one of for each objective


def read_evaluations(folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The evaluation documents of a folder's runs, each behind its `shared_columns`."""
    found = [(run, document) for run in read_runs(folder) for document in evaluations(run)]
    return list(zip(shared_columns(found), (document for _, document in found), strict=True))


def shared_columns(found: Sequence[tuple[Run, Mapping[str, Any]]], note: str = OTHERWISE) -> list[dict[str, Any]]:
    """For each evaluation document the columns that all its rows share: those of its run, suite and protocol.

    An evaluation with other settings or of other items than most (`told_apart`) says so in its `setting`, which all
    tables group and pair by, and has `note` too: it is a row by itself and in no mean or difference of the others.
    """
    # Not an error: one suite that was in part scored anew would leave the folder without any table, answer and report
    rows = []
    for (run, document), otherwise in zip(found, told_apart(found), strict=True):
        shared = {**run.shared, "suite": document["suite"], "protocol": document["protocol"]}
        if otherwise:
            shared["setting"] = f"{run.setting} {otherwise}".strip()
            shared["note"] = ", ".join(filter(None, (run.note, note)))
        rows.append(shared)
    return rows


def trial_limits(settings: Mapping[str, Any]) -> str:
    """Fewer rows or other epochs of fine-tuning than its protocol has, ``max_train 10, epochs 1``; "" as a rule."""
    return ", ".join(f"{name} {settings[name]}" for name in ("max_train", "max_valid", "epochs") if settings.get(name))


def told_apart(found: Sequence[tuple[Run, Mapping[str, Any]]], across_settings: bool = False) -> list[str]:
    """For each evaluation what it has otherwise than most, ``evaluation.ties="first"``; "" for those that are alike.

    Most: of the same suite and protocol and, unless `across_settings`, of runs of the same setting, because only they
    are averaged and paired.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, (run, document) in enumerate(found):
        of_one = (str(document["suite"]), str(document["protocol"]), "" if across_settings else run.setting)
        groups.setdefault(of_one, []).append(place)
    told = [""] * len(found)
    for places in groups.values():
        settings = [_settings(*found[place]) for place in places]
        main = _main(settings)
        for place, own in zip(places, settings, strict=True):
            told[place] = difference(own, main)
    return told


def _main(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that the most agree with in all that both have, and what those lack as most of the others have it.

    They are those of an evaluation that there is, so not all are called others.
    """
    distinct = {json.dumps(own, sort_keys=True): dict(own) for own in settings}
    agreeing = {
        text: sum(all(other[key] == own[key] for key in own.keys() & other.keys()) for other in settings)
        for text, own in distinct.items()
    }
    main = distinct[min(distinct, key=lambda text: (-agreeing[text], -len(distinct[text]), text))]
    for key in {key for own in settings for key in own} - set(main):
        main[key] = most_common([own[key] for own in settings if key in own])
    return main


def _settings(run: Run, document: Mapping[str, Any]) -> dict[str, Any]:
    """What a score depends on beside the run: ``{"evaluation.ties": "half", "evaluation.data_hash": ..., ...}``."""
    settings = {key: value for key, value in document["settings"].items() if key not in _OF_THE_RUN}
    for key in _BY_OBJECTIVE:
        if key in settings:
            settings[f"{run.config['model']['objective']}.{key}"] = settings.pop(key)
    if isinstance(settings.get("recipe"), dict):  # of fine-tuning; how long the rows are follows from the model
        recipe = settings.pop("recipe")
        settings |= {f"recipe.{key}": value for key, value in recipe.items() if key != "max_length"}
    settings["data_hash"] = str(document["data_hash"])[:8]
    return {f"evaluation.{key}": value for key, value in settings.items()}
