"""What an annotated dataset is once it is read, however it lies on disk: content in COCO's form, part by part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from visionlab.data.problems import Problem


@dataclass(frozen=True)
class AnnotatedPart:
    """One part of a dataset, such as the images to train on.

    Args:
        content: the lists ``images``, ``annotations`` and ``categories`` of a COCO json, not checked yet.
        images: the folder that the file names start from.
        source: the file or folder the annotations come from, for messages.
        problems: what was wrong with the files that the content was read from.
        notes: what else is worth saying about them, one line each.
        places: where an annotation stands, by its id, if it is not in a json: "labels/a.txt, line 3".
    """

    content: dict[str, Any]
    images: str
    source: str
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    places: Mapping[Any, str] = field(default_factory=dict)

    def placed(self, problem: Problem) -> Problem:
        """Return a problem that says where its annotation stands, if that is known."""
        return replace(problem, place=self.places.get(problem.annotation_id, ""))


@dataclass(frozen=True)
class AnnotatedData:
    """A dataset, part by part.

    Args:
        recognized: what it was taken for, in words.
        train: the images to train on.
        val: those to evaluate on.
        test: those to measure the final model on.
        unlabelled: folders of images without annotations.
    """

    recognized: str
    train: AnnotatedPart
    val: AnnotatedPart | None = None
    test: AnnotatedPart | None = None
    unlabelled: tuple[str, ...] = ()

    def parts(self) -> Iterator[tuple[str, AnnotatedPart]]:
        """Yield the annotated parts with their roles: train, val, test."""
        for role in ("train", "val", "test"):
            part = getattr(self, role)
            if part is not None:
                yield role, part
