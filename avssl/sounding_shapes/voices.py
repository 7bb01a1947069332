"""What each class sounds like: one function a class, (samples,) from the same cause as its figure.

Each takes the cause, the sample times (samples,) in seconds and a generator for noise that means nothing.
"""

from __future__ import annotations

import numpy as np

from avssl.sounding_shapes import figures
from avssl.sounding_shapes.cause import SAMPLE_RATE, Cause, FloatArray
from avssl.sounding_shapes.synth import (
    add_at,
    band_noise,
    gliding_noise,
    harmonic_tone,
    silence,
    smooth_gate,
    time_axis,
    unit_power,
)


def bouncing_ball(cause: Cause, seconds: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A thud whose pitch drops, at each bounce."""
    time = time_axis(0.3)
    thud = harmonic_tone(cause.pitch_hz * (1 + 1.5 * np.exp(-time / 0.012)), cause.texture, 4)
    thud *= np.exp(-time / 0.05) * np.minimum(time / 0.002, 1)
    return _at_events(cause, thud)


def rotating_siren(cause: Cause, seconds: FloatArray, rng: np.random.Generator) -> FloatArray:
    """An unbroken tone that rises and falls with the angle of the beam."""
    sweep = np.sin(2 * np.pi * cause.phase(seconds))
    return harmonic_tone(cause.pitch_hz * 2.0 ** (0.7 * sweep), cause.texture)


def struck_drum(cause: Cause, seconds: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A burst of wide noise at each strike."""
    time = time_axis(0.35)
    burst = band_noise(rng, len(time), 1.2 * cause.pitch_hz, 1.0, cause.texture) * np.exp(-time / 0.06)
    return _at_events(cause, burst)


def rain(cause: Cause, seconds: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Hiss and pattering drops, both with the intensity of the rain."""
    intensity = figures.rain_intensity(cause, seconds)
    patter = silence()
    time = time_axis(0.012)
    click = np.sin(2 * np.pi * 1.5 * cause.pitch_hz * time) * np.exp(-time / 0.004)
    drops = np.flatnonzero(rng.uniform(size=len(seconds)) < 180 * intensity / SAMPLE_RATE)
    for number in drops:
        add_at(patter, click, seconds[number], rng.uniform(0.3, 1.0))
    hiss = band_noise(rng, len(seconds), 1.5 * cause.pitch_hz, 1.6, cause.texture) * intensity**1.5
    return unit_power(hiss) + 1.2 * unit_power(patter)


def spring_mass(cause: Cause, seconds: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A held note that opens from dark to bright as the mass rises."""
    opening = 0.5 + 0.5 * figures.spring_height(cause, seconds)
    frequency = np.full(len(seconds), cause.pitch_hz)
    dark = harmonic_tone(frequency, 0.0, 2)
    bright = harmonic_tone(frequency, 1.0 + 0.4 * cause.texture, 12)
    return (1 - opening) * dark + opening**1.5 * (bright - 0.8 * dark)


def blinking_lamp(cause: Cause, seconds: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A beep while the lamp is on."""
    gate = figures.lamp_is_on(cause, seconds) * cause.strength_at(seconds)
    tone = harmonic_tone(np.full(len(seconds), cause.pitch_hz), cause.texture)
    return tone * smooth_gate(gate, 0.008)


def swinging_bell(cause: Cause, seconds: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Inharmonic partials that ring on after each strike."""
    time = time_axis(1.2)
    ring = np.zeros(len(time))
    for k, ratio in enumerate((1.0, 1.19, 1.56, 2.0, 2.74, 3.76), start=1):
        level = k ** -(1.2 - 0.9 * cause.texture)
        ring += level * np.sin(2 * np.pi * cause.pitch_hz * ratio * time) * np.exp(-time * (1.5 + 0.6 * k))
    return _at_events(cause, ring * np.minimum(time / 0.002, 1))


def breathing_balloon(cause: Cause, seconds: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Whistling air whose pitch falls as the balloon grows."""
    filling = figures.inflation(figures.cycle(cause, seconds))
    center_hz = cause.pitch_hz * 2.0 ** (0.9 - 1.6 * filling)
    air = gliding_noise(rng, center_hz, 0.08 * cause.pitch_hz)
    return air + 0.5 * cause.texture * gliding_noise(rng, 3 * center_hz, 0.16 * cause.pitch_hz)


def passing_car(cause: Cause, seconds: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A rough engine, loudest half way, its pitch dropping as the car goes by."""
    place = figures.car_position(cause, seconds)
    frequency = cause.pitch_hz * 2.0 ** (-0.35 * np.tanh(4 * place))
    pulses = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * np.cumsum(frequency / 12) / SAMPLE_RATE))
    engine = harmonic_tone(frequency, 0.4 + 0.6 * cause.texture) * smooth_gate(pulses, 0.002)
    return engine * (0.04 + np.exp(-((place / 0.55) ** 2))) * cause.strength_at(seconds)


def ticking_clock(cause: Cause, seconds: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A short bright tick and a duller tock in turn."""
    time = time_axis(0.12)
    sound = silence()
    for number, (event, strength) in enumerate(zip(cause.event_seconds, cause.strength, strict=True)):
        ratio, decay = ((2.0, 0.006), (0.75, 0.016))[number % 2]
        knock = np.sin(2 * np.pi * ratio * cause.pitch_hz * time)
        knock += (0.3 + 0.7 * cause.texture) * rng.standard_normal(len(time)) * np.exp(-time / 0.002)
        add_at(sound, knock * np.exp(-time / decay), event, strength)
    return sound


def rising_bubbles(cause: Cause, seconds: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A soft blip that chirps upward for each bubble."""
    time = time_axis(0.14)
    blip = harmonic_tone(cause.pitch_hz * 0.7 * 3.0 ** (time / 0.14), 0.6 * cause.texture, 3)
    return _at_events(cause, blip * np.sin(np.pi * time / 0.14) ** 1.2)


def flapping_bird(cause: Cause, seconds: FloatArray, rng: np.random.Generator) -> FloatArray:
    """A whoosh of air at each downstroke."""
    air = band_noise(rng, len(seconds), cause.pitch_hz, 0.6, cause.texture)
    return air * figures.wing_speed(cause, seconds) ** 1.5 * cause.strength_at(seconds)


def _at_events(cause: Cause, sound: FloatArray) -> FloatArray:
    """Repeat one short sound at every event, as loud as the event is strong."""
    total = silence()
    for event, strength in zip(cause.event_seconds, cause.strength, strict=True):
        add_at(total, sound, event, strength)
    return total
