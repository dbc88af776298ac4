"""The released training replayed: a plain loop in which each defect (`released.Defects`) is a switch.

With no switch on, this is the method as described, at the sizes of ``[replay]``; with all of them on, it does what
the released code does. Steps: `steps`; teachers: `teacher`; tables: `tables`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from .. import environment, paths
from ..config import Config
from ..data.batches import Rows, batch_source
from ..data.prepare import prepare
from ..data.prepared import Prepared
from ..data.texts import Source, masking, measured
from ..data.tokenizer import load_tokenizer
from ..device import Device, setup, side_by_side
from ..errors import UserError
from ..evaluate import evaluate_pairs
from ..evaluate.pairs import check_suites
from ..evaluate.suites import pairs_folder, suite_hash
from ..guard import exclusive
from ..identity import digest, shaping
from ..measure import measure
from ..settings import DataConfig
from ..state import State, build_state
from ..students import find_students, saved_hash
from .released import Case, Defects, cases, repairs
from .released_data import text_rows, widened, without_capitals
from .scoring import scoring
from .steps import Setting, epochs
from .teacher import teacher_for, teacher_identity


def replay_config(config: Config, case: Case, seed: int) -> Config:
    """`config` as the replay uses it: AdamW, the sizes of ``[replay]``, and the text that the defects leave."""
    changes: dict[str, Any] = {
        "train.seed": seed,
        "train.optimizer": "adamw",
        "train.lr": config.replay.lr,
        "train.grad_clip": config.replay.grad_clip,
        "train.batch_size": config.replay.batch_size,
        "data.block_schedule": [],  # all its rows are of data.block_size, in batches too small for other lengths
        "train.mask_span": 1,  # the released code masks each token for itself, in the outer problem too
        "train.mntp_share": 0.0,  # and has rows of one kind
        "train.ema_decay": 0.0,  # the released code keeps no average, and the replay's own steps would not move it
        "mutual.arm": "wml" if case.mode == "mutual" else "distill",
        "mutual.num_peers": config.replay.num_peers,
        "mutual.peer_weights": None,  # the released weights begin equal and have no floor
        "outer.min_weight": 0.0,
    }
    if case.defects.lost_case:
        changes |= {"data.lowercase": True, "data.nfkc": True}
    if case.defects.uncleaned_text:
        changes["data.clean"] = False
    return config.updated(changes)


def _open_setting(
    config: Config, case: Case, device: Device, prepared: Prepared, tokenizer: PreTrainedTokenizerFast
) -> tuple[Setting, np.ndarray, PreTrainedTokenizerFast]:
    """(what to train on, the ids of the training text, the tokenizer that the models are built for)."""
    train, wide = config.train, widened(tokenizer)

    def source(rows: Rows, batch_size: int) -> Source:
        return batch_source(rows, config.model.objective, batch_size, wide, masking(train))

    rows, ids = text_rows(config, prepared, "train", tokenizer, wide, case.defects)
    outer_split = "dev" if case.defects.dev_text else "held_out"
    outer_rows, _ = text_rows(config, prepared, outer_split, tokenizer, wide, case.defects)
    unseeded = config.updated({"train.seed": 0})
    dev_rows, _ = text_rows(unseeded, prepared, "dev", tokenizer, wide, Defects())
    size, dev = config.replay.batch_size, measured(dev_rows, config, wide)
    return Setting(config, case, device, source(rows, size), source(outer_rows, size), dev), ids, wide


def replay_folder(
    config: Config, out: Path, name: str, case: Case, seed: int, prepared: Prepared, described: Prepared
) -> Path:
    """Folder of one replay; its name ends in a hash over all that shapes the result and over the pairs it scores."""
    learns = shaping(replay_config(config, case, seed), students_hash=saved_hash(config))
    sizes = config.replay.model_dump(mode="json", exclude={"seeds", "workers", "teacher", "grad_clip"})
    evaluate = config.evaluate
    suite = evaluate.suites[0]
    pairs = suite_hash(pairs_folder(config, suite, out))
    scored = [suite, evaluate.protocol, evaluate.ties, evaluate.per_paradigm, pairs]
    document = {"config": learns, "replay": sizes, "scored": scored, "case": asdict(case), "data": prepared.hash}
    if case.mode == "teacher":
        document |= {"described": described.hash, "teacher": teacher_identity(config, case)}
    return paths.replay(out, config.preset, f"{name}-s{seed}-{digest(document)[:8]}")


def run(
    config: Config,
    out: Path,
    name: str,
    case: Case,
    seed: int = 0,
    prepared: Prepared | None = None,
    described: Prepared | None = None,
) -> dict[str, Any]:
    """Replay once, or read what is there: ``done.json`` of ``OUT/<preset>/replay/<name>-s<seed>-<hash8>/``.

    prepared: the corpus of `replay_config(config, case, seed)` where it is at hand; described: that of no defect.
    Raises UserError where another process replays the same.
    """
    used = replay_config(config, case, seed)
    prepared = prepared or prepare(used.data, out)
    described = described or prepare(replay_config(config, Case(case.mode), seed).data, out)
    folder = replay_folder(config, out, name, case, seed, prepared, described)
    if not (folder / "done.json").is_file():
        with exclusive(folder):
            if not (folder / "done.json").is_file():  # a process that held the folder may have finished it
                _replay(used, out, name, case, prepared, described, folder)
    return dict(paths.read_json(folder / "done.json"))


def _replay(
    used: Config, out: Path, name: str, case: Case, prepared: Prepared, described: Prepared, folder: Path
) -> None:
    """Write the replay of `used`, the case's configuration, into `folder`."""
    seed, began = used.train.seed, time.perf_counter()
    device = setup(used.train.precision, used.train.threads)
    tokenizer = load_tokenizer(paths.tokenizer(prepared.folder), needs_mask=used.needs_mask)
    reader = without_capitals(tokenizer) if case.defects.lost_case else tokenizer  # of the pairs
    scored = {"evaluate.suites": used.evaluate.suites[:1], "evaluate.per_paradigm": used.replay.per_paradigm}
    check_suites(used.updated(scored), out, reader)  # what would stop the scoring must not wait for it
    setting, ids, wide = _open_setting(used, case, device, prepared, tokenizer)
    students = find_students(used, len(wide))
    teacher, of_teacher = None, dict[str, Any]()
    if case.mode == "teacher":
        teacher, of_teacher = teacher_for(used, case, out, described, wide, device)
        as_student = State([teacher], [], torch.zeros(1, dtype=torch.float64))  # log 1
        of_teacher["teacher_ce"] = measure(as_student, setting.dev, used, device, used.train.final_eval_rows)[0][0]
    state = build_state(used, students, wide, device, teacher)
    paths.remove(folder)
    paths.write_json(
        folder / "config.json",
        {
            "config": used.resolved(),
            "case": asdict(case),
            "data": {"folder": prepared.folder.name, "hash": prepared.hash, "name": prepared.name},
            "students": [found.document() for found in students],
        },
    )
    paths.write_json(folder / "environment.json", environment.document(device))
    untrained, _ = measure(state, setting.dev, used, device, used.train.final_eval_rows)
    rows = list(epochs(state, setting))
    paths.write_text(folder / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    dev_ce, ensemble_ce = measure(state, setting.dev, used, device, used.train.final_eval_rows)
    done = {
        "case": name,
        "mode": case.mode,
        "seed": seed,
        "defects": [key for key, value in asdict(case.defects).items() if value],
        "distinct_ids": len(np.unique(ids)),
        "lowest_id": int(ids.min()),
        "highest_id": int(ids.max()),
        **_of_epochs(rows, case.defects),
        "untrained_ce": untrained,
        "dev_ce": dev_ce,
        "dev_ce_ensemble": ensemble_ce,
        "peer_weights": state.peer_weights.tolist() if any(row["outer"] for row in rows) else None,
        "accuracy": _accuracies(state, used, out, reader),
        **of_teacher,
        "seconds": time.perf_counter() - began,
    }
    if case == Case():
        suite = pairs_folder(used, used.evaluate.suites[0], out)
        done["scoring"] = scoring(state.models, tokenizer, suite, used, seed)
    paths.write_json(folder / "done.json", done)


def _of_epochs(rows: Sequence[dict[str, Any]], defects: Defects) -> dict[str, Any]:
    """What ``done.json`` says of the training, from the rows of ``metrics.jsonl``."""
    rates = [rate for row in rows for rate in row["lr"]]
    outer = [row["outer"]["correction"] for row in rows if row["outer"]]
    reads_truth = not defects.unmasked_inputs  # else no true token is in the loss, and no CE beside its KL
    return {
        "updates": len(rates),
        "updates_with_lr": sum(rate > 0 for rate in rates),
        "train_ce": rows[-1]["ce"] if reads_truth else None,
        "kl_to_ce": float(np.mean([row["kl_to_ce"] for row in rows])) if reads_truth else None,
        "correction": float(np.mean(outer)) if outer else None,
    }


def _accuracies(state: State, config: Config, out: Path, tokenizer: PreTrainedTokenizerFast) -> list[float]:
    """Accuracy of each peer on a sample of minimal pairs, percent, macro over paradigms."""
    suite = config.evaluate.suites[0]
    document, _ = evaluate_pairs(
        state.models,
        tokenizer,
        pairs_folder(config, suite, out),
        suite=suite,
        protocol=config.evaluate.protocol,
        ties=config.evaluate.ties,
        per_paradigm=config.replay.per_paradigm,
        token_budget=config.evaluate.token_budget,
    )
    scores = {member["member"]: float(member["score"]) for member in document["members"]}
    return [scores[f"peer_{i + 1}"] for i in range(len(state.peers))]


def run_all(
    config: Config, out: Path, names: Sequence[str] = (), progress: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
    """Every case of T9 and T9_repairs (or those in `names`) with every seed of ``replay.seeds``; some may be finished.

    ``replay.workers`` processes side by side. Raises UserError for a name that is no case.
    """
    known = cases() | repairs()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"there is no case {unknown[0]!r}; expected some of {', '.join(known)}")
    prepared: dict[DataConfig, Prepared] = {}  # before any process starts: they would all prepare the same
    described = replay_config(config, Case(), 0).data
    jobs = []
    for name, case in known.items():
        if names and name not in names:
            continue
        data = replay_config(config, case, 0).data
        for each in (data, described):
            if each not in prepared:
                prepared[each] = prepare(each, out)
        texts = (prepared[data], prepared[described])
        jobs += [(config, out, name, case, seed, *texts) for seed in dict.fromkeys(config.replay.seeds)]
    pairs_folder(config, config.evaluate.suites[0], out)
    waiting = [job for job in jobs if not (replay_folder(*job) / "done.json").is_file()]
    workers = min(config.replay.workers, len(waiting))
    return [_reported(done, progress) for done in side_by_side(run, jobs, workers)]


def _reported(done: dict[str, Any], progress: Callable[[str], None] | None) -> dict[str, Any]:
    if progress:
        dev_ce = float(np.mean(done["dev_ce"]))
        progress(f"{done['case']} seed {done['seed']}: dev CE {dev_ce:.3f} after {done['updates']} updates")
    return done
