"""Counts of a corpus for table T1 and its pictures: sizes before and after cleaning, line lengths, new words.

A word is what stands between white space; for the growth of the vocabulary, where "shelf" and "shelf." are one, it is
a stretch of letters or one of digits, as in `coverage`. Tokens are counted without start and end tokens, so that
fertility (tokens a word) compares texts whose lines differ in length.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from unicodedata import category

import pandas as pd

from .. import paths
from ..errors import UserError
from . import cleaning

# Upper limits, inclusive, of the classes of line length in words; one more class holds all longer lines.
LINE_WORDS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 60, 100, 200)
# Vocabulary growth is noted after 1, 2, 5 times a power of ten words and at the end: about 20 points, evenly
# spaced on the logarithmic axis on which growth is read.
GROWTH_POINTS = tuple(factor * 10**power for power in range(1, 10) for factor in (1, 2, 5))
# Marks that stand on, under or behind a letter (vowel signs, accents of their own), and the two joiners within words
_MARKS = (
    "".join(re.escape(chr(code)) for code in range(0x300, 0x10000) if category(chr(code))[0] == "M") + "\u200c\u200d"
)
_WORD = re.compile(rf"[^\W\d_]+(?:[{_MARKS}]+[^\W\d_]*)*|\d+")  # a stretch of letters, or one of digits
EXAMPLES = 5  # a domain
EXAMPLE_LINES = 3000  # lines at the start of a domain among which examples are looked for
EXAMPLE_CHARACTERS = 400


@dataclass
class DomainCounts:
    """Counts that grow while one split of one domain streams through `raw` and then `clean`."""

    raw_lines: int = 0
    raw_words: int = 0
    raw_characters: int = 0
    raw_blocks: int = 0  # stretches of text between blank lines
    lines: int = 0
    words: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    line_words: list[int] = field(default_factory=lambda: [0] * (len(LINE_WORDS) + 1))
    read: int = 0  # words, punctuation apart
    growth: list[tuple[int, int]] = field(default_factory=list)  # (words, distinct words), punctuation apart
    document_lines: list[int] = field(default_factory=list)
    document_words: list[int] = field(default_factory=list)
    document_hashes: array[int] = field(default_factory=lambda: array("Q"))  # of the texts, 64 bits each
    seen: set[str] = field(default_factory=set)

    def raw(self, lines: Iterable[str]) -> Iterator[str]:
        """Pass `lines` of the source on, counted."""
        in_block = False
        for line in lines:
            words = len(line.split())
            self.raw_words += words
            self.raw_characters += len(line)
            self.raw_lines += words > 0
            self.raw_blocks += words > 0 and not in_block
            in_block = words > 0
            yield line

    def add(self, document: list[str]) -> None:
        """Count one cleaned document."""
        before = self.words
        for line in document:
            words = len(line.split())
            self.words += words
            self.line_words[bisect_left(LINE_WORDS, words)] += 1
            self._grow(_WORD.findall(line))
        self.lines += len(document)
        self.document_lines.append(len(document))
        self.document_words.append(self.words - before)
        text = hashlib.blake2b("\n".join(document).encode(), digest_size=8).digest()
        self.document_hashes.append(int.from_bytes(text, "little"))

    def _grow(self, words: list[str]) -> None:
        end = self.read + len(words)
        point = bisect_right(GROWTH_POINTS, self.read)
        if point == len(GROWTH_POINTS) or GROWTH_POINTS[point] > end:
            self.seen.update(words)
            self.read = end
            return
        head = GROWTH_POINTS[point] - self.read
        self.seen.update(words[:head])
        self.read += head
        self.growth.append((self.read, len(self.seen)))
        self._grow(words[head:])

    def close(self) -> None:
        """Note the last point of the vocabulary's growth and free the set of words."""
        if self.read and (not self.growth or self.growth[-1][0] != self.read):
            self.growth.append((self.read, len(self.seen)))
        self.seen = set()


def domain_statistics(domain: str, split: str, counts: DomainCounts, raw_tokens: int, tokens: int) -> dict[str, Any]:
    """One record of ``statistics.json``: the whole text of one domain in one split of the source."""
    return {
        "domain": domain,
        "split": split,
        "before": _sizes(counts.raw_lines, counts.raw_words, counts.raw_blocks, raw_tokens),
        "after": _sizes(counts.lines, counts.words, len(counts.document_lines), tokens),
        "removed": dict(counts.removed.most_common()),
        "line_words": {"up_to": [*LINE_WORDS, None], "lines": counts.line_words},
        "vocabulary_growth": {
            "words": [words for words, _ in counts.growth],
            "distinct": [distinct for _, distinct in counts.growth],
        },
    }


def _sizes(lines: int, words: int, documents: int, tokens: int) -> dict[str, float | int | None]:
    fertility = round(tokens / words, 4) if words else None
    return {"lines": lines, "words": words, "documents": documents, "tokens": tokens, "fertility": fertility}


def example_lines(domain: str, lines: Iterable[str]) -> list[dict[str, Any]]:
    """Up to `EXAMPLES` lines before and after cleaning, each changed for reasons that no earlier one shows."""
    clean = cleaning.cleaner(domain)
    examples: list[dict[str, Any]] = []
    shown: set[frozenset[str]] = set()
    for line in islice(lines, EXAMPLE_LINES):
        removed: Counter[str] = Counter()
        after = list(clean([line], removed))
        reasons = frozenset(removed)
        if reasons and reasons not in shown and len(line) <= EXAMPLE_CHARACTERS:
            shown.add(reasons)
            examples.append({"before": line, "after": after, "reasons": sorted(reasons)})
        if len(examples) == EXAMPLES:
            break
    return examples


def cleaning_examples(prepared_folder: Path) -> pd.DataFrame:
    """Lines of a corpus before and after cleaning, with the reasons: columns domain, before, after, reasons."""
    examples = paths.read_json(prepared_folder / "examples.json")
    rows = [
        {
            "domain": domain,
            "before": one["before"],
            "after": " / ".join(one["after"]) or "(removed)",
            "reasons": ", ".join(one["reasons"]),
        }
        for domain, lines in examples.items()
        for one in lines
    ]
    return pd.DataFrame(rows, columns=["domain", "before", "after", "reasons"])


def read_statistics(prepared_folder: Path) -> dict[str, Any]:
    """``statistics.json`` of a prepared corpus. Raises UserError where there is none."""
    path = prepared_folder / "statistics.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; expected a prepared corpus; run `wmlkit data prepare`")
    return dict(paths.read_json(path))


def check_tokens(rows: Iterable[Mapping[str, Any]], unknown: Mapping[str, int]) -> None:
    """Raises UserError where a split of ``statistics.json``'s "splits" has text and no token of it: a start token a
    document, an end token a line and the split's `unknown` tokens are all that there is."""
    of_text: Counter[str] = Counter()
    for row in rows:
        of_text[row["split"]] += row["tokens"] - row["lines"] - row["documents"]
    without = [split.replace("_", "-") for split, tokens in of_text.items() if tokens == unknown[split]]
    if without:
        raise UserError(
            f"the tokenizer knows nothing of the {' and the '.join(without)} text; expected one that has its tokens; "
            "give data.tokenizer such a one, or leave it off to have one trained"
        )


def line_lengths(statistics: Mapping[str, Any]) -> pd.DataFrame:
    """Columns split, domain, up_to (words, inclusive; empty: the open class), lines, share (cumulative, 0 to 1)."""
    rows = []
    for record in statistics["domains"]:
        classes = record["line_words"]
        total, below = sum(classes["lines"]), 0
        for up_to, lines in zip(classes["up_to"], classes["lines"], strict=True):
            below += lines
            share = below / total if total else None
            rows.append((record["split"], record["domain"], up_to, lines, share))
    table = pd.DataFrame(rows, columns=["split", "domain", "up_to", "lines", "share"])
    return table.astype({"up_to": float, "share": float})


def vocabulary_growth(statistics: Mapping[str, Any]) -> pd.DataFrame:
    """Columns split, domain, words (read so far), distinct (words among them), in the order of reading."""
    rows = [
        (record["split"], record["domain"], words, distinct)
        for record in statistics["domains"]
        for words, distinct in zip(
            record["vocabulary_growth"]["words"], record["vocabulary_growth"]["distinct"], strict=True
        )
    ]
    return pd.DataFrame(rows, columns=["split", "domain", "words", "distinct"])


def domain_mix(statistics: Mapping[str, Any]) -> pd.DataFrame:
    """Columns split (train, held_out, dev), domain, words, share of the split's words (0 to 1)."""
    columns = ["split", "domain", "words"]
    table = pd.DataFrame([[row[name] for name in columns] for row in statistics["splits"]], columns=columns)
    return table.assign(share=table["words"] / table.groupby("split")["words"].transform("sum"))


def removed_counts(statistics: Mapping[str, Any]) -> pd.DataFrame:
    """What cleaning removed and why: columns split, domain, reason, times, per_1000_lines (of the source's lines)."""
    rows = [
        (record["split"], record["domain"], reason, times, 1000 * times / record["before"]["lines"])
        for record in statistics["domains"]
        for reason, times in record["removed"].items()
    ]
    return pd.DataFrame(rows, columns=["split", "domain", "reason", "times", "per_1000_lines"])
