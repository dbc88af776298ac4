"""Defects of the student search, in the released space: which shapes are found with each alone, all, none.

As described: each peer as near to N/2, N/3, ... as the space has it, all parameters counted, FFN width in proportion to
the hidden size. Truncated indices (S1) exist in the Bayesian search only, so its cases are searched that way, with
``search.init_points``, ``search.n_iter`` and ``search.seed`` of the preset; the others by enumeration.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import paths
from ..config import Config, load_preset
from ..device import side_by_side
from ..identity import digest
from ..search import search_students
from ..shapes import base_student

VOCABULARY, TOKENS, PEERS = 50_265, 512, 4  # of the released code
SEARCH_FINDINGS = {"truncated": "S1", "fixed_width": "S3", "nonzero": "S4"}
# Settings that differ from those of "none"
SEARCH_CASES: dict[str, dict[str, Any]] = {
    "none": {},
    "truncated": {"method": "bayesian"},
    "fixed_width": {"intermediate": "fixed"},
    "nonzero": {"count": "nonzero"},
    "all": {"method": "bayesian", "intermediate": "fixed", "count": "nonzero"},
}


def search_case(config: Config, name: str) -> list[dict[str, Any]]:
    """The shapes of four peers in one case, in the released space around RoBERTa-base; one row a peer.

    error_percent: of the number that the case compares with the target. nearest: whether no shape is nearer to it.
    """
    released = load_preset("released")
    described = {"method": "exact", "intermediate": "tied", "count": "all"}
    seeds = {key: getattr(config.search, key) for key in ("init_points", "n_iter", "seed")}
    settings = released.search.model_copy(update={**described, **seeds, **SEARCH_CASES[name]})
    base, exact = base_student(released.model), settings.model_copy(update={"method": "exact"})
    found = search_students(base, PEERS, settings, released.model, VOCABULARY, TOKENS)
    best = search_students(base, PEERS, exact, released.model, VOCABULARY, TOKENS)
    return [
        {
            "case": name,
            "peer": peer,
            "method": settings.method,
            **student.document(),
            "counted": student.counted,
            "error_percent": 100 * (student.counted - student.target) / student.target,
            "nearest": abs(student.counted - student.target) <= abs(other.counted - other.target),
            "evaluations": student.evaluations,
        }
        for peer, (student, other) in enumerate(zip(found, best, strict=True), 1)
    ]


def search_rows(config: Config, out: Path, progress: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """Every case's shapes; read from ``OUT/<preset>/replay/search-<hash8>.json`` where they have been searched."""
    seeds = [config.search.init_points, config.search.n_iter, config.search.seed]
    path = paths.replay(out, config.preset, f"search-{digest([seeds, SEARCH_CASES])[:8]}.json")
    if path.is_file():
        return list(paths.read_json(path))
    rows: list[dict[str, Any]] = []
    for found in side_by_side(search_case, [(config, name) for name in SEARCH_CASES], config.replay.workers):
        rows += found
        if progress:
            shapes = ", ".join(f"{row['num_layers']} x {row['hidden_size']}" for row in found)
            progress(f"search, {found[0]['case']}: {shapes}")
    paths.write_json(path, rows)
    return rows
