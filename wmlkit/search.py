"""The student search: shapes whose sizes come nearest to N/2, N/3, ... of a base model with N parameters.

Parameters are counted in closed form, so enumerating every shape is exact and instant. The Bayesian
search of the released code (`search_bayesian`) is kept for comparison; it needs no model either. What a
shape costs, and the picture of the whole space, are in `search_cost`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import UserError
from .search_bayesian import bayesian_order
from .settings import ModelConfig, SearchConfig
from .shapes import SHAPE, Student

Count = Literal["all", "nonzero"]
Allowed = Callable[[Student], bool]


@dataclass(frozen=True)
class Found(Student):
    """One peer's shape, its size and what was looked for."""

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
        return {name: getattr(self, name) for name in (*SHAPE, "parameters", "target")}


# A loss after a few steps (`students.proxy_losses`), minus the distance of the shapes, or anything else: less is better
Preference = Callable[[Student, Sequence[Found]], float]


def count_parameters(student: Student, family: str, vocab_size: int, block_size: int, count: Count = "all") -> int:
    """Number of parameters of a student as `models.build_model` builds it, in closed form; tied weights once.

    count="nonzero" counts a freshly initialised model as the released code does (`p != 0`): biases and
    most padding rows start at zero and are left out. RoBERTa's positions are those of a tokenizer whose padding token
    has the id 1, as its own has; each id behind that is one row of positions more.
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


@dataclass(frozen=True)
class Space:
    """Every shape that can be built: each depth with each of `widths`, (heads, hidden size, FFN width)."""

    num_layers: tuple[int, ...]
    widths: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.num_layers) * len(self.widths)

    def student(self, place: int) -> Student:
        """Shape number `place`, fewer layers first."""
        layers, width = divmod(place, len(self.widths))
        return Student(self.num_layers[layers], *self.widths[width])

    def sizes(self, family: str, vocab_size: int, block_size: int, count: Count) -> NDArray[np.int64]:
        """`count_parameters` of every shape, in their order: linear in depth, so two counts a width serve all."""
        one, two = (
            np.array(
                [count_parameters(Student(n, *width), family, vocab_size, block_size, count) for width in self.widths]
            )
            for n in (1, 2)
        )
        layers = np.array(self.num_layers, dtype=np.int64)
        return ((2 * one - two) + np.outer(layers, two - one)).ravel()


def space_of(base: Student, search: SearchConfig, model: ModelConfig, every_head: bool = True) -> Space:
    """The search space: fewer layers first, then narrower, then the better heads.

    The number of heads does not change the size; the better one makes heads as wide as the base's (then:
    fewer). Heads that do not divide the width are left out, and for rotary positions those of odd width.
    every_head: False leaves out all but the best number of heads for each width.
    Raises UserError if nothing is left.
    """
    widths = []
    for hidden in sorted(set(search.hidden_size)):
        heads = _heads(hidden, base.hidden_size / base.num_heads, search, model.rotary)
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
    return Space(tuple(sorted(set(search.num_layers))), tuple(widths))


def students(base: Student, search: SearchConfig, model: ModelConfig) -> list[Student]:
    """The shapes of `space_of`, one by one."""
    space = space_of(base, search, model)
    return [space.student(place) for place in range(len(space))]


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
    prefer: Preference | None = None,
) -> list[Found]:
    """The shapes of peers 1..`num_peers`, each as near to its target N/(peer + 1) as the space has it.

    Ties go to fewer layers, then to the smaller width. A peer's answer depends on the peers before it
    only, so that one, two and four peers share their first shapes. No two peers have the same depth and
    width unless too few shapes are left, which `note` then says.

    allowed: a shape for which it is false is left out, for example `search_cost.within`.
    prefer: called with the `search.shortlist` shapes nearest to a target and the peers found before; the one with
    the lowest value is taken, of equal ones the nearest.
    Raises UserError for no peers, an empty space, or a target that cannot be met within `search.tolerance`.
    """

    def counted(student: Student) -> int:
        return count_parameters(student, model.family, vocab_size, block_size, search.count)

    @cache
    def sized(every_head: bool) -> tuple[Space, NDArray[np.int64]]:
        space = space_of(base, search, model, every_head)
        return space, space.sizes(model.family, vocab_size, block_size, search.count)

    def candidates(every_head: bool, peer: int, target: int) -> tuple[list[Student], str, int]:
        """What `_fresh` gives, and the evaluations."""
        space, sizes = sized(every_head)
        order: Callable[[], Iterator[Student]]
        if search.method == "bayesian":
            seed = (search.seed + peer - 1) % 2**32  # behind the largest seed comes 0
            order, evaluations = _visited(space, sizes, allowed, target, search, seed)
            reason = "the search met too few shapes"
        else:
            order, evaluations = partial(_nearest, space, np.abs(sizes - target), allowed), len(space)
            reason = "the search space is too small"
        fresh, note = _fresh(order, found, search.shortlist if prefer else 1, reason)
        if search.tolerance is not None:  # of a short list those that may be taken; the nearest, to be told of, if none
            fresh = [s for s in fresh if abs(counted(s) - target) <= search.tolerance * target] or fresh[:1]
        return fresh, note, evaluations

    # Heads do not change the size: all are looked at where the released search does, or where shapes are short
    every_head = search.method == "bayesian"
    found: list[Found] = []
    for peer, target in enumerate(targets(base, num_peers, model, vocab_size, block_size), 1):
        fresh, note, evaluations = candidates(every_head, peer, target)
        if note and not every_head:  # no other depth and width is left, for this peer and for those behind it
            every_head = True
            fresh, note, evaluations = candidates(every_head, peer, target)
        if not fresh:
            space, _ = sized(every_head)
            smallest = space.student(0)
            raise UserError(
                f"none of the {len(space)} shapes of the search space is within the limits, not even "
                f"{smallest.num_layers} layers of width {smallest.hidden_size}; expected at least one: "
                "raise the limits or add smaller shapes"
            )
        chosen = min(fresh, key=lambda s: prefer(s, found)) if prefer else fresh[0]
        result = Found(
            **asdict(chosen),
            parameters=count_parameters(chosen, model.family, vocab_size, block_size),
            target=target,
            counted=counted(chosen),
            evaluations=evaluations,
            note=note,
        )
        _check_tolerance(result, peer, search.tolerance)
        found.append(result)
    return found


def _nearest(space: Space, distance: NDArray[np.int64], allowed: Allowed | None) -> Iterator[Student]:
    """The shapes by their `distance`; equally near ones in the order of the space."""
    shapes = (space.student(place) for place in np.argsort(distance, kind="stable").tolist())
    return (s for s in shapes if allowed is None or allowed(s))


def _visited(
    space: Space,
    sizes: NDArray[np.int64],
    allowed: Allowed | None,
    target: int,
    search: SearchConfig,
    seed: int,
) -> tuple[Callable[[], Iterator[Student]], int]:
    size = {space.student(place): int(counted) for place, counted in enumerate(sizes)}
    size = {s: counted for s, counted in size.items() if allowed is None or allowed(s)}
    if not size:
        return lambda: iter(()), 0
    visited, evaluations = bayesian_order(list(size), size, target, search, seed)
    return lambda: iter(visited), evaluations


def _fresh(
    order: Callable[[], Iterator[Student]], found: Sequence[Found], count: int, reason: str
) -> tuple[list[Student], str]:
    """The first `count` of `order` that other peers do not have, and a note with `reason` if they have all."""
    sizes = {(f.num_layers, f.hidden_size) for f in found}
    fresh = list(islice((s for s in order() if (s.num_layers, s.hidden_size) not in sizes), count))
    if fresh:
        return fresh, ""
    shapes = {(f.num_layers, f.hidden_size, f.num_heads) for f in found}
    fresh = list(islice((s for s in order() if (s.num_layers, s.hidden_size, s.num_heads) not in shapes), count))
    if fresh:
        return fresh, f"{reason}: another peer has this depth and width, with other heads"
    return list(islice(order(), count)), f"{reason}: another peer has the same shape"


def _check_tolerance(found: Found, peer: int, tolerance: float | None) -> None:
    error = (found.counted - found.target) / found.target
    if tolerance is not None and abs(error) > tolerance:
        raise UserError(
            f"peer {peer} should have {found.target:,} parameters, but the nearest shape that was found has "
            f"{found.counted:,} ({found.num_layers} layers of width {found.hidden_size}, {100 * error:+.1f} %); "
            f"expected at most {100 * tolerance:g} %: add to search.num_layers or search.hidden_size, or raise "
            "search.tolerance"
        )
