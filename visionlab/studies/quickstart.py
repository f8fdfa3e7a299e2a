"""From generated images to two detectors in minutes: one from a pretrained backbone, one from a random one."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from visionlab.config.load import load
from visionlab.config.shipped import shipped
from visionlab.eval.records import last_scores
from visionlab.eval.side_by_side import write_side_by_side
from visionlab.run import execute_all
from visionlab.studies.low_labels import ARMS, METRICS


def quickstart(out: Path) -> int | None:
    """Pretrain on generated images, finetune, do the same from random initialization, and compare.

    Args:
        out: the folder of the three runs and of the comparison.

    Returns:
        None, or the exit status of a run that a signal stopped.
    """
    console = Console()
    names = ("pretrain", *ARMS)
    files = {"pretrain": "pretrain", "pretrained": "detect", "random": "detect_from_random"}
    folders = {name: out / name for name in names}
    handed_on = {"pretrained": [f"weights={folders['pretrain'] / 'backbone.safetensors'}"]}
    runs = [
        load(
            shipped(f"quickstart/{files[name]}.yaml"),
            [f"out={folders[name]}", f"data.root={out / 'data'}", *handed_on.get(name, [])],
        )
        for name in names
    ]
    status = execute_all(runs)
    if status:
        return status
    scores = {arm: last_scores(folders[arm]) for arm in ARMS}
    table = Table("validation images: Faster R-CNN from a", *METRICS)
    for arm in ARMS:
        table.add_row(f"{arm} backbone", *(f"{100 * scores[arm][metric]:.1f}" for metric in METRICS))
    console.print(table)
    report = write_side_by_side(
        {arm: folders[arm] for arm in ARMS}, out / "report.html", title="Quickstart: pretrained or random backbone"
    )
    console.print(f"report: {report}", soft_wrap=True)
    return None
