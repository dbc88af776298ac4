"""Where evaluation computes, and what is not asked of every device."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import make_batch, make_peers, make_tokenizer

from wmlkit import device, environment, paths
from wmlkit.config import load_preset
from wmlkit.data.tokenizer import save_tokenizer
from wmlkit.errors import UserError
from wmlkit.evaluate import glue, language_modelling, minimal_pairs, target
from wmlkit.evaluate.glue import GlueOptions
from wmlkit.evaluate.scoring import score_encoded
from wmlkit.evaluate.spans import Encoded
from wmlkit.evaluate.target import evaluate_target
from wmlkit.run_files import FORMAT

CARD = torch.device("cuda", 7)


@pytest.fixture
def run(tmp_path):
    """A run folder of one peer, its exported model, and a suite of one pair."""
    folder, tokenizer = tmp_path / "wml-p1-s0-00000000", make_tokenizer()
    (peer,) = make_peers("roberta", ((1, 8),))
    peer.model.save_pretrained(paths.peer(folder, 1))
    save_tokenizer(tokenizer, paths.peer(folder, 1))
    paths.write_json(folder / "config.json", {"format": FORMAT, "config": {"model": {"objective": "mlm"}}})
    paths.write_json(folder / "done.json", {"peer_weights": [1.0], "best_peer": 1})
    pair = {"sentence_good": "the cat sleeps", "sentence_bad": "the cat sleep"}
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "agreement.jsonl").write_text(json.dumps(pair) + "\n")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "simple_wiki.dev").write_text("the cat sleeps\nthe dogs sleep\n")
    return folder


@pytest.mark.parametrize("suite", ["toy", "lm"])
@pytest.mark.parametrize("model", [".", "peers/peer_1"])
def test_what_is_loaded_for_an_evaluation_goes_to_the_best_device(run, suite, model, tmp_path, monkeypatch):
    """A run's peers and a model folder: a card is not left idle because nobody named it."""
    seen = []

    def scored(peers, mask_id, encoded, *, weights, device, **_):
        seen.append(device)
        return np.zeros((len(peers) + len(weights), len(encoded)))

    for module in (minimal_pairs, language_modelling):
        monkeypatch.setattr(module, "score_encoded", scored)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: CARD)
    config = load_preset("nursery", {"evaluate.pairs": str(tmp_path)})
    corpus = tmp_path / "text" if suite == "lm" else None
    evaluate_target(run / model, suite, config, tmp_path, corpus=corpus, glue=GlueOptions())
    assert set(seen) == {CARD}


@pytest.mark.parametrize("model", [".", "peers/peer_1"])
def test_fine_tuning_goes_there_too(run, model, tmp_path, monkeypatch):
    seen = []

    def tuned(*_, device, **__):
        seen.append(device)
        return {"suite": "glue", "members": []}

    for module in (glue, target):
        monkeypatch.setattr(module, "evaluate_glue", tuned)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: CARD)
    config = load_preset("nursery", {"evaluate.pairs": str(tmp_path)})
    evaluate_target(run / model, "glue", config, tmp_path, glue=GlueOptions())
    assert seen == [CARD]


def test_without_a_card_it_is_the_processor(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    assert device.best_device() == torch.device("cpu")


def test_a_card_gets_larger_calls(monkeypatch):
    """Tokens a forward pass where nobody says: what suits the device. The stand-in for a card is told by its type."""
    from wmlkit.evaluate import scoring

    budgets = []
    monkeypatch.setattr(scoring, "_add_scores", lambda *arguments: budgets.append(arguments[-1]))
    monkeypatch.setattr(scoring, "logits_at", lambda model: None)
    encoded = [Encoded((0, 5, 2), (1,), (-1, 0, -1))]
    for kind, given in (("cpu", None), ("mps", None), ("cuda", None), ("cuda", 64), ("meta", None)):
        peer = SimpleNamespace(
            device=torch.device(kind), to=lambda _: None, training=False, eval=lambda: None, train=lambda _: None
        )
        score_encoded([peer], 4, encoded, objective="mlm", weights=np.zeros((0, 1)), token_budget=given)
    assert budgets == [8_192, 32_768, 131_072, 64, 8_192]


@pytest.mark.parametrize(("kind", "asked"), [("mps", {}), ("cuda", {"non_blocking": True})])
def test_a_batch_on_its_way_to_a_device(kind, asked, monkeypatch):
    """Without waiting to CUDA only, from pinned memory: to MPS such a copy may read what was given back."""
    seen, pinned = [], []
    batch = make_batch("roberta", 0)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, **options: seen.append((device, options)) or tensor)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(1) or tensor)
    batch.to(torch.device(kind))
    assert len(seen) >= 5 and all(found == (torch.device(kind), asked) for found in seen)
    assert len(pinned) == (len(seen) if kind == "cuda" else 0)


def test_no_value_becomes_float64_before_it_leaves_its_device():
    """Apple's MPS has no float64, and a loss of a step lies on the device: first to the CPU, then to float64."""
    wrong = re.compile(r"\.double\(\)\.(cpu|sum|mean|item|tolist)\(|to\(torch\.float64\)")
    sources = (paths.REPOSITORY / "wmlkit").rglob("*.py")
    found = [
        f"{file.name}: {line.strip()}"
        for file in sources
        for line in file.read_text(encoding="utf-8").splitlines()
        if wrong.search(line) and ".cpu().double()" not in line
    ]
    assert found == []


def test_only_what_lies_on_the_processor_is_pinned_and_whole(monkeypatch):
    """A view that repeats its memory cannot be pinned, and neither can what is on a card already."""
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append(self.is_contiguous()) or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **options: calls.append(options) or self)
    device.moved(torch.arange(4).expand(2, -1), torch.device("cuda"))
    assert calls == [True, {"non_blocking": True}]
    device.moved(torch.empty(2, device="meta"), torch.device("cuda"))  # any device but the processor
    assert calls[2:] == [{}]


def test_a_card_is_named_in_results(monkeypatch):
    """Runs on two kinds of card are not one row of a table of costs."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda of: "a card" if of == CARD else "another")
    there = device.Device(SimpleNamespace(num_processes=1), CARD, "bf16", "")
    assert environment.document(there)["device"] == "cuda, a card"
    assert there.name == "cuda, a card" and replace(there, device=torch.device("cpu")).name == "cpu"


def test_bf16_that_a_card_only_imitates_is_not_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert device.setup().precision == "fp32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert device.setup().precision == "bf16"


@pytest.mark.parametrize(("card", "mode"), [(True, 0), (False, 1)])
def test_deterministic_algorithms_are_asked_of_processors_alone(card, mode, monkeypatch):
    real = torch.accelerator.is_available
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: card)
    monkeypatch.setattr(device, "Accelerator", lambda **_: SimpleNamespace(device=torch.device("cpu")))
    device.setup()
    assert torch.get_deterministic_debug_mode() == mode
    monkeypatch.setattr(torch.accelerator, "is_available", real)
    device.setup()


def test_no_call_has_more_rows_than_attention_takes(monkeypatch):
    from wmlkit.evaluate import scoring

    monkeypatch.setattr(scoring, "MOST_ROWS", 3)
    sizes = []
    (peer,) = make_peers("gpt2", ((1, 8),))
    real = scoring.logits_at

    def counted(model):
        reader = real(model)
        return replace(reader, states=lambda ids, *more: sizes.append(len(ids)) or reader.states(ids, *more))

    monkeypatch.setattr(scoring, "logits_at", counted)
    encoded = [Encoded((0, 5, 6), (1, 2), (-1, 0, 0))] * 7
    score_encoded([peer.model], None, encoded, objective="clm", weights=np.zeros((0, 1)), token_budget=10**6)
    assert sizes == [3, 3, 1]


def test_two_workers_are_two_processes_and_one_is_this_one():
    assert list(device.side_by_side(os.getpid, [(), ()], 1)) == [os.getpid()] * 2
    assert os.getpid() not in device.side_by_side(os.getpid, [(), ()], 2)
    assert list(device.side_by_side(pow, [(2, 3), (3, 2), (5, 1)], 2)) == [8, 9, 5]  # in the order of the calls
    with pytest.raises(UserError, match="one of 2 processes side by side was ended from outside; .*study.workers=1"):
        list(device.side_by_side(os._exit, [(9,)], 2))  # as the system ends one where memory runs out
