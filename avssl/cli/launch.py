"""``avssl launch``: ``avssl pretrain`` as a job, on SLURM or in the background of this machine."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch

from avssl.build import Config
from avssl.config import load_config
from avssl.errors import LaunchError
from avssl.train.parallel import check_batch
from avssl.train.start import check_recipe

if TYPE_CHECKING:
    from submitit import Job

JOBS = "jobs"
"""Folder in that of the run where jobs write."""
MAX_SAVE_SECONDS = 300
"""How long before the time limit SLURM asks for a checkpoint; for short jobs a tenth of the limit."""
OWN_OPTIONS = {
    "nodes": "--nodes", "gpus-per-node": "--gpus-per-node", "ntasks-per-node": "--processes",
    "time": "--time", "partition": "--partition", "account": "--account",
    "constraint": "--constraint", "qos": "--qos", "mem": "--mem-gb", "cpus-per-task": "--cpus-per-gpu",
    "job-name": "run.name=", "output": "--logs", "error": "--logs",
}  # fmt: skip
"""Options of sbatch that have one here, and which."""
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d\d){0,2})")


class TimeType(click.ParamType):
    """Minutes, or a time as SLURM writes it: 90, 90:00, 24:00:00, 2-12, 2-12:30, 2-12:30:00."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Whole minutes, seconds rounded up."""
        if isinstance(value, int):
            return value
        found = TIME.fullmatch(value)
        if found is None:
            self.fail(
                f"{value!r} is no time; give minutes, such as 90, or 24:00:00 or 2-12:00:00", param, ctx
            )
        parts = [int(part) for part in found["clock"].split(":")]
        if found["days"] is None and len(parts) < 3:  # minutes come first, else hours
            parts = [0, *parts]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        total = 60 * (24 * int(found["days"] or 0) + hours) + minutes + (seconds > 0)
        if total == 0:
            self.fail(f"{value!r} leaves no time; give at least one minute", param, ctx)
        return total


class SbatchType(click.ParamType):
    """An option of sbatch without its dashes, ``KEY=VALUE`` or ``KEY``."""

    name = "option"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str | bool]:
        """Key with dashes, and the value or True."""
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        key = key.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z-]*", key) or (equals and not text):
            self.fail(
                f"{value!r} is no option of sbatch; give KEY=VALUE, such as exclude=node3, or KEY", param, ctx
            )
        if key in OWN_OPTIONS:
            self.fail(f"{key!r} has an option of its own here; give it as {OWN_OPTIONS[key]}", param, ctx)
        return key, text if equals else True


@dataclass(frozen=True)
class Shape:
    """Where the processes of a job run: nodes, processes on each, and GPUs on each."""

    nodes: int
    processes: int
    gpus: int

    @property
    def total(self) -> int:
        """Processes of the job."""
        return self.nodes * self.processes

    def __str__(self) -> str:
        what = "GPU" if self.gpus else "process"
        each = f"{self.processes} {what}{'' if self.processes == 1 else 's' if self.gpus else 'es'}"
        return each if self.nodes == 1 else f"{self.nodes} nodes of {each}"


@click.command(
    epilog="""\b
Examples:
  avssl launch --slurm --gpus-per-node 8 --partition gpu configs/avid/folder.yaml data.root=/videos
  avssl launch --slurm --nodes 2 --gpus-per-node 8 --time 2-00:00:00 --slurm-option exclude=node3 \\
    configs/avid/folder.yaml data.root=/videos run.name=wide
  avssl launch --local --processes 2 configs/avid/folder_small.yaml data.root=/videos train.device=cpu
"""
)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--slurm", "where", flag_value="slurm", help="Submit to SLURM.")
@click.option("--local", "where", flag_value="local", help="Run on this machine, in the background.")
@click.option("--nodes", type=click.IntRange(min=1), help="Machines.  [default: 1]")
@click.option(
    "--gpus-per-node",
    type=click.IntRange(min=0),
    help="GPUs of each machine, one process a GPU.  [default: 1 with --slurm, all with --local]",
)
@click.option(
    "--processes", type=click.IntRange(min=1), help="Processes on each machine, without GPUs.  [default: 1]"
)
@click.option(
    "--time", "minutes", type=TimeType(), default="24:00:00", show_default=True, help="Time limit of a turn."
)
@click.option(
    "--max-timeouts",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="How often the job may go back into the queue because its time was up.",
)
@click.option("--partition", help="Of SLURM.")
@click.option("--account", help="Of SLURM.")
@click.option("--constraint", help="Of SLURM: features the machines must have.")
@click.option("--qos", help="Of SLURM: quality of service.")
@click.option("--mem-gb", type=click.IntRange(min=1), help="Memory of each machine.")
@click.option("--cpus-per-gpu", type=click.IntRange(min=1), help="Processors of each process.")
@click.option(
    "--slurm-option",
    "options",
    type=SbatchType(),
    multiple=True,
    metavar="KEY[=VALUE]",
    help="Any other option of sbatch; may be given again.",
)
@click.option(
    "--logs", type=click.Path(path_type=Path), help="Folder of the job's files.  [default: that of the run]"
)
@click.option(
    "--allow-changes", is_flag=True, help="Go on with a run though its recipe or its samples have changed."
)
@click.option("--dry-run", is_flag=True, help="Print what would be submitted, and submit nothing.")
def launch(
    config: Path,
    overrides: tuple[str, ...],
    where: str | None,
    nodes: int | None,
    gpus_per_node: int | None,
    processes: int | None,
    minutes: int,
    max_timeouts: int,
    logs: Path | None,
    allow_changes: bool,
    dry_run: bool,
    **slurm: Any,
) -> None:
    """Submit 'avssl pretrain CONFIG [KEY=VALUE]...' as a job; the recipe is checked first.

    When SLURM wants the machines back or the time is up, the job saves a checkpoint, goes back into the queue
    and later goes on from there. A job that is cancelled saves one too; submit the same again to go on.
    Needs submitit: pip install 'avssl[slurm]'.
    """
    if where is None:
        raise click.UsageError("say where the job is to run: --slurm or --local")
    if where == "local":
        _refuse_for_local(nodes, max_timeouts, slurm)
    shape = _shape(where, nodes or 1, gpus_per_node, processes)
    recipe = load_config(config, overrides, schema=Config)
    check_recipe(recipe)
    check_batch(recipe, shape.total)
    folder = logs or Path(recipe.run.folder) / recipe.run.name / JOBS
    arguments = (str(config), *overrides, *(["--allow-changes"] if allow_changes else []))
    shared = {"signal_delay_s": min(MAX_SAVE_SECONDS, 6 * minutes), "stderr_to_stdout": True}
    _find_submitit()
    if where == "local":
        _launch_here(folder, shape, shared | {"timeout_min": minutes}, arguments, dry_run)
    else:
        parameters = shared | {"time": minutes} | _slurm_parameters(recipe.run.name, shape, slurm)
        _launch_on_slurm(folder, shape, max_timeouts, parameters, arguments, dry_run)


def _refuse_for_local(nodes: int | None, max_timeouts: int, slurm: dict[str, Any]) -> None:
    """Raise for options that would do nothing."""
    ctx = click.get_current_context()
    names = ["nodes", "max_timeouts", *slurm]
    for parameter in ctx.command.params:
        given = ctx.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if parameter.name in names and given:
            raise click.UsageError(f"{parameter.opts[0]} is for SLURM; leave it out with --local")


def _shape(where: str, nodes: int, gpus: int | None, processes: int | None) -> Shape:
    if gpus and processes:
        raise click.UsageError("--processes is for machines without GPUs; one process is started a GPU")
    here = torch.cuda.device_count() if where == "local" else None
    if gpus is None:
        gpus = 0 if processes else 1 if here is None else here
    if here is not None and gpus > here:
        raise click.UsageError(
            f"--gpus-per-node is {gpus}, but torch sees {here} GPUs here; give at most {here}"
        )
    return Shape(nodes, gpus or processes or 1, gpus)


def _slurm_parameters(name: str, shape: Shape, slurm: dict[str, Any]) -> dict[str, Any]:
    """Parameters under the names of sbatch, None for unset ones."""
    cpus = slurm["cpus_per_gpu"]
    return {
        "job_name": name,
        "nodes": shape.nodes,
        "ntasks_per_node": shape.processes,
        "gpus_per_node": shape.gpus or None,
        "cpus_per_task": cpus,
        "srun_args": [f"--cpus-per-task={cpus}"] if cpus else None,  # srun no longer takes it from sbatch
        "mem": f"{slurm['mem_gb']}GB" if slurm["mem_gb"] else None,
        **{key: slurm[key] for key in ("partition", "account", "constraint", "qos")},
        "additional_parameters": {"requeue": True, **dict(slurm["options"])},
    }


def _find_submitit() -> None:
    try:
        import submitit  # noqa: F401  (an extra that only this command needs)
    except ImportError as error:
        raise LaunchError("jobs need submitit, which is missing; pip install 'avssl[slurm]'") from error


def _launch_here(
    folder: Path, shape: Shape, parameters: dict[str, Any], arguments: tuple[str, ...], dry_run: bool
) -> None:
    from submitit import LocalExecutor
    from submitit.helpers import clean_env

    from avssl.cli.job import PretrainJob

    if dry_run:
        click.echo(f"job     avssl pretrain {' '.join(arguments)}\nwhere   here, {shape}\nlogs    {folder}")
        return
    executor = LocalExecutor(folder)
    executor.update_parameters(tasks_per_node=shape.processes, gpus_per_node=shape.gpus, **parameters)
    with clean_env():  # nothing of a job this may be called from
        job = executor.submit(PretrainJob(arguments))
    _say(job, f"here, {shape}", [f"cancel  kill {job.job_id}"])


def _launch_on_slurm(
    folder: Path,
    shape: Shape,
    max_timeouts: int,
    parameters: dict[str, Any],
    arguments: tuple[str, ...],
    dry_run: bool,
) -> None:
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import clean_env

    from avssl.cli.job import PretrainJob, slurm_executor

    executor = slurm_executor(folder, max_timeouts, parameters)
    if dry_run:
        click.echo(executor.script())
        return
    for program in ("sbatch", "srun", "scontrol"):
        if shutil.which(program) is None:
            raise LaunchError(
                f"{program} is not on the PATH, so there is no SLURM here; submit from a login node of the "
                "cluster, or use --local"
            )
    try:
        with clean_env() if "SLURM_JOB_ID" in os.environ else nullcontext():
            job = executor.submit(PretrainJob(arguments))
    except (FailedJobError, FailedSubmissionError) as error:
        reason = str(error).strip().splitlines() or ["it gave no reason"]
        raise LaunchError(
            f"sbatch refused the job: {reason[0]}; see --dry-run for what it is given"
        ) from error
    _say(job, f"SLURM, {shape}", [f"state   squeue --job {job.job_id}", f"cancel  scancel {job.job_id}"])


def _say(job: Job[Any], where: str, lines: list[str]) -> None:
    """Say what was submitted, where it writes and how to follow it."""
    log = job.paths.stdout
    click.echo(
        "\n".join([f"job     {job.job_id} ({where})", f"log     {log}", f"follow  tail -F {log}", *lines])
    )
