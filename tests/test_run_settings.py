"""Runs are of one setting where what they were made from is the same, wherever it lay."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_runs import write_run, write_study

from wmlkit import paths, results
from wmlkit.config import Config, load_preset
from wmlkit.errors import UserError
from wmlkit.identity import SHAPING
from wmlkit.run_settings import beside_main
from wmlkit.runs import check_alike, read_runs


def test_text_that_lay_elsewhere_is_the_same_text(tmp_path: Path) -> None:
    """As in a run's identity, where its content counts and its place does not."""
    folder = tmp_path / "mine"
    for seed, mount in enumerate(("/home", "/home", "/scratch")):
        places = {"data.corpus": f"{mount}/text", "data.tokenizer": f"{mount}/tokens", "data.legality": f"of {mount}"}
        write_run(folder, "wml", 2, seed, places)
    assert {run.setting for run in read_runs(folder)} == {""}


def test_the_main_runs_are_those_on_the_preset_s_own_text(tmp_path: Path) -> None:
    folder, resolved = tmp_path / "nursery", load_preset("nursery").resolved()
    shipped = {f"{section}.{name}": value for section in SHAPING for name, value in resolved[section].items()}
    shipped["mutual.num_peers"] = 2
    for seed in (0, 1):
        path = (
            write_run(folder, "wml", 2, seed, {**shipped, "train.seed": seed, "data.corpus": "/home/text"})
            / "config.json"
        )
        paths.write_json(path, {**paths.read_json(path), "data": {"folder": "x", "hash": "f" * 64, "name": "text"}})
    write_run(folder, "wml", 2, 2, {**shipped, "train.seed": 2})
    assert [run.setting for run in read_runs(folder)] == ["", 'data.hash="ffffffff"', 'data.hash="ffffffff"']


def test_a_saved_search_is_its_shapes(tmp_path: Path) -> None:
    for seed, file in enumerate(("/home/shapes.json", "/scratch/shapes.json")):
        write_run(tmp_path, "wml", 3, seed, {"search.saved": file})
        write_run(tmp_path, "dml", 2, seed, {"search.saved": file})  # the first two of the same shapes
    assert {run.setting for run in read_runs(tmp_path)} == {""}
    path = next(tmp_path.glob("wml-p3-s1-*")) / "config.json"
    document = paths.read_json(path)
    document["students"][2]["num_heads"] = 4
    paths.write_json(path, document)
    settings = {(run.arm, run.seed): run.setting for run in read_runs(tmp_path)}
    assert settings.pop(("wml", 1)).startswith("search.saved=") and set(settings.values()) == {""}


def test_a_given_teacher_is_its_hash(tmp_path: Path) -> None:
    def noted(seed: int, place: str, teacher_hash: str) -> None:
        path = write_run(tmp_path, "distill", 2, seed, {"mutual.teacher": place}) / "done.json"
        record = {"name": "m", "run": None, **dict.fromkeys(("dev_ce", "tokens", "words", "flops", "seconds"))}
        paths.write_json(path, {**paths.read_json(path), "teacher": record | {"hash": teacher_hash}})

    def settings() -> list[str]:
        return [run.setting for run in read_runs(tmp_path)]  # by seed, where all are the same

    noted(0, "/home/m", "a" * 64)
    noted(1, "/scratch/m", "a" * 64)
    assert settings() == ["", ""]
    noted(2, "/home/m", "b" * 64)
    assert sorted(settings()) == ["", "", 'mutual.teacher="bbbbbbbb"']


def test_settings_beside_the_main_ones(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", (("wml", 2),), seeds=(0, 1), protocols=())
    write_run(folder, "wml", 2, 0, {"mutual.alpha": 0.9})
    runs, main = read_runs(folder), Config(preset="mine")
    assert beside_main([], main) == ""
    same = {"mutual.arm": "dml", "mutual.num_peers": 4, "train.seed": 7, "study.seeds": [5]}
    assert beside_main(runs, main.updated({**same, "mutual.teacher_steps": 3})) == ""  # none of these has a teacher
    assert beside_main(runs, main.updated({**same, "mutual.frozen_teacher": True})) == "mutual.frozen_teacher=true"
    assert beside_main(runs, main.updated({"mutual.alpha": 0.9, "data.corpus": "texts/my own"})) == (
        'mutual.alpha=0.9 data.corpus="my own"'
    )
    assert beside_main(runs, main.updated({"data.corpus": "büyük"})) == 'data.corpus="büyük"'


def test_masks_that_no_causal_run_draws_are_no_setting_of_it(tmp_path: Path) -> None:
    causal = {"model.family": "llama", "model.objective": "clm"}
    for seed, ratio in enumerate((0.2, 0.2, 0.3)):
        write_run(tmp_path, "wml", 2, seed, {**causal, "train.mask_ratio": ratio})
    for seed, ratio in enumerate((0.15, 0.15, 0.3), start=3):
        write_run(tmp_path, "wml", 2, seed, {**causal, "train.mask_ratio": ratio, "train.mntp_share": 0.5})
    runs = {run.seed: run.setting for run in read_runs(tmp_path)}
    mntp = "train.mntp_share=0.5"
    assert runs == {0: "", 1: "", 2: "", 3: mntp, 4: mntp, 5: f"train.mask_ratio=0.3 {mntp}"}
    main = Config(preset=tmp_path.name).updated({**causal, "train.mask_span": 3})
    assert beside_main(read_runs(tmp_path), main) == ""
    assert beside_main(read_runs(tmp_path), main.updated({"train.mntp_share": 0.1})) == "train.mntp_share=0.1"


def test_a_teacher_of_other_settings_is_not_that_of_the_main_runs(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", (("independent", 2), ("distill", 2)), seeds=(0,), protocols=())
    runs, main = read_runs(folder), Config(preset="mine")
    assert beside_main(runs, main) == ""
    assert beside_main(runs, main.updated({"mutual.teacher_steps": 3})) == "mutual.teacher_steps=3"
    assert beside_main(runs, main.updated({"mutual.teacher": "there/other"})) == 'mutual.teacher="other"'
    saved = write_study(tmp_path / "given", (("distill", 2),), (0,), (), overrides={"mutual.teacher": "/home/m"})
    elsewhere = Config(preset="given").updated({"mutual.teacher": "/scratch/m"})
    assert beside_main(read_runs(saved), elsewhere) == ""  # by its name: it is not read here


def test_peers_that_learn_from_no_other_have_no_weight_in_their_loss(tmp_path: Path) -> None:
    for arm in ("independent", "wml"):
        write_run(tmp_path, arm, 2, 0, {"mutual.ce_weight": "peer" if arm == "independent" else "one"})
    assert [run.setting for run in read_runs(tmp_path)] == ["", ""]


def test_the_outer_problem_tells_no_arms_apart_that_have_none(tmp_path: Path) -> None:
    for arm in ("independent", "distill", "wml"):
        write_run(tmp_path, arm, 2, 0, {"outer.lr": 0.5} if arm == "wml" else {})
    assert [run.setting for run in read_runs(tmp_path)] == ["", "", ""]
    write_run(tmp_path, "distill", 2, 1, {"mutual.alpha": 0.9})
    assert [run.setting for run in read_runs(tmp_path)].count("mutual.alpha=0.9") == 1


def test_text_that_was_edited_is_other_text(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", (("wml", 2),), seeds=(0,), protocols=())
    (run,) = read_runs(folder)
    elsewhere = Config(preset="mine").updated({"data.corpus": "/elsewhere/texts"})  # the same text counts as the same
    check_alike(folder, elsewhere, lambda: run.data["hash"])
    with pytest.raises(UserError, match='for runs with data.hash="ffffffff"; give one'):
        check_alike(folder, Config(preset="mine"), lambda: "f" * 64)
    check_alike(tmp_path / "none", elsewhere, lambda: pytest.fail("no runs: no text is prepared"))


def test_arms_of_another_precision_are_not_paired(tmp_path: Path) -> None:
    """Seeds 0 and 1 in fp32, seed 2 of one arm on a card in bf16; what was asked for, "auto", is the same for all."""
    folder = tmp_path / "nursery"
    for arm in ("wml", "dml"):
        for seed in (0, 1, 2):
            run = write_run(folder, arm, 2, seed)
            if (arm, seed) == ("wml", 2):
                facts = paths.read_json(run / "environment.json")
                paths.write_json(run / "environment.json", facts | {"device": "cuda", "precision": "bf16"})
    found = {(run.arm, run.seed): run.setting for run in read_runs(folder)}
    assert found.pop(("wml", 2)) == 'precision="bf16"' and set(found.values()) == {""}
    scores = results.dev_table(folder)
    pairs = results.paired_differences(scores[scores["member"] == "ensemble"])
    assert pairs[(pairs["a"] == "wml") & (pairs["b"] == "dml")]["seeds"].tolist() == ["0 1"]


def test_a_teacher_as_shipped_is_the_main_one_though_most_runs_have_another(tmp_path: Path) -> None:
    folder, resolved = tmp_path / "nursery", load_preset("nursery").resolved()
    shipped = {f"{section}.{name}": value for section in SHAPING for name, value in resolved[section].items()}
    for seed, more in enumerate(({}, {"mutual.teacher_steps": 7}, {"mutual.teacher_steps": 7})):
        write_run(folder, "distill", 2, seed, {**shipped, "mutual.num_peers": 2, **more, "train.seed": seed})
    other = "mutual.teacher_steps=7"
    assert {run.seed: run.setting for run in read_runs(folder)} == {0: "", 1: other, 2: other}


def test_some_run_is_a_main_one_however_they_differ(tmp_path: Path) -> None:
    """Each setting that most runs have, taken by itself, may be what no run has, and there would be nothing to draw."""
    for seed, (steps, ratio) in enumerate(((100, 0.1), (200, 0.4), (300, 0.4))):
        write_run(tmp_path / "masks", "wml", 2, seed, {"train.steps": steps, "train.mask_ratio": ratio})
    assert [run.setting for run in read_runs(tmp_path / "masks")] == [
        "", "train.steps=200 train.mask_ratio=0.4", "train.steps=300 train.mask_ratio=0.4",
    ]  # fmt: skip
    for seed, (ratio, alpha) in enumerate(((0.1, 0.5), (0.1, 0.7), (0.3, 0.9), (0.4, 0.9))):
        write_run(tmp_path / "both", "wml", 2, seed, {"train.mask_ratio": ratio, "mutual.alpha": alpha})
    assert [run.setting for run in read_runs(tmp_path / "both")].count("") == 1
