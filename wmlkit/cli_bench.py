"""`wmlkit bench`: one command a benchmark, each prints its document or its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import A_PATH, Json, Set, a_path, emit

bench_app = typer.Typer(help="Speed and memory on this machine.", no_args_is_help=True)

Repeats = Annotated[int, typer.Option(help="Measurements of each variant; the median counts.")]
Threads = Annotated[int, typer.Option(min=1, max=1024, help="Threads of the processor.")]
Step = Annotated[str, typer.Option(help="small, paper or all-positions.")]


@bench_app.command("step")
def step(setting: Step = "small", repeats: Repeats = 7, threads: Threads = 1, as_json: Json = False) -> None:
    """A training step of four peers, against the released form of it."""
    from .bench.step import bench_step

    _use(threads)
    _show("step", bench_step(setting, repeats), as_json)


@bench_app.command("loss")
def loss(setting: Step = "small", repeats: Repeats = 7, threads: Threads = 1, as_json: Json = False) -> None:
    """The loss alone, by form, and by peers, vocabulary and positions."""
    from .bench.loss import bench_loss

    _use(threads)
    _show("loss", bench_loss(setting, repeats), as_json)


@bench_app.command("train")
def train(
    preset: Annotated[str, typer.Option(help="The preset whose sizes are taken.")] = "nursery",
    overrides: Set = None,
    repeats: Repeats = 7,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """The parts of a run's step, on nursery text unless --set says other: batch, inner step, optimizer, outer step."""
    from .bench.train import bench_train

    _use(threads)
    _show("train", bench_train(preset, repeats, overrides or ()), as_json)


@bench_app.command("search")
def search(repeats: Repeats = 5, as_json: Json = False) -> None:
    """The student search: closed form against building the models, and a large space."""
    from .bench.search import bench_search

    _show("search", bench_search(repeats), as_json)


@bench_app.command("data")
def data(
    corpus: Annotated[str, typer.Option(help="nursery, or a folder or zip of text files.")] = "nursery",
    words: Annotated[int, typer.Option(help="Words of 1x, for the nursery.")] = 600_000,
    repeats: Repeats = 3,
    as_json: Json = False,
) -> None:
    """Cleaning and encoding: words a second and memory for 1x, 4x and 10x of a text."""
    from .bench.data import bench_data

    _show("data", bench_data(corpus, words, repeats=repeats), as_json)


@bench_app.command("scoring")
def scoring(
    setting: Annotated[str, typer.Option(help="small or paper: the size of the vocabulary.")] = "paper",
    repeats: Repeats = 5,
    pairs: Annotated[int | None, typer.Option(min=1, help="Pairs to score; default: the setting's.")] = None,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Scoring of minimal pairs, against two plain scorers."""
    from .bench.scoring import bench_scoring

    _use(threads)
    _show("scoring", bench_scoring(setting, repeats, pairs), as_json)


@bench_app.command("report")
def report(
    files: Annotated[
        list[Path] | None,
        typer.Argument(parser=a_path, metavar="FILES", help="What `--json` printed; default: docs/benchmarks."),
    ] = None,
    to: Annotated[Path | None, typer.Option(**A_PATH, help="The page to write; default: docs/benchmarks.md.")] = None,
) -> None:
    """Write the page of all benchmarks from their JSON documents."""
    from .bench.page import write_page

    print(write_page(files, to))


def _use(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _show(benchmark: str, result: dict[str, Any], as_json: bool) -> None:
    """The document of a benchmark as JSON, or its numbers one a line."""
    from .bench.measure import describe

    document = describe(benchmark, result)
    if as_json:
        emit(document)
        return
    for variant in document["variants"]:
        print(", ".join(f"{key} {value:,.0f}" if key != "name" else value for key, value in variant.items()))
    for name, value in document["ratios"].items():
        print(f"{name}: {value:.3g}")
