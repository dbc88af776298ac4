"""The answer to the paper's question, worded from the numbers: no claim that an interval does not carry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from . import grounds, readings
from .results import CONTRASTS, main_evaluation, main_setting, most_peers_compared
from .run_files import Run
from .runs import distinct

QUESTION = "Can student knowledge sharing outperform teacher-guided distillation on small datasets?"
TERMS = (
    "Arms: independent, peers that train alone; dml, peers that imitate one another with fixed weights, equal by "
    "default; wml, with learned weights; distill, peers that imitate a teacher, which was trained first, on the same "
    "text unless it is told otherwise. Best peer: that with the lowest loss on held-out training text. Ensemble: the "
    "peers' weighted mean of logits. Accuracy: share of pairs of sentences of which the good one gets the higher "
    "probability. Dev loss: mean of -log p of a scored token, in nats, on text that is used for nothing else."
)


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
        if (main_result["setting"].fillna("").ne("") & ~main_result["suite"].isin(["dev_ce", "glue"])).any():
            nothing = "Not answered: no run of the main setting has been evaluated yet; scores of others are in T4."
        if (measured["suite"] == "glue").any():  # a mean of correlations, F1 and accuracies: it has no chance level
            nothing = "Not answered: these runs have scores of (Super)GLUE alone (T6); evaluate them on pairs as well."
        told = _told_by_loss(differences)
        basis = [
            *grounds.of_runs(runs, measured, None),
            *grounds.of_frequencies(runs),
            *_losses(differences, told),
        ]
        return Answer(nothing + _in_loss(differences, told), basis, pd.DataFrame())
    evaluation = main_evaluation(runs, scored)
    saturated, foreign = grounds.saturated(measured, evaluation), grounds.foreign(runs, evaluation)
    near = f"; all means lie near {saturated}" if "chance" in saturated else ""
    caveat = "; of pairs of another text" if foreign else near
    chosen = main_setting(differences, suite=evaluation[0], protocol=evaluation[1])
    chosen = chosen[(chosen["peers"] > 1) | (chosen["a"] == "distill")]  # one peer learns from no other
    shown = []
    candidates = []  # for the headline
    for a, b in CONTRASTS:
        rows = most_peers_compared(chosen[(chosen["a"] == a) & (chosen["b"] == b)])
        for member in ("best_peer", "mean_peer", "ensemble"):
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
    basis = [
        *grounds.of_runs(runs, measured, evaluation),
        *grounds.made_otherwise(others),
        *grounds.of_others(main_result),
        *grounds.of_frequencies(runs),
        *grounds.of_weights(runs),
        *grounds.of_ensembles(runs, differences),
        *grounds.of_length(runs, *told),
        *grounds.of_diversity(runs),
        *_losses(differences, told, peers),
        *grounds.of_clipping(runs),
        *(grounds.of_cost(runs, *told, peers) if told[1] == "distill" else []),
    ]
    return Answer(headline, basis, pd.DataFrame(shown))


def _told_by_loss(differences: pd.DataFrame) -> tuple[str, str]:
    """Which arms to compare in dev loss where no pairs answer the question: it has been measured of every run. Those of
    the question where both are there, else `wml` and peers that learn alone."""
    asked = [(a, b) for a, b in CONTRASTS if b == "distill" and grounds.of_loss(differences, a, b)]
    return asked[0] if asked else ("wml", "independent")


def _in_loss(differences: pd.DataFrame, told: tuple[str, str], peers: int = 0, seeds: int = 0) -> str:
    """What the headline adds of dev loss where accuracy does not answer the question, from a space on."""
    measured = told[1] == "distill" and grounds.of_loss(differences, *told, peers)
    return f" {readings.loss_in_short(differences, *told, peers, seeds)}" if measured else ""


def _losses(differences: pd.DataFrame, told: tuple[str, str], peers: int = 0) -> list[str]:
    """The sentences on dev loss: of the arms that the answer compares, of mutual learning with learned and with equal
    weights, and of mutual learning and none."""
    compared = dict.fromkeys([told, ("wml", "dml"), ("wml", "independent")])
    return [sentence for a, b in compared for sentence in grounds.of_loss(differences, a, b, peers)]


def _headline(a: str, row: Any, runs: Sequence[Run], caveat: str) -> str:
    """caveat: why these accuracies cannot carry a Yes or a No, "" where they can."""
    taught = f"; a teacher is one more peer of {a}" if any(run.taught_peers for run in runs if run.arm == a) else ""
    if any(run.done.get("teacher_outside_budget") for run in runs if run.arm == "distill"):
        taught += "; the teacher may have seen other text"
    corpus = ", ".join(dict.fromkeys(run.corpus for run in runs))
    if int(row["n_seeds"]) == 1:
        return f"Open: on {corpus}, {a} and distill were compared with one seed only, which cannot answer the question."
    found = f"{row['mean']:+.1f} points"
    if pd.notna(row["low"]):
        found += f", 95 % interval {row['low']:+.1f} to {row['high']:+.1f} over {int(row['n_seeds'])} seeds"
    verdict, doubt = readings.verdict(row), readings.doubt(row)
    if verdict == "none":
        said = f"Not shown by the best peers' accuracy on {corpus}: a difference between "
        said += f"mutual learning ({a}) and a teacher"
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
    if {peers for peers, _ in taught | mutual} == {1}:
        return "these runs have one peer each, which learns from no other"
    taught, mutual = ({one for one in those if one[0] > 1} or those for those in (taught, mutual))
    common = {peers for peers, _ in taught} & {peers for peers, _ in mutual}
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
