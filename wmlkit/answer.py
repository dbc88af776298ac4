"""The answer to the paper's question, worded from the numbers: no claim that an interval does not carry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from .alike import OTHERWISE
from .diversity import CONTROL, diversity, diversity_table
from .overfitting import risen
from .readable import p_value
from .results import CONTRASTS, main_evaluation, main_setting, most_peers
from .runs import Run

QUESTION = "Can student knowledge sharing outperform teacher-guided distillation on small datasets?"
TERMS = (
    "Arms: independent, peers that train alone; dml, peers that imitate one another with equal weights; wml, with "
    "learned weights; distill, peers that imitate a teacher, which was trained first on the same text. Best peer: that "
    "with the lowest loss on held-out training text. Ensemble: the peers' weighted mean of logits. Accuracy: share of "
    "pairs of sentences of which the good one gets the higher probability. Dev loss: mean of -log p of a scored token, "
    "in nats, on text that is used for nothing else."
)
NURSERY = (
    "The nursery is text written by a small grammar, not BabyLM: it shows how the arms compare on that text, "
    "and nothing about English."
)
FOREIGN_PAIRS = (
    "The pairs of suite nursery are sentences of the nursery's grammar, and these models read other text: compare the "
    "arms by dev loss, or score pairs of that text (evaluate.suites, evaluate.pairs)."
)
ADJUSTED = 0.05  # from this adjusted p on a difference is called doubtful
NEAR_CHANCE = NEAR_CEILING = 5.0  # points


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

    The headline is about the best peer at the largest number of peers that both arms have, on the suite and the
    protocol that the runs' configuration names first; where accuracy lies near chance or near its ceiling, it says the
    dev loss too.
    """
    runs = [run for run in runs if not run.setting]
    measured = main_setting(main_result[main_result["kind"] == "measured"])
    scored = measured[~measured["suite"].isin(["dev_ce", "glue"])]
    if not runs or scored.empty:
        nothing = "Not answered: no finished run has been evaluated yet."
        if (measured["suite"] == "glue").any():  # a mean of correlations, F1 and accuracies: it has no chance level
            nothing = "Not answered: these runs have scores of (Super)GLUE alone (T6); evaluate them on pairs as well."
        return Answer(nothing, _basis(runs, measured, None), pd.DataFrame())
    evaluation = main_evaluation(runs, scored)
    chosen = main_setting(differences)
    chosen = chosen[(chosen["suite"] == evaluation[0]) & (chosen["protocol"] == evaluation[1])]
    shown = []
    headline, told = "", ("wml", "independent")
    for a, b in CONTRASTS:
        rows = chosen[(chosen["a"] == a) & (chosen["b"] == b)]
        rows = most_peers(rows)
        for member in ("best_peer", "ensemble"):
            for _, row in rows[rows["member"] == member].iterrows():
                shown.append(
                    {"comparison": f"{a} - {b}", "peers": f"{int(row['peers'])}", "member": member, **_read(row)}
                )
                if b == "distill" and member == "best_peer" and not headline:
                    headline, told = _headline(a, row, runs), (a, b)
    if not headline:
        headline = f"Not answered: {_why_not(runs, evaluation)}."
        control = [row for row in shown if row["comparison"] == "wml - independent" and row["member"] == "best_peer"]
        for row in control:
            found = f"{row['difference (points)']} points, 95 % interval {row['95 % interval']}"
            headline += f" Against peers that learn alone, mutual learning (wml): {found}; {row['reading']}."
    losses = _of_loss(differences, *told)
    says_little = _saturated(measured, evaluation) or _foreign(runs, evaluation)
    if losses and told[1] == "distill" and says_little:  # then accuracy could not have shown a difference
        headline += f" {_loss_in_short(differences, *told)}"
    if told != ("wml", "independent"):
        losses += _of_loss(differences, "wml", "independent")
    basis = _basis(runs, measured, evaluation) + _of_others(main_result) + _of_length(runs) + _of_diversity(runs)
    basis += losses + _of_cost(runs, *told)
    return Answer(headline, basis, pd.DataFrame(shown))


def _read(row: Any) -> dict[str, str]:
    """Columns `difference`, `interval`, `p`, `p, adjusted` and what they say together."""
    seeds = int(row["n_seeds"])
    interval = "none"
    if seeds == 1:
        reading = "one seed only: nothing can be said about other seeds"
        if pd.notna(row.get("item_low")):
            reading += f" (resampling this seed's items: {row['item_low']:+.1f} to {row['item_high']:+.1f})"
    elif pd.isna(row["low"]):
        reading = "the same for all seeds, so no interval can be estimated and no difference claimed"
    else:
        interval = f"[{row['low']:+.1f}, {row['high']:+.1f}] over {seeds} seeds"
        reading = _reading(row, _WORDS)
    return {
        "difference (points)": f"{row['mean']:+.1f}", "95 % interval": interval, "p": p_value(row["p"]),
        "p, adjusted": p_value(row["p_adjusted"]), "reading": reading,
    }  # fmt: skip


_WORDS = {
    "better": "better: the interval lies above 0",
    "worse": "worse: the interval lies below 0",
    "none": "not shown: the interval contains 0",
}
_WORDS_OF_LOSS = {
    "better": "worse: the loss is higher",
    "worse": "better: the loss is lower",
    "none": "not shown: the interval contains 0",
}


def _reading(row: Any, words: dict[str, str]) -> str:
    """In words what an interval of one comparison says, and whether the family of comparisons takes it back."""
    return words[_verdict(row)] + _doubt(row)


def _doubt(row: Any) -> str:
    """What to add to a difference that one comparison shows and the family of comparisons does not."""
    doubted = _verdict(row) != "none" and pd.notna(row["p_adjusted"]) and row["p_adjusted"] >= ADJUSTED
    return f", but adjusted p is {p_value(row['p_adjusted'])}" if doubted else ""


def _verdict(row: Any) -> str:
    if pd.isna(row["low"]) or row["low"] <= 0 <= row["high"]:
        return "none"
    return "better" if row["low"] > 0 else "worse"


def _headline(a: str, row: Any, runs: Sequence[Run]) -> str:
    corpus = ", ".join(dict.fromkeys(run.corpus for run in runs))
    if int(row["n_seeds"]) == 1:
        return f"Open: on {corpus}, {a} and distill were compared with one seed only, which cannot answer the question."
    found = f"{row['mean']:+.1f} points"
    if pd.notna(row["low"]):
        found += f", 95 % interval {row['low']:+.1f} to {row['high']:+.1f} over {int(row['n_seeds'])} seeds"
    verdict, doubt = _verdict(row), _doubt(row)
    if verdict == "none":
        said = f"Not shown by accuracy on {corpus}: a difference between mutual learning ({a}) and a teacher"
    else:
        reply = "Only a hint" if doubt else {"better": "Yes", "worse": "No"}[verdict]
        did = {"better": "beat", "worse": "fell behind"}[verdict]
        said = f"{reply}, on {corpus}: the best of the mutually learning peers ({a}) {did} a teacher's best student"
    return f"{said} ({found}{doubt})."


def _why_not(runs: Sequence[Run], evaluation: tuple[str, str]) -> str:
    """Why T4_differences compares no mutual learning with distillation on that evaluation."""
    taught = {(run.peers, run.seed) for run in runs if run.arm == "distill"}
    mutual = {(run.peers, run.seed) for run in runs if run.arm in ("wml", "dml")}
    if not taught:
        return "these runs hold no teacher-guided distillation (arm distill)"
    if not mutual:
        return "these runs hold no mutual learning (arms wml and dml) to compare with distillation"
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


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in sorted(set(numbers)))


def _foreign(runs: Sequence[Run], evaluation: tuple[str, str]) -> bool:
    """Whether models of other text were asked the nursery's pairs."""
    return evaluation[0] == "nursery" and any(run.corpus != "nursery" for run in runs)


def _saturated(measured: pd.DataFrame, evaluation: tuple[str, str]) -> str:
    """Where all means of that evaluation lie: near "chance", near the "ceiling", or neither, ""."""
    means = measured[(measured["suite"] == evaluation[0]) & (measured["protocol"] == evaluation[1])]["mean"]
    if (means - 50).abs().max() < NEAR_CHANCE:
        return "chance"
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
    if evaluation is not None:
        rows = measured[(measured["suite"] == evaluation[0]) & (measured["protocol"] == evaluation[1])]
        best, others = rows.loc[rows["mean"].idxmax()], int((rows["mean"] == rows["mean"].max()).sum()) - 1
        peers = "1 peer" if best["peers"] == 1 else f"{int(best['peers'])} peers"
        who = f"{best['arm']}, {peers}, {best['member'].replace('_', ' ')}"
        who += f"; {others} other rows of T4 have it too" if others else ""
        sentences.append(
            f"Accuracy is that of suite {evaluation[0]} under protocol {evaluation[1]}; chance is 50 %, and the "
            f"highest mean is {best['mean']:.1f} % ({who})."
        )
        where = _saturated(measured, evaluation)
        if where == "chance":
            sentences.append("All means lie near chance: differences between arms say little about what was learned.")
        if where == "ceiling":
            sentences.append("All means lie near 100 %: accuracy has little room left to show a difference.")
        if _foreign(runs, evaluation):
            sentences.append(FOREIGN_PAIRS)
        sentences.append("The best peer was chosen on held-out training text, never on the test.")
    return sentences


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


def _of_length(runs: Sequence[Run]) -> list[str]:
    """Who was trained past the lowest dev loss, at each arm's largest number of peers."""
    most = {arm: max(run.peers for run in runs if run.arm == arm) for arm in {run.arm for run in runs}}
    told = [
        f"{row['who']} by {row['rise']:.3f} (lowest after {row['lowest_step']:.0f} of {row['steps']:.0f} steps)"
        for row in risen([run for run in runs if run.peers == most[run.arm]]).to_dict("records")
    ]
    if not told:
        return []
    return [
        f"Dev loss rose before the end (nats a scored token): {'; '.join(told)}. A small text that is read often is "
        "learned by heart: with fewer train.steps, or mutual.teacher_steps for a teacher, arms may compare otherwise."
    ]


def _of_loss(differences: pd.DataFrame, a: str, b: str) -> list[str]:
    """The same comparison in dev loss, which has no ceiling; nothing where one seed has no interval."""
    measured = any(pd.notna(row["low"]) for row in _rows_of_loss(differences, a, b))
    return [loss_difference(differences, a, b)] if measured else []


def _rows_of_loss(differences: pd.DataFrame, a: str, b: str) -> list[dict[str, Any]]:
    """a - b in dev loss, of T4_differences: the main setting, most peers, one row for each member that is shown there.
    A teacher is no peer and left out."""
    members = ["best_peer", "mean_peer", "ensemble"]
    rows = differences[(differences["suite"] == "dev_ce") & (differences["a"] == a) & (differences["b"] == b)]
    rows = most_peers(main_setting(rows))
    rows = rows[rows["member"].isin(members)]
    return rows.sort_values("member", key=lambda column: column.map(members.index)).to_dict("records")


def _loss_in_short(differences: pd.DataFrame, a: str, b: str) -> str:
    """For the headline: by which members a is behind or ahead of b in dev loss; a doubted difference is a hint."""
    words = {
        "better": f"{a} is behind {b}",
        "worse": f"{a} is ahead of {b}",
        "hint": f"only a hint, with an adjusted p of {ADJUSTED} or more",
        "none": "no difference is shown",
    }
    shown: dict[str, list[str]] = {verdict: [] for verdict in words}  # "better": above 0, here a higher loss
    for row in _rows_of_loss(differences, a, b):
        verdict = "hint" if _doubt(row) else _verdict(row)
        shown[verdict].append(f"{row['member'].replace('_', ' ')} {row['mean']:+.3f}")
    told = [f"{words[verdict]} ({', '.join(members)})" for verdict, members in shown.items() if members]
    return f"In dev loss (nats a scored token, lower is better) {'; '.join(told)}."


def loss_difference(differences: pd.DataFrame, a: str, b: str) -> str:
    """A sentence about a - b in dev loss, of T4_differences, with the interval of each member (`_rows_of_loss`)."""
    rows = _rows_of_loss(differences, a, b)
    if not rows:
        return f"These runs do not compare {a} with {b}."
    told = []
    for row in rows:
        found = f"{row['member'].replace('_', ' ')} {row['mean']:+.3f}"
        if pd.isna(row["low"]):
            told.append(f"{found} (no interval: {'one seed' if row['n_seeds'] == 1 else 'all seeds gave the same'})")
        else:
            reading = _reading(row, _WORDS_OF_LOSS)
            told.append(f"{found} (95 % interval {row['low']:+.3f} to {row['high']:+.3f}; {reading})")
    seeds = f"{row['n_seeds']} seed{'s' if row['n_seeds'] != 1 else ''}"
    return f"In dev loss (nats a scored token), {a} minus {b}, {row['peers']} peers, {seeds}: {'; '.join(told)}."


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
        change = f"{row['difference']:+.3f}, {interval}, adjusted p {p_value(row['p_adjusted'])}"
        told.append(f"{row['arm']} {row['mean']:.3f} ({change})")
    return [
        "On dev text an ensemble's loss is below the weighted mean of its peers' by as much as they differ "
        f"(T4_diversity; {peers} peers, nats a scored token, in brackets against {CONTROL}): {'; '.join(told)}."
    ]


def _of_cost(runs: Sequence[Run], a: str, b: str) -> list[str]:
    """What a teacher adds to the bill; nothing where there is none, or where the cost of its training is unknown."""
    peers = {run.peers for run in runs if run.arm == a} & {run.peers for run in runs if run.arm == b}
    if b != "distill" or not peers:
        return []
    flops = {arm: [run.flops for run in runs if run.arm == arm and run.peers == max(peers)] for arm in (a, b)}
    times = fmean(flops[b]) / fmean(flops[a])
    sentence = f"With its teacher's training {b} took {times:.1f} times the FLOP of {a} (T7)."
    return [] if math.isnan(times) else [sentence]
