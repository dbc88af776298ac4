"""What a student's shape costs, by a stated model: arithmetic, time of a step, memory. And the whole search space
as data for a picture.

The model knows nothing of a machine but its rate, `Workload.flop_per_second`; trust its ratios, not its
milliseconds. Letters: L layers, H hidden size, F width of the FFN, V vocabulary, T tokens a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

from .search import Allowed, count_parameters, students
from .settings import MASKED_FAMILIES, ModelConfig, SearchConfig
from .shapes import Student

_GATED = ("modernbert", "llama")  # families whose FFN has a third matrix
# Numbers that the backward pass keeps for a token and a layer, in hidden sizes and in FFN widths; counted from the
# tensors that autograd saves, without dropout and with fused attention. GPT-2's GELU is not fused and keeps more.
_KEPT = {"roberta": (8, 2), "modernbert": (10, 4), "gpt2": (8, 5), "llama": (10, 4)}
_MIB = 2**20


@dataclass(frozen=True)
class Workload:
    """The training step that a shape is costed for."""

    batch_size: int  # rows a step
    scored: float  # share of the positions that meet the LM head: the mask ratio, or 1 for a causal model
    flop_per_second: float  # about one thread of a CPU on small matrices; 1e14 is nearer to a large GPU in bf16


@dataclass(frozen=True)
class Candidate(Student):
    """One shape of the search space with its size and its costs."""

    parameters: int
    step_ms: float
    memory_mib: float
    pareto: bool  # no other shape is better in size or time and as good in the other


def body_matrices(student: Student, family: str) -> int:
    """Weights that multiply every token in the layers: attention and FFN matrices."""
    width = student.hidden_size
    ffn = (3 if family in _GATED else 2) * width * student.intermediate_size
    return student.num_layers * (4 * width * width + ffn)


def flop_per_token(student: Student, family: str, vocab_size: int, block_size: int, scored: float) -> float:
    """Floating-point operations of a training step (forward and backward) per token of its rows.

    6 N_body + 12 L T H + 6 `scored` N_head: two operations per weight and token forward and twice that
    backward; the attention's two products over T positions each (not halved for a causal model, whose
    masked half is computed too where there is no fused kernel); the LM head at the scored positions.
    """
    width = student.hidden_size
    head = vocab_size * width
    if family in MASKED_FAMILIES:
        head += width * width  # the transform before the decoder
    attention = 12 * student.num_layers * block_size * width
    return 6 * body_matrices(student, family) + attention + 6 * scored * head


def step_seconds(student: Student, family: str, vocab_size: int, block_size: int, workload: Workload) -> float:
    """Time of a training step: its arithmetic over the machine's rate."""
    tokens = workload.batch_size * block_size
    return tokens * flop_per_token(student, family, vocab_size, block_size, workload.scored) / workload.flop_per_second


def memory_mib(student: Student, family: str, vocab_size: int, block_size: int, workload: Workload) -> float:
    """Memory of training in float32, MiB: weights, gradients and AdamW's two moments (16 bytes a parameter), and
    what the backward pass keeps (4 bytes a number): `_KEPT` for each token and layer, and the log-probabilities
    and the gradient of the logits at the scored positions."""
    hidden, ffn = _KEPT[family]
    layer = hidden * student.hidden_size + ffn * student.intermediate_size
    tokens = workload.batch_size * block_size
    activations = 4 * tokens * (student.num_layers * layer + workload.scored * 2 * vocab_size)
    return (16 * count_parameters(student, family, vocab_size, block_size) + activations) / _MIB


def within(
    model: ModelConfig,
    vocab_size: int,
    block_size: int,
    workload: Workload,
    max_step_ms: float = math.inf,
    max_memory_mib: float = math.inf,
) -> Allowed:
    """A test for `search_students(allowed=...)`: is a shape's step short enough and its memory small enough?"""

    def allowed(student: Student) -> bool:
        step_ms = 1000 * step_seconds(student, model.family, vocab_size, block_size, workload)
        memory = memory_mib(student, model.family, vocab_size, block_size, workload)
        return step_ms <= max_step_ms and memory <= max_memory_mib

    return allowed


def shape_distance(chosen: Sequence[Student]) -> float:
    """How unlike the chosen shapes are: the mean over their pairs of the distance between (ln depth, ln width).

    0 for equal shapes or fewer than two; 0.69 = ln 2 if all pairs differ by one doubling of depth or of width.
    Heads and FFN do not count.
    """
    pairs = list(combinations(chosen, 2))
    if not pairs:
        return 0.0
    total = 0.0
    for a, b in pairs:
        total += math.hypot(math.log(a.num_layers / b.num_layers), math.log(a.hidden_size / b.hidden_size))
    return total / len(pairs)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other point beats, less being better in both coordinates; equal points stand or fall together.

    >>> pareto_front([(1, 3), (2, 2), (2, 3), (3, 1)])
    [True, True, False, True]
    """
    order = sorted(range(len(points)), key=lambda n: points[n])
    on_front = [False] * len(points)
    lowest = math.inf  # second coordinate of the points so far
    last = None
    for n in order:
        if points[n][1] < lowest or points[n] == last:
            on_front[n] = True
            lowest, last = points[n][1], points[n]
    return on_front


def landscape(
    base: Student,
    search: SearchConfig,
    model: ModelConfig,
    vocab_size: int,
    block_size: int,
    workload: Workload,
) -> list[Candidate]:
    """F5: every shape of the search space, fewer layers first, then narrower, with the Pareto front between its size
    (more is better) and the time of a step."""
    rows = []
    for s in students(base, search, model):
        parameters = count_parameters(s, model.family, vocab_size, block_size)
        step_ms = 1000 * step_seconds(s, model.family, vocab_size, block_size, workload)
        memory = memory_mib(s, model.family, vocab_size, block_size, workload)
        rows.append({**asdict(s), "parameters": parameters, "step_ms": step_ms, "memory_mib": memory})
    front = pareto_front([(-row["parameters"], row["step_ms"]) for row in rows])
    return [Candidate(**row, pareto=on_front) for row, on_front in zip(rows, front, strict=True)]
