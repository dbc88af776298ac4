"""Two processes at the same global batch train what one process trains, to rounding (gloo, on the processor)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from wmlkit import paths, train
from wmlkit.config import load_preset

SETTINGS = {"train.optimizer": "adamw", "train.log_every": 1, "train.lr": 0.003, "outer.every": 3, "outer.lr": 1.0}
# `accelerate launch` starts several processes for cards only; without any, torch's own launcher does what it does
LAUNCH = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launched(out, changes):
    """The folder of a run that two processes trained."""
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-m", *LAUNCH, "-m", "wmlkit", "train", "--preset", "smoke", "--out", str(out), *sets]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = [line for line in done.stdout.splitlines() if line.startswith(str(out))]
    return train.Path(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"outer.hypergradient": "adam", "mutual.kl_positions": "all"},
        {"mutual.arm": "distill", "mutual.num_peers": 1, "train.accumulate": 2},
    ],
    ids=["wml", "distill"],
)
def test_two_processes_equal_one(changes, tmp_path):
    config = load_preset("smoke", SETTINGS | changes)
    one = train.run(config.updated({"train.accumulate": 1}), tmp_path / "one")
    two = launched(tmp_path / "two", SETTINGS | changes)
    assert paths.read_json(two / "environment.json")["processes"] == 2
    rows = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, two)]
    assert [row["step"] for row in rows[1]] == [row["step"] for row in rows[0]] == list(range(1, 13))
    for a, b in zip(*rows, strict=True):
        for name in ("tokens", "words", "lr", "alpha"):
            assert a[name] == b[name]
        # The first step differs by rounding alone; Adam then divides small gradients by their size, rounding included.
        relative = 1e-6 if a["step"] == 1 else 1e-3
        for name in ("ce", "total", "peer_weights", "hypergradient", "dev_ce", "held_out_ce"):
            if a.get(name):
                assert b[name] == pytest.approx(a[name], rel=relative, abs=1e-6), (a["step"], name)
        assert b["kl"] == pytest.approx(a["kl"], rel=relative, abs=1e-5), a["step"]  # a small difference of sums near 6
    if config.mutual.arm == "wml":
        assert rows[0][-1]["peer_weights"][0] != pytest.approx(0.5, abs=1e-3)  # they moved, so agreeing means something
    done = [paths.read_json(folder / "done.json") for folder in (one, two)]
    assert done[1]["dev_ce"] == pytest.approx(done[0]["dev_ce"], rel=1e-4) and done[1]["tokens"] == done[0]["tokens"]
    assert sorted(p.name for p in (two / "peers").iterdir()) == sorted(p.name for p in (one / "peers").iterdir())
