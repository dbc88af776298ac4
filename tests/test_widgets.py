"""The thin layer: controls move what is seen, a still picture stands in, and nothing typed becomes markup."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from test_playground import TINY

from wmlkit import live, paths, playground, train, widgets
from wmlkit.config import load_preset
from wmlkit.errors import UserError
from wmlkit.search import count_parameters
from wmlkit.search_cost import Workload, step_seconds
from wmlkit.shapes import Student, base_student
from wmlkit.widgets import Explorer, Slider, Text

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    return playground.open_run(train.run(load_preset("smoke", TINY), tmp_path_factory.mktemp("out")))


@pytest.fixture(scope="module")
def explorers(peers):
    return {
        "pair": widgets.pair_explorer(peers, "The cat sees the dog.", "The cat see the dog."),
        "blank": widgets.blank_explorer(peers, "The cat __ the dog."),
        "weights": widgets.weights_explorer(peers, playground.draw_sample(peers, paths.out_of(peers.run))),
        "search": widgets.search_explorer(peers.config, len(peers.tokenizer)),
        "replay": widgets.replay_explorer(peers.run),
    }


MOVES = {"pair": "The dog sees.", "blank": "A __ sleeps.", "weights": 0.9, "search": 0.2, "replay": 1}


@pytest.mark.parametrize("name", MOVES)
def test_a_control_changes_what_is_seen_and_back(explorers, name):
    box = explorers[name].widget()
    control, shown = box.children[0], box.children[-1]
    before, start = shown.value, control.value
    control.value = MOVES[name]
    assert shown.value != before
    control.value = start
    assert shown.value == before


@pytest.mark.parametrize("name", MOVES)
def test_where_nobody_looks_the_same_things_stand_still(explorers, name, monkeypatch):
    monkeypatch.setattr(live, "somebody_looks", lambda: False)
    bundle = explorers[name]._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert bundle["text/html"] == explorers[name].html()
    assert "<img" in bundle["text/html"] or "<table" in bundle["text/html"]
    monkeypatch.setattr(live, "somebody_looks", lambda: True)
    assert WIDGET in explorers[name]._repr_mimebundle_()


def test_ipywidgets_may_be_missing(explorers, monkeypatch):
    monkeypatch.setattr(live, "somebody_looks", lambda: True)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert set(explorers["blank"]._repr_mimebundle_()) == {"text/html", "text/plain"}


def test_weights_are_named_in_words_and_sum_to_one(explorers):
    text = explorers["weights"].html(0.25)
    assert "Weights 0.25, 0.75: dev loss" in text and "pairs right" in text


@pytest.mark.parametrize(("preset", "vocabulary"), [("nursery", 1312), ("modern-10m", 8192)])
def test_a_shape_costs_in_the_landscape_what_it_costs_in_the_search(preset, vocabulary):
    """Of modern-10m blocks grow while it trains, and the mask ratio of both is not the cost model's own."""
    config = load_preset(preset, {"search.num_layers": [6], "search.num_heads": [4], "search.hidden_size": [64]})
    explorer = widgets.search_explorer(config, vocabulary)
    shape = Student(6, 4, 64, 4 * 64 if preset == "nursery" else 2 * 64)
    rows = config.train.batch_size * config.data.block_size // config.data.longest_block
    workload = Workload(rows, config.train.mask_ratio, config.search.flop_per_second)
    cost = 1000 * step_seconds(shape, config.model.family, vocabulary, config.data.longest_block, workload)
    base = count_parameters(base_student(config.model), config.model.family, vocabulary, config.data.longest_block)
    text, _, table = explorer.draw(0.5, np.inf)
    assert table.data["step_ms"].tolist() == [pytest.approx(cost)]
    assert f"the base model's {base:,} parameters" in text


def test_four_peers_have_four_sliders(tmp_path):
    config = load_preset("smoke", TINY | {"mutual.num_peers": 4})
    peers = playground.open_run(train.run(config, tmp_path))
    explorer = widgets.weights_explorer(peers, playground.draw_sample(peers, tmp_path, cells=2_000_000))
    assert list(explorer.controls) == ["peer 1", "peer 2", "peer 3", "peer 4"]
    assert "Weights 0.50, 0.00, 0.50, 0.00:" in explorer.html(0.3, 0.0, 0.3, 0.0)
    assert "Weights 0.25, 0.25, 0.25, 0.25:" in explorer.html(0.0, 0.0, 0.0, 0.0)


def test_what_is_typed_cannot_become_markup(explorers):
    evil = "<script>alert(1)</script> & <b>bold</b>"
    for name in ("pair", "blank"):
        values = [evil, evil] if name == "pair" else [evil]
        page = explorers[name].html(*values)
        assert "<script" not in page and "<b>" not in page
    # the tokens of a sentence are the heads of a table
    assert "&lt;" in explorers["pair"].html("a < b", "a & b")


def test_a_mistake_is_a_sentence_and_the_next_value_works_again():
    def draw(text):
        if not text:
            raise UserError("the text is empty <really>; type one")
        return [text]

    explorer = Explorer("a title", draw, {"text": Text("x")})
    assert explorer.html("") == '<p role="alert">the text is empty &lt;really&gt;; type one</p>'
    box = explorer.widget()
    box.children[0].value = ""
    assert "type one" in box.children[1].value
    box.children[0].value = "good <b>"
    assert box.children[1].value == "<p>good &lt;b&gt;</p>"


def test_faults_are_not_hidden():
    explorer = Explorer("a title", lambda value: [1 / value], {"number": Slider(0.0, 0.0, 1.0, 0.1)})
    with pytest.raises(ZeroDivisionError):
        explorer.html()


def test_whole_numbers_and_fractions_get_their_slider():
    sliders = {"whole": Slider(3, 1, 9, 1), "part": Slider(0.5, 0.0, 1.0, 0.01)}
    box = Explorer("t", lambda whole, part: [f"{whole} and {part}"], sliders).widget()
    kinds = [type(control).__name__ for control in box.children[:2]]
    assert kinds == ["IntSlider", "FloatSlider"]
    box.children[0].value = 4
    assert box.children[2].value == "<p>4 and 0.5</p>"
