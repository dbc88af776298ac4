"""The mirrors of metrics.jsonl hold what the file holds."""

from __future__ import annotations

import json

import pytest

from wmlkit import paths, track, train
from wmlkit.config import load_preset
from wmlkit.errors import UserError


class Recorder:
    """Stands where a tracker of accelerate does."""

    made: list[Recorder] = []

    def __init__(self, *arguments, **options) -> None:
        self.arguments, self.options, self.rows, self.open = arguments, options, {}, False
        Recorder.made.append(self)

    def start(self) -> None:
        self.open = True

    def log(self, values, step) -> None:
        assert self.open
        self.rows[step] = values

    def finish(self) -> None:
        self.open = False


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(track, "find_spec", lambda name: True)
    monkeypatch.setattr(track.tracking, "TensorBoardTracker", Recorder)
    monkeypatch.setattr(track.tracking, "WandBTracker", Recorder)
    monkeypatch.setattr(Recorder, "made", [])
    return Recorder


def test_flat():
    row = {"step": 3, "ce": [2.0, 2.5], "hypergradient": None, "lr": 0.1}
    assert track.flat(row) == {"step": 3, "ce/peer_1": 2.0, "ce/peer_2": 2.5, "lr": 0.1}


def test_a_run_is_mirrored_and_is_the_run_that_it_would_be(recorder, tmp_path):
    config = load_preset("smoke", {"train.steps": 4, "track.to": "tensorboard"})
    folder = train.run(config, tmp_path)
    (made,) = recorder.made
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert made.arguments == (folder.name, folder / "tracking") and not made.open
    assert made.rows == {row["step"]: track.flat(row) for row in rows} and len(rows) == 2
    assert folder == train.run_folder(config.updated({"track.to": "off"}), tmp_path)  # not part of what a run is


def test_the_teacher_of_a_run_is_mirrored_under_its_own_name(recorder, tmp_path):
    changes = {"train.steps": 2, "mutual.arm": "distill", "track.to": "tensorboard", "track.run_name": "students"}
    folder = train.run(load_preset("smoke", changes), tmp_path)
    teacher = paths.read_json(folder / "done.json")["teacher"]["run"]
    assert [made.arguments[0] for made in recorder.made] == [teacher, "students"]
    alone = load_preset("smoke", changes | {"mutual.arm": "teacher", "mutual.num_peers": 1, "train.seed": 1})
    train.run(alone, tmp_path)
    assert recorder.made[-1].arguments[0] == "students"


def test_weights_and_biases_gets_project_name_and_configuration(recorder, tmp_path):
    config = load_preset("smoke", {"track.to": "wandb", "track.project": "p", "track.run_name": "n"})
    with pytest.raises(KeyError), track.open_tracker(config, tmp_path / "run") as mirror:
        mirror({"step": 1, "ce": [1.0]})
        mirror({})
    (made,) = recorder.made
    assert made.arguments == ("p",) and made.options["name"] == "n" and made.options["config"] == config.resolved()
    assert made.rows == {1: {"step": 1, "ce/peer_1": 1.0}} and not made.open  # closed whatever happened


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_trained(monkeypatch, tmp_path):
    monkeypatch.setattr(track, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the package wandb is not installed; .* `pip install 'wmlkit\[wandb\]'`"):
        train.run(load_preset("smoke", {"track.to": "wandb"}), tmp_path)
    assert not list(tmp_path.glob("smoke/*"))
