"""File names of annotations that do not match the files: which file is meant, and by which rule it was found.

Label tools write the paths of the machine they ran on, addresses of their server, names in other letters. A file is
taken only if it is the only one that fits; nothing is ever fetched.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import parse_qs, unquote, urlsplit

from visionlab.data.images import SUFFIXES
from visionlab.text import printable, shorten

Parts = tuple[str, ...]

# The start of an address; where it was joined to a folder, one of its slashes is lost.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# What Label Studio puts in front of the names of files that are uploaded to it.
_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")


@dataclass(frozen=True)
class Located:
    """What was found for a file name.

    Args:
        path: the file; empty if there is none, or more than one.
        rules: how the name had to be read for this file to fit; empty if it stands there by its very name.
        fault: a key of ``KINDS`` where no file can be used.
        detail: what is wrong, in words.
    """

    path: str = ""
    rules: str = ""
    fault: str = ""
    detail: str = ""


class FileNames:
    """The files of a folder, found by names that need not match exactly.

    Args:
        root: the folder that names start from.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def plain_path(self, name: str) -> str:
        """Return the path that a name states, whether there is a file or not; empty if it cannot be one."""
        return os.path.normpath(os.path.join(self.root, name)) if "\0" not in name else ""

    def leads_outside(self, path: str) -> bool:
        """Return whether a path leads out of the folder; where links in the folder point makes no difference."""
        return not os.path.abspath(path).startswith(os.path.join(os.path.abspath(self.root), ""))

    def locate(self, name: str) -> Located:
        """Return the one file that a name can mean.

        Names are compared without their letters' case, with accents composed, with / for a backslash, decoded from an
        address, with or without the folders in front and the suffix.
        """
        path = self.plain_path(name)
        if path and os.path.isfile(path) and not self.leads_outside(path):
            return Located(path)
        text, rules = _as_path(name)
        stated = self.plain_path(text)
        if stated and os.path.isfile(stated) and self.leads_outside(stated):
            return Located(fault="outside-file", detail=f"file_name {_shown(name)} leads out of {self.root}")
        parts = _parts(text)
        fits = self._fitting(parts) if parts else []
        if not fits and parts and _PREFIX.match(parts[-1]):
            parts = (*parts[:-1], _PREFIX.sub("", parts[-1]))
            fits, rules = self._fitting(parts), [*rules, "the prefix of a label tool left off"]
        if len(fits) == 1:
            found = self._files[fits[0]]
            return Located(os.path.join(self.root, *found), "; ".join([*rules, *_differences(parts, found)]))
        if fits:
            some = ", ".join(_shown("/".join(self._files[index])) for index in fits[:3])
            detail = f"file_name {_shown(name)}: {len(fits)} files fit: {some}" + (" …" if len(fits) > 3 else "")
            return Located(fault="ambiguous-file", detail=detail)
        if ".." in text.split("/") and stated and self.leads_outside(stated):
            detail = f"file_name {_shown(name)} leads out of {self.root}, and no file in it fits"
            return Located(fault="outside-file", detail=detail)
        return Located(fault="missing-file", detail=f"no file {_shown(name)} in {self.root}")

    def nearest(self, name: str) -> str:
        """Return a hint that names the file whose name comes nearest; empty if none is near."""
        last = _key(_as_path(name)[0].rpartition("/")[2])
        names = self._sorted_names
        if len(names) > 2000:  # comparing with every name would take seconds
            place = bisect(names, last)
            names = names[max(place - 100, 0) : place + 100]
        near = difflib.get_close_matches(last, names, n=1)
        return f"; the nearest is {_shown('/'.join(self._files[self._by_name[near[0]][0]]))}" if near else ""

    def locate_all(self, names: Iterable[str], known: Iterable[str]) -> dict[str, Located]:
        """Return what each name was found to mean; different names never mean the same file.

        Args:
            names: to look for.
            known: the names of the same json that stand there as they are.
        """
        found = {name: self.locate(name) for name in dict.fromkeys(names)}
        claims: dict[str, set[Parts]] = {}
        for path, name in [
            *((place.path, name) for name, place in found.items() if place.path),
            *((self.plain_path(name), name) for name in known),
        ]:
            claims.setdefault(path, set()).add(tuple(map(_key, _parts(_as_path(name)[0]))))
        for name, place in found.items():
            if place.path and place.rules and len(claims[place.path]) > 1:
                file = os.path.relpath(place.path, self.root)
                detail = f"file_name {_shown(name)}: {_shown(file)} fits, and other names too"
                found[name] = Located(fault="ambiguous-file", detail=detail)
        return found

    def paths(self, names: Sequence[str]) -> list[str]:
        """Return the file that each name means, or where none is found the path that it states."""
        stated = [self.plain_path(name) or name for name in names]
        lost = [name for name, path in zip(names, stated, strict=True) if not os.path.isfile(path)]
        known = [name for name, path in zip(names, stated, strict=True) if os.path.isfile(path)]
        found = self.locate_all(lost, known)
        return [found[name].path or path if name in found else path for name, path in zip(names, stated, strict=True)]

    @cached_property
    def _files(self) -> list[Parts]:
        """The image files under the root, as parts of their paths from there."""
        found = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
            inner = os.path.relpath(folder, self.root)
            start = () if inner == "." else tuple(inner.split(os.sep))
            for name in sorted(names):
                if not name.startswith(".") and name.casefold().endswith(SUFFIXES):
                    found.append((*start, name))
        return found

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        by_name: dict[str, list[int]] = {}
        for index, parts in enumerate(self._files):
            by_name.setdefault(_key(parts[-1]), []).append(index)
        return by_name

    @cached_property
    def _by_stem(self) -> dict[str, list[int]]:
        by_stem: dict[str, list[int]] = {}
        for index, parts in enumerate(self._files):
            by_stem.setdefault(_key(os.path.splitext(parts[-1])[0]), []).append(index)
        return by_stem

    @cached_property
    def _sorted_names(self) -> list[str]:
        return sorted(self._by_name)

    def _fitting(self, parts: Parts) -> list[int]:
        """Return the files that fit a name best: those that share the most folders with it."""
        last = _key(parts[-1])
        candidates = self._by_name.get(last, [])
        if not candidates and not last.endswith(SUFFIXES):
            candidates = self._by_stem.get(last, [])
        folders = [_key(part) for part in parts[-2::-1]]
        shared: dict[int, int] = {}
        for index in candidates:
            own = [_key(part) for part in self._files[index][-2::-1]]
            same = 0
            while same < min(len(own), len(folders)) and own[same] == folders[same]:
                same += 1
            # Folders that contradict each other right above the file make it another file of the same name.
            if same or not own or not folders:
                shared[index] = same
        best = max(shared.values(), default=0)
        return [index for index, same in shared.items() if same == best]


def _as_path(name: str) -> tuple[str, list[str]]:
    """Return a name as a path with slashes, and which rules that took."""
    text, rules = name.strip(), []
    if text != name:
        rules.append("spaces around it left off")
    if _ADDRESS.search(text) or "?d=" in text or "&d=" in text:
        text, address = _address_path(text), text
        if text != address:
            rules.append("the path in an address")
    if "%" in text and unquote(text) != text:
        text = unquote(text)
        rules.append("percent signs decoded")
    if "\\" in text:
        text = re.sub(r"^[A-Za-z]:", "", text.replace("\\", "/"))
        rules.append("backslashes read as /")
    return text, rules


def _address_path(text: str) -> str:
    """Return the path that an address states, in the way of label tools as the value of ``d``."""
    start = _ADDRESS.search(text)
    try:
        address = urlsplit(text[start.start() :].replace(":/", "://", 1) if start and "://" not in text else text)
    except ValueError:
        return text
    return parse_qs(address.query).get("d", [unquote(address.path)])[0]


def _parts(text: str) -> Parts:
    return tuple(part for part in text.split("/") if part not in ("", ".", ".."))


def _key(part: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", part).casefold())


def _differences(parts: Parts, found: Parts) -> list[str]:
    """Return in words how the parts of a name differ from those of the file that was found."""
    rules = []
    name, own = parts[-1], found[-1]
    if _key(name) != _key(own):
        rules.append("suffix added")
        own = own[: len(own) - len(os.path.splitext(own)[1])]
    pairs = list(zip((name, *parts[-2::-1]), (own, *found[-2::-1]), strict=False))
    same = [(ours, theirs) for ours, theirs in pairs if _key(ours) == _key(theirs)]
    if any(_compose(ours) != _compose(theirs) for ours, theirs in same):
        rules.append("letters in another case")
    if any(
        ours != theirs
        and _compose(ours).casefold() == _compose(theirs).casefold()
        and _is_composed(ours) != _is_composed(theirs)
        for ours, theirs in same
    ):
        rules.append("accents composed otherwise")
    if len(found) > len(parts):
        rules.append("folder added")
    elif len(parts) > len(found):
        rules.append("folders left off")
    return rules


def _compose(part: str) -> str:
    return unicodedata.normalize("NFC", part)


def _is_composed(part: str) -> bool:
    return unicodedata.is_normalized("NFC", part)


def _shown(name: str) -> str:
    return f'"{printable(shorten(name))}"'
