"""What a user should know of an own text once it is read: sentences for the notes of a prepared corpus."""

from __future__ import annotations

from collections.abc import Sequence

from .cleaning import INDENTATION, WHITE_SPACE
from .corpora import SUFFIXES, Source, few
from .splits import Part

# Below this share of a text's lines a double space is a slip of the keyboard, which nobody wants back.
COLLAPSED = 0.03


def not_read(source: Source) -> list[str]:
    """A note that names files of an own corpus that are not read."""
    if not source.skipped:
        return []
    return [
        f"not read, as their names end in none of {', '.join(SUFFIXES)}: {few(source.skipped)}; unpack or rename what"
        " is text of the corpus"
    ]


def white_space(parts: Sequence[Part]) -> list[str]:
    """A note where the cleaning of a text in no known format took white space that may have had a meaning."""
    indented, inside = (sum(part.counts.removed[reason] for part in parts) for reason in (INDENTATION, WHITE_SPACE))
    if indented + inside <= COLLAPSED * sum(part.counts.raw_lines for part in parts):
        return []
    among = " (indentation of code or verse among it)" if indented else ""
    return [f"white space was collapsed in {indented + inside:,} lines{among}; data.clean=false keeps it"]
