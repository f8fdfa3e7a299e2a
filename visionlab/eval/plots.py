"""Line plots as SVG inside an HTML page, in the page's text color."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from visionlab.eval.drawing import PALETTE

COLORS = [tuple(channel / 255 for channel in PALETTE[i]) for i in (4, 5, 2, 6, 1, 0)]
_STYLES = ("-", "--", ":", "-.")
_TEXT = "#010203"  # stands for the text color of the page until the SVG is written
PLOT_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "visionlab",
    "text.parse_math": False,  # a dollar sign in a class name is a dollar sign
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.2,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.formatter.useoffset": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _TEXT),
    "grid.color": _TEXT,
}


@dataclass
class Line:
    """One line of a plot.

    Args:
        label: its name in the legend; empty for none.
        x: N numbers.
        y: N finite numbers.
        spread: half of the height of a band around y, N numbers; none where it is not given or not finite.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()


def line_plot(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_min: float | None = None,
    y_max: float | None = None,
    log: bool = False,
    smooth: bool = False,
    markers: bool = False,
    x_names: Sequence[str] = (),
) -> Markup:
    """Return lines as an ``<svg>`` element; an empty string when no line has a point.

    Args:
        lines: what to draw, in the order of the legend.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.
        x_range: where x begins and ends.
        y_min: where y begins; the data decide when not given.
        y_max: where y ends; the data decide when not given.
        log: whether y is logarithmic (where all values are positive).
        smooth: whether to draw a running mean, over the values themselves in a faint line.
        markers: whether to mark the points.
        x_names: what stands below x = 0, 1, 2, … in place of numbers.
    """
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return Markup("")
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for i, line in enumerate(lines):
            style: dict[str, Any] = {
                "color": COLORS[i % len(COLORS)],
                "linestyle": _STYLES[i // len(COLORS) % len(_STYLES)],
            }
            style |= {"marker": "o", "markersize": 3.5} if markers or len(line.x) == 1 else {}
            x, y = _thin(line)
            if smooth and len(x) >= 30:
                axes.plot(x, y, **style | {"linewidth": 0.6, "alpha": 0.35})
                y = _running_mean(y, max(3, len(y) // 25))
            axes.plot(x, y, label=short_label(line.label), **style)
            if np.isfinite(line.spread).any():
                spread = np.nan_to_num(np.asarray(line.spread, dtype=float), posinf=0)
                low, high = (np.asarray(line.y) + sign * spread for sign in (-1, 1))
                axes.fill_between(line.x, low, high, color=style["color"], alpha=0.12, linewidth=0)
        if log and all(min(line.y) > 0 for line in lines):
            axes.set_yscale("log")
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_xlim(x_range)
        if x_names:
            axes.set_xticks(range(len(x_names)), x_names)
        axes.set_ylim(y_min, y_max)
        axes.grid(True)
        if any(line.label for line in lines):
            if len(lines) > 8:  # a legend of so many names would cover the lines
                figure.legend(loc="outside right upper")
            else:
                axes.legend(ncols=2 if len(lines) > 4 else 1)
        return to_svg(figure, f"{y_label} over {x_label}")


def short_label(text: str) -> str:
    """Shorten a name, and keep matplotlib from leaving names with a leading underscore out of the legend."""
    text = text if len(text) <= 40 else text[:39] + "…"
    return " " + text if text.startswith("_") else text


def _thin(line: Line, most: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Return at most ``most`` points: means of neighbors where there are more."""
    x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
    size = -(-len(x) // most)
    starts = np.arange(0, len(x), size)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of the ``width`` values around each place (of as many as there are near the ends)."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    places = np.arange(len(values))
    starts, ends = np.maximum(places - width // 2, 0), np.minimum(places + width // 2 + 1, len(values))
    return (total[ends] - total[starts]) / (ends - starts)


def to_svg(figure: Figure, description: str) -> Markup:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_TEXT, "currentColor").replace("xlink:href", "href")
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    svg = re.sub(r"^<svg[^>]*>", f'<svg {view_box[0]} role="img" aria-label="{Markup.escape(description)}">', svg)
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg)  # names of parts, which several plots of a page would share
    return Markup(svg)
