"""The replay of the released code: every number that is known of it, and what a single defect does."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import make_batch, make_peers, make_tokenizer
from torch.nn import functional as F

from wmlkit import bilevel, losses, paths
from wmlkit.config import load_preset
from wmlkit.data.tokenizer import train_tokenizer
from wmlkit.device import setup
from wmlkit.errors import UserError
from wmlkit.forward import inner_batch, outer_batch, parameters_of
from wmlkit.replay import replays as replay
from wmlkit.replay import steps as replay_steps
from wmlkit.replay import tables as replay_tables
from wmlkit.replay.released import (
    FINDINGS,
    OF_TEACHER,
    Case,
    Defects,
    cases,
    epoch_learning_rate,
    loss_options,
    outer_step_size,
    released_outer_gradient,
)
from wmlkit.replay.released_data import (
    digit_pair_ids,
    one_stream,
    possible_pairs,
    rows_of_pairs,
    widened,
    without_capitals,
)
from wmlkit.study_settings import ReplayConfig
from wmlkit.train import State
from wmlkit.updates import sgd_update

ALL = cases()["all"].defects
RELEASED = {"replay__num_epochs": 50, "replay__warmup_epochs": 5, "replay__decay_epochs": 50}
TINY = {"data.words": 4000, "data.dev_words": 1500, "replay.per_paradigm": 1}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


def config(**changes):
    return load_preset("smoke", TINY | {key.replace("__", "."): value for key, value in changes.items()})


def rows(out, name):
    (folder,) = (out / "smoke" / "replay").glob(f"{name}-s0-*")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- D1: the digit pairs ---


def test_digit_pairs_by_hand():
    text = "[0, 12, 345]"
    expected = [ord(a) + 256 * ord(b) for a, b in zip(text[::2], text[1::2], strict=True)]
    assert digit_pair_ids([0, 12, 345]).tolist() == expected
    assert expected[0] == ord("[") + 256 * ord("0") == 12379
    assert digit_pair_ids([0, 12, 34]).tolist() == expected[:-1]  # odd: the bracket is lost


def test_digit_pairs_of_a_vocabulary_of_50265():
    """A text as the released code sees it: one start token, then ids up to 50,264, and an odd number of characters."""
    rng = np.random.default_rng(0)
    ids = [0, *rng.integers(5, 50_265, 60_000).tolist(), 2]
    if len(str(ids)) % 2 == 0:
        ids.insert(1, 100)  # five characters more, so that their number is odd
    assert len(str(ids)) % 2 == 1
    pairs = digit_pair_ids(ids)
    assert (pairs.min(), pairs.max()) == (8236, 14649)
    # two digits 100, digit and comma 10, comma and space 1, space and digit 9 (no id begins with 0), the first one
    assert len(np.unique(pairs)) == 121
    assert 3.2 < len(pairs) / len(ids) < 3.5


@given(st.lists(st.integers(0, 50_264), min_size=1, max_size=40))
def test_every_pair_is_possible_and_its_characters_are_the_text(ids):
    pairs = digit_pair_ids(ids)
    assert np.isin(pairs, possible_pairs()).all()
    text = str(ids)
    assert pairs.tobytes().decode() == text[: len(text) // 2 * 2]


def test_pairs_beyond_the_vocabulary_get_entries_of_their_own():
    tokenizer = make_tokenizer()
    wide = widened(tokenizer)
    assert len(wide) == len(tokenizer) + len(possible_pairs())
    places = rows_of_pairs(possible_pairs(), len(tokenizer))
    assert places.tolist() == list(range(len(tokenizer), len(wide)))
    assert wide.convert_ids_to_tokens(int(places[0])) == "<pair 8236>"
    assert rows_of_pairs(possible_pairs(), 50_265).tolist() == possible_pairs().tolist()  # as in the released code
    assert tokenizer("the cat")["input_ids"] == wide("the cat")["input_ids"]


def test_one_stream_has_one_start_and_one_end():
    tokens = np.array([0, 7, 8, 2, 9, 2, 0, 7, 2], dtype=np.uint16)
    assert one_stream(tokens, make_tokenizer()).tolist() == [0, 7, 8, 9, 7, 2]


def test_capitals_are_lost_when_a_lower_case_vocabulary_is_reloaded():
    tokenizer = train_tokenizer(["the senator hugged mary ."] * 5, 400, lowercase=True, nfkc=True)
    text = "The Senator hugged Mary."
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text.lower()
    reloaded = without_capitals(tokenizer)
    assert reloaded.decode(reloaded(text)["input_ids"], skip_special_tokens=True) == "he enator hugged ary."


# --- the loss ---


def test_kl_is_512_times_the_per_token_value():
    torch.manual_seed(0)
    batch_size, tokens = 3, 512
    logits = [torch.randn(batch_size * tokens, 7, dtype=torch.float64) for _ in range(4)]
    targets = torch.randint(7, (batch_size * tokens,))
    scored = torch.rand(batch_size * tokens) < 0.15
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    for form in (losses.mutual_loss, losses.mutual_loss_reference):
        released = form(logits, targets, weights, loss_options(0.5, ALL), batch_size, scored)
        described = form(logits, targets, weights, loss_options(0.5, Defects(all_positions=True)), batch_size, scored)
        assert (released.kl / described.kl).tolist() == pytest.approx([512.0] * 4, rel=1e-12)
        assert torch.equal(released.ce, described.ce)


def test_released_loss_by_its_formula():
    """(1 - a) sum w_i CE_i + a sum_i sum_j w_j KL(P_j || P_i), KL as torch's batchmean over (B, T, V)."""
    torch.manual_seed(1)
    logits = [torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    targets, scored = torch.randint(7, (10,)), torch.arange(10) % 3 == 0
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    flat = [z.view(10, 7) for z in logits]
    ce = torch.stack([F.cross_entropy(z[scored], targets[scored]) for z in flat])
    expected = 0.5 * (weights * ce).sum()
    for i, student in enumerate(logits):
        for j, target in enumerate(logits):
            if i != j:
                kl = F.kl_div(student.log_softmax(-1), target.softmax(-1), reduction="batchmean")
                expected = expected + 0.5 * weights[j] * kl
    released = losses.mutual_loss(flat, targets, weights, loss_options(0.5, ALL), 2, scored)
    assert torch.allclose(released.total, expected, rtol=1e-12)
    gradients = torch.autograd.grad(released.total, logits), torch.autograd.grad(expected, logits)
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


# --- the schedules ---


def test_outer_schedule():
    """Known to four decimals. At epoch 15 that is 0.221048: the 0.2211 of the notes was rounded twice."""
    sizes = [outer_step_size(epoch) for epoch in range(0, 50, 5)]
    known = [0, 0.25, 0.2425, 0.2211, 0.1881, 0.1477, 0.1048, 0.0644, 0.0315, 0.0100]
    assert sizes == pytest.approx(known, abs=6e-5)
    assert [round(size, 4) for i, size in enumerate(sizes) if i != 3] == known[:3] + known[4:]
    assert sizes[3] == pytest.approx(0.0025 + 0.2475 * 0.5 * (1 + np.cos(np.radians(40))), rel=1e-12)


def test_learning_rates():
    rates = [epoch_learning_rate(epoch) for epoch in range(50)]
    assert rates[0] == 0 and sum(rate > 0 for rate in rates) == 49
    assert rates[1] == pytest.approx(2e-4) and max(rates) == rates[5] == pytest.approx(1e-3)
    assert rates[49] == pytest.approx(1.01e-4, abs=5e-7)
    assert epoch_learning_rate(80) == epoch_learning_rate(50) == pytest.approx(1e-4)


def test_released_sizes_are_the_defaults_and_the_preset():
    released = load_preset("released")
    assert released.replay == ReplayConfig(per_paradigm=released.replay.per_paradigm)
    assert (released.data.block_size, released.data.vocab_size, released.mutual.alpha) == (512, 50_265, 0.5)
    assert released.train.grad_clip == 1.0
    assert list(FINDINGS) == [field.name for field in fields(Defects)]


# --- the outer problem ---


def setting(defects, **changes):
    batches = [make_batch("roberta", seed) for seed in (3, 4)]
    first, second = (lambda step, ratio, b=b: b for b in batches)
    used = config(train__lr=1e-3, **changes)
    return replay_steps.Setting(used, Case(defects=defects), setup("fp32", 1), first, second, second)


def state(count=2):
    shapes = ((1, 8), (2, 16), (1, 16), (2, 8))[:count]
    return State(make_peers("roberta", shapes), [[] for _ in shapes], torch.full((count,), 1 / count).double())


def test_hypergradient_is_ce_over_60():
    """All switches on: what is stepped with is CE_i / 60 of each micro-batch, to the last bit."""
    peers, given = state(4), setting(ALL, replay__micro_batches=60, **RELEASED)
    batch = given.outer(0, 0.15)
    with torch.no_grad():
        logits = [peer(batch, batch.scored) for peer in peers.peers]
    ce = torch.stack([F.cross_entropy(z, batch.targets[batch.scored], reduction="none").mean() for z in logits])
    explicit, correction = replay_steps.outer_parts(peers, batch, batch, given, 1e-3)
    assert torch.equal(correction, torch.zeros(4)) and torch.equal(explicit, ce)
    assert torch.equal(released_outer_gradient(explicit, 60, 1.0), ce / 60)
    weights = peers.peer_weights
    row = replay_steps.outer_problem(peers, given, 5, 1e-3)
    assert row["gradient"] == (ce / 60).tolist() and row["correction"] == 0 and row["step_size"] == pytest.approx(0.25)
    expected = weights * torch.exp(-0.25 * ce.double())  # 60 steps, each over 60
    assert torch.allclose(peers.peer_weights, expected / expected.sum(), atol=1e-7)


def test_without_the_cut_there_is_a_correction():
    given = setting(Defects())
    peers = state()
    explicit, correction = replay_steps.outer_parts(peers, given.train(0, 0.3), given.outer(0, 0.3), given, 1e-2)
    assert (correction != 0).all()
    parameters = [parameters_of(peer) for peer in peers.peers]
    whole, _ = bilevel.hypergradient(
        parameters,
        peers.peer_weights.float(),
        inner_batch(peers.peers, given.train(0, 0.3), "scored"),
        outer_batch(peers.peers, given.outer(0, 0.3)),
        given.options,
        updates=[sgd_update(own, 1e-2) for own in parameters],
    )
    assert torch.allclose(explicit + correction, whole, atol=1e-6)


def test_clamp_freezes_the_weights_when_all_gradients_are_above_it():
    """The released code with fewer than about ten micro-batches: CE_i / 2 is above 1 for every peer."""
    assert released_outer_gradient(torch.tensor([8.0, 7.0, -3.0]), 2, 1.0).tolist() == [1.0, 1.0, 0.0]
    assert released_outer_gradient(torch.tensor([8.0, -3.0]), 2, 0.0).tolist() == [4.0, -1.5]
    frozen, free = state(), state()
    replay_steps.outer_problem(frozen, setting(ALL, replay__micro_batches=2), 2, 1e-3)
    replay_steps.outer_problem(free, setting(Defects(scaled_steps=True), replay__micro_batches=2), 2, 1e-3)
    assert frozen.peer_weights.tolist() == [0.5, 0.5] != free.peer_weights.tolist()


def test_the_wrong_sign_is_the_mirror_image():
    right, wrong = (
        replay_steps.outer_problem(state(), setting(d), 2, 1e-2) for d in (Defects(), Defects(wrong_sign=True))
    )
    assert right["gradient"] != wrong["gradient"] and right["correction"] == wrong["correction"] > 0
    explicit, correction = replay_steps.outer_parts(
        state(), setting(Defects()).train(0, 0), setting(Defects()).outer(0, 0), setting(Defects()), 1e-2
    )
    assert right["gradient"] == pytest.approx((explicit + correction).tolist(), rel=1e-6)
    assert wrong["gradient"] == pytest.approx((explicit - correction).tolist(), rel=1e-6)
    assert right["correction"] == pytest.approx(float(correction.norm() / explicit.norm()), rel=1e-6)


# --- whole replays ---


def test_all_defects_at_the_released_number_of_epochs(out):
    settings = config(replay__weight_update_every=5, **RELEASED)
    done = replay.run(settings, out, "all", cases()["all"])
    assert (done["updates"], done["updates_with_lr"]) == (50, 49)
    assert done["correction"] == 0 and done["defects"] == [name for name in FINDINGS if name not in OF_TEACHER]
    assert done["lowest_id"] == 8236 and done["distinct_ids"] in (121, 122)
    # the closing bracket is the only pair above; it is read where the text has an even number of characters
    assert done["highest_id"] == 14_649 or done["highest_id"] == ord("2") + 256 * ord("]")
    metrics = rows(out, "all")
    outer = [row["outer"] for row in metrics if row["outer"]]
    assert [round(row["step_size"], 4) for row in outer][:4] == [0, 0.25, 0.2425, 0.221] and len(outer) == 10
    assert metrics[0]["peer_weights"] == [0.5, 0.5] and [row["lr"] for row in metrics[:2]] == [[0.0], [2e-4]]


def test_the_described_method_learns_and_digit_pairs_teach_nothing_of_text(out):
    settings = config(replay__num_epochs=10, replay__warmup_epochs=1, replay__decay_epochs=10, replay__lr=0.01,
                      replay__micro_batches=10, replay__weight_update_every=10, replay__batch_size=8)  # fmt: skip
    records = replay.run_all(settings, out, ["none", "digit_pairs"])
    table = replay_tables.replay_table(records).set_index("case")
    twice = replay.run_all(settings.updated({"replay.seeds": (0, 0)}), out, ["none"])
    assert len(twice) == 1  # a seed counts once, or the intervals would be too narrow
    none, pairs = table.loc["none"], table.loc["digit_pairs"]
    assert none["untrained_ce"] == pytest.approx(pairs["untrained_ce"], rel=1e-6)
    assert none["untrained_ce"] == pytest.approx(np.log(600 + len(possible_pairs())), abs=0.3)
    assert none["dev_ce"] < none["untrained_ce"] - 1
    assert pairs["train_ce"] < pairs["untrained_ce"] - 1  # it does learn: the digits
    assert pairs["dev_ce"] > pairs["untrained_ce"] - 0.1
    assert pairs["lowest_id"] == 8236 and none["highest_id"] < 600


def test_a_replay_is_kept_and_repeats_itself(tmp_path, monkeypatch):
    first = replay.run(config(), tmp_path, "none", Case())
    (folder,) = (tmp_path / "smoke" / "replay").glob("none-s0-*/done.json")
    assert paths.read_json(folder) == first
    with monkeypatch.context() as patched:
        patched.setattr(replay, "build_state", lambda *_: pytest.fail("trained again"))
        assert replay.run(config(), tmp_path, "none", Case()) == first
    folder.unlink()
    again = replay.run(config(), tmp_path, "none", Case())
    assert {**again, "seconds": 0} == {**first, "seconds": 0}


def test_unknown_case(out):
    with pytest.raises(UserError, match="there is no case 'digits'; expected some of none, digit_pairs"):
        replay.run_all(config(), out, ["digits"])
