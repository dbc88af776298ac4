"""`wmlkit study`: many runs of a preset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from . import paths
from .cli_options import Json, Out, Preset, Set, emit, say
from .config import Config, load_preset, parse_assignment
from .errors import UserError
from .guard import started_together

if TYPE_CHECKING:  # `--help` need not wait for tables
    from .study_plan import Part

study_app = typer.Typer(help="Many runs: seeds x arms x settings.", no_args_is_help=True)

Ablations = Annotated[bool, typer.Option("--ablations", help="The runs of [ablations] instead of those of [study].")]


def _load(preset: str, set_: list[str] | None, ablations: bool) -> tuple[Config, Part]:
    """The configuration, and which part of it; what is asked for and says nothing of a study's runs is told."""
    from .study_plan import unread

    config, part = load_preset(preset, set_ or []), cast("Part", "ablations" if ablations else "runs")
    for sentence in unread(dict(map(parse_assignment, set_ or [])), config, part):
        say(f"wmlkit: {sentence}")
    return config, part


@study_app.command("plan")
def study_plan(
    preset: Preset = "nursery", ablations: Ablations = False, set_: Set = None, as_json: Json = False
) -> None:
    """The runs of a study, one a line."""
    from .study_plan import plan_table

    table = plan_table(*_load(preset, set_, ablations))
    if as_json:
        emit(table.to_dict("records"))
    else:
        print(table.to_string(index=False))


@study_app.command("run")
def study_run(
    preset: Preset = "nursery",
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Slice I of N, in this process alone.")] = None,
    rows: Annotated[str | None, typer.Option(metavar="I,J", help="These rows of the plan, likewise.")] = None,
    stage: Annotated[str, typer.Option(help="train, evaluate or all.")] = "all",
    ablations: Ablations = False,
    out: Out = None,
    set_: Set = None,
) -> None:
    """Train and evaluate the runs of a study, study.workers of them side by side; or some of them."""
    from . import study, study_plan

    if shard is not None and rows is not None:
        raise UserError("got both --shard and --rows; expected at most one: leave out the other")

    (config, part), place = _load(preset, set_, ablations), paths.output(out)
    if rows is not None:
        folders = study.run_rows(config, place, study_plan.parse_rows(rows), stage, say, part)
    elif shard is None and min(config.study.workers, len(study_plan.plan(config, part))) > 1 and not started_together():
        folders = study.run(preset, set_ or [], place, stage, say, part)
    else:
        folders = study.run_shard(
            config, place, *study_plan.parse_shard("1/1" if shard is None else shard), stage, say, part
        )
    for folder in folders:
        print(folder)


@study_app.command("submit")
def study_submit(
    shards: Annotated[int, typer.Option(help="Number of jobs.")],
    preset: Preset = "nursery",
    cluster: Annotated[str, typer.Option(help="slurm, or local: processes of this machine.")] = "slurm",
    minutes: Annotated[int, typer.Option(help="Time limit of a job.")] = 60,
    gpus: Annotated[int, typer.Option(help="Cards of a job.")] = 1,
    partition: Annotated[str | None, typer.Option(help="Partition of the cluster.")] = None,
    stage: Annotated[str, typer.Option(help="train, evaluate or all.")] = "all",
    ablations: Ablations = False,
    out: Out = None,
    set_: Set = None,
) -> None:
    """Submit the slices of a study as jobs; prints their numbers."""
    from .submit import Cluster, submit

    if cluster not in ("slurm", "local"):
        raise UserError(f"--cluster got {cluster!r}; expected slurm or local; change it")
    _, part = _load(preset, set_, ablations)  # what is wrong with it is told here, not by each job
    if gpus < 0:
        raise UserError(f"--gpus got {gpus}; expected 0 or more; change it")
    if partition and cluster == "local":
        raise UserError("--partition says nothing of --cluster local, which is this machine; leave out one of them")
    more: dict[str, Any] = {"slurm_partition": partition} if partition else {}
    more |= {"gpus_per_node": gpus} if cluster == "slurm" else {}
    where: Cluster = "local" if cluster == "local" else "slurm"
    for job in submit(preset, set_ or [], paths.output(out), shards, where, stage, part, minutes, **more):
        print(job.job_id)


@study_app.command("collect")
def study_collect(preset: Preset = "nursery", out: Out = None) -> None:
    """Write the tables of all finished runs of a preset."""
    from . import environment
    from .tables import write_tables

    for path in write_tables(paths.preset(paths.output(out), preset), environment.command()):
        print(path)
