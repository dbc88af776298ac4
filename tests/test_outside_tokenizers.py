"""Tokenizers from outside: sentences are scored with what they declare, and text that they lose is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small import make_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from wmlkit import paths
from wmlkit.config import load_preset
from wmlkit.data.encode import count_tokens, decoded_documents, encode_documents
from wmlkit.data.prepare import prepare
from wmlkit.data.tokenizer import load_tokenizer, plain_backend, save_tokenizer, train_tokenizer
from wmlkit.errors import UserError
from wmlkit.evaluate.language_modelling import evaluate_text
from wmlkit.evaluate.outside import load_outside
from wmlkit.evaluate.run_text import evaluate_run_text
from wmlkit.evaluate.spans import encode_spans, token_counts
from wmlkit.evaluate.target import evaluate_target, result_lines
from wmlkit.models import build_model
from wmlkit.run_files import FORMAT
from wmlkit.settings import DataConfig, ModelConfig
from wmlkit.shapes import Student

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def bert_tokenizer(**declared: str) -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "none", "the", "cat", "cats", "sleep", "##s", "."]
    engine = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer()
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {name: f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    special = {f"{name}_token": token for name, token in names.items()} | declared
    return PreTrainedTokenizerFast(tokenizer_object=engine, **special)


def word_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "the", "cat", "sleeps"])}
    engine = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=engine, unk_token="<unk>", **special)


def save_bert(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=40, **SMALL)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_gpt2(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    shape = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=2, n_positions=40)
    GPT2LMHeadModel(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("declared", "tokens"),
    [({}, "[CLS] none the cat sleep ##s . [SEP]"), ({"eos_token": "[SEP]"}, "[CLS] [SEP] the cat sleep ##s . [SEP]")],
)
def test_2024_writes_none_before_a_sentence_where_no_end_of_text_is_declared(
    declared: dict[str, str], tokens: str, tmp_path: Path
) -> None:
    _, tokenizer, objective = load_outside(save_bert(tmp_path, bert_tokenizer(**declared)))
    (item,) = encode_spans(tokenizer, ["The cat sleeps."], [""], objective, "eos", ["x"])
    assert tokenizer.convert_ids_to_tokens(list(item.ids)) == tokens.split()
    assert item.scored == (2, 3, 4, 5, 6)


def test_running_text_has_the_ends_that_bert_has_for_sentences(tmp_path: Path) -> None:
    _, tokenizer, _ = load_outside(save_bert(tmp_path / "model", bert_tokenizer()), reads_text=True)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("[CLS]", "[SEP]")
    (tmp_path / "talk.dev").write_text("The cat sleeps.\n")
    document = evaluate_target(tmp_path / "model", "lm", load_preset("smoke"), tmp_path, corpus=tmp_path)
    assert document["members"][0]["tokens"] == 5


def test_a_causal_model_needs_no_token_but_its_words_to_score_sentences(tmp_path: Path) -> None:
    folder = save_gpt2(tmp_path / "model", word_tokenizer(eos_token="</s>"))
    (tmp_path / "toy").mkdir()
    pair = {"sentence_good": "the cat sleeps", "sentence_bad": "the sleeps cat"}
    (tmp_path / "toy" / "order.jsonl").write_text(json.dumps(pair))
    for protocol in ("babylm2024-fixed", "babylm2025"):
        config = load_preset("smoke", {"evaluate.pairs": str(tmp_path), "evaluate.protocol": protocol})
        assert evaluate_target(folder, "toy", config, tmp_path)["members"][0]["n"] == 1
    _, tokenizer, _ = load_outside(folder)
    (item,) = encode_spans(tokenizer, ["the cat sleeps"], [""], "clm", "eos", ["x"])
    assert tokenizer.decode(list(item.ids)) == "</s> the cat sleeps"  # the prefix of 2024: no start, so the end
    with pytest.raises(UserError, match="has no bos token; .* name the token in its tokenizer_config.json"):
        load_outside(folder, reads_text=True)


@pytest.mark.parametrize("pad", ["</s>", "<unk>"])
def test_unknown_words_are_scored_whatever_the_padding_is(pad: str) -> None:
    tokenizer = word_tokenizer(bos_token="<s>", eos_token="</s>", pad_token=pad)
    (item,) = encode_spans(tokenizer, ["the zebra sleeps"], [""], "clm", "none", ["x"])
    assert tokenizer.decode([item.ids[i] for i in item.scored]) == "<unk> sleeps"


def test_a_tokenizer_without_an_unknown_token_says_so_where_it_meets_unknown_text() -> None:
    """`tokenizers` raises a plain Exception for lists of words and unigrams; bytes that are not there are left out."""
    words = {word: i for i, word in enumerate(["<s>", "</s>", "the", "cat", "sleeps"])}
    unigrams = [(word, -float(i)) for i, word in enumerate([*words, *sorted(set("thecatsleeps"))])]
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    for engine in (Tokenizer(models.WordLevel(words, unk_token="<unk>")), Tokenizer(models.Unigram(unigrams))):
        engine.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=engine, **special)
        (item,) = encode_spans(tokenizer, ["the cat sleeps"], [""], "clm", "none", ["x"])
        assert tokenizer.decode([item.ids[i] for i in item.scored]) == "cat sleeps"
        for read in (
            lambda own, text: encode_spans(own, [text], [""], "clm", "none", ["x"]),
            lambda own, text: token_counts(own, [text]),
            lambda own, text: list(encode_documents(own, [[text]])),
            lambda own, text: count_tokens(own, [text]),
        ):
            read(tokenizer, "the cat")
            with pytest.raises(
                UserError, match="no token for text that it does not know .*; expected an unknown token"
            ):
                read(tokenizer, "the zebra")


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_a_domain_of_which_no_token_is_left_is_named(objective: str) -> None:
    pieces = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "<mask>": 2, "a": 3}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token="<s>", eos_token="</s>", mask_token="<mask>")
    tokenizer.pad_token = "</s>"
    model = student(tokenizer, objective)
    assert evaluate_text(model, tokenizer, {"talk": [["aa"]]}, words_per_domain=None, by_line=True)
    with pytest.raises(UserError, match="makes no token of the text of domain 'cyr'; expected one at least"):
        evaluate_text(model, tokenizer, {"talk": [["aa"]], "cyr": [["да"]]}, words_per_domain=None, by_line=True)


NAMES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MARKED = [f"it was <s>{i} dollars</s> and is <unk> for <mask> us" for i in range(80)]


def outside(engine: Tokenizer, trainer: trainers.Trainer, lines: list[str]) -> PreTrainedTokenizerFast:
    engine.train_from_iterator(lines, trainer)
    ends = [("<s>", 0), ("</s>", 2)]
    engine.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = dict(zip(("bos", "pad", "eos", "unk", "mask"), NAMES, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=engine, **{f"{key}_token": name for key, name in names.items()})


def prepared_with(tokenizer: PreTrainedTokenizerFast, lines: list[str], folder: Path) -> Path:
    (folder / "web").mkdir()
    (folder / "web" / "a.train").write_text("\n".join(lines))
    (folder / "web" / "a.dev").write_text("\n".join(lines[:32]))
    tokenizer.save_pretrained(folder / "tokenizer")
    data = DataConfig(corpus=str(folder / "web"), tokenizer=str(folder / "tokenizer"))
    return prepare(data, folder / "out").folder


def test_the_names_of_special_tokens_in_a_text_are_text_to_a_unigram_tokenizer(tmp_path: Path) -> None:
    engine = Tokenizer(models.Unigram())
    engine.pre_tokenizer, engine.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=NAMES, unk_token="<unk>", show_progress=False)
    tokenizer = outside(engine, trainer, MARKED)
    folder = prepared_with(tokenizer, MARKED, tmp_path)
    back = decoded_documents(folder / "dev.tokens", load_tokenizer(folder / "tokenizer"))
    assert [line for document in back for line in document] == MARKED[:32]  # as many lines, and all of each
    assert not any("comes back" in note for note in paths.read_json(folder / "corpus.json")["notes"])


def test_the_names_of_special_tokens_in_a_text_are_unknown_words_to_a_list_of_words() -> None:
    engine = Tokenizer(models.WordLevel(unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = outside(engine, trainers.WordLevelTrainer(special_tokens=NAMES, show_progress=False), MARKED)
    ids = plain_backend(tokenizer).encode("was </s> for <mask> <s>", add_special_tokens=False).ids
    assert not {0, 1, 2, 4} & set(ids) and ids[0] == tokenizer.convert_tokens_to_ids("was")


def test_a_tokenizer_that_does_not_give_text_back_is_told(tmp_path: Path) -> None:
    lines = ["it was good, was it?"] * 99
    engine = Tokenizer(models.BPE(unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = outside(engine, trainers.BpeTrainer(special_tokens=NAMES, show_progress=False), lines)
    notes = paths.read_json(prepared_with(tokenizer, lines, tmp_path) / "corpus.json")["notes"]
    (told,) = [note for note in notes if "comes back" in note]
    assert told.startswith(
        "the dev text has 640 bytes and comes back from its tokens with 704, as the given tokenizer has"
    )


def student(tokenizer: PreTrainedTokenizerFast, objective: str) -> PreTrainedModel:
    family = {"mlm": "roberta", "clm": "gpt2"}[objective]
    config = ModelConfig(family=family, objective=objective)  # type: ignore[arg-type]
    return build_model(Student(1, 2, 8, 16), config, tokenizer, 32, seed=0)


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_text_that_a_tokenizer_loses_is_told(objective: str) -> None:
    words = make_tokenizer()
    texts = {"known": [["the cat sees the dog"]], "foreign": [["the zymurgy"]]}
    document = evaluate_text(student(words, objective), words, texts, words_per_domain=None)
    assert document["unknown"] == pytest.approx(1 / 7)
    assert result_lines(document)[-1].startswith("14.3 % of the tokens are the tokenizer's unknown token")
    whole = train_tokenizer(["the cat sees the dog"], 270)
    for kept, given in ((words, {"known": texts["known"]}), (whole, texts)):
        document = evaluate_text(student(kept, objective), kept, given, words_per_domain=None)
        assert document.keys() == {"objective", "settings", "members"}  # as it has always been
        assert len(result_lines(document)) == 2


def characters(known: str) -> PreTrainedTokenizerFast:
    """One token a character of `known`; others are left out without a word."""
    names = ["<s>", "</s>", "<mask>", *known]
    engine = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    engine.normalizer = normalizers.NFC()
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=engine, **special)


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_text_for_which_a_tokenizer_has_no_token_is_told(objective: str) -> None:
    """Of "ab xe\u0301 b" the x is left out; the accent is joined to its letter, and white space is between words."""
    some = characters("ab\u00e9")
    document = evaluate_text(student(some, objective), some, {"talk": [["ab xe\u0301 b"]]}, words_per_domain=None)
    assert document["left_out"] == pytest.approx(1 / 5) and "unknown" not in document
    assert result_lines(document)[-1].startswith("20 % of the characters have no token at all: these bits a byte are")


def test_an_unknown_token_that_only_the_engine_knows_is_counted() -> None:
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
    pieces = Tokenizer(models.Unigram([("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("a", -1.0)], unk_id=2))
    for engine in (words, pieces):
        engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        own = PreTrainedTokenizerFast(tokenizer_object=engine, bos_token="<s>", eos_token="</s>", pad_token="</s>")
        assert own.unk_token is None
        document = evaluate_text(student(own, "clm"), own, {"talk": [["a z a a"]]}, words_per_domain=None)
        assert document["unknown"] == 1 / 4


def test_a_text_of_which_a_given_tokenizer_makes_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="knows nothing of the train and the held-out and the dev text; expected one"):
        prepared_with(characters("ab"), ["\u0434\u0430 \u043d\u0435\u0442"] * 99, tmp_path)
    assert not list((tmp_path / "out").glob("data/*"))
    (tmp_path / "words").mkdir()
    with pytest.raises(UserError, match="knows nothing of the train"):
        prepared_with(word_tokenizer(bos_token="<s>", eos_token="</s>"), ["zebra gnu"] * 99, tmp_path / "words")


def test_what_a_tokenizer_leaves_out_of_a_corpus_is_told_as_that(tmp_path: Path) -> None:
    lines = ["ab \u0434"] * 99
    notes = paths.read_json(prepared_with(characters("ab"), lines, tmp_path) / "corpus.json")["notes"]
    (told,) = [note for note in notes if "comes back" in note]
    assert "as the given tokenizer has no token for 32 of its 96 characters: bits a byte" in told


def test_text_that_was_lost_before_a_run_read_it_is_told(tmp_path: Path) -> None:
    """The dev text of a corpus is decoded from its tokens, so that what was lost comes back as the word <unk>; the
    models read the tokens as they were."""
    for split in ("train", "dev"):
        (tmp_path / f"talk.{split}").write_text("the cat sees a zymurgy\n\n" * 40)
    tokenizer = make_tokenizer()
    save_tokenizer(tokenizer, tmp_path / "words")
    data = DataConfig(corpus=str(tmp_path), tokenizer=str(tmp_path / "words"), clean=False)
    prepared = prepare(data, tmp_path / "out")
    run = tmp_path / "run"
    student(tokenizer, "clm").save_pretrained(paths.peer(run, 1))
    save_tokenizer(tokenizer, paths.peer(run, 1))
    paths.write_json(run / "config.json", {"format": FORMAT, "config": {"model": {"objective": "clm"}}})
    paths.write_json(run / "done.json", {"peer_weights": [1.0]})
    document = evaluate_run_text(run, prepared.folder, words_per_domain=20)
    assert document["unknown"] == 1 / 5 and document["members"][0]["tokens"] == 20
    whole = evaluate_text(student(tokenizer, "clm"), tokenizer, {"talk": [["the cat sees a zymurgy"]]})
    ends = [of["members"][0]["nats_per_token"] for of in (document, whole)]
    assert ends[0] == pytest.approx(ends[1])  # as the text that was lost would be read
    (told,) = [note for note in paths.read_json(prepared.folder / "corpus.json")["notes"] if "unknown" in note]
    assert told.startswith("14.3% of the dev text's tokens are the given tokenizer's unknown token")
