"""Line charts and histograms as inline SVG: axes, round ticks, a legend with values, and tooltips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

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
class Bars:
    """A named histogram.

    Parameters
    ----------
    name : str
        Shown in the legend and in tooltips.
    counts : sequence of float >= 0
        Values in each bin; drawn as shares of their sum, so that histograms of different size compare.
    mean : float
        Mean of the values, for the legend.
    """

    name: str
    counts: Sequence[float]
    mean: float


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
    values = [(line.name, format_number(line.y[-1]) if len(line.y) else "no value") for line in series]
    return _figure(title, drawing, values, notes)


def histogram_chart(title: str, edges: Sequence[float], bars: Sequence[Bars], x_label: str) -> Markup:
    """An HTML figure of histograms over the same bins, one laid over the other.

    Parameters
    ----------
    title : str
        Caption of the figure.
    edges : sequence of float
        Rising limits of the bins, one more than bins.
    bars : sequence of Bars
        Drawn in different colours and dashes, with at least one value each.
    x_label : str
        Name of the horizontal axis.

    Returns
    -------
    Markup
        A ``<figure>``, safe to insert into a page: all names are escaped.
    """
    shares = [[count / math.fsum(bar.counts) for count in bar.counts] for bar in bars]
    top = 1.06 * max(max(share) for share in shares)
    across = _scale(edges, LEFT, WIDTH - RIGHT, 0.0)
    up = _Scale(0.0, top, HEIGHT - BOTTOM, TOP, round_ticks(0.0, top))
    parts = _axes(across, up, x_label)
    for number, share in enumerate(shares):
        parts += _outline(edges, share, number, across, up)
    parts += _bin_tips(edges, bars, shares, across)
    drawing = _svg(title, [bar.name for bar in bars], parts)
    values = [(bar.name, f"mean {format_number(bar.mean)}") for bar in bars]
    return _figure(title, drawing, values, ["Height: share of the pairs in a bin."])


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
    parts = _axes(across, up, x_label)
    for number, line in enumerate(lines):
        parts += _line(line, number, across, up)
    return _svg(title, [line.name for line in lines], parts)


def _svg(title: str, names: Sequence[str], parts: Sequence[str]) -> Markup:
    label = escape(f"{title}: {', '.join(names)}")
    opening = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return Markup("\n".join([opening, *parts, "</svg>"]))


def _figure(title: str, drawing: Markup, values: Sequence[tuple[str, str]], notes: Sequence[str]) -> Markup:
    """Caption, drawing, and a legend of names with values."""
    legend = Markup("").join(
        _legend_entry(name, value, number) for number, (name, value) in enumerate(values)
    )
    note = Markup('<p class="note">{}</p>').format(" ".join(notes)) if notes else ""
    return Markup(
        '<figure class="chart"><figcaption>{}</figcaption>{}<ul class="legend">{}</ul>{}</figure>'
    ).format(title, drawing, legend, note)


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


def _outline(
    edges: Sequence[float], shares: Sequence[float], number: int, across: _Scale, up: _Scale
) -> list[str]:
    """The steps of a histogram, filled down to the axis."""
    steps = "".join(
        f"V{up(share):.1f}H{across(edge):.1f}" for share, edge in zip(shares, edges[1:], strict=True)
    )
    path = f"M{across(edges[0]):.1f} {up(0):.1f}{steps}V{up(0):.1f}"
    color, dash = f"c{number % COLORS}", DASHES[number % len(DASHES)]
    return [
        f'<path class="area {color}" d="{path}Z"/>',
        f'<path class="line {color}" stroke-dasharray="{dash}" d="{path}"/>',
    ]


def _bin_tips(
    edges: Sequence[float], bars: Sequence[Bars], shares: Sequence[Sequence[float]], across: _Scale
) -> list[str]:
    """An invisible column over each bin that holds anything, with the shares as its tooltip."""
    parts = []
    for place, (low, high) in enumerate(pairwise(edges)):
        if any(share[place] for share in shares):
            names = [
                f"{bar.name} {100 * share[place]:.2f} %" for bar, share in zip(bars, shares, strict=True)
            ]
            tip = escape(f"{', '.join(names)} from {format_number(low)} to {format_number(high)}")
            left, width = across(low), across(high) - across(low)
            box = f'x="{left:.1f}" y="{TOP}" width="{width:.1f}" height="{HEIGHT - BOTTOM - TOP}"'
            parts.append(f'<rect class="bin" {box}><title>{tip}</title></rect>')
    return parts


def _legend_entry(name: str, value: str, number: int) -> Markup:
    """A piece of the line as drawn, its name and a value."""
    return Markup(
        '<li><svg class="swatch" viewBox="0 0 26 8" aria-hidden="true">'
        '<path class="line c{}" stroke-dasharray="{}" d="M1 4H25"/></svg>{} <span class="last">{}</span></li>'
    ).format(number % COLORS, DASHES[number % len(DASHES)], name, value)
