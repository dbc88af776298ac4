"""Benchmarks of step, loss, search and a run's parts in toy sizes, their arithmetic by hand, the page made of them."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from wmlkit import losses, paths
from wmlkit.bench import loss as bench_loss
from wmlkit.bench import measure as bench_measure
from wmlkit.bench import page as bench_report
from wmlkit.bench import search as bench_search
from wmlkit.bench import step as bench_step
from wmlkit.bench import train as bench_train
from wmlkit.bench.measure import describe, interleaved, matrix_product, peak_above, peaks
from wmlkit.bench.step import RELEASED, Setting, find_setting, make_work, released_loss, step_variants
from wmlkit.cli import app
from wmlkit.config import load_preset
from wmlkit.errors import UserError
from wmlkit.losses import mutual_loss_reference
from wmlkit.shapes import Student
from wmlkit.students import find_students

TOY = Setting(50, 2, 8, (Student(1, 2, 8, 16), Student(2, 2, 16, 32)))
CPU = torch.device("cpu")


@pytest.fixture
def toy(monkeypatch):
    """Settings of a toy size, and memory measured in this process."""
    settings = {"small": TOY, "all-positions": Setting(50, 2, 8, TOY.shapes, "all", RELEASED)}

    def here(function, *arguments):
        return {name: 1 + peak for name, peak in function(*arguments).items()}  # a toy may need nothing

    for module in (bench_step, bench_loss):
        monkeypatch.setattr(module, "find_setting", lambda name: settings[name])
        monkeypatch.setattr(module, "peaks", here)
    monkeypatch.setattr(bench_loss, "VOCABULARIES", (20, 40))
    monkeypatch.setattr(bench_loss, "POSITIONS", (4, 8))
    for name, value in (("WIDTH", 4), ("VOCABULARY", 20), ("COUNT", 4)):
        monkeypatch.setattr(bench_loss, name, value)


@pytest.mark.parametrize("setting", ["small", "all-positions"])
def test_step(toy, setting):
    document = describe("step", bench_step.bench_step(setting, repeats=2))
    assert list(document)[:3] == ["setting", "machine", "commit"]
    variants = {variant["name"]: variant for variant in document["variants"]}
    assert list(variants) == ["released", "reference", "fast", "ce-only", "trunks", "optimizer"]
    assert all(variant["median_ms"] > 0 for variant in variants.values())
    ratios = document["ratios"]
    fast = variants["fast"]["median_ms"]
    assert ratios["speedup_vs_released"] == pytest.approx(variants["released"]["median_ms"] / fast)
    assert ratios["overhead_vs_ce_only"] == pytest.approx(fast / variants["ce-only"]["median_ms"])
    assert ratios["tokens_per_second"] == pytest.approx(16 / fast * 1000)
    assert ratios["model_flop_utilisation"] == pytest.approx(
        ratios["step_flop"] / fast * 1000 / ratios["matrix_product_flop_per_second"]
    )
    json.dumps(document["variants"])


def test_ratios_by_hand():
    times = {
        name: {"median_ms": ms} for name, ms in (("released", 60), ("reference", 20), ("fast", 10), ("ce-only", 8))
    }
    memory = {"released": 800.0, "fast": 100.0}
    assert bench_step.ratios(times, memory) == {
        "speedup_vs_released": 6.0,
        "speedup_vs_reference": 2.0,
        "memory_vs_released": 0.125,
        "overhead_vs_ce_only": 1.25,
    }


@pytest.mark.parametrize("setting", ["small", "all-positions"])
def test_loss(toy, setting, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    document = describe("loss", bench_loss.bench_loss(setting, repeats=1))
    names = [variant["name"] for variant in document["variants"]]
    assert names[:5] == ["released", "reference", "fast", "ce-only", "fast, 1 peers"]
    assert names[-4:] == ["fast, vocabulary 20", "fast, vocabulary 40", "fast, 4 positions", "fast, 8 positions"]
    two, eight = (next(v for v in document["variants"] if v["name"] == f"fast, {n} peers") for n in (2, 8))
    assert document["ratios"]["time_8_peers_to_2"] == pytest.approx(eight["median_ms"] / two["median_ms"])
    assert all(math.isfinite(variant["peak_mib"]) for variant in document["variants"])


def test_the_released_form_is_the_reference_with_the_released_options():
    """Value and gradients, on the peers' logits at all positions."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 4, 9, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    targets, scored = torch.arange(8), torch.tensor([1, 2, 6])
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    released = released_loss(logits, targets, scored, weights)
    is_scored = torch.zeros(8, dtype=torch.bool).index_fill(0, scored, True)
    flat = [z.flatten(0, 1) for z in logits]
    reference = mutual_loss_reference(flat, targets, weights, RELEASED, 2, is_scored).total
    torch.testing.assert_close(released, reference)
    pairs = zip(torch.autograd.grad(released, logits), torch.autograd.grad(reference, logits), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)


def test_forms_that_disagree_are_an_error(toy, monkeypatch):
    wrong = losses.mutual_loss_of_heads

    def doubled(*arguments):
        loss = wrong(*arguments)
        return losses.MutualLoss(2 * loss.total, loss.ce, loss.kl)

    monkeypatch.setattr(losses, "mutual_loss_of_heads", doubled)
    with pytest.raises(RuntimeError, match="fast gives a loss of"):
        bench_step.bench_step("all-positions", repeats=1)
    with pytest.raises(RuntimeError, match="fast gives a loss of"):
        bench_loss.bench_loss("small", repeats=1)


def test_every_form_of_a_step_reaches_every_parameter(toy):
    work = make_work("small")
    for name, run in step_variants(work).items():
        for leaf in work.leaves:
            leaf.grad = None
        run()
        idle = [p for p in work.leaves if p.grad is None]
        assert bool(idle) == (name == "trunks"), name  # the head's own parameters


def test_settings_are_those_of_the_targets():
    small, paper = find_setting("small"), find_setting("paper")
    assert [s.hidden_size for s in small.shapes] == [128, 192, 256, 256]
    assert [s.num_layers for s in small.shapes] == [2, 3, 4, 4] and small.vocab_size == 8192
    assert paper.vocab_size == 50265 and paper.batch_size * paper.block_size == 128
    assert sorted((s.num_layers, s.hidden_size) for s in paper.shapes) == [(6, 256), (8, 256), (8, 512), (16, 256)]
    with pytest.raises(UserError, match="no setting 'huge'"):
        find_setting("huge")
    with pytest.raises(UserError, match="repeats is 0"):
        bench_step.bench_step("small", 0)


def test_variants_take_turns_and_the_first_turn_does_not_count(monkeypatch):
    seen, clock = [], [0.0]
    monkeypatch.setattr(bench_measure.time, "perf_counter", lambda: clock[0])

    def run(name: str) -> None:
        clock[0] += 9.0 if name not in seen else 0.5  # seconds: the first time is slow
        seen.append(name)

    times = interleaved({"a": lambda: run("a"), "b": lambda: run("b")}, 1, CPU, lambda name: seen.append(f"for {name}"))
    assert seen == ["for a", "a", "for b", "b"] * 2
    assert {name: measured["median_ms"] for name, measured in times.items()} == {"a": 500.0, "b": 500.0}


def known_peaks() -> dict[str, float]:
    """Work of known memory: nothing; 64 MiB; 64 MiB twice one after the other; at one time; and after a larger one."""

    def block() -> torch.Tensor:
        return torch.ones(16 << 20)  # float32: 64 MiB

    def two_in_turn() -> None:
        block()
        block()

    def two_at_once() -> float:
        a, b = block(), block()
        return float(a[0] + b[0])

    def many_small() -> int:
        return len([torch.ones(1 << 15) for _ in range(512)])  # 512 x 128 KiB

    runs = {"nothing": lambda: None, "one": block, "in turn": two_in_turn, "at once": two_at_once}
    runs |= {"one again": block, "small": many_small}
    return {name: peak_above(run, CPU) for name, run in runs.items()}


@pytest.mark.skipif(not bench_measure.CLEAR_REFS.exists(), reason="only Linux clears its record of the highest memory")
def test_peak_memory_is_right():
    found = peaks(known_peaks)
    expected = {"nothing": 0, "one": 64, "in turn": 64, "at once": 128, "one again": 64, "small": 64}
    assert found == pytest.approx(expected, abs=3)


def test_a_record_that_may_not_be_cleared_gives_a_lower_bound(monkeypatch):
    """As on systems that have none: never the memory of an earlier variant."""
    monkeypatch.setattr(bench_measure, "forget_peak_memory", lambda _: False)
    peaks = iter([500.0, 530.0])
    monkeypatch.setattr(bench_measure, "peak_memory", lambda _: next(peaks))
    assert bench_measure.peak_above(lambda: None, CPU) == 30


def test_search(monkeypatch):
    monkeypatch.setattr(bench_search, "peaks", lambda function: function())
    monkeypatch.setattr(bench_search, "LARGE", {"search.num_layers": [1, 2]})
    few = load_preset("paper-10m", {"search.num_layers": [6], "search.hidden_size": [256, 512]})
    monkeypatch.setattr(bench_search, "load_preset", lambda name, changes: few.updated(changes))
    document = bench_search.bench_search(repeats=1)
    closed, built, *_ = (variant["median_ms"] for variant in document["variants"])
    assert document["ratios"]["speedup_vs_building"] == pytest.approx(built / closed)
    monkeypatch.setattr(bench_search, "count_parameters", lambda *_: 1)
    with pytest.raises(RuntimeError, match="closed form does not count"):
        bench_search.bench_search(repeats=1)


def test_train(monkeypatch):
    monkeypatch.setattr(bench_train, "peaks", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(bench_train, "WORDS", 4000)
    document = bench_train.bench_train("smoke", repeats=1)
    times = {variant["name"]: variant["median_ms"] for variant in document["variants"]}
    parts = ("batch", "inner", "optimizer", "outer, direct", "outer, sgd", "outer, adam", "matrix product")
    assert tuple(times) == parts
    own = times[f"outer, {document['hypergradient']}"]
    step = times["batch"] + times["inner"] + times["optimizer"] + own / document["every"]
    config = load_preset("smoke")
    flop = 0
    for found in find_students(config, document["vocab_size"]):
        embedded = document["vocab_size"] + config.data.block_size + 2 + 1  # tokens, positions, the one token type
        flop += 6 * document["tokens"] * (found.parameters - embedded * found.hidden_size)
    assert document["flop_of_a_step"] == flop
    utilisation = flop / step / (2 * 1024**3 / times["matrix product"])
    ratios = {"step_ms": step, "outer_to_inner": own / times["inner"], "utilisation": utilisation}
    assert document["ratios"] == pytest.approx(ratios) and document["changes"] == []


def test_train_on_other_text_and_sizes(monkeypatch, tmp_path):
    """What was changed is in the document, and in the command that the page gives."""
    monkeypatch.setattr(bench_train, "peaks", lambda function, *arguments: {})
    folder = tmp_path / "my text"
    folder.mkdir()
    (folder / "one.txt").write_text("the cat sat on the mat .\n\na dog ran .\n\n" * 200, encoding="utf-8")
    changes = [f"data.corpus={folder}", "data.words=1000", "data.dev_words=100", "train.batch_size=4"]
    document = bench_train.bench_train("smoke", 1, changes)
    nursery = bench_train.bench_train("smoke", 1, ["train.batch_size=4"])
    assert document["vocab_size"] < nursery["vocab_size"] / 2
    page = bench_report.page_of([describe("train", document)])
    assert f"`wmlkit bench train --preset smoke --set 'data.corpus=\"{folder}\"' --set data.words=1000 " in page
    refused = CliRunner().invoke(app, ["bench", "train", "--preset", "smoke", "--set", "mutual.arm=dml"]).exception
    assert isinstance(refused, UserError) and "'dml'; bench train measures arm wml" in str(refused)


def test_the_matrix_product_is_in_the_precision_of_what_it_is_compared_with():
    kinds = [matrix_product(CPU, precision)[0]().dtype for precision in ("fp32", "bf16")]
    assert kinds == [torch.float32, torch.bfloat16]


def test_the_page_is_what_its_documents_make():
    """docs/benchmarks.md is never typed by hand."""
    files = sorted(bench_report.FOLDER.glob("*.json"))
    documents = [paths.read_json(file) for file in files]
    assert {d["benchmark"] for d in documents} == set(bench_report.SECTIONS)
    assert bench_report.page_of(documents) == bench_report.PAGE.read_text(encoding="utf-8")


def test_a_page_by_hand(tmp_path):
    document = {
        "setting": "small", "machine": "a machine", "commit": "0123456789abcdef", "benchmark": "step", "tokens": 1024,
        "variants": [
            {"name": "fast", "median_ms": 1234.5, "peak_mib": 0.1234},
            {"name": "optimizer", "median_ms": 2.0},
        ],
        "ratios": {"memory_vs_released": 0.15},
    }  # fmt: skip
    file = tmp_path / "step.json"
    file.write_text(json.dumps(document))
    result = CliRunner().invoke(app, ["bench", "report", str(file), "--to", str(tmp_path / "page.md")])
    assert result.exit_code == 0 and result.stdout.strip() == str(tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert (
        "### small\n\n`wmlkit bench step --setting small`; tokens 1,024. Machine: a machine. Commit 0123456789ab."
        in page
    )
    assert "| variant | median ms | peak MiB |\n|---|---|---|\n| fast | 1,234 | 0.123 |\n| optimizer | 2 |  |" in page
    assert "- memory against released: 0.15" in page


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"benchmark": "step"}', '{"benchmark": "nonsense", "setting": "small"}']
)
def test_files_that_are_no_documents(tmp_path, content):
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(UserError, match="is not the document of a benchmark; .*; make it again"):
        bench_report.write_page([file], tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()
    with pytest.raises(UserError, match="there is no file"):
        bench_report.write_page([tmp_path / "missing.json"], tmp_path / "page.md")


def test_peaks_are_taken_after_one_run_of_every_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first run makes once and keeps is no variant's own."""
    called: list[str] = []
    runs = {name: partial(called.append, name) for name in ("a", "b")}
    monkeypatch.setattr(bench_measure, "peak_above", lambda run, device: run() or len(called))
    assert bench_measure.warm_peaks(runs, CPU) == {"a": 3, "b": 4} and called == ["a", "b", "a", "b"]
