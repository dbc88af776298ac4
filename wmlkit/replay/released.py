"""What the released training does otherwise than described: named switches, and the arithmetic behind them. Pure.

Findings D1, L1, ...: docs/deviations.md. Not here: that the released training has no seed. The loop is in `replays` and
`steps`, the text in `released_data`, the teacher-guided mode in `teacher`; defects of the search and of the scoring,
which need no training, in `search` and `scoring`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from torch import Tensor

from ..losses import MutualOptions
from ..study_settings import ReplayConfig

RELEASED = ReplayConfig()  # its defaults are the released values
Mode = Literal["mutual", "teacher"]  # whom students learn from: one another, or a teacher, each for itself


@dataclass(frozen=True)
class Defects:
    """What the released code does otherwise than described; each can be switched on by itself."""

    digit_pairs: bool = False  # D1: ids are pairs of characters of a list's text
    lost_case: bool = False  # D2: a lower-case vocabulary, and capital letters vanish when text is scored
    one_stream: bool = False  # D4: windows from anywhere in one text, without start and end tokens
    uncleaned_text: bool = False  # D5: the cleaned text is not the one that is used
    batchmean: bool = False  # L1: KL is a sum over the positions of a row, not a mean
    all_positions: bool = False  # L2: KL at all positions, CE at the masked ones
    attached_targets: bool = False  # L3: the KL also pulls a peer, as a target, toward its students
    peer_weighted_ce: bool = False  # L4: CE of peer i times its weight
    weighted_ce: bool = False  # L6: the outer objective is the weighted sum of the peers' CE
    cut_gradient: bool = False  # O1: a detach makes the correction zero
    wrong_sign: bool = False  # O2: the correction is added where it should be subtracted
    scaled_steps: bool = False  # O4: a mirror step for each micro-batch, each gradient over their number
    clamped: bool = False  # O5: gradients below 0 become 0, above the clip the clip
    dev_text: bool = False  # O8: weights are fitted on the text that is reported
    step_per_epoch: bool = False  # T1: one optimizer step for all micro-batches of an epoch
    masked_specials: bool = False  # start and end tokens are text like any other, also for the mask
    unmasked_inputs: bool = False  # L8, mode "teacher": nothing is masked, the teacher's softmax is all that is learned
    foreign_teacher: bool = False  # L9, mode "teacher": to the teacher the same ids are other tokens


# Ids of the list behind docs/deviations.md; a switch without one belongs to D4, where it can no longer matter.
FINDINGS = {
    "digit_pairs": "D1", "lost_case": "D2", "one_stream": "D4", "uncleaned_text": "D5", "batchmean": "L1",
    "all_positions": "L2", "attached_targets": "L3", "peer_weighted_ce": "L4", "weighted_ce": "L6",
    "cut_gradient": "O1", "wrong_sign": "O2", "scaled_steps": "O4", "clamped": "O5", "dev_text": "O8",
    "step_per_epoch": "T1", "masked_specials": "", "unmasked_inputs": "L8", "foreign_teacher": "L9",
}  # fmt: skip
OF_TEACHER = ("unmasked_inputs", "foreign_teacher")
# The released text and updates, which its teacher-guided mode shares with the other
OF_TEXT = ("digit_pairs", "lost_case", "one_stream", "uncleaned_text", "step_per_epoch")
# The order in which `repairs` mends them: what is read, how often a step is taken, the loss, the weights.
IN_TURN = (
    "digit_pairs", "lost_case", "uncleaned_text", "one_stream", "masked_specials", "step_per_epoch",
    "batchmean", "all_positions", "attached_targets", "peer_weighted_ce",
    "weighted_ce", "cut_gradient", "wrong_sign", "scaled_steps", "clamped", "dev_text",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row of T9 or T9_repairs."""

    mode: Mode = "mutual"
    defects: Defects = Defects()


def cases() -> dict[str, Case]:
    """The rows of T9. Peers learning from one another: ``none``, each defect alone, ``all``. Students of a teacher:
    ``distill`` (as described), L8 alone, L9 alone, ``vanilla`` (both), ``vanilla_all`` (on the released text too)."""

    def mutual(*names: str) -> Case:
        return Case("mutual", Defects(**dict.fromkeys(names, True)))

    def teacher(*names: str) -> Case:
        return Case("teacher", Defects(**dict.fromkeys(names, True)))

    alone = [field.name for field in fields(Defects) if field.name not in OF_TEACHER]
    return {
        "none": mutual(),
        **{name: mutual(name) for name in alone},
        "all": mutual(*alone),
        "distill": teacher(),
        **{name: teacher(name) for name in OF_TEACHER},
        "vanilla": teacher(*OF_TEACHER),
        "vanilla_all": teacher(*OF_TEXT, *OF_TEACHER),
    }


def repairs() -> dict[str, Case]:
    """The rows of T9_repairs: ``all``, then one defect fewer in each, named after the one that is gone, down to
    ``none``. So ``repaired_batchmean`` is without `batchmean` and without all that stand before it in `IN_TURN`."""
    rungs = {"all": cases()["all"]}
    for gone in range(1, len(IN_TURN)):
        left = Defects(**dict.fromkeys(IN_TURN[gone:], True))
        rungs[f"repaired_{IN_TURN[gone - 1]}"] = Case("mutual", left)
    return rungs | {"none": cases()["none"]}


def epoch_learning_rate(epoch: float, replay: ReplayConfig = RELEASED) -> float:
    """gamma in (0-based) epoch `epoch`: 0 at epoch 0, `lr` after `warmup_epochs`, `min_lr` from `decay_epochs` on."""
    return _warmup_cosine(epoch, replay.lr, replay.min_lr, replay)


def outer_step_size(epoch: float, replay: ReplayConfig = RELEASED) -> float:
    """eta of the mirror descent after epoch `epoch`; the same curve, so the first outer problem changes nothing."""
    return _warmup_cosine(epoch, replay.step_size, replay.min_step_size, replay)


def _warmup_cosine(epoch: float, high: float, low: float, replay: ReplayConfig) -> float:
    warmup, decay = replay.warmup_epochs, replay.decay_epochs
    if epoch < warmup:
        return high * epoch / warmup
    done = min(1.0, (epoch - warmup) / (decay - warmup))
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * done))


def released_outer_gradient(ce: Tensor, num_batches: int, clip: float) -> Tensor:
    """What the released code takes for dL2/dw of one micro-batch: CE_i / num_batches, cut to [0, clip]; (P,) -> (P,).

    Its L2 is sum_i w_i CE_i / num_batches, linear in w, and the correction is cut off. clip 0: no cut.
    """
    return clamped(ce / num_batches, clip)


def clamped(gradient: Tensor, clip: float) -> Tensor:
    """The gradient cut to [0, clip], value by value (O5); clip 0: as it is."""
    return gradient.clamp(0, clip) if clip else gradient


def loss_options(alpha: float, defects: Defects) -> MutualOptions:
    """L1 with the defects of the loss."""
    return MutualOptions(
        alpha=alpha,
        ce_weight="peer" if defects.peer_weighted_ce else "one",
        detach_targets=not defects.attached_targets,
        kl_reduction="batchmean" if defects.batchmean else "token_mean",
    )
