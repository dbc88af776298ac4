"""The questions to a machine with a card: parts that end in time, and a speed that is by hand."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest
from card import STEPS, Part, ask, parts


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_parts_end_in_time_and_what_is_known_is_kept(tmp_path):
    every = [
        Part("speaks", (python("print('{\"a\": 1}')"), python("print('words')")), 0.1),
        Part("fails", (python("import sys; print('before'); sys.exit('why')"),), 0.1),
        Part("finds something", (python("print('{\"a\": 2}'); raise SystemExit(2)"),), 0.1),
        Part("outlasts", (python("import time; time.sleep(60)"),), 0.1),
        Part("too late", (python("print('never')"),), 60.0),
    ]
    found = ask(every, tmp_path, 3 / 60)
    assert json.loads((tmp_path / "card.json").read_text()) == found
    speaks, fails, finds, outlasts, late = found["parts"]
    assert finds["status"] == "failed with 2" and finds["printed"][0]["document"] == {"a": 2}
    assert speaks["printed"] == [{"a": 1}, "words\n"] and speaks["status"] == "done"
    assert fails["status"] == "failed with 1" and "before" in fails["printed"][0] and "why" in fails["printed"][0]
    assert outlasts["status"] == "stopped" and outlasts["seconds"] < 10
    assert late["status"] == "no time left" and "printed" not in late


def test_a_part_has_a_limit_of_its_own(tmp_path):
    (found,) = ask([Part("hangs", (python("import time; time.sleep(60)"),), 0.1, 0.5)], tmp_path, 10)["parts"]
    assert found["status"] == "stopped" and found["seconds"] < 20


def test_what_a_part_started_ends_with_it(tmp_path, monkeypatch):
    """A child that ignores the request and holds the output open keeps nobody waiting."""
    monkeypatch.setattr("card.STOPPING", 0.5)
    child = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    (found,) = ask([Part("orphan", (python(parent),), 0.1)], tmp_path, 2 / 60)["parts"]
    assert found["status"] == "stopped" and found["seconds"] < 20 and found["printed"] == ["up\n"]


def test_speed_of_runs_side_by_side(tmp_path):
    """Two folders with 1,000 tokens in 2 s and in 4 s after their first rows: 750 a second together, in the second that
    they share, as the last row of the first was written a second after the other's first; and none where they share no
    time."""

    def write(folder, seconds, end):
        folder.mkdir(exist_ok=True)
        rows = [{"tokens": 500, "seconds": 9}, {"tokens": 1500, "seconds": 9 + seconds}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.utime(folder / "metrics.jsonl", (end, end))

    lines = []
    for number, (seconds, end) in enumerate(((2, 100), (4, 103))):
        folder = tmp_path / str(number)
        write(folder, seconds, end)
        (folder / "done.json").write_text(json.dumps({"flops": 3000.0, "tokens": 1500, "peak_memory": 7.0}))
        lines.append(python(f"print('a line'); print({str(folder)!r})"))
    (found,) = ask([Part("runs", tuple(lines), 0.1)], tmp_path, 1)["parts"]
    assert found["tokens_per_second"] == pytest.approx(750) and found["flop_per_second"] == pytest.approx(1500)
    assert found["peak_memory"] == 7 and found["seconds_together"] == pytest.approx(1)
    write(tmp_path / "1", 4, 105)
    (found,) = ask([Part("runs", tuple(lines), 0.1)], tmp_path, 1)["parts"]
    assert "tokens_per_second" not in found and "same time" in found["speed"]


def test_a_run_as_it_is_asked_for(tmp_path, capsys):
    """The commands are those that wmlkit takes: one short training in the sizes of `smoke`."""
    settings = ["train.steps=12", "train.log_every=4", "train.eval_every=12", "train.checkpoint_every=12"]
    asked = parts(tmp_path, "smoke", [*settings, "data.words=4000", "data.dev_words=1500"])
    assert [part.name for part in asked[:3]] == ["doctor", "tests", "bench train"]
    assert asked[2].commands[0][-2:] == ("--set", "data.dev_words=1500")
    runs = {part.name: len(part.commands) for part in asked if part.name.startswith("runs")}
    assert runs == {"runs 1": 1, "runs 2": 2, "runs 3": 3}
    seeds = [words[words.index("--seed") + 1] for part in asked if part.name in runs for words in part.commands]
    assert len(set(seeds)) == 6  # a finished run would be returned at once
    assert all(f"train.steps={STEPS}" in part.commands[0] for part in asked if part.name in (*runs, "compiled"))
    (found,) = ask([part for part in asked if part.name == "runs 1"], tmp_path, 3)["parts"]
    assert found["status"] == "done" and found["tokens_per_second"] > 0, found
    assert re.search(r": done, [\d,]+ tokens/s, [\d.e-]+ TFLOP/s, [\d,]+ MiB a run", capsys.readouterr().out)
