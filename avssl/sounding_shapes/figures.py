"""What each class looks like: one function a class, drawing one object from its cause.

Each takes the pen of the figure, the cause, the frame times (T,) in seconds and the colours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avssl.sounding_shapes.cause import Cause, FloatArray
from avssl.sounding_shapes.draw import Color, Pen, over_time


@dataclass(frozen=True)
class Palette:
    """Colours of one clip, each (3,) in [0, 1]."""

    body: Color
    accent: Color
    dark: Color


def cycle(cause: Cause, seconds: FloatArray) -> FloatArray:
    """Share of the current cycle done, in [0, 1)."""
    return cause.phase(seconds) % 1.0


def inflation(share: FloatArray) -> FloatArray:
    """Filling of the balloon over its cycle, in [0, 1]: slowly in, quickly out."""
    return np.where(share < 0.7, share / 0.7, (1 - share) / 0.3)


def bouncing_ball(pen: Pen, cause: Cause, seconds: FloatArray, palette: Palette) -> None:
    """A ball on parabolas, flattened where it meets the ground."""
    share = cycle(cause, seconds)
    height = 1.3 * cause.strength_at(seconds) * 4 * share * (1 - share)
    squash = 1 - 0.35 * np.exp(-((np.minimum(share, 1 - share) / 0.1) ** 2))
    ground = pen.moved(0, 1.0)
    ground.fill(ground.box(1.0, 0.08), palette.accent)
    ball = pen.moved(0, 0.92 - 0.42 * squash - height)
    ball.fill(ball.ellipse(0.42 / squash, 0.42 * squash), palette.body, cause.texture)


def rotating_siren(pen: Pen, cause: Cause, seconds: FloatArray, palette: Palette) -> None:
    """A lamp on a foot with a beam that turns once a cycle."""
    foot = pen.moved(0, 0.8)
    foot.fill(foot.box(0.5, 0.2), palette.dark)
    pen.fill(pen.disc(0.62), palette.body, cause.texture)
    beam = pen.moved(0, 0, 2 * np.pi * cause.phase(seconds))
    beam.fill(beam.bar(1.0, 0.05 + 0.17 * np.clip(beam.u, 0, 1)), palette.accent)


def struck_drum(pen: Pen, cause: Cause, seconds: FloatArray, palette: Palette) -> None:
    """A drum and a stick whose head meets the skin at each event."""
    share = cycle(cause, seconds)
    shell = pen.moved(0, 0.62)
    shell.fill(shell.box(0.85, 0.38), palette.body, cause.texture)
    skin = pen.moved(0, 0.25)
    skin.fill(skin.ellipse(0.85, 0.17), palette.accent)
    lift = 1.1 * cause.strength_at(seconds) * np.sin(np.pi * share) ** 0.7
    stick = pen.moved(0.95, -0.25, np.pi - 0.42 + lift)
    stick.fill(stick.bar(0.95, 0.07), palette.dark)
    head = stick.moved(0.95, 0)
    head.fill(head.disc(0.18), palette.dark)


def rain_intensity(cause: Cause, seconds: FloatArray) -> FloatArray:
    """Strength of the rain, in [0, 1]: a shower a cycle."""
    strength = np.interp(seconds, cause.event_seconds, cause.strength)
    return strength * (0.5 - 0.5 * np.cos(2 * np.pi * cause.phase(seconds)))


def rain(pen: Pen, cause: Cause, seconds: FloatArray, palette: Palette) -> None:
    """A cloud above falling drops that fill more columns the harder it rains."""
    columns = 8
    number = np.clip(np.floor((pen.u + 0.95) / 1.9 * columns), 0, columns - 1)
    to_column = np.abs(pen.u - ((number + 0.5) * 1.9 / columns - 0.95))
    # The golden ratio spreads thresholds and offsets evenly over the columns.
    threshold = (number * 0.618) % 1.0
    fall = (pen.v - over_time(3.0 * seconds) + threshold * 7.3) % 0.5
    drop = np.maximum(np.maximum(to_column - 0.07, np.abs(fall - 0.17) - 0.15), np.abs(pen.v - 0.3) - 0.75)
    shown = np.clip((over_time(rain_intensity(cause, seconds)) * 1.1 - threshold * 0.8) * 8, 0, 1)
    pen.fill(drop, palette.accent, opacity=shown)
    for du, dv, radius in ((-0.5, -0.6, 0.38), (0.5, -0.6, 0.38), (0.0, -0.72, 0.48)):
        puff = pen.moved(du, dv)
        puff.fill(puff.disc(radius), palette.body, cause.texture)


def spring_height(cause: Cause, seconds: FloatArray) -> FloatArray:
    """Height of the mass on the spring, in [-1, 1]."""
    return np.sin(2 * np.pi * cause.phase(seconds))


def spring_mass(pen: Pen, cause: Cause, seconds: FloatArray, palette: Palette) -> None:
    """A block on a zigzag spring under a beam."""
    center = 0.35 - 0.42 * spring_height(cause, seconds)
    beam = pen.moved(0, -1.0)
    beam.fill(beam.box(0.8, 0.08), palette.dark)
    along = (pen.v + 1.0) / over_time(center + 0.6)
    zigzag = 0.28 * (4 * np.abs((along * 4 + 0.25) % 1.0 - 0.5) - 1)
    outside = np.maximum(-pen.v - 1.0, pen.v - over_time(center - 0.4))
    pen.fill(np.maximum(np.abs(pen.u - zigzag) - 0.09, outside), palette.accent)
    block = pen.moved(0, center)
    block.fill(block.box(0.52, 0.42), palette.body, cause.texture)


def lamp_is_on(cause: Cause, seconds: FloatArray) -> NDArray[np.bool_]:
    """True in the first half of each cycle."""
    return cycle(cause, seconds) < 0.5


def blinking_lamp(pen: Pen, cause: Cause, seconds: FloatArray, palette: Palette) -> None:
    """A bulb, bright with a halo while it is on."""
    light = lamp_is_on(cause, seconds) * cause.strength_at(seconds)
    bulb = pen.moved(0, -0.2)
    rays = 0.12 * np.cos(10 * np.arctan2(bulb.v, bulb.u))
    bulb.fill(bulb.disc(0.95) + rays, palette.accent, opacity=0.9 * light)
    socket = pen.moved(0, 0.65)
    socket.fill(socket.box(0.3, 0.35), palette.dark)
    bulb.fill(bulb.disc(0.6), palette.body, cause.texture)
    bulb.fill(bulb.disc(0.42), palette.accent, opacity=light)


def swinging_bell(pen: Pen, cause: Cause, seconds: FloatArray, palette: Palette) -> None:
    """A bell that turns about its top and is struck at each end of its swing."""
    swing = np.cos(np.pi * cause.phase(seconds))
    bell = pen.moved(0, -0.95, -0.75 * swing)
    clapper = pen.moved(0, -0.95, -1.0 * swing).moved(0, 1.55)
    clapper.fill(clapper.disc(0.2), palette.accent)
    flare = 0.3 + 0.45 * np.clip((bell.v - 0.3) / 1.1, 0, 1) ** 1.5
    bell.fill(
        np.maximum(np.abs(bell.u) - flare, np.abs(bell.v - 0.85) - 0.55) * 0.9, palette.body, cause.texture
    )
    rim = bell.moved(0, 1.4)
    rim.fill(rim.box(0.82, 0.1), palette.dark)
    crown = bell.moved(0, 0.2)
    crown.fill(crown.disc(0.22), palette.dark)


def breathing_balloon(pen: Pen, cause: Cause, seconds: FloatArray, palette: Palette) -> None:
    """A balloon that is blown up slowly and lets its air out quickly."""
    radius = 0.28 + 0.62 * inflation(cycle(cause, seconds))
    string = pen.moved(0, 0.2)
    string.fill(string.box(0.05, 0.85), palette.dark)
    knot = pen.moved(0, radius)
    knot.fill(knot.ellipse(0.16, 0.1), palette.accent)
    pen.fill(pen.disc(radius), palette.body, cause.texture)


def car_position(cause: Cause, seconds: FloatArray) -> FloatArray:
    """Place of the car on its way from left to right, in [-1.4, 1.4]."""
    return 2.8 * cycle(cause, seconds) - 1.4


def passing_car(pen: Pen, cause: Cause, seconds: FloatArray, palette: Palette) -> None:
    """A car that comes from behind the left post and goes behind the right one, largest half way."""
    place = car_position(cause, seconds)
    near = 1.25 - 0.35 * np.abs(place)
    road = pen.moved(0, 0.62)
    road.fill(road.box(1.3, 0.06), palette.accent)
    car = pen.moved(place, 0.15)
    cabin = car.moved(0, -0.3 * near)
    cabin.fill(cabin.box(0.3 * near, 0.22 * near), palette.accent)
    car.fill(car.box(0.6 * near, 0.2 * near), palette.body, cause.texture)
    for side in (-0.36, 0.36):
        wheel = car.moved(side * near, 0.22 * near)
        wheel.fill(wheel.disc(0.18 * near), palette.dark)
    for side in (-1.2, 1.2):
        post = pen.moved(side, 0.0)
        post.fill(post.box(0.2, 0.75), palette.dark)


def ticking_clock(pen: Pen, cause: Cause, seconds: FloatArray, palette: Palette) -> None:
    """A clock whose hand jumps by an eighth of a turn at each event."""
    number = cause.last_event(seconds)
    since = seconds - cause.event_seconds[number]
    angle = (number - np.exp(-since / 0.03)) * np.pi / 4
    pen.fill(pen.disc(0.98), palette.dark)
    pen.fill(pen.disc(0.84), palette.body, cause.texture)
    hand = pen.moved(0, 0, angle)
    hand.fill(hand.moved(-0.15).bar(0.85, 0.12), palette.accent)
    pen.fill(pen.disc(0.2), palette.dark)


def rising_bubbles(pen: Pen, cause: Cause, seconds: FloatArray, palette: Palette) -> None:
    """A tank in which a bubble leaves the bottom at each event and rises."""
    frame = np.maximum(pen.box(0.95, 1.0), -pen.box(0.85, 1.2))
    pen.fill(pen.box(0.85, 1.0), palette.dark, opacity=0.5)
    pen.fill(frame, palette.accent)
    for back in range(4):
        number = cause.last_event(seconds) - back
        age = seconds - cause.event_seconds[number]
        lane = 0.55 * np.sin(2.4 * number)
        radius = 0.34 * cause.strength[number] * np.clip(age / 0.12, 0.2, 1)
        bubble = pen.moved(lane, 0.8 - 1.6 * age)
        bubble.fill(bubble.disc(radius), palette.body, cause.texture, opacity=age < 1.15)


def wing_speed(cause: Cause, seconds: FloatArray) -> FloatArray:
    """Speed of the downstroke of the wings, in [0, 1]; zero while they rise."""
    return np.maximum(np.sin(2 * np.pi * cause.phase(seconds)), 0.0)


def flapping_bird(pen: Pen, cause: Cause, seconds: FloatArray, palette: Palette) -> None:
    """A bird whose wings are highest at each event and then beat down."""
    lift = np.cos(2 * np.pi * cause.phase(seconds)) * (0.5 + 0.5 * cause.strength_at(seconds))
    bird = pen.moved(0, 0.15 * lift)
    for side in (0.0, np.pi):
        slope = -0.85 * lift if side == 0.0 else np.pi + 0.85 * lift
        wing = bird.moved(0, 0, slope)
        wing.fill(wing.bar(0.95, 0.22 - 0.16 * np.clip(wing.u, 0, 1)), palette.accent)
    bird.fill(bird.ellipse(0.28, 0.45), palette.body, cause.texture)
    head = bird.moved(0, -0.45)
    head.fill(head.disc(0.2), palette.dark)
