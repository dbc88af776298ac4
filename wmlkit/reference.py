"""The committed reference runs, one a preset: tables and figures below figures/, the results in docs/results.md, all of
them at a glance in README.md and, of the nursery, the effects of defects in docs/deviations.md and README.md.

No number there is typed by hand: `wmlkit report RUNS --reference` writes them from a preset's folder.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from . import deviations as deviations_of
from . import paths
from .environment import shortened, without_places
from .errors import UserError
from .readable import p_value
from .results import main_setting, most_peers_compared
from .runs import ARMS, COMPARED, distinct

DOCUMENTS = ("README.md", "docs/results.md", "docs/deviations.md")
WRITTEN = "written by `wmlkit report --reference`, do not edit"
GLANCE = (f"<!-- references at a glance: {WRITTEN} -->", "<!-- end of glance -->")
RESULTS = (f"<!-- results of {{preset}}: {WRITTEN} -->", "<!-- end of results -->")
LOSS = "Dev loss in nats a scored token (lower is better)"
DIFFERENCES = (
    "Differences, paired by seed, with their 95 % interval and p-value, adjusted (Benjamini-Hochberg) for the "
    "comparisons of a column with as many peers. One of a single seed, or in which all seeds gave the same, has no p "
    "and is not counted:"
)


def results_section(folder: Path) -> str:
    """Markdown of the answer, the main result, the differences between arms and the ablations, from the files below
    `folder`."""
    told = paths.read_json(folder / "answer.json")
    main = pd.read_csv(paths.tables(folder) / "T4.csv")
    main = main_setting(main[(main["kind"] == "measured") & main["arm"].isin(ARMS)])
    main = main.sort_values(["arm", "peers"], key=lambda of: of.map(ARMS.index) if of.name == "arm" else of)
    path = paths.tables(folder) / "T4_differences.csv"  # not there where no two arms have a seed in common
    differences = main_setting(pd.read_csv(path)) if path.is_file() else pd.DataFrame(columns=["suite", "protocol"])
    lines = [f"**{told['answer']}**", "", *(f"- {sentence}" for sentence in told["basis"])]
    for (suite, protocol), shown in main.fillna({"protocol": ""}).groupby(["suite", "protocol"], sort=False):
        title, digits = (LOSS, 3) if suite == "dev_ce" else (_title(suite, protocol), 1)
        beyond = ", which over few seeds may reach beyond 100" if shown["high"].max() > 100 else ""
        lines += ["", f"{title}: mean over seeds, 95 % t-interval over seeds{beyond}, and the seeds' values.", ""]
        lines += _members(shown.assign(row=shown["arm"]), ("arm", "peers"), digits, _cell)
        compared = differences[(differences["suite"] == suite) & (differences["protocol"].fillna("") == protocol)]
        if len(compared):
            lines += ["", DIFFERENCES, ""]
            compared = compared.assign(row=compared["a"] + " − " + compared["b"])
            lines += _members(compared, ("comparison", "peers"), digits, _difference)
    if (paths.tables(folder) / "T8.csv").is_file():
        lines += _ablations(pd.read_csv(paths.tables(folder) / "T8.csv").fillna({"protocol": ""}))
    return "\n".join([*lines, "", _made(paths.read_json(paths.tables(folder) / "provenance.json"))])


def _made(notes: dict[str, Any]) -> str:
    """What made T4, and of which runs T8 is where those are others."""
    note = notes["T4"]
    runs, changed = (notes.get(name, note).get("runs_commit", note["commit"]) for name in ("T4", "T8"))
    made = f"Made by `{note['command']}` at commit {shortened(note['commit'])}"
    made += f", from runs of {shortened(runs)}" if runs != note["commit"] else ""
    made += f", on {note['device']}."
    return made + (f" The runs of the changes to the base are of {shortened(changed)}." if changed != runs else "")


def _score(suite: str) -> str:
    """What a suite's scores are: of GLUE the mean of metrics that differ by task."""
    return "mean metric of glue" if suite == "glue" else f"accuracy on {suite}"


def _title(suite: str, protocol: str) -> str:
    name, chance = _score(suite), "" if suite == "glue" else " (chance 50)"
    return f"{name[0].upper()}{name[1:]} under `{protocol}` in percent{chance}"


def _members(table: pd.DataFrame, head: Sequence[str], digits: int, cell: Callable[[pd.Series, int], str]) -> list[str]:
    """One line a `row` and number of peers of `table`, one column a member that it has."""
    table = table[table["member"].isin(COMPARED)]  # a teacher's seeds are no arm's
    shown = [member for member in COMPARED if member in set(table["member"])]
    lines = ["| " + " | ".join([*head, *(member.replace("_", " ") for member in shown)]) + " |"]
    lines.append("|---" * (len(head) + len(shown)) + "|")
    for (row, peers), rows in table.groupby(["row", "peers"], sort=False):
        members = rows.set_index("member")
        cells = [cell(members.loc[member], digits) if member in members.index else "" for member in shown]
        few = _few(rows, table["n_seeds"].max())
        lines.append(f"| {row}{few}{_noted(rows)} | {peers:.0f} | " + " | ".join(cells) + " |")
    return lines


def _ablations(table: pd.DataFrame) -> list[str]:
    """One line a change of T8, one column a measure, for the mean peer: of the base the means, then differences from
    it. Nothing where the base was not run."""
    table = table[table["member"] == "mean_peer"].copy()
    changed = table["ablation"] != "base"
    if changed.all():
        return []
    base = table[~changed].iloc[0]
    for own in ("mean", "low", "high", "n_seeds"):
        difference = "difference" if own == "mean" else f"difference_{own}"
        table[own] = table[difference].where(changed, table[own])
    measures = list(dict.fromkeys(table.set_index(["suite", "protocol"]).index))
    several = {suite for suite, _ in measures if sum(suite == other for other, _ in measures) > 1}
    names = [
        "dev loss" if suite == "dev_ce" else _score(suite) + (f" under `{protocol}`" if suite in several else "")
        for suite, protocol in measures
    ]
    peers = "peer" if base["peers"] == 1 else "peers"
    lines = [
        f"Changes to the base, mean peer. The base is {base['arm']} with {base['peers']:.0f} {peers} and "
        f"{base['steps']:,.0f} steps; below it differences from it, paired by seed, with 95 % interval and p-value, "
        "adjusted for the changes of a column, and how many times its FLOP were taken, a teacher's training included "
        "and the output layer left out. Arms that are also compared above have another adjusted p there; to compare "
        "arms, that is the one to take:",
        "",
        "| change | FLOP | " + " | ".join(names) + " |",
        "|---" * (2 + len(names)) + "|",
    ]
    for change, rows in table.groupby("ablation", sort=False):
        found = {key: row for key, row in rows.set_index(["suite", "protocol"]).iterrows()}
        show = _cell if change == "base" else _difference
        cells = [show(found[key], 3 if key[0] == "dev_ce" else 1) if key in found else "" for key in measures]
        if not any(cells):  # no difference: losses of other tokens, or no seed in common
            continue
        flops = rows.iloc[0]["flops_with_teacher"]
        times = "" if pd.isna(flops) else f"{flops / base['flops_with_teacher']:.1f} times"
        times = f"{flops:.3g}" if change == "base" else times
        lines.append(f"| {change}{_few(rows, base['n_seeds'])}{_noted(rows)} | {times} | " + " | ".join(cells) + " |")
    return ["", *lines]


def _few(rows: pd.DataFrame, most: float) -> str:
    """That these rows of a table rest on fewer seeds than others, in brackets."""
    seeds = rows["n_seeds"].min()
    return f" ({seeds:.0f} of {most:.0f} seeds)" if seeds < most else ""


def _noted(rows: pd.DataFrame) -> str:
    """What the column `note` says of these rows of a table, in brackets."""
    told = distinct(rows["note"].dropna())
    return f" ({told})" if told else ""


def _cell(row: pd.Series, digits: int) -> str:
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
    if row["n_seeds"] == 1 and pd.notna(row.get("item_low")):
        interval = f" [{row['item_low']:.1f}, {row['item_high']:.1f}] of its items, one seed"
    return f"{row['mean']:.{digits}f}{interval} ({row['values']})"


def _difference(row: pd.Series, digits: int) -> str:
    if pd.isna(row["low"]):
        return "" if pd.isna(row["mean"]) else f"{row['mean']:+.{digits}f}"
    p = p_value(row["p_adjusted"])
    return f"{row['mean']:+.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}] p {p.replace('< ', '<')}"


def glance(references: Path) -> str:
    """Markdown of the main comparisons of all committed runs, for the mean peer and the most peers compared: one line a
    folder of `references`."""
    head = ["wml − independent", "wml − dml", "wml − distill", "wml − distill, accuracy (points)", "FLOP of distill"]
    lines = ["| run | peers | seeds | " + " | ".join(head) + " |", "|---" * (3 + len(head)) + "|"]
    for path in sorted(references.glob("*/tables/T4_differences.csv")):
        table = most_peers_compared(main_setting(pd.read_csv(path)))
        table = table[table["member"] == "mean_peer"]
        peers, seeds = table["peers"].max(), table["n_seeds"].max()
        pairs, protocol = _pairs_named_first(path.with_name("T2.csv"), list(table["suite"].unique()))
        # of several protocols the runs' own, as in the answer
        table = table.sort_values("protocol", key=lambda of: of != protocol, kind="stable")
        cells = []
        for b, suite in (("independent", "dev_ce"), ("dml", "dev_ce"), ("distill", "dev_ce"), ("distill", pairs)):
            rows = table[(table["a"] == "wml") & (table["b"] == b) & (table["suite"] == suite)]
            digits = 3 if suite == "dev_ce" else 1
            cells.append(_difference(rows.iloc[0], digits) + _few(rows, seeds) if len(rows) else "")
        cost = main_setting(pd.read_csv(path.with_name("T7.csv")), peers=peers)
        flops = cost.groupby("arm")["flops_with_teacher"].mean()  # of one device or several
        times = flops.get("distill", math.nan) / flops.get("wml", math.nan)
        cells.append("" if pd.isna(times) else f"{times:.1f} times")
        lines.append(f"| {path.parent.parent.name} | {peers:.0f} | {seeds:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _pairs_named_first(settings: Path, suites: Sequence[str]) -> tuple[str | None, str]:
    """Of `suites` that of pairs which the runs' configuration, T2, names first, else any of pairs; its protocol."""
    named: list[str] = []
    protocol = ""
    if settings.is_file():
        used = pd.read_csv(settings, keep_default_na=False).set_index(["section", "name"])["value"]
        named = json.loads(used.get(("evaluate", "suites"), "[]"))
        protocol = used.get(("evaluate", "protocol"), "")
    pairs = [suite for suite in (*named, *suites) if suite in suites and suite not in ("dev_ce", "glue")]
    return next(iter(pairs), None), protocol


def write_reference(folder: Path, target: Path, root: Path = paths.REPOSITORY) -> Path:
    """Copy tables, figures, summary and answer of `folder` to `target`, and write below `root` its results in
    docs/results.md and all that lies beside `target` at a glance in README.md; where the preset is the one that they
    quote, also what the released code's defects do in README.md and docs/deviations.md. `folder` and `target` have its
    name.

    Raises UserError where a place that these need is missing, and FileNotFoundError without T4, the answer or a note of
    what made them, before anything is replaced.
    """
    readme, results, deviations = (root / name for name in DOCUMENTS)
    marks = tuple(mark.format(preset=target.name) for mark in RESULTS)
    _place(readme, GLANCE)
    _place(results, marks)
    results_section(folder)
    if target.name == deviations_of.PRESET:
        deviations_of.measured(folder)

    def write(temporary: Path) -> None:
        for name in ("tables", "figures"):
            shutil.copytree(folder / name, temporary / name, ignore=shutil.ignore_patterns(".*"))  # locks
            notes = paths.read_json(temporary / name / "provenance.json")
            for note in notes.values():  # where folders lie on somebody's machine is not for others
                note["command"] = without_places(note["command"])
            paths.write_json(temporary / name / "provenance.json", notes)
        for name in ("summary.json", "answer.json"):
            shutil.copy(folder / name, temporary)

    paths.write_folder(target, write)
    _write_between(results, marks, results_section(target))
    _write_between(readme, GLANCE, glance(target.parent))
    if target.name == deviations_of.PRESET:
        for document in (readme, deviations):
            deviations_of.fill_marks(document, target)
    return target


def _write_between(document: Path, marks: tuple[str, ...], text: str) -> None:
    before, after = _place(document, marks)
    paths.write_text(document, f"{before}\n{text}\n{after}")


def _place(document: Path, marks: tuple[str, ...]) -> tuple[str, str]:
    """The text of `document` up to the first of two marks, and from the second on. Raises UserError without them."""
    begin, end = marks
    before, found, rest = document.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise UserError(f"{document} has no place for results; expected the lines {begin!r} and {end!r}; add them")
    return before + begin, end + after
