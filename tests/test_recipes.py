"""Every recipe in configs/ loads, and its views and objective can be built and used."""

from pathlib import Path

import pytest
import torch

import avssl
from avssl.build import Config, build_objective, build_optimizer, build_specs, build_views
from avssl.config import load_config

PACKAGE = Path(avssl.__file__).parent
RECIPES = [*sorted((PACKAGE.parent / "configs").rglob("*.yaml")), *sorted((PACKAGE / "cli").glob("*.yaml"))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_recipe_builds_and_takes_a_step(path):
    config = load_config(path, ["data.root=/videos"], schema=Config)
    video, audio = build_specs(config.data)
    frames = [torch.randint(256, (video.num_frames, 48, 64, 3), dtype=torch.uint8) for _ in range(2)]
    waveform = 0.1 * torch.randn(2, 1, audio.window(0.0).num_samples)
    views = build_views(config, train=True)(frames, waveform, torch.arange(2))
    objective = build_objective(config, num_instances=40)
    optimizer = build_optimizer(config.optim, objective)
    out = objective(views)
    out["loss"].backward()
    optimizer.step()
    assert torch.isfinite(out["loss"])
    assert all(p.grad is not None for p in objective.parameters())
    plain = build_views(config, train=False)(frames, waveform, torch.arange(2))
    assert plain.video[0].shape == views.video[0].shape
    assert plain.audio[0].shape == views.audio[0].shape
