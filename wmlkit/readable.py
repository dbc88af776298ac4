"""Tables for the eye: tidy CSV tables turned into frames of short strings, one line a thing to compare.

A newline in a cell starts small print (the values of all seeds).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from .diversity import UNIFORM
from .runs import ARMS, MEMBERS, distinct

_PERCENT = dict.fromkeys(
    ("mean", "low", "high", "accuracy", "score", "ties", "error_percent", "item_low", "item_high"), 1
)  # decimals
_BITS = dict.fromkeys(("mean", "low", "high", "unigram", "floor"), 3)  # decimals of T4_text: bits a byte, not percent
_LOSSES = ("dev_ce", "change", "train_ce", "untrained_ce", "teacher_ce", "values")  # of T9, in nats
_SUITES = ("blimp", "supplement", "ewok", "glue", "macro", "metric not named")


def readable(name: str, table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(sub-title, frame of strings) for what is shown of the table `name`; more than one where it mixes kinds."""
    optional = ("setting", "search_ms", "clipped", *(["note"] if name != "T4" else []))
    table = table.drop(columns=[column for column in optional if column in table and _blank(table[column])])
    if name == "T1":
        return [("", _before_after(table))]
    if name == "T4" and "kind" in table:
        measured, others = table[table["kind"] == "measured"], table[table["kind"] != "measured"]
        parts = [("", _measured(measured.drop(columns=_single(measured)))), (_OTHERS, _published(others))]
        return [part for part in parts if len(part[1])]
    table = table.drop(columns=_single(table))
    if name in ("T4_differences", "T4_stopped"):
        return [("", _differences(table))]
    if name == "T4_diversity":
        return [("", _diversity(table))]
    if name == "T4_text":
        return [("", _plain(table, _BITS))]
    if name == "T8":
        return [(_of_protocols(table), _ablations(table))]
    if name in ("T9", "T9_repairs") and "dev_ce" in table:
        return [("", _replays(table))]
    if name == "T5":
        shown = table[table["member"].isin(["best_peer", "ensemble"])]
        shown = shown.sort_values("member", key=_order, kind="stable")
        return [
            (f"{suite}, protocol {protocol}: {member.replace('_', ' ')}", _by_arm(rows))
            for (suite, protocol, member), rows in shown.groupby(["suite", "protocol", "member"], sort=False)
        ]
    return [("", _plain(table))]


def peers_in_words(number: float) -> str:
    """``"1 peer"``, ``"4 peers"``."""
    return "1 peer" if number == 1 else f"{number:.0f} peers"


def p_value(p: float) -> str:
    """Two digits, which never round up to the 0.05 that p is below; nothing where there was no test.

    >>> [p_value(p) for p in (0.0341, 0.0498, 0.00049, float("nan"))]
    ['0.034', '< 0.05', '< 0.001', '']
    """
    if pd.isna(p):
        return ""
    text = f"{p:.2g}" if p >= 0.001 else "< 0.001"
    return "< 0.05" if p < 0.05 and text == "0.05" else text


def _single(table: pd.DataFrame) -> list[str]:
    """Columns that say the same in every row; the caption says it once."""
    return [
        column
        for column in ("corpus", "setting", "device", "precision")
        if column in table and table[column].nunique(dropna=False) == 1
    ]


def _before_after(table: pd.DataFrame) -> pd.DataFrame:
    """Both sizes in one cell: before > after."""
    plain = _plain(table)
    for column in [name for name in plain if str(name).endswith("_before")]:
        size = str(column).removesuffix("_before")
        plain[size] = plain[column] + " \N{RIGHTWARDS ARROW} " + plain[f"{size}_after"]
        plain = plain.drop(columns=[column, f"{size}_after"])
    return plain


_OTHERS = (
    "Published numbers, each of its own corpus and protocol: not comparable with rows of another corpus or protocol, "
    "so never with the nursery. An empty cell is unknown; none is filled in from memory."
)


def _measured(table: pd.DataFrame) -> pd.DataFrame:
    """Arms x peers x members, a column a suite and protocol."""
    keys = [key for key in ("setting", "corpus", "arm", "peers", "member") if key in table]
    last = ["note"] if "note" in table and not _blank(table["note"]) else []
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in table.fillna({"setting": "", "protocol": "", "note": ""}).to_dict("records"):
        if record["peers"] == 1 and record["member"] not in ("best_peer", "teacher"):
            continue  # a single peer is all of them
        key = tuple(record[name] for name in keys)
        loss = record["suite"] == "dev_ce"
        column = "dev loss (nats)" if loss else f"{record['suite']} {record['protocol']} (%)"
        row = rows.setdefault(key, {**dict(zip(keys, key, strict=True)), "n_seeds": set()})
        row["n_seeds"].add(int(record["n_seeds"]))
        row[column] = _with_interval(record, 3 if loss else 1)
        if last:
            row["note"] = distinct(filter(None, (row.get("note"), record["note"])))
    frame = pd.DataFrame(rows.values())
    if frame.empty:
        return frame
    frame = frame.sort_values([*(["setting"] if "setting" in keys else []), "arm", "peers", "member"], key=_order)
    scores = [column for column in frame if column not in (*keys, "n_seeds", "dev loss (nats)", "note")]
    last = (["dev loss (nats)"] if "dev loss (nats)" in frame else []) + last
    return _plain(_counted(frame[[*keys, "n_seeds", *scores, *last]]))


def _counted(frame: pd.DataFrame) -> pd.DataFrame:
    """The number of seeds of a row's measures; where they have not the same, the different ones: ``2, 3``."""
    return frame.assign(n_seeds=[", ".join(map(str, sorted(numbers))) for numbers in frame["n_seeds"]])


def _published(table: pd.DataFrame) -> pd.DataFrame:
    """Systems x suites."""
    rows = []
    table = table.sort_values("kind", kind="stable")  # baselines, which have values, before the paper
    for (kind, system, corpus), records in table.groupby(["kind", "system", "corpus"], sort=False):
        protocols = [text for text in records["protocol"].unique() if str(text).startswith("babylm")]
        row = {"kind": kind.replace("_", " "), "system": system, "corpus": corpus, "protocol": ", ".join(protocols)}
        for suite, value in zip(records["suite"], records["mean"], strict=True):
            row[suite] = "" if pd.isna(value) else f"{value:g}"
        row["provenance"] = "; ".join(records["provenance"].unique())
        told = [text for column in ("source", "note") for text in records[column].dropna()]
        row["source"] = "; ".join(dict.fromkeys(part for text in told for part in str(text).split("; ") if part))
        rows.append(row)
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    suites = [suite for suite in _SUITES if suite in frame]
    columns = ["kind", "system", "corpus", "protocol", *suites, "provenance", "source"]
    return frame[columns].fillna("").astype(str)


def _differences(table: pd.DataFrame) -> pd.DataFrame:
    records = []
    table = table.sort_values(["suite", "protocol", "member"], key=_order, kind="stable")
    for record in table.fillna({"setting": "", "protocol": "", "note": ""}).to_dict("records"):
        loss = record["suite"] == "dev_ce"
        digits = 3 if loss else 1
        items = "" if pd.isna(record["item_low"]) else f"[{record['item_low']:+.1f}, {record['item_high']:+.1f}]"
        place = {"setting": record["setting"]} if "setting" in table else {}
        records.append(
            {
                **place, "comparison": f"{record['a']} - {record['b']}", "peers": record["peers"],
                "member": record["member"],
                "measure": "dev loss (nats)" if loss else f"{record['suite']} {record['protocol']}",
                "difference [95 %]": _with_interval(record, digits, sign="+"),
                "p": p_value(record["p"]), "p, adjusted": p_value(record["p_adjusted"]), "n_seeds": record["n_seeds"],
                "item level [95 %]": items, **({"note": record["note"]} if "note" in table else {}),
            }
        )  # fmt: skip
    frame = pd.DataFrame(records)
    if not any(record["item level [95 %]"] for record in records):  # dev loss alone
        frame = frame.drop(columns="item level [95 %]", errors="ignore")
    return _plain(frame)


def _diversity(table: pd.DataFrame) -> pd.DataFrame:
    """Arms x quantities, and the diversity against the control's."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    keys = [key for key in ("setting", "corpus", "arm", "peers") if key in table]
    ordered = table.fillna({"setting": "", "note": ""}).sort_values(["arm", "peers"], key=_order, kind="stable")
    for record in ordered.to_dict("records"):
        row = rows.setdefault(tuple(record[key] for key in keys), {key: record[key] for key in (*keys, "n_seeds")})
        row[record["quantity"]] = _with_interval(record, 3)
        if record["quantity"] == UNIFORM:
            row["at equal weights, minus independent's [95 %]"] = _change(record, 3)
            row |= {"p": p_value(record["p"]), "p, adjusted": p_value(record["p_adjusted"])}
    frame = pd.DataFrame(rows.values())
    names = {"weighted_mean_peer": "weighted mean of the peers", UNIFORM: "diversity at equal weights"}
    return _plain(frame.rename(columns=names))


def _of_protocols(table: pd.DataFrame) -> str:
    """What T8's rows have in common: the columns' heads are too narrow for it."""
    names = ", ".join(table["protocol"].dropna().unique())
    return f"mean over the peers of a run; protocol {names}" if names else "mean over the peers of a run"


def _ablations(table: pd.DataFrame) -> pd.DataFrame:
    """Ablations x measures of the mean peer, each with its difference from the base; the dev loss, which has no
    ceiling, first."""
    rows: dict[str, dict[str, Any]] = {}
    mine = table[table["member"] == "mean_peer"].fillna({"protocol": "", "note": ""})
    noted = "note" in mine
    several = mine.groupby("suite")["protocol"].nunique() > 1
    mine = mine.assign(later=mine["suite"] != "dev_ce").sort_values(["later", "suite", "protocol"], kind="stable")
    for record in mine.to_dict("records"):
        loss, suite = record["suite"] == "dev_ce", record["suite"]
        measure = "dev loss" if loss else f"{suite} {record['protocol']}" if several[suite] else suite
        digits, unit = (3, "nats") if loss else (1, "%")
        name = record["ablation"]
        ends = {"n_seeds": set(), "flops_with_teacher": record["flops_with_teacher"], "weights": record["peer_weights"]}
        ends |= {"note": record["note"]} if noted else {}
        row = rows.setdefault(name, {"ablation": name, **ends})
        row["n_seeds"].add(int(record["n_seeds"]))
        row[f"{measure} ({unit})"] = _with_interval(record, digits)
        row[f"{measure} minus base [95 %]"] = _change(record, digits)
        row[f"{measure} p adj."] = p_value(record["p_adjusted"])
    first = list(table["ablation"].unique())
    frame = pd.DataFrame(sorted(rows.values(), key=lambda row: first.index(row["ablation"])))
    last = ["n_seeds", "flops_with_teacher", "weights", *(["note"] if noted else [])]
    if frame.empty:
        return frame
    return _plain(_counted(frame[[*(name for name in frame if name not in last), *last]]))


def _replays(table: pd.DataFrame) -> pd.DataFrame:
    """T9 and T9_repairs, what a defect does before what was counted; ends of intervals only where there are some."""
    ends = [name for name in table if str(name).endswith(("_low", "_high")) and _blank(table[name])]
    table = table.drop(columns=ends)
    first = [name for name in table if str(name).startswith(("case", "finding", "dev_ce", "change", "accuracy"))]
    digits = {str(name): 3 for name in table if str(name).startswith(_LOSSES)}
    return _plain(table[[*first, *(name for name in table if name not in first)]], digits)


def _by_arm(table: pd.DataFrame) -> pd.DataFrame:
    """Phenomena x arms."""
    rows: dict[str, dict[str, Any]] = {}
    ordered = table.sort_values(["arm", "peers"], key=_order, kind="stable")
    for record in ordered.fillna({"setting": "", "note": ""}).to_dict("records"):
        told = [record.get("setting", ""), record.get("note", "")]
        column = f"{record['arm']}, {peers_in_words(record['peers'])}{''.join(' ' + text for text in told if text)}"
        row = rows.setdefault(
            record["phenomenon"], {"phenomenon": record["phenomenon"], "paradigms": record["paradigms"]}
        )
        row[column] = _with_interval(record, 1)
    return _plain(pd.DataFrame(rows.values()).sort_values("phenomenon"))


def _change(record: dict[str, Any], digits: int) -> str:
    """The difference of a record from its control, with its interval, and of how many seeds where they are fewer."""
    own = {"mean": "difference", "low": "difference_low", "high": "difference_high", "values": "differences"}
    text = _with_interval({**record, **{name: record[of] for name, of in own.items()}}, digits, "+")
    seeds = record["difference_n_seeds"]
    return f"{text} ({seeds:.0f} of {record['n_seeds']:.0f} seeds)" if text and seeds < record["n_seeds"] else text


def _with_interval(record: dict[str, Any], digits: int, sign: str = "") -> str:
    if pd.isna(record["mean"]):
        return ""
    text = f"{record['mean']:{sign}.{digits}f}"
    if pd.notna(record["low"]):
        text += f" [{record['low']:{sign}.{digits}f}, {record['high']:{sign}.{digits}f}]"
    elif record["n_seeds"] == 1 and "interval" in record and pd.notna(record.get("item_low")):
        text += f" [{record['item_low']:.{digits}f}, {record['item_high']:.{digits}f}] items only"
    values = str(record["values"]).split()
    return f"{text}\n{'  '.join(f'{float(value):{sign}.{digits}f}' for value in values)}" if len(values) > 1 else text


def _plain(table: pd.DataFrame, digits: Mapping[str, int] | None = None) -> pd.DataFrame:
    """Every value as text; `digits`: decimals of the columns that are not shown as others are."""
    decimals = {**_PERCENT, **(digits or {})}
    shown = {column: [_cell(str(column), value, decimals) for value in table[column]] for column in table}
    return pd.DataFrame(shown, dtype=object)


def _cell(column: str, value: Any, decimals: Mapping[str, int]) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if column.startswith("flops"):
        return f"{value:.3g}"
    if column in decimals:
        return f"{value:.{decimals[column]}f}"
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def _blank(column: pd.Series) -> bool:
    return bool((column.isna() | (column == "")).all())


def _order(column: pd.Series) -> pd.Series:
    """Sort key: arms and members in their own order, the dev loss after the suites."""
    if column.name == "suite":
        return column.replace("dev_ce", "~")
    places = {"arm": ARMS, "member": MEMBERS}.get(str(column.name))
    return column.map({name: place for place, name in enumerate(places)}) if places else column
