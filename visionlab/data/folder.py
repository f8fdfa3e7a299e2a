"""Unlabelled images: every image file under some folders, or those that a list names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visionlab.data.images import SUFFIXES, ImageError, file_problem, read_image_by_policy, read_image_sizes
from visionlab.data.problems import Policy, Problem, fail_on
from visionlab.data.selection import Selection
from visionlab.data.split import choose
from visionlab.settings import Settings, flat_settings


@dataclass(frozen=True, kw_only=True)
class FolderFiles(Settings):
    """Which files a dataset of plain images has.

    Args:
        root: a folder, or several; give either this or ``list_file``.
        list_file: a text file with one image path per line, absolute or relative to the list's folder; blank lines and
            lines that start with # are passed over.
        recursive: look into folders inside the roots too.
        extensions: the suffixes that make a file an image, in either case.
    """

    root: str | list[str] | None = None
    list_file: str | None = None
    recursive: bool = True
    extensions: list[str] | None = None

    def __post_init__(self) -> None:
        if (self.root is None) == (self.list_file is None):
            got = "neither" if self.root is None else "both"
            raise ValueError(f"expected either root or list_file, got {got}")
        if self.root is not None and not self.root:
            raise ValueError(f"root: expected at least one folder, got {self.root!r}")
        if self.list_file is not None and (not self.recursive or self.extensions is not None):
            raise ValueError("recursive and extensions choose files under root; they have no effect on a list_file")


class ImageFolder:
    """Image files without labels, in an order that depends on their names alone.

    Hidden files and folders are passed over, links are followed, and no file counts twice however the roots overlap.
    Files that are missing or whose header cannot be read are named in ``problems`` and left out, or, under the policy
    ``fail``, stop the construction.

    Args:
        where: the folders or the list that name the files.
        selection: which images are used, and what is done with faulty ones. Under ``repair`` a damaged file gives what
            can be decoded of it.
        check_files: read every file's header first (below a millisecond each); without it faults show when
            files are loaded.

    Raises:
        ValueError: if a root or the list is missing, if there is no image, or, under the policy ``fail``, if any file
            is at fault.
    """

    @flat_settings
    def __init__(self, *, where: FolderFiles, selection: Selection, check_files: bool = True) -> None:
        if where.list_file is not None:
            source, files = where.list_file, read_list(where.list_file)
        else:
            roots = [where.root] if isinstance(where.root, str) else list(where.root or ())
            source, files = ", ".join(roots), find_images(roots, recursive=where.recursive, extensions=where.extensions)
        limit = selection.limit
        self.policy: Policy = selection.policy
        self.notes = (f"images: {source} ({len(files)} files)",)
        self.problems: list[Problem] = []
        if check_files:
            files = self._checked(files, source)
        self.files: list[str] = files if limit is None else choose(files, limit, key=os.path.basename)

    def __len__(self) -> int:
        return len(self.files)

    def _checked(self, files: list[str], source: str) -> list[str]:
        sizes = read_image_sizes(files)
        self.problems = [
            file_problem(file, size, action="" if self.policy == "fail" else "left out")
            for file, size in zip(files, sizes, strict=True)
            if isinstance(size, ImageError)
        ]
        if self.policy == "fail":
            fail_on(self.problems, source)
        if len(self.problems) == len(files):
            raise ValueError(f"{source}: none of {len(files)} files can be read, the first: {self.problems[0]}")
        return [file for file, size in zip(files, sizes, strict=True) if not isinstance(size, ImageError)]

    def load(self, index: int) -> NDArray[np.uint8]:
        """Return the ``(height, width, 3)`` uint8 RGB pixels of one image.

        Raises:
            ImageError: if the file gives no pixels. Who loads batches decides by ``policy``: stop under ``fail``, else
                report the message and take the next image that loads.
        """
        return read_image_by_policy(self.files[index], self.policy)


def find_images(roots: Sequence[str], *, recursive: bool = True, extensions: Sequence[str] | None = None) -> list[str]:
    """Return the image files under the roots, root after root, each sorted by name.

    Raises:
        ValueError: if a root is no folder, or none of them holds an image.
    """
    suffixes = tuple("." + suffix.lower().lstrip(".") for suffix in (SUFFIXES if extensions is None else extensions))
    files: dict[str, str] = {}
    others: Counter[str] = Counter()
    seen: set[str] = set()
    for root in roots:
        if not os.path.isdir(root):
            got = "a file" if os.path.exists(root) else "nothing there"
            raise ValueError(f"{root}: expected a folder of images, got {got}")
        for file, real in sorted(_walk(root, recursive, seen)):
            if file.lower().endswith(suffixes):
                files.setdefault(real, file)
            else:
                others[os.path.splitext(file)[1] or "without suffix"] += 1
    if not files:
        found = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5)) or "no files at all"
        depth = "and in the folders inside" if recursive else "but, recursive being false, not in the folders inside"
        raise ValueError(f"{', '.join(roots)}: no images; looked for {' '.join(suffixes)} there {depth}, found {found}")
    return list(files.values())


def image_files(paths: Sequence[Path]) -> list[str]:
    """Return files as they are named, and of folders the images under them, in the order of the paths.

    Raises:
        ValueError: if a folder holds no image.
    """
    return [file for path in paths for file in (find_images([str(path)]) if path.is_dir() else [str(path)])]


def _walk(folder: str, recursive: bool, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Yield path and true path of each file in a folder that was not seen yet, which also ends circles of links."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if not entry.is_dir():
            yield entry.path, os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
        elif recursive:
            yield from _walk(entry.path, recursive, seen)


def read_list(list_file: str) -> list[str]:
    """Return the paths that a list file names, in its order and each once.

    Raises:
        ValueError: if the list cannot be read or names no file.
    """
    try:
        lines = Path(list_file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{list_file}: expected a text file with one image path per line: {error}") from None
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise ValueError(f"{list_file}: names no image; expected one path per line")
    folder = os.path.dirname(list_file)
    return list(dict.fromkeys(os.path.normpath(os.path.join(folder, name)) for name in names))
