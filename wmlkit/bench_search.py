"""What the student search costs: closed-form counts against models built without memory, and a large space searched."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, RobertaConfig, RobertaForMaskedLM

from .bench_measure import check_repeats, highest_memory, interleaved
from .config import load_preset
from .models import Student, base_student
from .search import count_parameters, search_students, students

LARGE = {  # a space of many thousand shapes around the paper's
    "search.num_layers": list(range(1, 49)),
    "search.num_heads": [1, 2, 4, 8, 16, 32],
    "search.hidden_size": list(range(64, 2049, 32)),
}


def bench_search(repeats: int = 5) -> dict[str, object]:
    """Sizes of the paper's 75 shapes in closed form and by building each model on torch's meta device, which agree or
    an error is raised; and the exact search of the paper's space and of a large one."""
    check_repeats(repeats)
    paper = load_preset("paper-10m", {"search.count": "all"})
    large = paper.updated(LARGE)
    base, vocabulary, block = base_student(paper.model), paper.data.vocab_size, paper.data.block_size
    shapes = students(base, paper.search, paper.model)

    def closed_form() -> list[int]:
        return [count_parameters(shape, "roberta", vocabulary, block) for shape in shapes]

    def building() -> list[int]:
        return [sum(p.numel() for p in _on_meta(shape, vocabulary, block).parameters()) for shape in shapes]

    if closed_form() != building():
        raise RuntimeError("the closed form does not count what the models have")
    runs = {
        "closed form, 75 shapes": closed_form,
        "models on the meta device, 75 shapes": building,
        "exact search, paper": lambda: search_students(base, 4, paper.search, paper.model, vocabulary, block),
        "exact search, large": lambda: search_students(base, 4, large.search, large.model, vocabulary, block),
    }
    times = interleaved(runs, repeats, torch.device("cpu"))
    closed, built, _, searched = (times[name]["median_ms"] for name in runs)
    return {
        "setting": "paper",
        "shapes": len(shapes),
        "large_shapes": len(students(base, large.search, large.model)),
        "repeats": repeats,
        "variants": [{"name": name, **times[name], "peak_mib": highest_memory()} for name in runs],
        "ratios": {"speedup_vs_building": built / closed, "large_search_ms": searched},
    }


def _on_meta(shape: Student, vocab_size: int, block_size: int) -> PreTrainedModel:
    with torch.device("meta"):
        return RobertaForMaskedLM(
            RobertaConfig(
                vocab_size=vocab_size,
                num_hidden_layers=shape.num_layers,
                num_attention_heads=shape.num_heads,
                hidden_size=shape.hidden_size,
                intermediate_size=shape.intermediate_size,
                max_position_embeddings=block_size + 2,
                type_vocab_size=1,
            )
        )
