"""Detections in files: what the predict command writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from visionlab.data.folder import find_images
from visionlab.data.images import ImageError, read_image
from visionlab.distributed import choose_device
from visionlab.eval.detection import to_results
from visionlab.eval.drawing import draw_boxes, save_jpeg
from visionlab.files import write_text
from visionlab.predictor import load_detector


def predict(run: Path, images: Sequence[Path], out: Path, *, threshold: float = 0.5, device: str = "auto") -> Path:
    """Detect the objects in images; write COCO results and pictures with boxes.

    Args:
        run: a run folder or ``detector.safetensors``.
        images: image files and folders.
        out: the folder to write: ``results.json``, a list of COCO results; ``images.json``, which names the images and
            categories by the ids in it; and a picture for each image.
        threshold: the least score that is drawn; the json holds all.
        device: auto, cpu or cuda.

    Returns:
        The path of ``results.json``.
    """
    console = Console()
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a score from 0 to 1, got {threshold}")
    predictor = load_detector(run, choose_device(device))
    files = [file for path in images for file in (find_images([str(path)]) if path.is_dir() else [str(path)])]
    out.mkdir(parents=True, exist_ok=True)
    labels = range(len(predictor.classes))
    category_ids = predictor.detector.provenance.get("category_ids") or [label + 1 for label in labels]
    categories = [{"id": category_ids[label], "name": predictor.classes[label]} for label in labels]
    seen: list[dict] = []
    results: list[dict] = []
    bar = track(files, "detecting", console=console, transient=True, disable=not console.is_terminal)
    for number, file in enumerate(bar, start=1):
        try:
            image = read_image(file)
        except ImageError as error:
            console.print(f"left out: {error}", style="yellow", markup=False, soft_wrap=True)
            continue
        found = predictor([image])[0]
        size = image.shape[:2]
        seen.append({"id": number, "file_name": file, "height": size[0], "width": size[1]})
        results += to_results(found, number, size, size, category_ids)
        shown = found.scores >= threshold
        picture = draw_boxes(
            image,
            found.boxes[shown],
            found.labels[shown].tolist(),
            predictor.classes,
            scores=found.scores[shown].tolist(),
        )
        save_jpeg(picture, out / f"{number:05d}_{Path(file).stem}.jpg")
    if not seen:
        raise ValueError(f"predict: none of {len(files)} images can be read")
    write_text(out / "images.json", json.dumps({"images": seen, "categories": categories}))
    write_text(out / "results.json", json.dumps(results))
    done = f"{len(results)} detections in {len(seen)} images: {out / 'results.json'}"
    console.print(done, markup=False, soft_wrap=True, highlight=False)
    return out / "results.json"
