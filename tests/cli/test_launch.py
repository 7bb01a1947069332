"""Jobs: what is submitted to SLURM, what is refused before, and jobs of this machine that really train."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from media import write_media

from avssl.cli.launch import TimeType
from avssl.cli.main import main

RECIPE = str(Path(__file__).parents[2] / "configs" / "avid" / "folder_small.yaml")
SMALL = (
    "model.video.width=4", "model.audio.width=4", "views.video.size=32", "data.num_frames=4",
    "data.short_side=40", "data.num_workers=0", "data.val_share=0", "train.batch_size=4", "train.log_every=1",
    "objective.num_negatives=4", "train.device=cpu", "run.name=run",
)  # fmt: skip
SBATCH = """#!/bin/sh
cp "$1" "{folder}/given.sh"
env > "{folder}/environment"
echo Submitted batch job 4242
"""


def launch(*arguments):
    result = CliRunner().invoke(main, ["launch", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Working directory in which nothing of SLURM is on the PATH."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    return tmp_path


@pytest.fixture
def slurm(home):
    """Writes the programs of a SLURM that takes any job, or another sbatch."""

    def write(sbatch=SBATCH):
        for name, text in {"sbatch": sbatch, "srun": "#!/bin/sh\n", "scontrol": "#!/bin/sh\n"}.items():
            path = home / "bin" / name
            path.write_text(text.format(folder=home))
            path.chmod(0o755)

    return write


OPTIONS = (
    "--nodes", 2, "--gpus-per-node", 4, "--time", "2-12:00:00", "--partition", "gpu", "--account", "lab",
    "--constraint", "a100|h100", "--qos", "long", "--mem-gb", 64, "--cpus-per-gpu", 8,
    "--slurm-option", "exclude=n3", "--slurm-option", "exclusive", RECIPE, "run.name=wide",
)  # fmt: skip
WANTED = {
    "--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=4", "--time=3600", "--partition=gpu",
    "--account=lab", "--constraint='a100|h100'", "--qos=long", "--mem=64GB", "--cpus-per-task=8",
    "--exclude=n3", "--exclusive", "--job-name=wide", "--requeue", "--signal=USR2@300", "--open-mode=append",
}  # fmt: skip


def sbatch_options(script):
    return {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}


def test_dry_run_prints_the_script_and_submits_nothing(home):
    result = launch("--slurm", "--dry-run", *OPTIONS)
    assert result.exit_code == 0, result.stderr
    log = home / "runs" / "wide" / "jobs" / "%j"
    assert sbatch_options(result.stdout) >= WANTED | {f"--output={log}_0_log.out"}
    (srun,) = (line for line in result.stdout.splitlines() if line.startswith("srun "))
    assert f"--output {log}_%t_log.out --cpus-per-task=8 " in srun
    assert os.listdir(home) == ["bin"]


def test_local_dry_run_says_what_would_run(home):
    result = launch("--local", "--dry-run", "--processes", 2, "--allow-changes", RECIPE, "run.name=here")
    assert result.stdout == (
        f"job     avssl pretrain {RECIPE} run.name=here --allow-changes\n"
        "where   here, 2 processes\nlogs    runs/here/jobs\n"
    )
    assert os.listdir(home) == ["bin"]


def test_sbatch_gets_the_options_and_the_user_is_told_how_to_follow(home, slurm, monkeypatch):
    slurm()
    monkeypatch.setenv("SBATCH_RESERVATION", "mine")
    result = launch("--slurm", *OPTIONS)
    assert result.exit_code == 0, result.stderr
    assert sbatch_options((home / "given.sh").read_text()) >= WANTED
    assert "SBATCH_RESERVATION=mine\n" in (home / "environment").read_text()
    jobs = home / "runs" / "wide" / "jobs"
    log = jobs / "4242_0_log.out"
    assert result.stdout.splitlines() == [
        "job     4242 (SLURM, 2 nodes of 4 GPUs)",
        f"log     {log}",
        f"follow  tail -F {log}",
        "state   squeue --job 4242",
        "cancel  scancel 4242",
    ]
    assert (jobs / "4242_submitted.pkl").is_file()
    listed = CliRunner().invoke(main, ["runs", "list", "--json"])
    assert [(run["name"], run["state"]) for run in json.loads(listed.stdout)] == [("wide", "submitted")]


def test_a_job_that_sbatch_refuses_is_one_line(slurm):
    slurm("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n")
    result = launch("--slurm", "--partition", "gpu", RECIPE)
    assert result.exit_code == 2
    message = (
        "avssl: error: sbatch refused the job: sbatch: error: invalid partition specified: gpu; see --dry-run"
    )
    assert message in result.stderr


def test_without_slurm_or_submitit_one_line_says_so(home, monkeypatch):
    result = launch("--slurm", RECIPE)
    assert result.exit_code == 2
    assert "avssl: error: sbatch is not on the PATH, so there is no SLURM here; submit from" in result.stderr
    monkeypatch.setitem(sys.modules, "submitit", None)
    result = launch("--slurm", RECIPE)
    assert result.exit_code == 2
    assert result.stderr == "avssl: error: jobs need submitit, which is missing; pip install 'avssl[slurm]'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slurm", RECIPE, "optim.lrr=1"], "line: optim.lrr: no such key; did you mean 'optim.lr'?"),
        (["--slurm", RECIPE, "objective.negatives=3"], "objective.negatives"),
        (["--slurm", "no.yaml"], "no.yaml: no such file"),
        (["--slurm", "--gpus-per-node", "7", RECIPE], "train.batch_size is 32 and train.accumulate 1, with"),
        (["--slurm", RECIPE, "run.start_from=runs/none"], "runs/none"),
        ([RECIPE], "say where the job is to run: --slurm or --local"),
        (["--local", "--qos", "long", RECIPE], "--qos is for SLURM; leave it out with --local"),
        (["--local", "--slurm-option", "gres=gpu", RECIPE], "--slurm-option is for SLURM; leave it out"),
        (["--local", "--gpus-per-node", "512", RECIPE], "--gpus-per-node is 512, but torch sees"),
        (["--slurm", "--gpus-per-node", "2", "--processes", "2", RECIPE], "--processes is for machines"),
        (["--slurm", "--time", "soon", RECIPE], "'soon' is no time; give minutes, such as 90, or 24:00:00"),
        (["--slurm", "--time", "0", RECIPE], "'0' leaves no time; give at least one minute"),
        (["--slurm", "--slurm-option", "mem=3", RECIPE], "'mem' has an option of its own here; give it as"),
        (["--slurm", "--slurm-option", "=3", RECIPE], "'=3' is no option of sbatch; give KEY=VALUE"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_before_anything_is_submitted(home, slurm, arguments, message):
    slurm()
    result = launch(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert os.listdir(home) == ["bin"]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:00", 90),
        ("0:30", 1),
        ("24:00:00", 1440),
        ("2-12", 3600),
        ("1-0:30", 1470),
        ("1-0:0:1", 0),
    ],
)
def test_time_is_read_as_slurm_reads_it(text, minutes):
    convert = lambda: TimeType().convert(text, None, None)  # noqa: E731
    if minutes:
        assert convert() == minutes
    else:
        with pytest.raises(click.BadParameter, match="is no time"):
            convert()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    (root / "a").mkdir()
    for i in range(8):
        write_media(root / "a" / f"{i}.mp4", seconds=2.0, size=(64, 48), tone_hz=300 + 25 * i)
    return root


def start(videos, home, processes, epochs):
    """Start a job of this machine; the process ends at once, its output when the job does."""
    options = ["--local", f"--processes={processes}", "--time=60"]
    recipe = [RECIPE, f"data.root={videos}", f"run.folder={home}", f"train.epochs={epochs}", *SMALL]
    return subprocess.Popen(
        [sys.executable, "-m", "avssl", "launch", *options, *recipe],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_a_local_job_trains(videos, tmp_path):
    process = start(videos, tmp_path, processes=1, epochs=1)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    run = tmp_path / "run"
    job = output.split()[1]
    assert output.splitlines()[0] == f"job     {job} (here, 1 process)"
    log = (run / "jobs" / f"{job}_0_log.out").read_text()
    assert f"run     {run}\n" in log
    assert steps(run) == [1, 2]
    assert (run / "checkpoint.pt").is_file()
    assert json.loads((run / "run.json").read_text())["command"].startswith(
        f"avssl pretrain {RECIPE} data.root="
    )
    (found,) = json.loads(CliRunner().invoke(main, ["runs", "list", str(tmp_path), "--json"]).stdout)
    assert [found[key] for key in ("name", "state", "step", "total_steps")] == ["run", "finished", 2, 2]


@pytest.mark.slow
def test_two_processes_of_a_job_stop_together_and_go_on_from_their_checkpoint(videos, tmp_path):
    """USR1 reaches the second process alone: the first puts the job back, once both have stopped."""
    process = start(videos, tmp_path, processes=2, epochs=6)
    assert process.stdout is not None
    job = process.stdout.readline().split()[1]
    run = tmp_path / "run"
    while not (run / "metrics.jsonl").exists() or len(steps(run)) < 2:
        assert Path(f"/proc/{job}").exists(), (run / "jobs" / f"{job}_0_log.out").read_text()
        time.sleep(0.1)
    tasks = Path(f"/proc/{job}/task/{job}/children").read_text().split()
    os.kill(int(tasks[1]), signal.SIGUSR1)
    process.communicate()
    log = (run / "jobs" / f"{job}_0_log.out").read_text()
    assert log.count("stopped by SIGUSR1 after step") == 1
    assert log.count("Requeued job") == 1
    assert log.count("Starting with JobEnvironment") == 2
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["processes"], record["total_steps"]) == ("finished", 2, 12)
    assert steps(run) == list(range(1, 13))
