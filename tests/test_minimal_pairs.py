"""Sentence scores against a naive scorer, hand numbers, invariances and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, trainers
from tokenizers.processors import ByteLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast, RobertaConfig, RobertaForCausalLM

from wmlkit.data.tokenizer import train_tokenizer
from wmlkit.errors import UserError
from wmlkit.evaluate import minimal_pairs, score_sentences, scoring
from wmlkit.evaluate.last_layer import hidden_at_places
from wmlkit.evaluate.spans import encode_spans
from wmlkit.models import build_model, hidden_states
from wmlkit.settings import ModelConfig
from wmlkit.shapes import Student

BLIMP = Path(__file__).parents[2] / "shared" / "data" / "babylm_eval" / "blimp_filtered"

SENTENCES = """The cat sleeps.
The cats sleep.
The cat sleep.
The dog near the barns barks at night.
The dog near the barns bark at night.
Every child has seen herself in the mirror.
Every child has seen themselves in the mirror.
These books aren't new, but that one is.
This books aren't new, but that one is.
What did Anna say that Ben bought?
What did Anna say that Ben bought bread?
Nobody has ever been there.
Everybody has ever been there.
The teacher's pupils wrote 23 letters.
The teacher's pupils written 23 letters.
Who does the farmer think milks the cows?
Running quickly, the unbelievably small fox disappeared.
She gave him the key; he lost it!
She gave him the key; him lost it!
Water
The  two  spaces
Ein Käse für dich, süß.
No more than ten boys laughed.
At least ten boys laughed.
It is raining.
The girl that the boys like is singing.
The girl that the boys like are singing.
There is a mouse in the kitchen.
There are a mouse in the kitchen.
The glass broke.
The man slept the bed.
I can't believe it's not over.
Is the boy who is tall happy?
Is the boy who tall is happy?
A rose is a flower.
A flower is a rose.
She can sing and dance well.
They've known each other for years.
The senator's daughters admire themselves.
The senator's daughters admire herself.""".splitlines()

FAMILIES = {"roberta": "mlm", "modernbert": "mlm", "gpt2": "clm", "llama": "clm"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(SENTENCES, 330)


def tiny(family: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0, block_size: int = 64) -> PreTrainedModel:
    """A random model whose predictions are far from uniform and depend on position and context."""
    config = ModelConfig(objective=FAMILIES[family], family=family, num_layers=1, hidden_size=16, num_heads=2)
    model = build_model(Student(2, 2, 16, 32), config, tokenizer, block_size, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.4, generator=generator)
    return model


@torch.inference_mode()
def naive_logits(models: list[PreTrainedModel], weights: list[float], ids: list[int], position: int) -> torch.Tensor:
    """Mixed logits (V,) at one position from full forward passes of a batch of one."""
    row = torch.tensor([ids])
    parts = [
        weight * model.eval()(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, position].double()
        for model, weight in zip(models, weights, strict=True)
    ]
    return torch.stack(parts).sum(dim=0)


def naive_score(models, weights, ids, scored, mask_id=None, words=None) -> float:
    """Sum of log-probabilities, one forward pass a scored token; `mask_id` makes it a masked score."""
    total = 0.0
    for position in scored:
        if mask_id is None:
            logits = naive_logits(models, weights, ids[:position], position - 1)
        else:
            same_word = [position]
            if words is not None:
                same_word = [p for p in range(position, len(ids)) if words[p] == words[position]]
            masked = [mask_id if p in same_word else token for p, token in enumerate(ids)]
            logits = naive_logits(models, weights, masked, position)
        total += torch.log_softmax(logits, dim=-1)[ids[position]].item()
    return total


def naive_plain(models, weights, tokenizer, sentence, objective, context="", within_word=False) -> float:
    text = f"{context} {sentence}" if context else sentence
    encoding = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    scored = [i for i, (_, end) in enumerate(offsets) if end > len(context)]
    if objective == "clm":
        return naive_score(models, weights, ids, scored)
    words = encoding.word_ids() if within_word else None
    return naive_score(models, weights, ids, scored, tokenizer.mask_token_id, words)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_one_forward_pass_a_token(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny(family, tokenizer)
    expected = [naive_plain([model], [1.0], tokenizer, s, FAMILIES[family]) for s in SENTENCES]
    np.testing.assert_allclose(score_sentences(model, tokenizer, SENTENCES), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_within_word_hides_later_pieces(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny(family, tokenizer)
    sentences = SENTENCES[:12]
    expected = [naive_plain([model], [1.0], tokenizer, s, "mlm", within_word=True) for s in sentences]
    scores = score_sentences(model, tokenizer, sentences, within_word=True)
    np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=0)
    assert not np.allclose(scores, score_sentences(model, tokenizer, sentences))


def test_within_word_needs_a_tokenizer_that_cuts_words() -> None:
    """Of a Llama's kind, spaces are letters and a text is one word: all of the rest would be masked."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("_"), normalizers.Replace(" ", "_")])
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    backend.train_from_iterator(SENTENCES, trainer)
    marks = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    whole = PreTrainedTokenizerFast(tokenizer_object=backend, **marks)
    model = tiny("roberta", whole)
    assert np.isfinite(score_sentences(model, whole, SENTENCES[:2])).all()
    with pytest.raises(UserError, match=r"numbers the \d+ words of sentence 1 .* as one"):
        score_sentences(model, whole, SENTENCES[:2], within_word=True)


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_only_the_sentence_after_its_context_is_scored(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny(family, tokenizer)
    contexts, sentences = ["The cat is on the mat.", "Anna's dog barks."], ["It sleeps.", "Ben is afraid."]
    expected = [
        naive_plain([model], [1.0], tokenizer, s, FAMILIES[family], context=c)
        for s, c in zip(sentences, contexts, strict=True)
    ]
    scores = score_sentences(model, tokenizer, sentences, contexts=contexts)
    np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=0)
    again = score_sentences(model, tokenizer, [sentences[0], *sentences], contexts=["", *contexts])
    assert again[1:].tolist() == pytest.approx(scores.tolist(), abs=1e-5)
    assert again[0] == pytest.approx(score_sentences(model, tokenizer, sentences[:1])[0], abs=1e-5) != again[1]


@pytest.mark.parametrize("family", ["modernbert", "llama"])
def test_peers_and_ensembles_from_one_pass(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    models = [tiny(family, tokenizer, seed) for seed in range(3)]
    weights, sentences = [0.6, 0.3, 0.1], SENTENCES[:8]
    scores = score_sentences(models, tokenizer, sentences, ensemble_weights=weights)
    rows = {"peer_1": [1, 0, 0], "peer_3": [0, 0, 1], "ensemble": weights, "uniform_ensemble": [1 / 3] * 3}
    assert list(scores) == ["peer_1", "peer_2", "peer_3", "ensemble", "uniform_ensemble"]
    for name, row in rows.items():
        expected = [naive_plain(models, row, tokenizer, s, FAMILIES[family]) for s in sentences]
        np.testing.assert_allclose(scores[name], expected, atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [1, 3])
def test_states_at_places_are_those_of_the_trunk(family: str, layers: int, tokenizer: PreTrainedTokenizerFast) -> None:
    config = ModelConfig(objective=FAMILIES[family], family=family)  # type: ignore[arg-type]
    model = build_model(Student(layers, 2, 16, 32), config, tokenizer, 64, seed=0).eval()
    ids = torch.randint(5, len(tokenizer), (6, 9), generator=torch.Generator().manual_seed(0))
    once, several = torch.arange(6), torch.tensor([0, 0, 2, 5, 5, 5])
    for row in (once, several, once.flip(0)):
        position = torch.tensor([8, 0, 3, 4, 1, 2])
        with torch.inference_mode():
            expected = hidden_states(model, ids)[row, position]
            torch.testing.assert_close(hidden_at_places(model, ids, row, position), expected, atol=1e-5, rtol=0)


def test_states_at_places_of_a_roberta_that_looks_back_only() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = RobertaConfig(vocab_size=50, max_position_embeddings=16, is_decoder=True, **sizes)
    torch.manual_seed(0)
    model = RobertaForCausalLM(config).eval()
    ids, row, position = torch.arange(5, 23).view(2, 9), torch.arange(2), torch.tensor([1, 4])
    with torch.inference_mode():
        expected = hidden_states(model, ids)[row, position]
        torch.testing.assert_close(hidden_at_places(model, ids, row, position), expected, atol=1e-5, rtol=0)


def test_temperature_divides_the_logits(tokenizer: PreTrainedTokenizerFast) -> None:
    models = [tiny("roberta", tokenizer, seed) for seed in range(2)]
    scores = score_sentences(models, tokenizer, SENTENCES[:4], temperature=2.5, ensemble_weights=[0.75, 0.25])
    expected = [naive_plain(models, [0.3, 0.1], tokenizer, s, "mlm") for s in SENTENCES[:4]]
    np.testing.assert_allclose(scores["ensemble"], expected, atol=1e-5, rtol=0)


def test_a_confident_model_has_scores() -> None:
    """Its logits differ by more than float32's exponential takes; a difference of all of them changes nothing."""
    logits = torch.tensor([[-200.0, 100.0, 0.0], [1000.0, 1000.0, -1000.0]])
    picked = scoring._picked(logits, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    assert picked.tolist() == pytest.approx([-300.0, 0.0, -math.log(2)])


def test_ensemble_of_one_is_the_peer(tokenizer: PreTrainedTokenizerFast) -> None:
    scores = score_sentences([tiny("gpt2", tokenizer)], tokenizer, SENTENCES[:5])
    np.testing.assert_array_equal(scores["ensemble"], scores["peer_1"])
    np.testing.assert_array_equal(scores["uniform_ensemble"], scores["peer_1"])


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_depend_on_nothing_but_the_sentence(
    family: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family, tokenizer)
    reference = score_sentences(model, tokenizer, SENTENCES)
    order = np.random.default_rng(0).permutation(len(SENTENCES))
    shuffled = score_sentences(model, tokenizer, [SENTENCES[i] for i in order])
    np.testing.assert_allclose(shuffled, reference[order], atol=1e-5, rtol=0)
    np.testing.assert_allclose(
        score_sentences(model, tokenizer, SENTENCES, token_budget=1), reference, atol=1e-5, rtol=0
    )
    for logits_at_once in (1, 2500):  # the head at one place a call, and at a handful
        monkeypatch.setitem(scoring.LOGITS, "cpu", logits_at_once)
        np.testing.assert_allclose(score_sentences(model, tokenizer, SENTENCES), reference, atol=1e-5, rtol=0)
    monkeypatch.undo()
    monkeypatch.setattr(scoring, "COPY_CELLS", 1)  # one text at a time
    np.testing.assert_allclose(score_sentences(model, tokenizer, SENTENCES), reference, atol=1e-5, rtol=0)
    monkeypatch.undo()
    twice = score_sentences(model, tokenizer, [*SENTENCES, *SENTENCES])
    np.testing.assert_array_equal(twice[: len(SENTENCES)], twice[len(SENTENCES) :])
    np.testing.assert_allclose(twice[: len(SENTENCES)], reference, atol=1e-5, rtol=0)
    tokenizer.padding_side = "left"
    try:
        np.testing.assert_array_equal(score_sentences(model, tokenizer, SENTENCES), reference)
        tokenizer(SENTENCES, padding=True, truncation=True, max_length=8)  # settings that stick to the tokenizer
        np.testing.assert_array_equal(score_sentences(model, tokenizer, SENTENCES), reference)
    finally:
        tokenizer.padding_side = "right"


@pytest.mark.parametrize("family", FAMILIES)
def test_uniform_model_scores_minus_n_log_v(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny(family, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    counts = np.array([len(tokenizer(s, add_special_tokens=False)["input_ids"]) for s in SENTENCES])
    scores = score_sentences(model, tokenizer, SENTENCES)
    np.testing.assert_allclose(scores, -counts * math.log(len(tokenizer)), rtol=1e-6)
    means = score_sentences(model, tokenizer, SENTENCES, reduction="mean")
    np.testing.assert_allclose(means, -math.log(len(tokenizer)), rtol=1e-6)


def test_2024_masked_prefix(tokenizer: PreTrainedTokenizerFast) -> None:
    """The end-of-text token written out, two spaces, and the lone space that the second one leaves is scored."""
    (item,) = encode_spans(tokenizer, ["The cat sleeps."], [""], "mlm", "eos", [""])
    tokens = tokenizer.convert_ids_to_tokens(list(item.ids))
    assert tokens[:3] == ["<s>", "</s>", "Ġ"] and tokens[-1] == "</s>"
    assert item.scored == tuple(range(2, len(item.ids) - 1))
    model = tiny("roberta", tokenizer)
    total = score_sentences(model, tokenizer, SENTENCES[:3], prefix="eos")
    encoded = encode_spans(tokenizer, SENTENCES[:3], [""] * 3, "mlm", "eos", [""] * 3)
    expected = [naive_score([model], [1.0], list(e.ids), e.scored, tokenizer.mask_token_id) for e in encoded]
    np.testing.assert_allclose(total, expected, atol=1e-5, rtol=0)
    mean = score_sentences(model, tokenizer, SENTENCES[:3], prefix="eos", reduction="mean")
    np.testing.assert_allclose(mean * [len(e.scored) for e in encoded], total, rtol=1e-12)


def test_2024_masked_context(tokenizer: PreTrainedTokenizerFast) -> None:
    (item,) = encode_spans(tokenizer, ["It sleeps."], ["The cat is here."], "mlm", "eos", [""])
    context = tokenizer("The cat is here.")["input_ids"]
    assert list(item.ids[: len(context) - 1]) == context[:-1]
    assert item.scored == tuple(range(len(context) - 1, len(item.ids) - 1))
    assert tokenizer.decode([item.ids[i] for i in item.scored]) == "  It sleeps."


def test_2024_causal_prefix(tokenizer: PreTrainedTokenizerFast) -> None:
    (alone,) = encode_spans(tokenizer, ["The cat sleeps."], [""], "clm", "eos", [""])
    assert alone.ids == (tokenizer.bos_token_id, *tokenizer(" The cat sleeps.", add_special_tokens=False)["input_ids"])
    assert alone.scored == tuple(range(1, len(alone.ids)))
    (after,) = encode_spans(tokenizer, ["It sleeps."], ["The cat is here. "], "clm", "eos", [""])
    assert list(after.ids) == tokenizer("The cat is here.  It sleeps.", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([after.ids[i] for i in after.scored]) == "  It sleeps."


def test_a_causal_model_cannot_score_a_first_token(tokenizer: PreTrainedTokenizerFast) -> None:
    (with_start,) = encode_spans(tokenizer, ["The cat sleeps."], [""], "clm", "none", [""])
    assert with_start.scored == tuple(range(1, len(with_start.ids) - 1))  # all but <s> and </s>
    bare = train_tokenizer(SENTENCES, 330)
    bare.backend_tokenizer.post_processor = ByteLevel(trim_offsets=False)  # adds no special token
    (without_start,) = encode_spans(bare, ["The cat sleeps."], [""], "clm", "none", [""])
    assert without_start.ids == with_start.ids[1:-1]
    assert without_start.scored == tuple(range(1, len(without_start.ids)))


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_off_while_sentences_are_scored(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    config = ModelConfig(objective=FAMILIES[family], family=family, dropout=0.5)  # type: ignore[arg-type]
    model = build_model(Student(2, 2, 16, 32), config, tokenizer, 64, seed=0)
    still = score_sentences(model.eval(), tokenizer, SENTENCES[:3])
    np.testing.assert_array_equal(score_sentences(model.train(), tokenizer, SENTENCES[:3]), still)


def test_models_return_to_their_mode(tokenizer: PreTrainedTokenizerFast) -> None:
    models = [tiny("roberta", tokenizer, 0).train(), tiny("roberta", tokenizer, 1).eval()]
    score_sentences(models, tokenizer, SENTENCES[:2])
    assert [model.training for model in models] == [True, False]


def test_a_text_as_long_as_the_window_is_scored_and_a_longer_one_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    length = len(tokenizer(SENTENCES[3])["input_ids"])
    for family in FAMILIES:
        exact = tiny(family, tokenizer, block_size=length)
        assert np.isfinite(score_sentences(exact, tokenizer, [SENTENCES[3]])).all()
        short = tiny(family, tokenizer, block_size=length - 1)
        with pytest.raises(UserError, match=rf"agreement.jsonl line 7 has {length} tokens.* {length - 1}"):
            score_sentences(short, tokenizer, [SENTENCES[3]], origins=["agreement.jsonl line 7"])


def test_bad_input_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny("roberta", tokenizer)
    with pytest.raises(UserError, match="sentence 2 .* is empty"):
        score_sentences(model, tokenizer, ["The cat sleeps.", "  "])
    with pytest.raises(UserError, match="2 sentences came with 1 contexts"):
        score_sentences(model, tokenizer, SENTENCES[:2], contexts=["A cat."])
    with pytest.raises(UserError, match="ensemble_weights"):
        score_sentences([model, model], tokenizer, SENTENCES[:2], ensemble_weights=[1.0])
    with pytest.raises(UserError, match="ensemble_weights"):
        score_sentences([model, model], tokenizer, SENTENCES[:2], ensemble_weights=[0.5, float("nan")])
    with pytest.raises(UserError, match="single model"):
        score_sentences(model, tokenizer, SENTENCES[:2], ensemble_weights=[1.0])
    for temperature in (0.0, 1e-320, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"temperature is .*; expected a number from 0.001 to 1000; change it"):
            score_sentences(model, tokenizer, SENTENCES[:2], temperature=temperature)
    with pytest.raises(UserError, match="within_word"):
        score_sentences(tiny("gpt2", tokenizer), tokenizer, SENTENCES[:2], within_word=True)
    larger = train_tokenizer(SENTENCES, 360)
    with pytest.raises(UserError, match=f"{len(larger)} tokens but model 1 was built for {len(tokenizer)}"):
        score_sentences(model, larger, SENTENCES[:2])


def test_a_score_that_is_not_a_number_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny("roberta", tokenizer)
    with torch.no_grad():
        # One token's embedding is broken, so only the sentence with it has no score.
        model.get_input_embeddings().weight[tokenizer("Water", add_special_tokens=False)["input_ids"][0]] = math.nan
    with pytest.raises(UserError, match="score of sentence .* is nan"):
        score_sentences(model, tokenizer, SENTENCES)
    assert model.training


def test_no_sentences_give_no_scores(tokenizer: PreTrainedTokenizerFast) -> None:
    assert score_sentences(tiny("roberta", tokenizer), tokenizer, []).shape == (0,)


@pytest.mark.skipif(not BLIMP.is_dir(), reason="needs the BLiMP files of ../shared/data, which are not shipped")
@pytest.mark.parametrize("family", FAMILIES)
def test_real_pairs_equal_the_naive_scorer(family: str) -> None:
    rows = []
    for file in sorted(BLIMP.glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            rows += [json.loads(next(lines)) for _ in range(3)]
    sentences = [row[key] for row in rows[:200] for key in ("sentence_good", "sentence_bad")]
    tokenizer = train_tokenizer(sentences, 2000)
    model = tiny(family, tokenizer)
    single = score_sentences(model, tokenizer, sentences)
    model.double()
    expected = [naive_plain([model], [1.0], tokenizer, s, FAMILIES[family]) for s in sentences]
    np.testing.assert_allclose(score_sentences(model, tokenizer, sentences), expected, atol=1e-9, rtol=0)
    # float32 rounds a sum near -100 nats in the fifth decimal place, differently on another processor
    np.testing.assert_allclose(single, expected, rtol=2e-6)


def test_one_score_that_is_not_finite_is_named():
    with pytest.raises(UserError, match="the score of second is nan under ensemble;"):
        minimal_pairs._check_finite(np.array([[0, 0], [0, np.nan]]), ["peer_1", "ensemble"], ["first", "second"])
