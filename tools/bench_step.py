"""Clips a second of a training step, plain and as trained: bench_step.py [CONFIG.yaml] [KEY=VALUE ...]

Two copies of one model take steps by turns on the same random clips:

plain       float32 without TF32, channels first, eager, torch's default kernels of the optimiser, copies in
            line;
as trained  what `avssl pretrain` does with the recipe: its precision, channels last, fused optimiser, copies
            on a stream of their own, cuDNN's choice by trial, on a GPU compiled trunks (unless --no-compile).

Prints the median over rounds of each, their ratio, where the time goes, and the share of the device's peak.
Reading files is left out: the loader's workers do it meanwhile. Without a recipe: configs/avid/folder.yaml at
8 x 224 x 224 on a GPU, configs/avid/folder_small.yaml on a CPU. On a GPU the former needs torch, torchvision,
torchaudio and numpy, and nothing else.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from stand_ins import MISSING, stand_in  # noqa: E402

stand_in()

import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from avssl.build import (  # noqa: E402
    Config,
    build_device,
    build_objective,
    build_optimizer,
    build_specs,
    build_views,
)
from avssl.data import ClipBatch  # noqa: E402
from avssl.errors import ConfigError  # noqa: E402
from avssl.objectives import TrunkOutputs  # noqa: E402
from avssl.train.speed import DevicePrefetcher, quicken  # noqa: E402

PEAKS = {
    "H200": {"bfloat16": 989e12, "float32": 67e12},
    "H100": {"bfloat16": 989e12, "float32": 67e12},
    "A100": {"bfloat16": 312e12, "float32": 19.5e12},
}
"""Dense FLOP a second that the makers state, without TF32; float16 is as fast as bfloat16."""
INSTANCES, WARM_UP, DIFFERENT_BATCHES = 10_000, 4, 3


def read_recipe(path, changes, on_gpu):
    """The recipe; without a path the one of the folder, also where there is no library to read YAML."""
    if path is None:
        path = REPOSITORY / "configs/avid" / ("folder.yaml" if on_gpu else "folder_small.yaml")
        large = ["views.video.size=224", "data.short_side=256"] if on_gpu else []
        if not MISSING:
            changes = large + changes
        elif on_gpu:
            return change(folder_recipe(), large + changes)
    if MISSING:
        raise SystemExit(f"{path}: to read recipes, install what is missing here: {', '.join(MISSING)}")
    from avssl.config import load_config

    return load_config(str(path), changes, schema=Config)


def folder_recipe():
    """What of configs/avid/folder.yaml matters for a step."""
    config = Config()
    config.model.batch_norm = True
    config.objective = {"name": "AVID", "num_negatives": 1024}
    return config


def change(config, changes):
    """Apply KEY=VALUE to dataclasses and dictionaries, unchecked."""
    for key, _, text in (item.partition("=") for item in changes):
        *sections, name = key.split(".")
        place = config
        for section in sections:
            place = place[section] if isinstance(place, dict) else getattr(place, section)
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = {"true": True, "false": False, "null": None}.get(text, text)
        if isinstance(place, dict):
            place[name] = value
        else:
            setattr(place, name, value)
    return config


class Clock:
    """Times of the parts of steps, by the device's own clock; never waits for it."""

    def __init__(self, device):
        self.on_gpu = device.type == "cuda"
        self.marks = []

    def mark(self, name=None):
        """End a part of that name; None begins a step."""
        if self.on_gpu:
            stamp = torch.cuda.Event(enable_timing=True)
            stamp.record()
        else:
            stamp = time.perf_counter()
        self.marks.append((name, stamp))

    def read(self):
        """Milliseconds of each part in each step, as lists; call it once the device is done."""
        steps = []
        for (_, before), (name, after) in zip(self.marks, self.marks[1:], strict=False):
            if name is None:
                continue
            if not steps or name == "copy":
                steps.append({})
            spent = before.elapsed_time(after) if self.on_gpu else 1e3 * (after - before)
            steps[-1][name] = steps[-1].get(name, 0.0) + spent
        self.marks = []
        return steps


class TimedOutputs(TrunkOutputs):
    """Trunk features that tell the clock when the trunks have run."""

    def __init__(self, encoders, views, clock):
        super().__init__(encoders, views)
        self.clock = clock

    def _once(self, *args):
        self.clock.mark("objective")
        features = super()._once(*args)
        self.clock.mark("forward")
        return features


class Training:
    """One copy of the model with its way of stepping."""

    def __init__(self, config, device, plain):
        torch.manual_seed(config.train.seed)
        self.device, self.plain = device, plain
        self.objective = build_objective(config, INSTANCES).to(device).train()
        self.views = build_views(config, train=True).to(device)
        self.precision = "float32" if plain else precision(config, device)
        if not plain:
            quicken(self.objective, config.train, device)
        self.optimizer = build_optimizer(config.optim, self.objective, config.train.batch_size)
        for group in self.optimizer.param_groups if plain else ():
            group |= {key: None for key in ("fused", "foreach") if key in group}
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "float16")
        self.to_device = DevicePrefetcher(device)
        self.generator = torch.Generator().manual_seed(0)
        self.clock = Clock(device)

    def step(self, batch):
        """One step, in the order of the trainer; returns the loss, on the device."""
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = not self.plain
        clock = self.clock
        clock.mark()
        part = batch.to(self.device) if self.plain else next(self.to_device([batch]))
        clock.mark("copy")
        views = self.views(part.frames, part.waveform, part.index, self.generator, part.sounding)
        clock.mark("views")
        dtype = getattr(torch, self.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            loss = self.objective.loss(TimedOutputs(self.objective.encoders, views, clock))["loss"]
        clock.mark("objective")
        self.scaler.scale(loss).backward()
        clock.mark("backward")
        self.objective.before_step()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step()
        clock.mark("optimiser")
        return loss


def precision(config, device):
    """Name of the type a recipe computes in."""
    if config.train.precision != "auto":
        return config.train.precision
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def random_batches(config, device):
    """Clips as the loader hands them over, pinned for a GPU."""
    video, audio = build_specs(config)
    side, count = config.data.short_side or 256, config.train.batch_size
    generator = torch.Generator().manual_seed(0)
    shape = (count, video.num_frames, side, 4 * side // 3, 3)
    batches = []
    for number in range(DIFFERENT_BATCHES):
        frames = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        waveform = None
        if audio is not None:
            waveform = 0.1 * torch.randn(count, 1, audio.window(0.0).num_samples, generator=generator)
        index = torch.arange(number * count, (number + 1) * count) % INSTANCES
        batch = ClipBatch(list(frames), waveform, index)
        batches.append(batch.pin_memory() if device.type == "cuda" else batch)
    return batches


def flops_of_a_step(training, batch):
    """FLOPs of forward and backward pass; the views' are not the model's."""
    part = batch.to(training.device)
    views = training.views(part.frames, part.waveform, part.index, training.generator, part.sounding)
    with FlopCounterMode(display=False) as counter:
        training.objective(views)["loss"].backward()
    training.optimizer.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def peaks(device):
    """FLOP a second by type: as stated for a GPU, of a large product as measured on a CPU; {} if unknown."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for part, peak in PEAKS.items() if part in name), {})
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begin)
    return {"float32": 2 * 1024**3 / min(seconds)}


def measure(trainings, batches, steps, rounds, device):
    """Clips a second of each in each round, by turns, and milliseconds of its parts."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    rates = {name: [] for name in trainings}
    parts = {name: [] for name in trainings}
    for turn in range(-1, rounds):  # the first warms up
        for name, training in trainings.items():
            training.clock.marks = []
            wait()
            begin = time.perf_counter()
            for number in range(steps if turn >= 0 else WARM_UP):
                training.step(batches[number % len(batches)])
            wait()
            if turn >= 0:
                rates[name].append(steps * len(batches[0]) / (time.perf_counter() - begin))
                parts[name] += training.clock.read()
    return rates, parts


def report(trainings, rates, parts, flops, batch, device):
    """Print the table."""
    known = peaks(device)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, training in trainings.items():
        used = flops * medians[name] / batch
        peak = known.get("bfloat16" if training.precision == "float16" else training.precision)
        share = f"{used / peak:6.1%} of {peak / 1e12:.3g}" if peak else "peak unknown"
        low, high = min(rates[name]), max(rates[name])
        print(
            f"{name:12} {medians[name]:9.1f} clips/s ({low:.1f} to {high:.1f}), {training.precision}, "
            f"{used / 1e12:.3f} TFLOP/s, {share}"
        )
        split = {
            part: statistics.median(step.get(part, 0.0) for step in parts[name]) for part in parts[name][0]
        }
        print(" " * 13 + ", ".join(f"{part} {spent:.1f} ms" for part, spent in split.items()))
    plain, trained = medians.values()
    print(f"ratio        {trained / plain:9.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", nargs="*", help="CONFIG.yaml and KEY=VALUE")
    parser.add_argument("--steps", type=int, help="steps a round (20 on a GPU, 2 on a CPU)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, help="clips a step, in place of train.batch_size")
    parser.add_argument("--cpu-threads", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="the trunks (yes on a GPU)")
    options = parser.parse_intermixed_args()
    paths = [text for text in options.recipe if "=" not in text]
    changes = [text for text in options.recipe if "=" in text]
    torch.set_num_threads(options.cpu_threads)
    wanted = [text.partition("=")[2] for text in changes if text.startswith("train.device=")]
    device = build_device(wanted[-1] if wanted else "auto")
    if device.type == "cpu" and "numba" in MISSING:
        raise SystemExit("numba is not installed; views on a CPU are computed with it: pip install numba")
    config = read_recipe(paths[0] if paths else None, changes, device.type == "cuda")
    config.views.statistics = None
    config.train.batch_size = options.batch or config.train.batch_size
    on_gpu = device.type == "cuda"
    asked = options.compile
    config.train.compile = config.train.compile or (on_gpu if asked is None else asked)
    trainings = {"plain": Training(config, device, plain=True)}
    try:
        trainings["as trained"] = Training(config, device, plain=False)
    except ConfigError as error:
        if asked or not config.train.compile:
            raise SystemExit(str(error)) from error
        print(f"not compiled: {error}")
        config.train.compile = False
        trainings["as trained"] = Training(config, device, plain=False)
    batches = random_batches(config, device)
    flops = flops_of_a_step(trainings["plain"], batches[0])
    steps = options.steps or (20 if on_gpu else 2)
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} thread(s)"
    size, video = config.views.video["size"], config.data.num_frames
    print(
        f"torch {torch.__version__}, {name}; {config.objective['name']}, {config.train.batch_size} clips of "
        f"{video} x {size} x {size}, {flops / 1e9:.1f} GFLOP a step, "
        f"{'compiled' if config.train.compile else 'eager'}"
    )
    rates, parts = measure(trainings, batches, steps, options.rounds, device)
    report(trainings, rates, parts, flops, config.train.batch_size, device)


if __name__ == "__main__":
    main()
