"""Documents and which of them go where: training, held-out or dev text, or a sample of a given size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .corpora import Split
from .statistics import DomainCounts

# Most domains show no boundary between documents, and some books are one long document. Consecutive lines are
# then one document up to this many lines: a few hundred words, so that a training row holds little else, and
# short enough that a held-out slice of whole documents comes close to its share even in a small corpus.
DOCUMENT_LINES = 32
SPLITS = ("train", "held_out", "dev")
ENOUGH_WORDS = 1000  # with so many, more of the same text is not what is missing: it has too few documents


@dataclass
class Part:
    """The cleaned text of one split of one domain: where it lies and what was counted."""

    domain: str
    split: Split
    spool: Path
    counts: DomainCounts

    def words(self) -> np.ndarray:
        """Words of every document, shape (documents,)."""
        return np.array(self.counts.document_words, dtype=np.int64)

    def documents(self, chosen: np.ndarray) -> Iterator[list[str]]:
        """The documents for which `chosen` (documents,) is true, in order, each a list of lines."""
        with self.spool.open(encoding="utf-8", newline="\n") as file:
            for length, wanted in zip(self.counts.document_lines, chosen, strict=True):
                lines = [next(file) for _ in range(length)]
                if wanted:
                    yield [line[:-1] for line in lines]


def group_documents(lines: Iterable[str]) -> Iterator[list[str]]:
    """Documents from cleaned lines: they end at an empty line, or after `DOCUMENT_LINES` lines."""
    document: list[str] = []
    for line in lines:
        if line:
            document.append(line)
        if document and (not line or len(document) == DOCUMENT_LINES):
            yield document
            document = []
    if document:
        yield document


def draw(words: np.ndarray, budget: float, key: str) -> np.ndarray:
    """A seeded sample of whole documents: a mask, shape (documents,), over documents of `words` words each.

    Documents are taken in the order of a hash of `key` and their index until the next would exceed `budget`
    words; one is taken at least. The order does not depend on the budget, so a larger one holds a smaller one.
    """
    mask = np.zeros(len(words), dtype=bool)
    if len(words) == 0:
        return mask
    ranks = [hashlib.blake2b(f"{key}/{index}".encode(), digest_size=8).digest() for index in range(len(words))]
    order = np.array(sorted(range(len(words)), key=ranks.__getitem__))
    mask[order[np.cumsum(words[order]) <= budget + 1e-6]] = True  # 0.29 of 100 words is 28.999999999999996
    mask[order[0]] = True
    return mask


def assign(
    parts: list[Part], settings: dict[str, Any], written: int | None = None
) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    """Which documents of which part go where: for every split one mask a part; and what the user should know.

    The held-out slice, and a dev slice where the source has no dev text, are drawn from the training text.
    written: data.words, where the text was written to that length and so has no more (the nursery).
    """
    if not any(part.counts.words for part in parts if part.split == "train"):
        raise UserError("the training text holds no words after cleaning; expected text; check data.corpus")
    seed, share = settings["seed"], settings["held_out"]
    chosen: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    notes: list[str] = []
    has_dev = any(part.split == "dev" and part.counts.words for part in parts)
    if not has_dev:
        notes.append(f"the source has no dev text: a share of {share:g} of its training documents is kept for it")
    totals = {split: sum(part.counts.words for part in parts if part.split == split) for split in ("train", "dev")}
    limits = {"train": settings["words"], "dev": settings["dev_words"]}
    drawn = ("held_out",) if has_dev else ("held_out", "dev")
    asked, used = dict.fromkeys(drawn, 0.0), dict.fromkeys(totals, 0)
    for part in parts:
        words = part.words()
        free = np.ones(len(words), dtype=bool)
        limit = limits[part.split]
        if limit is not None and limit < totals[part.split]:
            free = draw(words, limit * part.counts.words / totals[part.split], f"{seed}/words/{part.domain}")
        used[part.split] += int(words[free].sum())
        masks = {split: np.zeros(len(words), dtype=bool) for split in SPLITS}
        if part.split == "dev":
            masks["dev"] = free
        else:
            target = share * float(words[free].sum())
            targets = {"held_out": target, "dev": target}
            if settings["dev_words"] is not None:
                targets["dev"] = min(target, settings["dev_words"] * part.counts.words / totals["train"])
            for split in drawn:
                asked[split] += targets[split]
                if free.sum() > 1:  # the last document of a domain is for training
                    masks[split] = _draw_among(free, words, targets[split], f"{seed}/{split}/{part.domain}")
                    free = free & ~masks[split]
            masks["train"] = free
        for split in SPLITS:
            chosen[split].append(masks[split])
    for split, key in (("train", "data.words"), ("dev", "data.dev_words")):
        if limits[split] is not None and limits[split] < totals[split]:
            notes.append(
                f"{used[split]:,} of {totals[split]:,} words of {'training' if split == 'train' else 'dev'} text are "
                f"used: {key} is {limits[split]:,}, and documents are taken whole; {key}=none takes all"
            )
    limited = settings["words"] if settings["words"] is not None and settings["words"] < totals["train"] else None
    _check_sizes(parts, chosen, limited, totals["train"], written)
    return chosen, notes + _coarse(parts, chosen, asked)


def _coarse(parts: list[Part], chosen: dict[str, list[np.ndarray]], asked: dict[str, float]) -> list[str]:
    """A note for each drawn split with more than twice the words that were `asked` for, or less than half of them."""
    words = {
        split: sum(int(part.words()[mask].sum()) for part, mask in zip(parts, chosen[split], strict=True))
        for split in asked
    }
    return [
        f"the {split.replace('_', '-')} text has {words[split]:,} words where {count:,.0f} were to be drawn from the "
        "training text (data.held_out): documents are taken whole, and some are long; line ends and blank lines in the "
        "text make shorter ones"
        for split, count in asked.items()
        if not count / 2 <= words[split] <= 2 * count
    ]


def _draw_among(free: np.ndarray, words: np.ndarray, budget: float, key: str) -> np.ndarray:
    mask = np.zeros(len(free), dtype=bool)
    mask[np.flatnonzero(free)] = draw(words[free], budget, key)
    return mask


def _check_sizes(
    parts: list[Part], chosen: dict[str, list[np.ndarray]], limit: int | None, total: int, written: int | None
) -> None:
    """Raises UserError where a split has no document. limit: data.words, where it is less than the text's `total`;
    written: see `assign`."""
    empty = [split for split in SPLITS if not any(mask.any() for mask in chosen[split])]
    if not empty:
        return
    # Training text alone: a source's own dev text is dev text whatever the other splits lack.
    used = [
        (part, np.logical_or.reduce([chosen[split][index] for split in SPLITS]))
        for index, part in enumerate(parts)
        if part.split == "train" and part.counts.words
    ]
    documents = sum(int(mask.sum()) for _, mask in used)
    words = sum(int(part.words()[mask].sum()) for part, mask in used)
    domains = f", in {len(used)} domains, each of which keeps one to train on" if len(used) > 1 else ""
    if written is not None:
        remedy = f"raise data.words, which is {written:,}"
    elif limit is not None and documents < sum(len(mask) for _, mask in used):
        remedy = f"raise data.words, which is {limit:,} where the text has {total:,} words"
    elif words >= ENOUGH_WORDS:
        remedy = "line ends and blank lines in the text make shorter documents"
        if len(used) > 1:
            remedy += ", and .txt files of one folder are one domain"
    else:
        remedy = "give more text, or set blank lines into it, which make shorter documents"
    if empty == ["dev"]:  # the source has none, or it would be here
        remedy += ", or a .dev file"
    raise UserError(
        f"the training text has only {documents} {'document' if documents == 1 else 'documents'} (of up to "
        f"{DOCUMENT_LINES} lines{domains}), which leaves none for {' and '.join(empty)}; expected one for each of "
        f"{', '.join(SPLITS)}; {remedy}"
    )
