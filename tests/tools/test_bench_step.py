"""tools/bench_step.py: its table, and the recipe it has where no library reads YAML."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import bench_step  # noqa: E402
import stand_ins  # noqa: E402

TINY = (
    "--rounds", "1", "--steps", "1", "--batch", "2", "views.video.size=16", "data.short_side=20",
    "data.num_frames=2", "model.video.width=4", "model.audio.width=4",
)  # fmt: skip


TORCH_ALONE = (
    "torch", "torchgen", "functorch", "torchvision", "torchaudio", "numpy", "PIL", "sympy", "mpmath",
    "networkx", "jinja2", "markupsafe", "filelock", "fsspec", "typing_extensions", "setuptools", "nvidia",
    "triton",
)  # fmt: skip

WITHOUT_THE_REST = """
import sys
import torch
import bench_step
from avssl.types import Views

print(*bench_step.MISSING)
config = bench_step.read_recipe(None, ["views.video.size=32", "data.short_side=40"], on_gpu=True)
config.views.statistics, config.train.batch_size = None, 2
training = bench_step.Training(config, torch.device("cpu"), plain=False)
batch = bench_step.random_batches(config, training.device)[0]
spectrograms = torch.randn(2, 1, 200, 257)  # a CPU computes them with numba
views = Views((torch.randn(2, 3, 8, 32, 32),), (spectrograms,), batch.index)
print(float(training.objective(views)["loss"].detach()) > 0)
"""


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(TOOLS / "bench_step.py"), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("recipe", ["avid/folder_small.yaml", "visual/byol_small.yaml"])
def test_a_miniature_run_prints_both_ways_their_ratio_and_where_time_goes(recipe):
    config = str(TOOLS.parent / "configs" / recipe)
    tiny = TINY if recipe.startswith("avid") else TINY[:6]
    found = run(config, *tiny)
    assert found.returncode == 0, found.stderr
    title, *rows = found.stdout.splitlines()
    assert re.search(r"torch 2\.\S+, CPU, 1 thread\(s\); .* GFLOP a step, eager", title)
    rates = []
    for way, row, split in (("plain", *rows[:2]), ("as trained", *rows[2:4])):
        match = re.match(rf"{way}\s+([\d.]+) clips/s \([\d.]+ to [\d.]+\), float32, .* TFLOP/s, .*% of ", row)
        assert match, row
        rates.append(float(match[1]))
        parts = {part.split()[0] for part in split.split(", ")}
        assert parts == {"copy", "views", "forward", "objective", "backward", "optimiser"}
    assert float(rows[4].split()[1]) == pytest.approx(rates[1] / rates[0], rel=0.02, abs=0.02)


def test_the_recipe_without_a_reader_of_yaml_is_that_of_the_folder():
    read = bench_step.read_recipe(None, ["optim.lr=1e-4"], on_gpu=True)
    made = bench_step.change(
        bench_step.folder_recipe(), ["views.video.size=224", "data.short_side=256", "optim.lr=1e-4"]
    )
    for section in ("data", "views", "model", "objective"):
        ours, theirs = getattr(made, section), getattr(read, section)
        if section == "views":
            ours.statistics = theirs.statistics = None
        assert ours == theirs, section
    assert (made.optim.name, made.optim.lr, made.optim.weight_decay) == ("adam", 1e-4, 1e-5)
    assert made.train.batch_size == read.train.batch_size


def test_torch_and_numpy_are_enough_for_the_model_and_its_batches(tmp_path):
    installed = Path(torch.__file__).parents[1]
    for entry in installed.iterdir():
        if entry.name.partition(".")[0] in TORCH_ALONE:
            (tmp_path / entry.name).symlink_to(entry)
    found = subprocess.run(
        [sys.executable, "-S", "-c", WITHOUT_THE_REST],  # -S: without the packages that are installed
        env={"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(tmp_path), str(TOOLS)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [*stand_ins.NOT_NEEDED, "True"]
