"""Tables T1, T3 to T5 and T7 as data frames, from tidy tables (`wmlkit.results`) and prepared corpora; all tables that
the runs of a preset's folder give, written.

A table holds what there is data for and nothing else; every table made from runs has a column `corpus`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import evaluations, paths, results
from .ablation_table import ablation_table
from .ablations import noted_plan
from .config import Config, config_of_run, preset_names
from .data.statistics import read_statistics
from .diversity import diversity, diversity_table
from .errors import UserError
from .hyperparameters import hyperparameters
from .items import item_bootstrap, items_of, paired_items, with_item_intervals
from .lengths import by_length
from .overfitting import stopped
from .provenance import forget_provenance, from_a_notebook, of_runs, read_provenance, record_provenance
from .run_files import Run
from .run_settings import settings_read
from .runs import MEMBERS, finished_runs, read_runs
from .score_tables import dev_text, glue, protocols, thirds

PROVENANCES = ("published", "secondary", "unknown")


def corpora(prepared_folder: Path) -> pd.DataFrame:
    """T1: one row a domain of a split of the source, and one for all of them, from a prepared corpus."""
    # Imported here: it needs transformers, and reading results must not wait for that.
    from .data.coverage import whole_words

    statistics = read_statistics(prepared_folder)
    whole = whole_words(prepared_folder, statistics) if (prepared_folder / "train.tokens").is_file() else {}
    given = {(record["domain"], record["split"]) for record in statistics["domains"]}
    rows = []
    for record in statistics["domains"]:
        row = {"corpus": statistics["corpus"], "split": record["split"], "domain": record["domain"]}
        for size in ("words", "documents", "lines", "tokens"):
            for when in ("before", "after"):
                row[f"{size}_{when}"] = record[when][size]
        # The held-out text is a part of the source's training text, and so is dev text where the source has none.
        parts = [part for part in statistics["splits"] if part["domain"] == record["domain"]]
        dev_given = (record["domain"], "dev") in given
        used = [p["words"] for p in parts if (p["split"] == "dev" and dev_given) == (record["split"] == "dev")]
        one_token, words = whole.get((record["split"], record["domain"]), (0, 0))
        rows.append({**row, "used_words": sum(used), "whole": one_token, "counted": words})
    table = pd.DataFrame(rows)
    totals = table.groupby(["corpus", "split"], sort=False).sum(numeric_only=True).reset_index().assign(domain="all")
    table = pd.concat([table, totals[list(table.columns)]]).sort_values("split", kind="stable", ascending=False)
    for when in ("before", "after"):
        words = table[f"words_{when}"].where(table[f"words_{when}"] > 0)
        table[f"fertility_{when}"] = table[f"tokens_{when}"] / words
    table["coverage"] = table["whole"] / table["counted"].where(table["counted"] > 0)
    return table.drop(columns=["whole", "counted"]).reset_index(drop=True)


def trained_students(run: Run) -> pd.DataFrame:
    """T3 where no search ran beside: a row for each shape that a run trained, with the columns of
    `wmlkit.students.compare_methods` that the run knows."""
    rows = [
        {
            "method": run.config["search"]["method"],
            "peer": peer,
            **student,
            "error_percent": 100 * (student["parameters"] - student["target"]) / student["target"],
        }
        for peer, student in enumerate(run.students, start=1)
    ]
    return pd.DataFrame(rows)


def read_published(path: Path | None = None) -> pd.DataFrame:
    """The scores of ``published.json``: kind, system, corpus, arm, peers, suite, task, protocol, value, provenance,
    source, note. Raises UserError where a value contradicts its provenance."""
    path = path or paths.PACKAGE / "published.json"
    document = paths.read_json(path)
    for row in document["scores"]:
        if row["provenance"] not in PROVENANCES or (row["value"] is None) != (row["provenance"] == "unknown"):
            raise UserError(
                f"{path}: {row['system']} on {row['suite']} has value {row['value']} and provenance "
                f"{row['provenance']!r}; expected no value for 'unknown' and one for the others; mend it"
            )
    table = pd.DataFrame(document["scores"]).astype({"value": float, "peers": "Int64"})
    return table.assign(source=[document["sources"].get(source, source) for source in table["source"]])


def main_result(scores: pd.DataFrame, published: pd.DataFrame | None = None, runs: Sequence[Run] = ()) -> pd.DataFrame:
    """T4: measured means over seeds, then the paper's numbers and the official baselines.

    `scores` is `results.scores_table` and `results.dev_table`, concatenated. Columns: kind (`measured`, `paper`,
    `official_baseline`), system, setting, corpus, arm, peers, member, suite, protocol, unit, mean, low, high,
    n_seeds, seeds, values, interval, item_low, item_high, ties, provenance, source, note. Published rows are scores on
    other text, as corpus and protocol say. With `runs`, a result of one seed has an interval over its items.
    """
    by = ["setting", "corpus", "arm", "peers", "member", "suite", "protocol"]
    shown = results.with_mean_peer(results.with_single_peer(scores))
    shown = shown[shown["member"].isin(MEMBERS)]
    measured = results.over_seeds(shown, by).assign(
        kind="measured", provenance="measured", source="these runs", system=""
    )
    measured = results.noting_other_tokens(results.with_notes(measured, shown, by))
    measured = with_item_intervals(measured, shown, by, runs)
    if "ties" in shown:
        measured = results.with_means(measured, shown, by, ["ties"])
    columns = [
        "kind", "system", *by, "mean", "low", "high", "n_seeds", "seeds", "values", "interval", "item_low", "item_high",
        "ties", "provenance", "source", "note",
    ]  # fmt: skip
    if published is None:
        return results.with_unit(measured.reindex(columns=columns))
    others = published[published["kind"].isin(["paper", "official_baseline"]) & (published["task"] == "")]
    others = others.rename(columns={"value": "mean"}).assign(setting="", member="")
    frames = [frame.reindex(columns=columns).astype(object) for frame in (measured, others)]
    table = pd.concat(frames, ignore_index=True)
    numbers = {name: float for name in ("mean", "low", "high", "item_low", "item_high", "ties")}
    return results.with_unit(table.astype({**numbers, "peers": "Int64", "n_seeds": "Int64"}))


def differences(scores: pd.DataFrame, runs: Sequence[Run] = (), resamples: int = 2000) -> pd.DataFrame:
    """T4_differences: `results.paired_differences` of the members of T4, `unit`, and with `runs` item_low and
    item_high."""
    shown = results.with_mean_peer(scores)
    table = results.paired_differences(shown[shown["member"].isin(MEMBERS)])
    rng = np.random.default_rng(0)
    loaded: dict[tuple[Any, ...], dict[int, pd.DataFrame]] = {}  # of one suite and protocol: `items_of`
    evaluation = None
    intervals = {}
    for row in table.sort_values(["suite", "protocol"], kind="stable").itertuples():
        if (row.suite, row.protocol) != evaluation:  # forget the last one's items: a suite has tens of thousands a run
            evaluation, loaded = (row.suite, row.protocol), items_of(runs, scores, row.suite, row.protocol)
        a, b = (loaded.get((row.setting, row.peers, arm), {}) for arm in (row.a, row.b))
        items = paired_items(a, b, row.member)
        whole = " ".join(map(str, sorted(set(items["seed"])))) == row.seeds  # else an interval around another mean
        intervals[row.Index] = item_bootstrap(items, rng, resamples) if whole else (np.nan, np.nan)
    bounds = pd.DataFrame([intervals[index] for index in table.index], columns=["item_low", "item_high"], dtype=float)
    return results.with_unit(pd.concat([table.reset_index(drop=True), bounds], axis=1))


def by_phenomenon(paradigms: pd.DataFrame, runs: Sequence[Run] = ()) -> pd.DataFrame:
    """T5: corpus, suite, protocol, arm, peers, member, phenomenon, paradigms (their number), mean, low, high, ...

    With `runs`, a result of one seed has an interval over its items.
    """
    if paradigms.empty:
        return paradigms
    by = ["setting", "corpus", "suite", "protocol", "arm", "peers", "member", "phenomenon"]
    shown = paradigms[paradigms["member"].isin(MEMBERS)]
    per_run = shown.groupby(["run", "seed", *by], sort=False, dropna=False)
    means = per_run.agg(accuracy=("accuracy", "mean"), paradigms=("paradigm", "nunique")).reset_index()
    table = results.with_notes(results.over_seeds(means, [*by, "paradigms"], value="accuracy"), shown, by)
    return with_item_intervals(table, shown, by, runs)


def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """T7: means over seeds of `results.runs_table` by setting, arm, peers and device.

    flops_with_teacher and seconds_with_teacher include the training of a teacher, in full for every row that has one,
    although runs of one seed share it; NaN where that is unknown. `note` says what it took. All else is the run's own.
    """
    by = ["setting", "corpus", "arm", "peers", "device", "precision"]
    numbers = ["parameters", "tokens", "words", "flops", "seconds", "peak_memory", "clipped"]
    of_teacher = [f"teacher_{name}" for name in results.TEACHER_COST]
    means = runs.groupby(by, sort=False)[[*numbers, *of_teacher]].mean().reset_index()
    means["tokens_per_second"] = means["tokens"] / means["seconds"]
    means = results.with_notes(means, runs, by)
    means["note"] = [_cost_note(row) for row in means.to_dict("records")]
    for name in ("flops", "seconds"):
        means.insert(means.columns.get_loc(name) + 1, f"{name}_with_teacher", means[name] + means[f"teacher_{name}"])
    means = means.drop(columns=of_teacher)
    seconds = results.over_seeds(runs, by, value="seconds")[[*by, "n_seeds", "seeds", "values"]]
    return means.merge(seconds.rename(columns={"values": "seconds_values"}), on=by)


def _cost_note(row: Mapping[str, Any]) -> str:
    if pd.isna(row["teacher_tokens"]):
        cost = "the cost of the teacher's training is unknown"
    elif row["teacher_tokens"] > 0:
        cost = (
            f"the teacher's training took {row['teacher_tokens']:,.0f} tokens, {row['teacher_flops']:.3g} FLOP, "
            f"{row['teacher_seconds']:,.1f} s"
        )
    else:
        cost = ""
    return ", ".join(text for text in (row["note"], cost) if text)


def save_table(folder: Path, name: str, table: pd.DataFrame, **provenance: Any) -> Path:
    """Write ``folder/<name>.csv`` and note its provenance (arguments of `record_provenance`).

    A table that comes out the same as the one there keeps the note of what made that.
    """
    path, text = folder / f"{name}.csv", table.to_csv(index=False, float_format="%.10g")
    if name in read_provenance(folder) and path.is_file() and path.read_bytes() == text.encode():
        return path
    record_provenance(folder, name, **provenance)  # first: a note without its table is made good by the next call
    paths.write_text(path, text)
    return path


def write_tables(folder: Path, command: str = "wmlkit report", overwrite: bool = True) -> list[Path]:
    """Write what the finished runs of a preset's folder give into ``<folder>/tables``; returns the files written.

    A table that they do not give any more is removed, so that none tells of runs that are gone.
    Without `overwrite`, what a notebook made stays. A notebook's T3 always does: the runs know what was found, it also
    compares methods.
    """
    runs = finished_runs(folder)
    of_main = [run for run in runs if not run.setting] or runs[:1]
    main, largest = of_main[0], max(of_main, key=lambda run: run.peers)
    # T8 stands beside the runs of the study, and where the ablations are read alone, beside themselves
    ablated = folder if noted_plan(folder) else paths.ablations(folder.parent, folder.name)
    asked = noted_plan(ablated)
    config = asked or _configured(runs)  # what cannot be read is told before anything is written
    planned = {} if asked is None else {"ablations": asked.resolved()["ablations"]}
    scores, paradigms = all_scores(folder), _main_protocol(results.paradigm_table(folder), main)
    makers: dict[str, Callable[[], pd.DataFrame]] = {
        "T1": lambda: corpora(main.prepared) if (main.prepared / "statistics.json").is_file() else pd.DataFrame(),
        "T2": lambda: hyperparameters(main.config["preset"], _used(of_main) | planned),
        "T3": lambda: trained_students(largest),
        "T4": lambda: main_result(scores, read_published(), runs),
        "T4_differences": lambda: differences(scores, runs),
        "T4_diversity": lambda: diversity(diversity_table(runs)),
        "T4_stopped": lambda: differences(stopped(runs)),
        "T4_protocols": lambda: protocols(evaluations.several_protocols(evaluations.protocol_table(folder))),
        "T4_lengths": lambda: by_length(runs, _main_protocol(results.scores_table(folder), main)),
        "T4_thirds": lambda: thirds(paradigms),
        "T4_text": lambda: dev_text(evaluations.text_table(folder)),
        "T5": lambda: by_phenomenon(paradigms, runs),
        "T6": lambda: glue(evaluations.glue_table(folder)),
        "T7": lambda: cost(results.runs_table(folder)),
        "T8": lambda: ablation_table(ablated, config),
    }
    if main.config["preset"] not in preset_names():
        del makers["T2"]  # of ablations, say: no preset has the sources
    written = []
    for name, make in makers.items():
        there = (paths.tables(folder) / f"{name}.csv").is_file()
        if there and (name == "T3" or not overwrite) and from_a_notebook(paths.tables(folder), name):
            continue
        table = make()
        if len(table):
            used = read_runs(ablated) if name == "T8" else runs
            noted = of_runs(used, command, "wmlkit.tables.write_tables")
            written.append(save_table(paths.tables(folder), name, table, **noted))
        elif name not in ("T1", "T8"):  # of runs or evaluations that are gone; text and ablations may lie elsewhere
            (paths.tables(folder) / f"{name}.csv").unlink(missing_ok=True)
            forget_provenance(paths.tables(folder), name)
    return written


def _main_protocol(paradigms: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Of a suite's several protocols the one that the runs' configuration names, as T4_protocols has the others; all
    of them where a suite was not scored under that."""
    if paradigms.empty:
        return paradigms
    named = paradigms["protocol"] == run.config["evaluate"]["protocol"]
    return paradigms[named | ~named.groupby([paradigms["setting"], paradigms["suite"]]).transform("any")]


def _used(runs: Sequence[Run]) -> dict[str, Any]:
    """The configuration of `runs` of one setting, with every value as a run that reads it has it."""
    used = {section: dict(values) if isinstance(values, dict) else values for section, values in runs[0].config.items()}
    for key, value in settings_read(runs).items():
        section, name = key.split(".")
        used.setdefault(section, {})[name] = value
    return used


def _configured(runs: Sequence[Run]) -> Config:
    """The configuration that a study's runs have in common; what is the method's own comes from a run of the method."""
    own = next((run for run in runs if not run.setting and run.arm == "wml"), runs[0])
    return config_of_run(own.config, own.folder / "config.json")


def all_scores(folder: Path) -> pd.DataFrame:
    """Accuracies and dev losses of the finished runs: what `main_result` and `differences` take.

    Of a suite's protocols only the one that the runs' configuration names and those under which the most runs were
    scored (`evaluations.of_common_protocols`); T4_protocols has the others of runs that were scored under several.
    """
    named = {run.config["evaluate"]["protocol"] for run in read_runs(folder) if not run.setting}
    scores = evaluations.of_common_protocols(results.scores_table(folder), named)
    return pd.concat([scores, results.dev_table(folder)], ignore_index=True)
