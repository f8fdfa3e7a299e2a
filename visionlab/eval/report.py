"""Reports, made from run folders alone: of one run here, of several in side_by_side.py."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

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

HEADLINES = ("AP", "AP50", "AP75", "mAP")  # of the metrics, as far as an evaluation has them


def write_report(run_folder: str | os.PathLike[str], *, max_pictures: int = 12) -> Path:
    """Write ``report.html``, one self-contained file, and ``report.json`` into a run folder.

    A run in progress can be reported too: where something is missing, its section says so.

    Args:
        run_folder: what a run has written: ``config.yaml``, ``environment.json``, ``metrics.jsonl``, ``eval/`` and
            ``pictures/``.
        max_pictures: how many validation images are shown.

    Returns:
        The path of ``report.html``.

    Raises:
        ValueError: if there is no such folder.
    """
    record = read_run(run_folder)
    best = record.best_step
    context = {
        "title": record.folder.resolve().name,
        "subtitle": _subtitle(record),
        "tiles": _tiles(record),
        "kind": record.kind,
        "warnings": record.warnings,
        **_average_precision(record),
        "class_rows": class_rows([record.final]) if record.final else [],
        "absent": [name for name, value in record.final.per_class.items() if value is None] if record.final else [],
        "validation": embed_pictures(record, record.validation[:max_pictures]),
        "more_validation": max(0, len(record.validation) - max_pictures),
        "offsets": embed_pictures(record, record.offsets),
        "views": embed_pictures(record, record.views),
        "meter_plots": _meter_plots(record),
        "training_plots": _training_plots(record),
        "environment": _facts(record.environment),
        "config": record.config,
        "notes": record.notes,
        "source": "the run folder",
    }
    data = {
        "format": 1,
        **record.to_json(),
        "evaluations": {step: metrics.summary() for step, metrics in record.evaluations.items()},
        "best": {"step": best, **record.evaluations[best].to_json()} if best is not None else None,
        "environment": record.environment,
        "config": record.config,
        "pictures": [f"pictures/{path.name}" for path in (*record.views, *record.validation, *record.offsets)],
    }
    return write_page(record.folder / "report.html", "report.html.j2", context, data)


def _subtitle(record: RunRecord) -> str:
    kind = {"pretrain": "Pretraining", "detect": "Detector training"}.get(record.kind, record.kind.capitalize())
    weights = "weights: " + ", ".join(record.weights) if record.weights else "no weights yet: in progress, or stopped"
    return " · ".join(filter(None, (kind, f"{record.last_step:,} steps logged", weights)))


def _tiles(record: RunRecord) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    if record.final:
        scores = record.final.summary()
        pairs += [(name, format_score(scores[name])) for name in HEADLINES if name in scores]
    for key, name in (
        ("loss", "last loss"),
        ("meters/accuracy", "pretext accuracy"),
        ("meters/embedding_std", "embedding std"),
        ("meters/effective_rank", "effective rank"),
    ):
        values = record.series(key)[1]
        if values and not (record.final and key.startswith("meters/")):
            pairs.append((name, f"{values[-1]:.3g}"))
    speed = record.series("images_per_second")[1]
    if speed:
        pairs.append(("images/s, median", f"{median(speed):.3g}"))
    if record.seconds is not None:
        pairs.append(("time", format_duration(record.seconds)))
    return pairs


def _average_precision(record: RunRecord) -> dict[str, Any]:
    if not record.final or record.best_step is None:
        return dict.fromkeys(("ap_header", "ap_rows", "ap_note", "ap_plots"))
    last, best = max(record.evaluations), record.best_step
    columns = {f"last, step {last:,}": record.final}
    if best != last:
        columns[f"best, step {best:,}"] = record.evaluations[best]
    rows = [
        [METRIC_TITLES[name], *(format_score(metrics.summary().get(name)) for metrics in columns.values())]
        for name in record.final.summary()
    ]
    curves = [Line(f"IoU {iou}", record.final.recall, values) for iou, values in record.final.precision.items()]
    plots = [("Precision and recall, mean over classes", precision_plot(curves))]
    if len(record.evaluations) > 1:
        lines = [Line(name, *record.evaluation_series(name)) for name in HEADLINES]
        plots.append(("AP over training", line_plot(lines, x_label="step", y_label="AP in percent", markers=True)))
    final = record.final
    note = f"{final.what} in percent, over {final.images:,} images and {final.detections:,} detections."
    return {"ap_header": ["", *columns], "ap_rows": rows, "ap_note": note, "ap_plots": nonempty(plots)}


def _training_plots(record: RunRecord) -> list[Plot]:
    names = record.keys("losses/")
    losses = [Line("total", *record.series("loss"))] if len(names) != 1 else []
    losses += [Line(name.removeprefix("losses/"), *record.series(name)) for name in names]
    shares = [Line("", *record.series("data_wait"))]
    plots = [
        ("Losses", line_plot(losses, x_label="step", y_label="loss", smooth=True)),
        ("Learning rate", line_plot([Line("", *record.series("lr"))], x_label="step", y_label="learning rate")),
        ("Norm of the gradient", _smooth_plot(record, "gradient_norm", "L2 norm")),
        ("Throughput", _smooth_plot(record, "images_per_second", "images per second")),
        ("Waiting for data", line_plot(shares, x_label="step", y_label="share of time", y_min=0, y_max=1, smooth=True)),
    ]
    return nonempty(plots)


def _meter_plots(record: RunRecord) -> list[Plot]:
    captions = {
        "embedding_std": "Standard deviation of the embedding: near 0 is a collapse",
        "effective_rank": "Effective rank of the embedding: near 1 is a collapse",
        "projection_std": "Standard deviation of the projection: near 0, the loss compares nothing",
        "projection_rank": "Effective rank of the projection: near 1, the loss compares nothing",
        "accuracy": "Accuracy of the pretext task",
    }
    plots = []
    for key in record.keys("meters/"):
        name = key.removeprefix("meters/")
        plots.append((captions.get(name, name), _smooth_plot(record, key, name.replace("_", " "))))
    return nonempty(plots)


def _smooth_plot(record: RunRecord, key: str, y_label: str) -> Markup:
    lines = [Line("", *record.series(key))]
    return line_plot(lines, x_label="step", y_label=y_label, y_min=0, smooth=True)


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), _fact(value)) for name, value in values.items()]


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_fact(item)}" for name, item in value.items())
    if isinstance(value, list):  # a command line
        return shlex.join(map(str, value))
    return "–" if value is None else str(value)
