"""Words for a comparison of two arms: what its interval over seeds says, and no more."""

from __future__ import annotations

from typing import Any

import pandas as pd

from .readable import p_value, peers_in_words
from .results import main_setting, most_peers_compared
from .runs import COMPARED

ADJUSTED = 0.05  # from this adjusted p on a difference is called doubtful
_WORDS = {
    "better": "better: the interval lies above 0",
    "worse": "worse: the interval lies below 0",
    "none": "not shown: the interval contains 0",
}
_WORDS_OF_LOSS = {
    "better": "worse: the loss is higher",
    "worse": "better: the loss is lower",
    "none": "not shown: the interval contains 0",
}


def points(row: Any) -> dict[str, str]:
    """Columns of the report's comparisons, strings, from a row of T4_differences in percent."""
    seeds = int(row["n_seeds"])
    interval = "none"
    if seeds == 1:
        reading = "one seed only: nothing can be said about other seeds"
        if pd.notna(row.get("item_low")):
            reading += f" (resampling this seed's items: {row['item_low']:+.1f} to {row['item_high']:+.1f})"
    elif pd.isna(row["low"]):
        reading = "the same for all seeds, so no interval can be estimated and no difference claimed"
    else:
        interval = f"[{row['low']:+.1f}, {row['high']:+.1f}] over {seeds} seeds"
        reading = _reading(row, _WORDS)
    return {
        "difference (points)": f"{row['mean']:+.1f}", "95 % interval": interval, "p": p_value(row["p"]),
        "p, adjusted": p_value(row["p_adjusted"]), "reading": reading,
    }  # fmt: skip


def _reading(row: Any, words: dict[str, str]) -> str:
    """In words what an interval of one comparison says, and whether the family of comparisons takes it back."""
    return words[verdict(row)] + doubt(row)


def doubt(row: Any) -> str:
    """What to add to a difference that one comparison shows and the family of comparisons does not."""
    doubted = verdict(row) != "none" and pd.notna(row["p_adjusted"]) and row["p_adjusted"] >= ADJUSTED
    return f", but adjusted p is {p_value(row['p_adjusted'])}" if doubted else ""


def verdict(row: Any) -> str:
    """Where the interval of a row of T4_differences lies: above 0 ("better"), below ("worse"), neither ("none")."""
    if pd.isna(row["low"]) or row["low"] <= 0 <= row["high"]:
        return "none"
    return "better" if row["low"] > 0 else "worse"


def rows_of_loss(differences: pd.DataFrame, a: str, b: str, peers: int = 0) -> list[dict[str, Any]]:
    """a - b in dev loss, of T4_differences: the main setting, `peers` peers (0: the most that were compared,
    `results.most_peers_compared`), one row for each member that is shown there. A teacher is no peer and left out."""
    rows = differences[(differences["suite"] == "dev_ce") & (differences["a"] == a) & (differences["b"] == b)]
    rows = main_setting(rows[(rows["peers"] > 1) | (a == "distill")])  # one peer learns from no other
    rows = rows[rows["peers"] == peers] if peers else most_peers_compared(rows)
    rows = rows[rows["member"].isin(COMPARED)]
    return rows.sort_values("member", key=lambda column: column.map(COMPARED.index)).to_dict("records")


def loss_in_short(differences: pd.DataFrame, a: str, b: str, peers: int, seeds: int) -> str:
    """For the headline: by which members a is behind or ahead of b in dev loss; a doubted difference is a hint.

    peers, seeds: those of the accuracy it stands behind, 0 where it stands alone; how many seeds the losses have is
    told where it is another.
    """
    words = {
        "better": f"{a} is behind {b}",
        "worse": f"{a} is ahead of {b}",
        "hint": f"only a hint, with an adjusted p of {ADJUSTED} or more",
        "none": f"no difference{'' if seeds else f' between {a} and {b}'} is shown",
    }
    shown: dict[str, list[str]] = {found: [] for found in words}  # "better": above 0, here a higher loss
    rows = rows_of_loss(differences, a, b, peers)
    most = max(row["n_seeds"] for row in rows)
    for row in rows:
        found = "none" if _tiny(row) else "hint" if doubt(row) else verdict(row)
        of_seeds = "" if row["n_seeds"] == most else f" over {_seeds(row['n_seeds'])}"
        shown[found].append(f"{row['member'].replace('_', ' ')} {row['mean']:+.3f}{of_seeds}")
    told = [f"{words[found]} ({', '.join(members)})" for found, members in shown.items() if members]
    other = "" if most == seeds else f", {_seeds(most)}"
    return f"In dev loss (nats a scored token, lower is better{other}) {'; '.join(told)}."


def loss_difference(differences: pd.DataFrame, a: str, b: str, peers: int = 0) -> str:
    """A sentence about a - b in dev loss, of T4_differences, with the interval of each member (`rows_of_loss`)."""
    rows = rows_of_loss(differences, a, b, peers)
    if not rows:
        return f"These runs do not compare {a} with {b}."
    told = []
    most = max(row["n_seeds"] for row in rows)
    for row in rows:
        found = f"{row['member'].replace('_', ' ')} {row['mean']:+.3f}"
        if pd.isna(row["low"]):
            told.append(f"{found} (no interval: {'one seed' if row['n_seeds'] == 1 else 'all seeds gave the same'})")
        else:
            over = "" if row["n_seeds"] == most else f" over {_seeds(row['n_seeds'])}"
            reading = "less than three digits tell" if _tiny(row) else _reading(row, _WORDS_OF_LOSS)
            told.append(f"{found} (95 % interval {row['low']:+.3f} to {row['high']:+.3f}{over}; {reading})")
    peers_told = peers_in_words(rows[0]["peers"])
    return f"In dev loss (nats a scored token), {a} minus {b}, {peers_told}, {_seeds(most)}: {'; '.join(told)}."


def _tiny(row: Any) -> bool:
    """Whether an interval of losses has no end that three digits tell from 0: its sign is nothing to speak of."""
    return max(abs(row["low"]), abs(row["high"])) < 0.0005


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
