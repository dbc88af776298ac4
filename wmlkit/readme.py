"""The committed reference runs, one a preset: tables and figures below figures/, the results in README.md and, of the
nursery, the effects in docs/deviations.md.

No number there is typed by hand: `wmlkit report RUNS --reference` writes them from a preset's folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from . import deviations as deviations_of
from . import paths
from .errors import UserError
from .readable import p_value

BEGIN = "<!-- results of {preset}: written by `wmlkit report --reference`, do not edit -->"
END = "<!-- end of results -->"
MEMBERS = {"best_peer": "best peer", "mean_peer": "mean peer", "ensemble": "ensemble"}


def results_section(folder: Path) -> str:
    """Markdown of the main result and of the differences between arms, from ``tables/`` below `folder`."""
    main = pd.read_csv(folder / "tables" / "T4.csv")
    note = paths.read_json(folder / "tables" / "provenance.json")["T4"]
    main = main[(main["kind"] == "measured") & main["setting"].isna() & (main["arm"] != "teacher")]
    is_loss = main["suite"] == "dev_ce"
    scored, losses = main[~is_loss], main[is_loss].set_index(["arm", "peers", "member"])
    columns = [*MEMBERS.values(), "dev loss, best peer"]
    told = paths.read_json(folder / "answer.json")
    lines = [
        f"**{told['answer']}**",
        "",
        *(f"- {sentence}" for sentence in told["basis"]),
        "",
        "Accuracy in percent and dev loss in nats a scored token: mean over seeds, 95 % t-interval over seeds, and the "
        "seeds' values.",
        "",
        "| arm | peers | " + " | ".join(columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for (arm, peers), rows in scored.groupby(["arm", "peers"]):
        by_member = rows.set_index("member")
        cells = [_cell(by_member.loc[member], 1) if member in by_member.index else "" for member in MEMBERS]
        cells.append(_cell(losses.loc[arm, peers, "best_peer"], 3))
        lines.append(f"| {arm} | {peers:.0f} | " + " | ".join(cells) + " |")
    lines += ["", *_differences(pd.read_csv(folder / "tables" / "T4_differences.csv"))]
    lines += ["", f"Made by `{note['command']}` at commit {note['commit'][:12]} on {note['device']}."]
    return "\n".join(lines)


def _cell(row: pd.Series, digits: int) -> str:
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
    if row["n_seeds"] == 1 and pd.notna(row.get("item_low")):
        interval = f" [{row['item_low']:.1f}, {row['item_high']:.1f}] of its items, one seed"
    return f"{row['mean']:.{digits}f}{interval} ({row['values']})"


def _differences(table: pd.DataFrame) -> list[str]:
    """Accuracy, and dev loss, which has no ceiling."""
    chosen = table[(table["member"] == "best_peer") & table["setting"].isna()]
    is_loss = chosen["suite"] == "dev_ce"
    accuracy = _difference_table("Differences of the best peer, paired by seed, in points:", chosen[~is_loss], 1)
    heading = "The same in dev loss, in nats a scored token (lower is better):"
    return accuracy + ["", *_difference_table(heading, chosen[is_loss], 3)]


def _difference_table(heading: str, rows: pd.DataFrame, digits: int) -> list[str]:
    lines = [
        heading,
        "",
        "| comparison | peers | mean | 95 % interval | p | p, adjusted |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.itertuples():
        interval = "" if pd.isna(row.low) else f"[{row.low:.{digits}f}, {row.high:.{digits}f}]"
        p = f"{p_value(row.p)} | {p_value(row.p_adjusted)}"
        lines.append(f"| {row.a} − {row.b} | {row.peers} | {row.mean:+.{digits}f} | {interval} | {p} |")
    return lines


def write_reference(folder: Path, target: Path, readme: Path, deviations: Path) -> Path:
    """Copy tables, figures, summary and answer of `folder` to `target`, and write the results in `readme` from them;
    those in `deviations` too where the preset is the one that it quotes. `folder` and `target` have the preset's name.

    Raises UserError where a table or a place that these need is missing, before anything is replaced.
    """
    _place(readme, target.name)
    if target.name == deviations_of.PRESET:
        deviations_of.measured(folder)

    def write(temporary: Path) -> None:
        for name in ("tables", "figures"):
            shutil.copytree(folder / name, temporary / name)
        for name in ("summary.json", "answer.json"):
            shutil.copy(folder / name, temporary)

    paths.write_folder(target, write)
    write_section(readme, target)
    if target.name == deviations_of.PRESET:
        deviations_of.write_deviations(deviations, target)
    return target


def write_section(readme: Path, folder: Path) -> Path:
    """Replace what stands between the marks of the preset `folder.name` in `readme`. Raises UserError without marks."""
    before, after = _place(readme, folder.name)
    return paths.write_text(readme, f"{before}\n{results_section(folder)}\n{after}")


def _place(readme: Path, preset: str) -> tuple[str, str]:
    """The text of `readme` up to the preset's first mark, and from the second on."""
    begin = BEGIN.format(preset=preset)
    before, found, rest = readme.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise UserError(f"{readme} has no results of {preset}; expected the lines {begin!r} and {END!r}; add them")
    return before + begin, END + after
