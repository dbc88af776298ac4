"""The answer to the paper's question, worded from the numbers: no claim that an interval does not carry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from . import readings, results
from .alike import OTHERWISE
from .diversity import CONTROL, diversity, diversity_table
from .overfitting import risen, stopped
from .readable import p_value, peers_in_words
from .results import CONTRASTS, main_evaluation, main_setting, most_peers_compared
from .run_files import Run
from .run_settings import MADE
from .runs import ARMS, distinct

QUESTION = "Can student knowledge sharing outperform teacher-guided distillation on small datasets?"
TERMS = (
    "Arms: independent, peers that train alone; dml, peers that imitate one another with fixed weights, equal by "
    "default; wml, with learned weights; distill, peers that imitate a teacher, which was trained first, on the same "
    "text unless it is told otherwise. Best peer: that with the lowest loss on held-out training text. Ensemble: the "
    "peers' weighted mean of logits. Accuracy: share of pairs of sentences of which the good one gets the higher "
    "probability. Dev loss: mean of -log p of a scored token, in nats, on text that is used for nothing else."
)
NURSERY = (
    "The nursery is text written by a small grammar, not BabyLM: it shows how the arms compare on that text, "
    "and nothing about English."
)
FOREIGN_PAIRS = (
    "The pairs of suite nursery are sentences of the nursery's grammar, and these models read other text: compare the "
    "arms by dev loss, or score pairs of that text (evaluate.suites, evaluate.pairs)."
)
NEAR_CHANCE = NEAR_CEILING = 5.0  # points
CLIPPED_APART = 0.1  # shares of clipped updates of two arms; below, the threshold met outliers alone


@dataclass(frozen=True)
class Answer:
    """The question's answer in one sentence, what it rests on, and all comparisons of arms (strings, to be shown)."""

    headline: str
    basis: list[str]
    comparisons: pd.DataFrame

    def document(self) -> dict[str, Any]:
        """What ``answer.json`` holds; the comparisons are those of T4_differences."""
        return {"question": QUESTION, "answer": self.headline, "basis": self.basis}


def answer(runs: Sequence[Run], main_result: pd.DataFrame, differences: pd.DataFrame) -> Answer:
    """Sentences from T4 and T4_differences (`wmlkit.tables`) about the runs of the main setting.

    The headline is about the best peer at the largest number of peers at which several seeds of both arms are compared
    (else one seed), on the suite and the protocol that the runs' configuration names first; where accuracy shows no
    difference, or lies near chance or near its ceiling, it says the dev loss too.
    """
    others = [run for run in runs if run.setting]
    runs = [run for run in runs if not run.setting]
    measured = main_setting(main_result[main_result["kind"] == "measured"])
    scored = measured[~measured["suite"].isin(["dev_ce", "glue"])]
    if not runs or scored.empty:
        nothing = "Not answered: no finished run has been evaluated yet."
        if (measured["suite"] == "glue").any():  # a mean of correlations, F1 and accuracies: it has no chance level
            nothing = "Not answered: these runs have scores of (Super)GLUE alone (T6); evaluate them on pairs as well."
        told = _told_by_loss(differences)
        in_loss, losses = _in_loss(differences, told), _losses(differences, told)
        return Answer(nothing + in_loss, _basis(runs, measured, None) + losses, pd.DataFrame())
    evaluation = main_evaluation(runs, scored)
    saturated, foreign = _saturated(measured, evaluation), _foreign(runs, evaluation)
    near = f"; all means lie near {saturated}" if "chance" in saturated else ""
    caveat = "; of pairs of another text" if foreign else near
    chosen = main_setting(differences, suite=evaluation[0], protocol=evaluation[1])
    chosen = chosen[(chosen["peers"] > 1) | (chosen["a"] == "distill")]  # one peer learns from no other
    shown = []
    candidates = []  # for the headline
    for a, b in CONTRASTS:
        rows = most_peers_compared(chosen[(chosen["a"] == a) & (chosen["b"] == b)])
        for member in ("best_peer", "ensemble"):
            for _, row in rows[rows["member"] == member].iterrows():
                compared = {"comparison": f"{a} - {b}", "peers": f"{int(row['peers'])}", "member": member}
                shown.append({**compared, **readings.points(row)})
                if b == "distill" and member == "best_peer":
                    candidates.append((a, row))
    if candidates:
        a, row = next(((a, row) for a, row in candidates if row["n_seeds"] > 1), candidates[0])
        headline, told = _headline(a, row, runs, caveat), (a, "distill")
        peers, seeds = int(row["peers"]), int(row["n_seeds"])
        if readings.verdict(row) == "none" or saturated or foreign:
            headline += _in_loss(differences, told, peers, seeds)
    else:
        told = _told_by_loss(differences)
        peers = next((int(row["peers"]) for row in readings.rows_of_loss(differences, *told)), 0)
        headline = f"Not answered: {_why_not(runs, others, evaluation)}."
        control = [row for row in shown if row["comparison"] == "wml - independent" and row["member"] == "best_peer"]
        for row in control:
            found = f"{row['difference (points)']} points, 95 % interval {row['95 % interval']}"
            headline += f" Against peers that learn alone, mutual learning (wml): {found}; {row['reading']}."
        headline += _in_loss(differences, told)
    basis = _basis(runs, measured, evaluation) + _made_otherwise(others) + _of_others(main_result)
    basis += _of_length(runs, *told) + _of_diversity(runs) + _losses(differences, told, peers) + _of_clipping(runs)
    basis += _of_cost(runs, *told, peers) if told[1] == "distill" else []
    return Answer(headline, basis, pd.DataFrame(shown))


def _told_by_loss(differences: pd.DataFrame) -> tuple[str, str]:
    """Which arms to compare in dev loss where no pairs answer the question: it has been measured of every run. Those of
    the question where both are there, else `wml` and peers that learn alone."""
    asked = [(a, b) for a, b in CONTRASTS if b == "distill" and _of_loss(differences, a, b)]
    return asked[0] if asked else ("wml", "independent")


def _in_loss(differences: pd.DataFrame, told: tuple[str, str], peers: int = 0, seeds: int = 0) -> str:
    """What the headline adds of dev loss where accuracy does not answer the question, from a space on."""
    measured = told[1] == "distill" and _of_loss(differences, *told, peers)
    return f" {readings.loss_in_short(differences, *told, peers, seeds)}" if measured else ""


def _losses(differences: pd.DataFrame, told: tuple[str, str], peers: int = 0) -> list[str]:
    """The sentences on dev loss: of the arms that the answer compares, and of mutual learning and none."""
    compared = dict.fromkeys([told, ("wml", "independent")])
    return [sentence for a, b in compared for sentence in _of_loss(differences, a, b, peers)]


def _headline(a: str, row: Any, runs: Sequence[Run], caveat: str) -> str:
    """caveat: why these accuracies cannot carry a Yes or a No, "" where they can."""
    taught = f"; a teacher is one more peer of {a}" if any(run.taught_peers for run in runs if run.arm == a) else ""
    corpus = ", ".join(dict.fromkeys(run.corpus for run in runs))
    if int(row["n_seeds"]) == 1:
        return f"Open: on {corpus}, {a} and distill were compared with one seed only, which cannot answer the question."
    found = f"{row['mean']:+.1f} points"
    if pd.notna(row["low"]):
        found += f", 95 % interval {row['low']:+.1f} to {row['high']:+.1f} over {int(row['n_seeds'])} seeds"
    verdict, doubt = readings.verdict(row), readings.doubt(row)
    if verdict == "none":
        said = f"Not shown by accuracy on {corpus}: a difference between mutual learning ({a}) and a teacher"
    else:
        reply = "Only a hint" if doubt or caveat or taught else {"better": "Yes", "worse": "No"}[verdict]
        did = {"better": "beat", "worse": "fell behind"}[verdict]
        said = f"{reply}, on {corpus}: the best of the mutually learning peers ({a}) {did} a teacher's best student"
    return f"{said} ({found}{doubt}{caveat if verdict != 'none' else ''}{taught})."


def _why_not(runs: Sequence[Run], others: Sequence[Run], evaluation: tuple[str, str]) -> str:
    """Why T4_differences compares no mutual learning with distillation on that evaluation. others: runs of other
    settings, which are compared with their like alone."""
    taught = {(run.peers, run.seed) for run in runs if run.arm == "distill"}
    mutual = {(run.peers, run.seed) for run in runs if run.arm in ("wml", "dml")}
    if not taught:
        return "these runs hold no teacher-guided distillation (arm distill)" + _elsewhere(others, "distill")
    if not mutual:
        nothing = "these runs hold no mutual learning (arms wml and dml) to compare with distillation"
        return nothing + _elsewhere(others, "wml", "dml")
    common = {peers for peers, _ in taught} & {peers for peers, _ in mutual}
    if common == {1}:
        return "these runs have one peer each, which learns from no other"
    if not common:
        return (
            f"distillation has {_listed(peers for peers, _ in taught)} peers and mutual learning "
            f"{_listed(peers for peers, _ in mutual)}, no number in common"
        )
    if not taught & mutual:
        of_each = (_listed(seed for peers, seed in those if peers in common) for those in (taught, mutual))
        return "distillation has seeds {} and mutual learning {}, none in common".format(*of_each)
    return (
        f"no seed of both distillation and mutual learning was evaluated alike on suite {evaluation[0]} under protocol "
        f"{evaluation[1]}; give `wmlkit evaluate RUN --suite {evaluation[0]} --protocol {evaluation[1]} --force` for "
        "their runs"
    )


def _elsewhere(others: Sequence[Run], *arms: str) -> str:
    """That there are runs of these arms, but of other settings."""
    settings = distinct(run.setting for run in others if run.arm in arms)
    return f", but for runs of another setting, which are not compared with them ({settings})" if settings else ""


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in sorted(set(numbers)))


def _foreign(runs: Sequence[Run], evaluation: tuple[str, str]) -> bool:
    """Whether models of other text were asked the nursery's pairs."""
    return evaluation[0] == "nursery" and any(run.corpus != "nursery" for run in runs)


def _saturated(measured: pd.DataFrame, evaluation: tuple[str, str]) -> str:
    """Where all means of that evaluation lie: near "chance", near "chance or below it", near the "ceiling", or
    elsewhere, ""."""
    means = measured[(measured["suite"] == evaluation[0]) & (measured["protocol"] == evaluation[1])]["mean"]
    if means.max() < 50 + NEAR_CHANCE:
        return "chance" if means.min() > 50 - NEAR_CHANCE else "chance or below it"
    return "ceiling" if means.min() > 100 - NEAR_CEILING else ""


def _basis(runs: Sequence[Run], measured: pd.DataFrame, evaluation: tuple[str, str] | None) -> list[str]:
    if not runs:
        return []
    seeds = sorted({run.seed for run in runs})
    tokens = sorted({run.done["tokens"] for run in runs})
    number = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds ({', '.join(str(seed) for seed in seeds)})"
    length = f"{tokens[0]:,}" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,}"
    corpora = list(dict.fromkeys(run.corpus for run in runs))
    counted = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    sentences = [f"{counted} on {', '.join(corpora)} with {number}, {length} tokens a run."]
    if "nursery" in corpora:
        sentences.append(NURSERY)
    outside = sorted({run.teacher["name"] for run in runs if run.done.get("teacher_outside_budget")})
    if outside:
        sentences.append(
            f"The teacher {', '.join(outside)} was given, not trained on the runs' text: it may have seen far more, so "
            "the comparison with distill is none of small datasets."
        )
    taught = [arm for arm in ARMS if any(run.taught_peers for run in runs if run.arm == arm)]
    if taught:
        sentences.append(
            f"The peers of {' and '.join(taught)} learn from a teacher too, which is one more peer "
            "(mutual.frozen_teacher): against distill they do not show what peers alone teach one another."
        )
    if evaluation is not None:
        rows = measured[(measured["suite"] == evaluation[0]) & (measured["protocol"] == evaluation[1])]
        best, others = rows.loc[rows["mean"].idxmax()], int((rows["mean"] == rows["mean"].max()).sum()) - 1
        who = f"{best['arm']}, {peers_in_words(best['peers'])}, {best['member'].replace('_', ' ')}"
        if others:
            who += "; 1 other row of T4 has it too" if others == 1 else f"; {others} other rows of T4 have it too"
        sentences.append(
            f"Accuracy is that of suite {evaluation[0]} under protocol {evaluation[1]}; chance is 50 %, and the "
            f"highest mean is {best['mean']:.1f} % ({who})."
        )
        where = _saturated(measured, evaluation)
        if "chance" in where:
            sentences.append(f"All means lie near {where}: differences between arms say little about what was learned.")
        if where == "ceiling":
            sentences.append("All means lie near 100 %: accuracy has little room left to show a difference.")
        if _foreign(runs, evaluation):
            sentences.append(FOREIGN_PAIRS)
        sentences.append("The best peer was chosen on held-out training text, never on the test.")
    return sentences


def _made_otherwise(others: Sequence[Run]) -> list[str]:
    """That runs configured like the others are in no mean and comparison: their text or precision is another."""
    made = [run for run in others if all(part.startswith(MADE) for part in run.setting.split(" "))]
    if not made:
        return []
    told = dict.fromkeys(f"{run.arm} with {run.peers} peers, seed {run.seed}: {run.setting}" for run in made)
    return [
        f"Left out of this, because their text or their precision is another: {'; '.join(told)}. Arms are compared at "
        "equal text and precision; train.precision sets the same on every machine."
    ]


def _of_others(main_result: pd.DataFrame) -> list[str]:
    """That some scores are in no mean and comparison, because their runs were evaluated otherwise."""
    others = main_result[main_result["note"].fillna("").str.contains(OTHERWISE, regex=False)]
    others = others[others["setting"].str.startswith("evaluation.")]  # the others' runs have settings of their own
    if others.empty:
        return []
    places = dict.fromkeys(f"{row.arm} on {row.suite}, seeds {row.seeds}" for row in others.itertuples())
    return [
        f"Left out of this, because most runs were evaluated otherwise: {'; '.join(places)}. T4 says in its column "
        "setting how, and `wmlkit evaluate RUN --force` evaluates a run again."
    ]


def _of_length(runs: Sequence[Run], a: str, b: str) -> list[str]:
    """Who was trained past the lowest dev loss, and what a - b would have been, had each run been stopped in time."""
    told = [
        f"{row['who']} by {row['rise']:.3f} (lowest after {row['lowest_step']:.0f} of {row['steps']:.0f} steps)"
        for row in risen(runs).to_dict("records")
    ]
    if not told:
        return []
    sentences = [
        f"Dev loss rose before the end (nats a scored token): {'; '.join(told)}. A small text that is read often is "
        "learned by heart: with fewer train.steps, or mutual.teacher_steps for a teacher, arms may compare otherwise."
    ]
    in_time = results.paired_differences(results.with_mean_peer(stopped(runs)))
    for first, second in dict.fromkeys([(a, b), ("wml", "independent")]):
        for sentence in _of_loss(in_time, first, second):
            sentences.append(f"Each run stopped where its loss on held-out text was lowest (T4_stopped): {sentence}")
    return sentences


def _of_loss(differences: pd.DataFrame, a: str, b: str, peers: int = 0) -> list[str]:
    """The same comparison in dev loss, which has no ceiling; nothing where one seed has no interval."""
    measured = any(pd.notna(row["low"]) for row in readings.rows_of_loss(differences, a, b, peers))
    return [readings.loss_difference(differences, a, b, peers)] if measured else []


def _of_diversity(runs: Sequence[Run]) -> list[str]:
    """What the peers of each arm are worth together; nothing without a difference, with its interval, from peers that
    learned alone."""
    table = diversity(diversity_table(runs))
    table = table[table["quantity"] == "diversity"] if len(table) else table
    shown = table[table["difference_low"].notna()] if len(table) else table
    if shown.empty:
        return []
    peers = shown["peers"].max()
    alone = table[(table["peers"] == peers) & (table["arm"] == CONTROL)].iloc[0]
    told = [f"{CONTROL} {alone['mean']:.3f}"]
    for row in shown[shown["peers"] == peers].to_dict("records"):
        interval = f"95 % interval {row['difference_low']:+.3f} to {row['difference_high']:+.3f}"
        common = row["difference_n_seeds"]
        over = "" if common == row["n_seeds"] == alone["n_seeds"] else f" over the {common:.0f} seeds of both"
        change = f"{row['difference']:+.3f}, {interval}{over}, adjusted p {p_value(row['p_adjusted'])}"
        told.append(f"{row['arm']} {row['mean']:.3f} ({change})")
    return [
        "On dev text an ensemble's loss is below the weighted mean of its peers' by as much as they differ "
        f"(T4_diversity; {peers} peers, nats a scored token, in brackets against {CONTROL}): {'; '.join(told)}."
    ]


def _of_clipping(runs: Sequence[Run]) -> list[str]:
    """That arms differ in more than what they learn from, where one threshold clipped one's gradients more often."""
    shares: dict[tuple[int, str], list[float]] = {}
    for run in runs:
        if run.done.get("clipped"):
            shares.setdefault((run.peers, run.arm), []).append(fmean(run.done["clipped"]))
    compared = [peers for peers, _ in shares]
    peers = max((count for count in compared if compared.count(count) > 1), default=0)
    means = {arm: fmean(values) for (count, arm), values in shares.items() if count == peers}
    if not means or max(means.values()) - min(means.values()) <= CLIPPED_APART:
        return []
    told = ", ".join(f"{arm} {share:.0%}" for arm, share in means.items())
    return [
        f"The gradient was clipped (train.grad_clip) in these shares of the updates, {peers} peers: {told}. One "
        "threshold meets losses that differ between arms, so the arms differ in this too; train.grad_clip=0 compares "
        "them without."
    ]


def _of_cost(runs: Sequence[Run], a: str, b: str, peers: int) -> list[str]:
    """What a teacher adds to the bill of b, both with that many peers; nothing where the cost of its training is
    unknown."""
    flops = {arm: [run.flops_with_teacher for run in runs if run.arm == arm and run.peers == peers] for arm in (a, b)}
    times = fmean(flops[b]) / fmean(flops[a])
    own = ", whose teacher is counted too" if any(run.taught_peers for run in runs if run.arm == a) else ""
    sentence = f"With its teacher's training {b} took {times:.1f} times the FLOP of {a}{own} (T7)."
    return [] if math.isnan(times) else [sentence]
