"""The dataset checker: every fault of a dataset in any layout, or of plain images, and the numbers to know of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from visionlab.data.annotated import AnnotatedData, AnnotatedPart
from visionlab.data.coco_check import CheckedImage, CocoCheck
from visionlab.data.copies import find_leaks, leak_problems
from visionlab.data.folder import find_images
from visionlab.data.images import ImageError, file_problem, read_image, read_image_size
from visionlab.data.labelled import class_counts
from visionlab.data.layouts import recognize
from visionlab.data.layouts.coco import read_json
from visionlab.data.looks import NEAR_COPIES
from visionlab.data.problems import KINDS, Problem, count_kinds

# The areas, in pixels, below which COCO's evaluation calls an object small, and medium.
SMALL, MEDIUM = 32**2, 96**2


@dataclass
class CheckResult:
    """What a check found.

    Args:
        source: what was checked.
        problems: every fault, with what ``repair`` would do about it; of a dataset, what concerns several parts.
        statistics: counts of images, boxes, crowd regions and so on; flat but for ``classes`` and ``sizes``.
        notes: what else is worth knowing, one line each.
        parts: the parts of a dataset, by role: train, val, test.
    """

    source: str
    problems: list[Problem] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    parts: dict[str, CheckResult] = field(default_factory=dict)

    @property
    def all_problems(self) -> list[Problem]:
        """The problems of all parts, and those between them."""
        return [problem for part in self.parts.values() for problem in part.problems] + self.problems

    @property
    def exit_status(self) -> int:
        """0 for a faultless dataset, 1 if there are problems."""
        return int(bool(self.all_problems))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values that can be written as json."""
        values = {
            "source": self.source,
            "counts": dict(count_kinds(self.all_problems)),
            "problems": [asdict(problem) for problem in self.problems],
            "statistics": self.statistics,
            "notes": self.notes,
        }
        return values | ({"parts": {role: part.to_dict() for role, part in self.parts.items()}} if self.parts else {})

    def to_text(self, limit: int | None = 20) -> str:
        """Return everything as text to read, with at most ``limit`` problems of each kind and part spelled out."""
        lines = [self.source, *_statistics_lines(self.statistics), *(f"note: {note}" for note in self.notes), ""]
        for role, part in self.parts.items():
            lines += [f"--- {role}: {part.to_text(limit)}", ""]
        for kind, count in count_kinds(self.problems).most_common():
            lines.append(f"{kind}: {count} ({KINDS[kind]})")
            same = [problem for problem in self.problems if problem.kind == kind]
            lines += [f"  {problem}" for problem in same[:limit]]
            if limit is not None and len(same) > limit:
                lines.append(f"  and {len(same) - limit} more")
        every = "problems in all" if self.parts else "problems"
        lines.append(f"{every}: {count_kinds(self.all_problems).total() or 'none'}")
        return "\n".join(lines)


Progress = Callable[[int, int], None]


def check_dataset(
    *,
    images: str | Sequence[str] | None = None,
    annotations: str | None = None,
    classes: Sequence[str] | None = None,
    decode: bool = True,
    threads: int = 4,
    progress: Progress | None = None,
) -> CheckResult:
    """Look at every image and every annotation of a COCO json, or at plain images, and at all of their faults.

    Args:
        images: the folder of the images, without annotations several are possible; of a json by default the one near
            it that has them.
        annotations: the COCO json; without it the images alone are checked.
        classes: the category names to look at; all by default.
        decode: decode every image, the only way to find damaged files; else read their headers.
        threads: how many images are read at once.
        progress: called with the number of images done and their total, in the calling thread.

    Raises:
        ValueError: if there is nothing to check: no json, no COCO data, no folder, no image, or an unknown class.
    """
    folders = [images] if isinstance(images, str) else list(images or ())
    if annotations is None:
        if classes is not None:
            raise ValueError("classes: has no effect without annotations")
        if not folders:
            raise ValueError("expected a folder of images or annotations, got neither")
        files = find_images(folders)
        problems = _check_files(files, decode, threads, progress)
        return CheckResult(", ".join(folders), problems, {"images": len(files)})
    if len(folders) > 1:
        raise ValueError(f"images: expected the one folder that the json's names start from, got {len(folders)}")
    part = read_json(annotations, *folders)
    result, _ = _check_part(part, classes, decode, threads, progress)
    result.source = f"{annotations} with the images in {part.images}"
    return result


def check_folder(root: str, *, decode: bool = True, threads: int = 4, progress: Progress | None = None) -> CheckResult:
    """Look at everything in a folder: all parts of the dataset that it holds, in any layout, or plain images.

    Images of one part that are copies of images of another are problems too; if images are decoded, those that look
    the same are found, else those of equal bytes and of one photo by their names.

    Args:
        root: the folder, or the ``data.yaml`` of a YOLO dataset.
        decode: decode every image, the only way to find damaged files; else read their headers.
        threads: how many images are read at once.
        progress: called with the number of images done and their total, in the calling thread.

    Raises:
        ValueError: if there is nothing to check, or annotations cannot be read.
    """
    data = recognize(root)
    if data is None or not data.parts:
        result = check_dataset(images=root, decode=decode, threads=threads, progress=progress)
        result.notes += ["images without annotations", *(data.notes if data is not None else ())]
        return result
    result = CheckResult(str(data), notes=[*data.notes, *_unused_classes(data)])
    files = {}
    for role, part in data.parts.items():
        result.parts[role], files[role] = _check_part(part, None, decode, threads, progress)
    leaks = find_leaks(files, near_copies=NEAR_COPIES if decode else None, progress=progress)
    result.problems += leak_problems(leaks)
    return result


def _unused_classes(data: AnnotatedData) -> list[str]:
    counts = [class_counts(part) for part in data.parts.values()]
    unused = [name for name in counts[0] if not any(part[name] for part in counts)]
    return [f"classes that no box uses, left out of training: {', '.join(unused)}"] if unused else []


def _check_part(
    part: AnnotatedPart, classes: Sequence[str] | None, decode: bool, threads: int, progress: Progress | None
) -> tuple[CheckResult, list[str]]:
    """Check one part of a dataset; also return its image files."""
    check = CocoCheck(
        part.content,
        source=part.source,
        folder=part.images,
        classes=classes,
        policy="repair",
        check_files=not part.sized,
    )
    files = [image.file for image in check.images]
    names = dict(zip(check.category_ids, check.classes, strict=True))
    statistics = _statistics(check.images, len(part.content["images"]), names)
    problems = [*part.problems, *map(part.placed, check.problems), *_check_files(files, decode, threads, progress)]
    return CheckResult(part.source, problems, statistics, list(part.notes)), files


def _check_files(files: Sequence[str], decode: bool, threads: int, progress: Progress | None) -> list[Problem]:
    problems = []
    with ThreadPoolExecutor(threads) as pool:
        for done, problem in enumerate(pool.map(lambda file: _check_file(file, decode), files), start=1):
            if problem is not None:
                problems.append(problem)
            if progress is not None:
                progress(done, len(files))
    return problems


def _check_file(file: str, decode: bool) -> Problem | None:
    try:
        if not decode:
            read_image_size(file)
            return None
        read_image(file)
    except ImageError as error:
        try:
            read_image(file, truncated=True)
        except ImageError:
            return file_problem(file, error, action="left out")
        return replace(file_problem(file, error), kind="damaged-file", action="the part that can be decoded is used")
    return None


def _statistics(images: Sequence[CheckedImage], listed: int, names: dict[int, str]) -> dict[str, Any]:
    areas = [entry["area"] for image in images for entry in image.truth]
    counts = Counter(category for image in images for category in image.categories)
    return {
        "images": listed,
        "images used": len(images),
        "images without a box": sum(not image.boxes for image in images),
        "boxes": sum(len(image.boxes) for image in images),
        "crowd regions": sum(sum(image.crowd) for image in images),
        "sizes": {
            "small": sum(area < SMALL for area in areas),
            "medium": sum(SMALL <= area < MEDIUM for area in areas),
            "large": sum(area >= MEDIUM for area in areas),
        },
        "classes": {name: counts[number] for number, name in names.items()},
    }


def _statistics_lines(statistics: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in statistics.items():
        if isinstance(value, dict):
            value = ", ".join(f"{count} {key}" for key, count in value.items())
        lines.append(f"{name}: {value}")
    return lines
