"""The table of a comparison of methods: every measure as a mean over seeds with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from visionlab.eval.dots import Panel, dot_plot
from visionlab.eval.interval import Interval
from visionlab.eval.over_seeds import Result, count, finished
from visionlab.eval.page import Plot, nonempty, write_page
from visionlab.eval.plots import Line, line_plot
from visionlab.files import write_text


@dataclass(frozen=True)
class Column:
    """A measure.

    Args:
        title: what stands above it.
        place: keys that lead to it in a cell.
        scale: factor to the unit of the title.
        digits: after the point.
    """

    title: str
    place: tuple[str, ...]
    scale: float = 100
    digits: int = 1

    def values(self, cells: Sequence[Result]) -> list[float]:
        """Return the values of the cells that have one."""
        found: list[Any] = list(cells)
        for key in self.place:
            found = [each[key] for each in found if each.get(key) is not None]
        return found

    def interval(self, cells: Sequence[Result]) -> Interval | None:
        """Return mean and interval in the unit of the title; None where no cell has a value."""
        values = [self.scale * value for value in self.values(cells)]
        return Interval.of(values) if values else None

    def text(self, cells: Sequence[Result]) -> str:
        """Return mean and interval; a dash where no cell has a value."""
        interval = self.interval(cells)
        return "–" if interval is None else interval.text(1, self.digits)


DETECTION = [Column(name, ("detection", name)) for name in ("AP", "AP50")]
COSTS = [
    Column("minutes", ("cost", "seconds"), 1 / 60),
    Column("images/s", ("cost", "images_per_second"), 1, 0),
    Column("peak MB", ("cost", "megabytes"), 1, 0),
]


def write_comparison(
    results: Mapping[str, Sequence[Result | None]],
    path: Path,
    *,
    seeds: Sequence[int],
    description: Sequence[str] = (),
) -> Path:
    """Write one table and plots as HTML, and the table as ``.md`` and all numbers as ``.json`` of the same name.

    Args:
        results: method -> for each seed its cell, or None where it is missing: ``probe`` and ``roi`` (level -> measure
            -> value), ``detection``, ``cost``; or ``diverged``.
        path: the HTML file.
        seeds: what the cells of a method belong to.
        description: paragraphs above the table, such as what was held equal.
    """
    cells = {method: finished(row) for method, row in results.items()}
    columns = _columns([cell for row in cells.values() for cell in row])
    header = ["method", "seeds", *(column.title for column in columns)]
    rows = []
    for method, row in results.items():
        numbers = [column.text(cells[method]) for column in columns]
        rows.append([method, count(row), *(numbers if cells[method] else ["missing"] * len(columns))])
    diverged = [
        f"{method}, seed {seed}: {cell['diverged']}"
        for method, row in results.items()
        for seed, cell in zip(seeds, row, strict=True)
        if cell and "diverged" in cell
    ]
    warned = [
        f"{method}, seed {cell['seed']}: {line}"
        for method, row in cells.items()
        for cell in row
        for line in cell.get("warnings", [])
    ]
    note = (
        "Means over seeds ± half of the Student-t 95 % interval; accuracies and AP in percent. Minutes, images/s and "
        "peak MB are of training; peak MB is how far memory rose above what the process held before."
    )
    context = {
        "title": "Comparison of methods",
        "description": [*description, note],
        "header": header,
        "rows": rows,
        "warnings": diverged + warned,
        "dots": _dots(cells),
        "plots": _plots(cells),
        "source": "the cells of a comparison",
    }
    data = {"format": 1, "seeds": list(seeds), "description": list(description), "cells": results}
    page = write_page(path, "comparison.html.j2", context, data)
    lines = [" | ".join(["", *row, ""]).strip() for row in (header, ["---", *["--:"] * (len(header) - 1)], *rows)]
    write_text(path.with_suffix(".md"), "\n".join([*description, note, "", *lines]) + "\n")
    return page


def levels_of(cells: Sequence[Result], part: str) -> list[str]:
    """Return the names of the levels that any cell has, in order."""
    return list(dict.fromkeys(level for cell in cells for level in cell.get(part, {})))


def _columns(cells: Sequence[Result]) -> list[Column]:
    columns = []
    for part, measure, title in (
        ("probe", "linear", "linear"),
        ("probe", "knn", "k-NN"),
        ("roi", "accuracy", "RoI"),
        ("roi", "balanced", "RoI by class"),
    ):
        columns += [Column(f"{title}, {level}", (part, level, measure)) for level in levels_of(cells, part)]
    return columns + [column for column in (*DETECTION, *COSTS) if any(column.place[0] in cell for cell in cells)]


def _dots(cells: Mapping[str, Sequence[Result]]) -> Markup:
    """Return a panel for each of AP, minutes, images/s and peak MB that any cell has."""
    panels = []
    for column in (DETECTION[0], *COSTS):
        intervals = {method: column.interval(row) for method, row in cells.items()}
        label = f"{column.title} in percent" if column in DETECTION else column.title
        panels.append(Panel(label, {method: each for method, each in intervals.items() if each is not None}))
    return dot_plot(list(cells), panels)


def _plots(cells: Mapping[str, Sequence[Result]]) -> list[Plot]:
    """Return a line over the levels for each method and measure."""
    everything = [cell for row in cells.values() for cell in row]
    plots = []
    for part, measure, title in (
        ("probe", "linear", "Linear probe of images"),
        ("probe", "knn", "Nearest neighbors of images"),
        ("roi", "balanced", "Linear probe of boxes, mean over classes"),
    ):
        names = levels_of(everything, part)
        lines = [_line(method, row, part, names, measure) for method, row in cells.items()]
        svg = line_plot(lines, x_label="level", y_label="accuracy in percent", markers=True, x_names=names)
        plots.append((title, svg))
    return nonempty(plots)


def _line(method: str, cells: Sequence[Result], part: str, levels: Sequence[str], measure: str) -> Line:
    samples = [Column(level, (part, level, measure)).values(cells) for level in levels]
    intervals = [(place, Interval.of(values)) for place, values in enumerate(samples) if values]
    return Line(
        method,
        [place for place, _ in intervals],
        [100 * interval.mean for _, interval in intervals],
        [100 * interval.half_width for _, interval in intervals],
    )
