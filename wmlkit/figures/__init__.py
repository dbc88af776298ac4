"""Every figure: one function a picture, which draws a table into axes and returns them."""

from .ablations import of_weights, plot_ablations, plot_given_weights
from .corpus import mix_figure, plot_domain_mix, plot_fertility, plot_line_lengths, plot_vocabulary_growth
from .method import plot_method
from .scores import plot_accuracy_by_words, plot_phenomena, plot_protocols, plot_scores_by_peers
from .search import plot_pareto, plot_search
from .training import plot_diversity, plot_hypergradients, plot_losses, plot_peer_weights, plot_study_losses

__all__ = [
    "mix_figure",
    "of_weights",
    "plot_ablations",
    "plot_accuracy_by_words",
    "plot_diversity",
    "plot_domain_mix",
    "plot_fertility",
    "plot_given_weights",
    "plot_hypergradients",
    "plot_line_lengths",
    "plot_losses",
    "plot_method",
    "plot_pareto",
    "plot_peer_weights",
    "plot_phenomena",
    "plot_protocols",
    "plot_scores_by_peers",
    "plot_search",
    "plot_study_losses",
    "plot_vocabulary_growth",
]
