"""A run from its configuration to its folder: students, steps (`steps.py`), metrics, checkpoints, export.

`run` makes the run folder that docs/metrics.md describes. Of a run with a teacher it first finishes the teacher's own
run, which is an ordinary one.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from accelerate.utils import set_seed
from filelock import FileLock
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast

from . import checkpoint, environment, faults, paths
from .config import Config, check_steps
from .data.prepare import prepare
from .data.prepared import Prepared
from .data.texts import Texts, open_texts
from .data.tokenizer import load_tokenizer
from .device import Device, forget_peak_memory, setup
from .errors import Stopped, UserError, disk_is_full, signal_name
from .evaluate.curve import Recorder, curve_recorder
from .guard import exclusive, stop_signals
from .identity import run_hash
from .measure import evaluation_row
from .record import done_document, metrics_row, model_card
from .run_files import FORMAT, read_object, run_document
from .search import Found
from .state import State, build_state
from .steps import train_step
from .students import saved_hash, students_of
from .teacher import Teacher, given_hash, given_teacher, teacher_config, trained_teacher
from .track import Mirror, check_tracker, open_tracker

Progress = Callable[[dict[str, Any]], None]


def run_folder(config: Config, out: Path, prepared: Prepared | None = None) -> Path:
    """Where this run is, or will be. The corpus' content is part of its identity: `prepared`, or prepared here."""
    config = settled(config)
    return _folder(config, out, _identity(config, prepared or prepare(config.data, out, config.needs_mask)))


def settled(config: Config) -> Config:
    """A teacher that is trained for its own sake is the one that `distill` would train."""
    return teacher_config(config) if config.mutual.arm == "teacher" else config


def _identity(config: Config, prepared: Prepared) -> str:
    return run_hash(config, prepared.hash, given_hash(config), saved_hash(config))


def _folder(config: Config, out: Path, identity: str) -> Path:
    return paths.run(out, config.preset, config.mutual.arm, config.mutual.num_peers, config.train.seed, identity)


def run(
    config: Config, out: str | Path | None = None, *, progress: Progress | None = None, force: bool = False
) -> Path:
    """Train one run, or go on with it, or return it if it is done. Returns its folder.

    out: the output folder (`paths.output`). progress: called with every logged row of metrics.jsonl, and with those
    of a teacher that has to be trained first, which have `teacher` set. force: train again, but not the teacher.
    Resuming gives the same bytes as never having stopped (CPU; wall-clock fields aside). Raises UserError for settings,
    text or a folder that cannot be trained with, and Stopped, with a checkpoint behind it, where a signal asks for it.
    """
    out, config = paths.output(out), settled(config)
    check_steps(config)
    device = setup(config.train.precision, config.train.threads)
    with device.main_first():
        prepared = prepare(config.data, out, config.needs_mask)
        tokenizer = load_tokenizer(paths.tokenizer(prepared.folder))
        tokenizer.model_max_length = config.data.longest_block  # one that was given may know another model's
        students = students_of(config, out, prepared, tokenizer)
    identity = _identity(config, prepared)
    folder = _folder(config, out, identity)
    if (folder / "config.json").is_file() and not force:
        found = run_document(folder, ("hash",))["hash"]
        if found != identity:  # a folder that was copied or renamed
            raise UserError(
                f"{folder} holds another run than its name says (hash {str(found)[:8]}); expected the run of these "
                "settings; give that folder its own name again, or train this run from its beginning with --force"
            )
        if (folder / "done.json").is_file():
            read_object(folder / "done.json", ("steps",))
            return folder
    check_tracker(config)
    texts = open_texts(config, prepared, tokenizer)
    curve = curve_recorder(config, out, tokenizer, folder) if device.is_main else None
    teacher = None
    if config.mutual.uses_teacher:
        teacher = _teacher(config, out, prepared, tokenizer, device, progress)
    state = build_state(config, students, tokenizer, device, teacher.module if teacher else None)
    with exclusive(folder) if device.is_main else nullcontext():
        # another process may have finished it while this one waited for the folder
        if not force and device.largest(device.is_main and (folder / "done.json").is_file()):
            return folder
        if device.is_main:
            if force:
                paths.remove(folder)
            _begin(folder, config, prepared, identity, students, device)
        device.wait()
        try:
            forget_peak_memory(device.device)  # of this process's earlier runs, that of a teacher among them
            set_seed(config.train.seed)  # dropout, and whatever a library draws; batches and masks have their own
            with open_tracker(config, folder) as mirror, stop_signals() as stop_asked:
                _train(state, texts, config, device, folder, mirror, progress, curve, stop_asked)
            _finish(state, texts, config, device, folder, students, tokenizer, teacher)
        except (OSError, SafetensorError) as error:
            if not disk_is_full(error):
                raise
            saved = checkpoint.checkpoints(paths.checkpoints(folder))
            raise UserError(
                f"there is no room left to write {folder} ({error}); expected free disk space; make room and run "
                f"again: training goes on from {saved[-1].name if saved else 'its beginning'}"
            ) from None
    device.wait()
    return folder


def _begin(
    folder: Path, config: Config, prepared: Prepared, identity: str, students: list[Found], device: Device
) -> None:
    """Make the run folder, without what a killed process left half-written, and note what is going to be trained."""
    paths.make_folder(folder)
    paths.remove_leftovers(folder)
    paths.remove_leftovers_of(folder)
    document = {
        "format": FORMAT,
        "config": config.resolved(),
        "data": {"folder": prepared.folder.name, "hash": prepared.hash, "name": prepared.name},
        "hash": identity,
        "students": [found.document() for found in students],
    }
    made_by = environment.document(device, config)
    if checkpoint.checkpoints(paths.checkpoints(folder)):
        made_by = environment.continued(folder / "environment.json", made_by)
    paths.write_json(folder / "config.json", document)
    paths.write_json(folder / "environment.json", made_by)


def _teacher(
    config: Config,
    out: Path,
    prepared: Prepared,
    tokenizer: PreTrainedTokenizerFast,
    device: Device,
    progress: Progress | None,
) -> Teacher:
    """The teacher of a run, trained first where that is to be done and has not been."""
    if config.mutual.teacher is not None:
        return given_teacher(config, tokenizer, device)
    own = teacher_config(config)
    folder = run_folder(own, out, prepared)
    paths.make_folder(folder.parent)
    # Runs side by side share a teacher: one trains it, the others wait here. Processes of one run enter together.
    with FileLock(folder.with_name(f".{folder.name}.lock")) if device.is_main else nullcontext():
        device.wait()
        run(own, out, progress=None if progress is None else lambda row: progress(row | {"teacher": True}))
    return trained_teacher(folder, config, tokenizer, device)


def _train(
    state: State,
    texts: Texts,
    config: Config,
    device: Device,
    folder: Path,
    mirror: Mirror,
    progress: Progress | None,
    curve: Recorder | None,
    stop_asked: Callable[[], int],
) -> None:
    """Inner and outer steps from the last checkpoint to the end, with metrics, learning curve and checkpoints.

    Raises Stopped, after a checkpoint, where `stop_asked` returns the number of a signal.

    The seconds and speed of a run are without its learning curve.
    """
    train = config.train
    metrics_bytes = _resume(state, folder)
    with (folder / "metrics.jsonl").open("a+b") if device.is_main else io.BytesIO() as metrics:
        if device.is_main:
            _cut_back(metrics, metrics_bytes, folder)
        began, before = time.perf_counter(), (state.seconds, state.tokens)
        while state.step < train.steps:
            words, weights = state.words, state.peer_weights
            loss, lr = train_step(state, texts, config, device)
            state.seconds = before[0] + time.perf_counter() - began
            last = state.step == train.steps
            measured = state.step % train.eval_every == 0 or last
            if state.step % train.log_every == 0 or measured:
                _check_numbers(state)
                row = metrics_row(state, loss, weights, lr, config, device)
                row["tokens_per_second"] = (state.tokens - before[1]) / (state.seconds - before[0])
                if measured:
                    row |= faults.once_more(
                        partial(evaluation_row, state, texts, config, device, train.eval_rows), device
                    )
                metrics.write(json.dumps(row, allow_nan=False).encode() + b"\n")
                metrics.flush()
                mirror(row)
                if progress and device.is_main:
                    progress(row)
            if curve:  # before the checkpoint: what a checkpoint covers has been scored
                began += faults.once_more(partial(curve, state, words, last), device)
            stopped = _stop_signal(stop_asked, device, state.step % train.log_every == 0)
            if state.step % train.checkpoint_every == 0 or last or stopped:
                _check_numbers(state)
                if device.is_main:
                    checkpoint.save(
                        paths.checkpoints(folder),
                        state.step,
                        state.models,
                        state.optimizers,
                        state.record(metrics.tell()),
                        train.keep_checkpoints,
                        state.average_models,
                    )
            if stopped:
                device.wait()
                raise _stopped(folder, state.step, train.steps, stopped)
        if stopped := _stop_signal(stop_asked, device, True):  # while the last checkpoint was written
            raise _stopped(folder, state.step, train.steps, stopped)


def _stopped(folder: Path, step: int, steps: int, number: int) -> Stopped:
    return Stopped(
        f"{folder.name} was stopped by {signal_name(number)} at step {step} of {steps}, with a checkpoint; run the "
        "same command again to go on",
        number,
    )


def _stop_signal(stop_asked: Callable[[], int], device: Device, meets: bool) -> int:
    """The number of a signal that asks this run to stop, or 0. Several processes must agree on the step, which they do
    where they meet anyway."""
    if device.processes == 1:
        return stop_asked()
    return device.largest(stop_asked()) if meets else 0


def _resume(state: State, folder: Path) -> int:
    """Put `state` where the run's last checkpoint was, if there is one; the length of metrics.jsonl then, in bytes."""
    saved = checkpoint.checkpoints(paths.checkpoints(folder))
    if not saved:
        return 0
    state.step, record = checkpoint.restore(saved[-1], state.models, state.optimizers, state.average_models)
    state.recall(record)
    return int(record["metrics_bytes"])


def _cut_back(metrics: BinaryIO, size: int, folder: Path) -> None:
    """Drop the rows after the checkpoint, which will be written again. Raises UserError where the log is shorter."""
    found = metrics.seek(0, io.SEEK_END)
    if found < size:  # truncating would fill it with zeros
        raise UserError(
            f"{folder / 'metrics.jsonl'} has {found} bytes, and its last checkpoint was saved after {size}; expected a "
            "log as long as the checkpoint knows it; bring it back, or train the run again with --force"
        )
    metrics.truncate(size)
    metrics.seek(size)


def _check_numbers(state: State) -> None:
    """Raises UserError for a fault that no step has looked at; the device is waited for here, where it is anyway."""
    if state.faults is not None:
        faults.raise_first(state.faults)


def _finish(
    state: State,
    texts: Texts,
    config: Config,
    device: Device,
    folder: Path,
    students: list[Found],
    tokenizer: PreTrainedTokenizerFast,
    teacher: Teacher | None,
) -> None:
    """Export the peers and write done.json, last."""
    measured = partial(evaluation_row, state, texts, config, device, config.train.final_eval_rows)
    final = faults.once_more(measured, device)
    if not device.is_main:
        return
    for i, model in enumerate(state.reported_models):
        card = model_card(config, students[i], i + 1, final["dev_ce"][i], state.words)
        checkpoint.export(model, tokenizer, paths.peer(folder, i + 1), card, config.data.packing)
    paths.write_json(folder / "done.json", done_document(state, final, config, texts.passes, device, teacher))
