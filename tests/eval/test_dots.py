"""Dots with intervals inside a page."""

import xml.etree.ElementTree as ElementTree

from matplotlib.axes import Axes

from visionlab.eval.dots import Panel, dot_plot
from visionlab.eval.interval import Interval


def texts(svg):
    return {element.text for element in ElementTree.fromstring(svg).iter("text")}


def test_rows_and_measures_are_named():
    panels = [Panel("AP in percent", {"random": Interval(5, 1), "_own": Interval(10, float("inf"))})]
    svg = dot_plot(["random", "_own", "missing"], [*panels, Panel("peak MB", {})])
    assert {"random", " _own", "missing", "AP in percent"} <= texts(svg)
    assert "peak MB" not in texts(svg)
    assert "currentColor" in svg
    assert "#010203" not in svg


def test_nothing_to_draw_is_empty():
    assert dot_plot(["random"], []) == ""
    assert dot_plot(["random"], [Panel("AP", {})]) == ""


def test_dots_and_intervals_are_where_they_belong(monkeypatch):
    drawn, limits = [], []
    errorbar, set_xlim = Axes.errorbar, Axes.set_xlim

    def errorbar_noted(axes, x, y, **style):
        drawn.append((x, y, style["xerr"]))
        return errorbar(axes, x, y, **style)

    def set_xlim_noted(axes, *limit, **others):
        limits.append(limit)
        return set_xlim(axes, *limit, **others)

    monkeypatch.setattr(Axes, "errorbar", errorbar_noted)
    monkeypatch.setattr(Axes, "set_xlim", set_xlim_noted)
    intervals = {"a": Interval(4.0, 1.0), "c": Interval(9.0, float("inf"))}
    dot_plot(["a", "b", "c"], [Panel("x", intervals), Panel("zero", {"b": Interval(0.0, 0.0)})])
    assert drawn == [([4.0, 9.0], [0, 2], [1.0, 0.0]), ([0.0], [1], [0.0])]
    [first, second] = [limit for limit in limits if len(limit) == 2]  # matplotlib itself gives one argument
    assert first[0] == 0
    assert 9 < first[1] < 10
    assert second == (0, 1.0)
