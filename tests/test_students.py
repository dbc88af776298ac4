"""The peers' shapes of a run: limits, preferences, the proxy and saved searches."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from small import make_tokenizer

from wmlkit import students, train
from wmlkit.config import load_preset
from wmlkit.data.prepare import prepare
from wmlkit.data.tokenizer import load_tokenizer
from wmlkit.errors import UserError
from wmlkit.search import Found
from wmlkit.search_cost import Workload, shape_distance, step_seconds
from wmlkit.shapes import Student
from wmlkit.students import compare_methods, find_students, least_alike, students_of, workload_of

V = 600


def config(**changes):
    return load_preset("smoke", {key.replace("__", "."): value for key, value in changes.items()})


def shapes(found) -> list[tuple[int, int]]:
    return [(f.num_layers, f.hidden_size) for f in found]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    corpus = prepare(config().data, out)
    return out, corpus, load_tokenizer(corpus.folder / "tokenizer")


@pytest.fixture
def saved(tmp_path):
    file = tmp_path / "students.json"
    found = find_students(config(mutual__num_peers=2), V)
    file.write_text(json.dumps([f.document() for f in reversed(found)]))
    return file


def test_shapes_are_costed_for_the_longest_rows_of_the_schedule():
    """Stages have the same tokens a step: 256 rows of 128 are 64 of 512."""
    full = load_preset("modern-10m")
    assert (full.train.batch_size, full.data.block_size, full.data.longest_block) == (256, 128, 512)
    assert workload_of(full).batch_size == 64
    assert workload_of(load_preset("nursery")).batch_size == load_preset("nursery").train.batch_size


def test_limits_of_the_configuration_leave_shapes_out():
    free = find_students(config(), V)
    settings = config(search__flop_per_second=1e9)
    workload = Workload(settings.train.batch_size, settings.train.mask_ratio, 1e9)
    widest = Student(free[0].num_layers, free[0].num_heads, free[0].hidden_size, free[0].intermediate_size)
    cost = 1000 * step_seconds(widest, "roberta", V, settings.data.block_size, workload)
    assert find_students(config(search__flop_per_second=1e9, search__max_step_ms=1.01 * cost), V) == free
    slower = find_students(config(search__flop_per_second=1e9, search__max_step_ms=0.99 * cost), V)
    assert shapes(slower)[0] != shapes(free)[0]
    with pytest.raises(UserError, match="none of the 6 shapes of the search space is within the limits"):
        find_students(config(search__max_memory_mib=0.001), V)
    with pytest.raises(UserError, match="peer 1 should have .* raise search.tolerance"):
        find_students(config(search__tolerance=1e-6), V)


def test_methods_are_compared_as_they_are_used():
    """A row a method and a peer, by the preference that a run would have."""
    settings = config(mutual__num_peers=2, search__prefer="distance")
    rows = compare_methods(settings, V)
    assert [(row["method"], row["peer"]) for row in rows] == [
        ("exact", 1), ("exact", 2), ("bayesian", 1), ("bayesian", 2),
    ]  # fmt: skip
    trained = find_students(settings, V)
    assert shapes(trained) != shapes(find_students(config(mutual__num_peers=2), V))
    assert [(row["num_layers"], row["hidden_size"]) for row in rows[:2]] == shapes(trained)
    assert [row["evaluations"] for row in rows[:2]] == [found.evaluations for found in trained]
    assert all(row["search_ms"] > 0 for row in rows)
    assert rows[0]["error_percent"] == pytest.approx(100 * (rows[0]["parameters"] / rows[0]["target"] - 1))


def test_distance_chooses_the_shape_least_like_the_peers_before():
    near = find_students(config(mutual__num_peers=3), V)
    other = find_students(config(mutual__num_peers=3, search__prefer="distance", search__shortlist=6), V)
    assert shapes(other)[0] == shapes(near)[0]  # the first has nobody to differ from
    assert shape_distance(other) > shape_distance(near)
    narrow, deep = Student(1, 1, 8, 8), Student(4, 1, 8, 8)
    before = [Found(1, 1, 8, 8, parameters=1, target=1, counted=1, evaluations=1)]
    assert least_alike(deep, before) < least_alike(narrow, before) == 0


def test_the_proxy_trains_each_shape_once_and_takes_the_lowest_loss(prepared, monkeypatch):
    settings = config(search__prefer="proxy", search__shortlist=3, search__proxy_steps=4)
    trained = []
    real = students._early_loss

    def early_loss(alone, student, *arguments):
        trained.append((alone.train.seed, alone.train.steps, student))
        return real(alone, student, *arguments)

    monkeypatch.setattr(students, "_early_loss", early_loss)
    out, corpus, tokenizer = prepared
    found = students_of(settings, out, corpus, tokenizer)
    assert len(set(trained)) == len(trained) and {record[:2] for record in trained} == {(0, 4)}
    loss = students.proxy_losses(settings, out, corpus, tokenizer)
    first = {student: loss(student) for _, _, student in trained[:3]}
    chosen = Student(*(getattr(found[0], name) for name in students.SHAPE))
    assert first[chosen] == min(first.values()) < max(first.values())
    assert 3 < first[chosen] < 7  # nats: near the entropy of a vocabulary of 600, not yet below it
    count = len(trained)
    again = students_of(settings.updated({"train.seed": 5}), out, corpus, tokenizer)
    assert again == found and len(trained) == count  # kept: no training, and no other shapes for another seed


def test_a_proxy_s_loss_is_that_of_its_last_quarter_of_steps(prepared, monkeypatch):
    out, corpus, tokenizer = prepared
    losses = iter([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    monkeypatch.setattr(students, "train_step", lambda *_: (SimpleNamespace(ce=torch.tensor([next(losses)])), 0.0))
    loss = students.proxy_losses(config(search__proxy_steps=8), out / "quarter", corpus, tokenizer)
    assert loss(Student(1, 1, 8, 8)) == 1.5


def test_a_proxy_warms_up_for_half_of_its_steps_at_most():
    warmup = [students._alone(config(search__proxy_steps=8, train__warmup_steps=n)).train.warmup_steps for n in (3, 12)]
    assert warmup == [3, 4]


def test_a_proxy_loss_does_not_depend_on_what_was_drawn_before(prepared):
    out, corpus, tokenizer = prepared
    found = []
    for number, seed in enumerate((1, 2)):
        torch.manual_seed(seed)
        settings = config(search__prefer="proxy", search__proxy_steps=4, model__dropout=0.5)
        loss = students.proxy_losses(settings, out / str(number), corpus, tokenizer)
        found.append(loss(Student(1, 1, 8, 8)))
    assert found[0] == found[1]


def test_a_proxy_may_read_its_text_more_often_than_a_run(prepared):
    out, corpus, tokenizer = prepared
    settings = config(search__prefer="proxy", search__proxy_steps=4, data__max_passes=0.01, train__steps=1)
    assert 3 < students.proxy_losses(settings, out / "often", corpus, tokenizer)(Student(1, 1, 8, 8)) < 7


def test_a_proxy_loss_belongs_to_the_rows_that_it_was_measured_on(prepared, monkeypatch):
    out, corpus, tokenizer = prepared
    size = config().data.block_size
    ways = [{}, {"packing": "windows"}, {"block_size": 2 * size}, {"block_schedule": ((0.5, size // 2), (0.5, size))}]
    trained = []
    monkeypatch.setattr(students, "_early_loss", lambda alone, *_: trained.append(alone) or float(len(trained)))
    for expected in (1.0, 2.0, 3.0, 4.0) * 2:  # each way once, then again from what is kept
        way = ways[int(expected) - 1]
        settings = config(search__proxy_steps=3, **{f"data__{key}": value for key, value in way.items()})
        assert students.proxy_losses(settings, out, corpus, tokenizer)(Student(1, 1, 8, 8)) == expected
    assert len(trained) == 4


def test_settings_that_a_lone_student_does_not_meet_train_nothing_again(prepared, monkeypatch):
    """Ablations of mutual learning, and other logging and measuring, share the losses; another rate does not."""
    out, corpus, tokenizer = prepared
    real, trained = students._early_loss, []
    monkeypatch.setattr(students, "_early_loss", lambda alone, *_: trained.append(alone) or float(len(trained)))
    idle = [
        {
            "mutual.alpha": 0.9,
            "mutual.temperature": 3.0,
            "mutual.ce_weight": "peer",
            "mutual.kl_reduction": "batchmean",
        },
        {"mutual.arm": "dml", "mutual.num_peers": 2, "mutual.detach_targets": False, "mutual.kl_positions": "all"},
        {"train.log_every": 3, "train.eval_every": 7, "train.eval_rows": 5, "train.final_eval_rows": 9},
        {"train.checkpoint_every": 9, "train.keep_checkpoints": 5, "train.ema_decay": 0.9, "train.steps": 77},
        {"outer.lr": 0.7, "evaluate.per_paradigm": 3},
    ]
    plain = config(search__proxy_steps=2)
    for changes in [{}, *idle]:
        assert students.proxy_losses(plain.updated(changes), out, corpus, tokenizer)(Student(1, 1, 8, 8)) == 1.0
    # nor does another seed of the run: all seeds of a study have the same shapes
    assert students.proxy_losses(plain.updated({"train.seed": 5}), out, corpus, tokenizer)(Student(1, 1, 8, 8)) == 1.0
    assert students.proxy_losses(plain.updated({"train.lr": 0.5}), out, corpus, tokenizer)(Student(1, 1, 8, 8)) == 2.0
    assert len(trained) == 2
    # and none of them could: as a whole run would have them, they give the same number
    shape = {"mutual.arm": "independent", "mutual.num_peers": 1, "train.steps": 2, "train.warmup_steps": 1}
    values = [real(plain.updated(changes | shape), Student(1, 1, 8, 8), corpus, tokenizer) for changes in [{}, *idle]]
    assert len(set(values)) == 1


def test_a_saved_search_is_taken_as_it_is(saved, prepared):
    expected = [json.loads(saved.read_text())[i]["hidden_size"] for i in range(2)]
    found = find_students(config(search__saved=str(saved)), V)
    assert [f.hidden_size for f in found] == expected
    assert [f.target for f in found] == [f.target for f in find_students(config(), V)]
    out, corpus, tokenizer = prepared
    assert shapes(students_of(config(search__saved=str(saved)), out, corpus, tokenizer)) == shapes(found)


def test_a_saved_search_of_another_family_may_have_heads_that_rotary_positions_cannot(tmp_path):
    file = tmp_path / "students.json"
    file.write_text(json.dumps([{"num_layers": 1, "num_heads": 8, "hidden_size": 24, "intermediate_size": 48}] * 2))
    settings = {"search__saved": str(file), "mutual__num_peers": 2}
    assert shapes(find_students(config(**settings), V)) == [(1, 24), (1, 24)]
    with pytest.raises(UserError, match="shape 1 of search.saved .* width 24 and 8 heads, .* which modernbert cannot"):
        find_students(config(**settings, model__family="modernbert"), V)


def test_a_run_is_known_by_what_the_saved_search_holds(saved, prepared, tmp_path, monkeypatch):
    out, corpus, _ = prepared
    copy = tmp_path / "elsewhere.json"
    copy.write_bytes(saved.read_bytes())
    here, there, searched = (
        train.run_folder(config(**changes), out, corpus)
        for changes in ({"search__saved": str(saved)}, {"search__saved": str(copy)}, {})
    )
    assert here == there != searched
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train.run_folder(config(search__saved="~/elsewhere.json"), out, corpus) == here
    with pytest.raises(UserError, match="search.saved ~nobody-of-this-name/a.json cannot be read"):
        train.run_folder(config(search__saved="~nobody-of-this-name/a.json"), out, corpus)
    copy.write_text(json.dumps(list(reversed(json.loads(copy.read_text())))))
    assert train.run_folder(config(search__saved=str(copy)), out, corpus) != here


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .* expected a list of shapes"),
        ("{", "is not JSON"),
        ("{}", "is not a list of shapes"),
        ("[]", "is not a list of shapes"),
        ("[1, 2]", "shape 1 .* has num_layers None"),
        ('[{"num_layers": 1, "num_heads": 2, "hidden_size": 8.5, "intermediate_size": 9}]', "has hidden_size 8.5"),
        ('[{"num_layers": 1, "num_heads": 3, "hidden_size": 8, "intermediate_size": 9}]', "width 8 and 3 heads"),
        ('[{"num_layers": 1, "num_heads": 2, "hidden_size": 8, "intermediate_size": 9}]', "has 1 shapes; .* 2 peers"),
    ],
)
def test_a_saved_search_that_does_not_fit_is_refused(content, message, tmp_path):
    file = tmp_path / "students.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        find_students(config(search__saved=str(file)), len(make_tokenizer()))
