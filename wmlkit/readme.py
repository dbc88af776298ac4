"""The committed reference run: its tables and figures below figures/, the result section of README.md, and the effects
in docs/deviations.md.

No number there is typed by hand: `wmlkit report RUNS --reference` writes them from a preset's folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from . import paths
from .deviations import measured, write_deviations
from .errors import UserError

BEGIN = "<!-- results: written by `wmlkit report --reference`, do not edit -->"
END = "<!-- end of results -->"
MEMBERS = {"best_peer": "best peer", "mean_peer": "mean peer", "ensemble": "ensemble"}


def results_section(folder: Path) -> str:
    """Markdown of the main result and of the differences between arms, from ``tables/`` below `folder`."""
    main = pd.read_csv(folder / "tables" / "T4.csv")
    note = paths.read_json(folder / "tables" / "provenance.json")["T4"]
    measured = main[(main["kind"] == "measured") & main["setting"].isna() & (main["suite"] != "dev_ce")]
    lines = [
        f"Accuracy on the {measured['suite'].iloc[0]} pairs in percent (protocol `{measured['protocol'].iloc[0]}`, "
        "chance 50): mean over seeds, 95 % t-interval over seeds, and the seeds' values.",
        "",
        "| arm | peers | " + " | ".join(MEMBERS.values()) + " |",
        "|---|---|" + "---|" * len(MEMBERS),
    ]
    for (arm, peers), rows in measured.groupby(["arm", "peers"]):
        by_member = rows.set_index("member")
        cells = [_cell(by_member.loc[member]) if member in by_member.index else "" for member in MEMBERS]
        lines.append(f"| {arm} | {peers:.0f} | " + " | ".join(cells) + " |")
    lines += ["", *_differences(pd.read_csv(folder / "tables" / "T4_differences.csv"))]
    lines += ["", f"Made by `{note['command']}` at commit {note['commit'][:12]} on {note['device']}."]
    return "\n".join(lines)


def _cell(row: pd.Series) -> str:
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.1f}, {row['high']:.1f}]"
    if row["n_seeds"] == 1 and pd.notna(row.get("item_low")):
        interval = f" [{row['item_low']:.1f}, {row['item_high']:.1f}] of its items, one seed"
    return f"{row['mean']:.1f}{interval} ({row['values']})"


def _differences(table: pd.DataFrame) -> list[str]:
    """Accuracy, and dev loss, which has no ceiling."""
    chosen = table[(table["member"] == "best_peer") & table["setting"].isna()]
    is_loss = chosen["suite"] == "dev_ce"
    accuracy = _difference_table("Differences of the best peer, paired by seed, in points:", chosen[~is_loss], 1)
    heading = "The same in dev loss, in nats a scored token (lower is better):"
    return accuracy + ["", *_difference_table(heading, chosen[is_loss], 3)]


def _difference_table(heading: str, rows: pd.DataFrame, digits: int) -> list[str]:
    lines = [heading, "", "| comparison | peers | mean | 95 % interval | p |", "|---|---|---|---|---|"]
    for row in rows.itertuples():
        interval = "" if pd.isna(row.low) else f"[{row.low:.{digits}f}, {row.high:.{digits}f}]"
        p = "" if pd.isna(row.p) else f"{row.p:.2f}"
        lines.append(f"| {row.a} − {row.b} | {row.peers} | {row.mean:+.{digits}f} | {interval} | {p} |")
    return lines


def write_reference(folder: Path, target: Path, readme: Path, deviations: Path) -> Path:
    """Copy tables, figures and summary of `folder` to `target`, and write the numbers of `readme` and `deviations` from
    them. Raises UserError where a table that these need is missing."""
    measured(folder)  # before anything is replaced

    def write(temporary: Path) -> None:
        for name in ("tables", "figures"):
            shutil.copytree(folder / name, temporary / name)
        if (target / "screenshots").is_dir():  # of notebooks: no run makes them anew
            shutil.copytree(target / "screenshots", temporary / "screenshots")
        shutil.copy(folder / "summary.json", temporary)

    paths.write_folder(target, write)
    write_section(readme, target)
    write_deviations(deviations, target)
    return target


def write_section(readme: Path, folder: Path) -> Path:
    """Replace the section between the two marks in `readme`. Raises UserError where they are missing."""
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise UserError(f"{readme} has no result section; expected the lines {BEGIN!r} and {END!r}; add them")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return paths.write_text(readme, f"{before}{BEGIN}\n{results_section(folder)}\n{END}{after}")
