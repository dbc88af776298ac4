"""Students: shapes, seeds, trunk and head, padding and documents."""

from __future__ import annotations

import pytest
import torch
from small import BLOCK, make_batch, make_peers, make_rows, make_tokenizer
from transformers import MistralConfig, MistralForCausalLM, ModernBertConfig, ModernBertForMaskedLM

from wmlkit.errors import UserError
from wmlkit.evaluate import last_layer
from wmlkit.forward import kl_positions
from wmlkit.models import (
    body_parameters,
    build_model,
    hidden_at,
    hidden_states,
    lm_logits,
    load_model,
    max_length,
    window_length,
)
from wmlkit.settings import ModelConfig
from wmlkit.shapes import Student

FAMILIES = {"roberta": "mlm", "modernbert": "mlm", "gpt2": "clm", "llama": "clm"}


def build(family: str, seed: int = 0, **shape: int):
    student = Student(**({"num_layers": 2, "num_heads": 2, "hidden_size": 16, "intermediate_size": 32} | shape))
    return build_model(student, ModelConfig(family=family, objective=FAMILIES[family]), make_tokenizer(), BLOCK, seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_trunk_and_head_make_the_whole_model(family):
    model = build(family).eval()
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    with torch.no_grad():
        torch.testing.assert_close(lm_logits(model, hidden_states(model, ids)), model(input_ids=ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_fixes_the_weights_and_leaves_the_global_generator_alone(family):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, other, third = build(family, 1), build(family, 1), build(family, 2)
    assert torch.equal(torch.rand(3), expected)
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.get_input_embeddings().weight, third.get_input_embeddings().weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dropout_of_the_settings_is_every_dropout_of_the_trunk(family):
    student, others = Student(2, 2, 16, 32), ("classifier_dropout", "summary_first_dropout")  # of heads for other tasks
    settings = ModelConfig(family=family, objective=FAMILIES[family], dropout=0.3)
    model = build_model(student, settings, make_tokenizer(), BLOCK, 0)
    found = {key: value for key, value in model.config.to_dict().items() if "drop" in key and key not in others}
    assert found and set(found.values()) == {0.3}, found
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} <= {0.3}


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_tied_and_the_longest_input_fits(family):
    model = build(family)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert max_length(model) == BLOCK
    hidden_states(model, torch.full((1, BLOCK), 5))
    assert body_parameters(model) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_side_by_side_do_not_see_each_other(family):
    """A packed row gives each document the hidden states that it has alone."""
    model = build(family).double().eval()
    rows = make_rows(3)
    ids, document, _ = rows.take(0, 4)
    batch = rows.masked_batch(0, 4, 4, 0.3) if FAMILIES[family] == "mlm" else rows.causal_batch(0, 4)
    with torch.no_grad():
        packed = hidden_states(model, torch.from_numpy(ids), batch.attention_mask, batch.position_ids)
        for b in range(4):
            for piece in {int(d) for d in document[b] if d >= 0}:
                inside = torch.from_numpy(document[b] == piece)
                alone = hidden_states(model, torch.from_numpy(ids[b])[inside][None])
                torch.testing.assert_close(packed[b][inside], alone[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_at_positions_equals_head_everywhere(family):
    peer = make_peers(family)[0].eval()
    batch = make_batch(family, seed=1)
    with torch.no_grad():
        hidden = hidden_states(peer.model, batch.input_ids, batch.attention_mask, batch.position_ids)
        everywhere = lm_logits(peer.model, hidden).flatten(0, 1)
        torch.testing.assert_close(peer(batch, batch.scored), everywhere[batch.scored])
        index, scored = kl_positions(batch, "all")
        assert len(index) == batch.tokens and int(scored.sum()) == len(batch.scored)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("masked", [True, False])
def test_hidden_states_at_positions_are_those_of_the_whole_model(family, masked):
    """Also their gradients: the short way through the last layer leaves nothing out."""
    model = build(family).double()
    batch = make_batch(family, seed=1)
    mask = batch.attention_mask if masked else None
    index = batch.scored[::2]
    whole = hidden_states(model, batch.input_ids, mask, batch.position_ids).flatten(0, 1)[index]
    short = hidden_at(model, batch.input_ids, mask, batch.position_ids, index)
    torch.testing.assert_close(short, whole, rtol=1e-10, atol=1e-10)
    trunk = list(model.base_model.parameters())
    expected = torch.autograd.grad(whole.square().sum(), trunk, allow_unused=True)
    found = torch.autograd.grad(short.square().sum(), trunk, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_modernbert_attends_to_the_whole_row_with_and_without_a_mask():
    """Its layers with windows must not cut a row: a mask of ones and none at all are the same."""
    model = build_model(
        Student(3, 2, 16, 32), ModelConfig(family="modernbert", objective="mlm"), make_tokenizer(), 160, 0
    ).eval()
    ids = torch.arange(160)[None] % 16 + 5
    everything = torch.ones(1, 1, 160, 160, dtype=torch.bool)
    positions = torch.arange(160)[None]
    with torch.no_grad():
        one, other = (hidden_states(model, ids, mask, positions) for mask in (everything, None))
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(hidden_at(model, ids, None, positions, torch.tensor([3])), one[0, 3:4])


def windowed(family: str, vocab_size: int, **window):
    """A tiny model whose layers, or every other one of them, have a sliding window."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(vocab_size=vocab_size, num_key_value_heads=2, **shape, **window))
    special = {name: 0 for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")}
    return ModernBertForMaskedLM(ModernBertConfig(vocab_size=vocab_size, **special, **shape, **window))


@pytest.mark.parametrize(
    ("family", "window", "longest"),
    [
        ("modernbert", {"local_attention": 16}, 9),  # eight tokens to each side
        ("modernbert", {"local_attention": 16, "layer_types": ["full_attention"] * 2}, 1 << 30),
        ("mistral", {"sliding_window": 8}, 8),  # seven before, and the token itself
        ("mistral", {"sliding_window": None}, 1 << 30),
    ],
)
@torch.no_grad()
def test_a_mask_of_our_own_loses_the_window_on_longer_rows_only(family, window, longest):
    model = windowed(family, 100, **window).eval()
    assert window_length(model) == longest
    longest = min(longest, 20)
    for length in (longest, longest + 1):
        ids = torch.arange(1, length + 1)[None]
        seen = torch.ones(1, 1, length, length, dtype=torch.bool)
        seen = seen.tril() if family == "mistral" else seen
        parts = lm_logits(model, hidden_states(model, ids, seen, torch.arange(length)[None]))
        same = torch.allclose(parts, model(ids).logits, rtol=0, atol=1e-6)
        assert same == (length <= window_length(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_that_pads_and_ends_texts_is_learnt_as_an_input_too(family):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    student = Student(num_layers=1, num_heads=2, hidden_size=16, intermediate_size=32)
    model = build_model(student, ModelConfig(family=family, objective=FAMILIES[family]), tokenizer, BLOCK, seed=0)
    embedding = model.get_input_embeddings().weight
    assert embedding[tokenizer.eos_token_id].norm() > 0
    hidden_states(model, torch.tensor([[tokenizer.eos_token_id, 5, 6]]))[0, 0, 0].backward()
    assert (embedding.grad[tokenizer.eos_token_id] != 0).any()


def test_padding_that_costs_roberta_rows_of_positions_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    student = Student(num_layers=1, num_heads=2, hidden_size=16, intermediate_size=32)
    with pytest.raises(UserError, match=f"the id {tokenizer.pad_token_id}, and RoBERTa keeps .* at most 15; set model"):
        build_model(student, ModelConfig(), tokenizer, BLOCK, seed=0)
    build_model(student, ModelConfig(family="modernbert"), tokenizer, BLOCK, seed=0)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match="width 16 cannot have 3 heads"):
        build("roberta", num_heads=3)


def test_weights_that_could_run_code_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not opened")
    with pytest.raises(UserError, match="safetensors only"):
        load_model(tmp_path, "mlm")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_no_keys_and_values_are_kept_where_no_text_is_generated(family):
    (peer,) = make_peers(family, ((1, 8),))
    assert peer.model.config.use_cache  # else this would say nothing
    kept, ids = [], make_batch(family, 0).input_ids
    peer.model.base_model.register_forward_hook(lambda *found: kept.append(found[-1].past_key_values))
    hidden_states(peer.model, ids)
    last_layer.logits_of(peer.model, ids)
    assert kept == [None, None]
