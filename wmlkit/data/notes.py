"""What a user should know of an own text once it is read: sentences for the notes of a prepared corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from ..settings import DataConfig
from .cleaning import CLEANERS, INDENTATION, WHITE_SPACE
from .corpora import SUFFIXES, Source, few
from .encode import decoded_documents, left_out, open_tokens, unknown_tokens
from .splits import Part

# Below this share of a text's lines a double space is a slip of the keyboard, which nobody wants back.
COLLAPSED = 0.03
GIVEN_BACK = 0.02  # of a text's bytes: less is a space more beside some signs
UNSPACED = 20  # characters a word; with spaces between words no language comes near it
REPEATED = 0.05  # of a split's documents; a few short ones are alike in any text


def not_read(source: Source) -> list[str]:
    """A note that names files of an own corpus that are not read."""
    if not source.skipped:
        return []
    return [
        f"not read, as their names end in none of {', '.join(SUFFIXES)}: {few(source.skipped)}; unpack or rename what"
        " is text of the corpus"
    ]


def cleaned_by_name(source: Source, parts: Sequence[Part]) -> list[str]:
    """A note where a domain was cleaned as BabyLM's of that name and may be another text: alone, beside other names or
    of ``.txt`` files. A folder of nothing but BabyLM's ``.train`` and ``.dev`` files is taken for BabyLM's."""
    plain = any(file.name.lower().endswith(".txt") for file in source.files)
    if len(source.domains()) > 1 and not plain and all(domain in CLEANERS for domain in source.domains()):
        return []
    changed = {part.domain: 0 for part in parts if part.domain in CLEANERS and part.counts.removed}
    for part in parts:
        if part.domain in changed:
            changed[part.domain] += sum(part.counts.removed.values())
    if not changed:
        return []
    told = ", ".join(f"{domain} ({count:,} deletions)" for domain, count in changed.items())
    return [
        f"cleaned by the rules for BabyLM's text of the same name: {told}; where it is other text, rename its file or"
        " folder, or set data.clean=false"
    ]


def idle_settings(data: DataConfig) -> list[str]:
    """A note where settings of a tokenizer that is trained stand beside one that is given, which is taken as it is."""
    idle = [f"data.{name}" for name in ("lowercase", "nfkc") if getattr(data, name)]
    if data.tokenizer == "train" or not idle:
        return []
    return [f"without effect: {' and '.join(idle)}; the given tokenizer is taken as it is, and so is the text"]


def white_space(parts: Sequence[Part]) -> list[str]:
    """A note where the cleaning of a text in no known format took white space that may have had a meaning."""
    indented, inside = (sum(part.counts.removed[reason] for part in parts) for reason in (INDENTATION, WHITE_SPACE))
    if indented + inside <= COLLAPSED * sum(part.counts.raw_lines for part in parts):
        return []
    among = " (indentation of code or verse among it)" if indented else ""
    return [f"white space was collapsed in {indented + inside:,} lines{among}; data.clean=false keeps it"]


def unspaced(parts: Sequence[Part]) -> list[str]:
    """A note where the text is in a script without spaces between words."""
    words, characters = (sum(getattr(part.counts, f"raw_{unit}") for part in parts) for unit in ("words", "characters"))
    if characters <= UNSPACED * words:
        return []
    return [
        f"{characters / words:.0f} characters stand between two spaces of this text, as in scripts that have none "
        "between words: what counts words (data.words, data.dev_words, evaluate.text_words, evaluate.curve, words "
        "read) counts such stretches; choose smaller numbers"
    ]


def repeated(parts: Sequence[Part], chosen: Mapping[str, Sequence[np.ndarray]]) -> list[str]:
    """A note for the dev and the held-out text where many of its documents are training text too, word for word.

    chosen: for every split one mask a part, as `splits.assign` gives them.
    """
    hashes = [np.frombuffer(part.counts.document_hashes, dtype=np.uint64) for part in parts]
    of = {
        split: np.concatenate([own[mask] for own, mask in zip(hashes, masks, strict=True)])
        for split, masks in chosen.items()
    }
    shares = {split: float(np.isin(of[split], of["train"]).mean()) for split in ("dev", "held_out")}
    return [
        f"{share:.0%} of the {split.replace('_', '-')} documents occur in the training text too, so its loss says "
        "little of new text; remove duplicates"
        for split, share in shares.items()
        if share > REPEATED
    ]


def given_back(lines: Callable[[], Iterable[str]], tokens: Path, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """A note where the dev text, its `lines`, holds what the tokenizer does not know, or comes back from its `tokens`
    with more or fewer bytes: bits a byte are measured on what comes back."""
    count = unknown_tokens(tokens, tokenizer)
    if count:
        return [
            f"{count / len(open_tokens(tokens)[0]):.1%} of the dev text's tokens are the given tokenizer's unknown "
            "token, which is one thing to the models whatever it stands for: their losses and bits a byte compare with "
            "no others; take one that knows the text"
        ]
    decoded = (line for document in decoded_documents(tokens, tokenizer) for line in document)
    had, has = (sum(len(line.encode()) for line in text) for text in (lines(), decoded))
    if not had or abs(has / had - 1) <= GIVEN_BACK:
        return []
    without, characters = left_out(tokenizer, lines())
    if without:
        why, remedy = f"has no token for {without:,} of its {characters:,} characters", "take one that knows them"
    else:
        decodes = tokenizer.backend_tokenizer.decoder is not None
        why, remedy = "has a decoder that changes it" if decodes else "has no decoder", "mend tokenizer.json"
    return [
        f"the dev text has {had:,} bytes and comes back from its tokens with {has:,}, as the given tokenizer {why}: "
        f"bits a byte (evaluate.text_words, suite lm) are of what comes back and compare with no others; {remedy}"
    ]
