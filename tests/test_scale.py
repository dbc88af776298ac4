"""The arithmetic in docs/scale.md is that of the preset."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from wmlkit import paths
from wmlkit.config import load_preset
from wmlkit.search import count_parameters
from wmlkit.shapes import base_student
from wmlkit.students import find_students

PAGE = paths.REPOSITORY / "docs" / "scale.md"
CARD = 790e12  # FLOP a second, the bf16 matrix product of docs/scale.md


def test_the_plan_of_the_full_study_is_that_of_its_preset() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    config = load_preset("modern-10m")
    tokens = config.train.steps * config.train.batch_size * config.data.block_size
    vocabulary, rows = config.data.vocab_size, config.data.longest_block
    peers = [found.parameters for found in find_students(config, vocabulary)]
    teacher = count_parameters(base_student(config.model), config.model.family, vocabulary, rows)
    a, b, c, d = (f"{size / 1e6:.1f}" for size in peers)
    assert f"students of {a}, {b}, {c} and {d} million parameters" in page
    assert f"the base model, {teacher / 1e6:.1f} million" in page
    assert f"{tokens / 1e6:.0f} million in all" in page
    four, one, two = (6 * tokens * size for size in (sum(peers), teacher, sum(peers[:2])))
    assert f"four peers cost {four:.1e}, the teacher {one:.1e}".replace("e+", "e") in page
    # Four arms with four peers, the teacher's training and its forward passes for `distill`, and `wml` with two
    seed = 4 * four + one + one / 3 + two
    for share in (0.4, 0.2, 0.1):
        minutes = [f"{flop / CARD / share / 60:.1f} min" for flop in (four, one, two)]
        whole = f"{seed / CARD / share / 60:.0f} min"
        assert f"| {share:.0%} | ".replace("%", " %") + " | ".join([*minutes, whole]) + " |" in page


def test_the_replays_of_the_plan_run_as_they_stand_there(tmp_path: Path) -> None:
    """As a file of its own, with two processes side by side; in the sizes of `smoke`, and two of the replays."""
    (code,) = re.findall(
        r"^       from pathlib import Path\n.*?repairs_table\(run_all.*?\n", PAGE.read_text(), re.S | re.M
    )
    tiny = '"smoke", {"data.words": 4000, "data.dev_words": 1500, "replay.per_paradigm": 1, "replay.workers": 2}'
    code, settings = re.subn(r'"released", \{.*?\}', tiny, textwrap.dedent(code), flags=re.S)
    code, shown = re.subn(re.escape("list(repairs())"), "list(repairs())[-2:]", code)
    assert settings == shown == 1
    (tmp_path / "replays.py").write_text(code)
    own = os.environ | {"PYTHONPATH": str(paths.REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "replays.py"], cwd=tmp_path, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^1 +none ", done.stdout, re.M), done.stdout
