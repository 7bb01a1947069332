"""Every recipe in configs/ loads, and its views and objective can be built; parity recipes hold the table."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import avssl
from avssl.build import (
    Config,
    build_objective,
    build_optimizer,
    build_specs,
    build_views,
    epoch_notice,
    learning_rate,
)
from avssl.config import load_config
from avssl.data import RunSampler
from avssl.errors import ConfigError
from avssl.objectives import AVID, CMA
from avssl.train.start import check_recipe

PACKAGE = Path(avssl.__file__).parent
CONFIGS = PACKAGE.parent / "configs"
RECIPES = [*sorted(CONFIGS.rglob("*.yaml")), *sorted((PACKAGE / "cli").glob("*.yaml"))]
# Others have the networks and clips of one of these.
WITH_A_STEP = {
    "avid/folder", "avid/folder_small", "cma/folder_small", "cli/demo_avid", "cli/demo_cma",
    "avid/audioset100k",
}  # fmt: skip
KINETICS, AUDIOSET, AUDIOSET_100K = 232_067, 1_784_108, 100_000
# lr, batch (a node's), epochs x passes, instances, crop, frames x bins, parameters of the encoders
TABLE = {
    "avid/kinetics400": (2e-4, 256, 30, 10, KINETICS, 224, (200, 257), 21_286_784),
    "cma/kinetics400": (2e-4, 256, 20, 10, KINETICS, 224, (200, 257), 21_286_784),
    "avid/audioset": (5e-4, 160, 40, 5, AUDIOSET, 224, (200, 257), 21_286_784),
    "cma/audioset": (1e-4, 160, 40, 5, AUDIOSET, 224, (200, 257), 21_286_784),
    "avid/audioset100k": (1e-4, 256, 100, 4, AUDIOSET_100K, 112, (100, 129), 12_923_264),
    "cma/audioset100k": (1e-4, 224, 75, 4, AUDIOSET_100K, 112, (100, 129), 12_923_264),
}
REFRESH = {"cma/kinetics400": 5, "cma/audioset": 10, "cma/audioset100k": 10}
ABLATIONS = {
    "avid_self": {"cross": 0.0, "within": 1.0},
    "avid_joint": {"cross": 1.0, "within": 1.0},
    "cma_union": {"agreement": "union"},
    "cma_video": {"agreement": "video"},
    "cma_audio": {"agreement": "audio"},
    "cma_positives_8": {"num_positives": 8},
    "cma_positives_128": {"num_positives": 128},
    "cma_pos_x": {"positive_cross": 1.0, "positive_within": 0.0},
    "cma_pos_xw": {"positive_cross": 1.0, "positive_within": 1.0},
    "cma_instance_within": {"instance_within": 1.0},
}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def read(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml", ["data.root=/videos"], schema=Config)


def with_numbers(config: Config) -> Config:
    """The recipe as a run has it once its statistics are computed."""
    spectrogram = config.views.spectrogram
    if config.views.statistics is not None:
        spectrogram = {**spectrogram, "mean": -28.5, "std": 19.7}
    return replace(config, views=replace(config.views, spectrogram=spectrogram, statistics=None))


def clips(config: Config, num_clips: int = 2, size: tuple[int, int] = (48, 64)):
    video, audio = build_specs(config)
    frames = [torch.randint(256, (video.num_frames, *size, 3), dtype=torch.uint8) for _ in range(num_clips)]
    waveform = 0.1 * torch.randn(num_clips, 1, audio.window(0.0).num_samples)
    return frames, waveform, torch.arange(num_clips)


@pytest.mark.parametrize("path", [p for p in RECIPES if name_of(p) in WITH_A_STEP], ids=name_of)
def test_recipe_takes_a_step(path):
    config = with_numbers(load_config(path, ["data.root=/videos"], schema=Config))
    batch = clips(config)
    views = build_views(config, train=True)(*batch)
    objective = build_objective(config, num_instances=40)
    optimizer = build_optimizer(config.optim, objective, config.train.batch_size)
    objective.before_epoch(0)
    out = objective(views)
    out["loss"].backward()
    optimizer.step()
    assert torch.isfinite(out["loss"])
    assert all(p.grad is not None for p in objective.parameters())
    plain = build_views(config, train=False)(*batch)
    assert plain.video[0].shape == views.video[0].shape
    assert plain.audio[0].shape == views.audio[0].shape


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_builds_at_full_size(path):
    config = with_numbers(load_config(path, ["data.root=/videos"], schema=Config))
    build_views(config, train=True)
    with torch.device("meta"):
        objective = build_objective(config, TABLE.get(name_of(path), (AUDIOSET_100K,) * 5)[4])
        optimizer = build_optimizer(config.optim, objective, config.train.batch_size)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) > 1e5


def test_a_rate_of_each_kind_is_refused_until_one_is_null():
    path = CONFIGS / "visual" / "simsiam_imagenet.yaml"

    def rate(*overrides: str) -> float:
        return learning_rate(load_config(path, overrides, schema=Config).optim, batch_size=512)

    assert rate() == pytest.approx(0.1)
    clash = r"optim\.lr is 0\.001 and optim\.lr_per_256 0\.05; .* to use lr add optim\.lr_per_256=null"
    with pytest.raises(ConfigError, match=clash):
        rate("optim.lr=1e-3")
    assert rate("optim.lr=1e-3", "optim.lr_per_256=null") == 1e-3
    assert rate("optim.lr_per_256=null") == 2e-4
    with pytest.raises(ConfigError, match=r"to use lr_per_256 add optim\.lr=null"):
        check_recipe(load_config(path, ["optim.lr=1e-3"], schema=Config))


def test_a_recipe_with_a_partition_says_how_to_change_to_softmax():
    path = CONFIGS / "avid" / "kinetics400.yaml"
    softmax = load_config(path, ["objective.contrast=softmax"], schema=Config)
    with pytest.raises(ConfigError, match=r"kinetics400\.yaml: objective: partition must be null with"):
        build_objective(softmax, 40)
    null = load_config(path, ["objective.contrast=softmax", "objective.partition=null"], schema=Config)
    with torch.device("meta"):
        assert build_objective(null, 40).contrast == "softmax"


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_says_how_to_use_it(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert all(len(line) <= 120 for line in path.read_text().splitlines())


@pytest.mark.parametrize("name", TABLE)
def test_parity_recipe_has_the_numbers_of_the_release(name):
    lr, batch, epochs, passes, instances, size, spectrogram, parameters = TABLE[name]
    config = read(name)
    assert (config.optim.name, config.optim.lr, config.optim.weight_decay) == ("adam", lr, 1e-5)
    assert (config.train.batch_size, config.train.accumulate, config.train.epochs) == (batch, 1, epochs)
    assert (config.optim.warmup_epochs, config.optim.clip_grad_norm) == (0.0, None)
    assert config.data.clips_per_sample == passes
    assert config.train.precision == "float32"
    assert config.views.statistics == "auto"
    if name == "avid/audioset100k":
        assert (config.optim.schedule, config.optim.milestones, config.optim.gamma) == (
            "multistep",
            (75,),
            0.1,
        )
    else:
        assert config.optim.schedule == "constant"

    video, audio = build_specs(config)
    assert (video.num_frames, video.fps, video.duration_seconds) == (8, 16, 0.5)
    assert (audio.duration_seconds, audio.sample_rate) == (2.0, 24000)
    assert (config.data.max_offset_seconds, config.data.silent) == (0.5, "keep")
    assert config.data.short_side == (256 if size == 224 else 128)

    views = build_views(with_numbers(config), train=True)
    assert (views.video.size, views.video.min_area, views.video.flip) == (size, 0.08, 0.5)
    assert list(views.video.jitter.strengths.values()) == [0.4, 0.4, 0.4, 0.2]
    assert views.audio.gain == 0.1
    assert (views.spectrogram.bins, views.spectrogram.top_db) == ("paired", 100)
    assert views.spectrogram(torch.randn(1, 1, 48000)).shape == (1, 1, *spectrogram)

    with torch.device("meta"):
        objective = build_objective(config, instances)
    assert sum(p.numel() for p in objective.parameters()) == parameters
    assert not any("running" in key for key in objective.encoders.video_head.state_dict())
    assert objective.bank.video.shape == objective.bank.audio.shape == (instances, 128)
    assert (objective.num_negatives, objective.temperature) == (1024, 0.07)
    assert (objective.contrast, objective.partition.rule) == ("nce", "first_batch")
    assert objective.unseen_negatives
    assert config.objective["momentum"] == 0.5
    weights = {kind: weight for kind, weight in objective.weights.items() if weight > 0}
    if name.startswith("avid"):
        assert type(objective) is AVID
        assert weights == {"cross": 1.0}
    else:
        assert type(objective) is CMA
        assert weights == {"instance_cross": 0.5, "positive_within": 0.5}
        assert objective.refresh_epochs == REFRESH[name]
        assert objective.agreement == "consensus"
        assert (config.objective["num_positives"], objective.num_negatives_positive) == (32, 64)


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_changes_only_what_it_is_named_after(name):
    config, base = read(f"ablations/{name}"), read(f"{name.split('_')[0]}/audioset100k")
    expected = replace(
        base,
        objective={**base.objective, **ABLATIONS[name]},
        run=replace(base.run, name=name),
    )
    assert config == expected
    assert config.objective != base.objective


def test_every_ablation_is_known_and_has_a_name_of_its_own():
    assert {path.stem for path in (CONFIGS / "ablations").glob("*.yaml")} == set(ABLATIONS)
    names = [load_config(path, schema=Config).run.name for path in sorted(CONFIGS.rglob("*.yaml"))]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/folder*.yaml")), ids=name_of)
def test_folder_recipe_normalises_by_its_own_data(path):
    config = load_config(path, schema=Config)
    assert config.views.statistics == "auto"
    assert "mean" not in config.views.spectrogram
    assert "std" not in config.views.spectrogram


def test_epoch_of_several_passes_is_explained():
    assert epoch_notice(read("avid/kinetics400"), KINETICS) == (
        "an epoch of this recipe is 10 passes over 232,067 clips; 30 epochs = 300 passes, 271,950 steps of "
        "256 clips (global)"
    )
    assert epoch_notice(read("avid/folder"), 5000) is None


@pytest.mark.parametrize(("batch", "accumulate", "rows"), [(8, 1, 21), (8, 2, 21), (64, 1, 10), (6, 3, 7)])
def test_epoch_notice_counts_the_steps_of_the_training(batch, accumulate, rows):
    config = read("avid/kinetics400")
    train = replace(config.train, batch_size=batch, accumulate=accumulate, epochs=3)
    config = replace(config, train=train, data=replace(config.data, clips_per_sample=4))
    parts = RunSampler(rows, batch // accumulate, 0, 3, repeats=4).batches_per_epoch
    steps = 3 * -(-parts // accumulate)
    assert f" 3 epochs = 12 passes, {steps} steps of {min(batch, rows * accumulate)} " in epoch_notice(
        config, rows
    )
