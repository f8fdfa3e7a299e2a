"""The dataset checker: every fault of a folder of images or a COCO json, and the numbers one wants to know of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from visionlab.data.coco_check import CheckedImage, CocoCheck
from visionlab.data.coco_json import read_coco
from visionlab.data.folder import find_images
from visionlab.data.images import ImageError, file_problem, read_image, read_image_size
from visionlab.data.problems import KINDS, Problem, count_kinds

# The areas, in pixels, below which COCO's evaluation calls an object small, and medium.
SMALL, MEDIUM = 32**2, 96**2


@dataclass
class CheckResult:
    """What a check found.

    Args:
        source: what was checked.
        problems: every fault, with what ``repair`` would do about it.
        statistics: counts of images, boxes, crowd regions and so on; flat but for ``classes`` and ``sizes``.
    """

    source: str
    problems: list[Problem] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """0 for a faultless dataset, 1 if there are problems."""
        return int(bool(self.problems))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values that can be written as json."""
        counts = dict(count_kinds(self.problems))
        problems = [asdict(problem) for problem in self.problems]
        return {"source": self.source, "counts": counts, "problems": problems, "statistics": self.statistics}

    def to_text(self, limit: int | None = 20) -> str:
        """Return everything as text to read, with at most ``limit`` problems of each kind spelled out."""
        lines = [self.source, *_statistics_lines(self.statistics), ""]
        for kind, count in count_kinds(self.problems).most_common():
            lines.append(f"{kind}: {count} ({KINDS[kind]})")
            same = [problem for problem in self.problems if problem.kind == kind]
            lines += [f"  {problem}" for problem in same[:limit]]
            if limit is not None and len(same) > limit:
                lines.append(f"  and {len(same) - limit} more")
        lines.append(f"problems: {count_kinds(self.problems).total() or 'none'}")
        return "\n".join(lines)


def check_dataset(
    *,
    images: str | Sequence[str],
    annotations: str | None = None,
    classes: Sequence[str] | None = None,
    decode: bool = True,
    threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> CheckResult:
    """Look at every image and every annotation of a dataset, and at all of their faults.

    Args:
        images: the folder of the images; without annotations several are possible.
        annotations: the COCO json; without it the images alone are checked.
        classes: the category names to look at; all by default.
        decode: decode every image, the only way to find damaged files; else read their headers.
        threads: how many images are read at once.
        progress: called with the number of images done and their total, in the calling thread.

    Raises:
        ValueError: if there is nothing to check: no json, no COCO data, no folder, no image, or an unknown class.
    """
    folders = [images] if isinstance(images, str) else list(images)
    if annotations is None:
        if classes is not None:
            raise ValueError("classes: has no effect without annotations")
        files = find_images(folders)
        result = CheckResult(", ".join(folders), statistics={"images": len(files)})
    else:
        if len(folders) != 1:
            raise ValueError(f"images: expected the one folder that the json's names start from, got {len(folders)}")
        content = read_coco(annotations)
        check = CocoCheck(
            content, source=annotations, folder=folders[0], classes=classes, policy="repair", check_files=True
        )
        files = [image.file for image in check.images]
        names = dict(zip(check.category_ids, check.classes, strict=True))
        statistics = _statistics(check.images, len(content["images"]), names)
        result = CheckResult(f"{annotations} with the images in {folders[0]}", check.problems, statistics)
    result.problems += _check_files(files, decode, threads, progress)
    return result


def _check_files(
    files: Sequence[str], decode: bool, threads: int, progress: Callable[[int, int], None] | None
) -> list[Problem]:
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
