import math
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from avssl.errors import ConfigError, ManifestError
from avssl.transforms import AudioAugment, LogSpectrogram, spectrogram_statistics
from avssl.transforms.power import pair_at_once, paired_power

GOLDEN = Path(__file__).parents[1] / "golden" / "avid.pt"


def sound(num_clips: int = 3, num_samples: int = 48000, seed: int = 0) -> Tensor:
    """Noise with a few tones and a fade, (B, 1, samples)."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(num_samples) / 24000
    tones = sum(0.1 * torch.sin(2 * math.pi * f * time) for f in (110.0, 1234.0, 7000.0))
    noise = torch.randn(num_clips, 1, num_samples, generator=generator)
    return tones + 0.05 * noise * torch.linspace(0, 1, num_samples)


def reference_decibels(waveform: Tensor, n_fft: int, hop: int, bins: str, top_db: float) -> np.ndarray:
    """(frames, bins) of one waveform in float64 through librosa's default centred transform."""
    spectrum = librosa.stft(waveform.double().numpy(), n_fft=n_fft, hop_length=hop, window="hann")
    power = (np.abs(spectrum) ** 2).T[: round(len(waveform) / hop)]
    if bins == "paired":
        power = np.concatenate([power[:, :1], (power[:, 1::2] + power[:, 2::2]) / 2], axis=1)
    if bins == "mel":
        power = power @ librosa.filters.mel(sr=24000, n_fft=n_fft, n_mels=64).T
    return librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=top_db)


def test_spectrogram_equals_the_official_small_front_end() -> None:
    golden = torch.load(GOLDEN, weights_only=True)["audio_small"]
    spectrogram = LogSpectrogram(24000, 512, 0.02, mean=golden["mean"], std=golden["std"])
    result = spectrogram(golden["mono"].unsqueeze(0))
    assert result.shape == (1, 1, 100, 129)
    torch.testing.assert_close(result[0], golden["spec"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bins, num_bins", [("paired", 257), ("linear", 513), ("mel", 64)])
@pytest.mark.parametrize("top_db", [100.0, 40.0])
def test_spectrogram_equals_librosa(bins: str, num_bins: int, top_db: float) -> None:
    waveform = sound()
    spectrogram = LogSpectrogram(bins=bins, top_db=top_db)
    result = spectrogram(waveform)
    assert result.shape == (3, 1, 200, num_bins)
    assert spectrogram.num_bins == num_bins
    for clip, db in zip(waveform, result, strict=True):
        expected = reference_decibels(clip[0], 1024, 240, bins, top_db)
        torch.testing.assert_close(db[0].double(), torch.from_numpy(expected), rtol=0, atol=2e-2)
        assert float((db[0].double() - torch.from_numpy(expected)).abs().mean()) < 1e-4


def official_in_float64(waveform: np.ndarray, n_fft: int, hop: int, pad_mode: str) -> np.ndarray:
    """(frames, 1 + n_fft / 4) decibels of the official front end from nothing but the discrete transform."""
    padded = np.pad(waveform, n_fft // 2, mode=pad_mode)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = np.stack([padded[i * hop : i * hop + n_fft] for i in range(len(waveform) // hop)])
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    power = np.concatenate([power[:, :1], power[:, 1:].reshape(len(power), -1, 2).mean(-1)], axis=1)
    decibels = 10 * np.log10(np.maximum(power, 1e-10))
    return np.maximum(decibels, decibels.max() - 100)


@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
@pytest.mark.parametrize(
    "n_fft, hop_seconds, frames, bins", [(1024, 0.01, 200, 257), (512, 0.02, 100, 129)], ids=["257", "129"]
)
def test_official_front_end_equals_float64(
    n_fft: int, hop_seconds: float, frames: int, bins: int, pad_mode: str
) -> None:
    rng = np.random.default_rng(0)
    mean, std = rng.uniform(-60, -10, bins), rng.uniform(5, 25, bins)
    waveform = sound()
    spectrogram = LogSpectrogram(24000, n_fft, hop_seconds, mean=mean, std=std, pad_mode=pad_mode)
    result = spectrogram(waveform)
    assert result.shape == (3, 1, frames, bins)
    for clip, view in zip(waveform.double().numpy(), result, strict=True):
        decibels = official_in_float64(clip[0], n_fft, round(24000 * hop_seconds), pad_mode)
        expected = torch.from_numpy((decibels - mean) / (std + 1e-5))
        torch.testing.assert_close(view[0].double(), expected, rtol=0, atol=2e-3)
        assert float((view[0].double() - expected).abs().mean()) < 1e-5


def test_accelerators_and_processors_pair_alike() -> None:
    spectrum = torch.fft.rfft(torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(paired_power(spectrum), pair_at_once(spectrum))


def test_padding_changes_only_the_frames_at_the_ends() -> None:
    waveform = sound(1)
    zeros, mirrored = LogSpectrogram()(waveform), LogSpectrogram(pad_mode="reflect")(waveform)
    differing = (zeros != mirrored).any(-1).flatten().nonzero().flatten()
    assert differing.tolist() == [0, 1, 2, 198, 199]
    spectrum = librosa.stft(waveform[0, 0].double().numpy(), n_fft=1024, hop_length=240, pad_mode="reflect")
    constant = np.abs(spectrum[0]) ** 2
    expected = torch.from_numpy(10 * np.log10(constant[:200]))
    torch.testing.assert_close(mirrored[0, 0, :, 0].double(), expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    "num_samples, frames", [(48000, 200), (24000, 100), (47900, 200), (600, 2), (24120, 100)]
)
def test_number_of_frames_is_duration_over_hop(num_samples: int, frames: int) -> None:
    spectrogram = LogSpectrogram()
    assert spectrogram(sound(1, num_samples)).shape[2] == frames == spectrogram.num_frames(num_samples)


def test_loudest_point_of_its_own_clip_sets_the_floor() -> None:
    waveform = sound(2)
    waveform[1] *= 1e-3
    db = LogSpectrogram(top_db=30.0)(waveform)
    assert torch.allclose(db.amin((1, 2, 3)), db.amax((1, 2, 3)) - 30)
    torch.testing.assert_close(db[1].max(), db[0].max() - 60, rtol=0, atol=2.0)


def test_silence_is_finite() -> None:
    silence = torch.zeros(2, 1, 4800)
    assert torch.equal(LogSpectrogram()(silence), torch.full((2, 1, 20, 257), -100.0))
    assert LogSpectrogram(mean=0.0, std=0.0)(silence).isfinite().all()


@pytest.mark.parametrize("as_type", [torch.tensor, list, np.array])
def test_statistics_normalise_each_bin(as_type: type) -> None:
    mean, std = np.linspace(-50, -10, 129).tolist(), np.linspace(5, 25, 129).tolist()
    waveform = sound(2)
    plain = LogSpectrogram(n_fft=512)(waveform)
    normalised = LogSpectrogram(n_fft=512, mean=as_type(mean), std=as_type(std))(waveform)
    expected = (plain - torch.tensor(mean)) / (torch.tensor(std) + 1e-5)
    torch.testing.assert_close(normalised, expected)
    scalar = LogSpectrogram(n_fft=512, mean=-28.5, std=19.7)(waveform)
    torch.testing.assert_close(scalar, (plain + 28.5) / 19.70001)


def test_statistics_travel_in_the_state_dict() -> None:
    source = LogSpectrogram(mean=-20.0, std=7.0)
    target = LogSpectrogram(mean=0.0, std=1.0)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.mean, torch.full((257,), -20.0))
    assert torch.equal(target(sound(1)), source(sound(1)))


def test_autocast_and_half_input_keep_float32() -> None:
    waveform = sound(1)
    spectrogram = LogSpectrogram(bins="mel")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = spectrogram(waveform)
    assert result.dtype == torch.float32
    assert torch.equal(result, spectrogram(waveform))
    assert spectrogram(waveform.half()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(48000,), (1, 48000), (2, 2, 48000)])
def test_waveform_of_the_wrong_rank_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, 1, samples\)"):
        LogSpectrogram()(torch.zeros(shape))


def test_short_waveform_is_named_with_the_limit() -> None:
    assert LogSpectrogram()(torch.zeros(1, 1, 513)).shape == (1, 1, 2, 257)
    with pytest.raises(ConfigError, match=r"512 samples .* at least 513 for n_fft 1024; use longer clips"):
        LogSpectrogram()(torch.zeros(1, 1, 512))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mean": [0.0] * 129, "std": [1.0] * 129}, r"mean has shape \(129,\); must be one number or 257"),
        ({"mean": 0.0, "std": torch.ones(1, 257)}, r"std has shape \(1, 257\)"),
        ({"mean": 0.0}, "only one of the spectrogram's mean and std"),
        ({"mean": float("nan"), "std": 1.0}, "mean holds a value that is not finite"),
        ({"mean": 0.0, "std": -1.0}, "std has the value -1"),
        ({"bins": "bark"}, "bins is 'bark'; must be one of paired, linear, mel"),
        ({"pad_mode": "zero"}, "pad_mode is 'zero'; must be one of constant, reflect"),
        ({"n_fft": 1022}, "n_fft is 1022; must be a multiple of 4"),
        ({"n_fft": 0}, "n_fft is 0; must be above 0"),
        ({"top_db": -1.0}, "top_db is -1.0"),
        ({"sample_rate": 22050}, r"220.5 samples at 22050 Hz; .* use 0.00997732"),
        ({"hop_seconds": 1e-9}, "at least 1"),
        ({"bins": "mel", "n_fft": 256, "num_mels": 128}, r"of num_mels 128 filters hold no frequency"),
    ],
)
def test_impossible_parameters_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LogSpectrogram(**options)


def test_hop_proposed_for_an_odd_rate_is_accepted() -> None:
    assert LogSpectrogram(22050, hop_seconds=0.00997732).hop_length == 220


def test_gain_is_one_number_a_clip_in_its_range() -> None:
    waveform = torch.rand(500, 1, 16) + 0.5
    scaled = AudioAugment(0.1)(waveform, torch.Generator().manual_seed(0))
    gain = scaled / waveform
    torch.testing.assert_close(gain, gain[..., :1].expand_as(gain))
    gain = gain[:, 0, 0]
    assert 0.9 <= float(gain.min()) < 0.905
    assert 1.095 < float(gain.max()) <= 1.1
    assert float(gain.mean()) == pytest.approx(1.0, abs=0.01)
    assert torch.equal(scaled, AudioAugment(0.1)(waveform, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("gain", [-0.1, 1.0, float("nan")])
def test_impossible_gain_is_refused(gain: float) -> None:
    with pytest.raises(ConfigError, match=f"gain is {gain}"):
        AudioAugment(gain)


def test_statistics_equal_numpy_over_all_frames() -> None:
    batches = [sound(2, 4800, seed=1), sound(3, 2400, seed=2), sound(1, 9600, seed=3)]
    spectrogram = LogSpectrogram(n_fft=512, mean=-3.0, std=2.0)
    mean, std = spectrogram_statistics(spectrogram, iter(batches))
    plain = LogSpectrogram(n_fft=512)
    frames = np.concatenate([plain(batch).double().numpy().reshape(-1, 129) for batch in batches])
    assert mean.dtype == std.dtype == torch.float64
    np.testing.assert_allclose(mean.numpy(), frames.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std.numpy(), frames.std(0), rtol=1e-9)


def test_statistics_make_the_result_standard() -> None:
    waveform = sound(8, 24000)
    mean, std = spectrogram_statistics(LogSpectrogram(), [waveform])
    normalised = LogSpectrogram(mean=mean, std=std)(waveform).flatten(0, 2)
    assert float(normalised.mean(0).abs().max()) < 1e-3
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(257), rtol=1e-3, atol=0)


def test_statistics_without_waveforms_are_refused() -> None:
    with pytest.raises(ManifestError, match="got none; select rows with audio"):
        spectrogram_statistics(LogSpectrogram(), [])
