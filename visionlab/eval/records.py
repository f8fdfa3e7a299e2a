"""What a run folder holds, read so that any run can be reported: a finished one, a running one, a broken one."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from visionlab.eval.detection import Metrics, metrics_from_json

Series = tuple[list[float], list[float]]


@dataclass
class RunRecord:
    """All that a run has written down.

    Args:
        folder: the run folder.
        config: the text of ``config.yaml``; empty when there is none.
        environment: what ``environment.json`` says.
        rows: what was logged, one dict per step, in order.
        evaluations: step -> metrics, in order.
        views: pictures of what went in.
        validation: pictures of validation images.
        offsets: pictures of where deformable parts of a detector look in some of them.
        warnings: what the run warned of, with the step.
        notes: which files are missing or could not be read.
    """

    folder: Path
    config: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[int, Metrics] = field(default_factory=dict)
    views: list[Path] = field(default_factory=list)
    validation: list[Path] = field(default_factory=list)
    offsets: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """``pretrain`` or ``detect``, as the environment says or as the records show; empty when nothing tells."""
        if "task" in self.environment:
            return str(self.environment["task"])
        keys = self.keys()
        if self.evaluations or self.validation or any(key.startswith(("eval/", "losses/rpn")) for key in keys):
            return "detect"
        return "pretrain" if self.views or any(key.startswith("meters/") for key in keys) else ""

    @property
    def weights(self) -> list[str]:
        """The names of the weight files that the run has left."""
        return sorted(path.name for path in self.folder.glob("*.safetensors"))

    @property
    def last_step(self) -> int:
        """The last step that was logged, 0 when none was."""
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def seconds(self) -> float | None:
        """How long the run has taken."""
        return max(self.series("time")[1], default=None)

    @property
    def best_step(self) -> int | None:
        """The step of the evaluation with the highest AP, or mAP where it is VOC's."""
        scores = {step: getattr(metrics, metrics.headline) or 0.0 for step, metrics in self.evaluations.items()}
        return max(scores, key=lambda step: scores[step], default=None)

    @property
    def final(self) -> Metrics | None:
        """The metrics of the last evaluation."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else None

    def keys(self, prefix: str = "") -> list[str]:
        """Return the names of all logged numbers that start with ``prefix``, in the order in which they came."""
        return [key for key in dict.fromkeys(key for row in self.rows for key in row) if key.startswith(prefix)]

    def series(self, key: str) -> Series:
        """Return the steps at which a number was logged and was finite, and its values."""
        points = [(row["step"], row[key]) for row in self.rows if _is_finite(row.get(key))]
        return [step for step, _ in points], [value for _, value in points]

    def evaluation_series(self, name: str) -> Series:
        """Return the steps of the evaluations and one of their metrics in percent, where it is defined."""
        found = {step: metrics.summary().get(name) for step, metrics in self.evaluations.items()}
        values = {step: 100 * value for step, value in found.items() if value is not None}
        return list(values), list(values.values())

    def to_json(self) -> dict[str, Any]:
        """Return what a report of the run says in numbers, as plain JSON."""
        losses = {key: self.series(key)[1][-1:] for key in ("loss", *self.keys("losses/"), *self.keys("meters/"))}
        speed, waiting = (self.series(key)[1] for key in ("images_per_second", "data_wait"))
        return {
            "run": self.folder.resolve().name,
            "task": self.kind,
            "steps": self.last_step,
            "seconds": self.seconds,
            "images_per_second": median(speed) if speed else None,
            "data_wait": median(waiting) if waiting else None,
            "last": {key: value[0] for key, value in losses.items() if value},
            "evaluation": {"step": max(self.evaluations), **self.final.to_json()} if self.final else None,
            "weights": self.weights,
            "warnings": self.warnings,
            "notes": self.notes,
        }


def read_run(folder: str | os.PathLike[str]) -> RunRecord:
    """Read a run folder; what is missing or damaged is noted, not raised.

    Raises:
        ValueError: if there is no such folder.
    """
    record = RunRecord(Path(folder))
    if not record.folder.is_dir():
        raise ValueError(f"a report is made from a run folder, {folder} is not a folder")
    record.config = _read_text(record, "config.yaml")
    environment = _parse(record, "environment.json", _read_text(record, "environment.json") or "{}")
    record.environment = environment if isinstance(environment, dict) else {}
    _read_metrics(record)
    _read_evaluations(record)
    pictures = sorted((record.folder / "pictures").glob("*.jpg"))
    record.views = [path for path in pictures if path.name.startswith("views")]
    record.validation = [path for path in pictures if path.name.startswith("val")]
    record.offsets = [path for path in pictures if path.name.startswith("offsets")]
    return record


def last_scores(folder: Path) -> dict[str, float]:
    """Return AP and AP50 of the last evaluation, by COCO's metrics, of a detector's run."""
    last = sorted(path for path in (folder / "eval").glob("step_*.json") if path.stem.count("_") == 1)[-1]
    metrics = json.loads(last.read_text())["metrics"]
    return {name: metrics[name] for name in ("AP", "AP50")}


def _read_text(record: RunRecord, name: str) -> str:
    try:
        return (record.folder / name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        record.notes.append(f"{name} is missing")
    except OSError as error:
        record.notes.append(f"{name} could not be read: {error.strerror}")
    return ""


def _parse(record: RunRecord, name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        record.notes.append(f"{name} could not be read: {error}")
        return None


def _read_metrics(record: RunRecord) -> None:
    """Read the log; where a resumed run went back some steps, what it logged later replaces what it logged before."""
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(_read_text(record, "metrics.jsonl").splitlines(), start=1):
        row = _parse(record, f"metrics.jsonl, line {number},", line) if line.strip() else None
        step = row.get("step") if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(step, int):
            if row is not None:
                record.notes.append(f"metrics.jsonl, line {number}, has no step")
            continue
        while rows and next(reversed(rows)) > step:
            rows.popitem()
        for kind in ("warning", "error"):
            if kind in row:
                record.warnings.append(f"step {step}: {row.pop(kind)}")
        rows.setdefault(step, {}).update(row)
    record.rows = list(rows.values())


def _read_evaluations(record: RunRecord) -> None:
    evaluations = {}
    for path in sorted((record.folder / "eval").glob("step_*.json")):
        if path.stem.endswith("_results"):
            continue
        data = _parse(record, f"eval/{path.name}", _read_text(record, f"eval/{path.name}"))
        if data is None:
            continue
        try:
            evaluations[int(data["step"])] = metrics_from_json(data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            record.notes.append(f"eval/{path.name} could not be read: {type(error).__name__} {error}")
    record.evaluations = dict(sorted(evaluations.items()))


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
