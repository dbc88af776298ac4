"""A study on a cluster: its shards as jobs of SLURM, or as processes of this machine, through submitit (an extra)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from .ablations import ablation_base
from .config import load_preset
from .errors import UserError
from .paths import preset as preset_folder
from .study import check_stage, run_shard
from .study_plan import Part, plan

Cluster = Literal["slurm", "local"]


@dataclass(frozen=True)
class Shard:
    """Slice `index` of `count` of a study, as a job. A job that its cluster stops is queued again: finished runs and
    checkpoints are kept, so it goes on."""

    preset: str
    overrides: tuple[str, ...]
    out: str
    index: int
    count: int
    stage: str
    part: Part

    def __call__(self) -> list[str]:
        """Do the slice; returns the run folders."""
        config = load_preset(self.preset, self.overrides)
        say: Callable[[str], None] = lambda text: print(text, flush=True)  # noqa: E731  # the job's log is its output
        folders = run_shard(config, Path(self.out), self.index, self.count, self.stage, say, self.part)
        return [str(folder) for folder in folders]

    def checkpoint(self) -> Any:
        """What submitit queues again when the cluster stops the job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    preset: str,
    overrides: Sequence[str],
    out: Path,
    count: int,
    cluster: Cluster = "slurm",
    stage: str = "all",
    part: Part = "runs",
    minutes: int = 60,
    **parameters: Any,
) -> list[Any]:
    """Submit the `count` slices of a study; returns submitit's jobs. Their logs lie in ``OUT/<preset>/jobs``.

    parameters: of submitit's executor (`slurm_partition`, `gpus_per_node`, `cpus_per_task`, ...). Raises UserError
    where submitit is not installed, the cluster is not there, or an argument is no number of slices or minutes.
    """
    check_stage(stage)
    if minutes < 1:
        raise UserError(f"--minutes got {minutes}; expected at least 1; change it")
    if find_spec("submitit") is None:
        raise UserError(
            "the package submitit is not installed; expected it for jobs on a cluster; install it with "
            "`pip install 'wmlkit[submitit]'`, or use `wmlkit study run --shard I/N` in a job of your own"
        )
    config = load_preset(preset, overrides)
    runs = plan(config, part)
    if not 1 <= count <= len(runs):
        raise UserError(f"--shards got {count}; expected 1 to {len(runs)}, the number of runs: change it")
    import submitit

    name = ablation_base(config).preset if part == "ablations" else config.preset
    try:
        executor = submitit.AutoExecutor(folder=preset_folder(out, name) / "jobs", cluster=cluster)
    except RuntimeError as error:
        raise UserError(
            f"jobs cannot be submitted here ({error}); expected a machine with {cluster}; submit from one, or use "
            "--cluster local, or `wmlkit study run --shard I/N` in a job of your own"
        ) from None
    executor.update_parameters(name=f"wmlkit-{name}", timeout_min=minutes, **parameters)
    given = (preset, tuple(overrides), str(out))
    with executor.batch():
        return [executor.submit(Shard(*given, index, count, stage, part)) for index in range(1, count + 1)]
