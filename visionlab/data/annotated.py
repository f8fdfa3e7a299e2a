"""What an annotated dataset is once it is read, however it lies on disk: content in COCO's form, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from visionlab.data.problems import Problem


@dataclass(frozen=True)
class AnnotatedPart:
    """One part of a dataset, such as the images to train on.

    Args:
        content: the lists ``images``, ``annotations`` and ``categories`` of a COCO json, not checked yet. An annotation
            may be ``difficult``, as in VOC; a category that is not ``declared`` is not used unless it is asked for.
        images: the folder that the file names start from.
        source: the file or folder the annotations come from, for messages.
        problems: what was wrong with the files that the content was read from.
        notes: what else is worth saying about them, one line each.
        places: where an annotation stands, by its id, if it is not in a json: "labels/a.txt, line 3".
        sized: whether the sizes of the images were read off their files.
    """

    content: dict[str, Any]
    images: str
    source: str
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    places: Mapping[Any, str] = field(default_factory=dict)
    sized: bool = False

    def placed(self, problem: Problem) -> Problem:
        """Return a problem that says where its annotation stands, if that is known."""
        place = self.places.get(problem.annotation_id)
        return problem if place is None else replace(problem, place=place)

    def __str__(self) -> str:
        return f"{self.source} ({len(self.content['images'])} images, {len(self.content['annotations'])} boxes)"


@dataclass(frozen=True)
class AnnotatedData:
    """A dataset, part by part.

    Args:
        layout: how it lies on disk, in words: "YOLO".
        parts: what was read of it, by role: train, val, test.
        unread: roles of parts that are there and were not read.
        unlabelled: folders of images without annotations.
        notes: what is worth saying about the dataset as a whole, one line each.
    """

    layout: str
    parts: Mapping[str, AnnotatedPart]
    unread: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line: the layout, and what each part is for."""
        what = [f"{role} = {part}" for role, part in self.parts.items()]
        what += [f"{role} is there and not used" for role in self.unread]
        what += [f"unlabelled = {folder}" for folder in self.unlabelled]
        return f"{self.layout}: {', '.join(what)}"
