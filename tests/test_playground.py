"""What the playground computes, against the scorer, the evaluation and the training that it must agree with."""

from __future__ import annotations

import copy
import shutil
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from wmlkit import bilevel, paths, playground, results, train
from wmlkit.config import load_preset
from wmlkit.errors import UserError
from wmlkit.evaluate import evaluate_pairs, score_sentences
from wmlkit.figures import playground as figure_playground
from wmlkit.playground import Reading, Sample

TINY = {
    "data.words": 4000,
    "data.dev_words": 1500,
    "train.steps": 8,
    "train.log_every": 2,
}
CAUSAL = {"model.objective": "clm", "model.family": "gpt2"}
FIRST, SECOND = "Several bakers by this shelf sleep.", "The cat sees the dog."


def open_trained(folder, **changes):
    return playground.open_run(train.run(load_preset("smoke", TINY | changes), folder))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def masked(out):
    return open_trained(out)


@pytest.fixture(scope="module")
def causal(out):
    return open_trained(out, **CAUSAL)


@pytest.fixture(scope="module")
def sample(masked):
    return playground.draw_sample(masked, paths.out_of(masked.run))


@pytest.fixture(params=["masked", "causal"])
def peers(request):
    return request.getfixturevalue(request.param)


def test_token_scores_add_up_to_the_scores_of_the_evaluation(peers):
    weights = np.array([0.3, 0.7])
    tokens_a, tokens_b, verdict = playground.compare(replace(peers, weights=weights), FIRST, SECOND)
    expected = score_sentences(peers.models, peers.tokenizer, [FIRST, SECOND], ensemble_weights=weights)
    for name, row in zip(("peer_1", "peer_2", "ensemble"), peers.names, strict=True):
        sums = [tokens_a.loc[row].sum(), tokens_b.loc[row].sum()]
        assert sums == pytest.approx(expected[name], abs=1e-4)
        assert verdict.loc[row, ["first", "second"]].tolist() == pytest.approx(sums)
        assert verdict.loc[row, "prefers"] == ("the first" if sums[0] > sums[1] else "the second")
    assert "".join(label.split(" ")[1] for label in tokens_a.columns)[-6:] == "sleep."


def test_swapped_sentences_swap_the_verdict_and_equal_ones_tie(peers):
    _, _, verdict = playground.compare(peers, FIRST, SECOND)
    _, _, swapped = playground.compare(peers, SECOND, FIRST)
    assert (verdict["difference"] + swapped["difference"]).abs().max() < 1e-5
    assert set(verdict["prefers"] + swapped["prefers"]) <= {"the firstthe second", "the secondthe first"}
    assert (playground.compare(peers, FIRST, FIRST)[2]["prefers"] == "neither").all()


def test_the_blank_is_filled_as_transformers_would(masked):
    text = "The cat __ the dog."
    table = playground.fill(replace(masked, weights=np.array([1.0, 0.0])), text, top=3)
    inputs = masked.tokenizer("The cat<mask> the dog.", return_tensors="pt")
    place = inputs["input_ids"][0].tolist().index(masked.tokenizer.mask_token_id)
    for number, model in enumerate(masked.models, start=1):
        model.eval()
        with torch.no_grad():
            probabilities = model(**inputs).logits[0, place].softmax(-1)
        shown = [float(cell.split()[-2]) for cell in table[f"peer {number}"]]
        assert shown == pytest.approx((100 * probabilities.topk(3).values).tolist(), abs=0.051)
    assert table["ensemble"].tolist() == table["peer 1"].tolist()  # all weight is on peer 1
    assert table.index.tolist() == [1, 2, 3] and table.index.name == "rank"
    assert len(playground.fill(masked, text, top=10**6)) == masked.models[0].config.vocab_size  # all there are


def test_words_that_differ_in_the_space_before_them_are_told_apart(masked, monkeypatch):
    monkeypatch.setattr(type(masked.tokenizer), "decode", lambda self, ids: ("s", " s", " cat", "dog")[ids[0]])
    assert playground._told_apart(masked, torch.tensor([0, 1, 2, 3])) == ["-s", "s", "cat", "dog"]


def test_a_causal_model_sees_only_what_stands_before_the_blank(causal):
    a, b = (playground.fill(causal, f"The cat __ {rest}") for rest in ("the dog.", "all of these houses."))
    pd.testing.assert_frame_equal(a, b)
    with pytest.raises(AssertionError):
        pd.testing.assert_frame_equal(a, playground.fill(causal, "Several bakers by __ the dog."))


@pytest.mark.parametrize("text", ["The cat sees.", "The __ sees the __."])
def test_one_blank_is_expected(masked, text):
    with pytest.raises(UserError, match="expected one"):
        playground.fill(masked, text)


def test_long_and_empty_sentences_are_refused_in_words(peers):
    with pytest.raises(UserError, match="window"):
        playground.compare(peers, "the cat " * 50, SECOND)
    with pytest.raises(UserError, match="sentence 2 is empty"):
        playground.compare(peers, FIRST, " ")


def test_the_learned_weights_give_the_loss_that_training_reported(peers):
    done = paths.read_json(peers.run / "done.json")
    sample = playground.draw_sample(peers, paths.out_of(peers.run))
    assert playground.ensemble_effect(sample, peers.weights)[0] == pytest.approx(done["dev_ce_ensemble"], abs=1e-5)
    for peer, expected in enumerate(done["dev_ce"]):
        assert playground.ensemble_effect(sample, np.eye(2)[peer])[0] == pytest.approx(expected, abs=1e-5)


def test_the_accuracy_is_that_of_the_evaluation(peers):
    out = paths.out_of(peers.run)
    sample = playground.draw_sample(peers, out)
    assert sample.count == 17 * 6
    weights = [0.2, 0.8]
    (folder,) = (out / "data").glob("nursery-pairs-*")
    document, _ = evaluate_pairs(peers.models, peers.tokenizer, folder, ensemble_weights=weights)
    score = {member["member"]: member["score"] for member in document["members"]}
    assert playground.ensemble_effect(sample, np.array(weights))[1] == pytest.approx(score["ensemble"])
    assert playground.ensemble_effect(sample, np.array([0.0, 1.0]))[1] == pytest.approx(score["peer_2"])


def test_a_small_sample_keeps_whole_pairs(masked, sample):
    room = 4 * len(masked.models) * len(masked.tokenizer) * 60
    few = playground.draw_sample(masked, paths.out_of(masked.run), cells=room)
    assert 1 <= few.count < sample.count
    assert few.dev.logits.numel() + few.pairs.logits.numel() <= room
    assert set(few.pairs.text) == set(range(2 * few.count))
    torch.testing.assert_close(few.pairs.logits, sample.pairs.logits[:, : few.pairs.logits.shape[1]])


def test_pairs_that_the_window_cannot_hold_are_left_out(masked, sample):
    """As the nursery's may be, to a tokenizer of a text in another script; where none fits the first is named."""
    short = copy.deepcopy(masked.tokenizer)
    lengths = np.bincount(sample.pairs.text) + 2  # with start and end
    short.model_max_length = int(np.median(lengths))
    few = playground.draw_sample(replace(masked, tokenizer=short), paths.out_of(masked.run))
    fitting = lengths.reshape(-1, 2).max(axis=1) <= short.model_max_length
    assert few.count == fitting.sum() < sample.count
    short.model_max_length = 3
    with pytest.raises(UserError, match="the model's window is 3; shorten it"):
        playground.draw_sample(replace(masked, tokenizer=short), paths.out_of(masked.run))


def test_edges_run_from_the_others_alone_to_the_peer_alone(masked, sample):
    lines = playground.edges(sample, masked.weights, points=3)
    assert lines["peer"].tolist() == [1, 1, 1, 2, 2, 2] and lines["weight"].tolist() == [0.0, 0.5, 1.0] * 2
    alone = [playground.ensemble_effect(sample, np.eye(2)[peer])[0] for peer in (0, 1)]
    ends = lines["dev_ce"][[0, 2, 3, 5]]
    assert ends.tolist() == pytest.approx([alone[1], alone[0], alone[0], alone[1]])


@pytest.mark.parametrize("weights", [[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]])
def test_moving_one_weight_stays_on_the_simplex_and_keeps_proportions(weights):
    for peer in range(4):
        for share in (0.0, 0.3, 1.0):
            moved = playground.with_weight(np.array(weights), peer, share)
            assert moved[peer] == share and moved.sum() == pytest.approx(1) and (moved >= 0).all()
    moved = playground.with_weight(np.array([0.1, 0.2, 0.3, 0.4]), 3, 0.7)
    assert moved.tolist() == pytest.approx([0.05, 0.1, 0.15, 0.7])
    # where the others have nothing, they share what is left
    assert playground.with_weight(np.array([1.0, 0.0, 0.0]), 0, 0.4).tolist() == pytest.approx([0.4, 0.3, 0.3])


def test_parts_become_weights():
    assert playground.normalised([1, 3]).tolist() == [0.25, 0.75]
    assert playground.normalised([0, 0]).tolist() == [0.5, 0.5]
    with pytest.raises(UserError, match="not negative"):
        playground.normalised([1, -1])


def test_a_slider_is_answered_within_a_fifth_of_a_second():
    """CPU time, which others on the machine do not change; a sample as large as they get."""
    peers, vocabulary, count = 4, 1312, 128
    tokens = playground.CELLS // (peers * vocabulary)
    generator = torch.Generator().manual_seed(0)

    def reading(number, text):
        logits = torch.randn(peers, number, vocabulary, generator=generator)
        return Reading(logits, torch.randint(vocabulary, (number,), generator=generator), text)

    dev, rest = tokens // 3, tokens - tokens // 3
    sample = Sample(reading(dev, np.zeros(dev)), reading(rest, np.arange(rest) % (2 * count)), count)
    weights = np.array([0.4, 0.3, 0.2, 0.1])
    picture = figure_playground.effect_picture(playground.edges(sample, weights, points=3))
    picture(weights, *playground.ensemble_effect(sample, weights))
    began = time.process_time()
    for share in (0.1, 0.5, 0.9):
        moved = playground.with_weight(weights, 0, share)
        picture(moved, *playground.ensemble_effect(sample, moved))
    assert (time.process_time() - began) / 3 < 0.2


def test_marks_move_and_the_axes_make_room():
    lines = pd.DataFrame({"peer": [1, 1, 2, 2], "weight": [0.0, 1.0] * 2, "dev_ce": [2.0, 3.0, 3.0, 2.0],
                          "accuracy": [60.0, 70.0, 70.0, 60.0]})  # fmt: skip
    picture = figure_playground.effect_picture(lines)
    half = picture(np.array([0.5, 0.5]), 2.5, 65.0)
    assert half == picture(np.array([0.5, 0.5]), 2.5, 65.0)
    assert half != picture(np.array([0.6, 0.4]), 2.5, 65.0) != picture(np.array([0.6, 0.4]), 2.4, 65.0)
    assert half[:4] == b"\x89PNG"
    below = picture(np.array([0.5, 0.5]), 1.0, 65.0)  # outside the lines' range
    assert below != picture(np.array([0.5, 0.5]), 2.5, 65.0) != half


def test_the_nearest_shapes_by_hand():
    grid = pd.DataFrame(
        {"num_layers": [1, 2, 2, 3], "num_heads": [2, 2, 4, 2], "hidden_size": 8, "intermediate_size": 32,
         "parameters": [100, 210, 210, 320], "step_ms": [1.0, 2.0, 2.0, 3.0], "memory_mib": 1.0}
    )  # fmt: skip
    found = playground.nearest_shapes(grid, 200, max_step_ms=9)
    assert found["num_layers"].tolist() == [2, 1, 3] and found["num_heads"].tolist() == [2, 2, 2]
    assert found["error_percent"].tolist() == [5.0, -50.0, 60.0]
    assert playground.nearest_shapes(grid, 200, max_step_ms=1.5)["num_layers"].tolist() == [1]
    with pytest.raises(UserError, match="allow a longer step"):
        playground.nearest_shapes(grid, 200, max_step_ms=0.5)


def test_weights_at_a_step_are_the_last_logged_before_it(masked):
    metrics = results.run_metrics(masked.run)
    now = playground.weights_at(metrics, 5)
    logged = metrics[(metrics["step"] == 4) & (metrics["quantity"] == "peer_weights")]
    assert now["peer_weights"].tolist() == logged["value"].tolist()
    assert playground.weights_at(metrics, 8)["peer_weights"].tolist() == masked.weights.tolist()


def test_an_arrow_points_the_way_that_a_weight_moved():
    """By hand: with weights 0.8, 0.1, 0.1 and slopes 1, 0.4, -3 the plain mean of the slopes is -0.53, but a weight
    falls where its slope is above -ln(0.8 e^-0.1 + 0.1 e^-0.04 + 0.1 e^0.3) / 0.1 = 0.46: only the first."""
    weights, slopes = [0.8, 0.1, 0.1], [1.0, 0.4, -3.0]
    moved = bilevel.mirror_step(torch.tensor(weights), torch.tensor(slopes), outer_lr=0.1).tolist()
    rows = [
        {"step": step, "tokens": 100 * step, "peer": peer, "quantity": quantity, "value": values[peer - 1],
         "arm": "wml", "peers": 3, "setting": "", "seed": 0}
        for step, quantity, values in (
            (10, "peer_weights", weights), (10, "hypergradient", [9.0, 9.0, 9.0]),
            (20, "peer_weights", moved), (20, "hypergradient", slopes),
            (30, "peer_weights", moved), (30, "hypergradient", slopes),
        )
        for peer in (1, 2, 3)
    ]  # fmt: skip
    metrics = pd.DataFrame(rows)
    for step in (20, 30):  # at 30 nothing moved: the last change is still that of 20
        now = playground.weights_at(metrics, step)
        assert now["change"].tolist() == pytest.approx([m - w for m, w in zip(moved, weights, strict=True)])
        arrows = [text.get_text() for text in figure_playground.replay_picture(metrics, step, now).axes[1].texts]
        assert arrows == ["\N{DOWNWARDS ARROW}", "\N{UPWARDS ARROW}", "\N{UPWARDS ARROW}"]
    first = playground.weights_at(metrics, 10)["change"]  # before the first there were equal weights
    assert first.tolist() == pytest.approx([0.8 - 1 / 3, 0.1 - 1 / 3, 0.1 - 1 / 3])


@pytest.mark.parametrize("peers", [2, 4])
def test_the_legend_of_the_weights_leaves_both_panels_their_room(peers):
    table = [(peer, share, 2 + share, 60.0) for peer in range(1, peers + 1) for share in (0.0, 1.0)]
    figure = figure_playground.effect_figure(pd.DataFrame(table, columns=["peer", "weight", "dev_ce", "accuracy"]))
    figure.draw_without_rendering()
    assert all(ax.get_position().width > 0.38 for ax in figure.axes)
    assert len(figure.legends[0].get_texts()) == peers + 1


def test_the_small_run_is_trained_where_there_is_none_and_chosen_by_peers_where_there_is(tmp_path):
    config = load_preset("smoke", TINY | {"mutual.arm": "dml"})
    seen = []
    chosen = playground.choose_run(config, tmp_path, progress=seen.append)
    assert chosen.name.startswith("wml-p2-s0-") and seen
    assert paths.out_of(chosen) == tmp_path
    more = train.run(config.updated({"mutual.arm": "wml", "mutual.num_peers": 3}), tmp_path)
    assert playground.choose_run(config, tmp_path) == more
    own = paths.read_json(more / "config.json")
    for name, steps, run_seed in (("wml-p3-s0-00000000", 1, 0), ("wml-p3-s7-00000000", None, 7)):
        changed = {**own["config"], "train": {**own["config"]["train"], "seed": run_seed}}
        changed["train"] |= {} if steps is None else {"steps": steps}
        shutil.copytree(more, more.parent / name)
        paths.write_json(more.parent / name / "config.json", {**own, "config": changed})
    shutil.rmtree(more)  # left are one of a setting of its own with a lower seed, and one of the study's
    assert playground.choose_run(config, tmp_path).name == "wml-p3-s7-00000000"


def test_the_small_run_of_another_study_or_of_real_text_stands_apart(tmp_path):
    other = load_preset("smoke", {"study.runs": [["wml", 4]]})
    assert playground.demo_out(other, tmp_path) == tmp_path / "start"
    assert playground.demo_out(load_preset("smoke"), tmp_path) == tmp_path
    taught = load_preset("smoke", {"mutual.frozen_teacher": True})  # the small run has no such teacher: it is no arm
    assert playground.demo_out(taught, tmp_path) == tmp_path / "start"
    real = playground.demo_config(load_preset("modern-10m"))
    assert real.preset == "nursery" and (real.mutual.arm, real.mutual.num_peers) == ("wml", 2)
