"""Peers and batches small enough for finite differences, and a row of EWoK."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from wmlkit.data.batches import Batch, Rows
from wmlkit.forward import AtPositions
from wmlkit.models import build_model
from wmlkit.settings import ModelConfig
from wmlkit.shapes import Student

WORDS = [
    "the",
    "cat",
    "dog",
    "cats",
    "dogs",
    "sees",
    "sleeps",
    "sleep",
    "a",
    "red",
    "big",
    "house",
    "near",
    "runs",
    "run",
    "and",
]
BLOCK = 12
# A row of EWoK's test split
EWOK = {
    "Context1": "Anna is Ben's boss.",
    "Context2": "Anna is Ben's pupil.",
    "Target1": "Anna leads Ben.",
    "Target2": "Ben leads Anna.",
    "Domain": "social-relations",
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Sixteen whole words behind the five special tokens."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {word: i for i, word in enumerate(special + ["Ġ" + word for word in WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def make_peers(family: str, shapes=((1, 8), (2, 16)), dtype=torch.float32) -> list[AtPositions]:
    """One peer for each (layers, width), with weights large enough to tell peers apart."""
    objective = "mlm" if family in ("roberta", "modernbert") else "clm"
    config = ModelConfig(family=family, objective=objective)
    peers = []
    for seed, (layers, width) in enumerate(shapes):
        model = build_model(Student(layers, 2, width, 2 * width), config, make_tokenizer(), BLOCK, seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(10)
        peers.append(AtPositions(model.to(dtype)))
    return peers


def make_tokens(seed: int, documents: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Random documents of one to three lines of two to six words, as token files hold them."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    starts = []
    for _ in range(documents):
        starts.append(len(tokens))
        tokens.append(0)
        for _ in range(rng.integers(1, 4)):
            tokens += [*rng.integers(5, 5 + len(WORDS), rng.integers(2, 7)).tolist(), 2]
    return np.array(tokens, dtype=np.uint16), np.array(starts, dtype=np.uint64)


def make_rows(seed: int = 0, packing: str = "documents") -> Rows:
    return Rows(*make_tokens(seed), make_tokenizer(), BLOCK, packing, seed, "train")


def make_batch(family: str, seed: int, batch_size: int = 4) -> Batch:
    rows = make_rows(seed)
    if family in ("roberta", "modernbert"):
        return rows.masked_batch(0, batch_size, 4, 0.3)
    return rows.causal_batch(0, batch_size)
