"""The replay's teacher-guided mode, its scoring and search cases, and the tables and texts made from them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from small import make_batch, make_peers, make_tokenizer
from torch.func import functional_call
from torch.nn import functional as F

from wmlkit import losses, paths
from wmlkit.config import load_preset, preset_names
from wmlkit.data import nursery
from wmlkit.data.prepare import prepare
from wmlkit.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from wmlkit.deviations import MARK, fill_marks, measured
from wmlkit.device import setup
from wmlkit.errors import UserError
from wmlkit.evaluate.protocols import as_returned, released_order
from wmlkit.evaluate.suites import Pair
from wmlkit.forward import parameters_of
from wmlkit.guard import exclusive
from wmlkit.losses import MutualOptions
from wmlkit.models import build_model
from wmlkit.replay import replays as replay
from wmlkit.replay import scoring as replay_scoring
from wmlkit.replay import search as replay_search
from wmlkit.replay import steps as replay_steps
from wmlkit.replay import tables as replay_tables
from wmlkit.replay import teacher as replay_teacher
from wmlkit.replay.released import FINDINGS, IN_TURN, OF_TEACHER, Case, Defects, cases, repairs
from wmlkit.replay.released_data import widened
from wmlkit.shapes import Student
from wmlkit.state import State

TINY = {
    "data.words": 4000,
    "data.dev_words": 1500,
    "replay.per_paradigm": 1,
    "search.init_points": 3,
    "search.n_iter": 1,
}
DEVIATIONS = paths.REPOSITORY / "docs" / "deviations.md"
TEXT = ["the cat sees the dog", "the dog sleeps", "The dogs sleep near the house"] * 4


def config(**changes):
    return load_preset("smoke", TINY | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


def setting(case, **changes):
    batches = [make_batch("roberta", seed) for seed in (3, 4)]
    first, second = (lambda step, ratio, b=b: b for b in batches)
    return replay_steps.Setting(config(**changes), case, setup("fp32", 1), first, second, second)


def state(teacher=None, dtype=torch.float32):
    peers = make_peers("roberta", ((1, 8), (2, 16)), dtype=dtype)
    return State(peers, [[], []], torch.full((2,), 0.5).double(), teacher)


# --- the cases ---


def test_every_switch_stands_alone_in_one_row_and_the_modes_share_none():
    rows = cases()
    on = {name: [f.name for f in fields(Defects) if getattr(case.defects, f.name)] for name, case in rows.items()}
    assert on["none"] == on["distill"] == []
    for name in FINDINGS:
        assert on[name] == [name]
        assert rows[name].mode == ("teacher" if name in OF_TEACHER else "mutual")
    assert on["all"] == [name for name in FINDINGS if name not in OF_TEACHER]
    assert on["vanilla"] == list(OF_TEACHER) and set(on["vanilla"]) < set(on["vanilla_all"])


def test_repairs_lose_one_defect_a_row_from_all_to_none():
    rows = repairs()
    left = [{f.name for f in fields(Defects) if getattr(case.defects, f.name)} for case in rows.values()]
    assert left[0] == set(FINDINGS) - set(OF_TEACHER) and left[-1] == set()
    gone = [more - fewer for more, fewer in zip(left, left[1:], strict=False)]
    assert gone == [{name} for name in IN_TURN]
    named = [f"repaired_{name}" for name in IN_TURN[:-1]]
    assert list(rows) == ["all", *named, "none"] and {case.mode for case in rows.values()} == {"mutual"}
    assert rows["all"] == cases()["all"] and rows["none"] == cases()["none"]  # trained once


# --- the hypergradient without a defect ---


def test_without_a_defect_the_hypergradient_passes_finite_differences():
    """d L2(w, theta - gamma grad L1(theta; w)) / dw by central differences, float64, through the real inner step."""
    given, now, gamma = setting(Case()), state(dtype=torch.float64), 0.1
    batch, held_out = given.train(0, 0.3), given.outer(0, 0.3)
    explicit, correction = replay_steps.outer_parts(now, batch, held_out, given, gamma)
    theta = [{k: v.detach().clone().requires_grad_() for k, v in parameters_of(peer).items()} for peer in now.peers]
    targets = batch.targets[batch.scored]
    logits = [functional_call(peer, own, (batch, batch.scored)) for peer, own in zip(now.peers, theta, strict=True)]
    leaves = [leaf for own in theta for leaf in own.values()]

    def outer(weights):
        loss = losses.mutual_loss_reference(logits, targets, weights, given.options, len(batch.input_ids))
        gradients = iter(torch.autograd.grad(loss.total, leaves, retain_graph=True, allow_unused=True))
        moved = [{k: v if (g := next(gradients)) is None else v - gamma * g for k, v in own.items()} for own in theta]
        with torch.no_grad():
            z = [functional_call(p, own, (held_out, held_out.scored)) for p, own in zip(now.peers, moved, strict=True)]
            return F.cross_entropy(
                sum(w * each for w, each in zip(weights, z, strict=True)), held_out.targets[held_out.scored]
            )

    for m in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[m] = 1e-5
        difference = (outer(now.peer_weights + step) - outer(now.peer_weights - step)) / 2e-5
        assert float(explicit[m] + correction[m]) == pytest.approx(float(difference), abs=1e-6)
        assert abs(float(correction[m])) > 1e-4  # it would be missed


def test_what_the_clamp_does_to_both_objectives(out):
    """As entry 14 of docs/deviations.md says: it cuts the ensemble's gradients to 0, the weighted CE's to the clip,
    which is the replay's own: the preset may clip nothing."""
    unclipped = config(train__grad_clip=0.0)
    both = Case(defects=Defects(clamped=True, weighted_ce=True))
    for name, case in (("clamped", cases()["clamped"]), ("clamped_weighted_ce", both)):
        done = replay.run(unclipped, out, name, case)
        (file,) = (out / "smoke" / "replay").glob(f"{name}-s0-*/metrics.jsonl")
        rows = [json.loads(line)["outer"] for line in file.read_text().splitlines()]
        gradients = np.array([row["gradient"] for row in rows if row])
        clip = unclipped.replay.grad_clip
        assert (gradients < 0).all() if case is not both else (gradients > clip).all() and (gradients / 60 < clip).all()
        assert any(row["step_size"] > 0 for row in rows if row) and done["peer_weights"] == [0.5, 0.5]


# --- the teacher-guided mode ---


def test_a_teacher_is_shared_by_what_shapes_it_alone(out):
    """Not by what is the students' own, nor once more by the clip, which is in the settings of training too."""

    def folder(**changes):
        described = prepare(config().data, out)
        return replay_teacher._folder(replay_teacher._alone(config(**changes)), "described", out, described)

    assert folder() == folder(replay__grad_clip=9.0) == folder(replay__num_peers=3)
    assert len({folder(), folder(train__grad_clip=9.0), folder(replay__lr=0.1)}) == 3


def test_unmasked_text_is_the_text():
    batch = make_batch("roberta", 0)
    clean = replay_steps.unmasked(batch, "mlm")
    mask = make_tokenizer().mask_token_id
    assert (batch.input_ids == mask).any() and not (clean.input_ids == mask).any()
    assert torch.equal(clean.input_ids.flatten(), batch.targets)
    changed = clean.input_ids != batch.input_ids
    assert set(changed.flatten().nonzero()[:, 0].tolist()) == set(batch.scored.tolist())
    assert replay_steps.unmasked(make_batch("gpt2", 0), "clm").input_ids.shape == (4, 12)


def test_imitation_by_hand():
    """One position, the teacher at (1/2, 1/4, 1/4) and the student at (1/4, 1/4, 1/2): CE = 5/4 log 4 - 1/4 log 2."""
    teacher, student = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    student.requires_grad_()
    loss = replay_steps.imitation_loss([student], teacher, alpha=0.5)
    by_hand = 0.75 * math.log(4) + 0.25 * math.log(2)
    assert loss.ce.tolist() == pytest.approx([by_hand]) and loss.total.item() == pytest.approx(by_hand / 2)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert torch.allclose(gradient, 0.5 * torch.tensor([[-0.25, 0.0, 0.25]]), atol=1e-6)


def test_students_of_a_teacher():
    teacher = make_peers("roberta", ((1, 32),))[0]
    now = state(teacher)
    batch = make_batch("roberta", 3)
    targets, scored = batch.targets[batch.scored], batch.scored
    loss = replay_steps.inner_loss(now, batch, setting(Case("teacher")))
    logits = [peer(batch, scored) for peer in now.peers]
    described = losses.distillation_loss(logits, teacher(batch, scored), targets, MutualOptions(alpha=0.5))
    assert torch.allclose(loss.total, described.total) and (loss.kl > 0).all()
    # L8: clean input, every position, only the teacher's opinion
    loss = replay_steps.inner_loss(now, batch, setting(Case("teacher", Defects(unmasked_inputs=True))))
    clean = replace(batch, input_ids=batch.targets.view_as(batch.input_ids))
    soft = teacher(clean, batch.real).softmax(-1)
    expected = [F.cross_entropy(peer(clean, batch.real), soft) for peer in now.peers]
    assert torch.allclose(loss.total, 0.5 * sum(expected)) and len(batch.real) > len(scored)
    loss.total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(any(p.grad is not None for p in peer.parameters()) for peer in now.peers)


def test_a_vocabulary_numbered_as_robertas():
    own = train_tokenizer(TEXT, 300)
    other = replay_teacher.numbered_by_frequency(own, TEXT)
    names = other.convert_ids_to_tokens(list(range(len(other))))
    assert names[:4] == ["<s>", "<pad>", "</s>", "<unk>"] and names[-1] == "<mask>"
    assert other.mask_token_id == len(other) - 1 and other.bos_token_id == 0
    counts = np.bincount(
        [i for line in TEXT for i in other(line, add_special_tokens=False)["input_ids"]], minlength=len(other)
    )
    assert (np.diff(counts[4:-1]) <= 0).all() and counts[4] > 0
    for line in TEXT[:3]:
        pieces = [t.convert_ids_to_tokens(t(line)["input_ids"]) for t in (own, other)]
        assert pieces[0] == pieces[1] and other.decode(other(line)["input_ids"], skip_special_tokens=True) == line
    ids = np.array(own(TEXT[0])["input_ids"])
    assert replay_teacher.shared_meaning(own, own, ids) == 1
    # only <s> and </s> stand where they stood
    assert replay_teacher.shared_meaning(own, other, ids) == pytest.approx(2 / len(ids))


def test_the_other_tokenizer_cuts_lower_cased_text():
    foreign = replay_teacher.foreign_tokenizer(TEXT, 300)
    assert foreign.decode(foreign("The dogs")["input_ids"], skip_special_tokens=True) == "the dogs"


def test_teachers_are_trained_once_and_shared(out, monkeypatch):
    names = ["none", "distill", "unmasked_inputs", "foreign_teacher", "vanilla", "vanilla_all"]
    records = {record["case"]: record for record in replay.run_all(config(), out, names)}
    folders = {path.name.rpartition("-")[0] for path in (out / "smoke" / "replay").glob("teacher-*")}
    assert folders == {"teacher-described-s0", "teacher-foreign-s0"}
    described, foreign = records["distill"], records["foreign_teacher"]
    assert described["shared_meaning"] == 1 and foreign["shared_meaning"] < 0.4
    assert described["teacher_ce"] == pytest.approx(described["own_dev_ce"], rel=1e-5)
    assert foreign["teacher_ce"] > foreign["own_dev_ce"]  # what it has learned is of no use for these ids
    for name in names[1:]:
        assert records[name]["correction"] is None and records[name]["peer_weights"] is None
    assert records["unmasked_inputs"]["train_ce"] is None and foreign["train_ce"] is not None
    monkeypatch.setattr(replay_teacher, "_train", lambda *_: pytest.fail("trained again"))
    (out / "smoke" / "replay").joinpath(foreign["teacher_folder"], "record.json").read_text()
    table = replay_tables.replay_table(list(records.values())).set_index("case")
    assert table.loc[names[1:], ["correction", "weight_ratio"]].isna().all(axis=None)
    assert table.loc["vanilla", "peer_weights"] == "" and np.isnan(table.loc["vanilla", "kl_to_ce"])
    change = table["dev_ce"] - table.loc["distill", "dev_ce"]
    assert table.loc["vanilla", "change"] == pytest.approx(change["vanilla"])


def test_a_teacher_learns_from_the_text_whatever_the_students_share_of_it(out, tmp_path):
    """With alpha 1 the students have no cross-entropy; the teacher has nothing else."""
    prepared, case = prepare(config().data, out), Case("teacher")
    tokenizer = widened(load_tokenizer(prepared.folder / "tokenizer"))
    records = [
        replay_teacher.teacher_for(
            replay.replay_config(config(mutual__alpha=alpha, mutual__arm="distill"), case, 0),
            case,
            tmp_path / str(alpha),
            prepared,
            tokenizer,
            setup("fp32", 1),
        )[1]
        for alpha in (0.5, 1.0)
    ]
    assert records[0] == records[1]


def test_a_frozen_teacher_has_no_dropout_while_students_learn(out, monkeypatch):
    equal = []

    def epochs(now, given):
        batch = given.train(0, 0.3).to(now.models[0].device)
        equal.append(torch.equal(*(now.teacher(batch, batch.scored) for _ in range(2))))
        return replay_steps.epochs(now, given)

    monkeypatch.setattr(replay, "epochs", epochs)
    replay.run(config(model__dropout=0.1), out, "distill", Case("teacher"))
    assert equal == [True]


def test_dropout_of_a_replay_is_that_of_its_seed_whatever_was_drawn_before():
    def losses(before, **changes):
        now = state()
        for module in (module for peer in now.peers for module in peer.modules()):
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        torch.manual_seed(before)
        return [row["ce"] for row in replay_steps.epochs(now, setting(Case(), **changes))]

    assert losses(1) == losses(2) != losses(1, train__seed=5)


def given_model(folder, vocabulary):
    tokenizer = train_tokenizer(TEXT, 300)
    tokenizer.add_tokens([f"<{i}>" for i in range(vocabulary - len(tokenizer))])
    model = build_model(Student(1, 2, 16, 32), config().model, tokenizer, 64, seed=5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_given_teacher_is_used_if_it_has_the_ids(out, tmp_path):
    case, small, large = cases()["foreign_teacher"], given_model(tmp_path / "a", 500), given_model(tmp_path / "b", 900)
    with pytest.raises(UserError, match="has 500 logits; expected one for each of the tokenizer's 7.. tokens"):
        replay.run(config(replay__teacher=small), out, "foreign_teacher", case)
    first = replay.run(config(replay__teacher=large), out, "foreign_teacher", case)
    assert first["teacher"] == large and "teacher_folder" not in first
    assert first["dev_ce"] != replay.run(config(), out, "foreign_teacher", case)["dev_ce"]
    (tmp_path / "b" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no model.safetensors"):
        replay.run(config(replay__teacher=large), out, "foreign_teacher", case)


# --- scoring ---


def pair(good, bad, paradigm="p"):
    return Pair(paradigm, "term", "syntax", "1", good, bad, "", "", "x line 1")


CROSSING = [
    pair("this dog sleeps.", "this dog sleep."),
    pair("a b", "a c"),
    pair("many cats sleep.", "many cats sleeps."),
    pair("all cats sleep.", "all cats sleeps."),
]


def test_crossed_items_by_hand():
    items = replay_scoring.crossed_items([*CROSSING, pair("x sleep.", "x sleeps.", "other paradigm")])
    assert [(item.good_context, item.good, item.bad) for item in items] == [
        ("this dog", "sleeps.", "sleep."),
        ("many cats", "sleep.", "sleeps."),
    ]
    assert all(item.good_context == item.bad_context for item in items)
    assert replay_scoring.crossed_items([pair("one two", "one two three"), pair("a b", "c b")]) == []


def test_rules_on_scorers_that_are_no_models():
    items = replay_scoring.crossed_items(CROSSING)
    sentences = [text for item in items for text in (item.good, item.bad)]
    contexts = [(len(item.good_context.split()), item.good_context) for item in items for _ in range(2)]
    order = released_order(sentences, contexts)
    good, bad = as_returned(np.array([1.0, 2.0]), np.array([3.0, 4.0]), order)
    assert sorted([*good, *bad]) == [1, 2, 3, 4] and (list(good), list(bad)) != ([1, 2], [3, 4])
    perfect, constant = np.tile([1.0, 0.0], 2), np.zeros(4)
    got = {
        name: [replay_scoring._applied(rule, items, scores, order, 0)["accuracy"] for scores in (perfect, constant)]
        for name, rule in replay_scoring.RULES.items()
    }
    assert got["none"] == [100, 50] and got["official_ties"] == [100, 100]
    assert got["ordering"] == [50, 50]
    assert got["random_ties"][0] == 100 and got["random_ties"][1] in (0, 50, 100)
    many = [pair(f"{i} a", f"{i} b") for i in range(400)]
    drawn = replay_scoring._applied(replay_scoring.RULES["random_ties"], many, np.zeros(800), np.arange(800), 0)
    assert 40 < drawn["accuracy"] < 60 and drawn["ties"] == 100 and drawn["displaced"] == 0


def test_a_preset_with_averages_or_spans_is_replayed_without(out):
    """The replay takes its own steps: an average that those do not move would be reported as untrained peers.
    The released code masks each token for itself."""
    assert replay.run(config(train__ema_decay=0.9), out, "none", Case()) == replay.run(config(), out, "none", Case())
    for case in (Case(), Case("teacher")):
        train = replay.replay_config(config(train__ema_decay=0.9, train__mask_span=3), case, 0).train
        assert (train.ema_decay, train.mask_span) == (0, 1)


def test_the_weights_of_a_study_are_not_those_of_its_replays(out):
    """The released ones begin equal and have no floor."""
    given = config(mutual__peer_weights=[0.1, 0.9], outer__min_weight=0.4)
    used = replay.replay_config(given, Case(), 0)
    assert (used.mutual.peer_weights, used.outer.min_weight) == (None, 0)
    assert replay.run(given, out, "none", Case()) == replay.run(config(), out, "none", Case())


def test_a_teacher_with_another_tokenizer_has_a_row_for_every_id_of_a_given_one(tmp_path):
    """Also where that has more entries than `data.vocab_size`, which is of one that is trained."""
    lines = [line for domain in nursery.DOMAINS for line in nursery.lines(domain, 3000, 5)]
    save_tokenizer(train_tokenizer(lines, 1100), tmp_path / "tokenizer")
    given = config(data__tokenizer=str(tmp_path / "tokenizer"), replay__num_epochs=2, replay__decay_epochs=3)
    assert given.data.vocab_size < 1100
    record = replay.run(given, tmp_path, "foreign_teacher", cases()["foreign_teacher"])
    assert record["teacher"] == "foreign" and np.isfinite(record["dev_ce"]).all()


def test_scoring_table_of_the_replayed_peers(out):
    record = replay.run(config(), out, "none", Case())
    table = replay_tables.scoring_table([record, record | {"seed": 1}]).set_index(["items", "scorer", "case"])
    assert set(table.index.get_level_values("case")) == set(replay_scoring.RULES)
    assert (table["n_seeds"] == 2).all() and table["low"].isna().all()  # two equal seeds: no spread, no interval
    one = table.loc["pairs"]["accuracy"]
    assert one["perfect", "none"] == 100 and one["constant", "official_ties"] == 100 and one["constant", "none"] == 50
    assert (
        table.loc[("pairs", "peers", "none"), "finding"] == "" != table.loc[("pairs", "peers", "ordering"), "finding"]
    )
    peers = [row for row in record["scoring"] if row["scorer"].startswith("peer_") and row["items"] == "pairs"]
    plain = [row["accuracy"] for row in peers if row["case"] == "none"]
    assert len(plain) == 2 and one["peers", "none"] == pytest.approx(np.mean(plain))


# --- search ---


def test_released_settings_give_the_released_shapes_and_the_ffn_width_alone_does_it(out):
    table = replay_tables.search_table(replay_search.search_rows(config(), out))
    shapes = {
        name: list(zip(rows["num_layers"], rows["hidden_size"], strict=True)) for name, rows in table.groupby("case")
    }
    assert shapes["fixed_width"] == [(8, 512), (16, 256), (8, 256), (6, 256)]
    assert shapes["nonzero"] == shapes["none"] == [(12, 512), (6, 512), (20, 256), (16, 256)]
    own = table.set_index(["case", "peer"])
    assert own.loc[("none", 1), "counted"] == own.loc[("none", 1), "parameters"] > own.loc[("nonzero", 1), "counted"]
    assert set(own.loc["none", "target"]) == {62_348_716, 41_565_811, 31_174_358, 24_939_487}
    assert set(own.loc["fixed_width", "intermediate_size"]) == {3072}
    errors = 100 * (table["counted"] / table["target"] - 1)
    assert table["error_percent"].tolist() == pytest.approx(errors.tolist())
    off, least = ((own.loc[name, "counted"] - own.loc[name, "target"]).abs() for name in ("truncated", "none"))
    assert own.loc["truncated", "nearest"].tolist() == (off <= least).tolist()  # they differ in the method alone
    assert own.loc["none", "nearest"].all() and not own.loc["truncated", "nearest"].all()
    bayesian = table[table["method"] == "bayesian"]
    assert set(bayesian["case"]) == {"truncated", "all"} and (bayesian["evaluations"] == 4).all()
    assert dict(zip(table["case"], table["finding"], strict=True)) == {
        "none": "", "truncated": "S1", "fixed_width": "S3", "nonzero": "S4", "all": "",
    }  # fmt: skip


def test_a_search_is_kept(out, monkeypatch):
    first = replay_search.search_rows(config(), out)
    monkeypatch.setattr(replay_search, "search_case", lambda *_: pytest.fail("searched again"))
    assert replay_search.search_rows(config(), out) == first


# --- tables and the text ---


def record(case, seed, dev_ce, **more):
    numbers = {"distinct_ids": 9, "lowest_id": 0, "highest_id": 8, "updates": 5, "updates_with_lr": 4}
    values = {"train_ce": [1.0, 3.0], "untrained_ce": [7.0, 7.0], "accuracy": [50.0, 60.0], "peer_weights": [0.6, 0.4]}
    terms = {"kl_to_ce": 0.1, "correction": 0.0}
    return {"case": case, "seed": seed, "dev_ce": dev_ce, **numbers, **values, **terms} | more


def test_t9_over_seeds_by_hand():
    none = [record("none", seed, [value, value + 2]) for seed, value in enumerate((1.0, 2.0, 3.0))]
    other = [record("batchmean", seed, [value, value]) for seed, value in ((2, 4.5), (0, 2.0), (1, 3.5))]
    table = replay_tables.replay_table([*none, *other]).set_index("case")
    row = table.loc["none"]
    half = 4.302653 / math.sqrt(3)  # t(0.975, 2), standard deviation 1
    assert (row["dev_ce"], row["dev_ce_low"]) == (3, pytest.approx(3 - half, rel=1e-6))
    assert row["change"] == 0 and np.isnan(row["change_low"]) and row["n_seeds"] == 3
    assert row["weight_ratio"] == pytest.approx(1.5) and row["values"] == "2.000, 3.000, 4.000"
    row = table.loc["batchmean"]
    assert row["values"] == "2.000, 3.500, 4.500"  # by seed
    assert row["change"] == pytest.approx(np.mean([0.0, 0.5, 0.5])) and row["change_low"] < row["change"]
    one = replay_tables.replay_table([none[0]]).iloc[0]
    assert np.isnan(one["dev_ce_low"]) and one["dev_ce"] == 2


def test_t9_repairs_compares_with_the_row_above():
    dev = {"all": (9.0, 8.0), "repaired_digit_pairs": (6.0, 6.5), "repaired_batchmean": (5.0, 5.0), "none": (4.5, 4.0)}
    records = [record(name, seed, [value]) for name, values in dev.items() for seed, value in enumerate(values)]
    others = [record("batchmean", seed, [1.0]) for seed in (0, 1)]
    table = replay_tables.repairs_table([*others, *reversed(records)])
    assert list(table["case"]) == list(dev) and list(table["finding"]) == ["", "D1", "L1", "O8"]
    assert np.isnan(table["change"][0]) and list(table["change"][1:]) == [-2.25, -1.25, -0.75]
    half = 12.706205 * 0.75  # t(0.975, 1); the changes -3 and -1.5 have the standard error 0.75
    assert (table["change_low"][1], table["change_high"][1]) == pytest.approx((-2.25 - half, -2.25 + half), rel=1e-6)
    assert set(replay_tables.replay_table([*others, *records])["case"]) == {"all", "batchmean", "none"}


def test_the_committed_effects_are_those_of_the_committed_tables(tmp_path):
    marked = set()
    for document in (paths.REPOSITORY / "README.md", DEVIATIONS):
        text = document.read_text(encoding="utf-8")
        copy = tmp_path / document.name
        copy.write_text(text, encoding="utf-8")
        fill_marks(copy, paths.reference("nursery"))
        assert copy.read_text(encoding="utf-8") == text
        marked |= {key for _, key in MARK.findall(text)}
    assert marked == set(measured(paths.reference("nursery"))) - {"none"}  # every case has its place
    entries = re.findall(r"^(\d+)\. \*\*", DEVIATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    numbers = [int(number) for number in entries]
    assert numbers == list(range(1, len(numbers) + 1))


def test_effects_follow_the_tables(tmp_path):
    tables = tmp_path / "tables"
    tables.mkdir()
    for name in ("T9", "T9_repairs", "T9_scoring", "T9_search"):
        table = pd.read_csv(paths.reference("nursery") / "tables" / f"{name}.csv")
        if name == "T9":
            table.loc[table["case"] == "digit_pairs", "dev_ce"] = 77.0
        if name == "T9_repairs":
            table.loc[table["case"] == "none", "change"] = -5.0
            table.loc[table["case"] == "repaired_batchmean", "change"] = 0.75
            table.loc[table["case"] == "repaired_digit_pairs", "change"] = -3.77
            table.loc[table["case"] == "repaired_step_per_epoch", "change"] = -0.89
        table.to_csv(tables / f"{name}.csv", index=False)
    paths.write_json(
        tables / "provenance.json", paths.read_json(paths.reference("nursery") / "tables" / "provenance.json")
    )
    document = tmp_path / "text.md"
    document.write_text("a\n  <!-- measured: digit_pairs -->\n  old\n  <!-- end -->\nb\n")
    fill_marks(document, tmp_path)
    assert "\n  *Measured:* dev loss 77.00 [" in document.read_text() and "old" not in document.read_text()
    in_short = measured(tmp_path)["released"]  # the last repair is that of dev_text, what is worse is told as well
    assert (
        "are dev_text -5.00, digit_pairs -3.77, step_per_epoch -0.89; no other repair changes it by more than 0.75."
        in in_short
    )
    document.write_text("<!-- measured: digit_pears --><!-- end -->")
    with pytest.raises(UserError, match="asks for the effect of 'digit_pears'"):
        fill_marks(document, tmp_path)
    (tables / "T9_search.csv").unlink()
    with pytest.raises(UserError, match=r"has no T9_search.csv; expected what notebook 07 saves"):
        fill_marks(document, tmp_path)


def test_what_a_replay_is(out):
    """What is done with runs, and the settings of other parts, leave its folder alone; what it uses does not."""
    prepared = prepare(config().data, out)

    def folder(**changes):
        return replay.replay_folder(config(**changes), out, "none", Case(), 0, prepared, prepared)

    alike = [
        folder(ablations__seeds=[0]),
        folder(study__workers=1),
        folder(track__to="tensorboard"),
        folder(evaluate__curve=[1000]),
        folder(replay__workers=2),
        folder(mutual__teacher_size="peer"),
    ]
    assert set(alike) == {folder()}
    other = [
        folder(replay__num_epochs=5),
        folder(train__weight_decay=0.2),
        folder(model__hidden_size=64),
        folder(outer__objective="weighted_ce"),
        folder(evaluate__ties="first"),
    ]
    assert len({folder(), *other}) == 1 + len(other)


def test_a_replay_that_another_process_does_is_left_to_it(out, monkeypatch):
    monkeypatch.setattr("wmlkit.guard.PATIENCE", 0)
    prepared = prepare(config().data, out)
    folder = replay.replay_folder(config(), out, "held", Case(), 0, prepared, prepared)
    paths.write_json(folder / "config.json", {})
    with exclusive(folder), pytest.raises(UserError, match="is in use by process"):
        replay.run(config(), out, "held", Case())
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_replayed(name):
    """Also one whose rows grow: batches of three rows would not fill the longer ones."""
    for case in cases().values():
        used = replay.replay_config(load_preset(name), case, seed=0)
        assert used.train.batch_size == used.replay.batch_size and not used.data.block_schedule


def test_a_teacher_of_longer_rows_is_another_one(out):
    """It has as many positions as the longest row: one of the same name would be refused, or give other numbers."""
    prepared = prepare(config().data, out)
    names = [
        replay_teacher._folder(config(data__block_schedule=schedule), "described", out, prepared).name
        for schedule in ([], [[1.0, 32]], [[0.5, 32], [0.5, 64]])
    ]
    assert names[0] == names[1] != names[2]


def test_a_replay_is_known_by_the_pairs_it_scores(out, tmp_path):
    prepared = prepare(config().data, out)
    given = config(evaluate__suites=["blimp"], evaluate__pairs=str(tmp_path))
    folders = []
    for verb in ("sleep", "sleeps", "sleep"):
        pair = {"sentence_good": "the cats sleep", "sentence_bad": f"the cat {verb}"}
        (tmp_path / "agreement.jsonl").write_text(json.dumps(pair))
        folders.append(replay.replay_folder(given, out, "none", Case(), 0, prepared, prepared))
    assert folders[0] == folders[2] != folders[1]
    fewer = given.updated({"evaluate.per_paradigm": 7})
    assert replay.replay_folder(fewer, out, "none", Case(), 0, prepared, prepared) != folders[0]
    moved = config(evaluate__suites=["blimp"], evaluate__pairs=str(tmp_path.rename(tmp_path.with_name("moved"))))
    assert replay.replay_folder(moved, out, "none", Case(), 0, prepared, prepared) == folders[0]


def test_pairs_that_do_not_fit_are_told_before_the_training(out, tmp_path, monkeypatch):
    pair = {"sentence_good": "the cats sleep" * 40, "sentence_bad": "the cats sleeps" * 40}
    (tmp_path / "agreement.jsonl").write_text(json.dumps(pair))
    given = config(evaluate__suites=["blimp"], evaluate__pairs=str(tmp_path))
    monkeypatch.setattr(replay, "epochs", lambda *_: pytest.fail("trained before"))
    for name in ("none", "lost_case", "digit_pairs"):
        with pytest.raises(UserError, match=r"agreement.jsonl line 1.*window"):
            replay.run(given, out, name, cases()[name])


@pytest.mark.parametrize(("objective", "family"), [("mlm", "roberta"), ("clm", "llama")])
def test_the_notebook_s_last_words_leave_out_what_causal_peers_do_not_have(objective: str, family: str) -> None:
    """Its own cell, on numbers that were made up."""
    document = json.loads((paths.REPOSITORY / "notebooks" / "07_released_code.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(one["source"]) for one in document["cells"]]
    last = next(number for number, source in enumerate(sources) if source.startswith("sentences = ["))
    cases = ("none", "digit_pairs", "all", "step_per_epoch", "cut_gradient", "batchmean", "distill", "vanilla",
             "unmasked_inputs", "foreign_teacher")  # fmt: skip
    numbers = dict.fromkeys(("untrained_ce", "dev_ce", "change", "updates_with_lr", "correction", "kl_to_ce"), 1.0)
    rules = [("pairs", "perfect", "ordering"), ("pairs", "constant", "none"), ("pairs", "constant", "official_ties")]
    given = {
        "config": load_preset("smoke", {"model.objective": objective, "model.family": family}),
        "table": pd.DataFrame([{"case": case, **numbers} for case in cases]),
        "scoring": pd.DataFrame([(*rule, 77.0) for rule in rules], columns=["items", "scorer", "case", "accuracy"]),
        "idle": [], "steps": "", "changing": [], "shape": {"all": [(6, 256)]}, "Markdown": str,
    }  # fmt: skip
    exec(sources[last - 1] + "\n" + sources[last].replace('Markdown("', 'told = Markdown("'), given)
    causal = objective == "clm"
    assert ("These peers are causal" in given["told"]) == causal
    assert ("Scored in the released order" in given["told"]) != causal
    assert "A scorer that says nothing gets 77 % with half points" in given["told"]


def test_an_epoch_s_step_takes_the_mean_gradient_of_its_batches():
    where = setting(Case(defects=Defects(step_per_epoch=True)), **{"train.grad_clip": 0})
    one, other = state(), state()  # without an optimizer, which leaves the gradients where they are
    assert where.config.replay.micro_batches > 1
    replay_steps.train_epoch(one, where, 0)
    replay_steps.inner_loss(other, where.train(0, where.config.train.mask_ratio), where).total.backward()
    pairs = zip(*([p for peer in s.peers for p in peer.parameters()] for s in (one, other)), strict=True)
    for left, right in pairs:  # each batch of `setting` is the same
        torch.testing.assert_close(left.grad, right.grad)


def test_kl_stands_beside_the_cross_entropy_as_the_loss_weighs_it():
    for weighed in (False, True):
        peers = replace(state(), log_weights=torch.tensor([0.2, 0.9]).double())
        row = replay_steps.train_epoch(peers, setting(Case(defects=Defects(peer_weighted_ce=weighed))), 0)
        weights = peers.peer_weights.tolist() if weighed else [1.0, 1.0]
        weighed_ce = sum(w * ce for w, ce in zip(weights, row["ce"], strict=True))
        assert row["kl_to_ce"] == pytest.approx(sum(row["kl"]) / weighed_ce, rel=1e-5)


def test_a_teacher_of_other_rows_or_other_text_is_another_one(out):
    prepared = prepare(config().data, out)

    def name(text=prepared, **changes):
        return replay_teacher._folder(config(**changes), "described", out, text).name

    others = [name(data__block_size=16), name(data__vocab_size=500), name(replace(prepared, hash="0" * 64))]
    assert len({name(), *others}) == 4


def test_the_loss_of_a_teacher_is_of_the_same_dev_rows_whatever_its_seed(out, monkeypatch):
    seeds = {}

    def rows(settings, described, split, *rest):
        seeds[split] = settings.train.seed
        return described_rows(settings, described, split, *rest)

    class Measured(Exception):
        pass

    def measured_rows(*_):
        raise Measured

    described_rows = replay_teacher._described_rows
    monkeypatch.setattr(replay_teacher, "_described_rows", rows)
    monkeypatch.setattr(replay_teacher, "measured", measured_rows)
    given = replay.replay_config(config(mutual__arm="distill"), Case("teacher"), 5)
    with pytest.raises(Measured):
        prepared = prepare(config().data, out)
        replay_teacher._train(replay_teacher._alone(given), "described", prepared, setup("fp32", 1), out / "x")
    assert seeds == {"train": 5, "dev": 0}


def test_a_given_teacher_is_part_of_those_cases_alone_that_it_teaches(tmp_path):
    given = config(replay__teacher=given_model(tmp_path / "a", 320))
    weights = hashlib.sha256((tmp_path / "a" / "model.safetensors").read_bytes()).hexdigest()
    found = {name: replay_teacher.teacher_identity(given, case) for name, case in cases().items()}
    assert found["foreign_teacher"] == weights and found["none"] == found["distill"] == ""
    assert replay_teacher.teacher_identity(config(), cases()["foreign_teacher"]) == ""


def test_pairs_with_contexts_of_their_own_make_no_crossed_items():
    own = [replace(one, good_context="Once,", bad_context="Once,") for one in CROSSING]
    assert replay_scoring.crossed_items(own) == []


def test_ties_are_drawn_anew_with_each_seed():
    many = [pair(f"{i} a", f"{i} b") for i in range(400)]
    rule, zeros, order = replay_scoring.RULES["random_ties"], np.zeros(800), np.arange(800)
    drawn = [replay_scoring._applied(rule, many, zeros, order, seed)["accuracy"] for seed in (0, 1, 2, 0)]
    assert drawn[0] == drawn[3] and len(set(drawn)) > 1


@pytest.mark.parametrize(("objective", "family"), [("mlm", "roberta"), ("clm", "gpt2")])
def test_scores_of_causal_peers_come_back_in_their_places(objective, family, monkeypatch, tmp_path):
    monkeypatch.setattr(replay_scoring, "read_pairs", lambda *_: CROSSING)
    monkeypatch.setattr(
        replay_scoring, "score_sentences", lambda models, tokenizer, texts, **_: {"peer_1": np.arange(len(texts))}
    )
    given = config(model__objective=objective, model__family=family)
    rows = replay_scoring.scoring([], make_tokenizer(), tmp_path, given, 0)
    displaced = {row["displaced"] for row in rows if (row["items"], row["case"]) == ("crossed", "ordering")}
    assert len(displaced) == 1 and (displaced.pop() > 0) == (objective == "mlm")


def test_the_ratio_of_weights_is_that_of_the_largest_to_the_smallest():
    table = replay_tables.replay_table([record("none", 0, [1.0], peer_weights=[0.3, 0.2, 0.5])])
    assert table["weight_ratio"].tolist() == pytest.approx([2.5])
