"""The answer where there is none, or where it does not rest on all runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_runs import PARADIGMS, evaluated, set_weights, weigh, write_evaluation, write_glue, write_run, write_study

from wmlkit import paths, tables
from wmlkit.answer import Answer, answer
from wmlkit.runs import read_runs


def score_wml(folder: Path, others: float, ahead: float) -> None:
    """Every member of `wml` scores `ahead` (0.1 more a seed) above `others`, which all other arms score."""
    for run in read_runs(folder):
        path = paths.evaluation(run.folder, "nursery", "babylm2025")
        document = paths.read_json(path)
        for member in document["members"]:
            member["score"] = others + (ahead + 0.1 * run.seed) * (run.arm == "wml")
        paths.write_json(path, document)


def given_by(folder: Path) -> Answer:
    runs, scores = read_runs(folder), tables.all_scores(folder)
    return answer(runs, tables.main_result(scores), tables.differences(scores))


@pytest.mark.parametrize(
    ("study", "says"),
    [
        ({("wml", 2): (0, 1)}, "these runs hold no teacher-guided distillation (arm distill)."),
        ({("distill", 2): (0, 1)}, "these runs hold no mutual learning (arms wml and dml) to compare with"),
        (
            {("wml", 2): (0,), ("dml", 3): (0,), ("distill", 4): (0,)},
            "distillation has 4 peers and mutual learning 2, 3, no number in common.",
        ),
        (
            {("wml", 2): (0, 1), ("distill", 2): (2,), ("distill", 4): (1,)},
            "distillation has seeds 2 and mutual learning 0, 1, none in common.",
        ),
        (
            {("wml", 2): (0, 1), ("distill", 2): (0, 1)},
            "no seed of both distillation and mutual learning was evaluated alike on suite nursery under protocol",
        ),
    ],
)
def test_what_keeps_the_question_open_is_named(
    tmp_path: Path, study: dict[tuple[str, int], tuple[int, ...]], says: str
) -> None:
    folder = tmp_path / "nursery"
    for shape, seeds in study.items():
        write_study(folder, (shape,), seeds, protocols=("babylm2025",))
    if says.startswith("no seed"):
        for path in folder.glob("distill-*/evaluation/*"):
            path.unlink()
    found = given_by(folder)
    assert found.headline.startswith(f"Not answered: {says}")
    by_loss = says.startswith("no seed")  # both arms are trained, and dev loss has been measured of every run
    assert any(", wml minus distill, 2 peers" in sentence for sentence in found.basis) == by_loss
    assert ("In dev loss (nats a scored token, lower is better, 2 seeds) " in found.headline) == by_loss


def test_without_any_pairs_the_question_is_told_in_dev_loss(tmp_path: Path) -> None:
    """As of a text of one's own, for which there are no pairs."""
    folder = write_study(tmp_path / "nursery", (("dml", 2), ("distill", 2), ("independent", 2)), protocols=())
    found = given_by(folder)
    assert found.headline.startswith("Not answered: no finished run has been evaluated yet. In dev loss")
    assert "no difference between dml and distill is shown (best peer " in found.headline
    assert any(", dml minus distill, 2 peers, 3 seeds: best peer" in sentence for sentence in found.basis)
    alone = given_by(write_study(tmp_path / "alone", (("wml", 2), ("independent", 2)), protocols=()))
    assert alone.headline == "Not answered: no finished run has been evaluated yet."
    assert any(", wml minus independent, 2 peers" in sentence for sentence in alone.basis)
    for seed in range(3):
        write_evaluation(write_run(tmp_path / "alone", "wml", 2, seed, {"mutual.alpha": 0.9}), "wml", 2, seed,
                         "nursery", "babylm2025", PARADIGMS[:3])  # fmt: skip
    assert given_by(tmp_path / "alone").headline.startswith("Not answered: no run of the main setting has been")
    untaught = given_by(write_study(tmp_path / "3", (("wml", 2), ("dml", 2), ("independent", 2)), protocols=()))
    told = [re.search("wml minus [a-z]+, 2 peers, 3 seeds", one) for one in untaught.basis if " minus " in one]
    assert [found and found[0][10:].split(",")[0] for found in told] == ["independent", "dml"]


def test_arms_that_learned_word_frequencies_alone_are_named(tmp_path: Path) -> None:
    """Below 0.95 of the unigram loss, 6.0 nats, a member has learned more; the best run of an arm counts."""
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("distill", 2), ("dml", 2)), (0, 1), ("babylm2025",))
    assert "how often each token" not in " ".join(given_by(folder).basis)  # it was not measured
    losses = {"wml": (5.8, 5.71), "distill": (5.8, 5.69), "dml": (6.2, 6.1)}
    for run in read_runs(folder):
        members = [{"member": name, "nats_per_token": losses[run.arm][run.seed] + more}
                   for name, more in (("peer_1", 0.1), ("ensemble", 0.0))]  # fmt: skip
        unigram = {"nats_per_token": 6.0, "bits_per_byte": 2.0, "domains": []}
        paths.write_json(paths.language_modelling(run.folder), {"members": members, "unigram": unigram})
    (told,) = [sentence for sentence in given_by(folder).basis if "how often each token" in sentence]
    assert ": dml 6.10 for 6.00; wml 5.71 for 6.00. Such models" in told


def test_accuracy_below_chance_carries_no_more_than_accuracy_at_chance(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("distill", 2)), protocols=("babylm2025",))
    score_wml(folder, 40.0, 3)
    found = given_by(folder)
    assert "All means lie near chance or below it: differences between arms say little" in " ".join(found.basis)
    assert "Yes" not in found.headline


@pytest.mark.parametrize(
    ("mean", "says"),
    [
        (44.9, "All means lie near chance or below it: "),
        (45.1, "All means lie near chance: "),
        (54.9, "All means lie near chance: "),
        (55.1, ""),
        (94.9, ""),
        (95.1, "All means lie near 100 %: "),
    ],
)
def test_near_are_five_points(tmp_path: Path, mean: float, says: str) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("distill", 2)), (0,), protocols=("babylm2025",))
    score_wml(folder, mean, 0.0)
    basis = given_by(folder).basis
    assert [sentence for sentence in basis if sentence.startswith("All means lie")] == [
        sentence for sentence in basis if says and sentence.startswith(says)
    ]
    assert any(sentence.startswith(says) for sentence in basis)


def test_where_accuracy_shows_no_difference_the_headline_tells_the_dev_loss(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("distill", 2)), protocols=("babylm2025",))
    score_wml(folder, 70.0, -0.1)  # -0.1, 0 and 0.1 points
    headline = given_by(folder).headline
    assert headline.startswith("Not shown by the best peers'") and " In dev loss (nats a scored token" in headline
    score_wml(folder, 70.0, 3.0)
    headline = given_by(folder).headline
    assert headline.startswith("Yes") and "In dev loss" not in headline


def test_one_run_of_one_peer_is_told_as_one(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("independent", 1),), (0,), protocols=("babylm2025",))
    told = given_by(folder).basis
    tokens = read_runs(folder)[0].done["tokens"]
    assert told[0] == f"1 run on nursery with one seed, {tokens:,} tokens a run."
    assert "(independent, 1 peer, " in " ".join(told)


def test_fine_tuning_scores_alone_answer_nothing(tmp_path: Path) -> None:
    """A mean of correlations, F1 and accuracies has no chance level, and its epochs were chosen on what it scores."""
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("distill", 2)), protocols=())
    for run in read_runs(folder):
        write_glue(run.folder, {"cola": [1.0 + run.seed] * 3})
    found = given_by(folder)
    assert found.headline.startswith("Not answered: these runs have scores of (Super)GLUE alone (T6)")
    assert "chance" not in " ".join(found.basis) and "never on the test" not in " ".join(found.basis)
    write_evaluation(read_runs(folder)[0].folder, "wml", 2, 0, "nursery", "babylm2025", PARADIGMS)
    assert any("suite nursery" in sentence for sentence in given_by(folder).basis)


def test_the_answer_says_which_evaluations_it_leaves_out(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("distill", 2)), protocols=("babylm2025",))
    assert "Left out" not in " ".join(given_by(folder).basis)
    evaluated(next(folder.glob("wml-p2-s1-*")), "nursery", ties="first")
    found = given_by(folder)
    assert "over 2 seeds" in found.headline
    assert any(
        sentence.startswith("Left out of this, because other runs were evaluated otherwise: wml on nursery, seeds 1. ")
        for sentence in found.basis
    )


def another_precision(folder: Path, pattern: str) -> None:
    for run in folder.glob(pattern):
        path = run / "environment.json"
        paths.write_json(path, paths.read_json(path) | {"precision": "bf16"})


def test_runs_of_another_precision_are_told(tmp_path: Path) -> None:
    """Arms are compared at equal precision; that runs were there, and why they do not count, is said."""
    study = (("independent", 2), ("wml", 2), ("distill", 2))
    folder = write_study(tmp_path / "nursery", study, protocols=("babylm2025",))
    another_precision(folder, "*-s0-*")
    found = given_by(folder)
    assert "over 2 seeds" in found.headline
    (sentence,) = [sentence for sentence in found.basis if sentence.startswith("Left out")]
    told = {f'{arm} with 2 peers, seed 0: precision="bf16"' for arm in ("independent", "wml", "distill")}
    assert set(sentence.split("another: ")[1].split(". Arms")[0].split("; ")) == told
    folder = write_study(tmp_path / "again" / "nursery", study, protocols=("babylm2025",))
    another_precision(folder, "distill-*")
    headline = given_by(folder).headline
    assert headline.startswith(
        "Not answered: these runs hold no teacher-guided distillation (arm distill), but for runs of another setting, "
        'which are not compared with them (precision="bf16").'
    )


def test_a_study_begun_with_more_peers_does_not_hide_what_fewer_have_shown(tmp_path: Path) -> None:
    arms = ("independent", "wml", "distill")
    folder = write_study(tmp_path / "nursery", [(arm, 2) for arm in arms], protocols=("babylm2025",))
    before = given_by(folder)
    write_study(folder, [(arm, 4) for arm in arms], (0,), protocols=("babylm2025",))
    after = given_by(folder)
    assert "over 3 seeds" in before.headline and after.headline == before.headline
    assert set(after.comparisons["peers"]) == {"2"}
    assert (
        [told for told in before.basis if "In dev loss" in told] == [t for t in after.basis if "In dev loss" in t] != []
    )
    write_study(folder, [(arm, 4) for arm in arms], (1,), protocols=("babylm2025",))
    assert set(given_by(folder).comparisons["peers"]) == {"4"}


def test_one_peer_learns_from_no_other(tmp_path: Path) -> None:
    arms = ("independent", "wml", "distill")
    folder = write_study(tmp_path / "nursery", [(arm, 1) for arm in arms], protocols=("babylm2025",))
    found = given_by(folder)
    assert found.headline == "Not answered: these runs have one peer each, which learns from no other."
    assert set(found.comparisons["comparison"]) == {"distill - independent"}
    assert not any("wml minus" in sentence for sentence in found.basis)


def test_the_headline_s_losses_are_of_as_many_peers_as_its_accuracy(tmp_path: Path) -> None:
    """Runs of more peers are trained and not evaluated yet."""
    arms = ("wml", "distill")
    folder = write_study(tmp_path / "nursery", [(arm, 2) for arm in arms], protocols=("babylm2025",))
    for run in read_runs(folder):  # near the ceiling, where the headline tells the losses too
        path = paths.evaluation(run.folder, "nursery", "babylm2025")
        document = paths.read_json(path)
        members = [{**member, "score": 99.0 + run.seed / 10} for member in document["members"]]
        paths.write_json(path, {**document, "members": members})
    before = given_by(folder).headline
    write_study(folder, [(arm, 4) for arm in arms], (5, 6), protocols=())
    assert given_by(folder).headline == before
    assert " In dev loss (nats a scored token, lower is better) " in before
    write_study(folder, [(arm, 2) for arm in arms], (3,), protocols=())
    assert " In dev loss (nats a scored token, lower is better, 4 seeds) " in given_by(folder).headline


def test_a_threshold_that_clips_one_arm_more_often_is_told(tmp_path: Path) -> None:
    """Of the most peers; a difference of a tenth of the updates or less is none, nor are runs that did not count."""
    folder = write_study(
        tmp_path / "nursery", (("independent", 2), ("wml", 2), ("wml", 3)), seeds=(0, 1), protocols=("babylm2025",)
    )

    def clip(arm: str, peers: int, *shares: list[float]) -> None:
        for seed, share in enumerate(shares):
            (run,) = folder.glob(f"{arm}-p{peers}-s{seed}-*")
            paths.write_json(run / "done.json", paths.read_json(run / "done.json") | {"clipped": share})

    def told() -> list[str]:
        return [sentence for sentence in given_by(folder).basis if "clipped" in sentence]

    assert told() == []
    clip("independent", 2, [0.6, 0.8], [0.7, 0.9])
    assert told() == []  # nothing to compare it with
    clip("wml", 2, [0.7, 0.7], [0.7, 0.6])
    assert told() == []
    clip("wml", 2, [0.0, 0.1], [0.2, 0.1])
    (sentence,) = told()
    clip("wml", 3, [0.3] * 3, [0.3] * 3)  # nothing of three peers to compare it with
    assert told() == [sentence]
    assert "updates, 2 peers: independent 75%, wml 10%. " in sentence and "train.grad_clip=0" in sentence


def test_peers_with_a_teacher_among_them_are_no_answer_to_the_question(tmp_path: Path) -> None:
    study = (("independent", 2), ("wml", 2), ("distill", 2))
    folder = write_study(tmp_path / "nursery", study, protocols=("babylm2025",))
    score_wml(folder, 70.0, 5)
    alone = given_by(folder)
    assert alone.headline.startswith("Yes, on nursery") and "one more peer" not in " ".join(alone.basis)
    for run in folder.glob("wml-*"):
        document = paths.read_json(run / "config.json")
        document["config"]["mutual"]["frozen_teacher"] = True
        paths.write_json(run / "config.json", document)
    for run in (*folder.glob("wml-*"), *folder.glob("distill-*")):
        done = paths.read_json(run / "done.json")
        paths.write_json(run / "done.json", done | {"teacher": {"name": "teacher-p1-s0", "flops": 1e9}})
    found = given_by(folder)
    assert (
        found.headline.startswith("Only a hint, on nursery") and "a teacher is one more peer of wml)" in found.headline
    )
    told = " ".join(found.basis)
    assert "The peers of wml learn from a teacher too, which is one more peer (mutual.frozen_teacher)" in told
    assert "times the FLOP of wml, whose teacher is counted too (T7)" in told
    notes = tables.main_result(tables.all_scores(folder)).groupby("arm")["note"].unique()
    assert list(notes["wml"]) == ["a teacher is one more peer"] and list(notes["distill"]) == [""]


def test_one_seed_of_wml_does_not_hide_what_three_of_dml_have_shown(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("dml", 2), ("distill", 2)), protocols=("babylm2025",))
    before = given_by(folder).headline
    write_study(folder, (("wml", 2),), (0,), protocols=("babylm2025",))
    assert "(dml)" in before and "over 3 seeds" in before and given_by(folder).headline == before


def test_differences_of_fewer_seeds_than_their_means_say_so(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("independent", 2), ("dml", 2)), (0, 1, 2), protocols=("babylm2025",))
    write_study(folder, (("wml", 2),), (0, 1), protocols=("babylm2025",))
    weigh(folder)
    (told,) = [sentence for sentence in given_by(folder).basis if "T4_diversity" in sentence]
    dml, wml = told.partition("; dml ")[2].split("; wml ")
    assert "over the 2 seeds of both, adjusted p" in wml and "seeds of both" not in dml


@pytest.mark.parametrize(
    ("given", "ended", "said", "hardly"),
    [
        (
            None,
            [0.55, 0.45],
            "From 0.500 each the learned weights of 2 peers came to 0.550, 0.450 (seeds' mean).",
            True,
        ),
        (None, [0.7, 0.3], "From 0.500 each the learned weights of 2 peers came to 0.700, 0.300 (seeds' mean).", False),
        ([0.8, 0.2], [0.8, 0.2], "From 0.800, 0.200 the learned weights of 2 peers came to 0.800, 0.200", True),
        ([0.8, 0.2], [0.85, 0.15], "From 0.800, 0.200 the learned weights of 2 peers came to 0.850, 0.150", False),
        ([0.8, 0.2], [0.62, 0.38], "From 0.800, 0.200 the learned weights of 2 peers came to 0.620, 0.380", False),
    ],
)
def test_where_the_learned_weights_came_to_is_told(tmp_path, given, ended, said, hardly):
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("dml", 2)), overrides={"mutual.peer_weights": given})
    for run in folder.glob("*-p2-*"):
        set_weights(run, ended if run.name.startswith("wml") else [0.9, 0.1])
    (told,) = (sentence for sentence in given_by(folder).basis if "learned weights" in sentence)
    assert told.startswith(said) and ("They hardly moved, so wml was nearly dml" in told) == hardly


def test_weights_that_moved_and_came_back_are_not_called_unmoved(tmp_path):
    folder = write_study(tmp_path / "nursery", (("wml", 2), ("dml", 2)))
    for run, before in zip(sorted(folder.glob("wml-p2-*")), ([0.6, 0.4], [0.34, 0.66], [0.5, 0.5]), strict=True):
        set_weights(run, [0.51, 0.49], before)
    (told,) = (sentence for sentence in given_by(folder).basis if "learned weights" in sentence)
    assert told.endswith("came to 0.510, 0.490 (seeds' mean). In one seed they went as far as 0.340, 0.660 before.")


def test_without_weights_that_are_learned_none_are_told(tmp_path):
    folder = write_study(tmp_path / "nursery", (("dml", 2), ("wml", 1)))
    assert not any("learned weights" in sentence for sentence in given_by(folder).basis)


def test_runs_of_another_setting_have_no_part_in_the_highest_mean(tmp_path: Path) -> None:
    study = (("wml", 2), ("distill", 2))
    folder = write_study(tmp_path / "nursery", study, protocols=("babylm2025",))
    score_wml(folder, 70.0, 1.0)  # 71, 71.1 and 71.2
    (aside,) = read_runs(
        write_study(tmp_path / "aside", study[:1], (0,), ("babylm2025",), overrides={"mutual.alpha": 0.9})
    )
    score_wml(tmp_path / "aside", 98.0, 1.0)
    aside.folder.rename(folder / aside.folder.name)
    (sentence,) = [one for one in given_by(folder).basis if one.startswith("Accuracy is that of suite nursery")]
    assert "highest mean is 71.1 % (wml, 2 peers, " in sentence


def test_a_run_that_differs_in_more_than_precision_is_not_left_out_because_of_it(tmp_path: Path) -> None:
    """Nor is one of another setting because of how it was evaluated: both are other runs."""
    study = (("wml", 2), ("distill", 2))
    folder = write_study(tmp_path / "nursery", study, protocols=("babylm2025",))
    write_study(folder, study[:1], protocols=("babylm2025",), overrides={"mutual.alpha": 0.9})
    first, second, _ = [run.folder for run in read_runs(folder) if run.setting == "mutual.alpha=0.9"]
    another_precision(folder, first.name)
    evaluated(second, "nursery", ties="first")
    apart = 'precision="bf16"'
    assert {apart in run.setting and "alpha" in run.setting for run in read_runs(folder)} == {True, False}
    assert not [sentence for sentence in given_by(folder).basis if sentence.startswith("Left out")]


def test_what_peers_are_worth_together_is_told_of_the_most_peers(tmp_path: Path) -> None:
    study = [(arm, peers) for arm in ("independent", "wml") for peers in (2, 3)]
    folder = write_study(tmp_path / "nursery", study, protocols=("babylm2025",))
    weigh(folder)
    (told,) = [sentence for sentence in given_by(folder).basis if "T4_diversity" in sentence]
    assert "(T4_diversity; 3 peers, " in told


def test_runs_of_unlike_length_are_told_from_the_shortest_to_the_longest(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), (0, 1, 2), protocols=("babylm2025",))
    for run, tokens in zip(read_runs(folder), (2000, 3000, 1000), strict=True):
        paths.write_json(run.folder / "done.json", run.done | {"tokens": tokens})
    assert given_by(folder).basis[0] == "3 runs on nursery with 3 seeds (0, 1, 2), 1,000 to 3,000 tokens a run."
