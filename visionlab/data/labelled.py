"""Images to train a detector on and images to evaluate it on, made from the parts of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from visionlab import distributed
from visionlab.data.annotated import AnnotatedData, AnnotatedPart
from visionlab.data.coco import CocoDataset
from visionlab.data.copies import find_leaks
from visionlab.data.difficult import Difficult, without_difficult
from visionlab.data.selection import ClassSelection, Selection, Validation
from visionlab.data.split import split_part


@dataclass(frozen=True)
class LabelledData:
    """Images to train on, and those to evaluate on, if any, with the same classes in the same order.

    Args:
        train: the images to train on.
        val: those to evaluate on.
        notes: what is worth saying about them, one line each.
    """

    train: CocoDataset
    val: CocoDataset | None
    notes: tuple[str, ...] = ()


def labelled_data(
    data: AnnotatedData,
    out: Path,
    labels: ClassSelection,
    selection: Selection,
    validation: Validation,
    *,
    difficult: Difficult = "use",
) -> LabelledData:
    """Make the images to train and evaluate on from the parts of a dataset.

    Args:
        data: the dataset, of which the part to train on is read, and that to evaluate on if there is one.
        out: the run folder; a split is written there.
        labels: which classes are used, and whether images without a box are trained on.
        selection: which images are trained on, and what is done with faulty ones.
        validation: what is evaluated on, with the same classes, images without a box and no limit.
        difficult: what objects to train on that are marked difficult are; in what is evaluated on they stay objects.

    Raises:
        ValueError: there is nothing to train on, or the part to evaluate on is not there or there twice.
    """
    train_part, val_part = data.parts.get("train"), data.parts.get(validation.evaluate_on)
    if train_part is None:
        raise ValueError(f"expected images to train on, got {data}{''.join(f'; {note}' for note in data.notes)}")
    if validation.evaluate_on == "test" and val_part is None:
        raise ValueError(f"evaluate_on: expected val, for there is no other part, got test; {data}")
    if validation.val_fraction is not None and val_part is not None:
        raise ValueError(
            f"val_fraction: expected none, for {val_part.source} is there to evaluate on, got {validation.val_fraction}"
        )
    classes, notes = _classes([part for part in (train_part, val_part) if part is not None], labels)
    notes = [str(data), *data.notes, *notes]
    if validation.val_fraction is not None:
        train_part, val_part = _split(train_part, out, validation)
    train_part = without_difficult(train_part, difficult)
    notes += train_part.notes
    train = CocoDataset(train_part, classes=classes, keep_empty=labels.keep_empty, selection=selection, role="training")
    if all(record.crowd.all() for record in train.records):
        raise ValueError(f"{train.source}: expected a box to train on in at least one of {len(train)} images, got none")
    if val_part is None:
        return LabelledData(train, None, tuple(notes))
    val = CocoDataset(val_part, classes=train.classes, policy=selection.policy, role="validation")
    return LabelledData(train, val, (*notes, *val_part.notes, *_leak_notes(train, val)))


# --- classes ---------------------------------------------------------------------------------------------------------


def class_counts(part: AnnotatedPart) -> Counter[str]:
    """Return the number of boxes of each class that is declared or used, in the order of the classes' ids."""
    rows = part.content["categories"]
    names = {_key(row.get("id")): str(row.get("name")) for row in sorted(rows, key=lambda row: _key(row.get("id")))}
    counts = Counter(dict.fromkeys(names.values(), 0))
    for entry in part.content["annotations"]:
        name = names.get(_key(entry.get("category_id")))
        if name is not None:
            counts[name] += 1
    return counts


def undeclared(part: AnnotatedPart) -> set[str]:
    """Return the classes that labels use without anything naming them."""
    return {str(row.get("name")) for row in part.content["categories"] if not row.get("declared", True)}


def _classes(parts: Sequence[AnnotatedPart], labels: ClassSelection) -> tuple[list[str] | None, list[str]]:
    """Return the classes to use, None for all, and what is worth saying of them."""
    if labels.classes is not None or labels.keep_unused:
        return labels.classes, []
    counts = [class_counts(part) for part in parts]
    train, total = counts[0], sum(counts, Counter())  # adding leaves out what is zero
    unused = [name for name in train if name not in total]
    without = undeclared(parts[0])
    classes = [name for name in train if name in total and name not in without]
    notes = []
    if unused:
        notes.append(f"classes that no box uses are left out: {', '.join(unused)}; `keep_unused: true` keeps them")
    for name in classes:
        if not train[name]:
            notes.append(f"class {name}: no box to train on, {total[name]} to evaluate on")
    lost = {name: count for name, count in total.items() if name not in train}
    if lost:
        notes.append(
            f"{sum(lost.values())} boxes to evaluate on are left out: no class to train on is {', '.join(lost)}"
        )
    return (classes if classes and len(classes) < len(train) else None), notes


def _key(value: Any) -> tuple[float, str]:
    """Return an id as it may be compared, whether it is a number or the text of one."""
    try:
        return float(value), ""
    except (TypeError, ValueError):
        return float("inf"), str(value)


# --- what is evaluated on --------------------------------------------------------------------------------------------


def _leak_notes(train: CocoDataset, val: CocoDataset) -> list[str]:
    """Return a line if images to evaluate on are copies of images to train on, as far as names and bytes tell.

    Looks, for which every image must be decoded, are left to the checker.
    """
    if not distributed.is_main():
        return []
    parts = {name: [record.file for record in part.records] for name, part in (("train", train), ("val", val))}
    return [f"leak: {leak}; `visionlab check-data` names all" for leak in find_leaks(parts, near_copies=None)]


def _split(part: AnnotatedPart, out: Path, validation: Validation) -> tuple[AnnotatedPart, AnnotatedPart]:
    """Split images into those to train on and those to evaluate on, with a bar that shows how far it has come."""
    assert validation.val_fraction is not None
    console = Console()
    with Progress(console=console, transient=True, disable=not (distributed.is_main() and console.is_terminal)) as bars:
        bar = bars.add_task("looking for copies", total=None)
        return split_part(
            part,
            folder=str(out),
            val_fraction=validation.val_fraction,
            seed=validation.split_seed,
            near_copies=validation.near_copies,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
