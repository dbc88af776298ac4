"""Models from outside count positions, and end their window, as their own family does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    PreTrainedModel,
    XLNetConfig,
    XLNetLMHeadModel,
)

from wmlkit.data.tokenizer import train_tokenizer
from wmlkit.evaluate import score_sentences
from wmlkit.models import hidden_states, max_length

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def masked(family: str) -> PreTrainedModel:
    """A small model of 40 position embeddings, with weights large enough to tell positions apart."""
    more: dict[str, Any] = {
        "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
        "longformer": {"attention_window": [8, 8]},
        "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    }
    shape = {"vocab_size": 60, "pad_token_id": 3, "max_position_embeddings": 40, **SMALL, **more.get(family, {})}
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(family, **shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.4)
    return model  # type: ignore[no-any-return]


FIRST = {"bert": 40, "roberta": 36, "esm": 36, "ibert": 36, "longformer": 36, "luke": 36, "xmod": 36, "mpnet": 38}


@pytest.mark.parametrize(("family", "longest"), [*FIRST.items(), ("mra", 40), ("nystromformer", 40), ("yoso", 40)])
@torch.inference_mode()
def test_positions_and_window_are_those_of_the_family(family: str, longest: int) -> None:
    model = masked(family)
    ids = torch.arange(10, 18)[None]
    alone = hidden_states(model, ids)
    given = hidden_states(model, ids, torch.ones_like(ids), torch.arange(8)[None])
    torch.testing.assert_close(given, alone, atol=1e-5, rtol=1e-5)
    assert max_length(model) == longest
    model(input_ids=torch.full((1, longest), 10))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 10))


def test_a_model_without_a_limit_has_no_window() -> None:
    tokenizer = train_tokenizer(["the cat sleeps"], 262)
    model = XLNetLMHeadModel(XLNetConfig(vocab_size=len(tokenizer), d_model=16, n_layer=1, n_head=2, d_inner=24))
    assert max_length(model) == 1 << 30
    assert np.isfinite(score_sentences(model, tokenizer, ["The cat sleeps."])).all()
