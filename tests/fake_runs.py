"""Writes run folders of the real format with made-up numbers, the same ones every time: nothing here was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wmlkit import paths
from wmlkit.config import Config
from wmlkit.evaluate.protocols import get_protocol
from wmlkit.identity import digest
from wmlkit.run_files import FORMAT

ITEMS = 40  # items a paradigm

PARADIGMS = (  # paradigm, phenomenon, field
    ("anaphor_number_agreement", "anaphor_agreement", "morphology"),
    ("transitive", "argument_structure", "syntax"),
    ("principle_A_domain_1", "binding", "syntax_semantics"),
    ("existential_there_subject_raising", "control_raising", "syntax_semantics"),
    ("determiner_noun_agreement_with_adj_irregular_1", "determiner_noun_agreement", "morphology"),
    ("ellipsis_n_bar_1", "ellipsis", "syntax"),
    ("wh_vs_that_with_gap_long_distance", "filler_gap_dependency", "syntax"),
    ("irregular_past_participle_verbs", "irregular_forms", "morphology"),
    ("coordinate_structure_constraint_complex_left_branch", "island_effects", "syntax"),
    ("sentential_negation_npi_licensor_present", "npi_licensing", "semantics"),
    ("existential_there_quantifiers_1", "quantifiers", "semantics"),
    ("distractor_agreement_relative_clause", "subject_verb_agreement", "morphology"),
    ("irregular_plural_subject_verb_agreement_1", "subject_verb_agreement", "morphology"),
)
GAIN = {"independent": 0.0, "dml": 1.5, "wml": 2.0, "distill": 1.0}  # points, made up
STUDY = (("independent", 1), ("independent", 4), ("dml", 4), ("wml", 2), ("wml", 4), ("distill", 4))


def write_study(
    folder: Path,
    study: Sequence[tuple[str, int]] = STUDY,
    seeds: Sequence[int] = (0, 1, 2),
    protocols: Sequence[str] = ("babylm2025", "babylm2024-fixed"),
    suite: str = "nursery",
    paradigms: Sequence[tuple[str, str, str]] = PARADIGMS,
    overrides: dict[str, Any] | None = None,
) -> Path:
    """One finished run for every arm, number of peers and seed, all on one prepared corpus. Returns `folder`."""
    write_prepared(folder.parent / "data" / "nursery-0a1b2c3d")
    for arm, peers in study:
        for seed in seeds:
            run = write_run(folder, arm, peers, seed, overrides or {})
            for protocol in protocols:
                write_evaluation(run, arm, peers, seed, suite, protocol, paradigms)
            if protocols:
                write_curve(run, peers, seed, suite, protocols[0])
    return folder


def write_run(folder: Path, arm: str, peers: int, seed: int, overrides: dict[str, Any] | None = None) -> Path:
    """A finished run without evaluations. Returns its folder."""
    config = Config(preset=folder.name).updated({"mutual.num_peers": peers, "train.seed": seed, **(overrides or {})})
    resolved = config.resolved()
    resolved["mutual"]["arm"] = arm
    rng = np.random.default_rng([seed, peers, len(arm)])
    data = {"folder": "nursery-0a1b2c3d", "hash": "0a1b2c3d" * 8, "name": "nursery"}
    identity = digest({"config": resolved, "data": data["hash"]})
    run = folder / f"{arm}-p{peers}-s{seed}-{identity[:8]}"
    students = [
        {"num_layers": 3 - index % 3, "num_heads": 2, "hidden_size": 64 - 8 * index,
         "intermediate_size": 256 - 32 * index, "parameters": 180_000 - 30_000 * index,
         "target": 200_000 // (index + 2) + 90_000}
        for index in range(peers)
    ]  # fmt: skip
    document = {"format": FORMAT, "config": resolved, "data": data, "hash": identity, "students": students}
    paths.write_json(run / "config.json", document)
    environment = {
        "versions": {"torch": "0.0"}, "commit": "0123abc", "device": "cpu", "device_reason": "no accelerator",
        "precision": "fp32",
        "command": f"wmlkit train --preset {folder.name} --arm {arm} --peers {peers} --seed {seed}",
        "python": "3.11", "platform": "test",
    }  # fmt: skip
    paths.write_json(run / "environment.json", environment)
    lines = _metrics(arm, peers, config.train.steps, rng)
    paths.write_text(run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    last = lines[-1]
    done = {
        "steps": last["step"], "tokens": last["tokens"], "words": last["words"], "seconds": last["seconds"],
        "peer_weights": last["peer_weights"],
        "best_peer": int(np.argmin(last["held_out_ce"])) + 1, "held_out_ce": last["held_out_ce"],
        "dev_ce": last["dev_ce"], "dev_ce_ensemble": last["dev_ce_ensemble"],
        "parameters": [student["parameters"] for student in students],
        "flops": float(6 * last["tokens"] * sum(student["parameters"] for student in students)),
        "peak_memory": last["peak_memory"],
    }  # fmt: skip
    paths.write_json(run / "done.json", done)
    return run


def write_prepared(folder: Path) -> Path:
    """The statistics of a prepared corpus of two domains, without its tokens. Returns `folder`."""
    domains, splits = [], []
    for number, domain in enumerate(("childes", "simple_wiki")):
        for split, words in (("train", 50_000 * (number + 1)), ("dev", 5_000)):
            after = {"lines": words // 6, "words": words, "documents": words // 180, "tokens": words * 5 // 4}
            before = {"lines": words // 5, "words": words + 300, "documents": words // 200, "tokens": words * 3 // 2}
            record: dict[str, Any] = {"domain": domain, "split": split, "removed": {}}
            for when, size in (("before", before), ("after", after)):
                record[when] = {**size, "fertility": round(size["tokens"] / size["words"], 4)}
            domains.append(record)
            for part, share in (("train", 95), ("held_out", 5)) if split == "train" else (("dev", 100),):
                used = {name: size * share // 100 for name, size in after.items()}
                splits.append({"split": part, "domain": domain, **used})
    statistics = {"corpus": "nursery", "splits": splits, "domains": domains, "tokenizer": {}, "notes": []}
    paths.write_json(folder / "statistics.json", statistics)
    return folder


def _metrics(arm: str, peers: int, steps: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    sizes = np.arange(peers)
    weights = np.full(peers, 1 / peers)
    more = int(rng.integers(0, 50))  # rows differ in length, so seeds differ in tokens at the same step
    lines = []
    for step in range(10, steps + 1, 10):
        progress = step / steps
        curve, noise = 2.0 + 4.5 * np.exp(-5 * progress) + 0.08 * sizes - 0.02 * GAIN[arm], rng.normal(0, 0.05, peers)
        ce = curve + noise
        if not lines:
            of_dev = 0.10 + noise  # one draw a run: dev losses are of the same rows each time, and these only fall
        kl = np.full(peers, 0.4 * np.exp(-2 * progress) if peers > 1 and arm != "independent" else 0.0)
        gradient = None
        if arm == "wml":
            gradient = (0.3 * (ce - ce.mean()) + rng.normal(0, 0.02, peers)).tolist()
            weights = weights * np.exp(-0.2 * np.asarray(gradient))
            weights = weights / weights.sum()
        line: dict[str, Any] = {
            "step": step, "tokens": (2000 + more) * step, "words": 1500.0 * step, "lr": 1e-3 * (1 - 0.9 * progress),
            "alpha": 0.5, "ce": ce.tolist(), "kl": kl.tolist(), "total": (0.5 * ce + 0.5 * kl).tolist(),
            "peer_weights": weights.tolist(), "hypergradient": gradient, "tokens_per_second": 9000.0,
            "peak_memory": 310.0 + 40 * peers, "seconds": 0.05 * step * peers,
        }  # fmt: skip
        if step % 100 == 0 or step == steps:
            line["dev_ce"] = (curve + of_dev).tolist()
            line["held_out_ce"] = (ce + rng.normal(0.05, 0.15, peers)).tolist()  # so the best peer is not always one
            line["dev_ce_ensemble"] = float((curve + of_dev).min() - 0.08)
            line["held_out_ce_ensemble"] = float(ce.min() - 0.03)
        lines.append(line)
    return lines


def write_curve(run: Path, peers: int, seed: int, suite: str, protocol: str) -> None:
    """Three points of a learning curve, the last of them the end."""
    for step, target in ((200, 300_000), (600, 900_000), (1000, None)):
        members = [
            {"member": f"peer_{index}", "score": 50 + step / 40 - index + seed, "ties": 0.0, "n": 8, "paradigms": []}
            for index in range(1, peers + 1)
        ]
        place = {"target_words": target, "words": 1500 * step + 7 * seed, "tokens": 2000 * step, "step": step}
        document = {
            "suite": suite,
            "protocol": protocol,
            "settings": {"per_paradigm": 20},
            "data_hash": "beef",
            "members": members,
        }
        name = "end" if target is None else f"words-{target:010d}"
        paths.write_json(run / "curve" / f"{name}.json", {**place, "seconds": 1.0, "evaluations": [document]})


def write_evaluation(
    run: Path, arm: str, peers: int, seed: int, suite: str, protocol: str, paradigms: Sequence[tuple[str, str, str]]
) -> None:
    """One evaluation of a run and its item file; scores, ties and paradigms agree with the items."""
    rng = np.random.default_rng([seed, peers, len(arm), len(protocol)])
    shared = np.random.default_rng(seed).normal(0, 1.0)  # what all arms of a seed have in common
    names = [f"peer_{index}" for index in range(1, peers + 1)]
    if peers > 1:
        names += ["ensemble", "uniform_ensemble"]
    base = {"ensemble": 78.0, "uniform_ensemble": 77.5}
    shift = GAIN[arm] - 3.0 * protocol.startswith("babylm2024") + shared
    items: list[dict[str, Any]] = []
    per_member: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number, (paradigm, phenomenon, field) in enumerate(paradigms):
        level = 15 * np.sin(2.3 * number)
        outcomes = {}
        for index, name in enumerate(names):
            accuracy = np.clip(base.get(name, 76.0 - 1.5 * index) + shift + level, 5, 98) / 100
            outcomes[name] = rng.choice([1.0, 0.0, 0.5], size=ITEMS, p=[accuracy - 0.01, 0.99 - accuracy, 0.02])
            ties = 100 * float(np.mean(outcomes[name] == 0.5))
            per_member[name].append(
                {"paradigm": paradigm, "phenomenon": phenomenon, "field": field,
                 "accuracy": 100 * float(np.mean(outcomes[name])), "ties": ties, "n": ITEMS}
            )  # fmt: skip
        for item in range(ITEMS):
            scores = {name: [-10.5 + outcomes[name][item], -10.0] for name in names}
            tokens = [4 + item % 3, 5]  # the good sentence has fewer, as many, more
            items.append({"paradigm": paradigm, "pair_id": str(item), "tokens": tokens, "scores": scores})
    members = [
        {"member": name, "score": float(np.mean([row["accuracy"] for row in rows])),
         "official_score": float(np.mean([row["accuracy"] + row["ties"] / 2 for row in rows])),
         "ties": float(np.mean([row["ties"] for row in rows])), "n": ITEMS * len(rows), "paradigms": rows}
        for name, rows in per_member.items()
    ]  # fmt: skip
    rules = get_protocol(protocol)
    settings = {"reduction": rules.mlm_reduction, "prefix": rules.prefix, "ordering_fault": rules.ordering_fault}
    settings |= {"ties": "half", "temperature": 1.0, "dtype": "float32", "seed": 0}
    document = {
        "suite": suite, "protocol": protocol, "settings": {**settings, "per_paradigm": None}, "data_hash": "beef" * 16,
        "members": members,
        "perfect_scorer": {"score": 100.0, "with_swapped_copies": 50.0 if protocol == "babylm2024-released" else 100.0},
    }  # fmt: skip
    paths.write_json(run / "evaluation" / f"{suite}-{protocol}.json", document)
    text = "".join(json.dumps(item) + "\n" for item in items)
    paths.write_text(run / "evaluation" / f"{suite}-{protocol}.items.jsonl", text)


def write_glue(run: Path, values: dict[str, list[float]], skipped: str = "") -> None:
    """Fine-tuning scores of both peers of a run, by task and seed of fine-tuning."""
    rows = [
        {
            "paradigm": task, "phenomenon": task, "field": "glue", "score": float(np.mean(scores)), "ties": 0.0,
            "n": 50, "metric": "f1" if task == "mrpc" else "accuracy", "majority_class": 60.0,
            "selected_by": "accuracy", "per_seed": scores,
            "all_metrics": {"accuracy": float(np.mean(scores)) / (2 if task == "mrpc" else 1)},
        }
        for task, scores in values.items()
    ]  # fmt: skip
    members = [
        {
            "member": f"peer_{i}",
            "score": np.mean([r["score"] for r in rows]),
            "ties": 0.0,
            "n": 50,
            "paradigms": rows,
        }
        for i in (1, 2)
    ]
    document = {
        "suite": "glue", "protocol": "babylm2025", "data_hash": "x",
        "settings": {"seeds": [42, 43, 44], "max_train": 10, "max_valid": None, "epochs": None},
        "skipped": [{"task": skipped, "reason": f"no {skipped}.train.jsonl"}] if skipped else [], "members": members,
    }  # fmt: skip
    paths.write_json(paths.evaluation(run, "glue", "babylm2025"), document)


def evaluated(run: Path, suite: str, data_hash: str | None = None, **settings: Any) -> None:
    """Changes what the evaluation of a suite that is there says of its settings and its data."""
    path = paths.evaluation(run, suite, "babylm2025")
    document = paths.read_json(path)
    changed = {**document, "settings": {**document["settings"], **settings}}
    paths.write_json(path, changed if data_hash is None else {**changed, "data_hash": data_hash})


def set_weights(run: Path, ended: list[float], before: list[float] | None = None) -> None:
    """Let the weights of a run end at `ended`, and be `before`, else the same, at all logged steps until then."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["peer_weights"] = ended if before is None or row is rows[-1] else before
    paths.write_text(run / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    done = paths.read_json(run / "done.json")
    paths.write_json(run / "done.json", done | {"peer_weights": ended})


def weigh(folder: Path) -> None:
    """Write into each run of `folder` made-up losses of its ensembles: 0.25 below its own with equal weights, 0.5 with
    fitted ones."""
    for path in folder.glob("*/done.json"):
        ce = paths.read_json(path)["dev_ce_ensemble"]
        names = ("ensemble", "uniform_ensemble", "fitted_ensemble")
        members = [{"member": name, "dev_ce": ce - 0.25 * place} for place, name in enumerate(names)]
        paths.write_json(paths.ensembles(path.parent), {"settings": {}, "members": members})
