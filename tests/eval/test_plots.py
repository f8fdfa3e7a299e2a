"""Plots as SVG inside a page."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from visionlab.eval.plots import Line, _running_mean, _thin, line_plot


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter("text")]


def test_is_svg_with_the_names_as_text():
    svg = line_plot(
        [Line("loss $x$ <b>", [1, 2], [3.0, 4.0]), Line("_other", [1, 2], [1.0, 2.0])],
        x_label="step",
        y_label="nats & bits",
    )
    names = texts(svg)
    assert {"loss $x$ <b>", " _other", "step", "nats & bits"} <= set(names)
    assert "http" not in svg
    assert "<script" not in svg
    assert "currentColor" in svg
    assert "#010203" not in svg


def test_plot_of_nothing_is_empty():
    assert line_plot([], x_label="x", y_label="y") == ""
    assert line_plot([Line("a", [], [])], x_label="x", y_label="y") == ""


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [1e-30, 1e30], [-1.0, 0.0]])
def test_odd_values_can_be_drawn(values):
    for log in (False, True):
        svg = line_plot([Line("a", range(len(values)), values)], x_label="x", y_label="y", log=log, smooth=True)
        assert texts(svg)


def test_many_lines_are_told_apart():
    svg = line_plot([Line(f"line {i}", [0, 1], [i, i + 1.0]) for i in range(9)], x_label="x", y_label="y")
    assert sum(name.startswith("line") for name in texts(svg) if name) == 9


def test_long_runs_are_thinned_to_means_of_neighbors():
    x, y = _thin(Line("", range(2500), np.arange(2500) * 2.0), most=1000)
    assert len(x) == 834
    assert (x[0], y[0], x[-1], y[-1]) == (1, 2, 2499, 4998)
    x, y = _thin(Line("", [5, 6], [1, 2]))
    assert (x.tolist(), y.tolist()) == ([5, 6], [1, 2])


def test_running_mean_against_a_loop():
    values = np.random.default_rng(0).normal(size=40)
    expected = [values[max(0, i - 3) : i + 4].mean() for i in range(40)]
    assert _running_mean(values, 7) == pytest.approx(expected)


def test_bands_and_named_places():
    axes = {"x_label": "level", "y_label": "accuracy", "x_names": ["stride 4", "stride 8"]}
    plain = line_plot([Line("a", [0, 1], [30.0, 40.0], [float("inf")] * 2)], **axes)
    banded = line_plot([Line("a", [0, 1], [30.0, 40.0], [2.0, float("inf")])], **axes)
    assert {"stride 4", "stride 8"} <= set(texts(plain))
    assert banded.count("<path") > plain.count("<path")
