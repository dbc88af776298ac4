"""The student search: shapes whose sizes come nearest to N/2, N/3, ... of a base model with N parameters.

Parameters are counted in closed form, so enumerating every shape is exact and instant. The Bayesian
search of the released code is kept for comparison; it needs no model either. What a shape costs, and
the picture of the whole space, are in `search_cost`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from .config import ModelConfig, SearchConfig
from .errors import UserError
from .models import Student

Count = Literal["all", "nonzero"]
Proxy = Callable[[Student], float]  # a loss after a few steps, or anything else of which less is better
Allowed = Callable[[Student], bool]


@dataclass(frozen=True)
class Found:
    """One peer's shape, its size and what was looked for."""

    num_layers: int
    num_heads: int
    hidden_size: int
    intermediate_size: int
    parameters: int  # all of them, tied weights once, whatever `search.count` is
    target: int  # N / (peer + 1)
    counted: int  # the number that was compared with the target: `parameters` unless search.count = "nonzero"
    evaluations: int  # shapes whose size was computed for this peer
    note: str = ""  # what a reader has to know, such as that the peer repeats another's shape

    @property
    def error(self) -> float:
        """(parameters - target) / target."""
        return (self.parameters - self.target) / self.target

    def document(self) -> dict[str, int]:
        """The shape, its size and its target, as JSON types."""
        names = ("num_layers", "num_heads", "hidden_size", "intermediate_size", "parameters", "target")
        return {name: getattr(self, name) for name in names}


def count_parameters(student: Student, family: str, vocab_size: int, block_size: int, count: Count = "all") -> int:
    """Number of parameters of a student as `models.build_model` builds it, in closed form; tied weights once.

    count="nonzero" counts a freshly initialised model as the released code does (`p != 0`): biases and
    most padding rows start at zero and are left out.
    Raises UserError for an unknown family.

    >>> count_parameters(Student(2, 4, 64, 256), "roberta", vocab_size=1312, block_size=32)
    191904
    >>> count_parameters(Student(12, 12, 768, 3072), "gpt2", vocab_size=50257, block_size=1024)  # GPT-2 small
    124439808
    """
    if family not in _SIZES:
        raise UserError(f"there is no family {family!r}; expected one of {', '.join(_SIZES)}; change model.family")
    once, zero_once, layer, zero_layer = _SIZES[family](
        student.hidden_size, student.intermediate_size, vocab_size, block_size
    )
    parameters = once + student.num_layers * layer
    if count == "nonzero":
        parameters -= zero_once + student.num_layers * zero_layer
    return parameters


# Each of these: hidden size, FFN width, vocabulary, tokens a row -> (parameters outside the layers, of which
# zero at first, parameters of a layer, of which zero at first).


def _roberta(hidden: int, ffn: int, vocab: int, tokens: int) -> tuple[int, int, int, int]:
    # Tokens, positions (two rows stand before the first), one type, norm.
    embeddings = vocab * hidden + (tokens + 2) * hidden + hidden + 2 * hidden
    head = hidden * hidden + hidden + 2 * hidden + vocab  # transform, norm, bias of the tied decoder
    # The padding rows of tokens and positions and the bias of the norm; the biases of the head.
    zero = 3 * hidden + 2 * hidden + vocab
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * ffn + ffn + hidden + 4 * hidden  # attention, FFN, two norms
    return embeddings + head, zero, layer, 4 * hidden + ffn + hidden + 2 * hidden


def _modernbert(hidden: int, ffn: int, vocab: int, tokens: int) -> tuple[int, int, int, int]:
    embeddings = vocab * hidden + hidden  # and their norm; positions are rotary
    head = hidden * hidden + hidden + vocab  # transform, norm, bias of the tied decoder
    layer = 4 * hidden * hidden + 3 * hidden * ffn + 2 * hidden  # attention, gated FFN, two norms; no biases
    # The norm after the last layer makes up for the one that the first layer lacks.
    return embeddings + head, vocab, layer, 0  # transformers does not clear this family's padding row


def _gpt2(hidden: int, ffn: int, vocab: int, tokens: int) -> tuple[int, int, int, int]:
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * ffn + ffn + hidden + 4 * hidden
    zero_layer = 4 * hidden + ffn + hidden + 2 * hidden
    return vocab * hidden + tokens * hidden + 2 * hidden, hidden, layer, zero_layer


def _llama(hidden: int, ffn: int, vocab: int, tokens: int) -> tuple[int, int, int, int]:
    return vocab * hidden + hidden, hidden, 4 * hidden * hidden + 3 * hidden * ffn + 2 * hidden, 0


_SIZES = {"roberta": _roberta, "modernbert": _modernbert, "gpt2": _gpt2, "llama": _llama}


def students(base: Student, search: SearchConfig, model: ModelConfig, every_head: bool = True) -> list[Student]:
    """Every shape of the space that can be built, fewer layers first, then narrower, then the better heads.

    The number of heads does not change the size; the better one makes heads as wide as the base's (then:
    fewer). Heads that do not divide the width are left out, and for rotary positions those of odd width.
    every_head: False leaves out all but the best number of heads for each width.
    Raises UserError if nothing is left.
    """
    for name in ("num_layers", "num_heads", "hidden_size"):
        options = getattr(search, name)
        if not options or min(options) < 1:
            raise UserError(f"search.{name} is {list(options)}; expected positive numbers: give at least one")
    widths = []
    for hidden in sorted(set(search.hidden_size)):
        heads = _heads(
            hidden, base.hidden_size / base.num_heads, search, rotary=model.family in ("modernbert", "llama")
        )
        ffn = base.intermediate_size
        if search.intermediate == "tied":
            ffn = max(1, round(base.intermediate_size / base.hidden_size * hidden))
        widths += [(head, hidden, ffn) for head in (heads if every_head else heads[:1])]
    if not widths:
        raise UserError(
            f"no number of heads in search.num_heads {list(search.num_heads)} fits any width in search.hidden_size "
            f"{list(search.hidden_size)}; it must divide the width (with rotary positions, into an even number): "
            "change one of the two"
        )
    return [Student(layers, *width) for layers in sorted(set(search.num_layers)) for width in widths]


def _heads(hidden: int, wanted: float, search: SearchConfig, rotary: bool) -> list[int]:
    """Numbers of heads that fit a width, the one with heads nearest to `wanted` wide first."""
    heads = [n for n in set(search.num_heads) if hidden % n == 0 and not (rotary and (hidden // n) % 2)]
    return sorted(heads, key=lambda n: (abs(hidden / n - wanted), n))


def targets(base: Student, num_peers: int, model: ModelConfig, vocab_size: int, block_size: int) -> list[int]:
    """N/2, N/3, ... for `num_peers` peers, N being all parameters of the base.

    All of them even where the students' are counted as non-zero: the released code's base is a trained
    model, whose biases are no longer zero.
    """
    if num_peers < 1:
        raise UserError(f"the number of peers is {num_peers}; expected at least 1: change mutual.num_peers")
    size = count_parameters(base, model.family, vocab_size, block_size)
    return [round(size / (peer + 1)) for peer in range(1, num_peers + 1)]


def search_students(
    base: Student,
    num_peers: int,
    search: SearchConfig,
    model: ModelConfig,
    vocab_size: int,
    block_size: int,
    *,
    allowed: Allowed | None = None,
    proxy: Proxy | None = None,
    shortlist: int = 4,
    tolerance: float | None = None,
    truncate: bool = True,
) -> list[Found]:
    """The shapes of peers 1..`num_peers`, each as near to its target N/(peer + 1) as the space has it.

    Ties go to fewer layers, then to the smaller width. A peer's answer depends on the peers before it
    only, so that one, two and four peers share their first shapes. No two peers have the same depth and
    width unless too few shapes are left, which `note` then says.

    allowed: a shape for which it is false is left out, for example `search_cost.within`.
    proxy: called with the `shortlist` shapes nearest to a target; the one with the lowest value is taken.
    tolerance: largest |error| of the size; None: whatever is nearest.
    truncate: Bayesian only, see `bayesian_order`.
    Raises UserError for no peers, an empty space, or a target that cannot be met within `tolerance`.
    """
    goals = targets(base, num_peers, model, vocab_size, block_size)
    space = _kept(students(base, search, model, every_head=False), allowed)
    if (
        search.method == "bayesian" or len(space) < num_peers
    ):  # heads do not change the size: leave them out if possible
        space = _kept(students(base, search, model), allowed)
    sizes = _sizes(space, model.family, vocab_size, block_size, search.count)
    places = {s: place for place, s in enumerate(space)}
    found: list[Found] = []
    for peer, target in enumerate(goals):
        reason = "the search space is too small"
        if search.method == "bayesian":
            size = dict(zip(space, sizes.tolist(), strict=True))
            order, evaluations = bayesian_order(space, size, target, search, search.seed + peer, truncate)
            reason = "the search met too few shapes"
        else:
            # A stable sort, so ties stay in the order of `students`.
            nearest = np.argsort(np.abs(sizes - target), kind="stable")
            order, evaluations = [space[place] for place in nearest], len(space)
        fresh, note = _fresh(order, found, reason)
        chosen = fresh[0] if proxy is None else min(fresh[:shortlist], key=proxy)
        result = Found(
            **asdict(chosen),
            parameters=count_parameters(chosen, model.family, vocab_size, block_size),
            target=target,
            counted=int(sizes[places[chosen]]),
            evaluations=evaluations,
            note=note,
        )
        _check_tolerance(result, peer + 1, tolerance)
        found.append(result)
    return found


def _sizes(space: Sequence[Student], family: str, vocab_size: int, block_size: int, count: Count) -> np.ndarray:
    """`count_parameters` of every shape: linear in depth, so the formula is evaluated once a width."""
    lines: dict[tuple[int, int], tuple[int, int]] = {}  # (width, FFN) -> parameters without layers, of one layer
    for s in space:
        width = (s.hidden_size, s.intermediate_size)
        if width not in lines:
            one, two = (
                count_parameters(Student(layers, s.num_heads, *width), family, vocab_size, block_size, count)
                for layers in (1, 2)
            )
            lines[width] = (2 * one - two, two - one)
    once, layer = np.array([lines[s.hidden_size, s.intermediate_size] for s in space], dtype=np.int64).T
    return once + layer * np.array([s.num_layers for s in space], dtype=np.int64)


def _kept(space: Sequence[Student], allowed: Allowed | None) -> list[Student]:
    kept = [s for s in space if allowed is None or allowed(s)]
    if not kept:
        smallest = space[0]
        raise UserError(
            f"none of the {len(space)} shapes of the search space is within the limits, not even {smallest.num_layers} "
            f"layers of width {smallest.hidden_size}; expected at least one: raise the limits or add smaller shapes"
        )
    return kept


def _fresh(order: Sequence[Student], found: Sequence[Found], reason: str) -> tuple[list[Student], str]:
    """`order` without the shapes that other peers have, and a note with `reason` if that leaves none."""
    sizes = {(f.num_layers, f.hidden_size) for f in found}
    fresh = [s for s in order if (s.num_layers, s.hidden_size) not in sizes]
    if fresh:
        return fresh, ""
    shapes = {(f.num_layers, f.hidden_size, f.num_heads) for f in found}
    fresh = [s for s in order if (s.num_layers, s.hidden_size, s.num_heads) not in shapes]
    if fresh:
        return fresh, f"{reason}: another peer has this depth and width, with other heads"
    return list(order), f"{reason}: another peer has the same shape"


def _check_tolerance(found: Found, peer: int, tolerance: float | None) -> None:
    error = (found.counted - found.target) / found.target
    if tolerance is not None and abs(error) > tolerance:
        raise UserError(
            f"peer {peer} should have {found.target:,} parameters, but the nearest shape of the search space has "
            f"{found.counted:,} ({found.num_layers} layers of width {found.hidden_size}, {100 * error:+.1f} %); "
            f"expected at most {100 * tolerance:g} %: add to search.num_layers or search.hidden_size, or allow more"
        )


def bayesian_order(
    space: Sequence[Student],
    size: dict[Student, int],
    target: int,
    search: SearchConfig,
    seed: int,
    truncate: bool = True,
) -> tuple[list[Student], int]:
    """The shapes that a Bayesian optimisation of -|size - target| visits, nearest first, and its evaluations.

    `search.init_points` random shapes, then `search.n_iter` that a Gaussian process proposes. Shapes of
    the options' product that are not in `space` count as missing the target by the largest size.
    truncate: the options' indices are real numbers rounded down, as in the released code, so that the last
    option comes up only when the upper edge itself is proposed; False: they are integers.
    """
    from bayes_opt import BayesianOptimization  # a second to import, and only this function needs it

    options = {
        "num_layers": sorted(set(search.num_layers)),
        "num_heads": sorted(set(search.num_heads)),
        "hidden_size": sorted(set(search.hidden_size)),
    }
    shapes = {(s.num_layers, s.num_heads, s.hidden_size): s for s in space}
    free = [name for name, values in options.items() if len(values) > 1]  # the optimiser refuses an empty range
    worst = -float(max(size.values()) + target)
    visited: list[Student] = []

    def objective(**index: float) -> float:
        chosen = [values[int(index.get(name, 0))] for name, values in options.items()]
        student = shapes.get((chosen[0], chosen[1], chosen[2]))
        if student is None:
            return worst
        visited.append(student)
        return -float(abs(size[student] - target))

    if not free:
        objective()
        return visited, 1
    bounds: dict[str, Any] = {}
    for name in free:
        last = len(options[name]) - 1
        bounds[name] = (0, last) if truncate else (0, last, int)
    with warnings.catch_warnings():
        # Integer parameters are called experimental, and the fit of the process ends at a bound: both expected here.
        warnings.simplefilter("ignore")
        optimizer = BayesianOptimization(objective, bounds, random_state=seed, verbose=0)
        optimizer.maximize(init_points=search.init_points, n_iter=search.n_iter)  # a point met again is not registered
    evaluations = search.init_points + search.n_iter
    if not visited:
        raise UserError(
            f"the Bayesian search met no valid shape in {evaluations} evaluations; "
            'expected at least one: raise search.n_iter or use search.method = "exact"'
        )
    nearest_first = sorted(dict.fromkeys(visited), key=lambda s: abs(size[s] - target))
    return nearest_first, evaluations


def compare_methods(
    base: Student,
    num_peers: int,
    search: SearchConfig,
    model: ModelConfig,
    vocab_size: int,
    block_size: int,
    *,
    methods: Iterable[Literal["exact", "bayesian"]] = ("exact", "bayesian"),
    truncate: bool = True,
) -> list[dict[str, Any]]:
    """T3: one row a method and a peer: shape, parameters, target, error_percent, evaluations, and the
    milliseconds of the method's whole search (the same in all its rows)."""
    rows = []
    for method in methods:
        settings = search.model_copy(update={"method": method})
        start = time.perf_counter()
        found = search_students(base, num_peers, settings, model, vocab_size, block_size, truncate=truncate)
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
