"""Long training keeps its memory and its open files: the short form of `python -m tests.soak 2000`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import soak


def test_growth_by_hand():
    tenths = [(100.0, 5.0), (200.0, 10.0), *[(1.0, 1.0)] * 7, (210.0, 10.0)]
    memory, files = soak.growth(tenths)
    assert memory == pytest.approx(0.05) and files == 0.0


def test_memory_and_open_files_stay_flat():
    """In a process of its own, whose memory nobody else has touched."""
    command = [sys.executable, "-m", "tests.soak", "300"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0 and "300 steps, after the first tenth" in done.stdout, done.stdout + done.stderr
