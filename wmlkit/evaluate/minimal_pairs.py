"""Scores of sentences under masked and causal language models, for one model or for peers and their ensembles.

Masked models get a pseudo-log-likelihood: each scored token is masked in turn and its log-probability read off
(Salazar et al. 2020); `within_word` also masks the later pieces of the same word, so that they give nothing away
(Kauf and Ivanova 2023). Causal models get the log-likelihood of the scored tokens.

How the scores are computed fast is in `scoring`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError
from ..models import max_length, objective_of_class
from ..settings import Objective
from .scoring import score_encoded
from .spans import Encoded, Prefix, Reduction, encode_spans


def score_sentences(
    models: PreTrainedModel | Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    *,
    contexts: Sequence[str] | None = None,
    objective: Objective | None = None,
    within_word: bool = False,
    reduction: Reduction = "sum",
    prefix: Prefix = "none",
    temperature: float = 1.0,
    ensemble_weights: Sequence[float] | None = None,
    token_budget: int | None = None,
    device: str | torch.device | None = None,
    origins: Sequence[str] | None = None,
) -> Any:
    """Score of each sentence, in nats.

    One model gives an array (N,). A list of P peers that share the tokenizer gives a dictionary of such arrays from
    one pass: "peer_1" ... "peer_P", "ensemble" and "uniform_ensemble". An ensemble's distribution is
    softmax(sum_i w_i z_i / temperature) over the peers' logits z_i, with w = `ensemble_weights` (uniform if None)
    for "ensemble" and w_i = 1/P for "uniform_ensemble".

    contexts: text before each sentence, joined by one space; only the sentence's tokens are scored.
    objective: "mlm" or "clm"; None: from the class of the first model.
    within_word: mask the later pieces of a word together with the scored one (masked models only).
    reduction: sum over the scored tokens, or their mean.
    prefix: how the text is built and the span found, see `spans.encode_spans`.
    token_budget: tokens a forward pass, None: what suits the device; speed and memory only, no score depends on it.
    device: where to score; None: where the first model is. Models are moved there.
    origins: what to call each sentence in messages, for example "agreement.jsonl line 3".

    Log-softmax is computed in float32, sums in float64; models are put into evaluation mode and back.
    Raises UserError for an empty sentence, one longer than a model's window, a tokenizer that does not fit the
    models, or a score that is not finite.
    """
    peers, weights, names = members_of(models, ensemble_weights)
    objective = objective or objective_of(peers[0])
    if within_word and objective == "clm":
        raise UserError("within_word is for masked models; a causal model never sees later pieces: leave it off")
    contexts = [""] * len(sentences) if contexts is None else contexts
    origins = [f"sentence {i + 1} ({s[:40]!r})" for i, s in enumerate(sentences)] if origins is None else origins
    if not len(sentences) == len(contexts) == len(origins):
        raise UserError(
            f"{len(sentences)} sentences came with {len(contexts)} contexts and {len(origins)} origins; "
            "expected one of each a sentence"
        )
    if not 1e-3 <= temperature <= 1e3:  # beyond, logits / temperature tell nothing apart in float32, or overflow
        raise UserError(f"temperature is {temperature}; expected a number from 0.001 to 1000; change it")
    # Equal requests are scored once: request k is number `unique_of[k]` among the different ones.
    number: dict[tuple[str, str], int] = {}
    unique_of = [number.setdefault(request, len(number)) for request in zip(contexts, sentences, strict=True)]
    origin_of = dict(zip(reversed(unique_of), reversed(origins), strict=True))
    unique_origins = [origin_of[i] for i in range(len(number))]
    encoded = encode_spans(
        tokenizer,
        [sentence for _, sentence in number],
        [context for context, _ in number],
        objective,
        prefix,
        unique_origins,
    )
    check_fit(peers, tokenizer, encoded, unique_origins)
    if within_word:
        _check_words([sentence for _, sentence in number], encoded, unique_origins)
    totals = score_encoded(
        peers,
        tokenizer.mask_token_id,
        encoded,
        objective=objective,
        weights=weights,
        within_word=within_word,
        temperature=temperature,
        token_budget=token_budget,
        device=device,
    )
    if reduction == "mean":
        totals = totals / np.array([len(item.scored) for item in encoded])
    scores = totals[:, unique_of]
    _check_finite(scores, names, origins)
    return scores[0] if isinstance(models, PreTrainedModel) else dict(zip(names, scores, strict=True))


def objective_of(model: PreTrainedModel) -> Objective:
    """Whether `model` is a masked or a causal language model, from the name of its class."""
    name = type(model).__name__
    objective = objective_of_class(name)
    if objective is None:
        raise UserError(f"cannot tell the objective of a {name}; expected a masked or causal model: pass objective=")
    return objective


def check_fit(
    peers: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    origins: Sequence[str],
) -> None:
    """Raise UserError where the tokenizer has ids that a model lacks or a text is longer than a window."""
    for i, model in enumerate(peers, 1):
        if len(tokenizer) > model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {len(tokenizer)} tokens but model {i} was built for {model.config.vocab_size}; "
                "score a model with the tokenizer it was trained with"
            )
    sizes = [model.config.vocab_size for model in peers]
    if len(set(sizes)) > 1:
        raise UserError(f"the models have vocabularies of {sizes} tokens; peers must share one tokenizer")
    window = window_of(peers, tokenizer)
    for item, origin in zip(encoded, origins, strict=True):
        if len(item.ids) > window:
            raise UserError(
                f"{origin} has {len(item.ids)} tokens, the model's window is {window}; "
                "shorten it or use a model trained with a larger data.block_size"
            )


def window_of(peers: Sequence[PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest text that all of the models take."""
    return int(min(tokenizer.model_max_length, *(max_length(model) for model in peers)))


def _check_words(sentences: Sequence[str], encoded: Sequence[Encoded], origins: Sequence[str]) -> None:
    """Raise UserError where a tokenizer takes several words for one, as those that do not cut text at spaces do."""
    for sentence, item, origin in zip(sentences, encoded, origins, strict=True):
        if len(sentence.split()) > 1 and len({item.words[i] for i in item.scored}) == 1 < len(item.scored):
            raise UserError(
                f"the tokenizer numbers the {len(sentence.split())} words of {origin} as one, so within_word "
                "would mask all that follows; expected one that cuts text into words first; leave within_word off"
            )


def members_of(
    models: PreTrainedModel | Sequence[PreTrainedModel], ensemble_weights: Sequence[float] | None
) -> tuple[list[PreTrainedModel], np.ndarray, list[str]]:
    """(peers, weights of "ensemble" (uniform if None) and "uniform_ensemble", (2, P), names of all of these): whom a
    pass over `models` scores. Of a single model the weights are (0, 1) and the name is "model"."""
    if isinstance(models, PreTrainedModel):
        if ensemble_weights is not None:
            raise UserError("ensemble_weights came with a single model; they weigh a list of peers: pass a list")
        return [models], np.zeros((0, 1)), ["model"]
    peers = list(models)
    count = len(peers)
    if not count:
        raise UserError("the list of models is empty; expected at least one model")
    uniform = np.full(count, 1 / count)
    weights = uniform if ensemble_weights is None else np.asarray(ensemble_weights, dtype=float)
    if weights.shape != (count,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise UserError(
            f"ensemble_weights are {list(ensemble_weights or [])} for {count} peers; "
            "expected one number a peer, none negative, not all zero"
        )
    names = [*(f"peer_{i}" for i in range(1, count + 1)), "ensemble", "uniform_ensemble"]
    return peers, np.stack([weights, uniform]), names


def _check_finite(scores: np.ndarray, names: Sequence[str], origins: Sequence[str]) -> None:
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        member, item = bad[0]
        raise UserError(
            f"the score of {origins[item]} is {scores[member, item]} under {names[member]}; expected a finite "
            "number; the model has probably diverged: look at its training loss or train it in fp32"
        )
