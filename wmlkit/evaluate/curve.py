"""Learning curves: the peers scored on a few pairs of each paradigm while they train.

A point is scored when training passes its number of words, and only the scores are kept: the peers of all points
would be many times the size of the run. Scoring draws no random numbers and changes no weight, so a run learns the
same with and without a curve, to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from .. import checkpoint, paths
from ..config import Config
from ..errors import UserError
from ..run_files import read_object
from ..state import State
from .pairs import check_window, evaluate_pairs, read_pairs
from .suites import pairs_folder

END = "end"  # name of the last point
Recorder = Callable[[State, int, bool], float]


def points_passed(curve: Sequence[int], before: int, after: int, last: bool) -> list[tuple[str, int | None]]:
    """Name and word count of the points that a step from `before` to `after` words passes; None is the end."""
    passed: list[tuple[str, int | None]] = [(f"words-{n:010d}", n) for n in curve if before < n <= after]
    return [*passed, (END, None)] if last and curve else passed


def curve_suites(config: Config) -> list[str]:
    """The suites of a run's learning curve; none where it gets no curve.

    The teacher of `distill` is no arm and gets none. The nursery's pairs ask nothing of models of other text, whose
    tokenizer may not even fit them into a row.
    """
    if not config.evaluate.curve or config.mutual.arm == "teacher":
        return []
    return [suite for suite in config.evaluate.suites if suite != "nursery" or config.data.corpus == "nursery"]


def points_lacking(config: Config, folder: Path) -> list[str]:
    """A sentence where a finished run lacks points of the curve that `config` asks for: only training makes them."""
    passed = points_passed(config.evaluate.curve, 0, read_object(folder / "done.json", ("words",))["words"], True)
    lacking = [name for name, _ in passed if not (paths.curve(folder) / f"{name}.json").is_file()]
    if not lacking or not curve_suites(config):
        return []
    return [
        f"{folder.name} is trained and lacks {len(lacking)} of {len(passed)} points of its learning curve "
        f"(evaluate.curve), the first is {lacking[0]}; only training it again makes them: remove {folder} and run the "
        "same command again"
    ]


def curve_recorder(config: Config, out: Path, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Recorder | None:
    """A function of (state after a step, words before it, whether it was the last) that scores what is due; None: off.

    It writes ``curve/<point>.json`` into the run folder and returns the seconds that this took. A point that is
    passed again after an interruption is written again, the same. The pairs are read here once, so that a mistake
    in them, or one too long for the students, is found before training.
    """
    chosen, wanted = config.evaluate, curve_suites(config)
    if not wanted:
        return None
    try:
        suites = {suite: pairs_folder(config, suite, out) for suite in wanted}
        pairs = {s: read_pairs(folder, chosen.protocol, chosen.curve_per_paradigm) for s, folder in suites.items()}
        for suite, own in pairs.items():
            check_window(suite, own, tokenizer, config, chosen.protocol)
    except UserError as error:
        raise UserError(f"{error}; or train without a learning curve: --set 'evaluate.curve=[]'") from None

    def record(state: State, before: int, last: bool) -> float:
        passed = points_passed(chosen.curve, before, state.words, last)
        if not passed:
            return 0.0
        began = time.perf_counter()
        documents = [
            evaluate_pairs(
                state.reported_models,
                tokenizer,
                suite_folder,
                suite=suite,
                protocol=chosen.protocol,
                ties=chosen.ties,
                per_paradigm=chosen.curve_per_paradigm,
                ensemble_weights=state.ensemble_weights.tolist(),
                objective=config.model.objective,
                token_budget=chosen.token_budget,
                pairs=pairs[suite],
            )[0]
            for suite, suite_folder in suites.items()
        ]
        for name, target in passed:
            place = {"target_words": target, "words": state.words, "tokens": state.tokens, "step": state.step}
            if chosen.curve_export:
                for index, model in enumerate(state.reported_models, 1):
                    card = f"Peer {index} after {state.words:,} words, step {state.step}.\n"
                    to = paths.curve(folder) / name / f"peer_{index}"
                    checkpoint.export(model, tokenizer, to, card, config.data.packing)
            document = {**place, "evaluations": documents}
            paths.write_json(paths.curve(folder) / f"{name}.json", document)
        return time.perf_counter() - began

    return record
