"""Line charts: ticks, geometry, gaps, thinning, escaping; read back as XML."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from avssl.report.charts import (
    BOTTOM,
    HEIGHT,
    MAX_POINTS,
    WIDTH,
    Bars,
    Series,
    format_number,
    histogram_chart,
    line_chart,
    round_ticks,
)


def _figure(*series, title="Loss"):
    return ElementTree.fromstring(str(line_chart(title, series)))


def _points(figure, line=0):
    text = figure.findall("./svg/polyline")[line].get("points")
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.07, 0.31, [0.1, 0.15, 0.2, 0.25, 0.3]),
        (-3, 3, [-3, -2, -1, 0, 1, 2, 3]),
    ],
)
def test_round_ticks_are_round_and_inside(low, high, expected):
    assert round_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    "value, text",
    [(12000.4, "12,000"), (0.25134, "0.2513"), (3e-5, "3e-05"), (0.0, "0"), (float("nan"), "nan"), (7, "7")],
)
def test_format_number_is_short(value, text):
    assert format_number(value) == text


def test_chart_maps_a_straight_line_to_a_straight_line_inside_the_frame():
    points = _points(_figure(Series("loss", [0, 5, 10], [1.0, 2.0, 3.0])))
    assert points[1] == pytest.approx([(points[0][i] + points[2][i]) / 2 for i in (0, 1)], abs=0.11)
    assert points[0][1] > points[2][1]
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in points)


def test_chart_puts_ticks_where_their_values_are():
    figure = _figure(Series("loss", [0, 100], [0.0, 10.0]))
    (x0, y0), (x1, y1) = _points(figure)
    ticks = {float(text.text.replace(",", "")): text for text in figure.findall("./svg/text[@class='tick']")}
    horizontal = {
        value: float(text.get("x")) for value, text in ticks.items() if text.get("text-anchor") == "middle"
    }
    assert horizontal[40] == pytest.approx(x0 + 0.4 * (x1 - x0), abs=0.2)
    vertical = float(ticks[4].get("y")) - 4
    assert vertical == pytest.approx(y0 + 0.4 * (y1 - y0), abs=0.2)


def test_chart_breaks_the_line_at_nan_and_says_so():
    figure = _figure(Series("loss", [1, 2, 3, 4, 5], [5.0, 4.0, math.nan, math.inf, 1.0]))
    assert [len(_points(figure, line)) for line in (0, 1)] == [2, 1]
    assert figure.find("./p").text == "Not drawn: 2 without a finite value."
    assert "inf" not in ElementTree.tostring(figure.find("./svg"), encoding="unicode")


def test_chart_without_a_finite_value_has_no_drawing_but_a_note():
    figure = _figure(Series("loss", [1, 2], [math.nan, math.nan]))
    assert figure.find("./svg") is None
    assert "No finite value was logged." in figure.find("./p").text


@pytest.mark.parametrize("value", [0.0, 3.2, -1e-9, 1e12])
def test_chart_of_a_constant_or_a_single_value_is_drawn(value):
    assert len(_points(_figure(Series("log_z", [10, 20], [value, value])))) == 2
    lone = _figure(Series("log_z", [10], [value])).find("./svg/circle")
    assert "lone" in lone.get("class").split()


def test_chart_thins_long_series_to_means_and_says_so():
    steps = list(range(1, 1601))
    figure = _figure(Series("loss", steps, [float(step) for step in steps]))
    tips = [title.text for title in figure.findall("./svg/circle/title")]
    assert len(tips) == MAX_POINTS
    assert tips[0] == "loss 5.5 at 10"
    assert tips[-1] == "loss 1,596 at 1,600"
    assert figure.find("./p").text == "Each point is the mean of up to 10 records."


def test_chart_thinning_passes_over_single_nans_but_counts_them():
    values = [1.0] * 320
    values[7] = math.nan
    figure = _figure(Series("loss", list(range(320)), values))
    assert len(_points(figure)) == 160
    assert "Not drawn: 1 without" in figure.find("./p").text


def test_chart_names_every_line_in_legend_label_and_tooltip():
    figure = _figure(
        Series("loss_v2a", [1, 2], [2.0, 1.0]), Series("loss_a2v", [1, 2], [3.0, 0.5]), title="Terms"
    )
    entries = ["".join(entry.itertext()) for entry in figure.findall("./ul/li")]
    assert entries == ["loss_v2a 1", "loss_a2v 0.5"]
    assert figure.find("./svg").get("aria-label") == "Terms: loss_v2a, loss_a2v"
    assert len({line.get("class") for line in figure.findall("./svg/polyline")}) == 2
    assert len({line.get("stroke-dasharray") for line in figure.findall("./svg/polyline")}) == 2
    assert figure.find("./svg/circle/title").text == "loss_v2a 2 at 1"


def test_chart_escapes_names():
    name = '"><script>alert(1)</script>&'
    figure = _figure(Series(name, [1, 2], [1.0, 2.0]), title=name)
    assert figure.find(".//script") is None
    assert figure.find("./figcaption").text == name
    assert figure.find("./svg").get("aria-label") == f"{name}: {name}"


def _histogram(*bars, title="Cosines"):
    return ElementTree.fromstring(str(histogram_chart(title, [-1.0, 0.0, 0.5, 1.0], bars, "cosine")))


def test_histogram_draws_shares_from_the_axis_so_that_sizes_compare():
    figure = _histogram(Bars("few", [1, 3, 0], 0.1), Bars("many", [100, 300, 0], 0.2))
    areas = [area.get("d") for area in figure.findall("./svg/path") if "area" in area.get("class")]
    assert areas[0] == areas[1]
    heights = [HEIGHT - BOTTOM - float(part.split("H")[0]) for part in areas[0].split("V")[1:4]]
    assert heights[1] == pytest.approx(3 * heights[0], abs=0.3)
    assert heights[2] == 0
    assert areas[0].endswith(f"V{HEIGHT - BOTTOM:.1f}Z")


def test_histogram_tells_means_and_the_shares_of_each_bin_that_is_not_empty():
    figure = _histogram(Bars("positives", [0, 3, 1], 0.51), Bars("random", [0, 1, 0], 0.02))
    assert ["".join(entry.itertext()) for entry in figure.findall("./ul/li")] == [
        "positives mean 0.51",
        "random mean 0.02",
    ]
    assert [title.text for title in figure.findall("./svg/rect/title")] == [
        "positives 75.00 %, random 100.00 % from 0 to 0.5",
        "positives 25.00 %, random 0.00 % from 0.5 to 1",
    ]
    widths = [float(box.get("width")) for box in figure.findall("./svg/rect")]
    assert widths[0] == pytest.approx(widths[1], abs=0.11)
    assert figure.find("./svg").get("aria-label") == "Cosines: positives, random"


def test_histogram_escapes_names():
    name = '"><script>alert(1)</script>&'
    figure = _histogram(Bars(name, [1, 0, 0], 0.0), title=name)
    assert figure.find(".//script") is None
    assert figure.find("./svg").get("aria-label") == f"{name}: {name}"
