"""The command line: each command is one call of the Python API.

Exit status: 0 success, 2 a user's mistake (one sentence on standard error, no traceback), 1 a fault of wmlkit,
128 + N stopped by signal N with a checkpoint.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer
from safetensors import SafetensorError

from . import paths
from .cli_bench import bench_app
from .cli_options import A_PATH, Json, Out, Preset, Set, a_path, emit, say, with_options
from .cli_study import study_app
from .config import load_preset
from .errors import Stopped, UserError, disk_is_full, first_line
from .guard import end_with_parent, started_together

# What the system says of a path that a user named: an --out that is a file, a folder that may not be written to, ...
_USERS_PATH = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EROFS, errno.ENAMETOOLONG}

app = typer.Typer(
    help="Weighted mutual learning of small language models: a reproduction of 'When Babies Teach Babies'.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Corpora: list, fetch, prepare.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")
app.add_typer(bench_app, name="bench")


@app.command()
def reproduce(
    preset: Preset = "nursery",
    only: Annotated[str | None, typer.Option(help="Numbers of the notebooks to run, for example 03,05.")] = None,
    out: Out = None,
    force: Annotated[bool, typer.Option(help="Train again what is already there.")] = False,
    set_: Set = None,
) -> None:
    """Run the notebooks in order; leave tables, figures, report.html and summary.json."""
    from .reproduce import reproduce as run_all

    numbers = [] if only is None else [part for part in only.split(",") if part]
    if only is not None and not numbers:
        raise UserError(f"--only got {only!r}; expected numbers of notebooks such as 03,05; or leave it off for all")
    folder = run_all(preset, set_ or [], paths.output(out), numbers, force, say)
    say(f"report: {folder / 'report.html'}")


@app.command()
def search(
    preset: Preset = "nursery",
    method: Annotated[str | None, typer.Option(help="exact or bayesian; default: the preset's.")] = None,
    vocab_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens to count with, no corpus needed; default: those of the corpus.")
    ] = None,
    out: Out = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Find the students' shapes."""
    from .data.prepare import prepare
    from .data.tokenizer import load_tokenizer
    from .search_cost import shape_distance
    from .students import find_students, students_of

    config = load_preset(preset, with_options(set_, {"search.method": ("--method", method)}))
    if vocab_size is None:
        prepared = prepare(config.data, paths.output(out), config.needs_mask)
        found = students_of(config, paths.output(out), prepared, load_tokenizer(paths.tokenizer(prepared.folder)))
    elif config.search.prefer == "proxy":
        raise UserError("search.prefer is 'proxy', which trains on the corpus; leave out --vocab-size")
    else:
        found = find_students(config, vocab_size)
    if as_json:
        emit([student.document() for student in found])
        return
    for i, one in enumerate(found, 1):
        print(
            f"peer {i}: {one.num_layers} layers, {one.num_heads} heads, width {one.hidden_size}, "
            f"FFN {one.intermediate_size}: {one.parameters:,} parameters, target {one.target:,} "
            f"({100 * one.error:+.1f} %){'; ' * bool(one.note)}{one.note}"
        )
    print(f"distance {shape_distance(found):.2f}: mean over pairs of peers, 0.69 for a doubling of depth or width")


@app.command()
def train(
    preset: Preset = "nursery",
    arm: Annotated[
        str | None, typer.Option(help="independent, dml, wml, distill; or teacher (--peers 1); default: the preset's.")
    ] = None,
    peers: Annotated[int | None, typer.Option(help="Number of peers; default: the preset's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and masks; default: the preset's.")] = None,
    out: Out = None,
    force: Annotated[bool, typer.Option(help="Train again even if the run is done.")] = False,
    set_: Set = None,
) -> None:
    """Train one run, go on with it, or return it if it is done; prints its folder."""
    from accelerate import PartialState

    from .evaluate.curve import points_lacking
    from .progress import progress_line
    from .runs import unfinished_beside
    from .train import run, run_folder, settled

    options = {"mutual.arm": ("--arm", arm), "mutual.num_peers": ("--peers", peers), "train.seed": ("--seed", seed)}
    config = load_preset(preset, with_options(set_, options))
    if not started_together():  # of several processes each would prepare the text at once
        for sentence in unfinished_beside(run_folder(config, paths.output(out)), settled(config).resolved()):
            say(sentence)
    folder = run(config, paths.output(out), progress=lambda row: say(progress_line(config, row)), force=force)
    if PartialState().is_main_process:
        for sentence in points_lacking(config, folder):
            say(f"wmlkit: {sentence}")
        print(folder)


@app.command()
def evaluate(
    target: Annotated[
        Path,
        typer.Argument(parser=a_path, metavar="TARGET", help="A run folder, or a model folder in Hugging Face format."),
    ],
    suite: Annotated[
        str, typer.Option(help="nursery, blimp, supplement, ewok, glue, lm, ensembles, blimp_tuning, ...")
    ] = "nursery",
    pairs: Annotated[Path | None, typer.Option(**A_PATH, help="Folder of the suite's JSONL files.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="babylm2024-released, -fixed, babylm2025, babylm2026 (glue: as babylm2025); default: the run's for "
            "that suite, else babylm2025."
        ),
    ] = None,
    ties: Annotated[
        str | None, typer.Option(help="half, first, random or protocol; default: as the run has, else half.")
    ] = None,
    per_paradigm: Annotated[int | None, typer.Option(help="Pairs a paradigm; default: all, or as the run has.")] = None,
    temperature: Annotated[
        float, typer.Option(help="Of the models' distributions; a run's scores with another than 1 are only shown.")
    ] = 1.0,
    within_word: Annotated[
        bool, typer.Option("--within-word", help="Masked models: hide the later pieces of a word too; only shown.")
    ] = False,
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Show only the ensembles of a run's peers.")] = False,
    corpus: Annotated[
        Path | None,
        typer.Option(**A_PATH, help="lm: folder of .dev (else .txt) files, taken as is; default: the run's dev text."),
    ] = None,
    words: Annotated[int | None, typer.Option(help="lm: words a domain; default: as the run has, else 2000.")] = None,
    tasks: Annotated[str, typer.Option(help="glue: some tasks, for example rte,wsc; default: all.")] = "",
    seeds: Annotated[str, typer.Option(help="glue: seeds, for example 12,13; default: three.")] = "",
    max_train: Annotated[int | None, typer.Option(help="glue: the first so many training rows.")] = None,
    max_valid: Annotated[int | None, typer.Option(help="glue: the first so many validation rows.")] = None,
    epochs: Annotated[int | None, typer.Option(help="glue: fewer or more epochs.")] = None,
    best: Annotated[bool, typer.Option("--best", help="glue: only the best peer of a run.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            **A_PATH,
            help="Where the nursery's pairs lie or are written; results go into the run. Default: the run's output "
            "folder, else runs, or $WMLKIT_OUT.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option(help="Score again what is already there.")] = False,
    as_json: Json = False,
) -> None:
    """Score a run's peers and ensembles, or one model: minimal pairs, (Super)GLUE, loss on dev text."""
    from .evaluate.glue import GlueOptions
    from .evaluate.target import check_options, evaluate_target, evaluation_config, output_of, result_lines

    check_options(
        suite,
        {
            "--pairs": pairs, "--protocol": protocol, "--ties": ties, "--per-paradigm": per_paradigm,
            "--temperature": None if temperature == 1 else temperature, "--within-word": within_word or None,
            "--words": words, "--tasks": tasks, "--seeds": seeds, "--max-train": max_train, "--max-valid": max_valid,
            "--epochs": epochs,
        },
    )  # fmt: skip
    target = paths.named(target)
    asked = {
        "evaluate.protocol": protocol, "evaluate.ties": ties, "evaluate.pairs": str(pairs) if pairs else None,
        "evaluate.per_paradigm": per_paradigm, "evaluate.text_words": words,
    }  # fmt: skip
    config = evaluation_config(target, suite, asked)
    document = evaluate_target(
        target,
        suite,
        config,
        paths.output(out or output_of(target)),
        corpus=corpus,
        glue=GlueOptions.of(tasks, seeds, max_train, max_valid, epochs),
        best=best,
        ensemble=ensemble,
        temperature=temperature,
        within_word=within_word,
        force=force,
    )
    if as_json:
        emit(document)
        return
    for line in result_lines(document):
        print(line)


@app.command()
def report(
    runs: Annotated[
        Path | None, typer.Argument(parser=a_path, metavar="RUNS", help="A preset's folder; default: runs/nursery.")
    ] = None,
    html: Annotated[Path | None, typer.Option(**A_PATH, help="Also write the page to this file.")] = None,
    reference: Annotated[bool, typer.Option(help="Make them the reference: figures/, README.md, docs/.")] = False,
) -> None:
    """Make tables, figures, summary.json and report.html again from finished runs."""
    from . import environment
    from .report import write_report
    from .runs import finished_runs, renamed_runs
    from .summary import write_summary

    folder = paths.named(runs or paths.preset(paths.output(None), "nursery"))
    finished_runs(folder)
    if html is not None and html.is_dir():
        raise UserError(f"--html got {html}, which is a folder; expected the name of a file; change it")
    for name in renamed_runs(folder):
        say(f"wmlkit: {name} is in no table: a run counts under the name that it was given; rename or move it")
    page = write_report(folder, command=environment.command(), overwrite=True)
    write_summary(folder)
    if html is not None:
        paths.write_text(html, page.read_text(encoding="utf-8"))
    if reference:
        from .reference import write_reference

        write_reference(folder, paths.reference(folder.name))
    print(page)


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(parser=a_path, metavar="RUN", help="A finished run folder.")],
    to: Annotated[Path, typer.Option(**A_PATH, help="The folder to write.")],
    peer: Annotated[str, typer.Option(help="best, or a number from 1.")] = "best",
) -> None:
    """Copy one peer out as a model folder that transformers loads without wmlkit."""
    from .checkpoint import export_peer

    print(export_peer(run_folder, peer, to))


@data_app.command("list")
def data_list(out: Out = None, as_json: Json = False) -> None:
    """The corpora that can be named, and where fetched ones lie."""
    from .data.fetch import list_releases

    records = list_releases(paths.output(out))
    if as_json:
        emit(records)
        return
    for record in records:
        print(f"{record['name']:24} {record['about']}" + (f" [{record['folder']}]" if record["folder"] else ""))


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A release of `wmlkit data list`, or hf:OWNER/DATASET.")], out: Out = None
) -> None:
    """Download a corpus, check it, unpack it; goes on where a broken download stopped."""
    from .data.fetch import fetch

    print(fetch(name, paths.output(out)))


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="nursery, a fetched corpus, or a folder or zip of text files.")],
    preset: Preset = "nursery",
    out: Out = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Clean, train the tokenizer, encode; prints the prepared folder."""
    from .data.prepare import prepare

    config = load_preset(preset, with_options(set_, {"data.corpus": ("prepare", name)}))
    prepared = prepare(config.data, paths.output(out), config.needs_mask)
    if as_json:
        emit({"folder": str(prepared.folder), "hash": prepared.hash, "name": prepared.name})
    else:
        print(prepared.folder)


@app.command()
def doctor(out: Out = None, as_json: Json = False) -> None:
    """Look for what may go wrong on this machine: versions, kernel, device, disk, numerics; and what to do about it."""
    from .doctor import examine

    facts = examine(paths.output(out))
    if as_json:
        emit(facts)
    else:
        for one in facts["findings"]:
            print(f"{one['status']:7} {one['subject']}: {one['found']}")
            if one["advice"]:
                print(f"{'':7} -> {one['advice']}")
        print(f"presets: {', '.join(facts['presets'])}")
    broken = [one for one in facts["findings"] if one["status"] == "broken"]
    if broken:
        subjects = ", ".join(one["subject"] for one in broken)
        raise UserError(f"broken: {subjects}; expected nothing broken; first {broken[0]['advice']}")


def main() -> None:
    """A command, and the status that it ends with."""
    end_with_parent()
    try:
        app()
    except UserError as error:
        say(f"wmlkit: {error}")
        sys.exit(2)
    except Stopped as stop:
        say(f"wmlkit: {stop}")
        sys.exit(stop.status)
    except (OSError, SafetensorError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output went away, for example `head`
            sys.exit(1)
        if isinstance(error, OSError) and error.errno in _USERS_PATH and error.filename is not None:
            name = paths.final_name(error.filename)
            say(f"wmlkit: {name}: {error.strerror}; expected a path that can be used for this; change it")
            sys.exit(2)
        if not disk_is_full(error):
            raise
        say(f"wmlkit: there is no room left to write ({error}); expected free disk space; make room and run again")
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        from .faults import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        say(
            f"wmlkit: memory ran out ({first_line(error)}); expected sizes that fit: take a smaller model, "
            "train.batch_size, data.block_size or data.vocab_size, or fewer study.workers"
        )
        sys.exit(2)
    finally:
        if started_together():
            from .device import leave

            leave()
