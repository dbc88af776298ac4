"""Training as it happens: pictures in a kernel that somebody looks at, text elsewhere, and an interrupted cell."""

from __future__ import annotations

import os
import time

import pytest
from compare import rows
from fake_runs import write_study
from jupyter_client.manager import start_new_kernel

from wmlkit import live, train
from wmlkit.config import Config, load_preset

SETTINGS = {
    "data.words": 4000,
    "data.dev_words": 1500,
    "train.steps": 60,
    "train.eval_every": 30,
    "train.checkpoint_every": 10,
}
CELL = """
from wmlkit import live, train
from wmlkit.config import load_preset
config = load_preset("smoke", {settings})
print(train.run(config, {out!r}, progress=live.view(config, {out!r})))
"""


class Kernel:
    """A real kernel, and everything that it sent."""

    def __init__(self) -> None:
        self.manager, self.client = start_new_kernel(env=os.environ | {"WMLKIT_LIVE": "1"})
        self.messages: list[dict] = []

    def run(self, code: str, until=lambda: False) -> None:
        """Execute until the kernel is idle again; interrupt once, as soon as `until` holds."""
        asked = self.client.execute(code)
        interrupted = False
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if not interrupted and until():
                self.manager.interrupt_kernel()
                interrupted = True
            try:
                message = self.client.get_iopub_msg(timeout=0.05)
            except Exception:  # nothing was sent in this time
                continue
            if message["parent_header"].get("msg_id") != asked:
                continue
            self.messages.append(message)
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return
        raise AssertionError(f"the kernel did not end: {self.messages[-3:]}")

    def of(self, kind: str) -> list[dict]:
        return [message["content"] for message in self.messages if message["msg_type"] == kind]


@pytest.fixture
def kernel():
    one = Kernel()
    yield one
    one.client.stop_channels()
    one.manager.shutdown_kernel(now=True)


def test_an_interrupted_cell_goes_on_where_it_was_and_redraws_one_picture(kernel, tmp_path):
    code = CELL.format(settings=SETTINGS, out=str(tmp_path / "interrupted"))

    def half_way() -> bool:
        return any((tmp_path / "interrupted").glob("smoke/wml-*/checkpoints/step-*/state.json"))

    kernel.run(code, until=half_way)
    (folder,) = (tmp_path / "interrupted" / "smoke").glob("wml-*")
    assert [error["ename"] for error in kernel.of("error")] == ["Stopped"]  # with a checkpoint
    assert not (folder / "done.json").exists()
    first = len(kernel.of("update_display_data"))

    kernel.run(code)
    assert (folder / "done.json").exists()
    whole = train.run(load_preset("smoke", SETTINGS), tmp_path / "whole")
    assert rows(folder) == rows(whole)
    pictures = kernel.of("display_data")
    assert len(pictures) == 2 and all("image/png" in one["data"] for one in pictures)  # one an execution
    later = kernel.of("update_display_data")[first:]
    assert later and {one["transient"]["display_id"] for one in later} == {pictures[1]["transient"]["display_id"]}
    assert pictures[1]["data"]["image/png"] != later[-1]["data"]["image/png"]
    assert not any("train CE" in one["text"] for one in kernel.of("stream"))


def test_without_a_notebook_the_rows_are_lines_of_text(capsys):
    config = load_preset("smoke")
    row = {"step": 4, "ce": [1.0, 2.0], "peer_weights": [0.25, 0.75]}
    live.view(config)(row)
    live.view(config)(row | {"dev_ce": [3.0, 4.0]})  # those on dev text alone: a cell is no log
    assert capsys.readouterr().out == "wml P=2 seed 0: step 4/12 dev CE 3.000 4.000 weights 0.250 0.750\n"
    live.study_view(config, None)("a: step 4/12 train CE 1.0")
    live.study_view(config, None)("a: step 6/12 dev CE 1.0")
    assert capsys.readouterr().out == "a: step 6/12 dev CE 1.0\n"


def logged(step, teacher=False):
    peers = 1 if teacher else 2
    row = {"step": step, "tokens": 100 * step, "words": 80 * step, "ce": [2.0] * peers, "kl": [0.1] * peers}
    row |= {"total": [1.0] * peers, "peer_weights": [1 / peers] * peers, "hypergradient": None, "dev_ce": [2.0] * peers}
    return row | ({"teacher": True} if teacher else {})


def test_a_teacher_and_its_students_are_not_drawn_into_one_picture(monkeypatch):
    drawn, lasts = [], []
    monkeypatch.setattr(live, "somebody_looks", lambda: True)
    monkeypatch.setattr(
        live._Picture, "draw", lambda self, figure, text, last: (drawn.append(figure()), lasts.append(last))
    )
    steps = {"train.steps": 9, "mutual.teacher_steps": 4, "train.warmup_steps": 0}
    show = live.view(load_preset("smoke", {"mutual.arm": "distill", **steps}))
    for row in (logged(2, teacher=True), logged(4, teacher=True), logged(2), logged(4)):
        show(row)
    assert lasts == [False, True, False, False]  # the last row of each is drawn whatever came just before it
    titles = [figure.get_suptitle() for figure in drawn]
    assert [title.split(",")[0] for title in titles] == ["teacher", "teacher", "distill", "distill"]
    assert [title.rpartition(" ")[2] for title in titles] == ["4", "4", "9", "9"]  # steps of each, not of the other
    last = drawn[-1].axes[0]
    assert {"peer 1", "peer 2"} <= {line.get_label() for line in last.lines}
    assert all(len(line.get_xdata()) <= 2 for line in last.lines)


def test_a_study_is_drawn_and_its_last_line_told(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(live, "somebody_looks", lambda: True)
    monkeypatch.setattr(live._Picture, "draw", lambda self, figure, text, last: drawn.append((text, last)))
    show = live.study_view(load_preset("smoke"), tmp_path)
    show("wml P=2 seed 0: step 2/12 train CE 1.0")
    show("wml P=2 seed 0: trained")
    assert [last for _, last in drawn] == [False, True]


def test_pictures_are_rare_and_the_last_row_is_always_shown(monkeypatch):
    import IPython.display

    shown = []

    class Handle:
        def update(self, image):
            shown.append(image)

    monkeypatch.setattr(IPython.display, "display", lambda image, display_id: shown.append(image) or Handle())
    monkeypatch.setattr(live, "somebody_looks", lambda: True)
    show = live.view(load_preset("smoke"))
    for step in range(1, 13):
        show(logged(step))
    assert 2 <= len(shown) < 12
    assert "step 12/12" in shown[-1].alt and shown[-1].data != shown[0].data


def test_the_study_shows_every_run_and_the_weights_that_moved_last(tmp_path):
    study_of = (("independent", 2), ("wml", 2), ("wml", 4))
    folder = write_study(tmp_path / "nursery", study_of, seeds=(0, 1), overrides={"train.steps": 200})
    base = Config(preset="nursery").updated({"train.steps": 200})
    runs = []
    for run in folder.glob("*-p*"):
        arm, peers, seed, _ = run.name.split("-")
        changes = {"mutual.arm": arm, "mutual.num_peers": int(peers[1:]), "train.seed": int(seed[1:])}
        runs.append((base.updated(changes), run))
    newest = next(run for config, run in runs if run.name.startswith("wml-p4-s1"))
    (newest / "done.json").unlink()
    with (newest / "metrics.jsonl").open("a") as file:  # another process is writing this line
        file.write('{"step": 210, "tok')
    figure = live.study_figure(runs)
    losses, weights = figure.axes
    assert len([line for line in losses.lines if len(line.get_xdata())]) == 6
    assert {line.get_label() for line in weights.lines} == {*(f"peer {i}" for i in range(1, 5)), "equal"}
    assert figure.get_suptitle() == "5 of 6 runs finished; weights of wml, 4 peers, seed 1"
