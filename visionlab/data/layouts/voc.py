"""Pascal VOC: an xml file for each image, in ``Annotations/`` beside ``JPEGImages/``, or beside the images."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse

from visionlab.data.annotated import AnnotatedData, AnnotatedPart
from visionlab.data.layouts.names import ROLES, files_below, relative_names, some, unlabelled_folders
from visionlab.data.layouts.voc_files import Images, files_of_set, parts_of
from visionlab.data.problems import Problem

DEPTH = 4  # of folders below the root in which an xml is looked for: VOCdevkit/VOC2007/Annotations
SIDES = ("xmin", "ymin", "xmax", "ymax")


def read(root: str, roles: Collection[str] = ROLES) -> AnnotatedData | None:
    """Read a VOC dataset, if a folder is one.

    Parts are told by ``ImageSets/Main/train.txt``, ``val.txt`` and ``test.txt`` (``trainval.txt`` where there is no
    ``train.txt``), else from the names of folders; where nothing tells, all images are to train on. Classes are sorted
    by name. VOC counts pixels from 1 and its last pixel belongs to the box: the corners become ``xmin - 1, ymin - 1,
    xmax, ymax``. A box that begins at 0 begins at the edge of the image.

    An object that is ``difficult`` is an object with a box, as in every COCO json made from VOC. That it is difficult
    stays with it, for VOC's own metrics, which pass it over, and for training that is to leave it out. ``truncated``
    changes nothing.
    """
    files = list(files_below(root, ".xml", DEPTH))
    folders = {os.path.dirname(file) for file in files if _is_voc(file)}
    if not folders:
        return None
    files = [file for file in files if os.path.dirname(file) in folders]
    by_role, notes = parts_of(files, root)
    images = Images.below([root])
    read_ = {role: _Annotations(by_role[role], images) for role in ROLES if role in roles and role in by_role}
    unread = tuple(role for role in ROLES if role in by_role and role not in roles)
    bare = images.without(files, [file for part in read_.values() for file in part.files])
    if bare:
        notes.append(f"{len(bare)} images have no xml file: not used: {some([os.path.relpath(b, root) for b in bare])}")
    return AnnotatedData("VOC", _joined(read_, root), unread, unlabelled_folders(root), tuple(notes))


def read_image_sets(root: str, image_sets: Mapping[str, Sequence[str]]) -> AnnotatedData:
    """Read the images that VOC's own lists name, of one year or of several.

    Args:
        root: the folder that the names start from, ``VOCdevkit``.
        image_sets: for each part ``FOLDER/NAME`` of its lists, such as ``VOC2007/trainval`` and ``VOC2012/trainval``,
            each of which is ``FOLDER/ImageSets/Main/NAME.txt``; without a folder the list lies in ``root``.

    Raises:
        ValueError: there is no such list, or none of its images has an xml file.
    """
    notes: list[str] = []
    by_role: dict[str, list[str]] = {}
    bases: dict[str, None] = {}
    for role, names in image_sets.items():
        files: dict[str, None] = {}
        for name in names:
            base = os.path.normpath(os.path.join(root, os.path.dirname(name)))
            bases[base] = None
            files |= dict.fromkeys(files_of_set(base, os.path.basename(name), notes))
        by_role[role] = list(files)
    images = Images.below(bases)
    read_ = {role: _Annotations(files, images) for role, files in by_role.items()}
    return AnnotatedData("VOC", _joined(read_, root), notes=tuple(notes))


class EntitiesError(ValueError):
    """An xml file that makes use of entities, which can fill any memory."""


def read_xml(file: str) -> Element:
    """Return the root element of an xml file.

    Raises:
        ValueError: the file is no xml, not VOC's, or makes use of entities.
    """
    try:
        found = parse(file).getroot()
    except DefusedXmlException as error:
        raise EntitiesError(f"{file}: expected xml without entities, got {error}") from None
    except (ParseError, ValueError, LookupError, OSError) as error:
        raise ValueError(f"{file}: expected xml, got {error}") from None
    if found.tag != "annotation":
        raise ValueError(f"{file}: expected VOC's <annotation>, got <{found.tag}>")
    return found


def _is_voc(file: str) -> bool:
    with open(file, "rb") as opened:
        return re.search(rb"<annotation[\s>]", opened.read(4096)) is not None


def _joined(parts: Mapping[str, _Annotations], root: str) -> dict[str, AnnotatedPart]:
    """Return the parts in COCO's form, with the classes of all of them, sorted by name."""
    names = sorted({name for part in parts.values() for name in part.names})
    return {role: part.part(root, names) for role, part in parts.items()}


@dataclass
class _Annotations:
    """The xml files of one part."""

    xmls: list[str]
    found: Images
    files: list[str] = field(default_factory=list)
    sizes: list[dict[str, int]] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    at_zero: int = 0

    def __post_init__(self) -> None:
        for xml in self.xmls:
            try:
                annotation = read_xml(xml)
            except EntitiesError:
                raise
            except ValueError as error:
                self.problems.append(Problem("bad-xml", xml, str(error).removeprefix(f"{xml}: "), action="left out"))
                continue
            self._add(xml, annotation)
        kinds = Counter(problem.kind for problem in self.problems)
        for kind, count, total in (
            ("bad-xml", kinds["bad-xml"], len(self.xmls)),
            ("bad-object", kinds["bad-object"], kinds["bad-object"] + len(self.objects)),
        ):
            if 2 * count > total:
                first = next(problem for problem in self.problems if problem.kind == kind)
                raise ValueError(f"{count} of {total} are no VOC annotations, the first: {first}")
        self.names = {entry["name"] for entry in self.objects}

    def _add(self, xml: str, annotation: Element) -> None:
        name = os.path.basename((annotation.findtext("filename") or "").strip().replace("\\", "/"))
        self.files.append(self.found.of(xml, name) or os.path.join(os.path.dirname(xml), name or Path(xml).stem))
        sides = {side: _number(annotation.findtext(f"size/{side}")) for side in ("width", "height")}
        self.sizes.append({side: int(value) for side, value in sides.items() if value is not None and value >= 1})
        for number, entry in enumerate(annotation.iterfind("object"), start=1):
            label = (entry.findtext("name") or "").strip()
            corners = [_number(entry.findtext(f"bndbox/{side}")) for side in SIDES]
            if not label or None in corners:
                got = f"name {label!r} and corners {corners}"
                detail = f"expected a name and bndbox with {', '.join(SIDES)}, got {got}"
                problem = Problem("bad-object", xml, detail, action="left out", place=f"object {number}")
                self.problems.append(problem)
                continue
            x1, y1, x2, y2 = (corner for corner in corners if corner is not None)
            self.at_zero += 0 in (x1, y1)
            # VOC's first pixel is 1; who writes 0 means the edge too.
            x1, y1 = (corner - 1 if corner != 0 else 0.0 for corner in (x1, y1))
            self.objects.append(
                {
                    "image": len(self.files),
                    "name": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "difficult": int(_number(entry.findtext("difficult")) == 1),
                    "place": f"{xml}, object {number}",
                }
            )

    def part(self, root: str, names: Sequence[str]) -> AnnotatedPart:
        """Return the annotations in COCO's form, with the classes in this order."""
        folder, files = relative_names(self.files, root)
        category_ids = {name: number for number, name in enumerate(names, start=1)}
        content = {
            "images": [
                {"id": number, "file_name": name, **size}
                for number, (name, size) in enumerate(zip(files, self.sizes, strict=True), start=1)
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": entry["image"],
                    "category_id": category_ids[entry["name"]],
                    "bbox": entry["bbox"],
                    "iscrowd": 0,
                    "difficult": entry["difficult"],
                }
                for number, entry in enumerate(self.objects, start=1)
            ],
            "categories": [{"id": number, "name": name} for name, number in category_ids.items()],
        }
        places = {n: os.path.relpath(entry["place"], root) for n, entry in enumerate(self.objects, start=1)}
        source = os.path.commonpath([os.path.dirname(os.path.abspath(xml)) for xml in self.xmls])
        return AnnotatedPart(content, folder, source, tuple(self.problems), tuple(self._notes()), places)

    def _notes(self) -> Iterator[str]:
        difficult = sum(entry["difficult"] for entry in self.objects)
        if difficult:
            yield (
                f"{difficult} of {len(self.objects)} objects are marked difficult: used as any other, unless the "
                "settings difficult or evaluate.metrics say otherwise"
            )
        if self.at_zero:
            yield f"{self.at_zero} boxes begin at 0, where VOC counts pixels from 1: taken as the edge of the image"


def _number(text: str | None) -> float | None:
    """Return a finite number that stands in a text, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
