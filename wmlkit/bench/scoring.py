"""Speed of minimal-pair scoring against two plain scorers, all three on the same pairs in the same run."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from ..data.nursery_pairs import write_pairs
from ..data.tokenizer import train_tokenizer
from ..errors import UserError
from ..evaluate.minimal_pairs import score_sentences
from .measure import check_repeats, peak_above

# Vocabulary of the model (50,265 is that of RoBERTa, which the paper uses) and pairs; the model has 4 layers of
# width 256.
SETTINGS: dict[str, tuple[int, int]] = {"small": (8192, 24), "paper": (50265, 60)}
Copy = tuple[list[int], int, int, int]  # masked ids, position, target, number of the sentence
BATCH_SIZES = (1, 8, 32, 128)  # masked copies a forward pass; the batched scorer gets the best of these


def bench_scoring(setting: str = "paper", repeats: int = 5, pairs: int | None = None) -> dict[str, Any]:
    """Median time of `score_sentences` and of two plain scorers on nursery pairs, masked model, CPU.

    "naive": one forward pass a masked position, head at every position. "batched": the masked copies in their order,
    padded to the longest of a batch, head at every position, at the fastest of `BATCH_SIZES`. Repeats are
    interleaved, so that a slow moment of the machine falls on all three. All scores agree to 1e-3 nats, or an
    error is raised.
    """
    if setting not in SETTINGS:
        raise UserError(f"there is no scoring setting {setting!r}; expected one of {', '.join(SETTINGS)}")
    check_repeats(repeats)
    vocab_size, default_pairs = SETTINGS[setting]
    sentences = _sentences(pairs or default_pairs)
    tokenizer = train_tokenizer(sentences, 4096)
    model = _student(vocab_size)
    copies = _masked_copies(sentences, tokenizer)
    tried = {size: _seconds(partial(_batched, model, copies, tokenizer, size)) for size in BATCH_SIZES}
    best = min(tried, key=lambda size: tried[size])
    variants: dict[str, Callable[[], np.ndarray]] = {
        "wmlkit": lambda: score_sentences(model, tokenizer, sentences),
        "batched": lambda: _batched(model, _masked_copies(sentences, tokenizer), tokenizer, best),
        "naive": lambda: _naive(model, _masked_copies(sentences, tokenizer)),
    }
    scores = {name: score() for name, score in variants.items()}  # also the warm-up
    difference = max(float(np.abs(scores[name] - scores["wmlkit"]).max()) for name in ("batched", "naive"))
    if difference > 1e-3:
        raise RuntimeError(f"the scorers disagree by {difference} nats")
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, score in variants.items():
            times[name].append(_seconds(score))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {
        "setting": setting,
        "vocab_size": vocab_size,
        "pairs": len(sentences) // 2,
        "masked_copies": len(copies),
        "batch_size_of_batched": best,
        "max_difference": difference,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "variants": [
            {"name": name, "median_ms": 1000 * medians[name], "peak_mib": peak_above(score, torch.device("cpu"))}
            for name, score in variants.items()
        ],
        "ratios": {
            "speedup_vs_naive": medians["naive"] / medians["wmlkit"],
            "speedup_vs_batched": medians["batched"] / medians["wmlkit"],
        },
    }


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _sentences(pairs: int) -> list[str]:
    """Both members of `pairs` nursery pairs, spread over the paradigms."""
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder), seed=0, per_paradigm=max(1, pairs // 8))
        rows = [
            json.loads(line)
            for path in sorted(Path(folder).glob("*.jsonl"))
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
    chosen = np.linspace(0, len(rows) - 1, pairs).astype(int)
    return [rows[i][key] for i in chosen for key in ("sentence_good", "sentence_bad")]


def _student(vocab_size: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = RobertaConfig(
            vocab_size=vocab_size,
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=1024,
            max_position_embeddings=130,
            type_vocab_size=1,
            pad_token_id=1,
        )
        return RobertaForMaskedLM(config).eval()


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
        rows = torch.arange(len(batch))
        values = logits[rows, positions].log_softmax(dim=-1)[rows, targets]
        np.add.at(scores, [sentence for _, _, _, sentence in batch], values.double().numpy())
    return scores
