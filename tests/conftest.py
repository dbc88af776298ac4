"""One thread for every test and every process that a test starts: tiny tensors only lose time with more."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest  # noqa: E402  # these after the variables that torch reads when it is imported
import torch  # noqa: E402

torch.set_num_threads(1)

LONGEST = "test_reproduce.py"  # over a quarter of the suite's time: what starts last must not be what takes longest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture(scope="session")
def trained_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of one finished tiny run; copy from it, and leave it as it is."""
    from mistakes import train_tiny

    out = tmp_path_factory.mktemp("trained")
    train_tiny(out)
    return out
