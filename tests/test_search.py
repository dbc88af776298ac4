"""The student search against models that transformers builds, the released answers and hand-made spaces."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from wmlkit import search as search_module
from wmlkit.config import load_preset, preset_names
from wmlkit.errors import UserError
from wmlkit.models import build_model, hidden_states, lm_logits
from wmlkit.search import (
    count_parameters,
    search_students,
    space_of,
    students,
    targets,
)
from wmlkit.search_bayesian import bayesian_order
from wmlkit.search_cost import (
    Workload,
    flop_per_token,
    landscape,
    memory_mib,
    pareto_front,
    shape_distance,
    step_seconds,
    within,
)
from wmlkit.settings import ModelConfig, SearchConfig
from wmlkit.shapes import Student, base_student

FAMILIES = {"roberta": "mlm", "modernbert": "mlm", "gpt2": "clm", "llama": "clm"}
SHAPES = [Student(1, 2, 16, 24), Student(3, 4, 32, 128)]
RELEASED = SearchConfig(
    num_layers=(6, 8, 12, 16, 20),
    num_heads=(8, 16, 32),
    hidden_size=(256, 512, 768, 1024, 2048),
    intermediate="fixed",
)
BASE = Student(12, 12, 768, 3072)
RELEASED_ARGUMENTS = (ModelConfig(), 50265, 512)  # RoBERTa
WORKLOAD = Workload(batch_size=64, scored=0.2, flop_per_second=5e10)
SMALL = SearchConfig(num_layers=(1, 2), num_heads=(2,), hidden_size=(16, 32))
SMALL_BASE = Student(4, 2, 32, 64)
SMALL_ARGUMENTS = (ModelConfig(), 300, 16)


class Ids:
    """What a model needs to know of a tokenizer."""

    bos_token_id, pad_token_id, eos_token_id = 0, 1, 2

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def shape_of(found) -> tuple[int, int]:
    return found.num_layers, found.hidden_size


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("student", SHAPES)
def test_count_equals_the_built_model(family, student):
    model = build_model(student, ModelConfig(family=family, objective=FAMILIES[family]), Ids(270), 24, seed=0)
    every = sum(p.numel() for p in model.parameters())
    nonzero = sum(int((p != 0).sum()) for p in model.parameters())
    assert count_parameters(student, family, 270, 24) == every
    assert count_parameters(student, family, 270, 24, "nonzero") == nonzero


def test_count_equals_models_from_plain_configurations():
    V, T, s = 301, 20, Student(2, 2, 24, 40)
    common = {"vocab_size": V, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2}
    with torch.device("meta"):
        models = {
            "roberta": RobertaForMaskedLM(
                RobertaConfig(**common, **heads, max_position_embeddings=T + 2, type_vocab_size=1)
            ),
            "modernbert": ModernBertForMaskedLM(ModernBertConfig(**common, **heads, pad_token_id=1)),
            "gpt2": GPT2LMHeadModel(
                GPT2Config(vocab_size=V, n_positions=T, n_embd=24, n_layer=2, n_head=2, n_inner=40)
            ),
            "llama": LlamaForCausalLM(
                LlamaConfig(**common, **heads, num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=1)
            ),
        }
    for family, model in models.items():
        assert count_parameters(s, family, V, T) == sum(p.numel() for p in model.parameters()), family


def test_count_by_hand():
    # Llama, 1 layer, width 2, FFN 3, vocabulary 5: 10 + 2 + (16 + 18 + 4)
    assert count_parameters(Student(1, 1, 2, 3), "llama", 5, 99) == 50
    with pytest.raises(UserError, match="'t5'; expected one of roberta, modernbert, gpt2, llama"):
        count_parameters(SHAPES[0], "t5", 270, 24)


def test_roberta_base_has_its_published_size():
    assert count_parameters(BASE, "roberta", 50265, 512) == 124_697_433


@pytest.mark.parametrize("count", ["all", "nonzero"])
def test_released_settings_give_the_released_shapes(count):
    search = RELEASED.model_copy(update={"count": count})
    found = search_students(BASE, 4, search, *RELEASED_ARGUMENTS)
    assert [shape_of(f) for f in found] == [(8, 512), (16, 256), (8, 256), (6, 256)]
    assert [round(f.parameters / 1e6, 1) for f in found] == [59.9, 42.6, 27.8, 24.2]
    assert [f.target for f in found] == [62_348_716, 41_565_811, 31_174_358, 24_939_487]
    assert [f.intermediate_size for f in found] == [3072] * 4
    assert not any(f.note for f in found)
    counted = [59.93, 42.56, 27.84, 24.16] if count == "all" else [59.82, 42.43, 27.75, 24.08]
    assert [round(f.counted / 1e6, 2) for f in found] == counted


def test_document_has_what_run_folders_and_the_command_line_promise():
    (found,) = search_students(BASE, 1, RELEASED, *RELEASED_ARGUMENTS)
    names = ["num_layers", "num_heads", "hidden_size", "intermediate_size", "parameters", "target"]
    assert list(found.document()) == names
    assert found.document()["num_heads"] == 8  # as wide as the base's: 64
    assert found.error == pytest.approx(-0.0388, abs=1e-4)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_has_four_different_students(preset):
    config = load_preset(preset, {"search.method": "exact"})
    vocab_size, block_size = config.data.vocab_size, config.data.block_size
    found = search_students(base_student(config.model), 4, config.search, config.model, vocab_size, block_size)
    assert len({shape_of(f) for f in found}) == 4
    assert all(f.hidden_size % f.num_heads == 0 for f in found)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.lists(st.integers(1, 8), min_size=1, max_size=3),
    st.lists(st.integers(8, 96), min_size=1, max_size=5),
    st.sampled_from(["fixed", "tied"]),
    st.sampled_from(sorted(FAMILIES)),
)
def test_each_peer_is_the_nearest_that_is_left(layers, heads, hidden, intermediate, family):
    search = SearchConfig(
        num_layers=tuple(layers), num_heads=tuple(heads), hidden_size=tuple(hidden), intermediate=intermediate
    )
    model = ModelConfig(family=family, objective=FAMILIES[family])
    base = Student(6, 4, 64, 256)
    try:
        space = students(base, search, model)
    except UserError:
        for head, width in itertools.product(heads, hidden):
            assert width % head or (family in ("modernbert", "llama") and (width // head) % 2)
        return
    found = search_students(base, 3, search, model, 500, 32)
    left = {(s.num_layers, s.hidden_size): s for s in space}
    for f, target in zip(found, targets(base, 3, model, 500, 32), strict=True):
        assert f.hidden_size % f.num_heads == 0
        if not left:
            assert "the search space is too small" in f.note
            continue
        best = min(abs(count_parameters(s, family, 500, 32) - target) for s in left.values())
        assert abs(f.parameters - target) == best
        del left[shape_of(f)]
    fewer = search_students(base, 2, search, model, 500, 32)
    assert [f.document() for f in fewer] == [f.document() for f in found[:2]]


def test_ties_go_to_fewer_layers_and_then_to_the_smaller_width():
    search = SMALL.model_copy(update={"num_layers": (4, 2), "hidden_size": (32, 16)})
    order = [(s.num_layers, s.hidden_size) for s in students(SMALL_BASE, search, ModelConfig())]
    assert order == [(2, 16), (2, 32), (4, 16), (4, 32)]
    # GPT-2 of width 16 and FFN 32: 2,224 parameters a layer, and with these tokens twice as many outside the layers.
    # The base's six layers make N/2 the size of two layers, exactly between one and three.
    layers = SearchConfig(num_layers=(3, 1), num_heads=(2,), hidden_size=(16,))
    model = ModelConfig(family="gpt2", objective="clm")
    (found,) = search_students(Student(6, 2, 16, 32), 1, layers, model, 260, 16)
    assert (found.target, found.parameters, found.num_layers) == (4 * 2224, 3 * 2224, 1)


def test_ffn_width_is_fixed_or_in_the_proportion_of_the_base():
    base = Student(2, 2, 48, 100)
    tied = students(base, SMALL, ModelConfig())
    assert {(s.hidden_size, s.intermediate_size) for s in tied} == {(16, 33), (32, 67)}
    fixed = students(base, SMALL.model_copy(update={"intermediate": "fixed"}), ModelConfig())
    assert {s.intermediate_size for s in fixed} == {100}


def test_a_preference_chooses_among_the_shapes_within_the_tolerance():
    """The least liked of a short list is taken where the others miss the target by too much."""
    search = SMALL.model_copy(update={"shortlist": 4})
    nearest = search_students(SMALL_BASE, 1, search, *SMALL_ARGUMENTS)[0]
    far = lambda student, found: -abs(student.hidden_size - nearest.hidden_size) - student.num_layers  # noqa: E731
    liked = search_students(SMALL_BASE, 1, search, *SMALL_ARGUMENTS, prefer=far)[0]
    assert abs(liked.error) > abs(nearest.error)
    close = search.model_copy(update={"tolerance": abs(nearest.error) + 1e-9})
    assert search_students(SMALL_BASE, 1, close, *SMALL_ARGUMENTS, prefer=far)[0].document() == nearest.document()
    with pytest.raises(UserError, match="but the nearest shape that was found has"):
        closer = search.model_copy(update={"tolerance": abs(nearest.error) / 2})
        search_students(SMALL_BASE, 1, closer, *SMALL_ARGUMENTS, prefer=far)


def test_heads_that_do_not_fit_are_left_out():
    search = SearchConfig(num_layers=(1,), num_heads=(2, 3, 4, 5), hidden_size=(36,))
    base = Student(1, 2, 24, 48)  # heads 12 wide
    assert [s.num_heads for s in students(base, search, ModelConfig())] == [3, 4, 2]
    llama = ModelConfig(family="llama", objective="clm")  # rotary positions need an even width: 36 / 4 = 9 is odd
    assert [s.num_heads for s in students(base, search, llama)] == [3, 2]
    assert [heads for heads, *_ in space_of(base, search, ModelConfig(), every_head=False).widths] == [3]
    with pytest.raises(UserError, match=r"search.num_heads \[7\] fits any width in search.hidden_size \[36\]"):
        students(base, search.model_copy(update={"num_heads": (7,)}), ModelConfig())


@pytest.mark.parametrize("method", ["exact", "bayesian"])
def test_a_space_that_is_too_small_says_so(method):
    heads = (2, 4) if method == "exact" else (2, 4, 8)  # the last option is hardly ever met there
    search = SearchConfig(method=method, num_layers=(1,), num_heads=heads, hidden_size=(16,), init_points=6, n_iter=1)
    found = search_students(SMALL_BASE, 3, search, *SMALL_ARGUMENTS)
    assert {f.num_heads for f in found[:2]} == {2, 4}
    assert found[0].note == ""
    reason = "the search space is too small" if method == "exact" else "the search met too few shapes"
    assert found[1].note == f"{reason}: another peer has this depth and width, with other heads"
    assert found[2].note == f"{reason}: another peer has the same shape"


def test_other_heads_are_looked_at_where_limits_leave_too_few_sizes():
    """Of two widths one is allowed: peers of it differ in their heads, whether there are two of them or four."""
    search = SearchConfig(num_layers=(1,), num_heads=(2, 4), hidden_size=(16, 32))
    for peers in (2, 4):
        found = search_students(
            SMALL_BASE, peers, search, *SMALL_ARGUMENTS, allowed=lambda student: student.hidden_size == 16
        )
        assert [f.num_heads for f in found[:2]] == [2, 4] and {shape_of(f) for f in found} == {(1, 16)}
        reason = "the search space is too small: another peer has"
        notes = ["", f"{reason} this depth and width, with other heads", f"{reason} the same shape"]
        assert [f.note for f in found] == [*notes, notes[2]][:peers]
    # and where the heads themselves are limited: the best number is not allowed
    found = search_students(SMALL_BASE, 1, search, *SMALL_ARGUMENTS, allowed=lambda student: student.num_heads == 4)
    assert (found[0].num_heads, found[0].note) == (4, "")


@pytest.mark.parametrize("peers", [0, -1])
def test_no_peers_are_refused(peers):
    with pytest.raises(UserError, match=f"number of peers is {peers}; expected at least 1"):
        search_students(SMALL_BASE, peers, SMALL, *SMALL_ARGUMENTS)


def test_a_target_out_of_reach_names_the_nearest_size():
    with pytest.raises(
        UserError, match=r"peer 3 should have 31,174,358 .* has 27,839,833 \(8 layers of width 256, -10.7 %"
    ):
        search_students(BASE, 4, RELEASED.model_copy(update={"tolerance": 0.05}), *RELEASED_ARGUMENTS)
    wider = RELEASED.model_copy(update={"tolerance": 0.11})
    assert len(search_students(BASE, 4, wider, *RELEASED_ARGUMENTS)) == 4


def test_bayesian_search_is_deterministic_and_misses_the_last_options():
    settings = {"method": "bayesian", "init_points": 12, "n_iter": 3}
    search = SMALL.model_copy(update=settings | {"num_layers": (1, 2, 3), "hidden_size": (16, 24, 32, 40)})
    first = search_students(SMALL_BASE, 2, search, *SMALL_ARGUMENTS)
    assert first == search_students(SMALL_BASE, 2, search, *SMALL_ARGUMENTS)
    assert [f.evaluations for f in first] == [15, 15]
    # Sixty random real numbers rounded down never hit the last option.
    space = students(SMALL_BASE, search, ModelConfig())
    size = {s: count_parameters(s, "roberta", 300, 16) for s in space}
    largest = max(size.values())
    initial = search.model_copy(update={"n_iter": 0, "init_points": 60})
    visited, evaluations = bayesian_order(space, size, largest, initial, seed=0)
    assert evaluations == 60
    assert {s.hidden_size for s in visited} == {16, 24, 32}
    assert {s.num_layers for s in visited} == {1, 2}
    met = [size[s] for s in space if s.num_layers < 3 and s.hidden_size < 40]  # all six of them, the nearest first
    assert [size[s] for s in visited] == sorted(met, reverse=True)


def test_each_peer_is_searched_with_a_seed_of_its_own(monkeypatch):
    seeds = []
    real = search_module.bayesian_order

    def order(shapes, size, target, search, seed):
        seeds.append(seed)
        return real(shapes, size, target, search, seed)

    monkeypatch.setattr(search_module, "bayesian_order", order)
    search = SMALL.model_copy(update={"method": "bayesian", "init_points": 3, "n_iter": 0, "seed": 7})
    search_students(SMALL_BASE, 2, search, *SMALL_ARGUMENTS)
    assert seeds == [7, 8]


def test_bayesian_search_takes_the_largest_seed():
    search = SMALL.model_copy(update={"method": "bayesian", "init_points": 3, "n_iter": 0, "seed": 2**32 - 1})
    assert len(search_students(SMALL_BASE, 3, search, *SMALL_ARGUMENTS)) == 3


def test_bayesian_search_prints_nothing_and_skips_invalid_shapes(capsys, recwarn):
    search = SearchConfig(
        method="bayesian", num_layers=(1, 2), num_heads=(2, 3), hidden_size=(16, 24), init_points=9, n_iter=3
    )
    found = search_students(SMALL_BASE, 2, search, *SMALL_ARGUMENTS)
    assert all(f.hidden_size % f.num_heads == 0 for f in found)
    output = capsys.readouterr()
    assert output.out == output.err == ""
    assert not recwarn.list
    one = SearchConfig(method="bayesian", num_layers=(1,), num_heads=(2,), hidden_size=(16,))
    assert search_students(SMALL_BASE, 1, one, *SMALL_ARGUMENTS)[0].evaluations == 1


def test_exact_search_looks_at_sizes_and_builds_few_shapes(monkeypatch):
    """A quarter of a million shapes: the times are in docs/benchmarks.md, here it counts what is done one by one."""
    wide = SearchConfig(num_layers=tuple(range(1, 129)), num_heads=(4, 8, 16), hidden_size=tuple(range(16, 32768, 16)))
    assert len(space_of(BASE, wide, ModelConfig(), every_head=False)) > 250_000
    made = []
    monkeypatch.setattr("wmlkit.search.Student", lambda *shape: made.append(shape) or Student(*shape))
    found = search_students(BASE, 4, wide, *RELEASED_ARGUMENTS)
    assert all(abs(f.error) < 1e-3 for f in found)
    assert len(made) < 3 * 2048  # two counts a width, and a handful of shapes


@pytest.mark.parametrize("family", FAMILIES)
def test_cost_model_agrees_with_counted_operations_and_kept_tensors(family):
    V, T, B = 300, 16, 4
    student = Student(4, 2, 64, 160)
    scored = 0.25 if FAMILIES[family] == "mlm" else 1.0
    config = ModelConfig(family=family, objective=FAMILIES[family])
    ids = torch.arange(B * T).reshape(B, T) + 5
    positions = int(scored * B * T)

    def step(attention: str) -> int:
        """One forward and backward pass; returns the bytes that the forward pass kept."""
        model = build_model(student, config, Ids(V), T, 0)
        model.set_attn_implementation(attention)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = hidden_states(model, ids).reshape(B * T, -1)[:positions]
            logits = lm_logits(model, hidden)
            loss = torch.nn.functional.cross_entropy(logits, ids.reshape(-1)[:positions])
        total = sum(kept.values())
        loss.backward()
        return total

    with FlopCounterMode(display=False) as counter:
        step("eager")  # the counter does not know the fused attention of a CPU
    predicted = B * T * flop_per_token(student, family, V, T, scored)
    # The counter's only differences: Llama's and ModernBERT's table of rotary angles.
    assert counter.get_total_flops() == pytest.approx(predicted, rel=0.01)

    parameters = count_parameters(student, family, V, T)
    work = Workload(B, scored, 1e9)
    activations = memory_mib(student, family, V, T, work) * 2**20 - 16 * parameters
    activations -= 4 * positions * V  # the gradient of the logits does not exist yet in the forward pass
    assert step("sdpa") == pytest.approx(activations, rel=0.12)


def test_costs_scale_as_stated():
    work = Workload(batch_size=10, scored=0.5, flop_per_second=1e9)
    one, two = Student(1, 2, 16, 32), Student(2, 2, 16, 32)
    # Layer: 6 (4 16^2 + 2 16 32) + 12 T 16; head: 6 0.5 (300 16 + 16^2), T = 8
    assert flop_per_token(one, "roberta", 300, 8, 0.5) == 6 * 2048 + 1536 + 3 * 5056
    assert flop_per_token(two, "roberta", 300, 8, 0.5) - flop_per_token(one, "roberta", 300, 8, 0.5) == 13824
    assert step_seconds(one, "roberta", 300, 8, work) == pytest.approx(80 * (12288 + 1536 + 15168) / 1e9)
    double = Workload(batch_size=20, scored=0.5, flop_per_second=1e9)
    weights = 16 * count_parameters(one, "roberta", 300, 8) / 2**20
    single = memory_mib(one, "roberta", 300, 8, work) - weights
    assert memory_mib(one, "roberta", 300, 8, double) - weights == pytest.approx(2 * single)


def test_limits_leave_out_what_is_too_slow_or_too_large():
    work = WORKLOAD
    free = search_students(BASE, 4, RELEASED, *RELEASED_ARGUMENTS)
    cost = {shape_of(f): step_seconds(Student(*f_shape(f)), "roberta", 50265, 512, work) for f in free}
    limit = 1000 * cost[8, 512] * 0.99
    limited = search_students(
        BASE, 4, RELEASED, *RELEASED_ARGUMENTS, allowed=within(*RELEASED_ARGUMENTS, work, max_step_ms=limit)
    )
    assert (8, 512) not in [shape_of(f) for f in limited]
    for f in limited:
        assert 1000 * step_seconds(Student(*f_shape(f)), "roberta", 50265, 512, work) <= limit
    memory = [memory_mib(Student(*f_shape(f)), "roberta", 50265, 512, work) for f in free]
    allowed = within(*RELEASED_ARGUMENTS, work, max_memory_mib=min(memory))
    assert {shape_of(f) for f in search_students(BASE, 1, RELEASED, *RELEASED_ARGUMENTS, allowed=allowed)} <= {
        (6, 256),
        (8, 256),
    }
    with pytest.raises(
        UserError, match="none of the 75 shapes .* not even 6 layers of width 256; expected at least one"
    ):
        search_students(BASE, 4, RELEASED, *RELEASED_ARGUMENTS, allowed=lambda student: False)


def f_shape(found) -> tuple[int, int, int, int]:
    return found.num_layers, found.num_heads, found.hidden_size, found.intermediate_size


def test_a_preference_chooses_among_the_nearest():
    seen = []

    def deeper_is_better(student: Student, found) -> float:
        seen.append((student, [shape_of(f) for f in found]))
        return -student.num_layers

    three = RELEASED.model_copy(update={"shortlist": 3})
    found = search_students(BASE, 2, three, *RELEASED_ARGUMENTS, prefer=deeper_is_better)
    assert len(seen) == 6
    assert [before for _, before in seen] == 3 * [[]] + 3 * [[shape_of(found[0])]]
    for peer, f in enumerate(found):
        assert f.num_layers == max(s.num_layers for s, _ in seen[3 * peer : 3 * peer + 3])
    # With one shape on the list it has no choice.
    one = RELEASED.model_copy(update={"shortlist": 1})
    single = search_students(BASE, 4, one, *RELEASED_ARGUMENTS, prefer=deeper_is_better)
    assert single == search_students(BASE, 4, RELEASED, *RELEASED_ARGUMENTS)


def test_shape_distance_by_hand():
    narrow, wide, deep = Student(2, 2, 16, 1), Student(2, 2, 32, 1), Student(4, 2, 16, 1)
    assert shape_distance([narrow, wide]) == pytest.approx(0.6931, abs=1e-4)
    assert shape_distance([narrow, wide, deep]) == pytest.approx((2 + 2**0.5) * 0.693147 / 3, abs=1e-5)
    assert shape_distance([narrow, narrow]) == shape_distance([narrow]) == shape_distance([]) == 0.0


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_pareto_front_is_what_nothing_beats(points):
    for (a, b), on_front in zip(points, pareto_front(points), strict=True):
        beaten = any(x <= a and y <= b and (x, y) != (a, b) for x, y in points)
        assert on_front == (not beaten)


def test_landscape_holds_every_shape_with_its_front():
    grid = landscape(BASE, RELEASED, *RELEASED_ARGUMENTS, WORKLOAD)
    assert len(grid) == 75
    largest = max(grid, key=lambda g: g.parameters)
    fastest = min(grid, key=lambda g: g.step_ms)
    assert largest.pareto and fastest.pareto
    for g in grid:
        beaten = any(h.parameters >= g.parameters and h.step_ms < g.step_ms for h in grid)
        assert g.pareto == (not beaten)
    assert min(g.memory_mib for g in grid) > 0


def test_bayesian_search_asks_for_its_seed_and_the_distance_from_the_target(monkeypatch):
    """A stand-in for the optimizer asks for four corners; 3 heads do not divide a width of 16."""
    asked = {}

    class Optimizer:
        def __init__(self, objective, bounds, random_state, verbose):
            asked.update(bounds=bounds, seed=random_state, objective=objective)

        def maximize(self, init_points, n_iter):
            corners = [(0, 0, 0), (1.9, 0, 1), (0, 1, 1), (0, 1, 0)]
            names = ("num_layers", "num_heads", "hidden_size")
            asked["values"] = [asked["objective"](**dict(zip(names, corner, strict=True))) for corner in corners]

    monkeypatch.setattr("bayes_opt.BayesianOptimization", Optimizer)
    search = SearchConfig(method="bayesian", num_layers=(1, 2), num_heads=(2, 3), hidden_size=(16, 24))
    shapes = [Student(1, 2, 16, 64), Student(2, 2, 24, 96), Student(1, 3, 24, 96)]
    size = dict(zip(shapes, (10, 500, 120), strict=True))
    visited, _ = bayesian_order(shapes, size, 100, search, seed=11)
    assert asked["seed"] == 11 and set(asked["bounds"].values()) == {(0, 1)}
    *of_shapes, of_none = asked["values"]
    assert of_shapes == [-90, -400, -20] and of_none < -400
    assert visited == [shapes[2], shapes[0], shapes[1]]


def test_a_limit_that_is_just_met_is_kept():
    arguments = (SMALL_BASE, "roberta", 300, 16, WORKLOAD)
    step, memory = 1000 * step_seconds(*arguments), memory_mib(*arguments)
    for limits, kept in (((step, memory), True), ((0.99 * step, memory), False), ((step, 0.99 * memory), False)):
        assert within(*SMALL_ARGUMENTS, WORKLOAD, *limits)(SMALL_BASE) == kept


def test_logits_are_kept_at_the_scored_positions_alone():
    """Of 80 tokens half as many, each with twice 300 numbers of 4 bytes: 96,000 bytes fewer."""
    half, all_of_them = (
        memory_mib(SMALL_BASE, "roberta", 300, 8, Workload(batch_size=10, scored=scored, flop_per_second=1e9))
        for scored in (0.5, 1.0)
    )
    assert all_of_them - half == pytest.approx(96_000 / 2**20)
