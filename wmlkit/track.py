"""Mirrors of metrics.jsonl for people who watch many runs: TensorBoard, Weights & Biases. The file stays the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import tracking

from .config import Config
from .errors import UserError

Mirror = Callable[[Mapping[str, Any]], None]


def check_tracker(config: Config) -> None:
    """Raises UserError where `track.to` names a tracker that is not installed."""
    to = config.track.to
    if to != "off" and find_spec(to) is None:
        raise UserError(
            f"track.to is {to!r} and the package {to} is not installed; expected it to be there; install it with "
            f"`pip install 'wmlkit[{to}]'`, or set track.to to off"
        )


@contextmanager
def open_tracker(config: Config, run_folder: Path) -> Iterator[Mirror]:
    """A function that mirrors one row of metrics.jsonl, until the block ends; it does nothing where `track.to` is off.

    TensorBoard's files lie in ``tracking/`` of the run folder. Weights & Biases gets `track.project`; whether it sends
    anything is its own setting (``WANDB_MODE``). Runs are named after their folder unless `track.run_name` is given.
    """
    name = config.track.run_name or run_folder.name
    if config.track.to == "off":
        yield lambda row: None
        return
    tracker: tracking.GeneralTracker
    if config.track.to == "tensorboard":
        tracker = tracking.TensorBoardTracker(name, run_folder / "tracking")
    else:
        tracker = tracking.WandBTracker(config.track.project, name=name, dir=str(run_folder), config=config.resolved())
    tracker.start()
    try:
        yield lambda row: tracker.log(flat(row), step=row["step"])
    finally:
        tracker.finish()


def flat(row: Mapping[str, Any]) -> dict[str, float]:
    """``{"ce": [2, 3], "lr": 0.1}`` -> ``{"ce/peer_1": 2, "ce/peer_2": 3, "lr": 0.1}``; what is null is left out."""
    values: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, list):
            values |= {f"{name}/peer_{i}": number for i, number in enumerate(value, 1)}
        elif value is not None:
            values[name] = value
    return values
