"""Which xml files of a VOC dataset belong to which part, and which image to which xml file."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from visionlab.data.images import SUFFIXES
from visionlab.data.layouts.names import role_of_folder, some


def parts_of(files: Sequence[str], root: str) -> tuple[dict[str, list[str]], list[str]]:
    """Return the xml files of each part, and what is worth saying about those that are in none."""
    by_role: dict[str, list[str]] = defaultdict(list)
    notes: list[str] = []
    bases: dict[str, list[str]] = defaultdict(list)
    for file in files:
        bases[os.path.dirname(os.path.dirname(file))].append(file)
    others: list[str] = []
    for base, own in bases.items():
        by_name = {Path(file).stem: file for file in own}
        lists = _lists(os.path.join(base, "ImageSets", "Main"), by_name)
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


def _lists(folder: str, known: Collection[str]) -> dict[str, tuple[str, list[str]]]:
    """Return file and names of the lists of images of each part in an ``ImageSets/Main``, without those of classes."""
    lists = {}
    for role, names in {"train": ("train", "trainval"), "val": ("val",), "test": ("test",)}.items():
        files = [os.path.join(folder, f"{name}.txt") for name in names]
        file = next((file for file in files if os.path.isfile(file)), None)
        if file is not None:
            lists[role] = file, _stems(file, known)
    return lists if "train" in lists else {}


def _stems(file: str, known: Collection[str]) -> list[str]:
    """Return the names in a list of images, without the flags of a list of one class; a known name may end like one."""
    lines = Path(file).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    return [name if name in known else re.sub(r" +-?[01]$", "", name) for name in names]


def files_of_set(base: str, name: str, notes: list[str]) -> list[str]:
    """Return the xml files that a list names; add a note on names without one."""
    lists, annotations = os.path.join(base, "ImageSets", "Main"), os.path.join(base, "Annotations")
    file = os.path.join(lists, f"{name}.txt")
    if not os.path.isfile(file):
        there = sorted(path.stem for path in Path(lists).glob("*.txt") if "_" not in path.stem)
        raise ValueError(f"{file}: expected a list of images, got none; there: {', '.join(there) or 'no list'}")
    known = {path.stem for path in Path(annotations).glob("*.xml")}
    stems = list(dict.fromkeys(_stems(file, known)))
    missing = [stem for stem in stems if stem not in known]
    if len(missing) == len(stems):
        raise ValueError(f"{file}: expected xml files in {annotations}, got none for its {len(stems)} names")
    if missing:
        notes.append(f"{len(missing)} names of {file} have no xml file: not used: {some(missing)}")
    return [os.path.join(annotations, f"{stem}.xml") for stem in stems if stem in known]


@dataclass(frozen=True)
class Images:
    """The image files of some folders, by their names with and without suffix."""

    by_name: dict[str, list[str]]
    by_stem: dict[str, list[str]]

    @classmethod
    def below(cls, roots: Iterable[str]) -> Images:
        """Find the images in folders, and in the folders below."""
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
