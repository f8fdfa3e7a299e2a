"""What the predict command does: detections of many images, written to files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from visionlab.checks import check_in
from visionlab.data.folder import image_files
from visionlab.data.images import ImageError, read_image, read_image_sizes
from visionlab.distributed import choose_device
from visionlab.eval.detection import to_results
from visionlab.eval.drawing import draw_boxes, save_jpeg
from visionlab.eval.offset_drawing import best_detections, draw_offsets
from visionlab.eval.several_views import SeveralViews
from visionlab.files import write_text
from visionlab.inference import Predictor, load_detector
from visionlab.models.sampling_places import has_deformable_parts
from visionlab.structures import Detections


def predict(
    run: Path,
    images: Sequence[Path],
    out: Path = Path("predictions"),
    *,
    threshold: float = 0.5,
    device: str = "auto",
    batch_size: int = 8,
    show_offsets: bool = False,
    flip: bool = False,
    sizes: list[int] | None = None,
) -> Path:
    """Detect the objects in images; write COCO results and pictures with boxes.

    Args:
        run: a run folder or ``detector.safetensors``.
        images: image files and folders.
        out: the folder to write: ``results.json``, a list of COCO results; ``images.json``, which names the images and
            categories by the ids in it; and a picture for each image.
        threshold: the least score that is drawn; the json holds all.
        device: auto, cpu or cuda.
        batch_size: the most images that go through the detector together; those of a batch have similar sizes.
        show_offsets: also draw where deformable convolutions and RoI pools look for the best detections.
        flip: also look at the mirror image of each.
        sizes: short sides in pixels at which each image is looked at; by default the one the detector was trained at.

    Returns:
        The path of ``results.json``.

    Raises:
        ValueError: a setting is out of range, ``run`` is no detector, or no image can be read.
    """
    console = Console()
    check_in("[0, 1]", threshold=threshold)
    augment = SeveralViews(flip=flip, sizes=sizes)
    predictor = load_detector(run, choose_device(device), batch_size=batch_size, augment=augment)
    if show_offsets and not has_deformable_parts(predictor.detector):
        raise ValueError(
            f"show_offsets: expected a detector with deformable parts (backbone.deform_stages, or a pool deform_…), "
            f"{run} has none"
        )
    files = image_files(images)
    out.mkdir(parents=True, exist_ok=True)
    category_ids = predictor.detector.provenance.get("category_ids") or list(range(1, len(predictor.classes) + 1))
    found: dict[int, tuple[tuple[int, int], Detections]] = {}
    for numbers, pixels in _read(files, predictor, console):
        for number, image, detections in zip(numbers, pixels, predictor(pixels), strict=True):
            found[number] = (image.shape[0], image.shape[1]), detections
            picture = _draw(image, detections, predictor.classes, threshold)
            best = best_detections(detections, threshold)
            if show_offsets and len(best):
                places = predictor.sampling_places(image, best)
                picture = draw_offsets(image, picture, best.boxes, places.taps, places.layers, places.bins)
            save_jpeg(picture, out / f"{number:05d}_{Path(files[number - 1]).stem}.jpg")
    if not found:
        raise ValueError(f"images: expected at least one that can be read, got none of {len(files)}")
    seen, results = [], []
    for number, (size, detections) in sorted(found.items()):
        seen.append({"id": number, "file_name": files[number - 1], "height": size[0], "width": size[1]})
        results += to_results(detections, number, size, size, category_ids)
    categories = [{"id": id, "name": name} for id, name in zip(category_ids, predictor.classes, strict=True)]
    write_text(out / "images.json", json.dumps({"images": seen, "categories": categories}))
    write_text(out / "results.json", json.dumps(results))
    done = f"{len(results)} detections in {len(seen)} images: {out / 'results.json'}"
    console.print(done, markup=False, soft_wrap=True, highlight=False)
    return out / "results.json"


def _read(
    files: Sequence[str], predictor: Predictor, console: Console
) -> Iterator[tuple[list[int], list[NDArray[np.uint8]]]]:
    """Yield the images of each batch, and their numbers from 1; say which cannot be read."""

    def leave_out(error: ImageError) -> None:
        console.print(f"left out: {error}", style="yellow", markup=False, soft_wrap=True)

    sizes = {}
    for number, size in enumerate(read_image_sizes(files), start=1):
        if isinstance(size, ImageError):
            leave_out(size)
        else:
            sizes[number] = size
    candidates = list(sizes)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("detecting", total=len(files), completed=len(files) - len(candidates))
        for rows in predictor.batches(list(sizes.values())):
            numbers, pixels = [], []
            for number in (candidates[row] for row in rows):
                try:
                    pixels.append(read_image(files[number - 1]))
                    numbers.append(number)
                except ImageError as error:  # its header was sound
                    leave_out(error)
            if numbers:
                yield numbers, pixels
            progress.advance(task, len(rows))


def _draw(image: NDArray[np.uint8], found: Detections, classes: list[str], threshold: float) -> NDArray[np.uint8]:
    shown = found.scores >= threshold
    labels, scores = found.labels[shown].tolist(), found.scores[shown].tolist()
    return draw_boxes(image, found.boxes[shown], labels, classes, scores=scores)
