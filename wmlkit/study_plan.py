"""What a study consists of: its runs (arms x peers x seeds, or ablations x seeds), and how they are shared out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pandas as pd

from .ablations import ablation_base, ablation_name, changes, check_changes
from .config import Config
from .errors import UserError
from .settings import Arm

CLOSELY: tuple[Arm, ...] = ("wml", "dml", "independent", "distill")  # in what order an arm is chosen to be shown
Part = Literal["runs", "ablations"]  # of a study: the arms of ``[study]``, or what ``[ablations]`` lists
_INSTEAD = {"mutual.arm": "study.runs", "mutual.num_peers": "study.runs", "train.seed": "study.seeds"}


def plan(config: Config, part: Part = "runs") -> list[Config]:
    """One configuration a run, seeds outermost, so that an interrupted study has whole seeds first."""
    if part == "ablations":
        base, runs = ablation_base(config), []
        check_changes(config)
        for seed in config.ablations.seeds:
            for own in ({}, *config.ablations.settings):
                one = base.updated({**own, "train.seed": seed})
                if one not in runs:  # a setting that repeats the base, or another, is one run
                    runs.append(one)
        return runs
    return [
        config.updated({"mutual.arm": arm, "mutual.num_peers": peers, "train.seed": seed})
        for seed in dict.fromkeys(config.study.seeds)
        for arm, peers in dict.fromkeys(config.study.runs)
    ]


def unread(keys: Iterable[str], config: Config, part: Part = "runs") -> list[str]:
    """A sentence for each setting that is asked for and says nothing of a study's runs.

    >>> from wmlkit.config import load_preset
    >>> unread(["mutual.arm", "train.steps"], load_preset("smoke"))
    ['mutual.arm says nothing of these runs; study.runs does']
    """
    instead = _INSTEAD
    if part == "ablations":
        instead = dict.fromkeys(config.ablations.base, "ablations.base") | {"train.seed": "ablations.seeds"}
    return [f"{key} says nothing of these runs; {instead[key]} does" for key in keys if key in instead]


def foremost(config: Config) -> tuple[Arm, int]:
    """The arm whose runs are shown closely, and its largest number of peers in the study: `wml`, or the first there is.

    >>> from wmlkit.config import load_preset
    >>> foremost(load_preset("nursery", ['study.runs=[["independent", 2], ["dml", 2], ["dml", 3]]']))
    ('dml', 3)
    """
    runs = config.study.runs
    arm = next(arm for arm in CLOSELY if any(arm == one for one, _ in runs))
    return arm, max(peers for one, peers in runs if one == arm)


def plan_table(config: Config, part: Part = "runs") -> pd.DataFrame:
    """The plan as a table: one row a run, with its number from 1; for ablations with what each changes."""
    runs = plan(config, part)
    rows: list[dict[str, Any]] = [
        {"row": row, "arm": run.mutual.arm, "peers": run.mutual.num_peers, "seed": run.train.seed,
         "steps": run.train.steps}
        for row, run in enumerate(runs, start=1)
    ]  # fmt: skip
    if part == "ablations":
        base = ablation_base(config)
        for row, run in zip(rows, runs, strict=True):
            row["ablation"] = ablation_name(changes(run.resolved(), base))
    return pd.DataFrame(rows)


def work(run: Config) -> float:
    """About what a run costs, in steps of its base model, of N parameters: peer i has N / (i + 1) (docs/notation.md).

    A teacher, as large as the base model or as peer 1, costs a forward pass, a third of a step, and where it is trained
    for these runs its own steps.
    """
    mutual = run.mutual
    students = 1.0 if mutual.trains_base else sum(1 / (i + 1) for i in range(1, mutual.num_peers + 1))
    size = 1.0 if mutual.teacher_size == "base" else 1 / 2
    steps = run.train.steps
    taught = 0 if mutual.teacher is not None else mutual.teacher_steps or steps
    teacher = size * (steps / 3 + taught) if mutual.uses_teacher else 0.0
    return steps * students + teacher


def dearest_first(runs: Sequence[Config], whole_seeds: bool = True) -> list[int]:
    """In which order to share out `runs`, as positions from 0: the dearest first, so that those who take them end at
    about the same time; `whole_seeds`: seed after seed, so that a study that is stopped has whole seeds."""
    place = {seed: number for number, seed in enumerate(dict.fromkeys(run.train.seed for run in runs))}
    return sorted(range(len(runs)), key=lambda i: (whole_seeds and place[runs[i].train.seed], -work(runs[i]), i))


def shard(runs: Sequence[Config], index: int, count: int) -> list[int]:
    """Rows (from 1) of slice `index` (from 1) of `count`: each run goes to the slice with the least work so far, the
    dearest first, so that the slices end at about the same time.

    Where a seed has more runs than there are slices, one seed is shared out after the other, so that the slices are
    done with a seed at about the same time too, and a study that is stopped has whole seeds. Raises UserError where
    there is no such slice.
    """
    if not 1 <= index <= count:
        raise UserError(f"shard {index}/{count} does not exist; expected I/N with 1 <= I <= N, for example 1/2")
    count = min(count, len(runs))  # further slices are empty
    load = [0.0] * count
    slices: list[list[int]] = [[] for _ in range(count)]
    seeds = [run.train.seed for run in runs]
    whole_seeds = count < min((seeds.count(seed) for seed in seeds), default=0)
    for position in dearest_first(runs, whole_seeds):
        lightest = min(range(count), key=lambda s: load[s])
        slices[lightest].append(position)
        load[lightest] += work(runs[position])
    return [position + 1 for position in sorted(slices[index - 1])] if index <= count else []


def parse_shard(text: str) -> tuple[int, int]:
    """A slice of a study, and of how many.

    >>> parse_shard("2/8")
    (2, 8)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise UserError(f"--shard got {text!r}; expected I/N with 1 <= I <= N, for example 1/2")
    return int(match[1]), int(match[2])


def parse_rows(text: str) -> list[int]:
    """Rows of a plan.

    >>> parse_rows("2,8")
    [2, 8]
    """
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"--rows got {text!r}; expected row numbers of `wmlkit study plan`, for example 2,8")
    return [int(row) for row in text.split(",")]
