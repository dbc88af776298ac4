"""report.html: one self-contained page of every table and figure below a preset's folder, and what made each."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from markdown_it import MarkdownIt

from . import captions, paths, tables
from .answer import QUESTION, TERMS, Answer, answer
from .environment import shortened
from .errors import UserError, first_line
from .figures.files import write_figures
from .provenance import read_provenance
from .readable import readable
from .results import run_metrics
from .run_files import Run
from .runs import curve_points, environment_of, evaluations, read_runs, renamed_runs, unfinished_runs

TALL = 20  # rows beyond which a table scrolls inside its frame
WIDE = 12  # columns beyond which it is printed smaller
_NAME = re.compile(r"[TF]\d+\w*")
_PIXELS_A_POINT = 1.6  # figures are drawn for print; a screen is read from farther away

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{question}</h1>
<p class="sub">{subtitle}</p>
</header>
<nav aria-label="Sections"><ul>{navigation}</ul></nav>
<main>
{sections}
</main>
<footer>{footer}</footer>
<script>{script}</script>
</body>
</html>
"""

# Click on a column's head: sort its rows, numbers by value, text by letters; once more: the other way.
_SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, row = head.parentElement, body = row.parentElement.parentElement.tBodies[0];
    const column = [...row.cells].indexOf(head);
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const cell of row.cells) cell.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (line) => line.cells[column].firstChild ? line.cells[column].firstChild.textContent.trim() : "";
    const number = (text) => /^[+-]?[\\d.,]/.test(text) ? parseFloat(text.replaceAll(",", "")) : NaN;
    const lines = [...body.rows].sort((first, second) => {
      const [a, b] = [value(first), value(second)];
      if (a === "" || b === "") return (a === "") - (b === "") || 0;
      const [x, y] = [number(a), number(b)];
      const order = isNaN(x) || isNaN(y) ? a.localeCompare(b) : x - y;
      return down ? -order : order;
    });
    body.append(...lines);
  });
}
"""


# A browser loads nothing for the page but the pictures within it, and runs no script but the one above.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'; base-uri 'none'; "
    "form-action 'none'"
)


def write_report(folder: Path, command: str = "wmlkit report", overwrite: bool = False) -> Path:
    """Write ``<folder>/report.html`` of a preset's folder and, beside it, its answer in answer.json; returns the page.

    It shows the CSV tables in ``tables/`` and the figures in ``figures/``; those that the finished runs give are
    made first, with `overwrite` also those that a notebook has made. Raises UserError where there
    is no such folder.
    """
    runs = read_runs(folder)
    _check_inputs(folder, runs)
    if runs:
        tables.write_tables(folder, command, overwrite)
        write_figures(folder, command, overwrite)
    found = {file.stem: _read_table(file) for file in _found(paths.tables(folder), "T*.csv")}
    drawn = _found(paths.figures(folder), "F*.svg")
    corpora = sorted({run.corpus for run in runs})
    found_answer = _answer(folder, runs)
    paths.write_json(folder / "answer.json", found_answer.document())
    sections = {
        "Answer": _summary(found_answer),
        "Tables": _index(list(found))
        + "".join(_table(paths.tables(folder), name, table, corpora) for name, table in found.items()),
        "Figures": _index([file.stem for file in drawn]) + "".join(_figure(file) for file in drawn),
        "Runs": _runs(runs, unfinished_runs(folder), renamed_runs(folder)),
    }
    deviations = paths.REPOSITORY / "docs" / "deviations.md"
    if deviations.is_file():
        sections["Deviations"] = _markdown(deviations.read_text(encoding="utf-8"))
    page = _PAGE.format(
        title=_text(f"wmlkit: {folder.name}"),
        style=(paths.PACKAGE / "report.css").read_text(encoding="utf-8"),
        question=_text(QUESTION),
        subtitle=_text(f"wmlkit, preset {folder.name}: weighted mutual learning of small language models"),
        navigation="".join(f'<li><a href="#{name.lower()}">{name}</a></li>' for name in sections),
        sections="\n".join(
            f'<section id="{name.lower()}">\n<h2>{name}</h2>\n{body}</section>' for name, body in sections.items()
        ),
        footer=_text(
            f"Made by {command}. Runs of commit {environment_of(runs, 'commit')} on "
            f"{environment_of(runs, 'device')}. The page loads nothing from elsewhere."
        ),
        script=_SCRIPT,
        policy=_POLICY.format(script=base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()),
    )
    return paths.write_text(folder / "report.html", page)


def _check_inputs(folder: Path, runs: Sequence[Run]) -> None:
    """Read once what the page is made of, so that a broken file is named before anything is made."""
    for name in ("tables", "figures"):
        read_provenance(folder / name)
    for file in _found(paths.tables(folder), "T*.csv"):
        _read_table(file)
    for run in runs:
        run_metrics(run.folder)
        for _ in chain(evaluations(run), curve_points(run)):
            pass


def _read_table(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file)
    except ValueError as error:  # no columns, rows of other lengths, not UTF-8
        raise UserError(f"{file} is not a CSV table ({first_line(error)}); remove it and make it again") from None


def _found(folder: Path, pattern: str) -> list[Path]:
    """Files by number: T2 before T10, T4 before T4_differences, F1 before F01_mix."""
    files = [file for file in folder.glob(pattern) if _NAME.fullmatch(file.stem)]

    def place(file: Path) -> tuple[int, int, str]:
        number = re.findall(r"\d+", file.stem)[0]
        return int(number), len(number), file.stem

    return sorted(files, key=place)


def _answer(folder: Path, runs: Sequence[Run]) -> Answer:
    """From the runs themselves, so that it holds for them whatever tables lie in the folder."""
    if not runs:
        return Answer("Not answered: there is no finished run yet.", [], pd.DataFrame())
    scores = tables.all_scores(folder)
    # Items matter to the answer only where there is nothing better, and reading them takes long.
    of_one_seed = runs if len({run.seed for run in runs}) == 1 else ()
    return answer(runs, tables.main_result(scores), tables.differences(scores, of_one_seed))


def _summary(given: Answer) -> str:
    basis = "".join(f"<li>{_text(sentence)}</li>" for sentence in given.basis)
    compared = (
        f"<h3>Differences in accuracy, paired by seed</h3>\n{_html_table(given.comparisons)}"
        if len(given.comparisons)
        else ""
    )
    return (
        f'<div class="answer">\n<p class="headline">{_text(given.headline)}</p>\n<ul>{basis}</ul>\n</div>\n'
        f'<p class="caption">{_text(TERMS)}</p>\n{compared}'
    )


def _index(names: Sequence[str]) -> str:
    links = " \N{MIDDLE DOT} ".join(f'<a href="#{name.lower()}">{_text(name.replace("_", " "))}</a>' for name in names)
    return f'<p class="index">{links}</p>\n'


def _table(folder: Path, name: str, table: pd.DataFrame, of_runs: Sequence[str]) -> str:
    """of_runs: the corpora of the folder's runs, which a table without a column of corpora is of too."""
    corpora = [str(corpus) for corpus in table["corpus"].dropna().unique()] if "corpus" in table else of_runs
    note = "Rows of the nursery come from generated text, not from BabyLM." if "nursery" in corpora else ""
    caption = " ".join(filter(None, (captions.caption(name), note)))
    parts = "".join(
        _part(title, part, folded=name == "T5" and place > 0)
        for place, (title, part) in enumerate(readable(name, table))
    )
    made = _made(folder, name, _download(folder / name))
    return f'{_heading(name)}<p class="caption">{_text(caption)}</p>\n{parts}{made}'


def _download(file: Path) -> str:
    """A link that holds the CSV beside `file`; nothing where there is none."""
    file = file.with_suffix(".csv")
    if not file.is_file():
        return ""
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<a class="download" download="{file.name}" href="data:text/csv;base64,{data}">{file.name}</a>'


def _heading(name: str) -> str:
    return f'<h3 id="{name.lower()}">{_text(name.replace("_", " "))}</h3>\n'


def _part(title: str, table: pd.DataFrame, folded: bool) -> str:
    if folded:
        return f"<details><summary>{_text(title)}</summary>\n{_html_table(table)}</details>\n"
    return (f"<h4>{_text(title)}</h4>\n" if title else "") + _html_table(table)


def _html_table(table: pd.DataFrame) -> str:
    kinds = [_kind(table[column]) for column in table]
    head = "".join(
        f'<th scope="col"{_class(kind)}><button type="button">{_text(str(column).replace("_", " "))}</button></th>'
        for column, kind in zip(table, kinds, strict=True)
    )
    rows = []
    for record in table.itertuples(index=False):
        cells = "".join(f"<td{_class(kind)}>{_cell(value)}</td>" for value, kind in zip(record, kinds, strict=True))
        rows.append(f"<tr>{cells}</tr>\n")
    shape = (" tall" if len(table) > TALL else "") + (" wide" if len(table.columns) > WIDE else "")
    # Focusable, so that a keyboard can scroll it.
    return (
        f'<div class="scroll{shape}" tabindex="0" role="region" aria-label="table"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _kind(column: pd.Series) -> str:
    values = [value for value in column if value]
    if values and all(re.match(r"[+-]?[\d.,]+(e[+-]?\d+)?(\s|$)", value) for value in values):
        return "number"
    return "long" if any(len(value) > 48 for value in values) else ""


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _cell(value: str) -> str:
    first, _, small = value.partition("\n")
    return _text(first) + (f"<small>{_text(small)}</small>" if small else "")


def _figure(file: Path) -> str:
    name = file.stem
    svg = file.read_text(encoding="utf-8")
    data = base64.b64encode(svg.encode()).decode()
    points = re.search(r'<svg[^>]*?\bwidth="([\d.]+)pt"', svg)
    width = f' style="width: {float(points[1]) * _PIXELS_A_POINT:.0f}px"' if points else ""
    caption = _text(captions.caption(name))
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{caption}">'
    return (
        f'{_heading(name)}<figure><div class="scroll drawing" tabindex="0" role="region" aria-label="{name}">'
        f'<span class="sheet"{width}>{image}</span></div>\n'
        f'<figcaption class="caption">{caption}</figcaption></figure>\n{_made(file.parent, name, _download(file))}'
    )


def _made(folder: Path, name: str, link: str = "") -> str:
    """What made a table or a figure, and the link to its data."""
    data = f'<p class="made">{link}</p>\n' if link else ""
    noted: Mapping[str, Any] = read_provenance(folder).get(name, {})
    if not noted:
        return f'<p class="made">Nothing is noted about what made {_text(name)}.</p>\n{data}'
    seeds = ", ".join(str(seed) for seed in noted["seeds"]) or "none"
    facts = {name: noted[name] for name in ("commit", "runs_commit", "device", "created_by") if name in noted}
    listed = "".join(f"<dt>{key.replace('_', ' ')}</dt><dd><code>{_text(facts[key])}</code></dd>" for key in facts)
    return (
        f'<details class="made"><summary><code>{_text(noted["command"])}</code>, '
        f"commit {_text(shortened(noted['commit']))}, seeds {_text(seeds)}</summary>"
        f"<dl>{listed}</dl></details>\n{data}"
    )


def _runs(runs: Sequence[Run], unfinished: Sequence[str], renamed: Sequence[str]) -> str:
    columns = ("run", "setting", "device", "minutes", "command")
    rows = []
    for run in runs:
        minutes = f"{run.done['seconds'] / 60:.1f}"
        values = (run.folder.name, run.setting, run.environment["device"], minutes, run.environment["command"])
        rows.append([str(value) for value in values])
    table = pd.DataFrame(rows, columns=list(columns))
    left_out = ""
    if unfinished:
        names = ", ".join(f"<code>{_text(name)}</code>" for name in unfinished)
        left_out = f"<p>Not finished, so in no table: {names}.</p>\n"
    if renamed:
        names = ", ".join(f"<code>{_text(name)}</code>" for name in renamed)
        left_out += f"<p>Renamed or copied, so in no table: {names}. A run counts under its own name.</p>\n"
    if (table["setting"] == "").all():
        table = table.drop(columns="setting")
    return _html_table(table) + left_out


def _markdown(text: str) -> str:
    """A page as HTML below a section's title: without its own title and without comments, tags shown as they stand."""
    text = re.sub(r"^ *<!--.*-->\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\A# .*\n", "", text).replace("\n## ", "\n### ")
    return str(MarkdownIt("commonmark", {"html": False}).render(text))


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
