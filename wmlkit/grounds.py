"""What the answer rests on, in sentences: the runs, what makes their comparison weaker, and what it leaves out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

import pandas as pd

from . import paths, readings, results
from .alike import OTHERWISE
from .diversity import CONTROL, UNIFORM, diversity, diversity_table
from .overfitting import risen, stopped
from .readable import p_value, peers_in_words
from .run_files import Run, read_object
from .run_settings import MADE
from .runs import ARMS

NURSERY = (
    "The nursery is text written by a small grammar, not BabyLM: it shows how the arms compare on that text, "
    "and nothing about English."
)
FOREIGN_PAIRS = (
    "The pairs of suite nursery are sentences of the nursery's grammar, and these models read other text: compare the "
    "arms by dev loss, or score pairs of that text (evaluate.suites, evaluate.pairs)."
)
NEAR_CHANCE = NEAR_CEILING = 5.0  # points
MANY_TIES = 1.0  # percent; models in single precision hardly have one of two different sentences
CLIPPED_APART = 0.1  # shares of clipped updates of two arms; below, the threshold met outliers alone
LEARNED = 0.05  # share of the unigram loss; below it by 25 % and more lie models that know what goes with what
HARDLY_MOVED = 1.25  # times what a weight began with; docs/log.md 40 has what longer steps change


def saturated(measured: pd.DataFrame, evaluation: tuple[str, str]) -> str:
    """Where all means of that evaluation lie: near "chance", near "chance or below it", near the "ceiling", or
    elsewhere, ""."""
    means = measured[(measured["suite"] == evaluation[0]) & (measured["protocol"] == evaluation[1])]["mean"]
    if means.max() < 50 + NEAR_CHANCE:
        return "chance" if means.min() > 50 - NEAR_CHANCE else "chance or below it"
    return "ceiling" if means.min() > 100 - NEAR_CEILING else ""


def foreign(runs: Sequence[Run], evaluation: tuple[str, str]) -> bool:
    """Whether models of other text were asked the nursery's pairs."""
    return evaluation[0] == "nursery" and any(run.corpus != "nursery" for run in runs)


def of_runs(runs: Sequence[Run], measured: pd.DataFrame, evaluation: tuple[str, str] | None) -> list[str]:
    """How many runs of which text and seeds, what is special about their teacher, and where their accuracies lie.

    measured: rows of T4 of these runs; evaluation: the suite and protocol that the answer is about; None: of none."""
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
        where = saturated(measured, evaluation)
        if "chance" in where:
            sentences.append(f"All means lie near {where}: differences between arms say little about what was learned.")
        if where == "ceiling":
            sentences.append("All means lie near 100 %: accuracy has little room left to show a difference.")
        if rows["ties"].min() >= MANY_TIES:
            sentences.append(
                f"{rows['ties'].min():.0f} % of the pairs or more are ties in every row of T4: both sentences have one "
                "score, as where a tokenizer makes the same tokens of both. No model can tell such pairs apart."
            )
        if foreign(runs, evaluation):
            sentences.append(FOREIGN_PAIRS)
        sentences.append("The best peer was chosen on held-out training text, never on the test.")
    return sentences


def of_frequencies(runs: Sequence[Run]) -> list[str]:
    """Which arms predict dev text hardly better than token frequencies do, by suite lm where it was measured."""
    best: dict[str, tuple[float, float]] = {}  # of an arm: loss and unigram loss, nats a token
    for run in runs:
        path = paths.language_modelling(run.folder)
        document = read_object(path, ("members",)) if path.is_file() else {}
        if document.get("unigram"):
            loss = min(member["nats_per_token"] for member in document["members"])
            here = (loss, float(document["unigram"]["nats_per_token"]))
            best[run.arm] = min(best.get(run.arm, here), here, key=lambda pair: pair[0] / pair[1])
    near = {arm: pair for arm, pair in best.items() if pair[0] > (1 - LEARNED) * pair[1]}
    if not near:
        return []
    told = "; ".join(f"{arm} {loss:.2f} for {unigram:.2f}" for arm, (loss, unigram) in near.items())
    return [
        "Of these arms no member of a run predicts dev text much better than what knows only how often each token "
        f"comes (T4_text; nats a token, at best): {told}. Such models have not learned what goes with what; how the "
        "arms compare says little of what peers or a teacher can teach."
    ]


def made_otherwise(others: Sequence[Run]) -> list[str]:
    """That runs configured like the others are in no mean and comparison: their text or precision is another."""
    made = [run for run in others if all(part.startswith(MADE) for part in run.setting.split(" "))]
    if not made:
        return []
    told = dict.fromkeys(f"{run.arm} with {run.peers} peers, seed {run.seed}: {run.setting}" for run in made)
    return [
        f"Left out of this, because their text or their precision is another: {'; '.join(told)}. Arms are compared at "
        "equal text and precision; train.precision sets the same on every machine."
    ]


def of_others(main_result: pd.DataFrame) -> list[str]:
    """That some scores are in no mean and comparison, because their runs were evaluated otherwise than others."""
    others = main_result[main_result["note"].fillna("").str.contains(OTHERWISE, regex=False)]
    others = others[others["setting"].str.startswith("evaluation.")]  # the others' runs have settings of their own
    if others.empty:
        return []
    places = dict.fromkeys(f"{row.arm} on {row.suite}, seeds {row.seeds}" for row in others.itertuples())
    return [
        f"Left out of this, because other runs were evaluated otherwise: {'; '.join(places)}. T4 says in its column "
        "setting how, and `wmlkit evaluate RUN --force` evaluates a run again."
    ]


def of_weights(runs: Sequence[Run]) -> list[str]:
    """Where the learned weights ended, at the most peers: where that is near their beginning, wml was nearly dml."""
    peers = max((run.peers for run in runs if run.arm == "wml"), default=1)
    if peers == 1:
        return []
    learned = [run for run in runs if (run.arm, run.peers) == ("wml", peers)]
    ended = [fmean(weights) for weights in zip(*(run.done["peer_weights"] for run in learned), strict=True)]
    given = learned[0].config["mutual"].get("peer_weights")  # a setting, so the same in all
    given = given and [weight / sum(given[:peers]) for weight in given[:peers]]  # without a frozen teacher's
    began = given or [1 / peers] * peers
    told = _weights(given) if given else f"{began[0]:.3f} each"
    sentence = f"From {told} the learned weights of {peers_in_words(peers)} came to {_weights(ended)} (seeds' mean)."
    if any(run.taught_peers for run in learned):  # the teacher's weight is one more, and may have moved
        return [sentence]
    if all(_factor(began, run.done["peer_weights"]) < HARDLY_MOVED for run in learned):
        furthest = max((_furthest(began, run) for run in learned), key=lambda weights: _factor(began, weights))
        if _factor(began, furthest) < HARDLY_MOVED:
            sentence += (
                " They hardly moved, so wml was nearly dml and says little of weights that do; outer.lr and "
                "outer.every say how far they can go."
            )
        else:
            sentence += f" In one seed they went as far as {_weights(furthest)} before."
    return [sentence]


def _factor(began: Sequence[float], now: Sequence[float]) -> float:
    """How many times larger or smaller than it began the weight is that moved most."""
    return max(max(weight / begin, begin / max(weight, 1e-9)) for begin, weight in zip(began, now, strict=True))


def _furthest(began: Sequence[float], run: Run) -> list[float]:
    """The logged weights of a run that are furthest from where they began."""
    logged = results.run_metrics(run.folder)
    rows = logged[logged["quantity"] == "peer_weights"].pivot(index="step", columns="peer", values="value")
    return max(rows.to_numpy().tolist(), key=lambda weights: _factor(began, weights))


def of_ensembles(runs: Sequence[Run], differences: pd.DataFrame) -> list[str]:
    """What the fitted ensembles are for, where T4_differences compares those of `wml`."""
    fitted = results.main_setting(differences, suite="dev_ce", member="fitted_ensemble")
    if fitted.empty or not (fitted["a"] == "wml").any():
        return []
    given = any(run.config["mutual"].get("peer_weights") for run in runs if run.arm == "dml")
    others = "that of dml as it was given, those of other arms equally" if given else "that of the other arms equally"
    return [
        f"The ensemble of wml weighs its peers as they were learned to be weighed on held-out text, {others}. In the "
        "fitted ensemble every arm has the weights that are best on that text after training, so "
        "that what is compared is what the peers have learned."
    ]


def _weights(weights: Iterable[float]) -> str:
    return ", ".join(f"{weight:.3f}" for weight in weights)


def of_length(runs: Sequence[Run], a: str, b: str) -> list[str]:
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
        for sentence in of_loss(in_time, first, second):
            sentences.append(f"Each run stopped where its loss on held-out text was lowest (T4_stopped): {sentence}")
    return sentences


def of_loss(differences: pd.DataFrame, a: str, b: str, peers: int = 0) -> list[str]:
    """The same comparison in dev loss, which has no ceiling; nothing where one seed has no interval."""
    measured = any(pd.notna(row["low"]) for row in readings.rows_of_loss(differences, a, b, peers))
    return [readings.loss_difference(differences, a, b, peers)] if measured else []


def of_diversity(runs: Sequence[Run]) -> list[str]:
    """What the peers of each arm are worth together; nothing without a difference, with its interval, from peers that
    learned alone."""
    table = diversity(diversity_table(runs))
    table = table[table["quantity"] == UNIFORM] if len(table) else table
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
        "On dev text the loss of an ensemble that weighs its peers alike is below their mean by as much as they differ "
        f"(T4_diversity; {peers} peers, nats a scored token, in brackets against {CONTROL}): {'; '.join(told)}."
    ]


def of_clipping(runs: Sequence[Run]) -> list[str]:
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


def of_cost(runs: Sequence[Run], a: str, b: str, peers: int) -> list[str]:
    """What a teacher adds to the bill of b, both with that many peers; nothing where the cost of its training is
    unknown."""
    flops = {arm: [run.flops_with_teacher for run in runs if run.arm == arm and run.peers == peers] for arm in (a, b)}
    times = fmean(flops[b]) / fmean(flops[a])
    own = ", whose teacher is counted too" if any(run.taught_peers for run in runs if run.arm == a) else ""
    sentence = f"With its teacher's training {b} took {times:.1f} times the FLOP of {a}{own} (T7)."
    return [] if math.isnan(times) else [sentence]
