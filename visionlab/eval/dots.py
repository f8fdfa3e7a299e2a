"""Dots with intervals, a row for each name and a panel for each measure, as SVG inside an HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from visionlab.eval.interval import Interval
from visionlab.eval.plots import COLORS, PLOT_STYLE, short_label, to_svg


@dataclass(frozen=True)
class Panel:
    """One measure of several things.

    Args:
        label: what it is, with its unit.
        intervals: by the name of the row; a row without one has no dot.
    """

    label: str
    intervals: Mapping[str, Interval]


def dot_plot(rows: Sequence[str], panels: Sequence[Panel]) -> Markup:
    """Return panels side by side as one ``<svg>`` element; an empty string when no panel has a dot.

    Every axis begins at zero. A mean whose interval is infinite, that of a single sample, has a dot alone.

    Args:
        rows: the names, from top to bottom.
        panels: from left to right; those without a dot are left out.
    """
    panels = [panel for panel in panels if panel.intervals]
    if not panels:
        return Markup("")
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(1.6 + 2.0 * len(panels), 0.8 + 0.24 * len(rows)), layout="constrained")
        FigureCanvasSVG(figure)
        for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
            shown = [(place, panel.intervals[name]) for place, name in enumerate(rows) if name in panel.intervals]
            widths = [each.half_width if isfinite(each.half_width) else 0.0 for _, each in shown]
            means, places = [each.mean for _, each in shown], [place for place, _ in shown]
            axes.errorbar(means, places, xerr=widths, fmt="o", color=COLORS[0], markersize=4, elinewidth=1.4)
            ends = [mean + width for mean, width in zip(means, widths, strict=True)]
            axes.set_xlim(0, 1.06 * max(ends) or 1.0)
            axes.set_xlabel(panel.label)
            axes.grid(True)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        axes.set_yticks(range(len(rows)), [short_label(name) for name in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        return to_svg(figure, f"{', '.join(panel.label for panel in panels)} of {len(rows)} rows")
