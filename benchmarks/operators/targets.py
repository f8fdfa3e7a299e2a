"""The targets of the operators' speed as data, and whether a measurement meets them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Target:
    """One target.

    Args:
        text: what it says.
        metric: the field of a row that it is about.
        limit: the value of that field to reach.
        within: whether the limit is the most that is allowed rather than the least.
        where: which rows it is about.
        mean: whether the geometric mean of the rows counts rather than the worst of them.
    """

    text: str
    metric: str
    limit: float
    where: Callable[[dict], bool]
    within: bool = False
    mean: bool = False


def _rows(device: str, *names: str, step: str | None = None, **fields: str) -> Callable[[dict], bool]:
    def fits(row: dict) -> bool:
        exact = all(row[key] in value.split("|") for key, value in fields.items())
        return row["device"] == device and row["op"] in names and step in (None, row["pass"]) and exact

    return fits


def _both(
    text: str, metric: str, limits: tuple[float, float], device: str, *names: str, mean: bool = False, **fields: str
) -> list[Target]:
    """A target for forward and one for forward and backward."""
    within = metric in ("over_conv2d", "extra_bytes")
    return [
        Target(f"{text}, {step}", metric, limit, _rows(device, *names, step=step, **fields), within, mean)
        for step, limit in zip(("forward", "forward+backward"), limits, strict=True)
    ]


FP32 = {"dtype": "float32"}
HALF = {"dtype": "float16|bfloat16", "layout": "channels_last"}
NMS = {"label": "5k dense|5k sparse|20k dense|20k sparse", **FP32}
TARGETS = [
    *_both("deform_conv2d: time over torch's conv2d, channels_last", "over_conv2d", (1.6, 2.5), "cpu", "deform_conv2d",
           layout="channels_last", **FP32),
    *_both("deform_conv2d: share of its own GEMMs", "gemm_share", (0.6, 0.6), "cpu", "deform_conv2d", **FP32),
    *_both("deform_conv2d vs torchvision, mean", "ratio", (2.5, 3), "cpu", "deform_conv2d", mean=True, **FP32),
    *_both("roi_align vs torchvision, channels_last", "ratio", (20, 15), "cpu", "roi_align", layout="channels_last",
           **FP32),
    *_both("roi_align vs torchvision, contiguous", "ratio", (10, 10), "cpu", "roi_align", layout="contiguous", **FP32),
    *_both("roi_pool vs torchvision", "ratio", (20, 15), "cpu", "roi_pool", **FP32),
    *_both("ps_roi_align vs torchvision", "ratio", (4, 4), "cpu", "ps_roi_align", **FP32),
    *_both("ps_roi_pool vs torchvision", "ratio", (4, 4), "cpu", "ps_roi_pool", **FP32),
    Target("nms 5k and 20k vs torchvision", "ratio", 4, _rows("cpu", "nms", **NMS)),
    Target("box_iou vs torchvision", "ratio", 10, _rows("cpu", "box_iou", **FP32)),
    *_both("deform_conv2d: extra memory in MiB", "extra_bytes", (32 * MIB, 32 * MIB), "cpu", "deform_conv2d", **FP32),
    Target("2 threads: share of 1.7x of 1, or of 80 % of the copy bandwidth", "scaling_share", 1,
           lambda row: row["device"] == "cpu"),
    Target("a tiny call: microseconds more than torchvision's", "overhead_us", 20, lambda row: row["device"] == "cpu",
           within=True),
    *_both("deform_conv2d vs torchvision, channels_last halves", "ratio", (3, 3), "cuda", "deform_conv2d", **HALF),
    *_both("roi_align vs torchvision", "ratio", (2, 2), "cuda", "roi_align"),
    *_both("roi_pool vs torchvision", "ratio", (2, 2), "cuda", "roi_pool"),
    Target("nms vs torchvision", "ratio", 1.5, _rows("cuda", "nms", **NMS)),
]  # fmt: skip


def judge(rows: list[dict]) -> list[dict]:
    """Compare rows with every target that is about one of them.

    Returns:
        For each such target ``text``, ``limit``, ``value`` (of its worst ``row``, or the mean), ``met``, and ``by``:
        how many times better than the limit; below 1 it is missed.
    """
    found = []
    for target in TARGETS:
        values = [(row[target.metric], row) for row in rows if target.where(row) and row.get(target.metric) is not None]
        if not values:
            continue
        worst, row = (max if target.within else min)(values, key=lambda pair: pair[0])
        if target.mean:
            worst = math.exp(sum(math.log(value) for value, _ in values) / len(values))
        met = worst <= target.limit if target.within else worst >= target.limit
        by = None if worst <= 0 else target.limit / worst if target.within else worst / target.limit
        where = (
            f"mean of {len(values)}" if target.mean else f"{row['op']} {row['label']} {row['layout']} {row['dtype']}"
        )
        found.append(
            {"text": target.text, "limit": target.limit, "within": target.within, "value": worst, "row": where}
            | {"met": met, "by": by}
        )
    return found
