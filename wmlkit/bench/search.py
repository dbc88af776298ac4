"""What the student search costs: closed-form counts against models built without memory, and a large space searched."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ..config import load_preset
from ..search import count_parameters, search_students, students
from ..shapes import Student, base_student
from .measure import Run, check_repeats, interleaved, peaks, plain_model, rows, warm_peaks

LARGE = {  # a space of many thousand shapes around the paper's
    "search.num_layers": list(range(1, 49)),
    "search.num_heads": [1, 2, 4, 8, 16, 32],
    "search.hidden_size": list(range(64, 2049, 32)),
}


def bench_search(repeats: int) -> dict[str, Any]:
    """Sizes of the paper's 75 shapes in closed form and by building each model on torch's meta device, which agree or
    an error is raised; and the exact search of the paper's space and of a large one."""
    check_repeats(repeats)
    runs, shapes, large_shapes = _runs()
    if runs["closed form"]() != runs["models on the meta device"]():
        raise RuntimeError("the closed form does not count what the models have")
    times = interleaved(runs, repeats, torch.device("cpu"))
    closed, built, _, searched = (times[name]["median_ms"] for name in runs)
    return {
        "setting": "paper",
        "shapes": shapes,
        "large_shapes": large_shapes,
        "repeats": repeats,
        "variants": rows(times, peaks(search_peaks)),
        "ratios": {"speedup_vs_building": built / closed, "large_search_ms": searched},
    }


def search_peaks() -> dict[str, float]:
    """Peak memory of each way in this process."""
    runs, _, _ = _runs()
    return warm_peaks(runs, torch.device("cpu"))


def _runs() -> tuple[dict[str, Run], int, int]:
    """(the ways, shapes of the paper's space, shapes of the large one)"""
    paper = load_preset("paper-10m", {"search.count": "all"})
    large = paper.updated(LARGE)
    base, vocabulary, block = base_student(paper.model), paper.data.vocab_size, paper.data.block_size
    shapes = students(base, paper.search, paper.model)
    runs: dict[str, Run] = {
        "closed form": lambda: [count_parameters(s, "roberta", vocabulary, block) for s in shapes],
        "models on the meta device": lambda: [_on_meta(s, vocabulary, block).num_parameters() for s in shapes],
        "exact search, paper": lambda: search_students(base, 4, paper.search, paper.model, vocabulary, block),
        "exact search, large": lambda: search_students(base, 4, large.search, large.model, vocabulary, block),
    }
    return runs, len(shapes), len(students(base, large.search, large.model))


def _on_meta(shape: Student, vocab_size: int, block_size: int) -> PreTrainedModel:
    with torch.device("meta"):
        return plain_model(shape, vocab_size, block_size)
