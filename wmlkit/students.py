"""The shapes of a run's peers: searched as ``[search]`` says, or taken from a file of an earlier search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from filelock import FileLock
from transformers import PreTrainedTokenizerFast

from . import faults, paths
from .config import Config
from .data.prepared import Prepared
from .data.texts import open_texts
from .device import setup
from .errors import UserError
from .identity import digest
from .search import Found, Preference, count_parameters, search_students, targets
from .search_cost import Workload, shape_distance, within
from .settings import MutualConfig, TrainConfig
from .shapes import SHAPE, Student, base_student
from .state import build_state
from .steps import train_step

# Settings of [train] that say what is done beside the steps: no loss of a step depends on them
BESIDE_STEPS = (
    "ema_decay", "log_every", "eval_every", "eval_rows", "final_eval_rows", "checkpoint_every", "keep_checkpoints",
)  # fmt: skip


def students_of(config: Config, out: Path, prepared: Prepared, tokenizer: PreTrainedTokenizerFast) -> list[Found]:
    """The peers' shapes, in their order; of a teacher of the base model's size that one's.

    With ``search.prefer = "proxy"`` the shapes on the short list are trained for `search.proxy_steps` steps first;
    their losses are kept below `out`. Raises UserError as `find_students` does.
    """
    if config.search.prefer != "proxy" or config.search.saved or config.mutual.trains_base:
        return find_students(config, len(tokenizer))
    loss = proxy_losses(config, out, prepared, tokenizer)
    return find_students(config, len(tokenizer), lambda student, found: loss(student))


def find_students(config: Config, vocab_size: int, prefer: Preference | None = None) -> list[Found]:
    """The peers' shapes for a vocabulary of `vocab_size`. prefer: how to choose from the short list; None: by
    distance of their shapes where ``search.prefer`` says so, else the nearest.

    Raises UserError for a saved search that does not fit, or a search that finds nothing (`search_students`).
    """
    base, search, block_size = base_student(config.model), config.search, config.data.longest_block
    if config.mutual.trains_base:
        size = count_parameters(base, config.model.family, vocab_size, block_size)
        return [Found(**asdict(base), parameters=size, target=size, counted=size, evaluations=1, note="the base model")]
    if search.saved:
        return read_students(config, vocab_size)
    allowed = None
    if search.max_step_ms or search.max_memory_mib:
        limits = (search.max_step_ms or math.inf, search.max_memory_mib or math.inf)
        allowed = within(config.model, vocab_size, block_size, workload_of(config), *limits)
    if search.prefer == "distance":
        prefer = least_alike
    return search_students(
        base, config.mutual.num_peers, search, config.model, vocab_size, block_size, allowed=allowed, prefer=prefer
    )


def compare_methods(config: Config, vocab_size: int) -> list[dict[str, Any]]:
    """T3: one row a method and a peer: shape, parameters, target, error_percent, evaluations, and the milliseconds of
    the method's whole search (the same in all its rows). Limits and preferences are those of `find_students`."""
    rows = []
    for method in ("exact", "bayesian"):
        chosen = config.updated({"search.method": method})
        start = time.perf_counter()
        found = find_students(chosen, vocab_size)
        milliseconds = 1000 * (time.perf_counter() - start)
        for peer, student in enumerate(found, start=1):
            rows.append(
                {
                    "method": method,
                    "peer": peer,
                    **student.document(),
                    "error_percent": 100 * student.error,
                    "evaluations": student.evaluations,
                    "search_ms": milliseconds,
                    "note": student.note,
                }
            )
    return rows


def workload_of(config: Config) -> Workload:
    """The training step that shapes are costed for: that of the longest rows, which has as many tokens as the others
    (`data.texts.stages`)."""
    data = config.data
    rows = max(1, config.train.batch_size * data.block_size // data.longest_block)
    train = config.train
    scored = train.mask_ratio if config.model.masked else 1 - train.mntp_share * (1 - train.mask_ratio)
    return Workload(rows, scored, config.search.flop_per_second)


def least_alike(student: Student, found: Sequence[Found]) -> float:
    """Minus `search_cost.shape_distance` of the peers found so far with `student`: less is better."""
    return -shape_distance([*found, student])


def proxy_losses(
    config: Config, out: Path, prepared: Prepared, tokenizer: PreTrainedTokenizerFast
) -> Callable[[Student], float]:
    """A function from a shape to its cross-entropy, in nats per scored token, early in training.

    One student alone takes `search.proxy_steps` steps of the run's own kind, seeded by `search.seed`, so that all
    seeds of a study get the same shapes; the value is the mean over the last quarter of the batches, each new to it.
    Every value is computed once for a corpus and its settings, also by runs side by side, and kept below `out`.
    """
    alone, data = _alone(config), config.data
    key = [alone.resolved()[section] for section in ("model", "train")]
    key += [prepared.hash, data.packing, data.block_size, data.block_schedule]  # the text, and how rows are cut from it
    file = paths.proxy_losses(out, digest(key)[:16])

    def loss(student: Student) -> float:
        paths.make_folder(file.parent)
        name = "-".join(str(value) for value in asdict(student).values())
        with FileLock(file.with_suffix(".lock")):
            known = paths.read_json(file) if file.is_file() else {}
            if name not in known:
                known[name] = _early_loss(alone, student, prepared, tokenizer)
                paths.write_json(file, known)
        return float(known[name])

    return loss


def _alone(config: Config) -> Config:
    """The settings of a proxy's training. What cannot matter to it is at its default, so that all runs that differ in
    nothing else, such as the ablations of `mutual`, share the losses."""
    steps = config.search.proxy_steps
    train = config.train.model_dump(exclude=set(BESIDE_STEPS)) | {
        "seed": config.search.seed,
        "steps": steps,
        "warmup_steps": min(config.train.warmup_steps, steps // 2),
    }
    return Config(
        preset=config.preset,
        data=config.data.model_copy(update={"max_passes": None}),  # a rule for models that are kept
        model=config.model,
        train=TrainConfig(**train),
        mutual=MutualConfig(arm="independent", num_peers=1),
    )


def _early_loss(config: Config, student: Student, prepared: Prepared, tokenizer: PreTrainedTokenizerFast) -> float:
    device = setup(config.train.precision, config.train.threads, together=False)  # the others wait for the value
    texts = open_texts(config, prepared, tokenizer)
    state = build_state(config, [student], tokenizer, device)
    set_seed(config.train.seed)  # dropout
    ce = [train_step(state, texts, config, device)[0].ce for _ in range(config.train.steps)]
    last = ce[-math.ceil(len(ce) / 4) :]
    found = float(sum(value.cpu().double().sum() for value in last)) / len(last)
    if not math.isfinite(found):
        raise faults.not_finite(state.step, "early loss in the search", 0)
    return found


def saved_hash(config: Config) -> str:
    """SHA-256 of the saved search that a run takes its shapes from, part of its identity; empty without one."""
    return digest(_read_saved(config.search.saved)) if config.search.saved else ""


def read_students(config: Config, vocab_size: int) -> list[Found]:
    """The shapes in ``search.saved``, a file of ``wmlkit search --json``; counted anew for this vocabulary.

    Raises UserError for a file that is missing, is no such list, has too few shapes or one that cannot be built.
    """
    file, count = config.search.saved, config.mutual.num_peers
    shapes = _read_saved(file)
    if len(shapes) < count:
        raise UserError(
            f"search.saved {file} has {len(shapes)} shapes; expected one for each of the {count} peers; lower "
            "mutual.num_peers or search again"
        )
    family, block_size = config.model.family, config.data.longest_block
    goals = targets(base_student(config.model), count, config.model, vocab_size, block_size)
    found = []
    for number, (shape, target) in enumerate(zip(shapes, goals, strict=False), 1):
        student = Student(**shape)
        if config.model.rotary and (student.hidden_size // student.num_heads) % 2:
            raise UserError(
                f"shape {number} of search.saved {file} has width {student.hidden_size} and {student.num_heads} heads, "
                f"so heads of an odd width, which {family} cannot have; mend it or search again for this family"
            )
        size = count_parameters(student, family, vocab_size, block_size)
        found.append(Found(**shape, parameters=size, target=target, counted=size, evaluations=0, note="a saved search"))
    return found


def _read_saved(file: str | None) -> list[dict[str, int]]:
    expected = f"expected a list of shapes with {', '.join(SHAPE)}, as `wmlkit search --json` prints it"
    try:
        document = paths.read_json(paths.given(str(file)))
    except OSError as error:
        raise UserError(f"search.saved {file} cannot be read ({error.strerror}); {expected}; check the path") from None
    except ValueError:
        raise UserError(f"search.saved {file} is not JSON; {expected}; search again") from None
    if not isinstance(document, list) or not document:
        raise UserError(f"search.saved {file} is not a list of shapes; {expected}; search again")
    shapes: list[dict[str, int]] = []
    for number, entry in enumerate(document, 1):
        shape: dict[str, int] = {}
        for name in SHAPE:
            value = entry.get(name) if isinstance(entry, dict) else None
            if type(value) is not int or value < 1:
                raise UserError(f"shape {number} of search.saved {file} has {name} {value!r}; {expected}; mend it")
            shape[name] = value
        if shape["hidden_size"] % shape["num_heads"]:
            raise UserError(
                f"shape {number} of search.saved {file} has width {shape['hidden_size']} and {shape['num_heads']} "
                "heads; expected a number of heads that divides the width; mend it"
            )
        shapes.append(shape)
    return shapes
