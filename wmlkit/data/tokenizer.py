"""Byte-level BPE that is saved whole: what a folder holds is all that is needed to encode the same text again.

The released code kept only the vocabulary and the merges, so the lower-casing that the merges had been
trained behind was gone after a reload and capital letters, unknown to them, were silently dropped. Here the
normaliser, the pre-tokenizer, the post-processor and the decoder live in ``tokenizer.json``.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, TypeVar

# Set here and nowhere else, before the library is imported: threads for training and batches, and no warning
# when a notebook starts a shell command afterwards.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from .. import paths
from ..errors import UserError, first_line
from ..untrusted import check_names_no_code

# In this order they get the ids 0 to 4, as in RoBERTa.
BOS, PAD, EOS, UNK, MASK = SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# A pair seen once says nothing about the language; leaving it out also keeps rare lines out of the vocabulary.
MIN_FREQUENCY = 2
# Text handed to the library at a time: enough to keep all its threads busy, little memory whatever the lines' lengths.
CHARACTERS_A_BATCH = 1 << 20
# The library's time to learn grows with the square of a word's length, and a damaged line may be one word.
LONGEST_WORD = 1000
Text = TypeVar("Text", bound=Sized)
_WITHOUT_END = re.compile(rf"\S{{{LONGEST_WORD}}}(?=\S)")


def train_tokenizer(
    lines: Iterable[str], vocab_size: int, lowercase: bool = False, nfkc: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` entries (specials and the 256 bytes included) from `lines`.

    ``tokenizer(text)`` gives ``<s> text </s>``. Every string can be encoded, and without `lowercase` and
    `nfkc` decoding gives it back exactly. The same lines in the same order give the same bytes on disk.
    A small text may hold fewer than `vocab_size` entries' worth of repeated pairs: ask ``len(tokenizer)``.

    Raises UserError for a `vocab_size` that cannot hold the bytes and the special tokens.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size is {vocab_size}; a byte-level vocabulary needs at least {smallest} entries"
            " (256 bytes and 5 special tokens); raise data.vocab_size"
        )
    backend = Tokenizer(models.BPE())
    steps: list[normalizers.Normalizer] = []
    if nfkc:
        steps.append(normalizers.NFKC())
    if lowercase:
        steps.append(normalizers.Lowercase())
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # normalized=False: special tokens are found in the text as written, also behind a lower-casing normaliser.
    # lstrip: "the <mask> sat" masks " cat" with its space, which is how RoBERTa's <mask> behaves.
    special = [AddedToken(token, special=True, normalized=False, lstrip=token == MASK) for token in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(text_batches(map(_broken_up, lines)), trainer=trainer)
    backend.post_processor = processors.RobertaProcessing(
        sep=(EOS, SPECIAL_TOKENS.index(EOS)), cls_token=(BOS, SPECIAL_TOKENS.index(BOS)), add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special[0],
        cls_token=special[0],
        pad_token=special[1],
        eos_token=special[2],
        sep_token=special[2],
        unk_token=special[3],
        mask_token=special[4],
        clean_up_tokenization_spaces=False,  # the default joins "do n't" on decoding: not a round trip
        model_input_names=["input_ids", "attention_mask"],
    )


def continuing(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy for a causal model beside it: ``tokenizer(text)`` gives ``<s> text``, which the model can go on from.

    With ``</s>`` behind it, as corpora are encoded, a prompt is a finished line. Ids stay what they are.
    """
    start, end = tokenizer.bos_token, tokenizer.eos_token
    copied = copy.deepcopy(tokenizer)
    template = processors.TemplateProcessing(
        single=f"{start} $A",
        pair=f"{start} $A {end} $B",
        special_tokens=[(start, tokenizer.bos_token_id), (end, tokenizer.eos_token_id)],
    )
    byte_level = json.loads(copied.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    trimmed = [processors.ByteLevel(trim_offsets=True)] if byte_level.get("type") == "ByteLevel" else []
    copied.backend_tokenizer.post_processor = processors.Sequence([*trimmed, template])
    return copied


def template_of(tokenizer: PreTrainedTokenizerFast) -> Any:
    """What a tokenizer puts around a text, as JSON types: the part of its engine that `continuing` changes."""
    return json.loads(tokenizer.backend_tokenizer.to_str())["post_processor"]


def _as_trained(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Put back the template that an exported causal model was trained with: wmlkit reads texts and continues none."""
    beside = paths.trained_on(folder)
    known = paths.read_json(beside) if beside.is_file() else {}
    if "post_processor" in known:
        engine = json.loads(tokenizer.backend_tokenizer.to_str()) | {"post_processor": known["post_processor"]}
        tokenizer.backend_tokenizer.post_processor = Tokenizer.from_str(json.dumps(engine)).post_processor


def _broken_up(line: str) -> str:
    """`line` with a space behind every `LONGEST_WORD` characters that have none."""
    return _WITHOUT_END.sub(r"\g<0> ", line)


def text_batches(texts: Iterable[Text], size: Callable[[Text], int] = len) -> Iterator[list[Text]]:
    """Lines, or documents of lines, in lists of about `CHARACTERS_A_BATCH` characters; size: characters of one."""
    batch: list[Text] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += size(text)
        if characters >= CHARACTERS_A_BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, longest: int | None = None) -> Path:
    """Write `tokenizer` to `folder` in Hugging Face format; ``AutoTokenizer.from_pretrained(folder)`` reads it.

    longest: tokens that the model beside it takes, which ``tokenizer(text, truncation=True)`` then cuts at.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()  # what the last call asked for, not part of the tokenizer
    backend.no_truncation()
    tokenizer.save_pretrained(str(folder))
    settings_path = folder / "tokenizer_config.json"
    settings = paths.read_json(settings_path)
    # transformers 5 writes its internal class name, which transformers 4 does not know; both know this one.
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("is_local", "local_files_only"):  # how this process found it, not what it is
        settings.pop(name, None)
    if longest is not None:
        settings["model_max_length"] = longest
    paths.write_json(settings_path, dict(sorted(settings.items())))
    return folder


def load_tokenizer(source: str | Path, needs_mask: bool = False, reads_text: bool = True) -> PreTrainedTokenizerFast:
    """An existing tokenizer from a folder or, for a name that is no folder, from the Hugging Face hub.

    Code that comes with a tokenizer is never run. Where only ``cls``/``sep`` are defined (BERT) they become
    ``bos``/``eos``; a missing ``pad`` (GPT-2) becomes ``eos``, which the attention mask tells apart.
    Without `reads_text` they stay as declared, present or not: rules for scoring sentences ask what was declared.

    Of an exported causal model it is the tokenizer of its training (`continuing`). A leading ``~`` is the home folder,
    as in data.corpus; no Hugging Face id begins with it.

    Raises UserError when there is nothing to load, when it is not a fast tokenizer or has no vocabulary, or when it has
    no mask token, with `needs_mask`, or no token for the start or the end of a text, with `reads_text`.
    """
    if isinstance(source, str):
        source = os.path.expanduser(source)
    is_folder = Path(source).is_dir()
    if not is_folder and (isinstance(source, Path) or paths.is_place(source)):
        raise UserError(f"there is no tokenizer folder {str(source)!r}; give an existing folder or a Hugging Face id")
    if is_folder:
        check_names_no_code(Path(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False, local_files_only=is_folder)
        if is_folder and isinstance(tokenizer, PreTrainedTokenizerFast):
            _as_trained(tokenizer, Path(source))
    except Exception as error:  # the library raises whatever its parts raise: OSError, ValueError, KeyError, ...
        raise UserError(
            f"the tokenizer {str(source)!r} could not be loaded ({first_line(error)}); expected a folder with"
            " tokenizer.json or a Hugging Face id; check data.tokenizer"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"the tokenizer {str(source)!r} has no fast form ({type(tokenizer).__name__});"
            " expected one with tokenizer.json; convert it or choose another"
        )
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # what the library makes of a missing file
        raise UserError(
            f"the tokenizer {str(source)!r} has no vocabulary, only special tokens; expected a folder with"
            " tokenizer.json: copy the tokenizer's files beside the model's"
        )
    return _with_required_tokens(tokenizer, str(source), needs_mask, reads_text)


def _with_required_tokens(
    tokenizer: PreTrainedTokenizerFast, source: str, needs_mask: bool, reads_text: bool
) -> PreTrainedTokenizerFast:
    if reads_text and tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.cls_token
    if reads_text and tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token
    needed = (["bos", "eos"] if reads_text else []) + (["mask"] if needs_mask else [])
    missing = [name for name in needed if getattr(tokenizer, f"{name}_token") is None]
    if missing:
        raise UserError(
            f"the tokenizer {source!r} has no {' and no '.join(missing)} token; this objective needs"
            f" {', '.join(needed)}; choose another tokenizer or set data.tokenizer to 'train'; of a model that is only"
            " evaluated, name the token in its tokenizer_config.json"
        )
    if reads_text and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def plain_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the tokenizer's engine for encoding corpora: no truncation, no padding, and a ``<mask>`` or
    ``</s>`` that stands in the text is encoded as the characters it is made of."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    names = [name for name in tokenizer.all_special_tokens if len(name) > 1]
    if names and isinstance(backend.model, (models.Unigram, models.WordLevel)):
        # These look up whole stretches of text and have the special tokens among their entries: each is cut behind its
        # first character.
        cut = "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names)
        first = [backend.pre_tokenizer] if backend.pre_tokenizer else []
        backend.pre_tokenizer = pre_tokenizers.Sequence([*first, pre_tokenizers.Split(Regex(cut), "isolated")])
    return backend


def unknown_id(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The id that the engine writes for text that it does not know, declared by the tokenizer's own settings or not;
    None where it writes none: it knows all bytes, raises, or leaves such text out."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else int(model["unk_id"])
    return tokenizer.backend_tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else None


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 (hexadecimal) over the serialised engine, in canonical form.

    Truncation and padding are left out: a call such as ``tokenizer(text, padding=True)`` changes them in place,
    and the identity of the vocabulary must not depend on what was encoded before.
    """
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    document["truncation"] = None
    document["padding"] = None
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
