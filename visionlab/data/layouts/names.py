"""What the names of folders and files say: which part of a dataset they hold, and where one starts from another."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath

ROLES = ("train", "val", "test")
_WORDS = {
    "train": ("train", "training", "trainval", "trn"),
    "val": ("val", "valid", "validate", "validation", "dev"),
    "test": ("test", "testing", "tst"),
    "unlabelled": ("unlabelled", "unlabeled", "unannotated"),
}
_ROLE_OF = {word: role for role, words in _WORDS.items() for word in words}


def role_of(name: str) -> str | None:
    """Return the part that one name speaks of: train, val, test, unlabelled; None if of none, or of several.

    ``instances_val2017``, ``Training-Set``, ``valid`` and ``unlabeled2017`` do.
    """
    words = (word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name))
    roles = {_ROLE_OF.get(word.removesuffix("set")) for word in words} - {None}
    return roles.pop() if len(roles) == 1 else None


def role_of_folder(folder: str, root: str) -> str | None:
    """Return the part that the outermost folder below ``root`` speaks of, on the way to ``folder``."""
    roles = map(role_of, PurePath(os.path.relpath(folder, root)).parts)
    return next((role for role in roles if role is not None), None)


def files_below(root: str, suffix: str, depth: int) -> Iterator[str]:
    """Yield the files with a suffix, in either case, in a folder and at most ``depth`` folders below, sorted by name.

    Hidden files and folders are passed over.
    """
    folders = []
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_dir():
            folders.append(entry.path)
        elif entry.name.lower().endswith(suffix):
            yield entry.path
    if depth:
        for folder in folders:
            yield from files_below(folder, suffix, depth - 1)


def folders_below(root: str) -> list[str]:
    """Return the folders in a folder, without hidden ones, sorted by name."""
    return sorted(entry.path for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def unlabelled_folders(root: str) -> tuple[str, ...]:
    """Return the folders in ``root`` whose names say that their images have no annotations."""
    return tuple(folder for folder in folders_below(root) if role_of(os.path.basename(folder)) == "unlabelled")


def relative_names(files: Sequence[str], root: str) -> tuple[str, list[str]]:
    """Return the folder that holds ``root`` and all files, and the name of each file from there."""
    base = os.path.commonpath([os.path.abspath(root), *(os.path.dirname(os.path.abspath(file)) for file in files)])
    base = root if os.path.samefile(base, root) else base
    return base, [os.path.relpath(file, base) for file in files]


def some(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, with a word for the rest."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
