"""Fine-tune a language model as a classifier of texts or pairs of texts, and predict with its best epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..device import moved
from ..errors import UserError
from ..models import hidden_states, max_length
from ..optim import decayed
from ..settings import Objective

_Row = tuple[list[int], list[int]]  # of an example: token ids, and of which of its texts each is, 0 or 1


@dataclass(frozen=True)
class Example:
    """One or two texts and the number of their class."""

    first: str
    second: str | None
    label: int


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained."""

    lr: float
    batch_size: int
    epochs: int
    max_length: int  # tokens; a model with a shorter window gets its window
    weight_decay: float
    schedule: Literal["linear", "cosine"]  # from lr to min_lr_ratio * lr, after a linear warm-up
    warmup_ratio: float
    min_lr_ratio: float
    grad_clip: float  # norm; 0: none
    patience: int | None  # epochs without a gain of more than `threshold` after which training stops
    threshold: float
    drop_last: bool
    head: Literal["tanh", "gelu"]
    dropout: float  # in the head


@dataclass(frozen=True)
class FineTuned:
    """Predictions of the best epoch on each set that was given, and how the training went."""

    predictions: dict[str, np.ndarray]  # set -> (N,) classes
    best_epoch: int  # counted from 1
    selection: tuple[float, ...]  # the selection score after each epoch
    losses: tuple[float, ...]  # mean training loss of each epoch, nats


@torch.inference_mode()
def _width(model: PreTrainedModel) -> int:
    """Of the last hidden states, which some families make wider or narrower than their layers. Raises UserError where a
    model has no trunk that gives them."""
    try:
        return hidden_states(model, torch.zeros(1, 1, dtype=torch.long, device=model.device)).shape[-1]
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"a {type(model).__name__} gives no last hidden states to read a text's class from ({error}); expected a "
            "language model with a trunk of its own; fine-tune another"
        ) from None


class Classifier(nn.Module):
    """A language model's trunk and a new classification head on one token of it.

    Masked models are read at their first token, causal ones at their last; both are found by the attention mask and
    positions are counted by it, so that the side and amount of padding change nothing.
    """

    def __init__(self, model: PreTrainedModel, objective: Objective, num_labels: int, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        width = _width(model)
        if recipe.head == "gelu":  # BabyLM 2025: finetune/classifier_model.py
            self.head = nn.Sequential(
                nn.LayerNorm(width, elementwise_affine=False),
                nn.Linear(width, width),
                nn.GELU(),
                nn.LayerNorm(width, elementwise_affine=False),
                nn.Dropout(recipe.dropout),
                nn.Linear(width, num_labels),
            )
        elif objective == "mlm":  # BabyLM 2024: the head of transformers' RobertaForSequenceClassification
            self.head = nn.Sequential(
                nn.Dropout(recipe.dropout),
                nn.Linear(width, width),
                nn.Tanh(),
                nn.Dropout(recipe.dropout),
                nn.Linear(width, num_labels),
            )
        else:  # BabyLM 2024: the head of transformers' GPT2ForSequenceClassification
            self.head = nn.Sequential(nn.Linear(width, num_labels, bias=False))
        if recipe.head != "gelu":  # both begin as transformers' layers do, not as torch's
            for layer in (layer for layer in self.head if isinstance(layer, nn.Linear)):
                nn.init.normal_(layer.weight, std=getattr(model.config, "initializer_range", 0.02))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits (B, classes) of (B, T) ids, padded on either side; segments: see `hidden_states`."""
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        hidden = hidden_states(self.model, input_ids, attention_mask, positions, segments)
        if self.objective == "mlm":
            token = attention_mask.argmax(dim=1)  # the first that is not padding
        else:
            steps = torch.arange(attention_mask.shape[1], device=attention_mask.device)
            token = (attention_mask * steps).argmax(dim=1)  # the last
        rows = torch.arange(len(hidden), device=hidden.device)
        logits: Tensor = self.head(hidden[rows, token])
        return logits


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Example],
    valid: Mapping[str, Sequence[Example]],
    *,
    objective: Objective,
    num_labels: int,
    recipe: Recipe,
    seed: int,
    select: Callable[[np.ndarray, np.ndarray], float],
    device: str | torch.device | None = None,
) -> FineTuned:
    """Train a float32 copy of `model` on `train` and predict all sets of `valid` at the best epoch.

    The best epoch is the one with the highest `select(labels, predictions)` on the first set of `valid`, the earliest
    of several: that set chooses and is scored, so its numbers are optimistic, as in the official pipelines.
    `seed` fixes the head, the order of the examples and dropout; torch's own generator is left as it was.
    Raises UserError if the loss stops being finite.
    """
    target = torch.device(device) if device is not None else model.device
    length = window(recipe, model, tokenizer)
    inputs = _encode(tokenizer, train, length)
    valid_inputs = {name: _encode(tokenizer, examples, length) for name, examples in valid.items()}
    labels = {name: np.array([example.label for example in examples]) for name, examples in valid.items()}
    first = next(iter(valid))
    train_labels = torch.tensor([example.label for example in train])
    steps_an_epoch = len(train) // recipe.batch_size if recipe.drop_last else math.ceil(len(train) / recipe.batch_size)
    steps_an_epoch = max(1, steps_an_epoch)  # fewer examples than a batch: one smaller batch
    cards = [target] if target.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        torch.manual_seed(seed)
        # The head is float32, and steps of this size are lost in the rounding of weights kept in half precision
        classifier = Classifier(copy.deepcopy(model).float(), objective, num_labels, recipe).to(target)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        total = steps_an_epoch * recipe.epochs
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, total, recipe))
        selection: list[float] = []
        losses: list[float] = []
        predictions: dict[str, np.ndarray] = {}
        best, best_epoch, waited = -math.inf, 0, 0
        for epoch in range(1, recipe.epochs + 1):
            shuffled = epoch_order(len(train), seed, epoch)
            parts = [shuffled[i * recipe.batch_size : (i + 1) * recipe.batch_size] for i in range(steps_an_epoch)]
            batches = (
                (*_padded([inputs[i] for i in part], tokenizer, target), moved(train_labels[part], target))
                for part in parts
            )
            losses.append(_train_epoch(classifier, batches, optimizer, scheduler, recipe.grad_clip))
            if not math.isfinite(losses[-1]):
                raise UserError(
                    f"the fine-tuning loss of {first} is {losses[-1]} in epoch {epoch}; expected a finite number; the "
                    "model has probably diverged in its training: look at its dev loss, or leave this task out"
                )
            epoch_predictions = {first: _predict(classifier, valid_inputs[first], tokenizer, target)}
            selection.append(select(labels[first], epoch_predictions[first]))
            waited = 0 if selection[-1] > best + recipe.threshold else waited + 1
            if selection[-1] > best:
                best, best_epoch = selection[-1], epoch
                for name in [name for name in valid if name != first]:
                    epoch_predictions[name] = _predict(classifier, valid_inputs[name], tokenizer, target)
                predictions = epoch_predictions
            if recipe.patience is not None and waited >= recipe.patience:
                break
    return FineTuned(predictions, best_epoch, tuple(selection), tuple(losses))


def _train_epoch(
    classifier: Classifier,
    batches: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]],
    optimizer: Optimizer,
    scheduler: LRScheduler,
    grad_clip: float,
) -> float:
    """One step a batch: ids, attention mask and segments (B, T), labels (B,). Returns the batches' mean loss."""
    classifier.train()
    losses = []
    for ids, mask, segments, labels in batches:
        loss = cross_entropy(classifier(ids, mask, segments), labels)
        optimizer.zero_grad()
        loss.backward()
        if grad_clip:
            clip_grad_norm_(classifier.parameters(), grad_clip)
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).cpu().double().mean())  # once an epoch: a device is not waited for at each step


def window(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of an example that are read: the recipe's, or fewer where the model or its tokenizer takes fewer."""
    return min(recipe.max_length, max_length(model), tokenizer.model_max_length)


def lr_factor(step: int, total: int, recipe: Recipe) -> float:
    """Learning rate of step `step` (from 0) of `total` as a share of the recipe's."""
    warmup = int(recipe.warmup_ratio * total)
    if step < warmup:
        return step / max(1, warmup)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return decayed(recipe.schedule, done, recipe.min_lr_ratio)


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """The order of `n` examples in an epoch."""
    order: list[int] = np.random.default_rng([seed, epoch]).permutation(n).tolist()
    return order


def _encode(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], length: int) -> list[_Row]:
    """Each example in the tokenizer's template, the longer text cut first where both do not fit."""
    firsts = [example.first for example in examples]
    seconds = [example.second or "" for example in examples]
    pairs = bool(examples) and examples[0].second is not None
    encoded = tokenizer(
        firsts, seconds if pairs else None, truncation=True, max_length=length, padding=False,
        return_token_type_ids=True, verbose=False,
    )  # fmt: skip
    return list(zip(encoded["input_ids"], encoded["token_type_ids"], strict=True))


def _padded(
    rows: Sequence[_Row], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and segments (B, T) of rows of different lengths, padded at their ends."""
    ids = pad_sequence([torch.tensor(own) for own, _ in rows], True, int(tokenizer.pad_token_id or 0))
    mask = pad_sequence([torch.ones(len(own), dtype=torch.long) for own, _ in rows], True)
    segments = pad_sequence([torch.tensor(own) for _, own in rows], True)
    return moved(ids, device), moved(mask, device), moved(segments, device)


@torch.inference_mode()
def _predict(
    classifier: Classifier, rows: Sequence[_Row], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> np.ndarray:
    """Class of each row, (N,); rows of like length share a batch."""
    classifier.eval()
    classes = np.zeros(len(rows), dtype=np.int64)
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
    for start in range(0, len(rows), 64):
        chosen = by_length[start : start + 64]
        logits = classifier(*_padded([rows[i] for i in chosen], tokenizer, device))
        classes[chosen] = logits.argmax(dim=-1).cpu().numpy()
    return classes
