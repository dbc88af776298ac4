"""Speed of minimal-pair scoring against two plain scorers, all three on the same pairs in the same run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..data.nursery_pairs import pair_files
from ..data.tokenizer import train_tokenizer
from ..errors import UserError
from ..evaluate.minimal_pairs import score_sentences
from ..shapes import Student
from .measure import check_repeats, interleaved, peaks, plain_model, rows, warm_peaks

# Vocabulary of the model (50,265 is that of RoBERTa, which the paper uses) and pairs; the model has 4 layers of
# width 256.
SETTINGS: dict[str, tuple[int, int]] = {"small": (8192, 24), "paper": (50265, 60)}
Copy = tuple[list[int], int, int, int]  # masked ids, position, target, number of the sentence
Score = Callable[[], np.ndarray]
BATCH_SIZES = (1, 8, 32, 128)  # masked copies a forward pass; the batched scorer gets the best of these
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Work:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    sentences: list[str]  # good, bad, good, bad, ...


def bench_scoring(setting: str = "paper", repeats: int = 5, pairs: int | None = None) -> dict[str, Any]:
    """Median time of `score_sentences` and of two plain scorers on nursery pairs, masked model, CPU.

    "naive": one forward pass a masked position, head at every position. "batched": the masked copies in their order,
    padded to the longest of a batch, head at every position, at the fastest of `BATCH_SIZES`. All scores agree to
    1e-3 nats, or an error is raised.
    """
    if setting not in SETTINGS:
        raise UserError(f"there is no scoring setting {setting!r}; expected one of {', '.join(SETTINGS)}")
    check_repeats(repeats)
    vocab_size, default_pairs = SETTINGS[setting]
    pairs = pairs or default_pairs
    work = _make_work(vocab_size, pairs)
    sizes = interleaved({str(size): _batched_run(work, size) for size in BATCH_SIZES}, 1, CPU)
    best = min(BATCH_SIZES, key=lambda size: sizes[str(size)]["median_ms"])
    variants = _variants(work, best)
    scores = {name: score() for name, score in variants.items()}
    difference = max(float(np.abs(scores[name] - scores["wmlkit"]).max()) for name in ("batched", "naive"))
    if difference > 1e-3:
        raise RuntimeError(f"the scorers disagree by {difference} nats")
    times = interleaved(variants, repeats, CPU)
    own = times["wmlkit"]["median_ms"]
    return {
        "setting": setting,
        "vocab_size": vocab_size,
        "pairs": pairs,
        "masked_copies": len(_masked_copies(work.sentences, work.tokenizer)),
        "batch_size_of_batched": best,
        "max_difference": difference,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "variants": rows(times, peaks(scoring_peaks, vocab_size, pairs, best)),
        "ratios": {
            "speedup_vs_naive": times["naive"]["median_ms"] / own,
            "speedup_vs_batched": times["batched"]["median_ms"] / own,
        },
    }


def scoring_peaks(vocab_size: int, pairs: int, batch_size: int) -> dict[str, float]:
    """Peak memory of each scorer in this process, MiB; after one run each, which makes what is made once."""
    return warm_peaks(_variants(_make_work(vocab_size, pairs), batch_size), CPU)


def _make_work(vocab_size: int, pairs: int) -> Work:
    sentences = _sentences(pairs)
    return Work(_student(vocab_size), train_tokenizer(sentences, 4096), sentences)


def _variants(work: Work, batch_size: int) -> dict[str, Score]:
    """Each scorer, from sentences to scores (2 x pairs,) in nats."""
    return {
        "wmlkit": lambda: score_sentences(work.model, work.tokenizer, work.sentences),
        "batched": _batched_run(work, batch_size),
        "naive": lambda: _naive(work.model, _masked_copies(work.sentences, work.tokenizer)),
    }


def _batched_run(work: Work, batch_size: int) -> Score:
    model, tokenizer = work.model, work.tokenizer
    return lambda: _batched(model, _masked_copies(work.sentences, tokenizer), tokenizer, batch_size)


def _sentences(pairs: int) -> list[str]:
    """Both members of `pairs` nursery pairs, spread over the paradigms."""
    files = pair_files(seed=0, per_paradigm=max(1, pairs // 8))
    found = [json.loads(line) for name in sorted(files) for line in files[name].splitlines()]
    chosen = np.linspace(0, len(found) - 1, pairs).astype(int)
    return [found[i][key] for i in chosen for key in ("sentence_good", "sentence_bad")]


def _student(vocab_size: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return plain_model(Student(4, 4, 256, 1024), vocab_size, 128).eval()


def _masked_copies(sentences: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[Copy]:
    """One copy for every token but the special ones."""
    copies = []
    for sentence, ids in enumerate(tokenizer(list(sentences))["input_ids"]):
        for position in range(1, len(ids) - 1):
            masked = [*ids[:position], tokenizer.mask_token_id, *ids[position + 1 :]]
            copies.append((masked, position, ids[position], sentence))
    return copies


@torch.inference_mode()
def _naive(model: PreTrainedModel, copies: Sequence[Copy]) -> np.ndarray:
    scores = np.zeros(copies[-1][3] + 1)
    for masked, position, target, sentence in copies:
        logits = model(input_ids=torch.tensor([masked])).logits
        scores[sentence] += float(logits[0, position].log_softmax(dim=-1)[target])
    return scores


@torch.inference_mode()
def _batched(
    model: PreTrainedModel,
    copies: Sequence[Copy],
    tokenizer: PreTrainedTokenizerFast,
    batch_size: int,
) -> np.ndarray:
    scores = np.zeros(copies[-1][3] + 1)
    for start in range(0, len(copies), batch_size):
        batch = copies[start : start + batch_size]
        padded = tokenizer.pad({"input_ids": [masked for masked, _, _, _ in batch]}, return_tensors="pt")
        logits = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits
        positions = torch.tensor([position for _, position, _, _ in batch])
        targets = torch.tensor([target for _, _, target, _ in batch])
        each = torch.arange(len(batch))
        values = logits[each, positions].log_softmax(dim=-1)[each, targets]
        np.add.at(scores, [sentence for _, _, _, sentence in batch], values.double().numpy())
    return scores
