"""Waveforms to log-spectrograms, the audio front end of AVID (Morgado et al., 2021).

Short-time Fourier transform with a centred Hann window, power, frequencies joined to bins, decibels limited
to `top_db` below the loudest point of the clip, and normalisation a bin.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl.errors import ConfigError, ManifestError
from avssl.transforms.draws import uniform
from avssl.transforms.power import paired_power

Bins = Literal["paired", "linear", "mel"]
PadMode = Literal["constant", "reflect"]
MIN_POWER = 1e-10
STD_EPSILON = 1e-5


def mel_filters(sample_rate: int, n_fft: int, num_mels: int) -> Tensor:
    """Triangular filters equally spaced in mel up to half the sample rate (Slaney's scale and norm).

    Returns
    -------
    Tensor, (1 + n_fft / 2, num_mels), float32

    Raises
    ------
    ConfigError
        When a filter is so narrow that no frequency of the transform falls into it.
    """
    from torchaudio.functional import melscale_fbanks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchaudio warns of empty filters, which are refused below
        filters = melscale_fbanks(
            1 + n_fft // 2, 0.0, sample_rate / 2, num_mels, sample_rate, norm="slaney", mel_scale="slaney"
        )
    num_empty = int((filters.sum(0) == 0).sum())
    if num_empty:
        raise ConfigError(
            f"{num_empty} of num_mels {num_mels} filters hold no frequency of an n_fft {n_fft} transform at "
            f"{sample_rate} Hz; every filter must hold one; lower num_mels or raise n_fft"
        )
    return filters


class LogSpectrogram(nn.Module):
    """Log-power spectrogram of mono waveforms.

    Parameters
    ----------
    sample_rate : int > 0
        Samples a second of the waveforms, in hertz.
    n_fft : int, multiple of 4
        Length of the Hann window and of the transform, in samples.
    hop_seconds : float > 0
        Time between frames; a whole number of samples.
    bins : "paired", "linear" or "mel"
        "paired": the constant term, then the mean power of neighbouring pairs: 1 + n_fft/4 bins (official:
        257 for n_fft 1024); "linear": all 1 + n_fft/2 frequencies; "mel": `num_mels` mel bands.
    num_mels : int >= 1
        Number of bands with ``bins="mel"``.
    top_db : float > 0
        Points further than this below the loudest point of their clip are raised to that level, in decibels.
    mean, std : Tensor, sequence of `num_bins` floats, float or None
        The result is ``(decibels - mean) / (std + 1e-5)``; a single number serves all bins, None for both
        leaves decibels. See `spectrogram_statistics`. They are part of the state_dict.
    pad_mode : "constant" or "reflect"
        What lies beyond both ends, within half a window: zeros, as librosa has it since 0.9, or the clip
        mirrored, as in 2020 when the official networks were trained. Only there do they differ.

    Attributes
    ----------
    num_bins : int
        Length of the last axis of the result.
    hop_length : int
        Samples between frames.

    Raises
    ------
    ConfigError
        For a parameter outside its range, or statistics whose length is not `num_bins`.
    """

    window: Tensor
    filters: Tensor | None
    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        sample_rate: int = 24000,
        n_fft: int = 1024,
        hop_seconds: float = 0.01,
        bins: Bins = "paired",
        num_mels: int = 64,
        top_db: float = 100.0,
        mean: Tensor | Sequence[float] | float | None = None,
        std: Tensor | Sequence[float] | float | None = None,
        pad_mode: PadMode = "constant",
    ) -> None:
        super().__init__()
        _check_positive(
            sample_rate=sample_rate, n_fft=n_fft, hop_seconds=hop_seconds, num_mels=num_mels, top_db=top_db
        )
        for name, value, choices in (("bins", bins, Bins), ("pad_mode", pad_mode, PadMode)):
            if value not in get_args(choices):
                raise ConfigError(f"{name} is {value!r}; must be one of {', '.join(get_args(choices))}")
        if n_fft % 4:
            raise ConfigError(f"n_fft is {n_fft}; must be a multiple of 4; try {4 * round(n_fft / 4) or 4}")
        hop = sample_rate * hop_seconds
        self.hop_length = round(hop)
        if self.hop_length < 1 or abs(hop - self.hop_length) > 1e-2:
            raise ConfigError(
                f"hop_seconds {hop_seconds} is {hop:g} samples at {sample_rate} Hz; must be a whole number, "
                f"at least 1; use {max(1, self.hop_length) / sample_rate:.8f}"
            )
        self.sample_rate, self.n_fft = sample_rate, n_fft
        self.bins, self.top_db, self.pad_mode = bins, top_db, pad_mode
        self.num_bins = {"paired": 1 + n_fft // 4, "linear": 1 + n_fft // 2, "mel": num_mels}[bins]
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        filters = mel_filters(sample_rate, n_fft, num_mels) if bins == "mel" else None
        self.register_buffer("filters", filters, persistent=False)
        if (mean is None) != (std is None):
            raise ConfigError("only one of the spectrogram's mean and std is given; give both or neither")
        self.register_buffer("mean", None if mean is None else self._statistic("mean", mean))
        self.register_buffer("std", None if std is None else self._statistic("std", std))
        if self.std is not None and bool((self.std < 0).any()):
            raise ConfigError(f"spectrogram std has the value {float(self.std.min()):g}; must be 0 or above")

    def extra_repr(self) -> str:
        """Parameters, for the printed module."""
        return (
            f"sample_rate={self.sample_rate}, n_fft={self.n_fft}, hop_length={self.hop_length}, "
            f"bins={self.bins}, num_bins={self.num_bins}, top_db={self.top_db}"
        )

    def _statistic(self, name: str, value: Tensor | Sequence[float] | float) -> Tensor:
        statistic = torch.as_tensor(value, dtype=torch.float32).detach().cpu()
        if statistic.ndim > 1 or (statistic.ndim == 1 and len(statistic) != self.num_bins):
            raise ConfigError(
                f"spectrogram {name} has shape {tuple(statistic.shape)}; must be one number or "
                f"{self.num_bins}, one a bin (n_fft {self.n_fft}, bins {self.bins!r}); "
                "compute it again with these settings"
            )
        if not bool(statistic.isfinite().all()):
            raise ConfigError(f"spectrogram {name} holds a value that is not finite; compute it again")
        return statistic.expand(self.num_bins).clone()

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform: its duration over the hop, to the nearest whole number, at least 1."""
        return max(1, round(num_samples / self.hop_length))

    def decibels(self, waveform: Tensor) -> Tensor:
        """Spectrogram before normalisation; arguments and errors as `forward`.

        Returns
        -------
        Tensor, (B, 1, frames, bins), float32
            In decibels relative to a power of 1, at least -100.
        """
        if waveform.ndim != 3 or waveform.shape[1] != 1:
            raise ValueError(
                f"waveform has shape {tuple(waveform.shape)}; must be (B, 1, samples); mix channels to mono"
            )
        num_samples = waveform.shape[-1]
        if num_samples < self.n_fft // 2 + 1:
            raise ConfigError(
                f"waveform has {num_samples} samples ({num_samples / self.sample_rate:g} s); must be at "
                f"least {self.n_fft // 2 + 1} for n_fft {self.n_fft}; use longer clips or a smaller n_fft"
            )
        with torch.autocast(self.window.device.type, enabled=False):
            waveform = waveform.squeeze(1).to(self.window.device, torch.float32)
            # On a processor clip by clip: what lies between the steps stays in its cache.
            parts = waveform.split(1 if waveform.device.type == "cpu" else len(waveform))
            return torch.cat([self._decibels(part) for part in parts]).unsqueeze(1)

    def _decibels(self, waveform: Tensor) -> Tensor:
        db = self._power(waveform).clamp_min_(MIN_POWER).log10_().mul_(10)
        return torch.maximum(db, db.amax((1, 2), keepdim=True) - self.top_db)

    def _power(self, waveform: Tensor) -> Tensor:
        """Power a bin of (B, samples) waveforms, (B, frames, bins)."""
        half = self.n_fft // 2
        padded = F.pad(waveform, (half, half), mode=self.pad_mode)
        frames = padded.unfold(1, self.n_fft, self.hop_length)[:, : self.num_frames(waveform.shape[-1])]
        # Not torch.stft: it has frequencies before frames, and turning that round costs more than itself.
        spectrum = torch.fft.rfft(frames * self.window)
        if self.bins == "paired":
            return paired_power(spectrum)
        squares = torch.view_as_real(spectrum).square_().flatten(2)
        power = squares[..., ::2] + squares[..., 1::2]
        return power if self.filters is None else power @ self.filters

    def forward(self, waveform: Tensor) -> Tensor:
        """Compute normalised log-spectrograms.

        Parameters
        ----------
        waveform : Tensor, (B, 1, samples)
            Mono, in [-1, 1], at `sample_rate`; at least ``n_fft / 2 + 1`` samples.

        Returns
        -------
        Tensor, (B, 1, frames, bins), float32
            ``frames = round(duration / hop)``; on the device of the module, in float32 under autocast too.

        Raises
        ------
        ValueError
            For a waveform that is not mono or not batched.
        ConfigError
            For a waveform that is too short.
        """
        db = self.decibels(waveform)
        if self.mean is None or self.std is None:
            return db
        return db.sub_(self.mean).div_(self.std + STD_EPSILON)


class AudioAugment(nn.Module):
    """Random loudness: each clip is multiplied by a number uniform in [1 - gain, 1 + gain].

    Parameters
    ----------
    gain : float in [0, 1)
        Strength; the official pretraining has 0.1.

    Raises
    ------
    ConfigError
        For a gain outside its range.
    """

    def __init__(self, gain: float = 0.1) -> None:
        super().__init__()
        if not 0 <= gain < 1:
            raise ConfigError(f"gain is {gain}; must be in [0, 1); use 0 to switch it off")
        self.gain = gain

    def extra_repr(self) -> str:
        """Parameters, for the printed module."""
        return f"gain={self.gain}"

    def forward(self, waveform: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Scale (B, 1, samples) waveforms, one factor a clip; numbers come from `generator`."""
        factor = 1 + self.gain * (2 * uniform((len(waveform), 1, 1), generator) - 1)
        return waveform * factor.to(waveform.device, waveform.dtype, non_blocking=True)


def spectrogram_statistics(spectrogram: LogSpectrogram, waveforms: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each bin in decibels, over all frames of all clips.

    Parameters
    ----------
    spectrogram : LogSpectrogram
        The front end; a mean and std that it already has are not applied.
    waveforms : iterable of Tensor, each (B, 1, samples)
        Batches of the training set.

    Returns
    -------
    mean, std : Tensor, (num_bins,), float64, on the CPU
        The std divides by the number of frames. Both fit ``LogSpectrogram(mean=..., std=...)``.

    Raises
    ------
    ManifestError
        When there is no waveform.
    """
    count = 0
    sums = torch.zeros(2, spectrogram.num_bins, dtype=torch.float64)
    for waveform in waveforms:
        with torch.no_grad():
            db = spectrogram.decibels(waveform).double().flatten(0, 2)
            sums += torch.stack([db.sum(0), db.square().sum(0)]).cpu()
        count += len(db)
    if count == 0:
        raise ManifestError(
            "spectrogram statistics need at least one waveform; got none; select rows with audio"
        )
    mean, mean_square = sums / count
    return mean, (mean_square - mean.square()).clamp_min(0).sqrt()


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name} is {value}; must be above 0")
