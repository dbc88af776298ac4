"""Learning curves: what is scored when, that training does not notice, and that resuming gives the same points."""

from __future__ import annotations

import json

import pytest
from compare import interrupted

from wmlkit import checkpoint, evaluations, paths, train
from wmlkit.config import load_preset
from wmlkit.data.tokenizer import load_tokenizer, save_tokenizer
from wmlkit.errors import UserError
from wmlkit.evaluate import evaluate_pairs
from wmlkit.evaluate.curve import points_lacking, points_passed
from wmlkit.evaluate.pairs import check_window, load_peers, read_pairs
from wmlkit.evaluate.suites import pairs_folder
from wmlkit.identity import run_hash
from wmlkit.run_files import run_facts

TINY = {
    "data.words": 4000, "data.dev_words": 1500, "train.steps": 8, "train.eval_every": 4, "train.checkpoint_every": 3,
    "evaluate.per_paradigm": 3, "evaluate.curve_per_paradigm": 2, "evaluate.curve": [300, 900, 1_000_000],
}  # fmt: skip


def config(**changes):
    return load_preset("smoke", TINY | {key.replace("__", "."): value for key, value in changes.items()})


def everything(folder, wall_clock=("seconds", "tokens_per_second", "peak_memory")):
    """Metrics and curve without wall-clock fields, and the bytes of all exported files."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    points = {path.name: paths.read_json(path) for path in sorted(paths.curve(folder).glob("*.json"))}
    rows = [{k: v for k, v in row.items() if k not in wall_clock} for row in [*lines, *points.values()]]
    exported = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("peers/*/*"))}
    return rows[: len(lines)], dict(zip(points, rows[len(lines) :], strict=True)), exported


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def curved(out):
    return train.run(config(), out)


def test_points_are_due_when_their_words_are_passed():
    curve = (100, 200, 300)
    assert points_passed(curve, 0, 99, False) == []
    assert points_passed(curve, 0, 100, False) == [("words-0000000100", 100)]
    assert points_passed(curve, 100, 199, False) == []
    assert points_passed(curve, 150, 350, True) == [("words-0000000200", 200), ("words-0000000300", 300), ("end", None)]
    assert points_passed((), 0, 1000, True) == []


@pytest.mark.parametrize("curve", [[0], [2, 1], [5, 5]])
def test_a_curve_must_rise(curve):
    with pytest.raises(UserError, match="expected word counts above 0 in rising order"):
        config(evaluate__curve=curve)


@pytest.mark.parametrize(("arm", "dropout"), [("wml", 0.0), ("dml", 0.2)])
def test_training_does_not_notice_the_curve(out, tmp_path, arm, dropout):
    """Dropout would show a random number drawn, or a peer left in evaluation mode."""
    settings = config(mutual__arm=arm, model__dropout=dropout)
    without = settings.updated({"evaluate.curve": []})
    curved, plain = train.run(settings, out), train.run(without, tmp_path)
    assert plain.name == curved.name and not paths.curve(plain).exists()
    assert run_hash(settings, "x") == run_hash(without, "x")
    metrics, points, exported = everything(curved)
    assert list(points) == ["end.json", "words-0000000300.json", "words-0000000900.json"]
    assert everything(plain) == (metrics, {}, exported) and len(exported) > 4


def test_the_last_point_scores_what_was_exported(curved, out):
    point = paths.read_json(paths.curve(curved) / "end.json")
    done = paths.read_json(curved / "done.json")
    assert (point["step"], point["words"], point["target_words"]) == (8, done["words"], None)
    models, tokenizer = load_peers(curved)
    weights, objective = run_facts(curved)
    folder = pairs_folder(config(), "nursery", out)
    document, _ = evaluate_pairs(
        models, tokenizer, folder, suite="nursery", per_paradigm=2, ensemble_weights=weights, objective=objective
    )
    assert point["evaluations"] == [document] and document["members"][0]["n"] == 17 * 2
    table = evaluations.curve_table(out / "smoke")
    table = table[table["run"] == curved.name]
    assert list(table["target_words"].dropna().unique()) == [300, 900]
    assert list(table["step"].unique()) == sorted(table["step"].unique()) and table["step"].max() == 8
    best = table[table["member"] == "best_peer"].set_index("step")["score"]
    chosen = table[table["member"] == f"peer_{done['best_peer']}"].set_index("step")["score"]
    assert best.equals(chosen) and len(best) == 3


def test_resumed_equals_uninterrupted(out):
    """Stopped after a point that no checkpoint covers: it is scored again, the same."""
    settings = config(train__seed=5)
    folder = train.run(settings, out)
    expected = everything(folder)
    assert paths.read_json(paths.curve(folder) / "words-0000000900.json")["step"] in (4, 5)

    interrupted(settings, out, 6)
    assert [path.name for path in checkpoint.checkpoints(folder / "checkpoints")] == ["step-00000003"]
    assert (paths.curve(folder) / "words-0000000900.json").is_file()
    train.run(settings, out)
    assert everything(folder) == expected


def test_what_a_checkpoint_covers_has_been_scored(curved, out, monkeypatch):
    """Killed right after the checkpoint of the very step that passes a point."""
    step = paths.read_json(paths.curve(curved) / "words-0000000900.json")["step"]
    settings = config(train__seed=7, train__checkpoint_every=step)
    save = checkpoint.save

    def save_and_die(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(train.checkpoint, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train.run(settings, out)
    monkeypatch.undo()
    folder = train.run(settings, out)
    due = paths.read_json(paths.curve(folder) / "words-0000000900.json")
    assert due["step"] <= step and len(list(paths.curve(folder).glob("*.json"))) == 3


def test_pairs_too_long_for_the_students_are_found_before_training(out, monkeypatch):
    """With rows of 8 tokens; the longest of the curve's sentences is counted here, start and end token with it."""
    settings = config(data__block_size=8)
    prepared = train.prepare(settings.data, out)
    tokenizer = load_tokenizer(prepared.folder / "tokenizer")
    pairs = read_pairs(pairs_folder(settings, "nursery", out), "babylm2025", 2)
    longest = max(len(tokenizer(text)["input_ids"]) for pair in pairs for text in (pair.good, pair.bad))
    assert longest > 8
    expected = f"up to {longest} tokens .*window is 8; .*block_size={longest} or .*or train without a learning"
    with pytest.raises(UserError, match=expected):
        train.run(settings, out)
    assert not train.run_folder(settings, out).exists()
    wide = config(data__block_size=longest)
    check_window("nursery", pairs, tokenizer, wide, "babylm2025")
    with pytest.raises(UserError, match=f"window is {longest - 1}"):
        check_window("nursery", pairs, tokenizer, config(data__block_size=longest - 1), "babylm2025")


def test_a_tokenizer_of_a_model_with_a_shorter_window_does_not_stop_the_curve(out, tmp_path):
    """That of an exported model knows its window, which says nothing about the students."""
    prepared = train.prepare(config().data, out)
    given = save_tokenizer(load_tokenizer(prepared.folder / "tokenizer"), tmp_path / "given", 8)
    assert load_tokenizer(given).model_max_length == 8
    folder = train.run(config(data__tokenizer=str(given), train__steps=2), tmp_path)
    assert paths.read_json(paths.curve(folder) / "end.json")["evaluations"]
    assert load_tokenizer(folder / "peers" / "peer_1").model_max_length == 32


def test_peers_of_a_point_can_be_kept(out):
    folder = train.run(config(train__seed=6, evaluate__curve_export=True), out)
    last = paths.curve(folder) / "end"
    for index in (1, 2):
        exported = paths.peer(folder, index) / "model.safetensors"
        assert (last / f"peer_{index}" / "model.safetensors").read_bytes() == exported.read_bytes()
    early = paths.curve(folder) / "words-0000000300" / "peer_1" / "model.safetensors"
    assert early.read_bytes() != (last / "peer_1" / "model.safetensors").read_bytes()


def test_missing_pairs_are_found_before_training(tmp_path):
    with pytest.raises(UserError, match=r"evaluate.pairs is not set.*; or train without a learning curve"):
        train.run(config(evaluate__suites=["blimp"]), tmp_path)
    assert not list(tmp_path.glob("smoke/*"))
    folder = train.run(config(evaluate__suites=["blimp"], evaluate__curve=[], train__steps=1), tmp_path)
    assert (folder / "done.json").is_file()


def test_a_teacher_has_no_curve(out):
    settings = config(mutual__arm="teacher", mutual__num_peers=1)
    folder = train.run(settings, out)
    assert not paths.curve(folder).exists() and points_lacking(settings, folder) == []


def test_a_curve_asked_of_a_finished_run_is_told_to_be_lacking(curved):
    """Points behind the end of the run are not asked for: 1,000,000 words are more than it reads."""
    assert points_lacking(config(), curved) == []
    assert points_lacking(config(evaluate__curve=[]), curved) == []
    (told,) = points_lacking(config(evaluate__curve=[300, 500, 600, 1_000_000]), curved)
    assert "lacks 2 of 4 points" in told and "words-0000000500" in told and f"remove {curved} and run" in told
    assert points_lacking(config(evaluate__curve=[500], data__corpus="elsewhere"), curved) == []
