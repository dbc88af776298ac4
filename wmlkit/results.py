"""Run folders -> tidy tables. One row a run, a logged value, a score or a paradigm; nothing is averaged here.

Columns that all tables share: ``run`` (folder name), ``setting`` (how the run's configuration differs from the
folder's main one; empty for the main one), ``arm``, ``peers``, ``seed``. A run counts once it has ``done.json``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import paths
from .config import ARMS, load_preset, preset_names
from .errors import UserError

KEYS = ["run", "setting", "arm", "peers", "seed"]
PER_PEER = ("ce", "kl", "total", "peer_weights", "hypergradient", "dev_ce", "held_out_ce")  # lists of P values
PER_RUN = ("lr", "alpha", "dev_ce_ensemble", "held_out_ce_ensemble", "tokens_per_second", "peak_memory", "seconds")
SUMMARY_MEMBER = re.compile(r"peer_\d+|best_peer|ensemble")

_RUN_NAME = re.compile(rf"(?:{'|'.join(ARMS)})-p\d+-s\d+-[0-9a-f]{{8}}")
_SHAPING = ("data", "model", "search", "mutual", "outer", "train")  # sections that shape what a run learns


@dataclass(frozen=True)
class Run:
    """A finished run: what its JSON files say."""

    folder: Path
    arm: str
    peers: int
    seed: int
    setting: str
    config: dict[str, Any]
    data: dict[str, Any]
    students: list[dict[str, Any]]
    environment: dict[str, Any]
    done: dict[str, Any]

    @property
    def keys(self) -> dict[str, Any]:
        """The columns that all tables share."""
        return {
            "run": self.folder.name, "setting": self.setting, "arm": self.arm, "peers": self.peers, "seed": self.seed
        }  # fmt: skip

    @property
    def best_member(self) -> str:
        """Name of the peer with the lowest held-out cross-entropy."""
        return f"peer_{self.done['best_peer']}"


def read_runs(folder: Path) -> list[Run]:
    """All finished runs below a preset's folder, in the order of arms, peers, settings and seeds.

    Raises UserError, naming the file, where one is not JSON or lacks what this version of wmlkit writes.
    """
    read = [_read_run(path) for path in _run_folders(folder) if (path / "done.json").is_file()]
    main = _main_setting([run.config for run in read])
    named = [Run(**{**run.__dict__, "setting": _difference(run.config, main)}) for run in read]
    return sorted(named, key=lambda run: (ARMS.index(run.arm), run.peers, run.setting, run.seed))


def unfinished_runs(folder: Path) -> list[str]:
    """Names of the run folders that have no ``done.json``; no table counts them."""
    return [path.name for path in _run_folders(folder) if not (path / "done.json").is_file()]


def runs_table(folder: Path) -> pd.DataFrame:
    """One row a finished run: what it is, where it ran and what it cost.

    `parameters` and `flops` are summed over the peers, `peak_memory` is in MiB, cross-entropies in nats per
    scored token; `dev_ce` and `held_out_ce` are those of the best peer.
    """
    rows = []
    for run in read_runs(folder):
        done, best = run.done, run.done["best_peer"] - 1
        rows.append({
            **run.keys,
            "corpus": run.data["name"],
            "data_hash": run.data["hash"],
            "steps": done["steps"],
            "tokens": done["tokens"],
            "words": _words(run.folder / "metrics.jsonl"),
            "parameters": sum(done["parameters"]),
            "flops": done["flops"],
            "seconds": done["seconds"],
            "peak_memory": done["peak_memory"],
            "best_peer": done["best_peer"],
            "dev_ce": done["dev_ce"][best],
            "held_out_ce": done["held_out_ce"][best],
            "dev_ce_ensemble": done["dev_ce_ensemble"],
            "commit": run.environment["commit"],
            "device": run.environment["device"],
            "precision": run.environment["precision"],
            "command": run.environment["command"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def metrics_table(folder: Path) -> pd.DataFrame:
    """Every logged value of every finished run, long form: see `run_metrics`, plus the shared columns."""
    frames = []
    for run in read_runs(folder):
        frame = run_metrics(run.folder)
        for position, (name, value) in enumerate(run.keys.items()):
            frame.insert(position, name, value)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def run_metrics(run_folder: Path) -> pd.DataFrame:
    """Logged values of one run, finished or not: step, tokens, words, peer, quantity, value.

    `peer` is 1-based, and missing for a quantity of the whole run. `quantity` is a name of ``metrics.jsonl``
    (`ce`, `kl`, `total`, `peer_weights`, `hypergradient`, `dev_ce`, ...). A step logged twice counts once, the
    last time. Raises UserError for a broken line.
    """
    lines = {line["step"]: line for line in _metric_lines(run_folder / "metrics.jsonl")}
    rows: list[tuple[Any, ...]] = []
    for step in sorted(lines):
        line = lines[step]
        place = (step, line["tokens"], line["words"])
        for quantity in PER_PEER:
            for index, value in enumerate(line.get(quantity) or (), start=1):
                rows.append((*place, index, quantity, value))
        for quantity in PER_RUN:
            if line.get(quantity) is not None:
                rows.append((*place, None, quantity, line[quantity]))
    frame = pd.DataFrame(rows, columns=["step", "tokens", "words", "peer", "quantity", "value"])
    return frame.astype({"peer": "Int64", "value": float})


def scores_table(folder: Path) -> pd.DataFrame:
    """One row a member's score: suite, protocol, member, score (0-100, macro over paradigms), ties (% of items), n.

    Members are those of the evaluation files and `best_peer`, which repeats the peer that the held-out text chose.
    """
    rows = []
    for run, document, member in _members(folder):
        rows.append({
            **run.keys,
            "corpus": run.data["name"],
            "suite": document["suite"],
            "protocol": document["protocol"],
            "member": member["member"],
            "score": member["score"],
            "ties": member["ties"],
            "n": member["n"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def paradigm_table(folder: Path) -> pd.DataFrame:
    """One row a member and a paradigm: suite, protocol, member, paradigm, phenomenon, field, accuracy, ties, n."""
    columns = ("paradigm", "phenomenon", "field", "accuracy", "ties", "n")
    rows = []
    for run, document, member in _members(folder):
        shared = {"suite": document["suite"], "protocol": document["protocol"], "member": member["member"]}
        for paradigm in member["paradigms"]:
            rows.append({**run.keys, **shared, **{column: paradigm[column] for column in columns}})
    return pd.DataFrame(rows)


def dev_table(folder: Path) -> pd.DataFrame:
    """Final dev cross-entropy in nats per scored token, in the form of `scores_table`: suite `dev_ce`, no protocol."""
    rows = []
    for run in read_runs(folder):
        values = {f"peer_{index}": value for index, value in enumerate(run.done["dev_ce"], start=1)}
        values["best_peer"] = values[run.best_member]
        values["ensemble"] = run.done["dev_ce_ensemble"]
        for member, value in values.items():
            rows.append({**run.keys, "corpus": run.data["name"], "suite": "dev_ce", "protocol": "",
                         "member": member, "score": value})  # fmt: skip
    return pd.DataFrame(rows)


def items_table(run: Run, suite: str, protocol: str) -> pd.DataFrame | None:
    """Items of one evaluation: paradigm, pair_id, copy (0 unless a pair_id repeats), then a column a member.

    A cell is 1 for the good sentence preferred, 0 for the bad one and, at a tie, what the evaluation's `ties` says
    (`half` and `random` give 1/2, the expectation of either; `first` gives 1). `best_peer` and `mean_peer` are added.
    Returns None where the run has no item file of that evaluation.
    """
    path = run.folder / "evaluation" / f"{suite}-{protocol}.items.jsonl"
    if not path.is_file():
        return None
    settings = _read(run.folder / "evaluation" / f"{suite}-{protocol}.json", ("settings",))["settings"]
    at_tie = 1.0 if settings.get("ties") == "first" else 0.5
    rows = []
    for item in _lines(path, ("paradigm", "pair_id", "scores")):
        preferred = {name: at_tie if good == bad else float(good > bad) for name, (good, bad) in item["scores"].items()}
        rows.append({"paradigm": item["paradigm"], "pair_id": item["pair_id"], **preferred})
    table = pd.DataFrame(rows)
    table.insert(2, "copy", table.groupby(["paradigm", "pair_id"]).cumcount())
    table["mean_peer"] = table[[name for name in table if re.fullmatch(r"peer_\d+", str(name))]].mean(axis=1)
    return table.assign(best_peer=table[run.best_member])


def summary(
    folder: Path, minutes: Mapping[str, float | None] | None = None, commit: str | None = None, device: str | None = None
) -> dict[str, Any]:
    """The document of ``summary.json``: preset, commit, device, minutes and the results of the main setting.

    What is not given is read from the runs: their commits and devices, and the minutes that training took (the
    runs do not record how long their evaluation took: that and the total stay null unless given).
    """
    runs = [run for run in read_runs(folder) if not run.setting]
    train = sum(run.done["seconds"] for run in runs) / 60
    scores = scores_table(folder)
    results = []
    if len(scores):
        wanted = scores[(scores["setting"] == "") & scores["member"].map(lambda name: bool(SUMMARY_MEMBER.fullmatch(name)))]
        columns = ["arm", "peers", "seed", "suite", "protocol", "member", "score", "ties", "n"]
        results = json.loads(wanted[columns].to_json(orient="records", double_precision=10))
    return {
        "preset": folder.name,
        "commit": commit or _distinct(str(run.environment["commit"]) for run in runs),
        "device": device or _distinct(str(run.environment["device"]) for run in runs),
        "minutes": {"train": train, "evaluate": None, "total": None, **(minutes or {})},
        "results": results,
    }


def write_summary(folder: Path, **known: Any) -> Path:
    """Write ``summary.json`` into a preset's folder; arguments as of `summary`."""
    return paths.write_json(folder / "summary.json", summary(folder, **known))


def _distinct(values: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _run_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; expected a preset's folder with runs in it; train first")
    return sorted(path for path in folder.iterdir() if path.is_dir() and _RUN_NAME.fullmatch(path.name))


def _read_run(folder: Path) -> Run:
    document = _read(folder / "config.json", ("config", "data", "hash", "students"))
    done = _read(
        folder / "done.json",
        ("steps", "tokens", "seconds", "best_peer", "held_out_ce", "dev_ce", "dev_ce_ensemble", "parameters", "flops",
         "peak_memory"),
    )  # fmt: skip
    environment = _read(folder / "environment.json", ("commit", "device", "precision", "command"))
    try:
        config = document["config"]
        arm, peers, seed = config["mutual"]["arm"], config["mutual"]["num_peers"], config["train"]["seed"]
        settings = {section: dict(config[section]) for section in _SHAPING}
        name, data_hash = document["data"]["name"], document["data"]["hash"]
    except (KeyError, TypeError) as error:
        raise _other_format(folder / "config.json", str(error)) from None
    if arm not in ARMS or not 1 <= done["best_peer"] <= peers or len(done["dev_ce"]) != peers:
        raise UserError(
            f"{folder / 'done.json'} does not fit {peers} peers of arm {arm!r} in config.json; expected one value a "
            f"peer and best_peer from 1 to {peers}; remove the run's folder and train it again"
        )
    del settings["mutual"]["arm"], settings["mutual"]["num_peers"], settings["train"]["seed"]
    return Run(
        folder, arm, peers, seed, "", {"preset": config.get("preset"), **settings},
        {"name": name, "hash": data_hash, **document["data"]}, document["students"], environment, done,
    )  # fmt: skip


def _main_setting(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The preset as shipped where a run used it, else the configuration that most runs share."""
    if not configs:
        return {}
    preset = configs[0]["preset"]
    if preset in preset_names():
        shipped = load_preset(preset).resolved()
        for config in configs:
            if not _difference(config, shipped):
                return config
    counts = Counter(json.dumps(config, sort_keys=True) for config in configs)
    most = max(counts.values())
    return json.loads(min(text for text, count in counts.items() if count == most))


def _difference(config: Mapping[str, Any], main: Mapping[str, Any]) -> str:
    """``"mutual.alpha=0.9 train.steps=200"``: the values of `config` that differ from `main`."""
    return " ".join(
        f"{section}.{name}={json.dumps(value)}"
        for section in _SHAPING
        for name, value in config[section].items()
        if value != main[section].get(name)
    )


def _members(folder: Path) -> Iterator[tuple[Run, dict[str, Any], dict[str, Any]]]:
    """(run, evaluation document, member) for all members, `best_peer` included."""
    for run in read_runs(folder):
        for path in sorted((run.folder / "evaluation").glob("*.json")):
            document = _read(path, ("suite", "protocol", "settings", "data_hash", "members"))
            for member in document["members"]:
                for key in ("member", "score", "ties", "n", "paradigms"):
                    if key not in member:
                        raise _other_format(path, repr(key))
                yield run, document, member
                if member["member"] == run.best_member:
                    yield run, document, {**member, "member": "best_peer"}


def _words(path: Path) -> float:
    """Words seen at the last logged step."""
    last = None
    for last in _metric_lines(path):
        pass
    return float(last["words"]) if last else np.nan


def _metric_lines(path: Path) -> Iterator[dict[str, Any]]:
    return _lines(path, ("step", "tokens", "words"))


def _lines(path: Path, required: Sequence[str]) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} is missing; expected a file of one JSON object a line; remove its run and repeat it")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            yield _parsed(line, f"line {number} of {path}", path, required)


def _read(path: Path, required: Sequence[str]) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing; expected it in every finished run; remove that run's folder and repeat it")
    return _parsed(path.read_text(encoding="utf-8"), str(path), path, required)


def _parsed(text: str, place: str, path: Path, required: Sequence[str]) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{place} is not JSON ({error.msg}, column {error.colno}); expected one JSON object; "
            "remove that run's folder and repeat the run"
        ) from None
    for key in required:
        if not isinstance(document, dict) or key not in document:
            raise _other_format(path, repr(key))
    return document


def _other_format(path: Path, key: str) -> UserError:
    return UserError(
        f"{path} has no {key}; expected the files that this version of wmlkit writes; move runs of other versions "
        "elsewhere and repeat them"
    )
