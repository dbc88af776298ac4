"""A finished run's loss on the dev text of its corpus, and what stands beside it: token frequencies, a floor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from .. import paths
from ..data import nursery
from ..data.encode import decoded_documents, open_tokens, stored_lines
from ..data.prepared import open_prepared
from ..data.tokenizer import load_tokenizer
from ..device import best_device
from ..errors import UserError
from ..run_files import known_result, other_format, run_document, run_facts
from ..settings import Objective
from .language_modelling import SEED, Documents, Read, draw_units, evaluate_text, ids_of_units, member_of
from .pairs import load_peers

COUNTED = 1 << 24  # tokens in one go


def evaluate_run_text(
    run_folder: Path,
    prepared_folder: Path,
    *,
    words_per_domain: int | None,
    token_budget: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """`evaluate_text` of a finished run's peers on the dev text of a prepared corpus; written into the run folder.

    `unigram` stands beside it, see `unigram_loss`, and for the nursery `floor`, see `nursery_floor`. A run that was
    measured with the same settings on the same corpus is not measured again unless `force` is set.
    """
    data_hash = open_prepared(prepared_folder).hash  # a corpus that is gone is named before anything is loaded
    known = None if force else known_text(run_folder, data_hash, words_per_domain)
    if known is not None:
        return known
    weights, objective = run_facts(run_folder)
    models, tokenizer = load_peers(run_folder)
    texts, statistics = prepared_texts(prepared_folder), paths.read_json(prepared_folder / "statistics.json")
    drawn = {domain: draw_units(documents, words_per_domain, SEED) for domain, documents in texts.items()}
    trained = statistics["tokenizer"].get("trained")
    stored = None if trained else _known_lines(prepared_folder, tokenizer, drawn)
    document = evaluate_text(
        models,
        tokenizer,
        texts,
        objective=objective,
        words_per_domain=words_per_domain,
        by_line=reads_lines(run_folder),
        ensemble_weights=weights,
        token_budget=token_budget,
        device=best_device(),
        known=stored,
    )
    document["data_hash"] = data_hash
    if tokenizer.get_vocab() == load_tokenizer(paths.tokenizer(prepared_folder)).get_vocab():  # else: other ids
        read = {domain: np.concatenate(list(ids_of_units(tokenizer, units, stored))) for domain, units in drawn.items()}
        ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        tokens = {domain: ids[~np.isin(ids, ends)] for domain, ids in read.items()}
        document["unigram"] = unigram_loss(token_counts(prepared_folder, tokenizer), tokens, document["members"][0])
    if statistics["corpus"] == "nursery":
        document["floor"] = nursery_floor(drawn, objective, document["members"][0])
    paths.write_json(paths.language_modelling(run_folder), document)
    return document


def known_text(run_folder: Path, data_hash: str, words_per_domain: int | None) -> dict[str, Any] | None:
    """The document of `evaluate_run_text` where the run has it, with these settings on the corpus of that hash."""
    known = known_result(paths.language_modelling(run_folder), ("data_hash", "settings", "members"))
    if known is None or known["data_hash"] != data_hash:
        return None
    expected = {
        "words_per_domain": words_per_domain,
        "by_line": reads_lines(run_folder),
        "ensemble_weights": run_facts(run_folder)[0],
    }
    return known if expected.items() <= known["settings"].items() else None


def reads_lines(run_folder: Path) -> bool:
    """Whether a run's models were trained on lines apart from one another, and so have to be read text in that way."""
    config = run_document(run_folder, ("config",))["config"]
    return bool(config.get("data", {}).get("packing") == "lines")


def model_reads_lines(model_folder: Path) -> bool:
    """The same of a model folder: what an export says; False of a model from elsewhere."""
    path = paths.trained_on(model_folder)
    if not path.is_file():
        return False
    try:
        return bool(paths.read_json(path).get("packing") == "lines")
    except (ValueError, AttributeError):
        raise UserError(
            f"{path} does not say how the model's training read text; expected what `wmlkit export` wrote; export the "
            "model again, or remove that file to have lines read side by side"
        ) from None


def token_counts(prepared_folder: Path, tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """(vocabulary,) how often each token comes in the training text; 0 for start and end tokens, which are no text."""
    ids, _ = open_tokens(prepared_folder / "train.tokens")
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    for begin in range(0, len(ids), COUNTED):
        counts += np.bincount(ids[begin : begin + COUNTED], minlength=len(tokenizer))
    counts[[tokenizer.bos_token_id, tokenizer.eos_token_id]] = 0
    return counts


def unigram_loss(counts: np.ndarray, tokens: Mapping[str, np.ndarray], measured: Mapping[str, Any]) -> dict[str, Any]:
    """The loss of the very tokens that were `measured` for what knows only how often each comes; the form of a member.

    -log((n(w) + 1) / (N + V)) of a token w that comes n(w) times among N of the training text (`token_counts`), V the
    vocabulary. tokens: those of each domain. A model with no lower loss has not learned what goes with what.
    """
    nats = np.log(counts.sum() + len(counts)) - np.log(counts + 1)
    rows = measured["domains"]
    sums = {row["domain"]: np.array([math.fsum(nats[tokens[row["domain"]]])]) for row in rows}
    read = {row["domain"]: Read(sums[row["domain"]], row["tokens"], row["bytes"], unknown=0) for row in rows}
    return member_of("unigram", 0, read)


def nursery_floor(
    drawn: Mapping[str, Documents], objective: Objective, measured: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The loss of the very text that was `measured` for a predictor that knows its grammar; the form of a member.

    None where it cannot be told: for text that is not the grammar's as it stands (not cleaned), and for a masked
    model whose tokenizer splits words, because each piece then tells of the others.
    """
    read = {}
    for row in measured["domains"]:
        lines = [line for unit in drawn[row["domain"]] for line in unit]
        floors = [nursery.line_floor(line, row["domain"], objective) for line in lines]
        known = [floor for floor in floors if floor is not None]
        split = objective == "mlm" and sum(words for _, words in known) != row["tokens"]
        if len(known) < len(floors) or split:
            return None
        nats = np.array([math.fsum(nats for nats, _ in known)])
        read[row["domain"]] = Read(nats, row["tokens"], row["bytes"], unknown=0)
    return member_of("floor", 0, read)


def prepared_of(run_folder: Path) -> Path:
    """The prepared corpus of a run folder ``OUT/<preset>/<run>``. Raises UserError where it is not there."""
    data = run_document(run_folder, ("data",))["data"]
    name = data.get("folder") if isinstance(data, dict) else None
    if not isinstance(name, str) or Path(name).name != name:
        raise other_format(run_folder / "config.json", "name of a prepared corpus below 'data', 'folder'")
    folder = paths.prepared_named(paths.out_of(run_folder.resolve()), name)
    if not folder.is_dir():
        raise UserError(
            f"{folder}, the text of {run_folder.name}, is not there; expected it in the output folder that the run was "
            "made in: move both together, or, for suite lm, give a folder of text with --corpus"
        )
    return folder


def prepared_texts(prepared_folder: Path) -> dict[str, list[list[str]]]:
    """The dev text of a prepared corpus, domain -> documents of lines, decoded from its tokens."""
    documents = decoded_documents(prepared_folder / "dev.tokens", load_tokenizer(paths.tokenizer(prepared_folder)))
    texts: dict[str, list[list[str]]] = {}
    for row in paths.read_json(prepared_folder / "statistics.json")["splits"]:
        if row["split"] == "dev":
            texts.setdefault(row["domain"], []).extend(islice(documents, row["documents"]))
    return texts


def _known_lines(
    prepared_folder: Path, tokenizer: PreTrainedTokenizerFast, drawn: Mapping[str, Documents]
) -> dict[str, np.ndarray]:
    """The ids of the `drawn` lines of `prepared_texts`. Of a tokenizer that was trained here, which knows all bytes,
    encoding gives the same."""
    wanted = {line for units in drawn.values() for unit in units for line in unit}
    both = (function(prepared_folder / "dev.tokens", tokenizer) for function in (decoded_documents, stored_lines))
    pairs = (pair for texts, ids in zip(*both, strict=True) for pair in zip(texts, ids, strict=True))
    return {text: ids for text, ids in pairs if text in wanted}
