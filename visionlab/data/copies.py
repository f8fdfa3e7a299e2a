"""Copies of one photo among image files: by the names Roboflow gives them, by their bytes, and by their looks.

Mirrored, turned and strongly cropped copies do not look the same; of those only Roboflow's are found, by name.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from visionlab.data.looks import NEAR_COPIES, Looks, Progress
from visionlab.data.problems import Problem

_ROBOFLOW = re.compile(r"(?P<photo>.+?)(_(jpe?g|png|bmp|webp|tiff?))?\.rf\.[0-9a-z]{8,}(\.[a-z0-9]+)?", re.IGNORECASE)


def photo_name(file: str) -> str | None:
    """Return the name of the photo that Roboflow made a file of, or None if the name is not one of Roboflow's.

    ``a/cat_jpg.rf.0123456789abcdef.jpg`` and ``b/cat.rf.fedcba9876543210.jpg`` are both of ``cat``.
    """
    match = _ROBOFLOW.fullmatch(re.split(r"[/\\]", file)[-1])
    return match["photo"] if match else None


# --- groups of one photo ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhotoGroups:
    """Image files, those of one photo together.

    Args:
        labels: ``(N,)`` int64, the group of each file: the index of its first member.
        joined: by how many groups there are fewer because of equal names, equal bytes, equal looks.
    """

    labels: NDArray[np.int64]
    joined: Mapping[str, int]

    def members(self) -> list[list[int]]:
        """Return the indices of each group's files."""
        groups: dict[int, list[int]] = defaultdict(list)
        for index, label in enumerate(self.labels.tolist()):
            groups[label].append(index)
        return list(groups.values())

    def describe(self, files: Sequence[str]) -> str:
        """Return how many photos these files are of, why, and how large the largest group is, in words."""
        groups = self.members()
        if len(groups) == len(files):
            return f"{len(files)} photos, none of them twice"
        kinds = ", ".join(f"{count} by {kind}" for kind, count in self.joined.items() if count)
        largest = max(groups, key=len)
        names = f"{files[largest[0]]} … {files[largest[-1]]}"
        return f"{len(files)} images of {len(groups)} photos (copies: {kinds}), up to {len(largest)} of one: {names}"


def group_photos(
    files: Sequence[str], *, near_copies: float | None = NEAR_COPIES, progress: Progress | None = None
) -> PhotoGroups:
    """Put the files of one photo together.

    What belongs together is passed on: of A and B, and B and C, come groups of A, B and C.

    Args:
        files: paths of images; a file that cannot be read is told by its name alone.
        near_copies: the share in which the hashes of two images that look the same may differ (``Looks``), from 0 to 1;
            0 or None leaves looks out, and reads no pixels.
        progress: called with the number of files read and their total.
    """
    labels = np.arange(len(files))
    joined = {}
    for kind, same in _steps(files, near_copies, progress):
        before = len(np.unique(labels))
        for indices in same:
            _join(labels, indices)
        joined[kind] = before - len(np.unique(labels))
    return PhotoGroups(labels, joined)


def _steps(
    files: Sequence[str], near_copies: float | None, progress: Progress | None
) -> Iterator[tuple[str, Iterable[NDArray[np.int64]]]]:
    yield "name", _equal(map(photo_name, files))
    yield "bytes", _equal(_digests(files))
    if near_copies:
        looks = Looks.read(files, progress)
        yield "looks", (np.append(matches, row) for row, matches, _ in looks.matches(looks, near_copies))


def _equal(keys: Iterable[Hashable | None]) -> list[NDArray[np.int64]]:
    """Return the indices of equal keys, for each key there are several of."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if key is not None:
            places[key].append(index)
    return [np.array(indices) for indices in places.values() if len(indices) > 1]


def _join(labels: NDArray[np.int64], indices: NDArray[np.int64]) -> None:
    """Give all groups that hold one of these the smallest of their labels."""
    groups = np.unique(labels[indices])
    if len(groups) > 1:
        labels[np.isin(labels, groups)] = groups[0]


def _digests(files: Sequence[str]) -> list[bytes | None]:
    """Return a digest of the content of each file of whose size there is another; None for the others."""
    sizes = [_size(file) for file in files]
    count = Counter(sizes)
    with ThreadPoolExecutor(8) as pool:
        return list(
            pool.map(lambda file, size: _digest(file) if size is not None and count[size] > 1 else None, files, sizes)
        )


def _size(file: str) -> int | None:
    try:
        return os.stat(file).st_size
    except (OSError, ValueError):
        return None


def _digest(file: str) -> bytes | None:
    try:
        with open(file, "rb") as content:
            return hashlib.blake2b(content.read()).digest()
    except OSError:
        return None


# --- leaks between parts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """A file that is a copy of one in another part.

    Args:
        file: the copy.
        original: the file of the other part.
        how: how they were found to be the same.
    """

    file: str
    original: str
    how: str

    def __str__(self) -> str:
        return f"{self.file} is a copy of {self.original} ({self.how})"


@dataclass(frozen=True)
class Leak:
    """What one part of a dataset, which is there to measure, has in common with another.

    Args:
        part: the part that is there to measure.
        other: the part before it.
        copies: the files of ``part`` with a copy in ``other``, each with the nearest one.
        files: how many files ``part`` has.
    """

    part: str
    other: str
    copies: list[Copy]
    files: int

    def __str__(self) -> str:
        count, one = len(self.copies), len(self.copies) == 1
        copies = "is a copy" if one else "are copies"
        text = f"{count} of {self.files} images of {self.part} {copies} of one of {self.other}: {self.copies[0]}"
        return text if one else f"{text}, and {count - 1} more"


def find_leaks(
    parts: Mapping[str, Sequence[str]], *, near_copies: float | None = NEAR_COPIES, progress: Progress | None = None
) -> list[Leak]:
    """Return what later parts of a dataset have in common with those before them.

    Args:
        parts: the image files of each part, by its name; that to train on first.
        near_copies: as for ``group_photos``; 0 or None compares names and bytes alone, which reads no pixels, and only
            the files whose size some other file has.
        progress: called with the number of files read and their total.
    """
    files = [file for part in parts.values() for file in part]
    photos, digests = list(map(photo_name, files)), _digests(files)
    looks = Looks.read(files, progress) if near_copies else None
    ends = np.cumsum([len(part) for part in parts.values()])
    ranges = {name: range(int(end) - len(parts[name]), int(end)) for name, end in zip(parts, ends, strict=True)}
    leaks = []
    for other, part in combinations(parts, 2):
        found: dict[int, Copy] = {}
        for how, keys in (("the same photo by its name", photos), ("equal bytes", digests)):
            originals = {keys[n]: files[n] for n in reversed(ranges[other]) if keys[n] is not None}
            for n in ranges[part]:
                if keys[n] in originals:
                    found.setdefault(n, Copy(files[n], originals[keys[n]], how))
        if looks and near_copies:
            for n, matches, share in looks.within(ranges[part]).matches(looks.within(ranges[other]), near_copies):
                best = int(share.argmin())
                how = f"looks the same, {100 * share[best]:.1f} % differs"
                found.setdefault(n, Copy(files[n], files[matches[best]], how))
        if found:
            leaks.append(Leak(part, other, [found[n] for n in sorted(found)], len(ranges[part])))
    return leaks


def leak_problems(leaks: Iterable[Leak]) -> list[Problem]:
    """Return a problem for each copy, as the checker lists them."""
    return [
        Problem("leak", copy.file, f"{leak.part}: a copy of {copy.original} of {leak.other} ({copy.how})")
        for leak in leaks
        for copy in leak.copies
    ]
