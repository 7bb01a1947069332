"""Line charts as inline SVG: axes, round ticks, a legend with last values, and a tooltip on each point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape

# Text keeps its size relative to the chart, so the drawing is small enough to be read at phone width.
WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40
# A series with more points is thinned to means of neighbours, or tooltips would overlap.
MAX_POINTS = 160
COLORS = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4")


@dataclass(frozen=True)
class Series:
    """A named line.

    Parameters
    ----------
    name : str
        Shown in the legend and in tooltips.
    x : sequence of float
        Rising and finite.
    y : sequence of float
        One value a point; the line breaks where it is NaN or infinite.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class _Scale:
    """Maps values of one axis to pixels, with its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_chart(title: str, series: Sequence[Series], x_label: str = "step") -> Markup:
    """An HTML figure of all `series` over a common linear axis.

    Parameters
    ----------
    title : str
        Caption of the figure.
    series : sequence of Series
        Drawn in different colours and dashes.
    x_label : str
        Name of the horizontal axis.

    Returns
    -------
    Markup
        A ``<figure>``, safe to insert into a page: all names are escaped.
    """
    lost = sum(not math.isfinite(value) for line in series for value in line.y)
    most = max((len(line.x) for line in series), default=0)
    thinned = [_thin(line) for line in series]
    points = [(x, y) for line in thinned for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    notes = [f"Each point is the mean of up to {_chunk(most)} records."] if most > MAX_POINTS else []
    if lost:
        notes.append(f"Not drawn: {lost} without a finite value.")
    if not points:
        notes.append("No finite value was logged.")
    drawing = _draw(title, thinned, points, x_label) if points else Markup("")
    legend = Markup("").join(_legend_entry(line, number) for number, line in enumerate(series))
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption>{}<ul class="legend">{}</ul>{}</figure>'
    ).format(
        title, drawing, legend, Markup('<p class="note">{}</p>').format(" ".join(notes)) if notes else ""
    )


def round_ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Ticks at multiples of 1, 2 or 5 times a power of ten inside [low, high], roughly `about` of them."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def format_number(value: float) -> str:
    """Up to four significant digits, thousands separated: 12,000, 0.2513, 3e-05."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _chunk(length: int) -> int:
    return math.ceil(length / MAX_POINTS)


def _thin(line: Series) -> Series:
    """At most MAX_POINTS points; each the mean of the finite values of a chunk, at the chunk's last x."""
    size = _chunk(len(line.x))
    if size <= 1:
        return line
    chunks = [slice(start, start + size) for start in range(0, len(line.x), size)]
    finite = [[value for value in line.y[chunk] if math.isfinite(value)] for chunk in chunks]
    means = [math.fsum(values) / len(values) if values else math.nan for values in finite]
    return Series(line.name, [line.x[chunk][-1] for chunk in chunks], means)


def _scale(values: Sequence[float], start: float, end: float, pad: float) -> _Scale:
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        middle, half = low, abs(low) * 0.1 or 1.0
        low, high = middle - half, middle + half
    else:
        low, high = low - pad * (high - low), high + pad * (high - low)
    return _Scale(low, high, start, end, round_ticks(low, high))


def _draw(title: str, lines: Sequence[Series], points: Sequence[tuple[float, float]], x_label: str) -> Markup:
    across = _scale([x for x, _ in points], LEFT, WIDTH - RIGHT, 0.0)
    up = _scale([y for _, y in points], HEIGHT - BOTTOM, TOP, 0.06)
    names = ", ".join(line.name for line in lines)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {escape(names)}">',
        *_axes(across, up, x_label),
    ]
    for number, line in enumerate(lines):
        parts += _line(line, number, across, up)
    return Markup("\n".join([*parts, "</svg>"]))


def _axes(across: _Scale, up: _Scale, x_label: str) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>']
    for tick in up.ticks:
        y = up(tick)
        parts.append(f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text("tick", LEFT - 6, y + 4, "end", format_number(tick)))
    for tick in across.ticks:
        x = across(tick)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
        parts.append(_text("tick", x, bottom + 17, "middle", format_number(tick)))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text("label", middle, HEIGHT - 5, "middle", x_label))
    return parts


def _text(kind: str, x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(line: Series, number: int, across: _Scale, up: _Scale) -> list[str]:
    """The line in pieces between gaps, and an invisible disc on each point that carries its tooltip."""
    color, dash = f"c{number % COLORS}", DASHES[number % len(DASHES)]
    points = list(zip(line.x, line.y, strict=True))
    parts = []
    for drawn, piece in groupby(points, key=lambda point: math.isfinite(point[1])):
        if drawn:
            path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in piece)
            parts.append(f'<polyline class="line {color}" stroke-dasharray="{dash}" points="{path}"/>')
    kind = f"point {color} lone" if len(points) == 1 else f"point {color}"
    for x, y in points:
        if math.isfinite(y):
            tip = f"{escape(line.name)} {format_number(y)} at {format_number(x)}"
            place = f'cx="{across(x):.1f}" cy="{up(y):.1f}" r="4"'
            parts.append(f'<circle class="{kind}" {place}><title>{tip}</title></circle>')
    return parts


def _legend_entry(line: Series, number: int) -> Markup:
    """A piece of the line as drawn, its name and its last value."""
    last = format_number(line.y[-1]) if len(line.y) else "no value"
    return Markup(
        '<li><svg class="swatch" viewBox="0 0 26 8" aria-hidden="true">'
        '<path class="line c{}" stroke-dasharray="{}" d="M1 4H25"/></svg>{} <span class="last">{}</span></li>'
    ).format(number % COLORS, DASHES[number % len(DASHES)], line.name, last)
