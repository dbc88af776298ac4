"""One thread for every test and every process that a test starts: tiny tensors only lose time with more."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402  # after the variables that it reads when it is imported

torch.set_num_threads(1)
