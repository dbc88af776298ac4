"""Evaluation: minimal pairs under the BabyLM protocols, language-model loss, (Super)GLUE."""

from .minimal_pairs import score_sentences

__all__ = ["score_sentences"]
