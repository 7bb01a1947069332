from __future__ import annotations

import pytest
import torch
from torch import nn

from avssl.errors import ConfigError
from avssl.models import AudioConvNet, DualEncoder, ProjectionHead, R2Plus1D
from avssl.types import Encoder


@pytest.fixture
def small() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(R2Plus1D(10, width=2), AudioConvNet(width=3), projection=(12, 6))


def test_official_head_has_the_official_keys_and_parameters():
    head = ProjectionHead(512)
    assert sum(p.numel() for p in head.parameters()) == 590_976
    assert list(head.state_dict()) == [f"projection.{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")]
    assert head.dim == 128


def test_one_length_is_one_linear_layer():
    head = ProjectionHead(4, dims=[3])
    x = torch.randn(5, 4)
    torch.testing.assert_close(head(x), x @ head.projection[0].weight.T + head.projection[0].bias)
    assert len(head.projection) == 1


def test_head_is_linear_relu_linear_against_float64():
    head = ProjectionHead(4, dims=(6, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    first, _, second = head.projection
    hidden = torch.clamp(x @ first.weight.T + first.bias, min=0)
    torch.testing.assert_close(head(x), hidden @ second.weight.T + second.bias)


def test_batch_norm_follows_every_linear_and_replaces_its_bias():
    layers = list(ProjectionHead(8, dims=(6, 4), batch_norm=True).projection)
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert [type(layer) for layer in layers] == kinds
    assert layers[0].bias is None
    assert layers[3].bias is None
    assert (layers[1].affine, layers[4].affine) == (True, False)


def test_batch_norm_head_takes_embeddings_out_of_a_cone():
    torch.manual_seed(0)
    features = 5 + 0.1 * torch.randn(64, 32)  # all point the same way, as max pooled ReLU features do
    plain = nn.functional.normalize(ProjectionHead(32, (16, 8))(features))
    centred = ProjectionHead(32, (16, 8), batch_norm=True)(features)
    assert plain.mean(0).norm() > 0.9
    assert nn.functional.normalize(centred).mean(0).norm() < 0.2
    torch.testing.assert_close(centred.mean(0), torch.zeros(8), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dims", [(), (8, 0), (-1,)])
def test_impossible_head_is_refused(dims):
    with pytest.raises(ConfigError, match="output lengths") as error:
        ProjectionHead(8, dims)
    assert str(dims) in str(error.value)


def test_official_model_has_the_official_size():
    with torch.device("meta"):
        model = DualEncoder.official()
    assert sum(p.numel() for p in model.parameters()) == 21_286_784
    assert len(model.state_dict()) == 267
    assert model.embedding_dim == 128


def test_forward_gives_embeddings_that_are_not_normalised(small):
    z_video, z_audio = small.eval()(torch.randn(4, 3, 2, 16, 16), torch.randn(4, 1, 20, 16))
    assert z_video.shape == z_audio.shape == (4, small.embedding_dim) == (4, 6)
    assert not torch.allclose(z_video.norm(dim=1), torch.ones(4), atol=1e-2)


def test_embeddings_are_the_normalised_output(small):
    video, audio = torch.randn(4, 3, 2, 16, 16), torch.randn(4, 1, 20, 16)
    z_video, z_audio = small.eval()(video, audio)
    torch.testing.assert_close(small.embed_video(video), z_video / z_video.norm(dim=1, keepdim=True))
    torch.testing.assert_close(small.embed_audio(audio), z_audio / z_audio.norm(dim=1, keepdim=True))


def test_embeddings_are_float32_unit_vectors_under_autocast(small):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = small.eval().embed_audio(torch.randn(4, 1, 20, 16))
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


def test_tiny_model_trains_every_parameter():
    model = DualEncoder.tiny()
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    z_video, z_audio = model(torch.randn(4, 3, 4, 32, 32), torch.randn(4, 1, 40, 32))
    assert z_video.shape == z_audio.shape == (4, 64)
    (z_video * z_audio).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_encoders_meet_the_protocol(small):
    assert isinstance(small.video, Encoder)
    assert isinstance(small.audio, Encoder)


@pytest.mark.parametrize("dim", [None, "512"])
def test_encoder_without_a_dim_is_refused(dim):
    encoder = nn.Flatten()
    if dim is not None:
        encoder.dim = dim
    with pytest.raises(ConfigError, match=r"audio encoder Flatten must have an int attribute `dim`"):
        DualEncoder(R2Plus1D(10, width=1), encoder)
    with pytest.raises(ConfigError, match=r"video encoder Flatten"):
        DualEncoder(encoder, AudioConvNet(width=1))
