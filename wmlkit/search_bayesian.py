"""The Bayesian search of the released code, kept for comparison: no model is built, sizes are looked up."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from .errors import UserError
from .settings import SearchConfig
from .shapes import Student


def bayesian_order(
    space: Sequence[Student],
    size: dict[Student, int],
    target: int,
    search: SearchConfig,
    seed: int,
) -> tuple[list[Student], int]:
    """The shapes that a Bayesian optimisation of -|size - target| visits, nearest first, and its evaluations.

    `search.init_points` random shapes, then `search.n_iter` that a Gaussian process proposes. Shapes of
    the options' product that are not in `space` count as missing the target by the largest size.
    The options' indices are real numbers rounded down, as in the released code, so that the last option comes up only
    when the upper edge itself is proposed.
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
    bounds: dict[str, Any] = {name: (0, len(options[name]) - 1) for name in free}
    with warnings.catch_warnings():
        # The fit of the process ends at a bound, as is expected here.
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
