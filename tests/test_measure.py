"""Losses on dev and held-out text: the same rows for every run, all of them at the end; what an outer step costs."""

from __future__ import annotations

import re

import pytest
import torch
from compare import rows

from wmlkit import paths, steps, train
from wmlkit.config import load_preset
from wmlkit.data.texts import MEASURED_TOKENS, open_texts
from wmlkit.device import CLEAR_REFS, forget_peak_memory, peak_memory
from wmlkit.errors import UserError
from wmlkit.losses import MutualOptions
from wmlkit.measure import AT_ONCE, measure

TINY = {"data.words": 4000, "data.dev_words": 3000, "train.steps": 4, "train.precision": "fp32"}


def opened(out, **overrides):
    """(configuration, texts, state, device) of a run that has not begun."""
    settings = load_preset("smoke", TINY | {key.replace("__", "."): value for key, value in overrides.items()})
    prepared = train.prepare(settings.data, out)
    tokenizer = train.load_tokenizer(prepared.folder / "tokenizer")
    device = train.setup("fp32", 1)
    students = train.students_of(settings, out, prepared, tokenizer)
    return settings, open_texts(settings, prepared, tokenizer), (students, tokenizer), device


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


def test_every_run_is_measured_on_the_same_rows(out):
    """Whatever its seed, its arm and the batches of its outer problem; what it trains on is its own."""
    _, one, _, _ = opened(out)
    _, other, _, _ = opened(out, train__seed=3, mutual__arm="distill", outer__batch_size=5, train__batch_size=8)
    for mine, others in ((one.dev, other.dev), (one.held_out, other.held_out)):
        assert (mine.batch_size, mine.rows) == (others.batch_size, others.rows)
        for number in range(mine.batches()):
            a, b = mine.source(number, 0.3), others.source(number, 0.3)
            assert torch.equal(a.input_ids, b.input_ids) and torch.equal(a.scored, b.scored)
    assert not torch.equal(one.outer(0, 0.3).input_ids[:5], other.outer(0, 0.3).input_ids)
    assert not torch.equal(one.train(0, 0.3).input_ids[:8], other.train(0, 0.3).input_ids)


def test_spans_are_masked_in_training_alone(out):
    """So losses of runs with and without them are on the same masks."""
    _, single, _, _ = opened(out)
    _, spans, _, _ = opened(out, train__mask_span=3)
    for usual, other in (
        (single.dev.source, spans.dev.source),
        (single.held_out.source, spans.held_out.source),
        (single.outer, spans.outer),
    ):
        assert torch.equal(usual(1, 0.3).input_ids, other(1, 0.3).input_ids)
    usual, other = single.train(1, 0.3), spans.train(1, 0.3)
    assert torch.equal(usual.targets, other.targets) and len(usual.scored) == len(other.scored)

    def neighbours(scored: torch.Tensor) -> int:
        return int((scored.diff() == 1).sum())

    assert neighbours(other.scored) > 1.5 * neighbours(usual.scored)


def test_the_batches_cover_what_was_asked_for(out):
    settings, texts, _, _ = opened(out)
    size = MEASURED_TOKENS // settings.data.block_size
    assert texts.dev.batch_size == size and texts.dev.rows > size
    assert [texts.dev.batches(count) for count in (1, size, size + 1)] == [1, 1, 2]
    assert texts.dev.batches() == texts.dev.batches(10**6) == -(-texts.dev.rows // size)


def test_the_end_is_measured_on_all_rows_and_the_way_on_some(out):
    settings, texts, (students, tokenizer), device = opened(out, train__eval_rows=1)
    state = train.build_state(settings, students, tokenizer, device)
    state.peers[1].model.eval()  # as a frozen teacher is
    state.peers[0].model.eval()
    with torch.no_grad():
        parts = []
        for number in range(texts.dev.batches()):
            batch = texts.dev.source(number, settings.train.mask_ratio).to(device.device)
            logits = state.peers[0](batch, batch.scored)
            targets = batch.targets[batch.scored]
            parts.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    state.peers[0].model.train()
    every, first = (measure(state, texts.dev, settings, device, count)[0][0] for count in (None, 1))
    assert every == pytest.approx(torch.cat(parts).mean().item(), rel=1e-5)
    assert first == pytest.approx(parts[0].mean().item(), rel=1e-5) and first != every
    assert [peer.model.training for peer in state.peers] == [True, False]
    folder = train.run(settings, out)
    done = paths.read_json(folder / "done.json")
    shorter = train.run(settings.updated({"train.final_eval_rows": 1}), out)
    assert shorter != folder and paths.read_json(shorter / "done.json")["dev_ce"] != done["dev_ce"]
    assert rows(shorter)[-1]["dev_ce"] == rows(folder)[-1]["dev_ce"] != done["dev_ce"]  # on the way, one batch each


def test_the_ensemble_is_measured_with_the_peers_weights(out):
    settings, texts, (students, tokenizer), device = opened(out)
    state = train.build_state(settings, students, tokenizer, device)
    state.log_weights = torch.tensor([0.9, 0.1], dtype=torch.float64).log()
    batch = texts.dev.source(0, settings.train.mask_ratio).to(device.device)
    with torch.no_grad():
        first, second = (peer(batch, batch.scored) for peer in state.peers)  # there is no dropout
    targets = batch.targets[batch.scored]
    wanted = torch.nn.functional.cross_entropy(0.9 * first + 0.1 * second, targets).item()
    found = measure(state, texts.dev, settings, device, 1)[1]
    assert found == pytest.approx(wanted, rel=1e-6)
    assert abs(found - torch.nn.functional.cross_entropy((first + second) / 2, targets).item()) > 1e-4


def test_what_a_card_is_given_at_once_is_measured_the_same(out, monkeypatch):
    """Several batches in one forward pass, the last group shorter; the batches' own masks."""
    settings, texts, (students, tokenizer), device = opened(out)
    state = train.build_state(settings, students, tokenizer, device)
    assert texts.dev.batches() > 2
    one_by_one = measure(state, texts.dev, settings, device, None)
    for at_once in (2, 100):
        monkeypatch.setitem(AT_ONCE, "cpu", at_once)
        each, ensemble = measure(state, texts.dev, settings, device, None)
        assert each == pytest.approx(one_by_one[0], rel=1e-6) and ensemble == pytest.approx(one_by_one[1], rel=1e-6)


def test_the_highest_memory_is_that_of_the_run(out, monkeypatch):
    """Not of what the process did before, such as a larger run or the training of a teacher."""
    forgotten = []
    monkeypatch.setattr(train, "forget_peak_memory", lambda device: forgotten.append(device))
    settings, _, _, device = opened(out, mutual__arm="distill", train__seed=9)
    train.run(settings, out)
    assert forgotten == 2 * [device.device]  # its teacher's run and its own


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="only Linux clears its record of the highest memory")
def test_memory_of_an_earlier_moment_is_forgotten():
    cpu = torch.device("cpu")
    block = torch.ones(100 * 2**20 // 4)  # 100 MiB, a mapping of its own that is given back at once
    with_it = peak_memory(cpu)
    del block
    assert peak_memory(cpu) > with_it - 1  # pages are counted in lots
    forget_peak_memory(cpu)
    assert peak_memory(cpu) < with_it - 90


def test_the_outer_problem_counts_as_reading(out):
    """8 outer steps of 16 rows: with one more pass allowed than that is of the held-out rows, and one less."""
    settings, texts, _, _ = opened(out, outer__every=2, outer__start=1, train__steps=17)
    reads = 8 * settings.outer.batch_size / texts.held_out.rows  # before steps 2, 4, ... 16
    assert reads > 1.5
    allowed = {"outer__every": 2, "outer__start": 1, "train__steps": 17, "data__max_passes": reads}
    opened(out, **allowed)
    less = allowed | {"data__max_passes": reads - 0.5}
    with pytest.raises(UserError, match=rf"read the held-out text {reads:.2f} times") as error:
        opened(out, **less)
    advice = re.search(r"raise outer\.every to (\d+) or more, or data\.held_out", str(error.value))
    assert advice is not None
    enough = int(advice.group(1))
    opened(out, **less | {"outer__every": enough})  # who follows it is not refused again, and it asks for no more
    with pytest.raises(UserError, match="read the held-out text"):
        opened(out, **less | {"outer__every": enough - 1})
    with pytest.raises(UserError, match="lower outer.batch_size, or raise data.held_out"):
        opened(out, **less | {"outer__start": 0, "data__max_passes": 1.0, "outer__batch_size": 4000})
    opened(out, **less | {"mutual__arm": "dml"})
    alone = less | {"mutual__num_peers": 1}
    opened(out, **alone)  # one peer has no weight to learn
    with pytest.raises(UserError, match="read the held-out text"):  # but beside a frozen teacher it has
        opened(out, **alone | {"mutual__frozen_teacher": True})


@pytest.mark.parametrize(
    ("hypergradient", "options", "expected"),
    [
        ("direct", {}, 20.0),
        ("sgd", {}, 160.0),
        ("adam", {}, 160.0),
        ("sgd", {"kl_weight": "student", "ce_weight": "peer"}, 60.0),  # the step's own gradients tell
    ],
)
def test_the_cost_of_an_outer_step_by_hand(hypergradient, options, expected):
    class Of100:
        tokens = 100

    class Of60:
        tokens = 60

    assert steps.outer_tokens(Of100(), Of60(), hypergradient, MutualOptions(**options)) == expected


def test_a_run_that_was_stopped_knows_what_its_outer_steps_cost(out):
    settings = load_preset("smoke", TINY | {"mutual.arm": "wml", "outer.every": 2, "train.checkpoint_every": 3})
    settings = settings.updated({"train.log_every": 1})

    def stop(row):
        if row["step"] == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train.run(settings, out, progress=stop)
    resumed = paths.read_json(train.run(settings, out) / "done.json")
    whole = paths.read_json(train.run(settings, out, force=True) / "done.json")
    assert resumed["outer_tokens"] == whole["outer_tokens"] > 0 and resumed["flops"] == whole["flops"]


def test_outer_steps_are_in_the_flops_of_a_run(out):
    flops = {}
    for arm in ("dml", "wml"):
        settings = load_preset("smoke", TINY | {"mutual.arm": arm, "outer.every": 2})
        flops[arm] = paths.read_json(train.run(settings, out) / "done.json")["flops"]
    _, texts, _, _ = opened(out)
    tokens = sum(texts.train(step, 0.3).tokens for step in range(4))
    outer = sum(texts.train(step, 0.3).tokens + texts.outer(step // 2, 0.3).tokens for step in (0, 2))
    assert flops["wml"] / flops["dml"] == pytest.approx((tokens + outer) / tokens)
