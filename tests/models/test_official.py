from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch

from avssl.errors import CheckpointError
from avssl.models import (
    AudioConvNet,
    DualEncoder,
    R2Plus1D,
    from_official,
    load_official_model,
    to_official,
)
from avssl.models.official import OfficialArchitecture, infer_architecture

GOLDEN = Path(__file__).parents[1] / "golden" / "avid.pt"


def small() -> DualEncoder:
    return DualEncoder(R2Plus1D(10, width=2), AudioConvNet(width=2), projection=(8, 8, 4))


def golden_weight(key: str, shape: list[int]) -> torch.Tensor:
    """Tensor that a generator seeded with the checksum of its name fills, so that no weights need storing."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_var"):
        return torch.rand(shape, generator=generator) + 0.5
    if key.endswith("running_mean"):
        return 0.1 * torch.randn(shape, generator=generator)
    if len(shape) == 1:
        if "bn" in key or ".1." in key:
            if key.endswith("weight"):
                return torch.rand(shape, generator=generator) + 0.5
            return 0.1 * torch.randn(shape, generator=generator)
        return 0.05 * torch.randn(shape, generator=generator)
    values = torch.randn(shape, generator=generator)
    return values * (2 / values[0].numel()) ** 0.5


@pytest.fixture(scope="module")
def golden() -> dict:
    return torch.load(GOLDEN, weights_only=True)["model_r2p1d10_linear"]


@pytest.fixture(scope="module")
def golden_model(golden) -> DualEncoder:
    model = DualEncoder(R2Plus1D(10), AudioConvNet(), projection=(128,)).eval()
    shapes = golden["shapes"]
    load_official_model(model, {f"module.{key}": golden_weight(key, shapes[key]) for key in golden["keys"]})
    return model


@pytest.fixture(scope="module")
def golden_inputs(golden) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(golden["input_seed"])
    video = torch.randn(golden["video_shape"], generator=generator)
    return video, torch.randn(golden["audio_shape"], generator=generator)


def test_embeddings_equal_those_of_the_official_model(golden, golden_model, golden_inputs):
    with torch.inference_mode():
        z_video, z_audio = golden_model(*golden_inputs)
    torch.testing.assert_close(z_video, golden["video_emb"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(z_audio, golden["audio_emb"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("modality", [0, 1], ids=["video", "audio"])
def test_feature_maps_equal_those_of_the_official_model(golden, golden_model, golden_inputs, modality):
    name, encoder = [("video", golden_model.video), ("audio", golden_model.audio)][modality]
    with torch.inference_mode():
        maps = encoder.feature_maps(golden_inputs[modality])
    means = {key: tensor.mean().item() for key, tensor in maps.items()}
    assert means == pytest.approx(golden[f"{name}_feat_means"], rel=1e-5)
    torch.testing.assert_close(maps["pool"], golden[f"{name}_pool"], rtol=1e-4, atol=1e-4)


def test_official_names_cover_the_whole_official_model(golden, golden_model):
    assert set(to_official(golden_model.state_dict())) == set(golden["keys"])


def test_deep_official_model_has_numbered_blocks_and_heads():
    with torch.device("meta"):
        keys = set(to_official(DualEncoder.official().state_dict()))
    assert len(keys) == 267
    assert {
        "video_model.conv1.0.weight",
        "video_model.conv5x.1.tmp_conv2.weight",
        "audio_model.block4.bn2.running_var",
        "video_proj.projection.4.bias",
        "audio_proj.projection.2.weight",
    } <= keys


@pytest.mark.parametrize("prefix", ["", "module."])
def test_round_trip_loses_nothing(prefix):
    before = small().state_dict()
    official = {prefix + key: tensor for key, tensor in to_official(before).items()}
    after = from_official(official)
    assert list(after) == list(before)
    assert all(after[key] is before[key] for key in before)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("depth", "projection"), [(10, (4,)), (18, (8, 8, 4)), (34, (8, 4)), (10, tuple(range(1, 8)))]
)
def test_architecture_is_read_off_the_keys(prefix, depth, projection):
    model = DualEncoder(R2Plus1D(depth, width=3), AudioConvNet(width=2), projection)
    weights = {prefix + key: tensor for key, tensor in to_official(model.state_dict()).items()}
    assert infer_architecture(weights) == OfficialArchitecture(depth, 3, 2, projection)


def test_architecture_of_the_official_model_is_read_off_its_keys(golden):
    weights = {key: torch.empty(shape, device="meta") for key, shape in golden["shapes"].items()}
    assert infer_architecture(weights) == OfficialArchitecture(10, 64, 64, (128,))


def test_weights_that_tell_no_architecture_are_refused():
    weights = to_official(small().state_dict())
    with pytest.raises(
        CheckpointError, match=r"has \(1, 1, 1, 0\) blocks in conv2x, .* must be one of \(1, 1"
    ):
        infer_architecture({key: value for key, value in weights.items() if ".conv5x." not in key})
    with pytest.raises(CheckpointError, match=r"1 key\(s\) missing: audio_model\.conv1\.0\.weight; give"):
        infer_architecture({key: v for key, v in weights.items() if not key.startswith("audio_model.")})
    with pytest.raises(CheckpointError, match=r"missing: video_proj\.projection\.0\.weight"):
        infer_architecture({key: v for key, v in weights.items() if not key.startswith("video_proj.")})


def test_loading_copies_every_weight():
    torch.manual_seed(0)
    source, target = small(), small()
    load_official_model(target, to_official(source.state_dict()))
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[key]), key


def test_misfit_is_described_and_leaves_the_model_alone():
    model = small()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    weights = to_official(small().state_dict())
    for key in [key for key in weights if key.startswith("audio_proj.")]:
        del weights[key]
    weights["fc.weight"] = torch.zeros(3)
    weights["video_proj.projection.4.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError) as error:
        load_official_model(model, weights)
    message = str(error.value)
    assert "6 key(s) missing: audio_proj.projection.0.weight, audio_proj.projection.0.bias, " in message
    assert "audio_proj.projection.4.bias" not in message  # only the first few are shown
    assert "1 key(s) unexpected: fc.weight" in message
    assert "1 key(s) of another shape: video_proj.projection.4.bias (7,) where the model has (4,)" in message
    assert "DualEncoder.official()" in message
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_another_depth_is_refused():
    deep = DualEncoder(R2Plus1D(18, width=2), AudioConvNet(width=2), projection=(8, 8, 4))
    with pytest.raises(CheckpointError, match=r"key\(s\) missing: .*key\(s\) unexpected: "):
        load_official_model(small(), to_official(deep.state_dict()))


def test_whole_checkpoint_is_recognised():
    checkpoint = {"epoch": 3, "model": to_official(small().state_dict())}
    with pytest.raises(CheckpointError, match=r"pass checkpoint\['model'\]"):
        load_official_model(small(), checkpoint)


@pytest.mark.parametrize("rename", [to_official, from_official])
def test_unknown_keys_cannot_be_renamed(rename):
    with pytest.raises(CheckpointError, match=r"1 key\(s\) that cannot be renamed: bank; .*nothing else"):
        rename({"bank": torch.zeros(1)})
