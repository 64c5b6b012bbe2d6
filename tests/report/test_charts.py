"""Charts: ranges, ticks, fronts, escaping, labels that do not overlap; well-formed XML."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.report.charts import (
    Axis,
    Line,
    Place,
    Point,
    Shape,
    front,
    lines_svg,
    min_max,
    pareto_svg,
    radar_svg,
)
from harness.report.charts.canvas import Box, clean, nice_ticks, shorten, text_width, tick_texts
from harness.report.charts.labels import place

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "<script>alert(1)</script> \"'&]]> \u202eمرحبا 🦊\x00\x0b\ud800"
finite = st.floats(-1e9, 1e9, allow_nan=False)


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]


def numbers(svg: str) -> list[float]:
    """All coordinates of marks in the picture."""
    found = []
    for node in ET.fromstring(svg).iter():
        for name in ("cx", "cy", "x", "y", "x1", "x2", "y1", "y2"):
            if name in node.attrib:
                found.append(float(node.attrib[name]))
    return found


@given(finite, finite, st.integers(2, 12))
def test_ticks_enclose_the_range_evenly_and_read_differently(low, high, count):
    ticks = nice_ticks(low, high, count)
    span = ticks[-1] - ticks[0]
    assert ticks[0] <= min(low, high) + 1e-6 * span
    assert ticks[-1] >= max(low, high) - 1e-6 * span
    assert 2 <= len(ticks) <= 2 * count + 3
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)
    written = tick_texts(ticks)
    assert len(set(written)) == len(ticks)
    assert "-" not in "".join(written)


def test_ticks_as_people_choose_them():
    assert tick_texts(nice_ticks(-0.11, 0.19)) == ["−0.2", "−0.1", "0.0", "0.1", "0.2"]
    assert tick_texts(nice_ticks(0, 30_000)) == ["0", "10\u202f000", "20\u202f000", "30\u202f000"]
    assert len(set(tick_texts(nice_ticks(1e6 + 0.1, 1e6 + 0.2)))) >= 3
    assert "−0.0" not in tick_texts(nice_ticks(-1e-17, 1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        pareto_svg([Point("a", 1, bad)], x_label="x", y_label="y")
    with pytest.raises(ValueError, match="finite"):
        lines_svg([Line("a", [Place(0, 1), Place(bad, 1)])], x_label="x", y_label="y")
    with pytest.raises(ValueError, match="at least one"):
        pareto_svg([], x_label="x", y_label="y")
    with pytest.raises(ValueError, match="at least one"):
        lines_svg([Line("empty")], x_label="x", y_label="y")


def test_the_front_is_what_nothing_beats_on_both():
    points = [Point("a", 1, 0), Point("b", 2, 1), Point("c", 2, 0.5), Point("d", 3, 1)]
    assert front(points) == [True, True, False, False]
    assert front(points, higher_is_better=False) == [True, False, False, False]
    twins = [Point("a", 1, 1), Point("b", 1, 1)]
    assert front(twins) == [True, True]  # equal points do not beat one another


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_beats_all_others(pairs):
    points = [Point(str(i), cost, value) for i, (cost, value) in enumerate(pairs)]
    good = [p for p, on in zip(points, front(points), strict=True) if on]
    assert good
    for point in points:
        assert any(g.cost <= point.cost and g.value >= point.value for g in good)


def test_marks_tell_front_and_beaten_apart():
    points = [Point("good", 1, 2, 1, 3), Point("beaten", 2, 1, 0, 2)]
    svg = pareto_svg(points, x_label="cost", y_label="value")
    circles = [node.attrib["style"] for node in ET.fromstring(svg).iter(f"{SVG}circle")]
    assert "fill:var(--chart-0" in circles[0]
    assert "fill:var(--paper" in circles[1]
    assert "value (higher is better ↑)" in texts(svg)
    tips = [node.text for node in ET.fromstring(svg).iter(f"{SVG}title")]
    assert tips == ["good: cost 1, value 2 [1, 3]", "beaten: cost 2, value 1 [0, 2]"]


def test_better_values_stand_higher_and_dearer_ones_to_the_right():
    svg = pareto_svg([Point("a", 1, 5), Point("b", 2, 7)], x_label="x", y_label="y")
    a, b = ET.fromstring(svg).iter(f"{SVG}circle")
    assert float(a.attrib["cx"]) < float(b.attrib["cx"])
    assert float(a.attrib["cy"]) > float(b.attrib["cy"])


def charts(words: str) -> list[str]:
    line = Line(words, [Place(0, 1, 0, 2), Place(1, 2, 1, 3)])
    points = [Point(words, 1, 2, 1, 3), Point(f"{words} again", 1, 2)]
    return [
        pareto_svg(points, x_label=words, y_label=words, title=words, note=words),
        lines_svg([line, line], x_label=words, y_label=words, title=words, note=words),
        radar_svg([Axis(words)] * 3, [Shape(words, [1, 2, None])] * 2, title=words, note=words),
    ]


@pytest.mark.parametrize("words", [NASTY, "", "x" * 400, "漢字" * 60, "a\nb\tc"])
def test_any_text_gives_well_formed_svg_inside_its_picture(words):
    for svg in charts(words):
        root = ET.fromstring(svg)
        assert not [node for node in root.iter() if node.tag == f"{SVG}script"]
        assert not re.search(r"(href|src|url\()", svg)
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        assert all(-1 <= value <= max(width, height) + 1 for value in numbers(svg))
        for node in root.iter(f"{SVG}text"):
            size = float(node.attrib["font-size"])
            room = text_width("".join(node.itertext()), size)
            x, anchor = float(node.attrib["x"]), node.attrib["text-anchor"]
            left = x - {"start": 0, "middle": room / 2, "end": room}[anchor]
            assert left >= -8, "".join(node.itertext())
            assert left + room <= width + 8, "".join(node.itertext())


def test_control_characters_go_and_text_stays():
    assert clean("a\x00<b>\ud800 ü 🦊") == "a&lt;b&gt; ü 🦊"
    assert shorten("short", 200) == "short"
    assert shorten("much too long for that", 60).endswith("…")


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.floats(0, 600), st.floats(0, 300), st.sampled_from(["exact@0.3", "dense"])),
        min_size=1,
        max_size=16,
    )
)
def test_labels_do_not_overlap_and_stay_inside(anchors):
    inside = Box(0, 0, 600, 300)
    labels = place(anchors, [], inside)
    assert len(labels) == len(anchors)
    for one, other in itertools.combinations(labels, 2):
        assert one.box.overlap(other.box) < 1
    for label in labels:
        assert inside.left <= label.box.left
        assert label.box.right <= inside.right + 1e-6
        assert inside.top <= label.box.top
        assert label.box.bottom <= inside.bottom + 1e-6


def test_a_label_far_from_its_point_has_a_leader():
    crowd = [(100.0, 100.0, "the same place")] * 14
    labels = place(crowd, [], Box(0, 0, 400, 300))
    assert any(label.leader for label in labels)
    assert not all(label.leader for label in labels)


def test_best_so_far_is_drawn_in_steps_and_long_series_without_markers():
    steps = lines_svg([Line("s", [Place(0, 0), Place(1, 1)], steps=True)], x_label="x", y_label="y")
    assert re.search(r'd="M[\d. ]+H[\d.]+V[\d.]+"', steps)
    long = [Place(i, i, i - 1, i + 1) for i in range(40)]
    svg = lines_svg([Line("long", long)], x_label="x", y_label="y")
    assert "<circle" not in svg
    assert "opacity:.14" in svg
    short = lines_svg([Line("short", long[:5])], x_label="x", y_label="y")
    assert short.count("<circle") == 5


def test_series_differ_without_colour_too():
    two = [Line(name, [Place(0, 1), Place(1, 2)]) for name in "abcdef"]
    svg = lines_svg(two, x_label="x", y_label="y")
    dashes = set(re.findall(r"stroke-dasharray:([\d. ]+)", svg))
    assert len(dashes) == 5
    assert "<polygon" in svg
    assert "<circle" in svg


def test_min_max_says_best_is_one_in_both_directions():
    assert min_max([1.0, 3.0, 2.0], True) == [0.0, 1.0, 0.5]
    assert min_max([1.0, 3.0, None], False) == [1.0, 0.0, None]
    assert min_max([2.0, 2.0], True) == [1.0, 1.0]


def test_radar_states_direction_ends_and_gaps():
    axes = [Axis("FID", False, 1), Axis("IR"), Axis("CLIP", True, 2)]
    shapes = [Shape("a", [20.0, 0.1, 30.0]), Shape("b", [25.0, None, 31.0])]
    svg = radar_svg(axes, shapes)
    assert {"FID ↓", "IR ↑", "25.0 … 20.0", "30.00 … 31.00"} <= set(texts(svg))
    paths = re.findall(r'<title>(.)</title><path d="([^"]*)"', svg)
    assert [(name, "Z" in path) for name, path in paths] == [("b", False), ("a", True)]
    with pytest.raises(ValueError, match="at least three axes"):
        radar_svg(axes[:2], shapes)
    with pytest.raises(ValueError, match="one value"):
        radar_svg(axes, [Shape("a", [1.0])])
