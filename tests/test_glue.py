"""Fine-tuning for (Super)GLUE: learning, selection, padding, metrics, the result document, bad rows."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from wmlkit import paths
from wmlkit.config import load_preset
from wmlkit.data.tokenizer import save_tokenizer, train_tokenizer
from wmlkit.errors import UserError
from wmlkit.evaluate import glue
from wmlkit.evaluate.finetune import (
    Classifier,
    Example,
    FineTuned,
    Recipe,
    _train_epoch,
    epoch_order,
    finetune,
    lr_factor,
)
from wmlkit.evaluate.glue import GlueOptions, _read, evaluate_glue, evaluate_run_glue, metrics
from wmlkit.evaluate.glue_protocols import GLUE_PROTOCOLS, TASKS
from wmlkit.evaluate.target import evaluate_target
from wmlkit.models import build_model, reads_segments
from wmlkit.run_files import FORMAT
from wmlkit.settings import ModelConfig
from wmlkit.shapes import Student

GLUE = Path(__file__).parents[2] / "shared" / "data" / "babylm_eval" / "glue_filtered"
FAMILIES = {"roberta": "mlm", "modernbert": "mlm", "gpt2": "clm", "llama": "clm"}
RECIPE = replace(GLUE_PROTOCOLS["babylm2025"].recipe, lr=3e-3, batch_size=8, epochs=4, dropout=0.0)
NOUNS = ["cat", "dog", "bird", "boy", "girl", "tree", "house", "book"]


def examples(pairs: bool = False) -> list[Example]:
    """Two classes told apart by one word: of the sentence, or of the second of two."""
    rows = []
    for i, noun in enumerate(NOUNS):
        for word, label in (("nice", 1), ("ugly", 0)):
            sentence = f"The {noun} is very very {word}." if i % 2 == 0 else f"The {noun} is {word}."
            rows.append(Example(f"A {noun} came.", sentence, label) if pairs else Example(sentence, None, label))
    return rows


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([f"{example.first} A {example.first}" for example in examples()], 300)


def tiny(family: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = ModelConfig(objective=FAMILIES[family], family=family)  # type: ignore[arg-type]
    return build_model(Student(1, 2, 16, 32), config, tokenizer, 32, seed=0)


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float((labels == predictions).mean())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pairs", [False, True])
def test_learns_what_one_word_decides(family: str, pairs: bool, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny(family, tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    result = finetune(
        model,
        tokenizer,
        examples(pairs)[4:],
        {"valid": [examples(pairs)[0], examples(pairs)[3]]},  # a long one before a short one
        objective=FAMILIES[family],  # type: ignore[arg-type]
        num_labels=2,
        recipe=replace(RECIPE, epochs=50, batch_size=4, lr=1e-2),
        seed=0,
        select=accuracy,
    )
    assert result.predictions["valid"].tolist() == [1, 0]
    assert result.selection[result.best_epoch - 1] == 1 and result.losses[-1] < result.losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # a copy was trained
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_student_is_told_which_text_a_token_is_of(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert not reads_segments(tiny(family, tokenizer))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["tanh", "gelu"])
def test_padding_changes_nothing(family: str, head: str, tokenizer: PreTrainedTokenizerFast) -> None:
    recipe = replace(RECIPE, head=head)  # type: ignore[arg-type]
    classifier = Classifier(tiny(family, tokenizer), FAMILIES[family], 3, recipe).eval()  # type: ignore[arg-type]
    ids = tokenizer("The cat is nice.")["input_ids"]
    pad = [tokenizer.pad_token_id] * 5
    rows = {"none": (ids, [1] * len(ids))}
    rows["right"] = (ids + pad, [1] * len(ids) + [0] * 5)
    rows["left"] = (pad + ids, [0] * 5 + [1] * len(ids))
    with torch.inference_mode():
        logits = {side: classifier(torch.tensor([row]), torch.tensor([mask])) for side, (row, mask) in rows.items()}
    torch.testing.assert_close(logits["right"], logits["none"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits["left"], logits["none"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_is_read_at_the_positions_of_the_language_model(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Masked models at their first token, causal ones at their last."""
    model = tiny(family, tokenizer).eval()
    classifier = Classifier(model, FAMILIES[family], 3, RECIPE).eval()  # type: ignore[arg-type]
    classifier.head = torch.nn.Identity()  # type: ignore[assignment]
    ids = torch.tensor([tokenizer("The cat is nice.")["input_ids"]])
    with torch.inference_mode():
        read = model.base_model(input_ids=ids).last_hidden_state[0]
        found = classifier(ids, torch.ones_like(ids))[0]
    torch.testing.assert_close(found, read[0 if FAMILIES[family] == "mlm" else -1], atol=1e-5, rtol=0)


def test_the_heads_learn_what_those_of_the_pipelines_do(tokenizer: PreTrainedTokenizerFast) -> None:
    """Of 16 wide models and three classes; the normalization of 2025's has no weights, the head of GPT-2 no bias."""
    two_layers = (16 * 16 + 16) + (16 * 3 + 3)
    for head, family, expected in (
        ("gelu", "roberta", two_layers), ("gelu", "gpt2", two_layers),
        ("tanh", "roberta", two_layers), ("tanh", "gpt2", 16 * 3),
    ):  # fmt: skip
        recipe = replace(RECIPE, head=head)  # type: ignore[arg-type]
        classifier = Classifier(tiny(family, tokenizer), FAMILIES[family], 3, recipe)  # type: ignore[arg-type]
        assert sum(parameter.numel() for parameter in classifier.head.parameters()) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_the_heads_of_2024_begin_as_those_of_transformers(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Normal with the model's spread, where torch's linear layers are uniform; no bias, where those have one."""
    model = tiny(family, tokenizer)
    model.config.initializer_range = 0.3
    head = Classifier(model, FAMILIES[family], 200, replace(RECIPE, head="tanh")).head  # type: ignore[arg-type]
    linear = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
    assert len(linear) == (2 if FAMILIES[family] == "mlm" else 1)
    for layer in linear:
        assert layer.weight.std().item() == pytest.approx(0.3, rel=0.15)
        assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_fine_tuned_in_float32(
    dtype: torch.dtype, folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny("roberta", tokenizer).to(dtype)
    same = copy.deepcopy(model).float()
    options = GlueOptions(tasks=("cola",), seeds=(1,), epochs=2)
    half, full = (evaluate_glue(one, tokenizer, folder, options, protocol="babylm2024") for one in (model, same))
    assert half["members"][0]["paradigms"][0]["per_seed"] == full["members"][0]["paradigms"][0]["per_seed"]
    assert model.dtype == dtype
    # float32 models have the settings that they had before there was a choice: their stored results stay the same ones
    told = {"dtype": f"float32 copy of {str(dtype).removeprefix('torch.')}"}
    assert "dtype" not in full["settings"] and half["settings"] == full["settings"] | told


def run(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, scores: Sequence[float] | None = None, seed: int = 0):
    """A training whose selection scores are given, one an epoch."""
    left = list(scores or [])
    return finetune(
        tiny("roberta", tokenizer),
        tokenizer,
        examples(),
        {"valid": examples()[:4], "other": examples()[4:9]},
        objective="mlm",
        num_labels=2,
        recipe=recipe,
        seed=seed,
        select=(lambda labels, predictions: left.pop(0)) if scores else accuracy,
    )


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_an_update_is_that_of_the_clipped_gradient(clip: float, tokenizer: PreTrainedTokenizerFast) -> None:
    """A step of plain descent at rate 1 is the gradient: as long as the norm allows, and in its own direction."""
    classifier = Classifier(tiny("gpt2", tokenizer), "clm", 2, RECIPE)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    labels = torch.tensor([0, 1])
    torch.nn.functional.cross_entropy(classifier(ids, torch.ones_like(ids)), labels).backward()
    trained = [own for own in classifier.parameters() if own.grad is not None]
    gradient = torch.cat([own.grad.flatten() for own in trained if own.grad is not None])
    before = torch.cat([own.detach().clone().flatten() for own in trained])
    optimizer = torch.optim.SGD(classifier.parameters(), lr=1.0)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    segments = torch.zeros_like(ids)
    _train_epoch(classifier, [(ids, torch.ones_like(ids), segments, labels)], optimizer, constant, clip)
    step = before - torch.cat([own.detach().flatten() for own in trained])
    assert gradient.norm() > 0.1
    torch.testing.assert_close(step, gradient * (clip / gradient.norm() if clip else 1), rtol=1e-3, atol=1e-6)


def test_the_earliest_best_epoch_is_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    result = run(tokenizer, RECIPE, [0.2, 0.7, 0.7, 0.1])
    assert result.best_epoch == 2 and result.selection == (0.2, 0.7, 0.7, 0.1) and len(result.losses) == 4
    two_epochs = run(tokenizer, replace(RECIPE, epochs=4), [0.2, 0.7, 0.6, 0.5])
    np.testing.assert_array_equal(result.predictions["other"], two_epochs.predictions["other"])
    assert len(result.predictions["other"]) == 5


def test_patience_counts_epochs_without_enough_gain(tokenizer: PreTrainedTokenizerFast) -> None:
    patient = replace(RECIPE, epochs=8, patience=2, threshold=0.1)
    result = run(tokenizer, patient, [0.5, 0.55, 0.59, 0.9])
    assert len(result.selection) == 3 and result.best_epoch == 3
    result = run(tokenizer, patient, [0.5, 0.55, 0.7, 0.71, 0.72, 0.99])
    assert len(result.selection) == 5 and result.best_epoch == 5


def test_dropout_is_on_in_each_epoch_and_off_for_predictions(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches of training an epoch; one for each of the two sets in the first, which is the best, one after it."""
    forward, modes = Classifier.forward, []

    def recorded(self: Classifier, *inputs: torch.Tensor) -> torch.Tensor:
        modes.append({module.training for module in self.modules()})
        return forward(self, *inputs)

    monkeypatch.setattr(Classifier, "forward", recorded)
    run(tokenizer, replace(RECIPE, epochs=2), [0.2, 0.1])
    assert modes == [{True}, {True}, {False}, {False}, {True}, {True}, {False}]


def test_the_seed_fixes_a_training(tokenizer: PreTrainedTokenizerFast) -> None:
    losses = []
    for seed in (1, 1, 2):
        torch.rand(1)  # what else the process has drawn does not matter
        losses.append(run(tokenizer, replace(RECIPE, dropout=0.3), seed=seed).losses)
    assert losses[0] == losses[1] != losses[2]
    orders = [epoch_order(16, seed, epoch) for seed in (0, 1) for epoch in (1, 2)]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_learning_rate_by_hand() -> None:
    cosine = replace(RECIPE, schedule="cosine", warmup_ratio=0.1, min_lr_ratio=0.1)
    assert [lr_factor(step, 100, cosine) for step in (0, 5, 10)] == [0, 0.5, 1]
    assert lr_factor(55, 100, cosine) == pytest.approx(0.1 + 0.9 * 0.5)
    assert lr_factor(100, 100, cosine) == pytest.approx(0.1)
    linear = replace(RECIPE, schedule="linear", warmup_ratio=0.0, min_lr_ratio=0.0)
    assert [lr_factor(step, 10, linear) for step in (0, 5, 10)] == [1, 0.5, 0]


def test_metrics_by_hand() -> None:
    labels, predictions = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 0, 0, 1])
    values = metrics(labels, predictions, 2)
    # true positives 2, false positives 1, false negatives 1, true negatives 2
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert values["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert values["mcc"] == pytest.approx((2 * 2 - 1 * 1) / math.sqrt(3 * 3 * 3 * 3))
    assert metrics(labels, np.zeros(6, dtype=int), 2) == {"accuracy": 0.5, "mcc": 0.0, "f1": 0.0}
    assert set(metrics(np.array([0, 1, 2]), np.array([0, 1, 1]), 3)) == {"accuracy", "mcc"}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    glue = tmp_path / "glue"
    glue.mkdir()
    rows = examples(pairs=True)
    for name, part in (("mnli.train", rows), ("mnli.valid", rows[:6]), ("mnli-mm.valid", rows[6:])):
        write_rows(
            glue / f"{name}.jsonl", [{"premise": e.first, "hypothesis": e.second, "label": e.label} for e in part]
        )
    for name, part in (("cola.train", rows), ("cola.valid", rows)):
        write_rows(glue / f"{name}.jsonl", [{"sentence": e.second, "label": e.label} for e in part])
    write_rows(glue / "sst2.valid.jsonl", [{"sentence": "nice", "label": 1}])
    return glue


def test_document_of_results(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    models = [tiny("roberta", tokenizer), tiny("modernbert", tokenizer)]
    document = evaluate_glue(models, tokenizer, folder, GlueOptions(seeds=(1, 2), epochs=2), protocol="babylm2024")
    assert document["suite"] == "glue" and document["protocol"] == "babylm2024"
    assert [member["member"] for member in document["members"]] == ["peer_1", "peer_2"]
    for member in document["members"]:
        rows = {row["paradigm"]: row for row in member["paradigms"]}
        assert list(rows) == ["cola", "mnli", "mnli-mm"]
        assert member["score"] == pytest.approx(np.mean([row["score"] for row in rows.values()]))
        assert [row["n"] for row in rows.values()] == [16, 6, 10] and member["n"] == 32
        assert rows["cola"]["metric"] == "mcc" and rows["cola"]["selected_by"] == "f1"
        assert rows["mnli"]["selected_by"] == "accuracy"
        for row in rows.values():
            assert row["score"] == pytest.approx(row["all_metrics"][row["metric"]])
        assert rows["mnli-mm"]["best_epochs"] == rows["mnli"]["best_epochs"]  # one training
        for row in rows.values():
            assert len(row["per_seed"]) == 2 and row["score"] == pytest.approx(np.mean(row["per_seed"]))
            assert row["majority_class"] == 50
    skipped = {entry["task"]: entry["reason"] for entry in document["skipped"]}
    assert skipped["sst2"] == "no sst2.train.jsonl in glue"
    assert skipped["wsc"] == "no wsc.train.jsonl and no wsc.valid.jsonl in glue"
    assert len(skipped) == 8
    assert document["settings"]["recipe"]["max_length"] == 32  # the models' window
    assert document["settings"]["seeds"] == [1, 2]
    json.dumps(document, allow_nan=False)


def test_a_tokenizer_that_takes_less_than_its_model_is_told(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    short = copy.deepcopy(tokenizer)
    short.model_max_length = 12
    document = evaluate_glue(tiny("roberta", short), short, folder, GlueOptions(["mnli"], seeds=(1,), epochs=1))
    assert document["settings"]["recipe"]["max_length"] == 12


def test_three_seeds_from_the_protocols_own_are_usual(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    options = GlueOptions(["mnli"], None, epochs=1)
    document = evaluate_glue(tiny("roberta", tokenizer), tokenizer, folder, options, protocol="babylm2025")
    first = GLUE_PROTOCOLS["babylm2025"].seed
    assert document["settings"]["seeds"] == [first, first + 1, first + 2]


def test_each_task_gets_its_settings(
    folder: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = []

    def record(model, tokenizer, train, valid, *, recipe, **options) -> FineTuned:
        recipes.append(recipe)
        predictions = {name: np.array([example.label for example in part]) for name, part in valid.items()}
        return FineTuned(predictions, 1, (1.0,), (0.0,))

    row = {"text": "a b", "span1_text": "a", "span2_text": "b", "question": "q", "passage": "p"}
    for task in ("wsc", "boolq"):
        for split in ("train", "valid"):
            write_rows(folder / f"{task}.{split}.jsonl", [{**row, "label": label} for label in (0, 1)])
    monkeypatch.setattr(glue, "finetune", record)
    tasks = ["boolq", "mnli", "wsc"]
    document = evaluate_glue(tiny("roberta", tokenizer), tokenizer, folder, GlueOptions(tasks, [0]))
    assert [(recipe.batch_size, recipe.epochs) for recipe in recipes] == [(16, 10), (32, 10), (32, 30)]
    assert document["members"][0]["member"] == "model" and document["members"][0]["score"] == 100
    evaluate_glue(tiny("roberta", tokenizer), tokenizer, folder, GlueOptions(["wsc"], [0, 1], epochs=2))
    assert [recipe.epochs for recipe in recipes[3:]] == [2, 2]


def test_a_run_gets_its_glue_document(folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    run_folder = tmp_path / "run"
    tiny("gpt2", tokenizer).save_pretrained(paths.peer(run_folder, 1))
    save_tokenizer(tokenizer, paths.peer(run_folder, 1))
    paths.write_json(run_folder / "config.json", {"format": FORMAT, "config": {"model": {"objective": "clm"}}})
    paths.write_json(run_folder / "done.json", {"peer_weights": [1.0]})
    options = GlueOptions(["mnli"], [0], max_train=8, max_valid=4, epochs=1)
    document = evaluate_run_glue(run_folder, folder, options)
    assert json.loads((run_folder / "evaluation" / "glue-babylm2025.json").read_text()) == document
    assert document["members"][0]["paradigms"][0]["n"] == 4
    assert document["settings"]["max_train"] == 8
    path = run_folder / "evaluation" / "glue-babylm2025.json"
    stamp = path.stat().st_mtime_ns
    twice = replace(options, tasks=["mnli", "mnli"], seeds=[0, 0])
    assert evaluate_run_glue(run_folder, folder, twice) == document
    assert path.stat().st_mtime_ns == stamp  # the same settings: nothing is fine-tuned twice
    more = replace(options, max_train=9)
    with pytest.raises(UserError, match="glue-babylm2025.json has this evaluation with other settings .* --force"):
        evaluate_run_glue(run_folder, folder, more)
    assert path.stat().st_mtime_ns == stamp
    assert evaluate_run_glue(run_folder, folder, more, force=True)["settings"]["max_train"] == 9
    assert path.stat().st_mtime_ns > stamp


def test_the_best_peer_alone_is_fine_tuned(
    folder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three peers the second; a run that has all three has the best one too."""
    run_folder, tuned = tmp_path / "run", []
    for index in (1, 2, 3):
        tiny("gpt2", tokenizer).save_pretrained(paths.peer(run_folder, index))
        save_tokenizer(tokenizer, paths.peer(run_folder, index))
    paths.write_json(run_folder / "config.json", {"format": FORMAT, "config": {"model": {"objective": "clm"}}})
    paths.write_json(run_folder / "done.json", {"peer_weights": [0.3, 0.4, 0.3], "best_peer": 2})
    real = glue.finetune

    def finetune(model: Any, *arguments: Any, **options: Any) -> Any:
        tuned.append(Path(model.name_or_path).name)
        return real(model, *arguments, **options)

    monkeypatch.setattr(glue, "finetune", finetune)
    options = GlueOptions(["mnli"], [0], max_train=8, max_valid=4, epochs=1)
    document = evaluate_run_glue(run_folder, folder, options, best=True)
    assert [member["member"] for member in document["members"]] == ["peer_2"] and tuned == ["peer_2"]
    whole = evaluate_run_glue(run_folder, folder, options)
    assert [member["member"] for member in whole["members"]] == ["peer_1", "peer_2", "peer_3"] and len(tuned) == 4
    assert evaluate_run_glue(run_folder, folder, options, best=True) == whole and len(tuned) == 4
    with pytest.raises(UserError, match="--best is for glue"):
        evaluate_target(run_folder, "blimp", load_preset("nursery"), tmp_path, best=True)


def test_bad_input_is_named(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny("roberta", tokenizer)
    with pytest.raises(UserError, match="no GLUE protocol 'glue'"):
        evaluate_glue(model, tokenizer, folder, protocol="glue")
    with pytest.raises(UserError, match="babylm2025 has no task 'cola'"):
        evaluate_glue(model, tokenizer, folder, GlueOptions(["cola"]))
    with pytest.raises(UserError, match="has the files of no task"):
        evaluate_glue(model, tokenizer, folder, GlueOptions(["rte", "wsc"]))
    with pytest.raises(UserError, match="max_train is 0; expected at least 1"):
        evaluate_glue(model, tokenizer, folder, GlueOptions(["mnli"], max_train=0))
    with pytest.raises(UserError, match="seeds is empty"):
        evaluate_glue(model, tokenizer, folder, GlueOptions(["mnli"], seeds=[]))
    assert len(_read(folder / "mnli.train.jsonl", 8, 4)) == 8 and len(_read(folder / "mnli.valid.jsonl", 8, 4)) == 4
    for row, message in (
        ({"premise": "a", "hypothesis": "b", "label": 3}, "mnli.valid.jsonl line 1 has label 3"),
        ({"premise": "a", "label": 0}, "mnli.valid.jsonl line 1 has no value for 'hypothesis'"),
        ({"premise": "a", "hypothesis": None, "label": 0}, "mnli.valid.jsonl line 1 has no value for 'hypothesis'"),
        ({"premise": "a", "hypothesis": "b", "label": -1}, "mnli.valid.jsonl line 1 has label -1"),
        ({"premise": "a", "hypothesis": "b", "label": "yes"}, "mnli.valid.jsonl line 1 has label 'yes'"),
    ):
        write_rows(folder / "mnli.valid.jsonl", [row])
        with pytest.raises(UserError, match=message):
            evaluate_glue(model, tokenizer, folder, GlueOptions(["mnli"]))
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = math.nan
    with pytest.raises(UserError, match="fine-tuning loss of cola is nan in epoch 1; .* leave this task out"):
        evaluate_glue(model, tokenizer, folder, GlueOptions(["cola"]), protocol="babylm2024")


def test_settings_of_the_years() -> None:
    old, new = GLUE_PROTOCOLS["babylm2024"], GLUE_PROTOCOLS["babylm2025"]
    assert len(old.tasks) == 11 and len(new.tasks) == 7
    assert (old.recipe.lr, old.recipe.batch_size, old.recipe.max_length, old.recipe.patience) == (5e-5, 64, 128, 3)
    assert (new.recipe.lr, new.recipe.batch_size, new.recipe.max_length, new.recipe.patience) == (3e-5, 32, 512, None)
    assert {name for name, task in TASKS.items() if task.metric == "f1"} == {"mrpc", "qqp"}
    assert "mnli" not in old.f1_selects and "rte" in old.f1_selects and new.f1_selects == ("mrpc", "qqp")


@pytest.mark.skipif(not GLUE.is_dir(), reason="needs the (Super)GLUE files of ../shared/data, which are not shipped")
def test_all_real_files_fit_the_templates() -> None:
    counts = {file.name: len(_read(file, 50, 50)) for file in sorted(GLUE.glob("*.jsonl"))}
    assert set(counts.values()) == {50} and len(counts) == 18
    (wsc,) = _read(GLUE / "wsc.valid.jsonl", None, 1)
    assert wsc.first == 'Does "he" refer to "Joe" in this passage?' and wsc.second is not None


def test_the_recipe_s_optimizer_and_an_order_of_its_own_for_each_epoch(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[list[tuple[int, ...]]] = []
    rates: list[float] = []
    decays: set[float] = set()
    clips: set[float] = set()

    def noted(classifier: Any, batches: Any, optimizer: Any, scheduler: Any, clip: float) -> float:
        batches = list(batches)
        rows = [row for ids, *_ in batches for row in (ids * (ids != tokenizer.pad_token_id)).tolist()]
        orders.append([tuple(row) for row in rows])
        rates.append(scheduler.get_last_lr()[0])
        decays.update(group["weight_decay"] for group in optimizer.param_groups)
        clips.add(clip)
        return float(_train_epoch(classifier, batches, optimizer, scheduler, clip))

    monkeypatch.setattr(sys.modules[finetune.__module__], "_train_epoch", noted)
    falling: dict[str, Any] = {"lr": 1e-3, "schedule": "linear", "warmup_ratio": 0.0, "min_lr_ratio": 0.0}
    recipe = replace(RECIPE, epochs=4, batch_size=6, weight_decay=0.3, grad_clip=0.7, **falling)
    run(tokenizer, replace(recipe, drop_last=False))
    assert [len(order) for order in orders] == [16] * 4 and len({str(order) for order in orders}) == 4
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert decays == {0.3} and clips == {0.7}
    orders.clear()
    run(tokenizer, replace(recipe, drop_last=True))
    assert [len(order) for order in orders] == [12] * 4


@pytest.mark.parametrize(
    ("family", "head", "layers"),
    [("roberta", "gelu", 1), ("gpt2", "gelu", 1), ("roberta", "tanh", 2), ("gpt2", "tanh", 0)],
)
def test_heads_have_the_recipe_s_dropout(
    family: str, head: Any, layers: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    recipe = replace(RECIPE, head=head, dropout=0.3)
    classifier = Classifier(tiny(family, tokenizer), FAMILIES[family], 3, recipe)  # type: ignore[arg-type]
    assert [layer.p for layer in classifier.head if isinstance(layer, torch.nn.Dropout)] == [0.3] * layers


def test_the_majority_class_is_the_most_frequent_one(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write_rows(folder / "cola.valid.jsonl", [{"sentence": "nice", "label": label} for label in (1, 1, 1, 0)])
    options = GlueOptions(("cola",), (1,), epochs=1)
    document = evaluate_glue(tiny("roberta", tokenizer), tokenizer, folder, options, protocol="babylm2024")
    assert document["members"][0]["paradigms"][0]["majority_class"] == 75


def test_an_epoch_is_chosen_by_the_metric_that_the_protocol_names(
    folder: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions 1 1 0 0 of 1 0 0 0: F1 2/3 (CoLA in 2024), accuracy 3/4 (MNLI)."""
    found = []

    def noted(*arguments: Any, select: Any, **more: Any) -> FineTuned:
        found.append(select(np.array([1, 0, 0, 0]), np.array([1, 1, 0, 0])))
        return finetune(*arguments, select=select, **more)

    monkeypatch.setattr(glue, "finetune", noted)
    options = GlueOptions(("cola", "mnli"), (1,), epochs=1)
    evaluate_glue(tiny("roberta", tokenizer), tokenizer, folder, options, protocol="babylm2024")
    assert found == pytest.approx([2 / 3, 0.75])
