"""Evaluation: minimal pairs under the BabyLM protocols, language-model loss, (Super)GLUE."""

from .minimal_pairs import score_sentences
from .pairs import evaluate_pairs

__all__ = ["evaluate_pairs", "score_sentences"]
