"""Official checkpoints of miniature networks, read, written back and used."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import avssl
from avssl.build import Config, ModelConfig, build_encoders, build_objective, build_spectrogram
from avssl.checkpoint import load_checkpoint, save_checkpoint
from avssl.config import config_from_dict, config_to_dict
from avssl.errors import CheckpointError, ConfigError
from avssl.models import AudioConvNet, DualEncoder, R2Plus1D, to_official
from avssl.weights import export_official, find_weights, load, read_checkpoint, weights_folder

GOLDEN = torch.load(Path(__file__).parent / "golden" / "avid.pt", weights_only=True)
N, DIM = 60, 16


def unit_vectors(seed: int, dim: int = DIM) -> torch.Tensor:
    values = torch.randn(N, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1)


def networks(depth: int = 10, width: int = 2, projection: tuple[int, ...] = (8, 8, DIM)) -> DualEncoder:
    return DualEncoder(R2Plus1D(depth, width), AudioConvNet(width), projection)


def official(positives: bool = False, encoders: DualEncoder | None = None, wrap: str = "module.") -> dict:
    """Content of a file as the release writes it, after one step of its Adam."""
    encoders = encoders or networks()
    optimizer = torch.optim.Adam(encoders.parameters(), lr=2e-4, weight_decay=1e-5)
    for parameter in encoders.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    criterion = dict(GOLDEN["tiny_avid_checkpoint"]["train_criterion"])
    if encoders.embedding_dim != DIM:
        criterion |= {f"nce_average.view{i}_mem": unit_vectors(i, encoders.embedding_dim) for i in (1, 2)}
    if positives:
        criterion["nce_average.positive_set"] = GOLDEN["cma_consensus"]["positive_set_refreshed"]
    model = {wrap + key: value for key, value in to_official(encoders.state_dict()).items()}
    return {"epoch": 20, "model": model, "optimizer": optimizer.state_dict(), "train_criterion": criterion}


@pytest.fixture
def write(tmp_path):
    def make(content, legacy: bool = False, name: str = "checkpoint.pth.tar") -> Path:
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        return tmp_path / name

    return make


def assert_same(one, other) -> None:
    """Equal containers, with equal tensors of equal dtype and shape."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


# ---- reading


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", ["module.", ""])
def test_an_official_avid_file_becomes_a_checkpoint_of_ours(write, legacy, wrap):
    content = official(wrap=wrap)
    state = read_checkpoint(write(content, legacy))
    criterion = content["train_criterion"]
    assert state["source"] == "official AVID"
    assert state["manifest_hash"] == ""
    assert state["position"] == {"epoch": 20}
    objective = build_objective(config_from_dict(state["config"], Config), N)
    objective.load_state_dict(state["objective"])
    assert torch.equal(objective.bank.video, criterion["nce_average.view1_mem"])
    assert torch.equal(objective.bank.audio, criterion["nce_average.view2_mem"])
    assert bool(objective.bank.seen.all())
    assert float(objective.partition.log_z.exp()) == pytest.approx(
        float(criterion["criterion.avg_exp_score"])
    )
    loaded = {f"{wrap}{key}": value for key, value in to_official(objective.encoders.state_dict()).items()}
    assert_same(loaded, content["model"])


def test_an_official_cma_file_brings_its_positive_sets(write):
    content = official(positives=True)
    state = read_checkpoint(write(content))
    assert state["source"] == "official CMA"
    config = config_from_dict(state["config"], Config)
    assert config.objective["name"] == "CMA"
    assert config.objective["num_positives"] == 4
    objective = build_objective(config, N)
    objective.load_state_dict(state["objective"])
    assert objective.positive_set.dtype == torch.int32
    assert torch.equal(objective.positive_set, content["train_criterion"]["nce_average.positive_set"])


def test_wrapped_criterion_and_a_scalar_constant_are_read_too(write):
    content = official()
    plain = content["train_criterion"]
    plain["criterion.avg_exp_score"] = torch.tensor(378.25)
    content["train_criterion"] = {f"module.{key}": value for key, value in plain.items()}
    state = read_checkpoint(write(content))
    assert torch.equal(state["objective"]["bank.video"], plain["nce_average.view1_mem"])
    assert float(state["objective"]["partition.log_z"]) == pytest.approx(math.log(378.25), rel=1e-12)


def test_tensors_saved_on_a_gpu_are_read_on_the_cpu(write, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    for legacy in (False, True):
        state = read_checkpoint(write(official(), legacy))
        assert all(value.device.type == "cpu" for value in state["objective"].values())


def test_a_constant_that_was_never_estimated_stays_unknown(write):
    content = official()
    content["train_criterion"]["criterion.avg_exp_score"] = torch.tensor([-1.0])
    path = write(content)
    assert read_checkpoint(path)["objective"]["partition.log_z"].isnan()
    assert load(path).log_z == []
    assert "Z            not estimated" in load(path).describe()


def test_weights_without_criterion_have_no_memories(write):
    content = official()
    del content["train_criterion"]
    model = load(write(content))
    assert model.memories is model.positive_set is None
    assert model.log_z == []
    assert "memories     none" in model.describe()


@pytest.mark.parametrize(
    ("depth", "width", "projection"), [(10, 8, (DIM,)), (18, 1, (8, 8, DIM)), (34, 1, (4, DIM))]
)
def test_architecture_is_read_off_the_weights(write, depth, width, projection):
    encoders = networks(depth, width, projection)
    model = load(write(official(encoders=encoders)))
    assert model.config.model.video == {"name": "R2Plus1D", "depth": depth, "width": width}
    assert model.config.model.audio == {"name": "AudioConvNet", "width": width}
    assert model.config.model.projection == projection
    assert_same(dict(model.encoders.state_dict()), dict(encoders.state_dict()))


def test_a_model_of_the_release_reads_in(write):
    case = GOLDEN["model_r2p1d10_linear"]
    content = official(encoders=networks(width=1, projection=(128,)))
    whole = {key: torch.int64 for key in case["keys"] if key.endswith("num_batches_tracked")}
    weights = {
        key: torch.rand(case["shapes"][key]).to(whole.get(key, torch.float32)) for key in case["shapes"]
    }
    content["model"] = {f"module.{key}": value for key, value in weights.items()}
    model = load(write(content, legacy=True))
    assert model.config.model.video == {"name": "R2Plus1D", "depth": 10, "width": 64}
    assert model.config.model.projection == (128,)
    assert_same(to_official(model.encoders.state_dict()), weights)


@pytest.mark.parametrize(
    ("variant", "size", "shape"), [("released", 224, (200, 257)), ("small", 112, (100, 129))]
)
def test_clip_format_is_the_paper_s(write, variant, size, shape):
    model = load(write(official()), variant)
    spectrogram = build_spectrogram(model.config)
    assert model.config.views.video["size"] == size
    assert spectrogram(torch.zeros(1, 1, 48000)).shape == (1, 1, *shape)
    assert spectrogram.pad_mode == "reflect"
    assert float(spectrogram.mean[0]) == -28.5
    assert float(spectrogram.std[0]) == pytest.approx(19.7)
    assert (model.config.data.num_frames, model.config.data.fps) == (8, 16)
    pooled = any(isinstance(layer, torch.nn.MaxPool3d) for layer in model.encoders.video.conv1)
    assert pooled == (variant == "released")
    assert model.encoders.audio.block1.conv1.stride == ((2, 2) if variant == "released" else (1, 1))


def test_another_variant_is_refused(write):
    with pytest.raises(ConfigError, match="variant is 'tiny'; must be one of released, small"):
        read_checkpoint(write(official()), "tiny")


def test_reading_draws_no_random_number(write):
    path = write(official())
    torch.manual_seed(3)
    read_checkpoint(path)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


# ---- what is refused


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_is_never_executed(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [write({"epoch": 1, "model": Malicious()}, legacy, f"{legacy}.tar") for legacy in (False, True)]
    (tmp_path / "plain.tar").write_bytes(pickle.dumps({"model": Malicious()}, protocol=2))
    for path in [*paths, tmp_path / "plain.tar"]:
        with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
            read_checkpoint(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_cut_short_is_damaged(write, legacy):
    path = write(official(), legacy)
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.3, 0.7, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CheckpointError, match=f"{path.name}: "):
            read_checkpoint(path)


def drop(part: str, key: str):
    return lambda content: content[part].pop(key)


def put(part: str, key: str, value):
    return lambda content: content[part].update({key: value})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("model", "module.video_model.conv1.0.weight"), r"missing: video_model\.conv1\.0\.weight"),
        (drop("model", "module.audio_model.block3.bn2.bias"), r"missing: audio_model\.block3\.bn2\.bias"),
        (drop("model", "module.video_proj.projection.0.weight"), r"heads give \(8, 16\) .* and \(8, 8, 16\)"),
        (put("model", "module.fc.weight", torch.zeros(2, 2)), r"unexpected: fc\.weight"),
        (put("model", "module.video_model.conv5x.spt_bn1.bias", torch.zeros(3)), r"bn1\.bias \(3,\) where"),
        (put("model", "module.audio_model.conv1.0.weight", torch.zeros(3)), r"weight \(3,\) where 4"),
        (put("model", "module.video_model.conv3x.7.bias", torch.zeros(3)), r"has \(1, 2, 1, 1\) blocks"),
        (put("model", "module.video_model.conv1.0.weight", 3), r"without a tensor: module\.video_model"),
        (drop("train_criterion", "nce_average.view2_mem"), r"missing: nce_average\.view2_mem"),
        (drop("train_criterion", "criterion.avg_exp_score"), r"missing: criterion\.avg_exp_score"),
        (put("train_criterion", "queue", torch.zeros(1)), r"unexpected: queue"),
        (put("train_criterion", "nce_average.view1_mem", torch.zeros(N, 3)), r"view1_mem \(60, 3\)"),
        (put("train_criterion", "nce_average.view2_mem", torch.zeros(7, DIM)), r"view2_mem \(7, 16\)"),
        (put("train_criterion", "nce_average.positive_set", torch.zeros(N).int()), r"positive_set \(60,\)"),
        (put("train_criterion", "nce_average.positive_set", torch.full((N, 2), N)), r"from 60 to 60; must"),
        (put("train_criterion", "criterion.avg_exp_score", torch.ones(2)), r"avg_exp_score \(2,\)"),
        (lambda content: content.update(epoch="last"), r"epoch is 'last'"),
        (lambda content: content.update(train_criterion=[1]), r"train_criterion is a list"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(write, spoil, message):
    content = official()
    spoil(content)
    path = write(content)
    with pytest.raises(CheckpointError, match=f"checkpoint.pth.tar: .*{message}"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 1, "state_dict": {}, "optimizer": {}}, "a finetuned classifier .* without sound"),
        ({"weights": {}}, "not a checkpoint of avssl, .* it has 'weights'"),
        ({}, "it has nothing"),
        ([1, 2], "holds a list; must be the dictionary"),
    ],
)
def test_other_files_are_told_what_they_are(write, content, message):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(write(content))


# ---- writing


@pytest.mark.parametrize("positives", [False, True], ids=["AVID", "CMA"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_official_to_ours_to_official_changes_nothing(write, tmp_path, positives, shape):
    content = official(positives)
    # Hard for exp(log Z): every float32 must come back exactly.
    content["train_criterion"]["criterion.avg_exp_score"] = torch.tensor(378.22833).reshape(shape)
    state = read_checkpoint(write(content))
    save_checkpoint(tmp_path / "ours.pt", state)
    assert export_official(load_checkpoint(tmp_path / "ours.pt"), tmp_path / "back.pth.tar") == []
    assert_same(torch.load(tmp_path / "back.pth.tar", weights_only=True), content)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.pth.tar", "checkpoint.pth.tar", "ours.pt"]


def test_every_constant_comes_back_exactly(write, tmp_path):
    content = official()
    constants = torch.rand(50, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(50).sub(25)
    state = read_checkpoint(write(content))
    for z in constants:
        state["objective"]["partition.log_z"] = z.double().log()
        export_official(state, tmp_path / "back.pth.tar")
        back = torch.load(tmp_path / "back.pth.tar", weights_only=True)
        assert back["train_criterion"]["criterion.avg_exp_score"].item() == z.item()


def test_an_exported_file_is_stored_as_before_pytorch_1_6(write, tmp_path):
    export_official(read_checkpoint(write(official())), tmp_path / "old.pth.tar")
    assert not (tmp_path / "old.pth.tar").read_bytes().startswith(b"PK")


def ours(config: ModelConfig | None = None, **objective) -> dict:
    """State of a run of this package that has not trained."""
    sections = {"name": "AVID", "num_negatives": 4} | objective
    model = config or ModelConfig(
        {"name": "R2Plus1D", "depth": 10, "width": 2}, {"name": "AudioConvNet", "width": 2}, (8, DIM)
    )
    config = Config(model=model, objective=sections)
    return {
        "avssl_version": avssl.__version__,
        "objective": build_objective(config, N).state_dict(),
        "optimizer": {},
        "position": {"step": 7, "epoch": 3, "batch": 0},
        "config": config_to_dict(config),
        "manifest_hash": "ab",
    }


def test_a_run_of_ours_is_exported_and_the_losses_are_named(tmp_path):
    state = ours(name="CMA", num_positives=2)
    for key in ("bank.video", "bank.audio"):
        state["objective"][key] = state["objective"][key].half()  # as a bank of short floats has them
    notes = export_official(state, tmp_path / "out.pth.tar")
    assert len(notes) == 4
    assert notes[0].startswith("the optimiser's state")
    assert "a mark on the 60 memories of files that were never read" in notes[1]
    assert notes[2].startswith("positive sets")
    assert notes[3].startswith("the recipe")
    back = torch.load(tmp_path / "out.pth.tar", weights_only=True)
    assert list(back) == ["epoch", "model", "optimizer", "train_criterion"]
    assert back["epoch"] == 3
    assert back["optimizer"] == {}
    assert all(key.startswith(("module.video_", "module.audio_")) for key in back["model"])
    assert back["train_criterion"]["criterion.avg_exp_score"].item() == -1
    memory = back["train_criterion"]["nce_average.view1_mem"]
    assert memory.dtype == torch.float32
    assert torch.equal(memory, state["objective"]["bank.video"].float())


def test_adam_over_all_weights_is_exported_and_others_are_not(write, tmp_path):
    state = read_checkpoint(write(official()))
    state["config"]["optim"]["name"] = "adamw"
    assert any("optimiser" in note for note in export_official(state, tmp_path / "a.tar"))
    state["config"]["optim"]["name"] = "adam"
    state["optimizer"]["param_groups"][0]["params"].pop()
    assert any("optimiser" in note for note in export_official(state, tmp_path / "b.tar"))
    assert torch.load(tmp_path / "b.tar", weights_only=True)["optimizer"] == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"batch_norm": True}, "model.batch_norm is true; the release's heads have none"),
        ({"video": {"name": "TorchvisionVideo"}}, "model.video.name is 'TorchvisionVideo'; must be R2Plus1D"),
        ({"audio": {"name": "ResNetAudio"}}, "model.audio.name is 'ResNetAudio'; must be AudioConvNet"),
    ],
)
def test_networks_the_release_cannot_build_are_refused(tmp_path, change, reason):
    state = ours()
    state["config"]["model"] |= change
    with pytest.raises(CheckpointError, match=reason):
        export_official(state, tmp_path / "out.pth.tar")
    assert list(tmp_path.iterdir()) == []


# ---- the Python interface and names


def test_a_run_of_ours_loads_from_folder_and_file(tmp_path):
    state = ours()
    save_checkpoint(tmp_path / "run" / "checkpoint.pt", state)
    for place in (tmp_path / "run", str(tmp_path / "run" / "checkpoint.pt")):
        model = avssl.load(place)
        assert model.source == f"avssl {avssl.__version__}"
        assert model.epoch == 3
        assert not model.encoders.training
        assert torch.equal(model.memories.audio, state["objective"]["bank.audio"])
        assert model.positive_set is None
    expected = build_encoders(model.config.model).state_dict().keys()
    assert model.encoders.state_dict().keys() == expected


def test_an_official_file_loads_and_describes_itself(write):
    model = avssl.load(write(official(positives=True)))
    z = float(GOLDEN["tiny_avid_checkpoint"]["train_criterion"]["criterion.avg_exp_score"])
    assert model.log_z == pytest.approx([math.log(z)])
    assert model.positive_set.shape == (N, 4)
    number = sum(parameter.numel() for parameter in networks().parameters())
    lines = "\n".join(model.describe())
    for text in (
        "source       official CMA, 20 epochs", f"parameters   {number:,}", "heads        8-8-16\n",
        "R2Plus1D, depth 10, width 2, ", "memories     60 x 16 for", f"Z            {z:.6g}\n",
        "positives    4 an instance", "8 of 224 pixels, 16 a second", "2 s at 24,000 Hz",
        "200 x 257 paired bins, n_fft 1024",
    ):  # fmt: skip
        assert text in lines


def test_published_weights_are_found_by_name(write, tmp_path, monkeypatch):
    monkeypatch.setenv("AVSSL_WEIGHTS", str(tmp_path / "store"))
    place = tmp_path / "store" / "avid-kinetics400" / "checkpoint.pth.tar"
    with pytest.raises(CheckpointError) as error:
        load("avid-kinetics400")
    assert f"put it at {place}" in str(error.value)
    assert "checkpoints/AVID/Kinetics/.../checkpoint.pth.tar" in str(error.value)
    place.parent.mkdir(parents=True)
    write(official()).rename(place)
    assert load("avid-kinetics400").source == "official AVID"
    assert find_weights(place.parent) == place


def test_without_the_variable_weights_are_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("AVSSL_WEIGHTS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_folder() == tmp_path / ".cache" / "avssl" / "weights"


def test_a_wrong_name_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(CheckpointError, match="did you mean 'avid-audioset'"):
        find_weights("avid-audiosets")
    with pytest.raises(CheckpointError, match=r"no such checkpoint; .* names are avid-kinetics400, "):
        find_weights("nowhere/x.tar")
    with pytest.raises(
        CheckpointError, match=r"a folder without a checkpoint; give one that holds checkpoint\.pt"
    ):
        find_weights(tmp_path)


def test_cma_starts_from_official_avid(write):
    state = read_checkpoint(write(official()))
    config = config_from_dict(state["config"], Config)
    config.objective = {"name": "CMA", "num_positives": 3, "partition": "first_batch"}
    objective = build_objective(config, N)
    objective.start_from(state["objective"])
    assert torch.equal(objective.bank.video, state["objective"]["bank.video"])
    assert float(objective.partition.log_z) == pytest.approx(float(state["objective"]["partition.log_z"]))
    objective.before_epoch(0)
    assert int(objective.positive_set.min()) >= 0


def test_the_package_imports_nothing_until_weights_are_loaded():
    code = (
        "import sys, avssl; assert avssl.__version__; print('torch' in sys.modules); "
        "print(avssl.load.__module__, 'torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.split() == ["False", "avssl.weights.reading", "True"]
    with pytest.raises(AttributeError, match="module 'avssl' has no attribute 'lode'"):
        _ = avssl.lode
