"""Ensembles of a run's peers under its own, equal and fitted weights."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_runs import weigh, write_study
from scipy.optimize import OptimizeResult

from wmlkit import bilevel, paths, results, study
from wmlkit.config import config_of_run
from wmlkit.data import texts
from wmlkit.data.prepared import open_prepared
from wmlkit.data.texts import open_texts
from wmlkit.data.tokenizer import load_tokenizer
from wmlkit.errors import UserError
from wmlkit.evaluate import ensembles
from wmlkit.evaluate.ensembles import NAMES, evaluate_run_ensembles, fitted_weights
from wmlkit.evaluate.run_text import prepared_of
from wmlkit.reference import results_section
from wmlkit.report import write_report
from wmlkit.run_files import run_document
from wmlkit.tables import write_tables


def loss_of(logits: torch.Tensor, targets: torch.Tensor, weights: Any) -> float:
    return float(bilevel.outer_loss(list(logits), targets, torch.tensor(weights), "logit_ensemble"))


def test_no_weights_on_a_grid_are_better_than_the_fitted_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(5, (40,), generator=generator)
    signal = 2.0 * torch.nn.functional.one_hot(targets, 5)
    logits = torch.stack([noise * torch.randn(40, 5, generator=generator) + signal for noise in (1.0, 1.5, 4.0)])
    found = fitted_weights(logits, targets)
    assert found.sum() == pytest.approx(1) and (found >= 0).all() and found[0] > found[1] > 0.1
    grid = [(a / 20, b / 20, (20 - a - b) / 20) for a, b in product(range(21), repeat=2) if a + b <= 20]
    losses = {weights: loss_of(logits, targets, weights) for weights in grid}
    assert loss_of(logits, targets, found.tolist()) <= min(losses.values())
    assert np.abs(found - min(losses, key=lambda weights: losses[weights])).max() <= 0.05


def test_a_peer_that_knows_nothing_gets_no_weight() -> None:
    targets = torch.tensor([0, 1, 0])
    right = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    assert fitted_weights(torch.stack([-right, right, torch.zeros(3, 2)]), targets) == pytest.approx([0, 1, 0])


def test_a_fit_that_stopped_too_early_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two peers, one position: CE = log(1 + e^(4 w_2 - 4 w_1)), its slope at equal weights (-2, 2), so a gap of 2."""
    logits, targets = torch.tensor([[[4.0, 0.0]], [[0.0, 4.0]]]), torch.tensor([0])
    with pytest.raises(UserError, match=r"may be nan nats above"):
        fitted_weights(logits * torch.nan, targets)
    monkeypatch.setattr(ensembles, "minimize", lambda *_, **__: OptimizeResult(x=np.array([0.5, 0.5]), message="early"))
    with pytest.raises(UserError, match=r"may be 2 nats above the lowest held-out loss were found \(early\)"):
        fitted_weights(logits, targets)


@pytest.fixture
def run(trained_out: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_out, tmp_path / "out")
    return next((tmp_path / "out" / "smoke").glob("dml-p2-*"))


def test_losses_are_those_that_training_ends_with(run: Path) -> None:
    paths.ensembles(run).unlink(missing_ok=True)
    document, done = evaluate_run_ensembles(run), paths.read_json(run / "done.json")
    own, uniform, fitted = document["members"]
    assert [member["member"] for member in document["members"]] == list(NAMES)
    assert own["weights"] == done["peer_weights"] and uniform["weights"] == [0.5, 0.5]
    assert own["dev_ce"] == done["dev_ce_ensemble"] and own["held_out_ce"] == done["held_out_ce_ensemble"]
    assert fitted["held_out_ce"] <= min(own["held_out_ce"], uniform["held_out_ce"]) + 1e-6
    assert sum(fitted["weights"]) == pytest.approx(1)
    assert paths.read_json(paths.ensembles(run)) == document


def test_weights_are_fitted_on_held_out_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of_run(run_document(run)["config"], run / "config.json")
    prepared = open_prepared(prepared_of(run))
    held_out = open_texts(config, prepared, load_tokenizer(prepared.folder / "tokenizer")).held_out
    batches = [held_out.source(number, config.train.mask_ratio) for number in range(held_out.batches())]
    expected = torch.cat([batch.targets[batch.scored] for batch in batches])
    seen: list[torch.Tensor] = []
    fit = ensembles.fitted_weights
    monkeypatch.setattr(ensembles, "fitted_weights", lambda *of: seen.append(of[1]) or fit(*of))
    evaluate_run_ensembles(run, force=True)
    assert torch.equal(seen[0], expected)


def test_what_is_known_is_not_measured_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = evaluate_run_ensembles(run, force=True)
    monkeypatch.setattr(ensembles, "losses_on", lambda *_: pytest.fail("measured again"))
    assert evaluate_run_ensembles(run) == document
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        evaluate_run_ensembles(run, force=True)
    done = paths.read_json(run / "done.json")
    paths.write_json(run / "done.json", done | {"peer_weights": [0.9, 0.1]})  # trained again, say
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        evaluate_run_ensembles(run)


def test_a_text_too_long_is_fitted_on_its_beginning(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MEASURED_TOKENS", 256)  # several batches of this little text
    whole = evaluate_run_ensembles(run, force=True)["members"]
    tokens = 2 * len(load_tokenizer(run / "peers" / "peer_1"))  # numbers of two peers' logits
    monkeypatch.setattr(ensembles, "FLOATS", 101 * tokens - 1)
    seen: list[int] = []
    fit = ensembles.fitted_weights
    monkeypatch.setattr(ensembles, "fitted_weights", lambda *of: seen.append(len(of[1])) or fit(*of))
    first = evaluate_run_ensembles(run)["members"]  # of another number of tokens, so not the one that is known
    assert first[0] == whole[0]
    monkeypatch.setattr(ensembles, "FLOATS", 2**27)
    evaluate_run_ensembles(run)
    assert seen[0] == 100 < seen[1]


def test_a_run_of_one_peer_has_none(tmp_path: Path) -> None:
    (folder,) = write_study(tmp_path / "nursery", (("independent", 1),), seeds=(0,)).glob("*-p1-*")
    with pytest.raises(UserError, match="has one peer; expected several"):
        evaluate_run_ensembles(folder)


def test_a_study_measures_them(run: Path) -> None:
    config = config_of_run(run_document(run)["config"], run / "config.json")
    paths.ensembles(run).unlink(missing_ok=True)
    out = run.parents[1]
    study.evaluate_all(run, config, out)
    assert study._is_done(run, config, out, "all")
    paths.ensembles(run).unlink()
    assert not study._is_done(run, config, out, "all") and study._is_done(run, config, out, "train")


def test_tables_and_the_answer_have_them(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("independent", 2), ("wml", 2), ("distill", 2)))
    before = results.dev_table(folder)
    assert "fitted_ensemble" not in set(before["member"])
    weigh(folder)
    table = results.dev_table(folder)
    both = table.pivot_table(index="run", columns="member", values="score")
    assert (both["ensemble"] - both["fitted_ensemble"]).dropna().tolist() == pytest.approx([0.5] * 9)
    assert (both["ensemble"] - both["uniform_ensemble"]).dropna().tolist() == pytest.approx([0.25] * 9)
    write_tables(folder)
    write_report(folder)
    basis = paths.read_json(folder / "answer.json")["basis"]
    assert sum("fitted ensemble" in sentence for sentence in basis) == 3  # wml against two arms, and what it is
    *accuracies, loss = (part for part in results_section(folder).split("\n\n") if part.startswith("| arm |"))
    assert "| fitted ensemble |" in loss and accuracies and not any("fitted" in part for part in accuracies)


@pytest.mark.parametrize("broken", [{}, [5], [{"member": "fitted_ensemble"}], [{"member": "x", "dev_ce": "low"}]])
def test_a_file_of_another_form_is_named(tmp_path: Path, broken: Any) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0,))
    weigh(folder)
    (run,) = folder.glob("wml-*")
    members = {"members": broken} if broken else {}
    paths.write_json(paths.ensembles(run), {"settings": {}, **members})
    with pytest.raises(UserError, match=r"ensembles.json has no .*'members'"):
        results.dev_table(folder)
