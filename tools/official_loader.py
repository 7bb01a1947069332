"""A sample as the release of AVID (Morgado et al., 2021) makes it, written from its description.

PyAV seeks and decodes, frames become Pillow images that are cropped, flipped and jittered one by one with the
factors of their clip, and librosa makes the spectrogram. `bench_loader` compares the package with it.
"""

from __future__ import annotations

from typing import Any

import av
import librosa
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from avssl.transforms import IMAGENET_MEAN, IMAGENET_STD
from avssl.types import AudioWindow, VideoWindow

JITTER = (0.4, 0.4, 0.4, 0.2)
GAIN = 0.1
N_FFT, HOP, TOP_DB = 1024, 240, 100.0
BIN_MEAN, BIN_STD = -28.5, 19.7
"""Mean and standard deviation in decibels; the release has one pair a bin."""


def official_sample(path: str, video: VideoWindow, audio: AudioWindow, size: int) -> tuple[Tensor, Tensor]:
    """Frames, float32 (3, T, size, size), and spectrogram, float32 (1, frames, 257), both normalised."""
    with av.open(path) as container:
        images = decode_frames(container, video)
        waveform = decode_sound(container, audio)
    gain = 1 + GAIN * (2 * float(torch.rand(())) - 1)
    return augment(images, size), spectrogram(gain * waveform, audio)


def decode_frames(container: Any, window: VideoWindow) -> list[Image.Image]:
    """Frames of the window, by their numbers at a constant rate; the last one is held at the end."""
    stream = container.streams.video[0]
    rate, first = stream.average_rate, stream.start_time or 0
    wanted = [int((window.start_seconds + i / window.fps) * float(rate)) for i in range(window.num_frames)]
    container.seek(int(wanted[0] / float(rate) * av.time_base))
    images: list[Image.Image] = []
    for frame in container.decode(video=0):
        number = round((frame.pts - first) * stream.time_base * rate)
        if number < wanted[len(images)]:
            continue
        image = frame.to_image()
        while len(images) < len(wanted) and number >= wanted[len(images)]:
            images.append(image)
        if len(images) == len(wanted):
            break
    return images + images[-1:] * (len(wanted) - len(images))


def decode_sound(container: Any, window: AudioWindow) -> np.ndarray:
    """Mono sound of the window, float32 (samples,), resampled as 16-bit numbers."""
    container.seek(int(window.start_seconds * av.time_base))
    resampler = av.AudioResampler(format="s16", layout="mono", rate=window.sample_rate)
    end = window.start_seconds + window.duration_seconds
    pieces: list[np.ndarray] = []
    begin = 0.0
    for frame in container.decode(audio=0):
        if frame.time + frame.samples / frame.sample_rate <= window.start_seconds:
            continue
        if frame.time >= end:
            break
        begin = begin if pieces else frame.time
        pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
    samples = np.concatenate(pieces).astype(np.float32) / np.iinfo(np.int16).max
    samples = samples[max(0, round((window.start_seconds - begin) * window.sample_rate)) :]
    samples = samples[: window.num_samples]
    return np.pad(samples, (0, window.num_samples - len(samples)))


def augment(images: list[Image.Image], size: int) -> Tensor:
    """Crop, flip, jitter and normalise image by image, with one draw for all."""
    box = RandomResizedCrop.get_params(images[0], [0.08, 1.0], [3 / 4, 4 / 3])
    flip = float(torch.rand(())) < 0.5
    ranges = [(1 - s, 1 + s) for s in JITTER[:3]] + [(-JITTER[3], JITTER[3])]
    factors = [low + (high - low) * float(torch.rand(())) for low, high in ranges]
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    order = torch.randperm(len(adjust)).tolist()
    frames = []
    for image in images:
        image = tv.resized_crop(image, *box, [size, size], tv.InterpolationMode.BILINEAR)
        image = tv.hflip(image) if flip else image
        for operation in order:
            image = adjust[operation](image, factors[operation])
        frames.append(tv.normalize(tv.to_tensor(image), list(IMAGENET_MEAN), list(IMAGENET_STD)))
    return torch.stack(frames, 1)


def spectrogram(waveform: np.ndarray, window: AudioWindow) -> Tensor:
    """Normalised log-spectrogram, float32 (1, frames, 257): the constant term, then pairs of frequencies."""
    power = np.abs(librosa.stft(waveform, n_fft=N_FFT, hop_length=HOP)) ** 2
    paired = power[1:].reshape(-1, 2, power.shape[1]).mean(1)
    power = np.concatenate([power[:1], paired])[:, : window.num_samples // HOP]
    decibels = librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=TOP_DB)
    return torch.from_numpy(((decibels - BIN_MEAN) / (BIN_STD + 1e-5)).T[None].astype(np.float32))
