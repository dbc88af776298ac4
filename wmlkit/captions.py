"""What stands below each table and figure."""

from __future__ import annotations

import re

OF_FOREMOST = "Runs of wml, or of the first arm that the study has, with the largest number of peers."

TABLES = {
    "T1": "Corpora by domain, before and after cleaning. A word is what stands between white space; tokens are "
    "counted without start and end tokens; fertility is tokens a word; used_words went into training, held-out and "
    "dev text; coverage is the share of their words (punctuation apart) that are one token.",
    "T1_removed": "What cleaning removed: how often each reason applied, in all and a thousand lines of the source.",
    "T2": "Hyper-parameters, each with its source; log N: entry N of docs/log.md.",
    "T3": "Searched students: target and found number of parameters, error in percent of the target. search_ms is that "
    "of the whole search.",
    "T3_choices": "Which of the shapes nearest to a target that no peer before has is taken: the nearest (size), the "
    "one that makes the set least alike (distance: the mean over its pairs of peers, in log depth and width), or the "
    "one with the lowest loss after a few steps of training (proxy). step_ms and memory_mib by the cost model of "
    "wmlkit.search_cost.",
    "T4": "Main result: accuracy on minimal pairs (percent, macro over paradigms) and dev loss (nats per scored "
    "token). Mean over seeds with a 95 % t-interval over seeds, which over few seeds may reach beyond 0 or 100 %. One "
    "seed has none: item_low and item_high resample its items and say nothing about other seeds (column interval). "
    "ensemble weighs the peers' logits with their run's weights (learned ones in wml), uniform_ensemble equally, and "
    "fitted_ensemble (dev loss) with those that are best on held-out text, fitted after training in every arm. GLUE "
    "is the mean over tasks of the best epoch on the scored file. best_peer was chosen on held-out text; mean_peer is "
    "the mean over the peers; teacher is the model that distill learned from. Where no run has one peer, its row is "
    "the first peer of independent, which learns alone. Dev losses of two settings compare where no note says that "
    "they are of other tokens.",
    "T4_differences": "Differences between arms, paired by seed: mean, 95 % t-interval over seeds, two-sided paired "
    "t-test (p), and p_adjusted, Benjamini-Hochberg over the contrasts of one measure, member and number of peers. "
    "item_low and item_high average each item over the seeds and resample within each paradigm: they say how much the "
    "choice of items matters for these runs, nothing about other seeds.",
    "T4_diversity": "What an ensemble gains over its peers: the weighted mean of their dev losses "
    "(weighted_mean_peer), that of the ensemble, and the difference, which is how much the peers differ (diversity, "
    "the mean of KL from the ensemble to each). It depends on the weights too (with all on one peer it is 0), so arms "
    "are compared with equal weights in all (uniform_diversity). Nats per scored token; 95 % t-intervals over seeds; "
    "difference: against independent with as many peers, paired by seed (empty without one), p_adjusted over the arms "
    "of a quantity (Benjamini-Hochberg). Losses of two settings compare where no note says that they are of other "
    "tokens.",
    "T4_stopped": "As T4_differences in dev loss, had each run been stopped where its loss on held-out text, the mean "
    "over its peers, was lowest; of train.eval_rows rows. Only where the dev loss of some arm, at its largest number "
    "of peers, rose by more than 1 % before the end. The learning rate was still on its way down, and a teacher's "
    "training is the whole one.",
    "T4_protocols": "The same models under several scoring protocols, ties counted as in the protocol's own year; "
    "mean over seeds with a 95 % t-interval. perfect_scorer prefers the good sentence of every pair; perfect_swapped "
    "does the same where each pair is followed by a copy in which the other sentence is right, as EWoK is written.",
    "T4_lengths": "Accuracy by whether the good sentence of a pair has fewer tokens than the bad one, as many, or "
    "more: percent of these pairs, not a mean over paradigms; mean over seeds with a 95 % t-interval. Where a score is "
    "a sum over tokens, each token more costs, whatever the grammar; a masked model's under the protocols of 2024 is a "
    "mean and has no such cost.",
    "T4_thirds": "Accuracy on BLiMP (percent) apart for the third of its paradigms on which a recipe may be chosen "
    "(tuning) and the other two thirds (untouched); mean over seeds with a 95 % t-interval.",
    "T4_text": "Loss on dev text by domain, in bits a byte (which compares tokenizers of causal models), mean over "
    "seeds with a 95 % t-interval; unigram: the same text predicted by how often each token comes in the training "
    "text; floor: by what knows its grammar (nursery; of masked models only where the tokenizer keeps words whole). "
    "Masked models: each token masked in turn, all others visible, so not comparable with causal ones.",
    "T5": "Accuracy by phenomenon (percent, unweighted mean over its paradigms), mean and 95 % t-interval over seeds, "
    "which over few seeds may reach beyond 0 or 100 %; for one seed item_low and item_high resample its items.",
    "T6": "(Super)GLUE by task: metric in percent, mean over fine-tuning seeds, then runs. The best epoch is chosen "
    "on the file that is scored, as in the official pipelines, so the numbers are optimistic. accuracy: whatever the "
    "metric is, as one of the official scripts counts it for MRPC and QQP too. majority_class: share of the most "
    "frequent class. Skipped tasks are named with the reason.",
    "T7": "Cost of a run: parameters and FLOP summed over the peers, wall-clock seconds, peak memory in MiB; means "
    "over seeds (seconds_values: each seed's). FLOP include the outer steps of wml, tokens and words do not; they "
    "leave out the output layer. flops_with_teacher and seconds_with_teacher include a teacher's training, in full for "
    "every row that has one; all else is the run's own. Seconds depend on what else the machine did, and peak memory "
    "away from a card on what else its process did before: it is the process's. Compare FLOP and parameters. clipped: "
    "share of updates whose gradient was clipped, mean over the peers; one threshold (train.grad_clip) for the losses "
    "of all arms; not there where nothing is clipped.",
    "T8": "Ablations: the base, and the base with one change each, of one setting or several; mean over seeds with a "
    "95 % t-interval over seeds, the difference from the base, paired by seed, with its interval and two-sided paired "
    "t-test, and p_adjusted, Benjamini-Hochberg over the ablations of one measure and member (unit: percent, or nats "
    "per scored token). flops_with_teacher includes a teacher's training, in full for every row that has one, and "
    "leaves out the output layer, which kl_positions = all computes for every position. peer_weights are those at the "
    "end.",
    "T9": "Replay of the released code: each defect alone, none, and all together, and its teacher-guided mode (mode "
    "teacher), compared with distill, which has neither of that mode's two defects. finding: the defect's id in "
    "docs/deviations.md. Losses in nats per scored "
    "token, means over peers and seeds: train_ce of what was read, dev_ce of true dev text, values its seeds, change "
    "that against none or distill, paired by seed; low and high are 95 % t-intervals over seeds, empty for one. "
    "updates_with_lr: optimizer steps with a learning rate above 0. kl_to_ce: KL terms over CE terms of the loss. "
    "correction: that term of the hypergradient over the explicit one. weight_ratio: largest weight over smallest. "
    "Students of a teacher have no weights, and unmasked_inputs no true tokens: those columns are empty. teacher_ce: "
    "dev_ce of the teacher on the students' ids. lost_case, uncleaned_text, all and vanilla_all have another text and "
    "tokenizer. Accuracy in percent; chance is 50.",
    "T9_repairs": "The released code (all), then one defect fewer in each row, down to the method as described (none): "
    "repaired_X is without X and without the defects repaired above it. Columns as in T9, but change: against the row "
    "above. The first three rows have another text or tokenizer than the others.",
    "T9_scoring": "The peers of none in T9 under each rule of scoring, in percent, macro over paradigms: in order "
    "with half a point for a tie (none), E0 scores in the released order (of causal models the same one), E1 ties at "
    "random or (official_ties) correct. Beside them scorers that are no models: perfect prefers every good sentence, "
    "constant gives all the same score. crossed: EWoK-shaped items made from the pairs, in which every target is "
    "scored twice. displaced: percent of the scores that do not come back in their place.",
    "T9_search": "Shapes of four peers around RoBERTa-base in the released space: as described (none), with indices "
    "rounded down in a Bayesian search (S1), FFN width 3,072 for all (S3), only non-zero entries counted (S4), and "
    "all. error_percent: counted against target. nearest: no shape of the space is nearer.",
}

FIGURES = {
    "F1": "The method, drawn by code: peers learn from text (cross-entropy, CE) and from each other (Kullback-Leibler "
    "divergence, KL); the slope g of the ensemble's loss on held-out text moves their weights. z: logits.",
    "F01_lengths": "Line lengths of the cleaned training text: percent of lines with at most so many words, by domain.",
    "F01_vocabulary": "Growth of the vocabulary: distinct words against words read, in the order of the text, by "
    "domain. A word is here a stretch of letters or one of digits, so punctuation makes no new ones; capitals do. A "
    "line that flattens out has shown its words; natural text goes on rising.",
    "F01_mix": "Left: share of each domain in the words of training, held-out and dev text (their number in "
    "brackets). Right: tokens a word in training text before (raw) and after cleaning, and in cleaned dev text.",
    "F2": "Losses (cross-entropy) of each peer over tokens seen: on training text (line), on dev text (dashed, with "
    "marks), and that of the ensemble. Mean over seeds; the band spans the seeds. Dotted, in the nursery where no word "
    "is split: the floor, the loss of a predictor that knows the text's grammar. On the way dev loss is that of "
    "train.eval_rows rows, in tables that of all. " + OF_FOREMOST,
    "F3": "Peer weights and their hypergradients over tokens seen; only differences between peers move the weights. "
    "Mean over seeds; the band spans the seeds. " + OF_FOREMOST,
    "F4": "Score against the number of peers. Bars: 95 % t-interval over seeds, which over few seeds may reach beyond "
    "0 or 100 %; small marks: single seeds. Where no run has one peer, its place shows the first peer of independent: "
    "it learns alone. Dashed: the teacher that the students of distill learned from.",
    "F5": "Search landscape. Left: parameters of every shape, the targets (dotted; N: parameters of the base model) "
    "and what was found (crosses). Right: parameters against the time of a training step by the cost model of "
    "wmlkit.search_cost; the line joins the Pareto front, the shapes of which no other is both larger and faster.",
    "F6": "Accuracy by phenomenon and peer (percent, mean over seeds); 50 is chance. " + OF_FOREMOST,
    "F05_diversity": "How much the peers differ while they train (nats per scored token of dev text), by arm, with the "
    "largest number of peers. Mean over seeds; the band spans the seeds. So much the ensemble's loss lies below the "
    "weighted mean of its peers' losses, with the weights of the moment: those of wml may lie on few peers, and with "
    "all on one there is none.",
    "F06_ablations": "What each change of T8 does to the mean over the peers of a run, minus the base's. Left: "
    "accuracy, better to the right. Right: dev loss, better to the left. Diamonds: mean over seeds, filled where the "
    "interval leaves out 0; bars: 95 % t-interval over seeds; grey dots: the seeds.",
    "F06_weights": "What constant weights give: dev loss (nats per scored token) of two peers, minus that of the base "
    "of T8, against the weight of the larger one at the end. Squares, joined: weights that were given and stay as they "
    "are (dml; equal ones, or mutual.peer_weights); diamonds: learned ones (wml); dotted: peers that train alone, in "
    "an ensemble with equal weights. Each other ensemble has its run's weights. Bars: 95 % t-interval over seeds of "
    "the difference.",
    "F7": "The same models under every scoring protocol, ties counted as in its own year. Bars: 95 % t-interval over "
    "seeds, which over few seeds may reach beyond 0 or 100 %; small marks: single seeds. Black: what the protocol says "
    "of a scorer that is always right, on these pairs, and where each is followed by a copy in which the other "
    "sentence is right (EWoK's form): 100 unless scores get out of order.",
    "F8": "Accuracy against words seen, repetitions counted, on a few pairs of each paradigm, the same at every "
    "point, with the largest number of peers. The arms of a point are moved apart for the eye; all stand for the same "
    "number of words of the students. What the teacher of distill read before them is not in it (T7 counts it). Bars: "
    "95 % t-interval over seeds, which over few seeds may reach beyond 0 or 100 %; small marks: single seeds.",
}


def caption(name: str) -> str:
    """That of a table or figure, else that of its number (``F5`` for ``F5_gpu``); empty for one without.

    >>> caption("T2")
    'Hyper-parameters, each with its source; log N: entry N of docs/log.md.'
    """
    known = TABLES if name.startswith("T") else FIGURES
    number = re.match(r"[TF]\d+", name)
    return known.get(name) or known.get(number[0] if number else "", "")
