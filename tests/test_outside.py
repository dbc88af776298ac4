"""Models and texts from outside: any local masked or causal model on every suite, without this package's classes."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    CamembertConfig,
    CamembertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForCausalLM,
)

from wmlkit import paths
from wmlkit.config import load_preset
from wmlkit.data.tokenizer import save_tokenizer, train_tokenizer
from wmlkit.errors import UserError
from wmlkit.evaluate import last_layer, score_sentences, target
from wmlkit.evaluate.finetune import Classifier, Example, finetune
from wmlkit.evaluate.glue import GlueOptions
from wmlkit.evaluate.glue_protocols import GLUE_PROTOCOLS
from wmlkit.evaluate.last_layer import logits_at, logits_of
from wmlkit.evaluate.outside import _looks_ahead, load_outside, read_texts
from wmlkit.evaluate.target import evaluate_target, result_lines
from wmlkit.models import build_model
from wmlkit.run_files import FORMAT
from wmlkit.settings import ModelConfig
from wmlkit.shapes import Student

SENTENCES = ["The cat sleeps.", "The cats sleep near the barn.", "Water", "Nobody has ever seen it, she said."]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(SENTENCES * 3, 300)


@pytest.mark.parametrize("apart", [True, False])
def test_a_model_of_masked_words_and_following_sentences_scores_as_a_masked_one(
    apart: bool, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SMALL)
    both, masked = BertForPreTraining(shape).eval(), BertForMaskedLM(shape).eval()
    masked.load_state_dict(both.state_dict(), strict=False)
    if not apart:
        monkeypatch.setattr(last_layer, "_comes_apart", lambda model: False)
    scores = [score_sentences(model, tokenizer, SENTENCES) for model in (both, masked)]
    np.testing.assert_allclose(*scores, rtol=1e-5)


def build(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    shared = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 40}
    distil = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    opt = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "word_embed_proj_dim": 8}
    gemma = {"head_dim": 8, "num_key_value_heads": 2, "final_logit_softcapping": 0.3}
    makers = {
        "bert": lambda: BertForMaskedLM(BertConfig(**shared, **SMALL)),
        "camembert": lambda: CamembertForMaskedLM(CamembertConfig(**shared, **SMALL)),
        "albert": lambda: AlbertForMaskedLM(AlbertConfig(**shared, **SMALL, embedding_size=8)),
        "distilbert": lambda: DistilBertForMaskedLM(DistilBertConfig(**shared, **distil)),
        "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**shared, **SMALL)),
        "opt": lambda: OPTForCausalLM(OPTConfig(**shared, **opt)),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**shared, **SMALL, **gemma)),
    }
    torch.manual_seed(0)
    model = makers[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    return model


MASKED = ("bert", "camembert", "albert", "distilbert")
CAUSAL = ("gpt_neox", "opt", "gemma2")


@torch.inference_mode()
def naive(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, sentence: str, masked: bool) -> float:
    ids = tokenizer(sentence)["input_ids"]
    total = 0.0
    for i in range(1, len(ids) - 1):
        row = [*ids[:i], tokenizer.mask_token_id, *ids[i + 1 :]] if masked else ids[:i]
        logits = model(input_ids=torch.tensor([row])).logits[0, i if masked else i - 1]
        total += logits.double().log_softmax(-1)[ids[i]].item()
    return total


@pytest.mark.parametrize("name", [*MASKED, *CAUSAL])
def test_scores_are_those_of_the_whole_model(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build(name, tokenizer)
    expected = [naive(model, tokenizer, sentence, name in MASKED) for sentence in SENTENCES]
    np.testing.assert_allclose(score_sentences(model, tokenizer, SENTENCES), expected, atol=1e-5, rtol=0)


def test_trunk_and_head_come_apart_only_where_that_gives_the_same_logits(tokenizer: PreTrainedTokenizerFast) -> None:
    apart = {name: logits_at(build(name, tokenizer)).apart for name in (*MASKED, *CAUSAL)}
    assert apart["bert"] and apart["camembert"] and not apart["gemma2"]  # whose logits are capped after the head


@pytest.fixture
def folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    build("bert", tokenizer).save_pretrained(tmp_path / "model")
    save_tokenizer(tokenizer, tmp_path / "model")
    return tmp_path / "model"


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_plain_folder_is_evaluated_on_pairs_glue_and_text(
    folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    write_rows(tmp_path / "blimp" / "p.jsonl", [{"sentence_good": SENTENCES[0], "sentence_bad": "The cat sleep."}])
    for split in ("train", "valid"):
        rows = [{"sentence1": a, "sentence2": b, "label": i % 2} for i, (a, b) in enumerate([SENTENCES[:2]] * 4)]
        write_rows(tmp_path / "glue" / f"rte.{split}.jsonl", rows)
    config = load_preset("nursery", {"evaluate.pairs": str(tmp_path), "evaluate.text_words": 50})
    pairs = evaluate_target(folder, "blimp", config, tmp_path)
    assert pairs["members"][0]["member"] == "model" and pairs["members"][0]["n"] == 1
    options = GlueOptions.of("rte,wsc", "3, 4", None, None, 1)
    glue = evaluate_target(folder, "glue", config, tmp_path, glue=options)
    assert glue["settings"]["seeds"] == [3, 4] and [one["task"] for one in glue["skipped"]] == ["wsc"]
    lines = result_lines(glue)
    assert lines[0].startswith("model: ") and "accuracy" in lines[1] and lines[-1].startswith("skipped wsc: no wsc.")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "talk.dev").write_text("\n".join(SENTENCES), encoding="utf-8")
    text = evaluate_target(folder, "lm", config, tmp_path, corpus=tmp_path / "text")
    (domain,) = text["members"][0]["domains"]
    assert (domain["domain"], text["corpus"]) == ("talk", "text")
    loaded, _, objective = load_outside(folder)
    assert objective == "mlm"
    assert domain["bytes"] == sum(len(sentence.encode()) for sentence in SENTENCES)
    assert "bits a byte" in result_lines(text)[0] and ", pseudo-perplexity " in result_lines(text)[0]
    assert "masked in turn" in result_lines(text)[-1]
    causal = result_lines({**text, "objective": "clm"})
    assert ", perplexity " in causal[0] and "masked" not in causal[-1]


@pytest.mark.parametrize(
    ("suite", "options", "message"),
    [
        ("lm", {}, "it has no dev text of its own; give a folder of .dev files: --corpus"),
        ("lm", {"ensemble": True}, "--ensemble needs the peers of a run"),
        ("blimp", {"corpus": Path("x")}, "--corpus came with suite 'blimp'"),
        ("lm", {"corpus": Path("nowhere")}, "nowhere does not exist; expected <domain>.dev files"),
        ("lm", {"corpus": Path(__file__)}, "test_outside.py is a file, not a folder; expected <domain>.dev"),
    ],
)
def test_mistakes_are_named(folder: Path, suite: str, options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_target(folder, suite, load_preset("nursery"), tmp_path, **options)


def test_only_language_models_are_taken(folder: Path) -> None:
    settings = paths.read_json(folder / "config.json")
    paths.write_json(folder / "config.json", settings | {"architectures": ["BertForSequenceClassification"]})
    with pytest.raises(UserError, match="architecture 'BertForSequenceClassification'; expected a masked or causal"):
        load_outside(folder)
    with pytest.raises(UserError, match="has no config.json"):
        load_outside(folder.parent)
    with pytest.raises(UserError, match="--seeds got '1,x'"):
        GlueOptions.of("", "1,x", None, None, None)
    with pytest.raises(UserError, match=r"below 2\^32"):
        GlueOptions.of("", str(2**64), None, None, None)


@pytest.mark.parametrize("positions", [40, 6])
def test_a_causal_model_that_reads_what_it_is_to_predict_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, positions: int
) -> None:
    shared = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": positions,
    }
    for looks_back in (False, True):
        folder = tmp_path / str(looks_back)
        torch.manual_seed(0)
        RobertaForCausalLM(RobertaConfig(**shared, **SMALL, is_decoder=looks_back)).save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        if looks_back:
            assert load_outside(folder)[2] == "clm"
        else:
            with pytest.raises(UserError, match="a RobertaForCausalLM, whose logits change with the tokens behind"):
                load_outside(folder)


def test_the_text_that_shows_whether_a_model_looks_ahead_is_no_padding(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def noted(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
        read.extend(ids.flatten().tolist())
        return logits_of(model, ids)

    monkeypatch.setattr("wmlkit.evaluate.outside.logits_of", noted)
    model = build("gpt_neox", tokenizer)
    for padding in (0, 3, None):
        model.config.pad_token_id = padding
        assert not _looks_ahead(model)
        assert read and padding not in read
        read.clear()


def test_a_class_is_read_from_states_that_are_narrower_than_the_layers(tokenizer: PreTrainedTokenizerFast) -> None:
    recipe = GLUE_PROTOCOLS["babylm2025"].recipe
    classifier = Classifier(build("opt", tokenizer), "clm", 2, recipe)  # layers of 16, states of 8
    ids = torch.tensor([[5, 6, 7]])
    assert classifier(ids, torch.ones_like(ids)).shape == (1, 2)


@pytest.mark.parametrize(("name", "told"), [("bert", True), ("albert", True), ("camembert", False), ("opt", False)])
def test_of_which_text_of_a_pair_a_token_is_is_told_to_a_model_that_reads_it(
    name: str, told: bool, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    first, end = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # BERT's
        single=f"{first} $A {end}",
        pair=f"{first} $A {end} $B:1 {end}:1",
        special_tokens=[(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in (first, end)],
    )
    model, seen = build(name, tokenizer), []
    if name == "camembert":
        model.config.type_vocab_size = 1  # as RoBERTa's are in fact
    forward = type(model.base_model).forward

    def recorded(trunk: torch.nn.Module, *args: Any, **given: Any) -> Any:
        if len(given["input_ids"]) > 1:
            seen.append((given["input_ids"], given.get("token_type_ids")))
        return forward(trunk, *args, **given)

    functools.update_wrapper(recorded, forward)
    monkeypatch.setattr(type(model.base_model), "forward", recorded)
    examples = [Example("The cat sleeps.", "It is nice and warm.", 0), Example("Anna sings.", "Ben.", 1)]
    recipe = replace(GLUE_PROTOCOLS["babylm2024"].recipe, epochs=1, batch_size=2)
    finetune(
        model, tokenizer, examples, {"valid": examples}, objective="clm" if name == "opt" else "mlm", num_labels=2,
        recipe=recipe, seed=0, select=lambda labels, predictions: 0.0,
    )  # fmt: skip
    assert len(seen) == 2  # training and prediction
    for ids, segments in seen:
        if not told:
            assert segments is None
            continue
        ends = ids == tokenizer.eos_token_id
        after_first = (ends.cumsum(1) - ends.long()) == 1  # behind the first end, up to the second
        assert torch.equal(segments, after_first.long()) and segments.sum(1).unique().numel() == 2


def test_a_model_without_its_tokenizer_is_not_scored(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The library makes RoBERTa's folder a tokenizer of special tokens alone where there is no file."""
    shape = Student(num_layers=1, num_heads=2, hidden_size=8, intermediate_size=16)
    build_model(shape, ModelConfig(), tokenizer, 16, seed=0).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="has no vocabulary, only special tokens; .* copy the tokenizer's files beside"):
        load_outside(tmp_path / "model")


def test_dev_text_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b.dev").write_text("One.\nTwo.\n\n\nThree.\n", encoding="utf-8")
    (tmp_path / "a.dev").write_text(" Four. \n", encoding="utf-8")
    (tmp_path / "c.txt").write_text("not read", encoding="utf-8")
    assert read_texts(tmp_path) == {"a": [[" Four. "]], "b": [["One.", "Two."], ["Three."]]}
    (tmp_path / "a.dev").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="a.dev in .* is not UTF-8"):
        read_texts(tmp_path)
    (tmp_path / "a.dev").write_text("\n \n")
    with pytest.raises(UserError, match="a.dev holds no text"):
        read_texts(tmp_path)


def test_dev_text_lies_in_folders_too_as_a_corpus_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("more/a.txt", "b.txt", ".hidden/c.txt", ".c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("One.\n", encoding="utf-8")
    assert read_texts(tmp_path) == {"b": [["One."]], "more.a": [["One."]]}
    assert len(caplog.messages) == 1 and "has no .dev files, so its .txt files are scored" in caplog.text
    caplog.clear()
    (tmp_path / "more" / "d.dev").write_text("Two.\n", encoding="utf-8")
    assert read_texts(tmp_path) == {"d": [["Two."]]} and not caplog.messages
    (tmp_path / "d.dev").write_text("Three.\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds two files of 'd', one of them more/d.dev; expected one; rename it"):
        read_texts(tmp_path)


@pytest.mark.parametrize("is_run", [True, False])
def test_the_token_budget_holds_for_given_text_too(
    is_run: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.dev").write_text("The cat sleeps.\n")
    (tmp_path / "config.json").write_text(f'{{"format": {FORMAT}, "config": {{}}}}')
    if is_run:
        (tmp_path / "done.json").write_text("{}")
    given = {}
    monkeypatch.setattr(target, "load_peers", lambda folder: ([], None))
    monkeypatch.setattr(target, "run_facts", lambda folder: ([1.0], "mlm"))
    monkeypatch.setattr(target, "reads_lines", lambda folder: True)
    monkeypatch.setattr(target, "load_outside", lambda folder, reads_text: (None, None, "mlm"))
    monkeypatch.setattr(target, "evaluate_text", lambda *arguments, **options: given.update(options) or {})
    config = load_preset("smoke", {"evaluate.token_budget": 128})
    evaluate_target(tmp_path, "lm", config, tmp_path, corpus=tmp_path)
    assert given["token_budget"] == 128 and given["by_line"] == is_run


def test_the_token_budget_holds_for_a_run_s_own_dev_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "done.json").write_text("{}")
    (tmp_path / "config.json").write_text(f'{{"format": {FORMAT}, "config": {{}}}}')
    given = {}
    monkeypatch.setattr(target, "prepared_of", lambda folder: folder)
    monkeypatch.setattr(target, "evaluate_run_text", lambda *arguments, **options: given.update(options) or {})
    evaluate_target(tmp_path, "lm", load_preset("smoke", {"evaluate.token_budget": 128}), tmp_path)
    assert given["token_budget"] == 128


@pytest.mark.parametrize(("own", "asked", "expected"), [(30, None, 30), (30, 40, 40), (None, None, 2000)])
def test_a_run_s_text_has_the_run_s_own_number_of_words_unless_another_is_asked_for(
    own: int | None, asked: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "done.json").write_text("{}")
    paths.write_json(tmp_path / "config.json", {"format": FORMAT, "config": {"evaluate": {"text_words": own}}})
    given = {}
    monkeypatch.setattr(target, "prepared_of", lambda folder: folder)
    monkeypatch.setattr(target, "evaluate_run_text", lambda *arguments, **options: given.update(options) or {})
    config = target.evaluation_config(tmp_path, "lm", {"evaluate.text_words": asked})
    evaluate_target(tmp_path, "lm", config, tmp_path)
    assert given["words_per_domain"] == expected


def test_a_run_is_scored_on_the_nursery_s_pairs_of_its_own_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "done.json").write_text("{}")
    own = {"data": {"seed": 5}, "evaluate": {"suites": ["nursery"], "per_paradigm": 2}}
    paths.write_json(tmp_path / "config.json", {"format": FORMAT, "config": own})
    monkeypatch.setattr(target, "evaluate_run", lambda run, suite, folder, *_, **__: {"folder": folder})
    plain = target.evaluation_config(tmp_path, "nursery", {})
    found = evaluate_target(tmp_path, "nursery", plain, tmp_path)["folder"]
    assert found == paths.pairs(tmp_path, found.name) and found.name.startswith("nursery-pairs-s5-n2-")


def test_a_plain_evaluation_is_that_of_the_study(tmp_path: Path) -> None:
    own = {"suites": ["nursery"], "per_paradigm": 2, "protocol": "babylm2024-fixed", "ties": "first", "text_words": 30}
    paths.write_json(tmp_path / "config.json", {"format": FORMAT, "config": {"evaluate": own}})
    unfinished = target.evaluation_config(tmp_path, "nursery", {}).evaluate
    assert (unfinished.protocol, unfinished.ties, unfinished.per_paradigm) == ("babylm2025", "half", None)
    (tmp_path / "done.json").write_text("{}")
    plain = target.evaluation_config(tmp_path, "nursery", {"evaluate.ties": None}).evaluate
    assert (plain.protocol, plain.ties, plain.per_paradigm) == ("babylm2024-fixed", "first", 2)
    asked = target.evaluation_config(tmp_path, "nursery", {"evaluate.ties": "random"}).evaluate
    assert (asked.protocol, asked.ties) == ("babylm2024-fixed", "random")
    other = target.evaluation_config(tmp_path, "blimp", {}).evaluate  # the study did not score it
    assert (other.protocol, other.ties, other.per_paradigm, other.text_words) == ("babylm2025", "half", None, 30)
