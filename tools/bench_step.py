"""Where the time of a training step goes: python tools/bench_step.py CONFIG.yaml [KEY=VALUE ...]

Takes batches of random frames and sound through views, encoders, objective, backward and optimiser, and
prints the median time of each part and clips/s. Reading files is left out: the loader's workers do
it meanwhile.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from avssl.build import Config, build_device, build_objective, build_optimizer, build_specs, build_views
from avssl.config import load_config

STEPS, WARM_UP = 20, 5


def main() -> None:
    config = load_config(sys.argv[1], sys.argv[2:], schema=Config)
    device = build_device(config.train.device)
    torch.set_num_threads(config.train.threads or torch.get_num_threads())
    video, audio = build_specs(config)
    side, batch = config.data.short_side or 128, config.train.batch_size
    frames = [torch.randint(256, (video.num_frames, side, side, 3), dtype=torch.uint8) for _ in range(batch)]
    frames = [clip.to(device) for clip in frames]
    waveform = 0.1 * torch.randn(batch, 1, audio.window(0.0).num_samples, device=device)
    index = torch.arange(batch, device=device)
    objective = build_objective(config, num_instances=10_000).to(device).train()
    views = build_views(config, train=True).to(device)
    optimizer = build_optimizer(config.optim, objective, config.train.batch_size)
    times: dict[str, list[float]] = {}

    def timed(name, work):
        start = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.setdefault(name, []).append(time.perf_counter() - start)
        return result

    for _ in range(STEPS + WARM_UP):
        view = timed("views", lambda: views(frames, waveform, index))
        z = timed("encoders", lambda view=view: objective.encoders(view.video[0], view.audio[0]))
        out = timed("objective", lambda z=z: objective.contrast_embeddings(*z, index))
        timed("backward", out["loss"].backward)
        timed("optimiser", optimizer.step)
        optimizer.zero_grad()
    medians = {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}
    total = sum(medians.values())
    for name, seconds in medians.items():
        print(f"{name:10} {1e3 * seconds:8.1f} ms {seconds / total:6.1%}")
    print(f"{'step':10} {1e3 * total:8.1f} ms, {batch / total:.0f} clips/s on {device}")


if __name__ == "__main__":
    main()
