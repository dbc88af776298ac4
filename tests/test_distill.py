"""Distillation and a frozen teacher: the loss by hand, where the teacher comes from, what is said of it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading

import pandas as pd
import pytest
import torch
from compare import interrupted, rows, weights
from small import make_batch, make_peers
from test_losses import CE_1, CE_2, KL_12, hand_case, random_case
from test_models import windowed
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    Mamba2Config,
    Mamba2ForCausalLM,
)

from wmlkit import bilevel, checkpoint, evaluations, paths, results, score_tables, study, tables, teacher, train
from wmlkit.config import load_preset
from wmlkit.data.prepare import prepare
from wmlkit.data.tokenizer import load_tokenizer, tokenizer_hash
from wmlkit.device import setup
from wmlkit.errors import UserError
from wmlkit.forward import frozen_logits, inner_batch, outer_batch, parameters_of
from wmlkit.identity import run_hash
from wmlkit.losses import MutualOptions, distillation_loss, mutual_loss, mutual_loss_reference
from wmlkit.progress import progress_line
from wmlkit.readable import readable
from wmlkit.runs import read_runs
from wmlkit.state import State
from wmlkit.steps import read_by_teacher
from wmlkit.students import find_students
from wmlkit.updates import sgd_update

TINY = {
    "data.words": 4000, "data.dev_words": 1500, "train.steps": 6, "train.eval_every": 3, "train.checkpoint_every": 2,
    "train.eval_rows": 16, "mutual.arm": "distill", "evaluate.per_paradigm": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


def config(changes=None, **more):
    return load_preset("smoke", TINY | (changes or {}) | {key.replace("__", "."): value for key, value in more.items()})


@pytest.fixture(scope="module")
def tokenizer(out):
    return load_tokenizer(prepare(config().data, out).folder / "tokenizer")


@pytest.fixture(scope="module")
def distilled(out):
    return train.run(config(), out)


@pytest.fixture(scope="module")
def given(distilled, tmp_path_factory):
    """A Hugging Face folder with the data's tokenizer: the trained teacher, under a name of its own."""
    done = paths.read_json(distilled / "done.json")
    folder = tmp_path_factory.mktemp("models") / "somebodys-model"
    return checkpoint.export_peer(distilled.parent / done["teacher"]["run"], "1", folder)


def teacher_runs(out):
    return sorted(path for path in (out / "smoke").glob("teacher-*") if path.is_dir())


# The loss


def test_hand_case():
    """Teacher (1/2, 1/2), students (1/2, 1/2) and (3/4, 1/4), truth word 0, three positions."""
    students, targets, _ = hand_case()
    flat = torch.zeros(3, 2, dtype=torch.float64)
    loss = distillation_loss(students, flat, targets, MutualOptions(0.3))
    assert float(loss.total) == pytest.approx(0.7 * (CE_1 + CE_2) + 0.3 * KL_12, abs=1e-12)
    assert loss.ce.tolist() == pytest.approx([CE_1, CE_2]) and loss.kl.tolist() == pytest.approx([0.0, KL_12])
    # three positions in a batch of one sequence: three times the KL of a token
    summed = distillation_loss(students, flat, targets, MutualOptions(0.3, kl_reduction="batchmean"))
    assert float(summed.total) == pytest.approx(0.7 * (CE_1 + CE_2) + 0.9 * KL_12, abs=1e-12)


def test_temperature_by_hand():
    """At tau = 2 the second student has odds sqrt(3): the KL of the softened distributions, times 4."""
    p = math.sqrt(3) / (1 + math.sqrt(3))
    expected = 4 * (0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)))
    students, targets, _ = hand_case()
    loss = distillation_loss(students[1:], students[0], targets, MutualOptions(1.0, temperature=2.0))
    assert float(loss.total) == pytest.approx(expected, abs=1e-12)


def test_alpha_zero_is_independent_training_to_the_bit():
    students, targets, peer_weights, scored = random_case(dtype=torch.float32)
    alone = mutual_loss(students, targets, peer_weights, MutualOptions(0.0), scored=scored)
    expected = torch.autograd.grad(alone.total, students)
    taught = distillation_loss(students, students[0] + 1, targets, MutualOptions(0.0), scored=scored)
    found = torch.autograd.grad(taught.total, students)
    assert torch.equal(taught.total, alone.total)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_teacher_that_is_the_student_adds_nothing():
    students, targets, _, scored = random_case(peers=1)
    loss = distillation_loss(students, students[0], targets, MutualOptions(0.4, temperature=2.0), scored=scored)
    assert loss.kl.item() == pytest.approx(0.0, abs=1e-15)
    (found,) = torch.autograd.grad(loss.total, students)
    ce = torch.nn.functional.cross_entropy(students[0][scored], targets[scored])
    torch.testing.assert_close(found, 0.6 * torch.autograd.grad(ce, students)[0], rtol=0, atol=1e-15)


def test_students_learn_from_the_teacher_alone_and_it_gets_no_gradient():
    """A student's gradient is the same whoever sits beside it; the teacher's logits have none."""
    (first, second, of_teacher), targets, _, scored = random_case()
    options = MutualOptions(0.5, temperature=1.5)
    distillation_loss([first, second], of_teacher, targets, options, scored=scored).total.backward()
    assert of_teacher.grad is None and first.grad is not None
    together, first.grad = first.grad, None
    distillation_loss([first], of_teacher, targets, options, scored=scored).total.backward()
    assert torch.equal(first.grad, together)


FROZEN = [
    MutualOptions(0.3, *values, frozen=1)
    for values in itertools.product(
        ["target", "student"], ["one", "peer"], [True, False], ["token_mean", "batchmean"], [1.0, 2.5]
    )
]


@pytest.mark.parametrize("options", FROZEN, ids=str)
def test_fast_form_with_a_frozen_teacher_equals_the_reference(options):
    (*students, of_teacher), targets, peer_weights, scored = random_case(peers=4)
    of_teacher = of_teacher.detach()
    expected = mutual_loss_reference([*students, of_teacher], targets, peer_weights, options, 2, scored)
    wanted = torch.autograd.grad(expected.total, students)
    found = mutual_loss([*students, of_teacher], targets, peer_weights, options, 2, scored)
    torch.testing.assert_close(torch.autograd.grad(found.total, students), wanted)
    assert found.ce.shape == found.kl.shape == (3,)
    torch.testing.assert_close([found.total, found.ce, found.kl], [expected.total, expected.ce, expected.kl])


@pytest.mark.parametrize("form", [mutual_loss, mutual_loss_reference])
def test_all_weight_on_a_frozen_teacher_is_distillation(form):
    (*students, of_teacher), targets, _, scored = random_case()
    options = MutualOptions(0.3, temperature=1.5, frozen=1)
    one = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    mutual = form([*students, of_teacher.detach()], targets, one, options, scored=scored)
    taught = distillation_loss(students, of_teacher, targets, options, scored=scored)
    torch.testing.assert_close([mutual.total, mutual.ce, mutual.kl], [taught.total, taught.ce, taught.kl])
    expected = torch.autograd.grad(taught.total, students)
    torch.testing.assert_close(torch.autograd.grad(mutual.total, students), expected)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "loss",
    [
        {"outer.hypergradient": "direct"},
        {"outer.hypergradient": "sgd"},
        {"outer.hypergradient": "sgd", "mutual.kl_weight": "student", "mutual.ce_weight": "peer"},
    ],
    ids=["direct", "all gradients", "own gradients"],
)
def test_a_frozen_teacher_reads_what_is_needed_and_counted(loss, parts, distilled, out, tokenizer, monkeypatch):
    settings = config({"mutual.arm": "wml", "mutual.frozen_teacher": True, "outer.every": 1, **loss})
    device = setup("fp32", 1)
    (found, *_) = teacher_runs(out)
    opened = teacher.trained_teacher(found, settings, tokenizer, device)
    read, head = [], opened.module.head

    def counted(batch, index):
        read.append(len(batch.real))
        return head(batch, index)

    monkeypatch.setattr(opened.module, "head", counted)
    state = train.build_state(settings, find_students(settings, len(tokenizer)), tokenizer, device, opened.module)
    state.parts = parts
    texts = train.open_texts(settings, prepare(settings.data, out), tokenizer)
    train.train_step(state, texts, settings, device)
    assert state.outer_tokens > 0 and sum(read) == read_by_teacher(state, settings.outer.hypergradient)


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
@pytest.mark.parametrize(("kl_weight", "detach"), [("target", True), ("target", False), ("student", True)])
def test_hypergradient_with_a_frozen_teacher_equals_finite_differences(family, kl_weight, detach):
    *peers, frozen = make_peers(family, ((1, 8), (2, 8), (1, 16)), dtype=torch.float64)
    options = MutualOptions(0.4, kl_weight, "one", detach, temperature=1.5, frozen=1)
    inner = inner_batch(peers, make_batch(family, seed=1), "scored", frozen)
    outer = outer_batch(peers, make_batch(family, seed=2), frozen)
    parameters = [parameters_of(peer) for peer in peers]
    updates = [sgd_update(own, 0.5) for own in parameters]
    start = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

    def value(peer_weights):
        gradients = bilevel.inner_gradients(parameters, peer_weights, inner, options)
        stepped = [update(g) for update, g in zip(updates, gradients, strict=True)]
        logits = [forward(p) for forward, p in zip(outer.forward, stepped, strict=True)]
        return bilevel.outer_loss([*logits, *outer.frozen()], outer.targets, peer_weights, "logit_ensemble").item()

    gradient, _ = bilevel.hypergradient(parameters, start, inner, outer, options, updates=updates)
    shifts = 1e-5 * torch.eye(3, dtype=torch.float64)
    expected = [(value(start + shift) - value(start - shift)) / 2e-5 for shift in shifts]
    assert gradient.tolist() == pytest.approx(expected, abs=1e-6)


# The trained teacher


def test_the_teacher_is_the_base_model_trained_on_the_same_steps(distilled, out):
    done = paths.read_json(distilled / "done.json")
    (folder,) = teacher_runs(out)
    assert done["teacher"]["run"] == folder.name and folder.name.startswith("teacher-p1-s0-")
    assert done["teacher_outside_budget"] is False and "teacher_weight" not in done
    known = paths.read_json(folder / "config.json")
    base = config().model
    assert known["students"][0]["num_layers"] == base.num_layers and known["students"][0]["target"] > 0
    assert known["students"][0]["hidden_size"] == base.hidden_size
    of_teacher = paths.read_json(folder / "done.json")
    assert of_teacher["parameters"] == [known["students"][0]["parameters"]] == [done["teacher"]["parameters"]]
    assert (of_teacher["steps"], of_teacher["tokens"]) == (done["steps"], done["tokens"])
    for name in ("tokens", "words", "flops", "seconds"):
        assert done["teacher"][name] == of_teacher[name]
    last = rows(distilled)[-1]
    assert min(last["kl"]) > 0 and last["peer_weights"] == [0.5, 0.5] and last["hypergradient"] is None
    assert last["total"] == pytest.approx([0.5 * a + 0.5 * b for a, b in zip(last["ce"], last["kl"], strict=True)])


def test_a_teacher_of_a_students_shape_starts_elsewhere(tokenizer):
    shape = find_students(config(mutual__arm="teacher", mutual__num_peers=1), len(tokenizer))
    states = [
        train.build_state(config(mutual__arm=arm, mutual__num_peers=1), shape, tokenizer, setup("fp32", 1))
        for arm in ("teacher", "independent", "dml")
    ]
    of_teacher, student, other = (torch.cat([p.flatten() for p in state.peers[0].parameters()]) for state in states)
    assert torch.equal(student, other) and not torch.equal(of_teacher, student)


def test_a_teacher_of_a_peers_size(tmp_path):
    """Peer 1's shape and steps, other weights, half the base model's size; one for all that could share it."""
    settings = config(mutual__teacher_size="peer", train__seed=5)
    done = paths.read_json(train.run(settings, tmp_path) / "done.json")
    own = teacher.teacher_config(settings)
    folder = train.run_folder(own, tmp_path)
    known, of_teacher = (paths.read_json(folder / name) for name in ("config.json", "done.json"))
    students = paths.read_json(train.run_folder(settings, tmp_path) / "config.json")["students"]
    assert known["students"] == students[:1] and known["config"]["mutual"]["arm"] == "teacher"
    assert done["teacher"]["parameters"] == done["parameters"][0] == of_teacher["parameters"][0]
    assert (of_teacher["steps"], of_teacher["tokens"]) == (done["steps"], done["tokens"])
    alone = paths.read_json(train.run(settings.updated({"mutual.arm": "independent"}), tmp_path) / "done.json")
    assert done["teacher"]["dev_ce"] == of_teacher["dev_ce"][0] != alone["dev_ce"][0]  # peer 1 alone started elsewhere
    assert done["flops"] - alone["flops"] == pytest.approx(of_teacher["flops"] / 3)  # its forward passes
    for same in ({"mutual.num_peers": 1}, {"mutual.alpha": 0.2}, {"mutual.arm": "wml", "mutual.frozen_teacher": True}):
        assert teacher.teacher_config(settings.updated(same)) == own
    searched = settings.updated({"search.hidden_size": [32]})
    assert teacher.teacher_config(searched) != own
    base = [teacher.teacher_config(one.updated({"mutual.teacher_size": "base"})) for one in (settings, searched)]
    assert base[0] == base[1] != own


def test_a_teacher_of_fewer_steps_is_that_of_shorter_students(tmp_path):
    """Its run is what students of 4 steps share with their teacher; these take 6, and pay for what it read."""
    settings = config(mutual__teacher_steps=4)
    done = paths.read_json(train.run(settings, tmp_path) / "done.json")
    (folder,) = teacher_runs(tmp_path)
    own = teacher.teacher_config(settings)
    assert own == teacher.teacher_config(config(train__steps=4)) and folder == train.run_folder(own, tmp_path)
    assert folder == train.run_folder(own.updated({"mutual.teacher_steps": 4, "train.steps": 6}), tmp_path)
    of_teacher = paths.read_json(folder / "done.json")
    assert (of_teacher["steps"], done["steps"]) == (4, 6)
    assert done["teacher"]["tokens"] == of_teacher["tokens"] < done["tokens"]


def test_the_teacher_is_trained_once(distilled, out):
    (folder,) = teacher_runs(out)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    told = []
    train.run(config(mutual__num_peers=1, mutual__alpha=0.3, mutual__temperature=2.0), out, progress=told.append)
    train.run(config(), out, force=True)
    assert teacher_runs(out) == [folder] and {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert told and not any("teacher" in row for row in told)
    other = config(train__seed=1, mutual__num_peers=1)
    train.run(other, out, progress=told.append)  # another seed: another teacher, whose steps are reported as such
    assert len(teacher_runs(out)) == 2
    lines = [progress_line(other, row) for row in told]
    assert lines[-1].startswith("distill P=1 seed 1: step 6/6")
    assert sum(line.startswith("teacher of distill P=1 seed 1") for line in lines) == 4  # steps 2, 3, 4, 6
    longer, row = other.updated({"mutual.teacher_steps": 24}), {"ce": [1.0], "peer_weights": [1.0], "step": 6}
    for settings, told, steps in (
        (longer, {"teacher": True}, 24), (longer, {}, 6), (longer.updated({"mutual.arm": "teacher"}), {}, 24),
    ):  # fmt: skip
        assert f": step 6/{steps} train" in progress_line(settings, row | told)


def test_runs_side_by_side_wait_for_one_teacher(out):
    settings = config(train__seed=2, train__steps=2)
    folder = train.run_folder(teacher.teacher_config(settings), out)
    waiting = threading.Thread(target=train.run, args=(settings, out))
    with train.FileLock(folder.with_name(f".{folder.name}.lock")):  # another process trains it
        waiting.start()
        waiting.join(1.0)
        assert waiting.is_alive() and not folder.exists()
    waiting.join()
    assert (folder / "done.json").is_file() and (train.run_folder(settings, out) / "done.json").is_file()


def test_alpha_zero_gives_the_peers_of_independent(out):
    taught = train.run(config(mutual__alpha=0.0), out)
    alone = train.run(config(mutual__alpha=0.0, mutual__arm="independent"), out)
    assert weights(taught) == weights(alone)


def test_training_leaves_the_teacher_alone(distilled, out, tokenizer):
    settings, device = config(), setup("fp32", 1)
    (found, *_) = teacher_runs(out)
    opened = teacher.trained_teacher(found, settings, tokenizer, device)
    before = {name: p.clone() for name, p in opened.module.named_parameters()}
    students = find_students(settings, len(tokenizer))
    for arm in ("distill", "wml"):
        own = settings.updated({"mutual.arm": arm, "mutual.frozen_teacher": True, "outer.every": 1})
        state = train.build_state(own, students, tokenizer, device, opened.module)
        texts = train.open_texts(own, prepare(own.data, out), tokenizer)
        for _ in range(2):
            train.train_step(state, texts, own, device)
        assert len(state.peer_weights) == 2 + (arm == "wml") and state.step == 2
    assert not opened.module.model.training
    for name, parameter in opened.module.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None and not parameter.requires_grad
    batch = make_batch("roberta", seed=0)
    assert not frozen_logits(make_peers("roberta")[0], batch, batch.scored)[0].requires_grad


@pytest.mark.parametrize("arm", ["distill", "wml"])
def test_resumed_equals_uninterrupted(out, arm):
    settings = config(mutual__arm=arm, mutual__frozen_teacher=True, outer__every=2, train__seed=1)
    whole = train.run(settings, out)
    expected = weights(whole), rows(whole)

    interrupted(settings, out, 4)
    assert [path.name for path in checkpoint.checkpoints(whole / "checkpoints")] == ["step-00000002"]
    train.run(settings, out)
    assert (weights(whole), rows(whole)) == expected


def test_peers_that_are_nothing_beside_the_teacher_still_have_weights_of_their_own():
    """Log-weights of -800 and -801 beside a teacher's 0: the ensemble is e : 1, not 0 : 0."""
    state = State([None, None], [], torch.tensor([-800.0, -801.0, 0.0], dtype=torch.float64))
    assert state.peer_weights.tolist() == [0, 0, 1]
    assert state.ensemble_weights.tolist() == pytest.approx([0.7310586, 0.2689414])


def test_a_frozen_teacher_is_one_more_peer_as_a_target_only(out):
    settings = config(mutual__arm="wml", mutual__frozen_teacher=True, outer__every=2)
    folder = train.run(settings, out)
    last, done = rows(folder)[-1], paths.read_json(folder / "done.json")
    assert len(last["peer_weights"]) == len(last["hypergradient"]) == 3 and len(last["ce"]) == len(last["kl"]) == 2
    assert last["peer_weights"][2] != 1 / 3 and sum(last["peer_weights"]) == 1  # learned as the others' are
    assert done["teacher_weight"] == last["peer_weights"][2] and done["teacher"]["run"].startswith("teacher-p1-s0-")
    expected = [weight / sum(last["peer_weights"][:2]) for weight in last["peer_weights"][:2]]
    assert done["peer_weights"] == pytest.approx(expected)  # of the ensemble that can be exported
    alone = paths.read_json(train.run(config(mutual__arm="wml", outer__every=2), out) / "done.json")
    assert 0 < done["outer_tokens"] == alone["outer_tokens"]  # its forward passes are a third of its training's
    of_teacher = paths.read_json(folder.parent / done["teacher"]["run"] / "done.json")
    passes = (done["tokens"] + done["outer_tokens"]) / of_teacher["tokens"]
    assert done["flops"] - alone["flops"] == pytest.approx(passes * of_teacher["flops"] / 3)
    (document,) = study.evaluate_all(folder, settings, out)
    assert [member["member"] for member in document["members"]][:2] == ["peer_1", "peer_2"]
    dml = train.run(config(mutual__arm="dml", mutual__frozen_teacher=True, mutual__num_peers=1), out)
    assert rows(dml)[-1]["peer_weights"] == [0.5, 0.5] and rows(dml)[-1]["kl"][0] > 0


# A given teacher


def test_a_given_teacher_teaches_what_the_trained_one_does_and_is_labelled(distilled, given, out):
    folder = train.run(config({"mutual.teacher": str(given)}), out)
    assert weights(folder) == weights(distilled)
    done = paths.read_json(folder / "done.json")
    assert done["teacher_outside_budget"] is True and done["teacher"]["name"] == "somebodys-model"
    assert done["teacher"]["run"] is None and done["teacher"]["tokens"] is None
    assert done["teacher"]["hash"] == teacher.given_hash(config({"mutual.teacher": str(given)}))
    within = train.run(config({"mutual.teacher": str(given), "mutual.teacher_within_budget": True}), out)
    assert paths.read_json(within / "done.json")["teacher_outside_budget"] is False


def test_another_tokenizer_is_refused_with_both_hashes(out, given, tokenizer, tmp_path):
    folder = tmp_path / "other"
    checkpoint.shutil.copytree(given, folder)
    document = paths.read_json(folder / "tokenizer.json")
    document["model"]["merges"].pop()
    paths.write_json(folder / "tokenizer.json", document)
    assert Tokenizer.from_file(str(folder / "tokenizer.json"))
    both = tokenizer_hash(load_tokenizer(folder)), tokenizer_hash(tokenizer)
    settings = config({"mutual.teacher": str(folder)})
    with pytest.raises(UserError) as error:
        train.run(settings, out)
    assert both[0] != both[1] and all(part in str(error.value) for part in both)
    assert not train.run_folder(settings, out).exists()


def bert(tokenizer, vocab_size, positions=64):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForMaskedLM(BertConfig(vocab_size=vocab_size, max_position_embeddings=positions, **shape))


def test_a_teacher_is_compiled_where_its_students_are(given, tokenizer, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for compiled in (False, True):
        settings = config({"mutual.teacher": str(given), "train.compile": compiled})
        opened = teacher.given_teacher(settings, tokenizer, setup("fp32", 1))
        assert len(opened.module._compiled) == compiled * settings.model.num_layers


def test_a_teacher_of_another_family_with_a_padded_vocabulary(out, tokenizer, tmp_path):
    folder = checkpoint.export(bert(tokenizer, len(tokenizer) + 8), tokenizer, tmp_path / "bert", "")
    opened = teacher.given_teacher(config({"mutual.teacher": str(folder)}), tokenizer, setup("fp32", 1))
    assert opened.module.model.config.vocab_size == len(tokenizer)
    done = paths.read_json(train.run(config({"mutual.teacher": str(folder)}), out) / "done.json")
    assert done["teacher"]["name"] == "bert" and done["teacher"]["parameters"] == opened.record["parameters"]


def test_an_exported_causal_peer_may_teach(tokenizer, tmp_path):
    """Its tokenizer leaves a text open, the data's does not: their ids are the same."""
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    torch.manual_seed(0)
    own = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=2, **shape))
    folder = checkpoint.export(own, tokenizer, tmp_path / "gpt2", "")
    opened = teacher.given_teacher(config({**CAUSAL, "mutual.teacher": str(folder)}), tokenizer, setup("fp32", 1))
    assert type(opened.module.model) is GPT2LMHeadModel


def test_a_model_of_masked_words_and_following_sentences_teaches_as_a_masked_one(tokenizer, tmp_path):
    shape = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32,
    )  # fmt: skip
    folder = checkpoint.export(BertForPreTraining(shape), tokenizer, tmp_path / "bert", "")
    opened = teacher.given_teacher(config({"mutual.teacher": str(folder)}), tokenizer, setup("fp32", 1))
    assert type(opened.module.model) is BertForMaskedLM


def gemma(tokenizer):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    settings = Gemma2Config(
        vocab_size=len(tokenizer), intermediate_size=32, head_dim=8, final_logit_softcapping=0.01, **shape
    )
    return Gemma2ForCausalLM(settings)


def recurrent(tokenizer):
    """Carries a state from one sentence of a row to the next, which no mask keeps it from."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1}
    return Mamba2ForCausalLM(Mamba2Config(vocab_size=len(tokenizer), **sizes))


def chunked(tokenizer):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    settings = Llama4TextConfig(
        vocab_size=len(tokenizer), intermediate_size=32, intermediate_size_mlp=32, head_dim=8, num_local_experts=1,
        attention_chunk_size=31, layer_types=["chunked_attention"], moe_layers=[], **shape,
    )  # fmt: skip
    return Llama4ForCausalLM(settings)


CAUSAL = {"model.family": "gpt2", "model.objective": "clm"}


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (lambda t: bert(t, len(t), positions=16), {}, "takes 16 tokens and the data's rows have 32"),
        (lambda t: bert(t, len(t) - 1), {}, r"has 599 logits; expected one for each of the tokenizer's 600 tokens"),
        (lambda t: bert(t, len(t)), CAUSAL, "is not a causal language model; expected one for objective clm"),
        (
            lambda t: windowed("modernbert", len(t), local_attention=60),
            {},
            r"\(modernbert\) has layers whose sliding window or chunk covers rows of 31 tokens, and the data's have 32",
        ),
        (lambda t: windowed("mistral", len(t), sliding_window=31), CAUSAL, r"\(mistral\) has layers whose sliding"),
        (chunked, CAUSAL, r"\(llama4_text\) has layers whose sliding window or chunk covers rows of 31 tokens, and"),
        (gemma, CAUSAL, r"\(gemma2\) gives other logits in parts than as a whole"),
        (recurrent, CAUSAL, r"\(mamba2\) reads a sentence otherwise behind another one in the same row"),
    ],
)
def test_teachers_that_cannot_teach_are_refused(make, settings, message, tokenizer, tmp_path):
    folder = checkpoint.export(make(tokenizer), tokenizer, tmp_path / "model", "")
    own = config({**settings, "mutual.teacher": str(folder)})
    with pytest.raises(UserError, match=message) as error:
        teacher.given_teacher(own, tokenizer, setup("fp32", 1))
    assert "\n" not in str(error.value)


def test_a_teacher_whose_window_covers_a_row_is_taken(tokenizer, tmp_path):
    folder = checkpoint.export(
        windowed("modernbert", len(tokenizer), local_attention=62), tokenizer, tmp_path / "m", ""
    )
    own = config({"mutual.teacher": str(folder)})
    assert teacher.given_teacher(own, tokenizer, setup("fp32", 1)).record["name"] == "m"
    with pytest.raises(UserError, match="and the data's have 33"):
        teacher.given_teacher(own.updated({"data.block_size": 33}), tokenizer, setup("fp32", 1))


def test_what_is_no_model_is_refused(out, given, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no teacher folder"):
        train.run_folder(config({"mutual.teacher": str(tmp_path / "absent")}), out)
    monkeypatch.setenv("HOME", str(given.parent))
    from_home, here = (config({"mutual.teacher": name}) for name in (f"~/{given.name}", str(given)))
    assert train.run_folder(from_home, out) == train.run_folder(here, out)
    tokenizer = load_tokenizer(given)
    assert teacher.given_teacher(from_home, tokenizer, setup("fp32", 1)).record["name"] == given.name
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        train.run_folder(config({"mutual.teacher": str(tmp_path / "empty")}), out)
    asked = {}

    def hub(name, allow_patterns):
        asked[name] = allow_patterns
        if name == "nobody/nothing":
            raise OSError("no such model\nsecond line")
        return str(given)

    monkeypatch.setattr(teacher, "snapshot_download", hub)
    with pytest.raises(UserError, match=r"'nobody/nothing' could not be fetched \(no such model\)"):
        train.run_folder(config({"mutual.teacher": "nobody/nothing"}), out)
    here = train.run_folder(config({"mutual.teacher": str(given)}), out)
    assert train.run_folder(config({"mutual.teacher": "somebody/model"}), out) == here  # what it is, not where
    assert not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in asked["somebody/model"][:2])
    assert not any("py" in pattern or "bin" in pattern for pattern in asked["somebody/model"])


def test_settings_of_the_teacher_count_only_where_there_is_one():
    for arm in ("independent", "dml", "wml"):
        own = config(mutual__arm=arm)
        assert run_hash(own.updated({"mutual.teacher": "a/b"}), "data", "x") == run_hash(own, "data")
    assert run_hash(config({"mutual.teacher": "a/b"}), "data", "x") != run_hash(config(), "data")
    assert run_hash(config({"mutual.teacher": "a/b"}), "data", "x") != run_hash(
        config({"mutual.teacher": "a/b"}), "data", "y"
    )
    frozen = {"mutual.frozen_teacher": True}
    assert run_hash(config(frozen), "data") == run_hash(config(), "data")
    assert run_hash(config(frozen, mutual__arm="dml"), "data") != run_hash(config(mutual__arm="dml"), "data")
    peer = {"mutual.teacher_size": "peer"}
    assert run_hash(config(peer), "data") != run_hash(config(), "data")
    assert run_hash(config(peer, mutual__arm="dml"), "data") == run_hash(config(mutual__arm="dml"), "data")
    with pytest.raises(UserError, match=r"mutual\.num_peers is 2 for arm 'teacher'"):
        config(mutual__arm="teacher")
    with pytest.raises(UserError, match=r"teacher_size is 'peer', and mutual\.teacher names a model"):
        config({**peer, "mutual.teacher": "a/b"})
    short = {"mutual.teacher_steps": 3}
    assert run_hash(config(short), "data") != run_hash(config(), "data")
    assert run_hash(config(short, mutual__arm="dml"), "data") == run_hash(config(mutual__arm="dml"), "data")
    with pytest.raises(UserError, match=r"teacher_steps is 3, and mutual\.teacher names a model"):
        config({**short, "mutual.teacher": "a/b"})
    assert dataclasses.replace(MutualOptions(), frozen=1) != MutualOptions()


def test_settings_that_are_off_leave_older_runs_with_a_teacher_what_they_were():
    """A hash that changes has all finished runs trained again: those of `wml` are of before `mutual.teacher_steps`, the
    others of when what their arm does not read left them (log 37)."""
    then = load_preset("smoke", {"train.warmup_steps": 3})  # as the preset was
    for settings, known in (
        ({"mutual.arm": "wml"}, "79921b1e4b32841ff68cb3fd2c72c9ade8194121b543b825bc971b7dccd6fc1d"),
        ({"mutual.arm": "distill"}, "8b4c11dc74a81b2bbc39601918727917872387e79e582942c83f130331640cc8"),
        (
            {"mutual.arm": "teacher", "mutual.num_peers": 1},
            "f1391f1ca8272c1028f23e1d76e6cd7ce5e9800e39a02e87f5ae278d8dfbef1c",
        ),
    ):
        assert run_hash(then.updated(settings), "data") == known


# Tables


@pytest.fixture(scope="module")
def compared(given, tmp_path_factory):
    """Evaluated runs of wml and distill, the latter also with a given teacher."""
    out = tmp_path_factory.mktemp("compared")
    for changes in ({"mutual.arm": "wml"}, {}, {"mutual.teacher": str(given)}):
        study.evaluate_all(train.run(config(changes), out), config(changes), out)
    return out / "smoke"


def test_a_teacher_is_no_arm_but_a_member_of_distill(compared):
    found = [(run.arm, run.setting.split("=")[0], run.note) for run in read_runs(compared)]
    assert found == [
        ("wml", "", ""),
        ("distill", "", ""),
        ("distill", "mutual.teacher", "teacher outside the data budget"),
    ]
    scores = results.scores_table(compared)
    of_teacher = scores[scores["member"] == "teacher"]
    assert list(of_teacher["arm"]) == ["distill"] and set(of_teacher["setting"]) == {""}
    (run,) = (path for path in compared.glob("teacher-*") if path.is_dir())
    document = paths.read_json(run / "evaluation" / "nursery-babylm2025.json")
    assert list(of_teacher["score"]) == [document["members"][0]["score"]]
    losses = results.dev_table(compared)
    known = paths.read_json(run / "done.json")["dev_ce"]
    assert list(losses[losses["member"] == "teacher"]["score"]) == known
    measured = tables.main_result(tables.all_scores(compared))
    noted = measured[measured["setting"] != ""]
    assert set(noted["note"]) == {"teacher outside the data budget"}
    assert set(measured[measured["setting"] == ""]["note"]) == {""}
    ((_, shown),) = readable("T4", measured)
    assert list(shown["note"][shown["setting"] != ""]) == ["teacher outside the data budget"] * 5
    phenomena = tables.by_phenomenon(results.paradigm_table(compared))
    assert (phenomena["note"] == "teacher outside the data budget").eq(phenomena["setting"] != "").all()


def test_the_cost_of_distill_includes_its_teachers(compared):
    runs = {run.setting.split("=")[0]: run.done for run in read_runs(compared) if run.arm == "distill"}
    table = tables.cost(results.runs_table(compared))
    (own,) = table[(table["arm"] == "distill") & (table["setting"] == "")].to_dict("records")
    done = runs[""]
    for name in ("tokens", "words", "flops", "seconds"):
        assert own[name] == pytest.approx(done[name])
    for name in ("flops", "seconds"):
        assert own[f"{name}_with_teacher"] == pytest.approx(done[name] + done["teacher"][name])
    assert own["note"].startswith(f"the teacher's training took {done['tokens']:,} tokens, ")
    assert own["tokens_per_second"] == pytest.approx(done["tokens"] / done["seconds"])
    (other,) = table[table["setting"] != ""].to_dict("records")
    assert other["note"] == "teacher outside the data budget, the cost of the teacher's training is unknown"
    assert other["tokens"] == runs["mutual.teacher"]["tokens"]
    assert math.isnan(other["flops_with_teacher"]) and math.isnan(other["seconds_with_teacher"])
    assert list(table[table["arm"] == "wml"]["note"]) == [""]
    # the teacher's forward passes are the run's own: 2 FLOP a parameter behind the embeddings, and a token
    alike = paths.read_json(next(compared.glob("wml-*")) / "done.json")
    of_teacher = paths.read_json(next(p for p in compared.glob("teacher-*") if p.is_dir()) / "done.json")
    without_outer = alike["flops"] * alike["tokens"] / (alike["tokens"] + alike["outer_tokens"])
    assert done["flops"] - without_outer == pytest.approx(of_teacher["flops"] / 3)


def test_a_given_teacher_alone_is_compared_and_noted(tmp_path, given, compared):
    """Where all runs of distill have one teacher, it is their main setting, and the contrast carries its note."""
    for path in compared.iterdir():
        own = path.is_dir() and path.name.startswith("distill")
        if path.is_dir() and not (own and paths.read_json(path / "config.json")["config"]["mutual"]["teacher"] is None):
            checkpoint.shutil.copytree(path, tmp_path / "smoke" / path.name)
    assert [run.setting for run in read_runs(tmp_path / "smoke")] == ["", ""]
    table = tables.differences(tables.all_scores(tmp_path / "smoke"))
    pair = table[(table["a"] == "wml") & (table["b"] == "distill")]
    assert len(pair) and set(pair["note"]) == {"teacher outside the data budget"}
    assert isinstance(readable("T4_differences", table)[0][1], pd.DataFrame)
    assert "note" in readable("T4_differences", table)[0][1]
    of_protocols = score_tables.protocols(evaluations.protocol_table(tmp_path / "smoke"))
    taught = of_protocols[of_protocols["arm"] == "distill"]
    assert len(taught) and set(taught["note"]) == {"teacher outside the data budget"}
