"""Evaluation: minimal pairs under the BabyLM protocols, language-model loss, (Super)GLUE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .minimal_pairs import score_sentences
    from .pairs import evaluate_pairs

__all__ = ["evaluate_pairs", "score_sentences"]


def __getattr__(name: str) -> Any:
    """The two names above, imported when first used: reading pairs and protocols must not wait for the models."""
    if name == "score_sentences":
        from .minimal_pairs import score_sentences

        return score_sentences
    if name == "evaluate_pairs":
        from .pairs import evaluate_pairs

        return evaluate_pairs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
