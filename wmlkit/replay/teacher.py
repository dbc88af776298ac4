"""Teachers of the replay: one as described, and one to whom the students' ids are other tokens (L9).

The released teacher-guided mode asks a pre-trained RoBERTa-base for its opinion of ids that another tokenizer made.
``replay.teacher`` names such a model where one is at hand. Without it, the stand-in is the same base model trained on
the same text, but cut by another byte-level BPE (of the lower-cased text) whose entries are numbered as RoBERTa's are:
``<s> <pad> </s> <unk>``, then by falling frequency, ``<mask>`` last.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from .. import checkpoint, paths
from ..config import Config
from ..data.batches import Rows, batch_source
from ..data.encode import decoded_documents, encode_documents, open_tokens
from ..data.prepared import Prepared
from ..data.texts import masking, measured
from ..data.tokenizer import load_tokenizer, plain_backend, train_tokenizer
from ..device import Device
from ..forward import AtPositions
from ..identity import digest
from ..measure import measure
from ..state import build_state
from ..students import find_students
from ..teacher import frozen_model, given_folder, given_weights
from .released import Case, Defects
from .released_data import possible_pairs, text_rows, widened
from .steps import Setting, epochs


def numbered_by_frequency(tokenizer: PreTrainedTokenizerFast, lines: list[str]) -> PreTrainedTokenizerFast:
    """The same entries with other ids: the first four special tokens, then by falling frequency in `lines`, and the
    mask last. Entries of equal frequency keep their order."""
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    for encoding in plain_backend(tokenizer).encode_batch_fast(lines, add_special_tokens=False):
        np.add.at(counts, encoding.ids, 1)
    first = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    mask = tokenizer.mask_token_id
    others = np.setdiff1d(np.arange(len(tokenizer)), [*first, mask])
    order = [*first, *others[np.argsort(-counts[others], kind="stable")].tolist(), mask]
    place = {int(old): new for new, old in enumerate(order)}
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    document["model"]["vocab"] = {entry: place[old] for entry, old in document["model"]["vocab"].items()}
    for added in document["added_tokens"]:
        added["id"] = place[added["id"]]
    document["added_tokens"].sort(key=lambda added: added["id"])
    for name in ("sep", "cls"):
        entry, old = document["post_processor"][name]
        document["post_processor"][name] = [entry, place[old]]
    names = ("bos", "cls", "pad", "eos", "sep", "unk", "mask")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)),
        **{f"{name}_token": getattr(tokenizer, f"{name}_token") for name in names},
    )


def foreign_tokenizer(lines: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Another BPE of the same text, see the module; `vocab_size` entries at most."""
    return numbered_by_frequency(train_tokenizer(lines, vocab_size, lowercase=True, nfkc=True), lines)


def shared_meaning(tokenizer: PreTrainedTokenizerFast, foreign: PreTrainedTokenizerFast, ids: NDArray[Any]) -> float:
    """Share of the tokens `ids` of `tokenizer` that have the same text under `foreign`."""
    numbers = list(range(min(len(tokenizer), len(foreign))))
    same = np.zeros(len(tokenizer), dtype=bool)
    entries = zip(tokenizer.convert_ids_to_tokens(numbers), foreign.convert_ids_to_tokens(numbers), strict=True)
    same[numbers] = [own == other for own, other in entries]
    return float(same[ids].mean())


def teacher_for(
    config: Config, case: Case, out: Path, described: Prepared, tokenizer: PreTrainedTokenizerFast, device: Device
) -> tuple[AtPositions, dict[str, Any]]:
    """(the frozen teacher of a case, what done.json says of it); trained first where it has not been.

    described: the corpus as it is without any defect, which the teacher learns from whatever the students read.
    tokenizer: that of the students' models; the teacher gets one row for each of its entries.
    """
    foreign = case.defects.foreign_teacher
    if foreign and config.replay.teacher is not None:
        folder, record = given_folder(config.replay.teacher), {"teacher": config.replay.teacher}
        who = f"the teacher {config.replay.teacher!r}"
    else:
        kind = "foreign" if foreign else "described"
        alone = _alone(config)
        folder, who = _folder(alone, kind, out, described), f"the {kind} teacher"
        paths.make_folder(folder.parent)
        with FileLock(folder.with_name(f".{folder.name}.lock")):  # replays side by side share a teacher
            if not (folder / "record.json").is_file():
                _train(alone, kind, described, device, folder)
        record = paths.read_json(folder / "record.json") | {"teacher_folder": folder.name}
    model = frozen_model(folder, who, config, tokenizer)
    model.to(device.device)  # type: ignore[arg-type]  # transformers wraps `to` in a type that loses its arguments
    return AtPositions(model), record


def teacher_identity(config: Config, case: Case) -> str:
    """SHA-256 of a given teacher's weights, part of the identity of what it teaches; empty for a trained one."""
    if not case.defects.foreign_teacher or config.replay.teacher is None:
        return ""
    return paths.file_sha256(given_weights(config.replay.teacher, "replay.teacher"))


def _alone(config: Config) -> Config:
    """`config` for the base model alone, which learns from the text only, whatever share of the loss that is to the
    students."""
    return config.updated(
        {"mutual.arm": "teacher", "mutual.num_peers": 1, "mutual.teacher_size": "base", "mutual.alpha": 0.0}
    )


def _folder(config: Config, kind: str, out: Path, described: Prepared) -> Path:
    shaping = {section: config.resolved()[section] for section in ("model", "train", "outer", "replay")}
    # what is the students' own, and the clip, which is in [train] too
    left_out = (
        "seeds", "workers", "per_paradigm", "num_peers", "weight_update_every", "step_size", "teacher", "grad_clip",
    )  # fmt: skip
    shaping["replay"] = {k: v for k, v in shaping["replay"].items() if k not in left_out}
    data = config.data
    vocabulary = [data.vocab_size, data.packing, data.block_size, data.longest_block]  # the last sizes its positions
    shaping["mutual"] = {"alpha": config.mutual.alpha}
    identity = digest({"config": shaping, "data": described.hash, "vocabulary": vocabulary})
    return paths.replay(out, config.preset, f"teacher-{kind}-s{config.train.seed}-{identity[:8]}")


def _train(config: Config, kind: str, described: Prepared, device: Device, folder: Path) -> None:
    """Train the base model with cross-entropy, for as many updates as the students get, and write it to `folder`.

    config: that of `_alone`.
    """
    own = load_tokenizer(paths.tokenizer(described.folder), needs_mask=config.needs_mask)
    if kind == "described":
        tokenizer, make = widened(own), _described_rows
    else:
        lines = [line for document in decoded_documents(described.folder / "train.tokens", own) for line in document]
        tokenizer, make = foreign_tokenizer(lines, config.data.vocab_size), _foreign_rows
        # Every id that students can be fed has a row, as RoBERTa-base has 50,265
        missing = max(config.data.vocab_size, len(own)) + len(possible_pairs()) - len(tokenizer)
        tokenizer.add_tokens([f"<row {number}>" for number in range(missing)])

    rows = make(config, described, "train", own, tokenizer)
    train = batch_source(rows, config.model.objective, config.replay.batch_size, tokenizer, masking(config.train))
    dev = measured(make(config.updated({"train.seed": 0}), described, "dev", own, tokenizer), config, tokenizer)
    state = build_state(config, find_students(config, len(tokenizer)), tokenizer, device)
    for _ in epochs(state, Setting(config, Case(), device, train, train, dev)):
        pass
    (dev_ce,), _ = measure(state, dev, config, device, config.train.final_eval_rows)
    tokens, _ = open_tokens(described.folder / "train.tokens")
    record = {
        "teacher": kind,
        "own_dev_ce": dev_ce,  # on dev text in its own tokens
        "shared_meaning": shared_meaning(own, tokenizer, tokens),
    }
    checkpoint.export(state.models[0], tokenizer, folder, f"A teacher of the replay of the released code: {kind}.\n")
    paths.write_json(folder / "record.json", record)


def _described_rows(
    config: Config, described: Prepared, split: str, own: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast
) -> Rows:
    return text_rows(config, described, split, own, tokenizer, Defects())[0]


def _foreign_rows(
    config: Config, described: Prepared, split: str, own: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast
) -> Rows:
    pieces = list(encode_documents(tokenizer, decoded_documents(described.folder / f"{split}.tokens", own)))
    lengths = np.array([len(piece) for piece in pieces])
    starts = np.cumsum(lengths) - lengths
    data, tokens, documents = config.data, np.concatenate(pieces), starts.astype(np.uint64)
    return Rows(tokens, documents, tokenizer, data.block_size, data.packing, config.train.seed, split)
