"""The report of several runs side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visionlab.eval.page import (
    METRIC_TITLES,
    Plot,
    class_rows,
    embed_pictures,
    format_duration,
    format_score,
    nonempty,
    precision_plot,
    write_page,
)
from visionlab.eval.plots import Line, line_plot
from visionlab.eval.records import RunRecord, read_run


def write_side_by_side(
    runs: Mapping[str, str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    title: str = "Comparison",
    description: Sequence[str] = (),
    summary: Sequence[Mapping[str, Any]] = (),
    baseline: str | None = None,
    max_pictures: int = 6,
) -> Path:
    """Write one report that compares the last evaluations of several runs, and a ``.json`` of the same name.

    Args:
        runs: label -> run folder.
        path: the HTML file to write.
        title: its heading.
        description: paragraphs below the heading, such as what was held equal.
        summary: rows of a first table, such as means over several seeds; the keys of the first row are the header.
        baseline: the label to which differences are taken; the last one when not given.
        max_pictures: how many validation images are shown.

    Returns:
        ``path``.

    Raises:
        ValueError: if there are fewer than two runs, no such folder, or no such baseline.
    """
    path = Path(path)
    if len(runs) < 2:
        raise ValueError(f"a comparison needs at least two runs, got {list(runs)}")
    baseline = list(runs)[-1] if baseline is None else baseline
    if baseline not in runs:
        raise ValueError(f"baseline must be one of {list(runs)}, got {baseline!r}")
    records = {label: read_run(folder) for label, folder in runs.items()}
    header = list(summary[0]) if summary else []
    context = {
        "title": title,
        "description": description,
        "summary_header": header,
        "summary_rows": [[row.get(name, "") for name in header] for row in summary],
        "warnings": [f"{label}, {line}" for label, record in records.items() for line in record.warnings],
        **_compared_precision(records, baseline),
        "labels": list(records),
        "class_rows": class_rows([record.final for record in records.values()]),
        "training_plots": _compared_training(records),
        "validation": _compared_pictures(records, max_pictures),
        "runs": [_run_link(label, record, path) for label, record in records.items()],
        "notes": [f"{label}: {note}" for label, record in records.items() for note in record.notes],
        "source": "the run folders",
    }
    data = {
        "format": 1,
        "title": title,
        "summary": [dict(row) for row in summary],
        "baseline": baseline,
        "runs": {label: {"folder": _beside(path, r.folder), **r.to_json()} for label, r in records.items()},
    }
    return write_page(path, "side_by_side.html.j2", context, data)


def _compared_precision(records: Mapping[str, RunRecord], baseline: str) -> dict[str, Any]:
    finals = {label: record.final for label, record in records.items() if record.final}
    if not finals:
        return dict.fromkeys(("ap_header", "ap_rows", "ap_note", "ap_plots"))
    reference = finals.get(baseline)
    others = [label for label in finals if label != baseline] if reference else []
    rows = []
    summaries = {label: metrics.summary() for label, metrics in finals.items()}
    for name in dict.fromkeys(name for summary in summaries.values() for name in summary):
        values = {label: summary.get(name) for label, summary in summaries.items()}
        differences = [_difference(values[label], values[baseline]) for label in others]
        rows.append([METRIC_TITLES[name], *map(format_score, values.values()), *differences])
    plots: list[Plot] = []
    for iou in ("0.50", "0.75"):
        curves = [Line(label, m.recall, m.precision[iou]) for label, m in finals.items() if iou in m.precision]
        plots.append((f"Precision and recall at IoU {iou}, mean over classes", precision_plot(curves)))
    header = ["", *finals, *(f"{label} − {baseline}" for label in others)]
    whats = dict.fromkeys(metrics.what for metrics in finals.values())
    note = f"{' / '.join(whats)} of the last evaluation of each run, in percent."
    return {"ap_header": header, "ap_rows": rows, "ap_note": note, "ap_plots": nonempty(plots)}


def _compared_training(records: Mapping[str, RunRecord]) -> list[Plot]:
    scores = [
        (title, line_plot(lines, x_label="step", y_label=f"{name} in percent", markers=True))
        for name, title in METRIC_TITLES.items()
        if name in ("AP", "AP50", "mAP")
        for lines in [[Line(label, *record.evaluation_series(name)) for label, record in records.items()]]
        if any(len(record.evaluations) > 1 for record in records.values())  # a single point says no more than the table
    ]
    losses = [Line(label, *record.series("loss")) for label, record in records.items()]
    rates = [Line(label, *record.series("lr")) for label, record in records.items()]
    plots = [
        *scores,
        ("Loss", line_plot(losses, x_label="step", y_label="total loss", smooth=True)),
        ("Learning rate", line_plot(rates, x_label="step", y_label="learning rate")),
    ]
    return nonempty(plots)


def _compared_pictures(records: Mapping[str, RunRecord], most: int) -> list[tuple[str, str]]:
    """Return the pictures of the same images of every run, next to each other."""
    files = {label: {path.name: path for path in record.validation} for label, record in records.items()}
    shared = sorted(set.intersection(*(set(paths) for paths in files.values())))[:most]
    pictures = []
    for name in shared:
        for label, record in records.items():
            pictures += [(f"{label}: {stem}", uri) for stem, uri in embed_pictures(record, [files[label][name]])]
    return pictures


def _run_link(label: str, record: RunRecord, path: Path) -> dict[str, Any]:
    report = record.folder / "report.html"
    link = _beside(path, report) if report.exists() else ""
    return {
        "label": label,
        "folder": _beside(path, record.folder),
        "steps": record.last_step,
        "time": format_duration(record.seconds),
        "link": link,
    }


def _beside(path: Path, other: Path) -> str:
    """Return where ``other`` is, seen from the folder of ``path``."""
    return Path(os.path.relpath(other, path.parent)).as_posix()


def _difference(value: float | None, reference: float | None) -> str:
    return "–" if value is None or reference is None else f"{100 * (value - reference):+.1f}"
