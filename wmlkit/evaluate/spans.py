"""From text to token ids and the positions that a score sums over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import UserError, unknown_text_told
from ..settings import Objective

if TYPE_CHECKING:  # protocols are read with tables of results, which must not wait for transformers
    from transformers import PreTrainedTokenizerBase

Prefix = Literal["none", "eos"]
Reduction = Literal["sum", "mean"]  # of the scores of a text's tokens

CHUNK = 10_000  # texts a tokenizer call: the encodings of one call are all in memory at once


@dataclass(frozen=True)
class Encoded:
    """One text as the model sees it."""

    ids: tuple[int, ...]
    scored: tuple[int, ...]  # ascending positions whose tokens are scored
    words: tuple[int, ...]  # number of the word of each position, -1 for special tokens


def encode_spans(
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    contexts: Sequence[str],
    objective: Objective,
    prefix: Prefix,
    origins: Sequence[str],
) -> list[Encoded]:
    """Token ids and scored positions of each sentence after its context ("" for none).

    prefix "none" (BabyLM 2025 and later): the text is the sentence, or context, one space, sentence, with the
    special tokens that the tokenizer adds by itself. Scored are the tokens that end after the context, by
    character offsets. A causal model cannot score the first token of all: without a beginning-of-text token in
    the tokenizer's template, the first token of a sentence stays out.

    prefix "eos" (BabyLM 2024), where the span is counted in tokens:
    masked models read the context, or the end-of-text token written out where there is none, two spaces and the
    sentence; scored are the tokens after the first a, with a the tokens of the context alone other than padding
    and separator. Under byte-level BPE the second space adds a token of its own to every score. Causal models
    read one prefix token (beginning, else end, else padding) and " sentence", or context and " sentence" without
    special tokens; scored are all tokens of the second part.

    Raises UserError for an empty sentence, a slow tokenizer, or a sentence that no token of its own is left of.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer is a {type(tokenizer).__name__}, which gives no character offsets; "
            "scoring needs a fast tokenizer: load it with AutoTokenizer or save it as tokenizer.json"
        )
    for sentence, origin in zip(sentences, origins, strict=True):
        if not sentence.strip():
            raise UserError(f"{origin} is empty; expected a sentence to score; remove it or fill it in")
    if prefix == "none":
        encoded = _plain(tokenizer, sentences, contexts)
    elif objective == "mlm":
        encoded = _released_masked(tokenizer, sentences, contexts)
    else:
        encoded = _released_causal(tokenizer, sentences, contexts)
    if objective == "clm":
        encoded = [_without_first(item) for item in encoded]
    for item, origin in zip(encoded, origins, strict=True):
        if not item.scored:
            raise UserError(
                f"{origin} has no token that can be scored; expected at least one beside special tokens "
                "and, for a causal model, beside the first of the text; remove it"
            )
    return encoded


def _plain(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], contexts: Sequence[str]) -> list[Encoded]:
    texts = [
        f"{context} {sentence}" if context else sentence for sentence, context in zip(sentences, contexts, strict=True)
    ]
    special = _special_ids(tokenizer)
    result = []
    for (ids, words, offsets), context in zip(_tokenize(tokenizer, texts, special_tokens=True), contexts, strict=True):
        scored = [
            i for i, (_, end) in enumerate(offsets) if end > len(context) and ids[i] not in special and words[i] >= 0
        ]
        result.append(Encoded(tuple(ids), tuple(scored), tuple(words)))
    return result


def _released_masked(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], contexts: Sequence[str]
) -> list[Encoded]:
    # A tokenizer without such a token gives the text "None", as the 2024 pipeline's f-string does.
    contexts = [context or str(tokenizer.eos_token) for context in contexts]
    texts = [f"{context}  {sentence}" for sentence, context in zip(sentences, contexts, strict=True)]
    unique = list(dict.fromkeys(contexts))
    not_counted = {tokenizer.pad_token_id, tokenizer.sep_token_id}
    tokens_before = {
        context: sum(token not in not_counted for token in ids)
        for context, (ids, _, _) in zip(unique, _tokenize(tokenizer, unique, special_tokens=True), strict=True)
    }
    never = {tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
    result = []
    for (ids, words, _), context in zip(_tokenize(tokenizer, texts, special_tokens=True), contexts, strict=True):
        scored = [i for i in range(tokens_before[context], len(ids)) if ids[i] not in never]
        result.append(Encoded(tuple(ids), tuple(scored), tuple(words)))
    return result


def _released_causal(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], contexts: Sequence[str]
) -> list[Encoded]:
    # Spaces that end a context belong to what follows it.
    stripped = [context.rstrip() for context in contexts]
    texts = [f"{context} {sentence}" for sentence, context in zip(sentences, contexts, strict=True)]
    unique = list(dict.fromkeys(stripped))
    tokens_before = {
        context: len(ids)
        for context, (ids, _, _) in zip(unique, _tokenize(tokenizer, unique, special_tokens=False), strict=True)
    }
    candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    first = next((token for token in candidates if token is not None), None)
    result = []
    for (ids, words, _), context in zip(_tokenize(tokenizer, texts, special_tokens=False), stripped, strict=True):
        before = tokens_before[context]
        if not context:
            if first is None:
                raise UserError(
                    "the tokenizer declares no beginning, end or padding token; the 2024 protocols put one before "
                    "each sentence: set one or choose protocol babylm2025"
                )
            ids, words, before = [first, *ids], [-1, *words], 1
        result.append(Encoded(tuple(ids), tuple(range(before, len(ids))), tuple(words)))
    return result


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special_tokens: bool
) -> list[tuple[list[int], list[int], list[tuple[int, int]]]]:
    """Ids, word numbers and character offsets of each text, never truncated."""
    result = []
    for start in range(0, len(texts), CHUNK):
        chunk = list(texts[start : start + CHUNK])
        with unknown_text_told():
            batch = tokenizer(chunk, add_special_tokens=special_tokens, padding=False, truncation=False, verbose=False)
        for encoding in batch.encodings or ():
            words = [-1 if word is None else word for word in encoding.word_ids]
            result.append((encoding.ids, words, encoding.offsets))
    return result


def token_counts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Tokens of each text alone, special tokens left out."""
    counts: list[int] = []
    for start in range(0, len(texts), CHUNK):
        with unknown_text_told():
            batch = tokenizer(list(texts[start : start + CHUNK]), add_special_tokens=False, verbose=False)
        counts += map(len, batch["input_ids"])
    return counts


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int | None]:
    special = {
        tokenizer.pad_token_id,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.mask_token_id,
    }
    return special - {tokenizer.unk_token_id}  # which stands for text, also where it does for padding


def _without_first(item: Encoded) -> Encoded:
    if item.scored and item.scored[0] == 0:
        return Encoded(item.ids, item.scored[1:], item.words)
    return item
