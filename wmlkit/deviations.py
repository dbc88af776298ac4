"""docs/deviations.md: the words are written by hand, the numbers between its marks come from the tables T9.

``wmlkit report RUNS --reference`` writes them, as it does docs/results.md: what stands between
``<!-- measured: KEY -->`` and ``<!-- end -->`` is the effect of the case KEY of T9, of ``search:CASE`` of T9_search or
of ``scoring:RULE`` of T9_scoring; that of KEY ``repairs`` is the whole of T9_repairs. ``released`` is the latter in
short, for README.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from . import paths
from .environment import shortened
from .errors import UserError
from .replay.released import IN_TURN
from .replay.tables import CONTROLS

PRESET = "nursery"  # whose reference run the page quotes
TABLES = ("T9", "T9_repairs", "T9_scoring", "T9_search")
LARGEST = 3
MARK = re.compile(r"( *)<!-- measured: (\S+) -->.*?<!-- end -->", re.DOTALL)
FORMATS: dict[str, tuple[str, str]] = {
    "distinct_ids": ("different ids", "{:.0f}"),
    "train_ce": ("loss on what is read", "{:.2f}"),
    "updates_with_lr": ("updates with a learning rate above 0", "{:.0f}"),
    "kl_to_ce": ("KL terms over CE terms", "{:.1e}"),
    "correction": ("correction over explicit term", "{:.1e}"),
    "weight_ratio": ("largest weight over smallest", "{:.4f}"),
    "teacher_ce": ("loss of the teacher on the same text", "{:.2f}"),
}
# What a defect is meant to change, beside loss and accuracy
ALSO = {
    "digit_pairs": ("distinct_ids", "train_ce"),
    "step_per_epoch": ("updates_with_lr",),
    "batchmean": ("kl_to_ce",),
    "all_positions": ("kl_to_ce",),
    "attached_targets": ("kl_to_ce",),
    "peer_weighted_ce": ("kl_to_ce",),
    "weighted_ce": ("weight_ratio",),
    "cut_gradient": ("correction", "weight_ratio"),
    "wrong_sign": ("weight_ratio",),
    "scaled_steps": ("weight_ratio",),
    "clamped": ("weight_ratio",),
    "dev_text": ("weight_ratio",),
    "all": ("distinct_ids", "updates_with_lr", "correction"),
    "foreign_teacher": ("teacher_ce",),
    "vanilla": ("teacher_ce",),
    "vanilla_all": ("distinct_ids", "updates_with_lr"),
}


def fill_marks(document: Path, folder: Path) -> Path:
    """Fill the marks of `document` from ``tables/`` below `folder`.

    Raises UserError for a mark whose case the tables do not have.
    """
    sentences = measured(folder)

    def filled(mark: re.Match[str]) -> str:
        indent, key = mark.groups()
        if key not in sentences:
            raise UserError(
                f"{document} asks for the effect of {key!r}, which the tables of {folder} do not have; "
                "run notebook 07 or mend the mark"
            )
        text = textwrap.fill(sentences[key], 120, initial_indent=indent, subsequent_indent=indent)
        return f"{indent}<!-- measured: {key} -->\n{text}\n{indent}<!-- end -->"

    return paths.write_text(document, MARK.sub(filled, document.read_text(encoding="utf-8")))


def measured(folder: Path) -> dict[str, str]:
    """One sentence for each case of T9, T9_scoring and T9_search; `repairs` for T9_repairs, `released` for that in
    short, `T9` for what made them.

    Raises UserError where a table is missing.
    """
    tables = paths.tables(folder)
    missing = [name for name in TABLES if not (tables / f"{name}.csv").is_file()]
    if missing:
        raise UserError(f"{tables} has no {missing[0]}.csv; expected what notebook 07 saves; run it there first")
    replay = pd.read_csv(tables / "T9.csv").set_index("case")
    sentences = {str(case): _effect(str(case), row, replay) for case, row in replay.iterrows()}
    sentences |= {f"scoring:{key}": text for key, text in _scoring(pd.read_csv(tables / "T9_scoring.csv")).items()}
    sentences |= {f"search:{key}": text for key, text in _search(pd.read_csv(tables / "T9_search.csv")).items()}
    repairs = pd.read_csv(tables / "T9_repairs.csv")
    sentences["repairs"] = _repairs(repairs)
    sentences = {key: f"*Measured:* {text}" for key, text in sentences.items()}
    sentences["released"] = _in_short(repairs)
    note = paths.read_json(tables / "provenance.json")["T9"]
    none, seeds = replay.loc["none"], ", ".join(str(seed) for seed in note["seeds"])
    sentences["T9"] = (
        f"Without a switch the loss on dev text falls from {none['untrained_ce']:.2f} to {_mean(none, 'dev_ce')} nats "
        f"in {none['updates']:.0f} updates, and {_mean(none, 'accuracy', '{:.0f}')} % of the pairs are right. "
        f"Seeds: {seeds}. Made by `{note['command']}` at commit {shortened(note['commit'])} on {note['device']}."
    )
    return sentences


def _mean(row: pd.Series, name: str, form: str = "{:.2f}") -> str:
    interval = (
        "" if pd.isna(row[f"{name}_low"]) else f" [{form}, {form}]".format(row[f"{name}_low"], row[f"{name}_high"])
    )
    return form.format(row[name]) + interval


def _effect(case: str, row: pd.Series, replay: pd.DataFrame) -> str:
    control = CONTROLS[row["mode"]]
    parts = [f"dev loss {_mean(row, 'dev_ce')} nats"]
    if case != control:
        parts.append(f"{_mean(row, 'change', '{:+z.2f}')} against `{control}`")
    parts.append(f"{_mean(row, 'accuracy', '{:.0f}')} % of the pairs right")
    if case != control:
        parts[-1] += f" (`{control}`: {replay.loc[control, 'accuracy']:.0f})"
    for name in ALSO.get(case, ()):
        words, form = FORMATS[name]
        without = replay.loc["distill" if name == "teacher_ce" else "none", name]
        parts.append(f"{words} {_number(form, row[name])} (without: {_number(form, without)})")
    return "; ".join(parts) + "."


def _number(form: str, value: Any) -> str:
    return "0" if value == 0 else form.format(value)


def _repairs(table: pd.DataFrame) -> str:
    """Dev loss, with its interval over seeds, and accuracy from row to row."""
    steps = [
        f"{str(row['case']).removeprefix('repaired_')} {_mean(row, 'dev_ce')} ({row['accuracy']:.0f} %)"
        for _, row in table.iterrows()
    ]
    return f"dev loss in nats (pairs right) with all defects, and after each repair: {', '.join(steps)}."


def _in_short(table: pd.DataFrame) -> str:
    """Where the loop ends with all defects and with none, and the LARGEST steps on the way."""
    ends = [
        f"{_mean(row, 'dev_ce')} nats and {_mean(row, 'accuracy', '{:.0f}')} % of the pairs right"
        for _, row in table.iloc[[0, -1]].iterrows()
    ]
    steps = table.iloc[1:].set_index("case")["change"].rename({"none": f"repaired_{IN_TURN[-1]}"}).sort_values()
    largest, others = steps.iloc[:LARGEST], steps.iloc[LARGEST:]
    named = ", ".join(f"{str(case).removeprefix('repaired_')} {change:+.2f}" for case, change in largest.items())
    return (
        f"Replayed on the nursery with all its defects it ends at a dev loss of {ends[0]} (models that never trained: "
        f"{table['untrained_ce'].iloc[0]:.2f} nats), with none at {ends[1]}. Repaired in turn, the largest changes are "
        f"{named}; no other repair changes it by more than {math.ceil(100 * others.abs().max()) / 100:.2f}."
    )


def _scoring(table: pd.DataFrame) -> dict[str, str]:
    names: dict[str, Callable[[pd.DataFrame], str]] = {
        "pairs": lambda own: f"on the {own['n'].iloc[0]} pairs",
        "crossed": lambda own: f"on {own['n'].iloc[0]} EWoK-shaped items made from them",
    }
    plain = table[table["case"] == "none"].set_index(["items", "scorer"])["accuracy"]
    sentences = {}
    for case, rows in table.groupby("case", sort=False):
        parts = []
        for kind, own in rows.groupby("items", sort=False):
            scores = [
                f"{row['scorer']} {row['accuracy']:.1f}"
                + ("" if case == "none" else f" (without: {plain[kind, row['scorer']]:.1f})")
                for _, row in own.iterrows()
            ]
            parts.append(f"{names[str(kind)](own)}, percent right (macro over paradigms): {', '.join(scores)}")
        sentences[str(case)] = "; ".join(parts) + "."
    return sentences


def _search(table: pd.DataFrame) -> dict[str, str]:
    sentences = {}
    for case, rows in table.groupby("case", sort=False):
        shapes = ", ".join(
            f"{row['num_layers']} × {row['hidden_size']} "
            f"({row['counted'] / 1e6:.1f} million, {row['error_percent']:+.1f} %)"
            for _, row in rows.iterrows()
        )
        count = rows["evaluations"].iloc[0]
        exact = rows["method"].iloc[0] == "exact"
        method = f"enumeration of {count} sizes" if exact else f"Bayesian search in {count} evaluations"
        sentences[str(case)] = f"layers × width by {method}: {shapes}."
    return sentences
