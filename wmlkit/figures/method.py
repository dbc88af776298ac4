"""F1: the method, drawn by code."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from .style import ARM_COLOURS, COLOURS, TEXT, finish, new_axes, sequence, styled

_ROWS = (31.0, 20.0, 9.0)  # heights of the peers' centres
_INDICES = ("1", "2", "P")
_MUTUAL, _OUTER = COLOURS[0], ARM_COLOURS["wml"]


@styled
def plot_method(ax: Axes | None = None) -> Axes:
    """F1: peers learn from the training text (CE) and from each other (KL); held-out text moves the peer weights."""
    ax = new_axes(ax, TEXT, 2.75)
    ax.set_xlim(0, 100)
    ax.set_ylim(0.5, 40)
    ax.set_axis_off()
    ax.add_patch(Rectangle((14, 1), 47, 38.5, facecolor=_MUTUAL, alpha=0.06, edgecolor="none"))
    ax.add_patch(Rectangle((63, 1), 37, 38.5, facecolor=_OUTER, alpha=0.06, edgecolor="none"))
    _label(ax, 15, 37.5, "inner loop: every step, parameters θ", ha="left", color=_MUTUAL)
    _label(ax, 64, 37.5, "outer loop: every few steps, weights ω", ha="left", color=_OUTER)

    _box(ax, 6, 20, 10, 9, "training\ntext")
    for y, index, colour, half in zip(_ROWS, _INDICES, sequence(4), (4.2, 3.4, 2.6), strict=False):
        _box(ax, 26, y, 10, 2 * half, f"peer {index}", edge=colour)
        _box(ax, 44, y, 9, 5, f"logits $z_{index}$", edge=colour)
        _arrow(ax, (11.2, 20), (20.8, y))
        _arrow(ax, (31.2, y), (39.2, y))
        _box(ax, 68, y, 6, 5, f"$ω_{index}$", edge=_OUTER)
        _arrow(ax, (48.8, y), (64.8, y))
        _arrow(ax, (71.2, y), (77.8, 20 + (y - 20) * 0.12))
    _label(ax, 16.2, 29, "CE", ha="center")
    for x in (26, 68):
        _label(ax, x, 14.4, "⋮")
    for upper, lower, bend in ((31, 20, 0.0), (20, 9, 0.0), (31, 9, -0.55)):
        start, end = ((44, upper - 2.7), (44, lower + 2.7)) if bend == 0 else ((48.6, upper - 1.5), (48.6, lower + 1.5))
        _arrow(ax, start, end, colour=_MUTUAL, style="<|-|>", bend=bend)
    _label(ax, 55.8, 25.5, "KL", color=_MUTUAL)
    _label(
        ax, 37.5, 3.0, r"$L_1 = (1-α)\,\sum_i \mathrm{CE}_i + α\,\sum_i \sum_{j\neq i} ω_j\,\mathrm{KL}(p_j\,\|\,p_i)$"
    )

    _box(ax, 83, 20, 10, 6, "ensemble\n$Σ_i\\, ω_i z_i$")
    _box(ax, 83, 31, 10, 5, "held-out\ntext")
    _arrow(ax, (83, 28.3), (83, 23.2))
    _arrow(ax, (88.2, 20), (92.2, 20))
    _box(ax, 95.8, 20, 6.6, 5, "$L_2$")
    _arrow(ax, (95.8, 17.2), (71.4, 7.4), colour=_OUTER, bend=-0.28)
    _label(ax, 80.5, 11.6, "hypergradient $g$", color=_OUTER)
    _label(ax, 81.5, 3.0, r"$ω_m \leftarrow ω_m e^{-η g_m} \,/\, \sum_n ω_n e^{-η g_n}$")
    return finish(ax)


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, edge: str = "0.25") -> None:
    corner = (x - width / 2, y - height / 2)
    shape = "round,pad=0.1,rounding_size=0.8"
    ax.add_patch(FancyBboxPatch(corner, width, height, shape, facecolor="white", edgecolor=edge, linewidth=1.1))
    ax.text(x, y, text, ha="center", va="center", fontsize=7.5, linespacing=1.25)


def _arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str = "0.35",
    style: str = "-|>",
    bend: float = 0.0,
) -> None:
    look: dict[str, Any] = {"arrowstyle": style, "connectionstyle": f"arc3,rad={bend}", "color": colour}
    ax.add_patch(FancyArrowPatch(start, end, mutation_scale=7, linewidth=0.9, shrinkA=0, shrinkB=0, **look))


def _label(ax: Axes, x: float, y: float, text: str, ha: str = "center", color: str = "black") -> None:
    ax.text(x, y, text, ha=ha, va="center", fontsize=7.5, color=color)
