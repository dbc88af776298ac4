"""How well models predict dev text, by domain: perplexity, and bits per byte, which compares causal models' tokenizers.

Causal models get the perplexity, masked models the pseudo-perplexity (each token masked in turn, Salazar et al.
2020); the two are different quantities and only models of one objective compare. Per-token numbers depend on how
long a tokenizer's tokens are; bits per byte of causal models do not, because the same bytes are predicted. A masked
model guesses a piece of a word with its other pieces in sight, so its bits per byte fall as a tokenizer cuts more, and
compare masked models of one tokenizer only. All this for tokenizers that keep the text: what lower-cases, normalises
(NFKC), writes <unk> or leaves characters out predicts less than the bytes it is divided by, and its bits per byte are
too low to compare. Unknown tokens and what is left out are counted (`unknown`, `left_out`), the other two are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .. import paths
from ..data import nursery
from ..data.batches import segments
from ..data.encode import decoded_documents, encode_documents, left_out, stored_lines
from ..data.prepared import open_prepared
from ..data.tokenizer import load_tokenizer, unknown_id
from ..device import best_device
from ..errors import UserError
from ..run_files import known_result, other_format, run_document, run_facts
from ..settings import Objective
from .minimal_pairs import check_fit, members_of, objective_of, window_of
from .pairs import load_peers
from .scoring import score_encoded
from .spans import Encoded

SEED = 0  # of the units that are drawn
_COUNTED = ("unknown", "tokens", "left_out", "characters")
UNIT_WORDS = 64  # texts are cut into units of about this many words, whatever the tokenizer

Documents = Sequence[Sequence[str]]  # documents of lines


@dataclass(frozen=True)
class _Read:
    """What the members make of the text of one domain."""

    nats: np.ndarray  # (members,), summed
    tokens: int
    bytes: int
    unknown: int  # tokens among them
    left_out: int = 0  # characters that no token stands for
    characters: int = 0  # without white space


def evaluate_text(
    models: PreTrainedModel | Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, Documents],
    *,
    objective: Objective | None = None,
    words_per_domain: int | None = 2000,
    by_line: bool = False,
    ensemble_weights: Sequence[float] | None = None,
    token_budget: int | None = None,
    device: str | torch.device | None = None,
    known: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Loss of one model (member "model") or of peers and their ensembles on `texts`, domain -> documents of lines.

    Documents are cut into units of consecutive lines, `words_per_domain` words of units are drawn
    (None: all; masked models need one forward pass a token), and each unit is read as ``<s> line </s> line </s>``, in
    the pieces that training cuts (`segments`), as long as the models allow; by_line: each line is a piece, for models
    that saw no line beside another (`data.packing` "lines"). Every token of the text is scored once, start and end
    tokens never. The drawn text does not depend on the tokenizer, nor on by_line. known: the ids of each line, where
    the texts were decoded from them: of an unknown token comes back its name, which would be read as text.

    Returns {"objective", "settings", "members": [{"member", "nats_per_token", "perplexity", "bits_per_byte",
    "tokens", "bytes", "domains": [the same by "domain"]}]}; a member's own numbers pool all tokens. Where the
    tokenizer knows some of the text only as its unknown token, also "unknown": the share of such tokens; where it has
    no token at all for some, "left_out": the share of such characters.
    Raises UserError for a domain without text or a loss that is not finite.
    """
    peers, ensembles, names = members_of(models, ensemble_weights)
    objective = objective or objective_of(peers[0])
    window = window_of(peers, tokenizer)
    unknown = unknown_id(tokenizer)

    def read(domain: str, documents: Documents) -> _Read:
        units = draw_units(documents, words_per_domain, SEED)
        if not units:
            raise UserError(f"domain {domain!r} has no text; expected at least one line; leave the domain out")
        documents_of_ids = _known_documents(tokenizer, units, known) if known else encode_documents(tokenizer, units)
        encoded = [item for ids in documents_of_ids for item in pieces(ids, window, tokenizer, by_line)]
        if not any(item.scored for item in encoded):
            raise UserError(
                f"the tokenizer makes no token of the text of domain {domain!r}; expected one at least; "
                "leave the domain out, or evaluate a model that knows its script"
            )
        check_fit(peers, tokenizer, encoded, [domain] * len(encoded))
        totals = score_encoded(
            peers,
            tokenizer.mask_token_id,
            encoded,
            objective=objective,
            weights=ensembles,
            token_budget=token_budget,
            device=device,
        )
        without, characters = (0, 0) if known else left_out(tokenizer, (line for unit in units for line in unit))
        return _Read(
            nats=-totals.sum(axis=1),
            tokens=sum(len(item.scored) for item in encoded),
            bytes=sum(len(line.encode()) for unit in units for line in unit),
            unknown=sum(item.ids[i] == unknown for item in encoded for i in item.scored),
            left_out=without,
            characters=characters,
        )

    domains = {domain: read(domain, documents) for domain, documents in texts.items()}
    members = [_member(name, row, domains) for row, name in enumerate(names)]
    settings = {
        "words_per_domain": words_per_domain,
        "seed": SEED,
        "temperature": 1.0,
        "window": window,
        "by_line": by_line,
        "ensemble_weights": None if ensemble_weights is None else [float(weight) for weight in ensemble_weights],
        "dtype": str(peers[0].dtype).removeprefix("torch."),
    }
    document: dict[str, Any] = {"objective": objective, "settings": settings, "members": members}
    sums = {name: sum(getattr(one, name) for one in domains.values()) for name in _COUNTED}
    lost = {"unknown": sums["unknown"] / sums["tokens"], "left_out": sums["left_out"] / max(sums["characters"], 1)}
    return document | {name: share for name, share in lost.items() if share}


def _member(name: str, row: int, read: Mapping[str, _Read]) -> dict[str, Any]:
    """The losses of one member, by domain and over all tokens."""
    domains = [
        {"domain": domain, **_measures(float(one.nats[row]), one.tokens, one.bytes, f"{name} on {domain}")}
        for domain, one in read.items()
    ]
    loss = sum(float(one.nats[row]) for one in read.values())
    tokens, size = sum(one.tokens for one in read.values()), sum(one.bytes for one in read.values())
    return {"member": name, **_measures(loss, tokens, size, name), "domains": domains}


def evaluate_run_text(
    run_folder: Path,
    prepared_folder: Path,
    *,
    words_per_domain: int | None,
    token_budget: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """`evaluate_text` of a finished run's peers on the dev text of a prepared corpus; written into the run folder.

    For the nursery `floor` stands beside it, see `nursery_floor`. A run that has been measured with the same
    settings on the same corpus is not measured again unless `force` is set.
    """
    data_hash = open_prepared(prepared_folder).hash  # a corpus that is gone is named before anything is loaded
    known = None if force else known_text(run_folder, data_hash, words_per_domain)
    if known is not None:
        return known
    weights, objective = run_facts(run_folder)
    models, tokenizer = load_peers(run_folder)
    texts, statistics = prepared_texts(prepared_folder), paths.read_json(prepared_folder / "statistics.json")
    drawn = {domain: draw_units(documents, words_per_domain, SEED) for domain, documents in texts.items()}
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
        known=None if statistics["tokenizer"].get("trained") else _known_lines(prepared_folder, tokenizer, drawn),
    )
    document["data_hash"] = data_hash
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
        read[row["domain"]] = _Read(nats, row["tokens"], row["bytes"], unknown=0)
    return _member("floor", 0, read)


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


def _known_documents(
    tokenizer: PreTrainedTokenizerFast, units: Documents, known: Mapping[str, np.ndarray]
) -> Iterable[np.ndarray]:
    """What `encode_documents` gives, of lines whose ids are known."""
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for unit in units:
        yield np.array([start, *(token for line in unit for token in (*known[line].tolist(), end))])


def draw_units(documents: Documents, words: int | None, seed: int) -> list[list[str]]:
    """Units of consecutive lines of one document, `UNIT_WORDS` words or one longer line; about `words` words, seeded.

    Drawn units stay in the order of the text.
    """
    units: list[list[str]] = []
    sizes: list[int] = []
    for lines in documents:
        room = 0  # a document starts a unit
        for line in lines:
            if not line.strip():
                continue
            size = len(line.split())
            if room <= 0:
                units.append([])
                sizes.append(0)
                room = UNIT_WORDS
            units[-1].append(line)
            sizes[-1] += size
            room -= size
    if words is None:
        return units
    drawn: list[int] = []
    total = 0
    for index in np.random.default_rng(seed).permutation(len(units)):
        if total >= words:
            break
        drawn.append(int(index))
        total += sizes[index]
    return [units[index] for index in sorted(drawn)]


def pieces(
    ids: np.ndarray, window: int, tokenizer: PreTrainedTokenizerFast, by_line: bool = False
) -> Iterable[Encoded]:
    """A document's ids in pieces of at most `window` tokens, each after the start token; every text token scored."""
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if window < 2:
        raise UserError(f"the model's window is {window} tokens; expected at least 2; train with a larger block_size")
    for begin, length in segments(ids, np.zeros(1, dtype=np.int64), window, end, by_line).tolist():
        piece = (start, *ids[begin : begin + length].tolist())
        scored = tuple(i for i, token in enumerate(piece) if i > 0 and token not in (start, end))
        if scored:
            yield Encoded(piece, scored, words=())


def _measures(loss: float, tokens: int, size: int, what: str) -> dict[str, Any]:
    """Loss in nats over a number of tokens and bytes, per token and per byte."""
    if not math.isfinite(loss):
        raise UserError(f"the loss of {what} is {loss}; expected a finite number; the model has probably diverged")
    return {
        "nats_per_token": loss / tokens,
        "perplexity": math.exp(min(loss / tokens, 700.0)),  # above 700 a float overflows
        "bits_per_byte": loss / math.log(2) / size,
        "tokens": tokens,
        "bytes": size,
    }
