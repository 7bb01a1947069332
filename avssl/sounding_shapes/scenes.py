"""From a class name and a number to one clip: causes, then a picture and a sound full of nuisances."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avssl.sounding_shapes import figures, voices
from avssl.sounding_shapes.cause import (
    DURATION_SECONDS,
    FPS,
    NUM_FRAMES,
    NUM_SAMPLES,
    SAMPLE_RATE,
    Cause,
    FloatArray,
    draw_causes,
)
from avssl.sounding_shapes.draw import pen_at
from avssl.sounding_shapes.synth import add_at, time_axis, unit_power

CLASSES = (
    "blinking_lamp",
    "bouncing_ball",
    "breathing_balloon",
    "flapping_bird",
    "passing_car",
    "rain",
    "rising_bubbles",
    "rotating_siren",
    "spring_mass",
    "struck_drum",
    "swinging_bell",
    "ticking_clock",
)


@dataclass(frozen=True)
class Scene:
    """The causes of one clip and the generators of its two sets of nuisances."""

    class_name: str
    causes: list[Cause]
    video_rng: np.random.Generator
    audio_rng: np.random.Generator


def make_scene(seed: int, split: str, class_name: str, index: int) -> Scene:
    """Draw the causes of a clip; depends on nothing but the four arguments."""
    if class_name not in CLASSES:
        raise ValueError(f"class_name must be one of {', '.join(CLASSES)}; got {class_name!r}")
    key = [seed, zlib.crc32(split.encode()), zlib.crc32(class_name.encode()), index]
    cause_seed, video_seed, audio_seed = np.random.SeedSequence(key).spawn(3)
    causes = draw_causes(np.random.default_rng(cause_seed))
    return Scene(class_name, causes, np.random.default_rng(video_seed), np.random.default_rng(audio_seed))


def make_clip(
    seed: int, split: str, class_name: str, index: int, size: int = 96
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Frames and sound of one clip.

    Parameters
    ----------
    seed : int >= 0
        Seed of the data set.
    split : str
        ``"train"`` or ``"test"``; other names give other clips.
    class_name : str
        One of `CLASSES`.
    index : int >= 0
        Number of the clip within its class and split.
    size : int
        Side of the square frames, in pixels.

    Returns
    -------
    frames : ndarray, (48, size, size, 3), uint8
        RGB, 16 frames a second; frame i shows the time i / 16 s.
    waveform : ndarray, (72000,), float32, in [-1, 1]
        Mono, 24 kHz; sample n belongs to the time n / 24000 s.
    """
    scene = make_scene(seed, split, class_name, index)
    return render_frames(scene, size), render_waveform(scene)


def render_frames(scene: Scene, size: int) -> NDArray[np.uint8]:
    """Draw background, silent distractors and the sounding objects under one drifting camera."""
    rng = scene.video_rng
    seconds = np.arange(NUM_FRAMES) / FPS
    camera = _camera_drift(rng, seconds)
    # Dull: a vivid background would be a name tag that tells clips apart better than what happens in them.
    background = np.clip(rng.uniform(0.15, 0.85) + rng.uniform(-0.1, 0.1, 3), 0, 1)
    planes = _background(rng, background, camera, size)
    palette = _palette(rng, background)
    for _ in range(rng.integers(0, 3)):
        _distractor(rng, planes, seconds, camera)
    figure: Callable[..., None] = getattr(figures, scene.class_name)
    for cause, (x, y) in zip(scene.causes, _places(rng, scene.causes), strict=True):
        pen = pen_at(planes, x + camera[0], y + camera[1], cause.size)
        figure(pen, cause, seconds, palette)
    planes = _exposure(rng, planes)
    return np.ascontiguousarray((planes * 255 + 0.5).astype(np.uint8).transpose(1, 2, 3, 0))


def render_waveform(scene: Scene) -> NDArray[np.float32]:
    """Mix the voices of the objects with background noise and faint sounds that mean nothing."""
    rng = scene.audio_rng
    seconds = np.arange(NUM_SAMPLES) / SAMPLE_RATE
    voice: Callable[..., FloatArray] = getattr(voices, scene.class_name)
    sound = sum(unit_power(voice(cause, seconds, rng)) for cause in scene.causes)
    sound = unit_power(np.asarray(sound))
    noise_db = rng.uniform(-24, -10)
    sound = sound + 10 ** (noise_db / 20) * _colored_noise(rng)
    sound = sound + _distractor_sounds(rng, seconds)
    peak_db = rng.uniform(-16, -1)
    return (sound * 10 ** (peak_db / 20) / np.abs(sound).max()).astype(np.float32)


def _places(rng: np.random.Generator, causes: list[Cause]) -> list[tuple[float, float]]:
    """Centres of the figures: anywhere they fit, side by side when there are two."""
    places = []
    lanes = [(0.0, 1.0)] if len(causes) == 1 else [(0.0, 0.5), (0.5, 1.0)]
    for cause, (left, right) in zip(causes, lanes, strict=True):
        half_width = min(cause.size, 0.5 * (right - left))
        x = rng.uniform(left + half_width, right - half_width)
        places.append((float(x), float(rng.uniform(cause.size, 1 - cause.size))))
    return places


def _camera_drift(rng: np.random.Generator, seconds: FloatArray) -> FloatArray:
    """Slow movement of the camera, (2, T), as a share of the frame, at most 0.03 each way."""
    rate = rng.uniform(0.1, 0.5, (2, 1))
    reach = rng.uniform(0.0, 0.03, (2, 1))
    return reach * np.sin(2 * np.pi * (rate * seconds + rng.uniform(size=(2, 1))))


def _background(
    rng: np.random.Generator, color: FloatArray, camera: FloatArray, size: int
) -> NDArray[np.float32]:
    """Gradient plus a few plane waves of random colour, moved by the camera: (3, T, size, size)."""
    margin = int(np.ceil(0.06 * size)) + 1
    x = np.arange(-margin, size + margin, dtype=np.float32) / size
    wide = np.zeros((3, len(x), len(x)), np.float32) + color.astype(np.float32).reshape(3, 1, 1)
    gradient = rng.uniform(-0.2, 0.2, (1, 2)).astype(np.float32)
    wide += gradient[:, 0, None, None] * (x - 0.5) + gradient[:, 1, None, None] * (x[:, None] - 0.5)
    for _ in range(2):
        wave = rng.uniform(-1, 1, 2) * rng.choice([1.0, 2.0, 4.0])
        angle = 2 * np.pi * (wave[0] * x + wave[1] * x[:, None] + rng.uniform())
        wide += rng.normal(0, 0.025, (3, 1, 1)).astype(np.float32) * np.sin(angle).astype(np.float32)
    frames = []
    for dx, dy in camera.T * size:
        column, row = margin - dx, margin - dy
        left, top = int(column), int(row)
        a, b = np.float32(column - left), np.float32(row - top)
        part = wide[:, top : top + size + 1, left : left + size + 1]
        part = (1 - b) * part[:, :-1] + b * part[:, 1:]
        frames.append((1 - a) * part[..., :-1] + a * part[..., 1:])
    return np.stack(frames, axis=1)


def _palette(rng: np.random.Generator, background: FloatArray) -> figures.Palette:
    """Random colours, each unlike the background and the body unlike the rest."""
    chosen = [background]
    for _ in range(3):
        candidates = rng.uniform(0, 1, (24, 3))
        nearest = np.linalg.norm(candidates[:, None] - np.stack(chosen), axis=2).min(axis=1)
        chosen.append(candidates[int(np.flatnonzero(nearest >= min(0.45, nearest.max()))[0])])
    return figures.Palette(*chosen[1:])


def _distractor(
    rng: np.random.Generator, planes: FloatArray, seconds: FloatArray, camera: FloatArray
) -> None:
    """A small silent shape that drifts or circles on its own."""
    size = rng.uniform(0.03, 0.06)
    start, speed = rng.uniform(0, 1, (2, 1)), rng.uniform(-0.3, 0.3, (2, 1))
    radius, rate = rng.uniform(0, 0.12), rng.uniform(0.2, 2.0)
    angle = 2 * np.pi * (rate * seconds + rng.uniform())
    center = start + speed * (seconds - 1.5) + radius * np.stack([np.cos(angle), np.sin(angle)]) + camera
    pen = pen_at(planes, center[0], center[1], size)
    shape = pen.disc(1.0) if rng.uniform() < 0.5 else pen.box(0.9, rng.uniform(0.3, 0.9))
    pen.fill(shape, rng.uniform(0, 1, 3))


def _exposure(rng: np.random.Generator, planes: FloatArray) -> FloatArray:
    """Random contrast and brightness, then pixel noise that differs from frame to frame."""
    contrast, offset = rng.uniform(0.75, 1.1), rng.uniform(-0.1, 0.1)
    level = rng.uniform(0.0, 0.03)
    planes = (planes - 0.5) * np.float32(contrast) + np.float32(0.5 + offset)
    # Frames take their noise from random places of one pool: drawing it afresh costs more than the picture.
    frame_values = planes[:, 0].size
    pool = rng.standard_normal(2 * frame_values, dtype=np.float32) * np.float32(level)
    starts: NDArray[np.int64] = rng.integers(0, frame_values, (planes.shape[1],))
    for frame, start in enumerate(starts):
        planes[:, frame] += pool[start : start + frame_values].reshape(planes[:, frame].shape)
    return np.clip(planes, 0, 1)


def _colored_noise(rng: np.random.Generator) -> FloatArray:
    """White or pink noise of unit power, or something between."""
    slope = rng.uniform(0, 0.5)
    frequency = np.maximum(np.fft.rfftfreq(NUM_SAMPLES, 1 / SAMPLE_RATE), 30.0)
    white = rng.standard_normal(len(frequency)) + 1j * rng.standard_normal(len(frequency))
    return unit_power(np.fft.irfft(white * frequency**-slope, NUM_SAMPLES))


def _distractor_sounds(rng: np.random.Generator, seconds: FloatArray) -> FloatArray:
    """A faint hum and up to three soft beeps at random times."""
    sound = rng.uniform(0, 0.15) * np.sin(2 * np.pi * rng.uniform(50, 150) * seconds)
    time = time_axis(0.15)
    for _ in range(rng.integers(0, 4)):
        beep = np.sin(2 * np.pi * np.exp(rng.uniform(np.log(200), np.log(3000))) * time)
        add_at(sound, beep * np.hanning(len(time)), rng.uniform(0, DURATION_SECONDS), rng.uniform(0.1, 0.4))
    return sound
