"""Building blocks of sound: tones, coloured noise and short sounds placed at given times."""

from __future__ import annotations

import numpy as np

from avssl.sounding_shapes.cause import NUM_SAMPLES, SAMPLE_RATE, FloatArray


def harmonic_tone(frequency_hz: FloatArray, brightness: float, num_harmonics: int = 8) -> FloatArray:
    """Tone of a moving frequency whose k-th harmonic has the amplitude k^-(2.4 - 1.8 brightness).

    Parameters
    ----------
    frequency_hz : ndarray, (samples,)
        Frequency of the fundamental at each sample.
    brightness : float, in [0, 1]
        0 is close to a sine, 1 close to a saw tooth.
    num_harmonics : int
        Harmonics above 11 kHz are left out.
    """
    angle = 2 * np.pi * np.cumsum(frequency_hz) / SAMPLE_RATE
    turn = np.exp(1j * angle)
    tone = np.zeros(len(angle))
    harmonic = np.ones_like(turn)
    for k in range(1, num_harmonics + 1):
        harmonic = harmonic * turn
        if k * frequency_hz.max() > 11_000:
            break
        tone += k ** -(2.4 - 1.8 * brightness) * harmonic.imag
    return tone


def band_noise(
    rng: np.random.Generator, num_samples: int, center_hz: float, octaves: float, brightness: float
) -> FloatArray:
    """Gaussian noise whose spectrum is a bell over log frequency, wider above its centre when bright."""
    frequency = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE)
    distance = np.log2(np.maximum(frequency, 1.0) / center_hz)
    width = np.where(distance > 0, octaves * (0.6 + 1.4 * brightness), octaves)
    # Below the centre white noise has ever fewer bins an octave, hence 1/sqrt(f) levels the octaves.
    shape = np.exp(-0.5 * (distance / width) ** 2) / np.sqrt(np.maximum(frequency, 20.0))
    white = rng.standard_normal(len(frequency)) + 1j * rng.standard_normal(len(frequency))
    return unit_power(np.fft.irfft(white * shape, num_samples))


def gliding_noise(rng: np.random.Generator, center_hz: FloatArray, bandwidth_hz: float) -> FloatArray:
    """Narrow noise around a centre frequency that moves, by modulating a carrier with slow noise."""
    num_samples = len(center_hz)
    frequency = np.fft.fftfreq(num_samples, 1 / SAMPLE_RATE)
    white = rng.standard_normal(num_samples) + 1j * rng.standard_normal(num_samples)
    slow = np.fft.ifft(white * np.exp(-0.5 * (frequency / bandwidth_hz) ** 2))
    carrier = np.exp(2j * np.pi * np.cumsum(center_hz) / SAMPLE_RATE)
    return unit_power((slow * carrier).real)


def unit_power(sound: FloatArray) -> FloatArray:
    """Scale a sound to a root mean square of 1; silence stays silence."""
    return sound / max(float(np.sqrt(np.mean(sound**2))), 1e-9)


def time_axis(duration_seconds: float) -> FloatArray:
    """Sample times of a sound of this length, in seconds."""
    return np.arange(round(duration_seconds * SAMPLE_RATE)) / SAMPLE_RATE


def add_at(target: FloatArray, sound: FloatArray, start_seconds: float, gain: float = 1.0) -> None:
    """Add a short sound to a clip in place; what lies before or after the clip is cut."""
    start = round(start_seconds * SAMPLE_RATE)
    low, high = max(start, 0), min(start + len(sound), len(target))
    if low < high:
        target[low:high] += gain * sound[low - start : high - start]


def silence() -> FloatArray:
    """Array of zeros, as long as a clip."""
    return np.zeros(NUM_SAMPLES)


def smooth_gate(gate: FloatArray, seconds: float) -> FloatArray:
    """Moving average of a gate over this time, so that switching does not click."""
    width = round(seconds * SAMPLE_RATE)
    total = np.cumsum(np.concatenate([np.full(width, gate[0]), gate]).astype(float))
    return (total[width:] - total[:-width]) / width
