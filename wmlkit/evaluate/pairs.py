"""Evaluate models on a suite of minimal pairs: read, score, decide, average, write into the run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .. import paths
from ..config import Config
from ..data.tokenizer import load_tokenizer, tokenizer_hash
from ..device import best_device
from ..errors import UserError
from ..models import load_model
from ..run_files import known_result, peer_folder, run_facts
from ..settings import Objective
from ..study_settings import EvaluateConfig
from .minimal_pairs import objective_of, score_sentences
from .protocols import (
    Protocol,
    TieRule,
    Ties,
    as_returned,
    credit,
    get_protocol,
    is_tie,
    macro_average,
    paradigm_rows,
    perfect_score,
    released_order,
    tie_rule,
)
from .spans import encode_spans, token_counts
from .suites import Pair, pairs_folder, read_suite, sample_pairs, suite_hash

SEED = 0  # of the pairs that are drawn, and of ties at random


def evaluate_pairs(
    models: PreTrainedModel | Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    suite: str | None = None,
    protocol: str = "babylm2025",
    ties: Ties = "half",
    per_paradigm: int | None = None,
    temperature: float = 1.0,
    within_word: bool = False,
    ensemble_weights: Sequence[float] | None = None,
    objective: Objective | None = None,
    token_budget: int | None = None,
    device: str | torch.device | None = None,
    pairs: Sequence[Pair] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Accuracy of one model (member "model") or of peers and their ensembles on the pairs of `folder`.

    folder: JSONL files, see `suites.read_suite`; suite: its name in the result (None: the folder's).
    protocol: a key of `protocols.PROTOCOLS`.
    ties: "half" (a tie earns 0.5), "first" (1, what 2024 and 2025 do), "random" (0 or 1, drawn with `SEED`, what 2026
    does) or "protocol" (the rule of the protocol's own year).
    per_paradigm: pairs a paradigm, drawn with `SEED`; None: all. The ordering fault of babylm2024-released comes from
    sentences that occur twice, so it needs all pairs to show.
    temperature, within_word, ensemble_weights, objective, token_budget, device: see `score_sentences`.
    pairs: those that `folder` and `per_paradigm` give, where they have been read already (`read_pairs`).

    Returns the evaluation document (suite, protocol, settings, data_hash and for each member score, official_score,
    ties, n and paradigms; accuracies and ties in percent, score the unweighted mean over paradigms, official_score the
    same with ties as the protocol's own year counts them; perfect_scorer: see `protocols.perfect_score`) and one
    record an item with the tokens of both sentences, special tokens and contexts left out, and each member's scores
    [good, bad] in nats as the protocol returns them.
    Raises UserError for a bad file, or a sentence that cannot be scored, naming file and line.
    """
    rules = get_protocol(protocol)
    rule = tie_rule(rules, ties)
    pairs = read_pairs(folder, protocol, per_paradigm) if pairs is None else pairs
    first = models if isinstance(models, PreTrainedModel) else models[0]
    objective = objective or objective_of(first)
    sentences, contexts = requests = requests_of(pairs, tokenizer)
    scores = score_sentences(
        models,
        tokenizer,
        sentences,
        contexts=[context for _, context in contexts],
        objective=objective,
        within_word=within_word,
        reduction=rules.reduction(objective),
        prefix=rules.prefix,
        temperature=temperature,
        ensemble_weights=ensemble_weights,
        token_budget=token_budget,
        device=device,
        origins=origins_of(pairs),
    )
    of_members = scores if isinstance(scores, dict) else {"model": scores}
    returned = {name: (values[0::2], values[1::2]) for name, values in of_members.items()}
    if rules.ordering_fault and objective == "mlm":
        order = released_order(*requests)
        returned = {name: as_returned(good, bad, order) for name, (good, bad) in returned.items()}
    names = [pair.paradigm for pair in pairs]
    document = {
        "suite": suite or Path(folder).name,
        "protocol": protocol,
        "settings": _settings(
            rules,
            rule,
            objective,
            ensemble_weights=None if ensemble_weights is None else [float(weight) for weight in ensemble_weights],
            per_paradigm=per_paradigm,
            temperature=temperature,
            within_word=within_word,
            dtype=str(first.dtype).removeprefix("torch."),
        ),
        "data_hash": suite_hash(folder),
        "members": [_member(name, pairs, good, bad, rules, rule) for name, (good, bad) in returned.items()],
        "perfect_scorer": {
            "score": perfect_score(names, *requests, rules, objective, False),
            "with_swapped_copies": perfect_score(names, *requests, rules, objective, True),
        },
    }
    return document, _items(pairs, token_counts(tokenizer, sentences), returned)


def _items(
    pairs: Sequence[Pair], lengths: Sequence[int], returned: dict[str, tuple[np.ndarray, np.ndarray]]
) -> list[dict[str, Any]]:
    """Lines of the items' file: each pair's tokens (`lengths`: good, bad, good, ...) and each member's scores of it."""
    scores = {
        name: [[round(float(score), 6) for score in both] for both in zip(*of_member, strict=True)]
        for name, of_member in returned.items()
    }
    return [
        {
            "paradigm": pair.paradigm,
            "pair_id": pair.pair_id,
            "tokens": list(lengths[2 * index : 2 * index + 2]),
            "scores": {name: of_member[index] for name, of_member in scores.items()},
        }
        for index, pair in enumerate(pairs)
    ]


def read_pairs(folder: str | Path, protocol: str, per_paradigm: int | None) -> list[Pair]:
    """The pairs that `evaluate_pairs` scores."""
    return sample_pairs(read_suite(folder, get_protocol(protocol)), per_paradigm, SEED)


def check_window(
    suite: str, pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, config: Config, protocol: str
) -> None:
    """Raises UserError where the students of `config` could not score a pair of `pairs`, before they are trained."""
    origins, prefix = origins_of(pairs), get_protocol(protocol).prefix
    encoded = encode_spans(tokenizer, *texts_of(pairs), config.model.objective, prefix, origins)
    longest, origin = max((len(item.ids), origin) for item, origin in zip(encoded, origins, strict=True))
    if longest > config.data.longest_block:
        foreign = suite == "nursery" and config.data.corpus != "nursery"
        raise UserError(
            f"suite {suite!r} has sentences of up to {longest} tokens ({origin}), and the students' window is "
            f"{config.data.longest_block}; expected one that takes them; set data.block_size={longest} or larger, or "
            f"choose other pairs (evaluate.suites, evaluate.pairs){', of your own text' if foreign else ''}"
        )


def check_suites(config: Config, out: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError as `check_window` for the suites of `config`, and where they cannot be read."""
    chosen = config.evaluate
    for suite in chosen.suites:
        pairs = read_pairs(pairs_folder(config, suite, out), chosen.protocol, chosen.per_paradigm)
        check_window(suite, pairs, tokenizer, config, chosen.protocol)


def requests_of(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[tuple[int, str]]]:
    """Sentences and (tokens, text) of their contexts, of the requests good, bad, good, ...: `released_order` takes
    them."""
    sentences, contexts = texts_of(pairs)
    length = {context: len(tokenizer(context, verbose=False)["input_ids"]) for context in set(contexts)}
    return sentences, [(length[context], context) for context in contexts]


def texts_of(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """Sentences and their contexts, good, bad, good, ..."""
    sentences = [sentence for pair in pairs for sentence in (pair.good, pair.bad)]
    return sentences, [context for pair in pairs for context in (pair.good_context, pair.bad_context)]


def origins_of(pairs: Sequence[Pair]) -> list[str]:
    """What to call the sentences of `texts_of` in messages."""
    return [pair.origin for pair in pairs for _ in range(2)]


def write_evaluation(run_folder: Path, document: dict[str, Any], items: list[dict[str, Any]]) -> None:
    """Write both parts of an evaluation into the run folder, the document last.

    An earlier document goes first: killed in between, it would stand beside items of another evaluation.
    """
    path = paths.evaluation(run_folder, document["suite"], document["protocol"])
    lines = [json.dumps(item, ensure_ascii=False, allow_nan=False) for item in items]
    path.unlink(missing_ok=True)
    paths.write_text(path.with_suffix(".items.jsonl"), "\n".join(lines) + "\n")
    paths.write_json(path, document)


def evaluate_run(
    run_folder: Path,
    suite: str,
    pairs_folder: str | Path,
    config: EvaluateConfig,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Evaluate all peers of a finished run and their ensembles on `pairs_folder`; returns the written document.

    A run that has this evaluation already, with the same settings and the same pairs, is not scored again unless
    `force` is set. Raises UserError for a run that is not finished.
    """
    known = None if force else known_evaluation(run_folder, suite, pairs_folder, config)
    if known is not None:
        return known
    weights, objective = run_facts(run_folder)
    models, tokenizer = load_peers(run_folder)
    document, items = evaluate_pairs(
        models,
        tokenizer,
        pairs_folder,
        suite=suite,
        protocol=config.protocol,
        ties=config.ties,
        per_paradigm=config.per_paradigm,
        ensemble_weights=weights,
        objective=objective,
        token_budget=config.token_budget,
        device=best_device(),
    )
    write_evaluation(run_folder, document, items)
    return document


def known_evaluation(
    run_folder: Path, suite: str, pairs_folder: str | Path, config: EvaluateConfig
) -> dict[str, Any] | None:
    """The document of `evaluate_run` where the run has it already, with these settings on these pairs; else None."""
    rules = get_protocol(config.protocol)
    weights, objective = run_facts(run_folder)
    expected = _settings(
        rules,
        tie_rule(rules, config.ties),
        objective,
        ensemble_weights=weights,
        per_paradigm=config.per_paradigm,
    )
    path = paths.evaluation(run_folder, suite, config.protocol)
    known = known_result(path, ("settings", "data_hash", "members", "perfect_scorer"))
    if known is None or known["data_hash"] != suite_hash(pairs_folder):
        return None
    # dtype is a fact about the stored weights, known only once they are loaded
    return known if {k: v for k, v in known["settings"].items() if k != "dtype"} == expected else None


def load_peers(run_folder: Path) -> tuple[list[PreTrainedModel], PreTrainedTokenizerFast]:
    """The exported peers of a finished run in their order, and the tokenizer that they share."""
    weights, objective = run_facts(run_folder)
    folders = [peer_folder(run_folder, index) for index in range(1, len(weights) + 1)]
    tokenizers = [load_tokenizer(folder) for folder in folders]
    hashes = [tokenizer_hash(tokenizer) for tokenizer in tokenizers]
    if len(set(hashes)) > 1:
        raise UserError(
            f"the peers of {run_folder} have different tokenizers ({', '.join(h[:8] for h in hashes)}); "
            "peers of a run share one: export the run again"
        )
    return [load_model(folder, objective) for folder in folders], tokenizers[0]


def _settings(rules: Protocol, rule: str, objective: Objective, **options: Any) -> dict[str, Any]:
    """What a score depends on beside the model and the pairs."""
    return {
        "objective": objective,
        "reduction": rules.reduction(objective),
        "prefix": rules.prefix,
        "ties": rule,
        "ordering_fault": rules.ordering_fault and objective == "mlm",
        "ewok": rules.ewok,
        "within_word": False,  # these two: of all that is kept in a run
        "temperature": 1.0,
        "seed": SEED,
        **options,
    }


def _member(
    name: str, pairs: Sequence[Pair], good: np.ndarray, bad: np.ndarray, rules: Protocol, rule: TieRule
) -> dict[str, Any]:
    tied = is_tie(good, bad)
    labels = ([p.paradigm for p in pairs], [p.phenomenon for p in pairs], [p.field for p in pairs])
    rows = paradigm_rows(*labels, credit(good, bad, rule, SEED), tied)
    return {
        "member": name,
        "score": macro_average(rows),
        "official_score": macro_average(paradigm_rows(*labels, credit(good, bad, rules.ties, SEED), tied)),
        "ties": 100 * float(tied.mean()),
        "n": len(pairs),
        "paradigms": rows,
    }
