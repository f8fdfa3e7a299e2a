"""Pascal VOC: an xml file for each image, in ``Annotations/`` beside ``JPEGImages/``, or beside the images."""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse

from visionlab.data.annotated import AnnotatedData, AnnotatedPart
from visionlab.data.images import SUFFIXES
from visionlab.data.layouts.names import (
    ROLES,
    files_below,
    relative_names,
    role_of_folder,
    some,
    unlabelled_folders,
)
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
    by_role, notes = _parts(files, root)
    images = _Images.below([root])
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
            files |= dict.fromkeys(_files_of_set(base, os.path.basename(name), notes))
        by_role[role] = list(files)
    images = _Images.below(bases)
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


# --- parts and images ------------------------------------------------------------------------------------------------


def _parts(files: Sequence[str], root: str) -> tuple[dict[str, list[str]], list[str]]:
    """Return the xml files of each part, and what is worth saying about those that are in none."""
    by_role: dict[str, list[str]] = defaultdict(list)
    notes: list[str] = []
    bases: dict[str, list[str]] = defaultdict(list)
    for file in files:
        bases[os.path.dirname(os.path.dirname(file))].append(file)
    others: list[str] = []
    for base, own in bases.items():
        lists = _lists(os.path.join(base, "ImageSets", "Main"))
        by_name = {Path(file).stem: file for file in own}
        for role, (name, stems) in lists.items():
            by_role[role] += [by_name[stem] for stem in stems if stem in by_name]
            missing = [stem for stem in stems if stem not in by_name]
            if missing:
                notes.append(f"{len(missing)} names of {name} have no xml file: not used: {some(missing)}")
        listed = {stem for _, stems in lists.values() for stem in stems}
        unlisted = [file for stem, file in by_name.items() if stem not in listed]
        if lists and unlisted:
            notes.append(f"{len(unlisted)} xml files are in no list: not used: {some(unlisted)}")
        elif not lists:
            others += own
    rest: list[str] = []
    for file in others:
        part = role_of_folder(os.path.dirname(file), root)
        (rest if part is None else by_role[part]).append(file)
    if "train" not in by_role:
        by_role["train"] = rest
    elif rest:
        notes.append(f"{len(rest)} xml files lie in no folder of a part: not used: {some(rest)}")
    return {role: found for role, found in by_role.items() if found}, notes


def _lists(folder: str) -> dict[str, tuple[str, list[str]]]:
    """Return file and names of the lists of images of each part in an ``ImageSets/Main``, without those of classes."""
    lists = {}
    for role, names in {"train": ("train", "trainval"), "val": ("val",), "test": ("test",)}.items():
        files = [os.path.join(folder, f"{name}.txt") for name in names]
        file = next((file for file in files if os.path.isfile(file)), None)
        if file is not None:
            lists[role] = file, _stems(file)
    return lists if "train" in lists else {}


def _stems(file: str) -> list[str]:
    """Return the names in a list of images; a list of one class has a flag after each."""
    lines = Path(file).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return [re.sub(r" +-?[01]$", "", line.strip()) for line in lines if line.strip()]


def _files_of_set(base: str, name: str, notes: list[str]) -> list[str]:
    """Return the xml files that a list names; add a note on names without one."""
    lists = os.path.join(base, "ImageSets", "Main")
    file = os.path.join(lists, f"{name}.txt")
    if not os.path.isfile(file):
        there = sorted(path.stem for path in Path(lists).glob("*.txt") if "_" not in path.stem)
        raise ValueError(f"{file}: expected a list of images, got none; there: {', '.join(there) or 'no list'}")
    stems = _stems(file)
    files = {stem: os.path.join(base, "Annotations", f"{stem}.xml") for stem in stems}
    missing = [stem for stem, xml in files.items() if not os.path.isfile(xml)]
    if len(missing) == len(files):
        raise ValueError(f"{file}: expected xml files in {base}/Annotations, got none for its {len(files)} names")
    if missing:
        notes.append(f"{len(missing)} names of {file} have no xml file: not used: {some(missing)}")
    return [xml for stem, xml in files.items() if stem not in set(missing)]


@dataclass(frozen=True)
class _Images:
    """The image files of a folder, by their names with and without suffix."""

    by_name: dict[str, list[str]]
    by_stem: dict[str, list[str]]

    @classmethod
    def below(cls, roots: Iterable[str]) -> _Images:
        by_name, by_stem = defaultdict(list), defaultdict(list)
        for folder, _, names in sorted(found for root in roots for found in os.walk(root)):
            for name in sorted(names):
                if name.lower().endswith(SUFFIXES):
                    by_name[name].append(os.path.join(folder, name))
                    by_stem[os.path.splitext(name)[0]].append(os.path.join(folder, name))
        return cls(by_name, by_stem)

    def of(self, xml: str, name: str) -> str | None:
        """Return the image of an xml file: of its own name, or, if there is none, of the name it gives; the nearest."""
        found = self.by_stem.get(Path(xml).stem) or self.by_name.get(name)
        if not found:
            return None

        def nearness(file: str) -> tuple[bool, bool, int]:
            beside = os.path.dirname(file) == os.path.dirname(xml)
            return beside, os.path.basename(file) == name, len(os.path.commonpath([file, xml]))

        return max(found, key=nearness)

    def without(self, xmls: Sequence[str], used: Sequence[str]) -> list[str]:
        """Return the images that no xml file is for, in the folders of those that are used."""
        stems, folders, known = {Path(xml).stem for xml in xmls}, {os.path.dirname(file) for file in used}, set(used)
        return [
            file
            for stem, files in self.by_stem.items()
            for file in files
            if stem not in stems and os.path.dirname(file) in folders and file not in known
        ]


# --- annotations -----------------------------------------------------------------------------------------------------


@dataclass
class _Annotations:
    """The xml files of one part."""

    xmls: list[str]
    found: _Images
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
