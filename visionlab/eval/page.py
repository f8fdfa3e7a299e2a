"""The pages of reports: one self-contained HTML file, and the same as JSON."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from visionlab import __version__
from visionlab.eval.detection import Metrics
from visionlab.eval.plots import Line, line_plot
from visionlab.eval.records import RunRecord
from visionlab.files import write_text

Plot = tuple[str, Markup]

METRIC_TITLES = {
    "AP": "AP",
    "AP50": "AP, IoU 0.50",
    "AP75": "AP, IoU 0.75",
    "AP_small": "AP, small objects",
    "AP_medium": "AP, medium objects",
    "AP_large": "AP, large objects",
    "AR_1": "AR, 1 per class",
    "AR_10": "AR, 10 per class",
    "AR": "AR",
    "AR_small": "AR, small objects",
    "AR_medium": "AR, medium objects",
    "AR_large": "AR, large objects",
    "mAP": "mAP, IoU 0.50",
}


def write_page(path: Path, template: str, context: dict[str, Any], data: dict[str, Any]) -> Path:
    """Write the HTML that a template makes of ``context``, and ``data`` into a ``.json`` of the same name."""
    loader = jinja2.PackageLoader("visionlab.eval")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["score"] = format_score
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    html = environment.get_template(template).render(context, version=__version__, written=written)
    text = json.dumps(_finite({"visionlab": __version__, "written": written, **data}), indent=2, default=str)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)
    write_text(path.with_suffix(".json"), text + "\n")
    return path


def embed_pictures(record: RunRecord, paths: Sequence[Path], *, max_width: int = 1400) -> list[tuple[str, str]]:
    """Return (name, data URI) of pictures, made smaller where they are wider than a page shows.

    A picture that cannot be read is noted in ``record``.
    """
    pictures = []
    for path in paths:
        try:
            data = path.read_bytes()
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                if picture.width > max_width:
                    picture.thumbnail((max_width, picture.height))
                    buffer = io.BytesIO()
                    picture.convert("RGB").save(buffer, format="JPEG", quality=85)
                    data = buffer.getvalue()
        except OSError as error:
            record.notes.append(f"pictures/{path.name} could not be read: {error}")
            continue
        pictures.append((path.stem, "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")))
    return pictures


def class_rows(metrics: Sequence[Metrics | None]) -> list[tuple[str, list[float | None]]]:
    """Return (class, AP of each run) for the classes that have objects, best first."""
    names = dict.fromkeys(name for one in metrics if one for name in one.per_class)
    rows = [(name, [one.per_class.get(name) if one else None for one in metrics]) for name in names]
    rows = [row for row in rows if any(value is not None for value in row[1])]
    return sorted(rows, key=lambda row: max(value or 0.0 for value in row[1]), reverse=True)


def precision_plot(curves: Sequence[Line]) -> Markup:
    """Return precision over recall."""
    return line_plot(curves, x_label="recall", y_label="precision", x_range=(0, 1), y_min=0, y_max=1.02)


def nonempty(plots: Sequence[Plot]) -> list[Plot]:
    """Return the plots that have something to show."""
    return [plot for plot in plots if plot[1]]


def format_score(value: float | None) -> str:
    """Return a metric in percent; a dash where it is undefined."""
    return "–" if value is None else f"{100 * value:.1f}"


def format_duration(seconds: float | None) -> str:
    """Return hours and minutes, or minutes and seconds."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _finite(value: Any) -> Any:
    """Replace infinite numbers and NaN, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
