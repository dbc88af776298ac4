"""Sliders and text fields around the pure functions of `playground`. Nothing is computed here.

An `Explorer` is a function from values to things to see, and a control for each value. In a notebook that somebody
has open it shows ipywidgets; anywhere else (papermill, GitHub, no ipywidgets) it shows the same things for the values
that the controls start with. Both go into one output, and the front end takes the richest that it knows.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from . import live, playground, results
from .config import Config
from .errors import UserError
from .figures import playground as figure_playground
from .figures.training import member_name
from .playground import Peers, Sample
from .run_files import run_document
from .search import count_parameters
from .search_cost import landscape
from .shapes import base_student
from .students import workload_of


@dataclass(frozen=True)
class Slider:
    """A number between two others."""

    value: float
    low: float
    high: float
    step: float

    def widget(self, label: str) -> Any:
        import ipywidgets

        kind = ipywidgets.IntSlider if isinstance(self.step, int) else ipywidgets.FloatSlider
        return kind(self.value, min=self.low, max=self.high, step=self.step, description=label, **_wide())


@dataclass(frozen=True)
class Text:
    """A line of text; it counts once Enter is pressed."""

    value: str

    def widget(self, label: str) -> Any:
        import ipywidgets

        return ipywidgets.Text(self.value, description=label, continuous_update=False, **_wide())


@dataclass(frozen=True)
class Explorer:
    """`draw` gets a value for every control and returns what there is to see: figures, tables, sentences."""

    title: str
    draw: Callable[..., Sequence[Any]]
    controls: Mapping[str, Slider | Text]  # by label; the values are passed in this order

    def html(self, *values: Any) -> str:
        """What `draw` shows for these values, or for those that the controls start with; a mistake as a sentence."""
        try:
            parts = self.draw(*(values or [control.value for control in self.controls.values()]))
        except UserError as error:
            return f'<p role="alert">{html.escape(str(error))}</p>'
        # The id of a table is made from its place: pandas would draw a new one each time.
        return "\n".join(_html(part, self.title, f"{self.title.replace(' ', '_')}_{n}") for n, part in enumerate(parts))

    def widget(self) -> Any:
        """The controls above what they show, as ipywidgets."""
        import ipywidgets

        controls = [control.widget(label) for label, control in self.controls.items()]
        shown = ipywidgets.HTML(self.html())

        def update(change: Any) -> None:
            shown.value = self.html(*(control.value for control in controls))

        for control in controls:
            control.observe(update, names="value")
        return ipywidgets.VBox([*controls, shown])

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        still = {"text/html": self.html(), "text/plain": f"{self.title}: open the notebook in JupyterLab to move it"}
        if not live.somebody_looks():
            return still
        try:
            return still | self.widget()._repr_mimebundle_()
        except ImportError:  # without ipywidgets what stands still has to do
            return still


def pair_explorer(peers: Peers, first: str, second: str) -> Explorer:
    """Type two sentences: every member's score, token by token, and which it prefers."""

    def draw(first: str, second: str) -> list[Any]:
        tokens_a, tokens_b, verdict = playground.compare(peers, first, second)
        low = min(tokens_a.min(axis=None), tokens_b.min(axis=None))
        shown = [_shaded(tokens, low) for tokens in (tokens_a, tokens_b)]
        return ["Log-probability of each token, in nats; the darker, the less expected.", *shown, _plain(verdict)]

    return Explorer("two sentences", draw, {"first": Text(first), "second": Text(second)})


def blank_explorer(peers: Peers, text: str) -> Explorer:
    """Type a sentence with a blank, ``__``: the likeliest fillings, all members side by side."""

    def draw(text: str) -> list[Any]:
        return [playground.fill(peers, text).style.format(escape="html")]

    return Explorer("a blank", draw, {"text": Text(text)})


def weights_explorer(peers: Peers, sample: Sample) -> Explorer:
    """Move the weights on the simplex: the ensemble's dev loss and its accuracy on pairs."""
    count = len(peers.weights)
    lines = playground.edges(sample, peers.weights)
    picture = figure_playground.effect_picture(lines)
    learned = playground.ensemble_effect(sample, peers.weights)

    def draw(*parts: float) -> list[Any]:
        weights = np.array([parts[0], 1 - parts[0]]) if count == 2 else playground.normalised(parts)
        loss, accuracy = playground.ensemble_effect(sample, weights)
        chosen = ", ".join(f"{weight:.2f}" for weight in weights)
        text = (
            f"Weights {chosen}: dev loss {loss:.3f} nats ({loss - learned[0]:+.3f} against the learned weights), "
            f"{accuracy:.1f} % of {sample.count} pairs right ({accuracy - learned[1]:+.1f})."
        )
        return [text, picture(weights, loss, accuracy)]

    start = [round(float(weight), 2) for weight in peers.weights]
    names = ["weight of peer 1"] if count == 2 else [f"peer {i}" for i in range(1, count + 1)]
    return Explorer(
        "peer weights", draw, {name: Slider(w, 0.0, 1.0, 0.01) for name, w in zip(names, start, strict=False)}
    )


def search_explorer(config: Config, vocab_size: int) -> Explorer:
    """Choose a target size and the longest step: the nearest shapes of the search space."""
    base, block_size = base_student(config.model), config.data.longest_block
    size = count_parameters(base, config.model.family, vocab_size, block_size)
    space = landscape(base, config.search, config.model, vocab_size, block_size, workload_of(config))
    grid = pd.DataFrame([asdict(shape) for shape in space])

    def draw(share: float, max_step_ms: float) -> list[Any]:
        nearest = playground.nearest_shapes(grid, share * size, max_step_ms)
        text = f"Target: {share:.2f} of the base model's {size:,} parameters = {share * size:,.0f}."
        table = nearest.style.hide(axis="index").format(precision=1, thousands=",")
        return [text, figure_playground.search_picture(grid, share * size, nearest, max_step_ms), table]

    longest = float(np.ceil(grid["step_ms"].max()))
    return Explorer(
        "student search", draw,
        {"share of the base": Slider(0.5, 0.05, 1.0, 0.01), "longest step (ms)": Slider(longest, 0.0, longest, 0.1)},
    )  # fmt: skip


def replay_explorer(run_folder: Path) -> Explorer:
    """Move through a run's steps: its weights so far, and which way the last change moved them."""
    metrics = results.run_metrics(run_folder)
    peers = run_document(run_folder)["config"]["mutual"]["num_peers"]
    metrics = metrics.assign(arm="wml", peers=peers, setting="", seed=0)
    steps = sorted(metrics.loc[metrics["quantity"] == "peer_weights", "step"].unique())

    def draw(number: int) -> list[Any]:
        step = int(steps[number - 1])
        now = playground.weights_at(metrics, step)
        told = ", ".join(f"{member_name(peer, peers)} {weight:.3f}" for peer, weight in now["peer_weights"].items())
        text = f"Step {step}: {told}. An arrow says which way the last change moved the weight."
        return [text, figure_playground.replay_picture(metrics, step, now)]

    return Explorer("weights over time", draw, {"logged step": Slider(len(steps), 1, len(steps), 1)})


def _wide() -> dict[str, Any]:
    import ipywidgets

    return {"layout": ipywidgets.Layout(width="36rem", max_width="95%"), "style": {"description_width": "9rem"}}


def _shaded(table: pd.DataFrame, low: float) -> Any:
    shown = table.style.format(precision=2, escape="html").format_index(escape="html", axis=1)
    return shown.background_gradient(cmap="Blues_r", axis=None, vmin=low, vmax=0)


def _plain(table: pd.DataFrame) -> Any:
    return table.style.format(precision=2, escape="html")


def _html(part: Any, title: str, place: str) -> str:
    """A picture (figure or PNG) as an embedded PNG, a styled table as HTML, a sentence as a paragraph."""
    if isinstance(part, Figure):
        part = live.png(part, figure_playground.DOTS)
    if isinstance(part, bytes):
        source = f"data:image/png;base64,{base64.b64encode(part).decode()}"
        return f'<img alt="{html.escape(title)}" style="max-width: 100%" src="{source}">'
    if isinstance(part, str):
        return f"<p>{html.escape(part)}</p>"
    return str(part.to_html(table_uuid=place))
