"""How the finished runs of a folder differ in what shapes them, arm, peers and seed apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .config import Config, load_preset, preset_names
from .identity import (
    FILES,
    OF_EACH_RUN,
    OF_KL,
    OF_MASKS,
    OF_OUTER,
    OF_PEERS,
    PLACES,
    by_name,
    digest,
    flat,
    idle_keys,
)  # fmt: skip
from .run_files import Run
from .shapes import SHAPE

_TEACHER_KEYS = (
    "mutual.teacher", "mutual.teacher_size", "mutual.teacher_steps", "mutual.teacher_within_budget",
    "mutual.frozen_teacher",
)  # fmt: skip
_NOT_OF_EVERY_RUN = (*_TEACHER_KEYS, *OF_KL, *OF_PEERS, *OF_OUTER, *(f"train.{key}" for key in OF_MASKS))
MADE = ("data.hash", "precision")  # of `made_with`
OTHER_TOKENS = ("data.hash", "train.mask_ratio", "model.objective")  # settings of `of_other_tokens`
OF_OTHER_TOKENS = "loss of other tokens"  # what tables say of it


def settings_apart(runs: Sequence[Run]) -> list[str]:
    """For each run what it has otherwise than the main ones, ``"mutual.alpha=0.9 train.steps=200"``; "" for those.

    The main settings are those of the preset as shipped where a run used it, else those that most runs share. What
    was read from files counts by content, as in a run's identity (`identity.shaping`), not by where the files lay.
    """
    if not runs:
        return []
    settings = _settings(runs)
    main = _main_settings(runs, settings)
    return [difference(own, main) for own in settings]


def beside_main(runs: Sequence[Run], config: Config, data_hash: str = "") -> str:
    """What new runs of `config` would have otherwise than the main ones among `runs`, in the words of `settings_apart`;
    "" where nothing, or without runs. What one of the main runs reads counts. data_hash: of the prepared text; without
    it texts count by their names, as a given teacher and a saved search do: neither is read for it."""
    main = [run for run in runs if not run.setting]
    if not main:
        return ""
    there = settings_read(main)
    own = {key: value for key, value in all_settings(config.resolved()).items() if key in there}
    corpora = own["data.corpus"], there["data.corpus"]
    for settings in (own, there):
        for key in (*OF_EACH_RUN, *PLACES):
            settings.pop(key, None)
        settings |= {key: by_name(settings[key]) for key in FILES if key in settings}
    if data_hash:
        own["data.hash"], there["data.hash"] = (str(of)[:8] for of in (data_hash, main[0].data["hash"]))
    else:
        own["data.corpus"], there["data.corpus"] = (by_name(corpus) for corpus in corpora)
    return difference(own, there)


def settings_read(runs: Sequence[Run]) -> dict[str, Any]:
    """``{"train.lr": ..., ...}``: each setting that one of `runs` reads, as the first that does has it: what an arm
    does not read may stand there with any value."""
    read: dict[str, Any] = {}
    for run in runs:
        idle = idle_keys(run.config)
        read = {key: value for key, value in all_settings(run.config).items() if key not in idle} | read
    return read


def difference(settings: Mapping[str, Any], main: Mapping[str, Any]) -> str:
    """``"mutual.alpha=0.9 train.steps=200"``: what differs from `main`."""
    missing = object()
    changed = [key for key in settings if settings[key] != main.get(key, missing)]
    return " ".join(f"{key}={json.dumps(settings[key], ensure_ascii=False)}" for key in changed)


def of_other_tokens(setting: str) -> bool:
    """Whether a loss of this `setting` (`settings_apart`) is of other tokens than the main one's: of other text, of
    more or fewer masks, of the other objective. Such losses do not compare; accuracies on the same pairs do."""
    return any(word.partition("=")[0] in OTHER_TOKENS for word in setting.split())


def most_common(values: Sequence[Any]) -> Any:
    """The JSON value that comes most often; of several such the first as text."""
    counts = Counter(json.dumps(value, sort_keys=True) for value in values)
    most = max(counts.values())
    return json.loads(min(text for text, count in counts.items() if count == most))


def _settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """``{"train.lr": ..., ...}`` a run: what shapes it besides arm, peers and seed; the data's content and the
    precision that it was trained in included."""
    saved, teachers, settings = _saved_searches(runs), _given_teachers(runs), []
    for run in runs:
        own, name = all_settings(run.config), run.folder.name
        for key in (*OF_EACH_RUN, *PLACES, *idle_keys(run.config)):
            own.pop(key, None)
        if name in saved:
            own["search.saved"] = saved[name]
        if name in teachers and "mutual.teacher" in own:
            own["mutual.teacher"] = teachers[name]
        settings.append({**own, **made_with(run)})
    return settings


def made_with(run: Run) -> dict[str, Any]:
    """What a run was made with and no configuration says: the content of its text, and the precision that "auto" came
    to, as arms are compared at equal precision alone."""
    return {"data.hash": str(run.data["hash"])[:8], "precision": run.environment["precision"]}


def _saved_searches(runs: Sequence[Run]) -> dict[str, str]:
    """Of runs that took their shapes from a file, by name: a hash of those shapes.

    A run has one shape a peer, the file's first ones; with fewer peers it counts as of a file that goes on as the
    longest list does which begins with its own.
    """
    taken = {
        run.folder.name: [[student.get(key) for key in SHAPE] for student in run.students]
        for run in runs
        if run.config["search"].get("saved") is not None
    }
    longest = sorted(taken.values(), key=len, reverse=True)
    return {name: digest(next(one for one in longest if one[: len(own)] == own))[:8] for name, own in taken.items()}


def _given_teachers(runs: Sequence[Run]) -> dict[str, str]:
    """Of runs with a given teacher, by name: the hash of that model, as models of one name need not be the same."""
    return {run.folder.name: str(run.teacher["hash"])[:8] for run in runs if "hash" in run.teacher}


def all_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """``{"train.lr": ..., ...}`` of a run's configuration. A run that is older than a setting has its default: what was
    new was off (`identity.run_hash`)."""
    return flat(Config(preset="").resolved()) | flat(config)


def _main_settings(runs: Sequence[Run], settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Those of the preset as shipped where a run used it, else those that most runs share.

    Not all runs have settings of a teacher or of masks: those are looked up one by one, among the runs that do and are
    like the main ones so far, so that some run has all of them.
    """
    plain = [{key: value for key, value in own.items() if key not in _NOT_OF_EVERY_RUN} for own in settings]
    preset, shipped = runs[0].config.get("preset"), {}
    if preset in preset_names():
        shipped = flat(load_preset(str(preset)).resolved())
    as_shipped = [
        own
        for run, own in zip(runs, plain, strict=True)
        if all(own[key] == shipped.get(key) for key in own if key not in MADE)
        # its own text, not any that is shaped alike
        and all(all_settings(run.config)[key] == shipped.get(key) for key in PLACES)
    ]
    main = dict(most_common(as_shipped if shipped and as_shipped else plain))
    alike = [own for own in settings if not difference(own, {**own, **main})]
    for key in _NOT_OF_EVERY_RUN:
        values = [own[key] for own in alike if key in own] or [own[key] for own in settings if key in own]
        if values:
            main[key] = shipped[key] if shipped and shipped[key] in values else most_common(values)
            alike = [own for own in alike if own.get(key, main[key]) == main[key]]
    return main
