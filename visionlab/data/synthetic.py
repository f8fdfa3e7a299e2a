"""The embedded dataset: generated scenes of deformable objects, written as JPEG files and COCO json."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2

from visionlab.checks import check_at_least, check_in
from visionlab.data.scene import CLASSES, MIN_SIZE, draw_scene
from visionlab.seeding import derive_seed
from visionlab.settings import Settings, flat_settings

MARKER = "synthetic.json"
DRAWING = 1  # to be raised when scenes come out differently, so that no older dataset is taken for this one


@dataclass(frozen=True, kw_only=True)
class SyntheticSettings(Settings):
    """How much of the embedded dataset is drawn.

    Args:
        unlabelled: number of images without labels, to pretrain on.
        labelled: number of training images with labels.
        validation: number of labelled images to evaluate on; the three parts come from disjoint seeds.
        image_size: side of an image in pixels.
        seed: another seed, other images.
        deformation: how strongly objects bend, stretch and turn, from 0, where they stand upright and bend a little, to
            1, where they turn by any angle, bend by up to 150 degrees and stretch up to twofold.
    """

    unlabelled: int
    labelled: int
    validation: int
    image_size: int = 128
    seed: int = 0
    deformation: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(0, unlabelled=self.unlabelled, labelled=self.labelled, validation=self.validation)
        check_at_least(MIN_SIZE, image_size=self.image_size)
        check_in("[0, 1]", deformation=self.deformation)


@flat_settings
def write_synthetic(
    folder: str | Path,
    *,
    amount: SyntheticSettings,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the embedded dataset: JPEG in ``unlabelled/``, ``train/`` and ``val/``, COCO json in ``annotations/``.

    The folder appears whole or not at all. One that already holds the same dataset is kept as it is.

    Args:
        folder: where to write; must not exist, be empty, or hold what was written with the same settings.
        amount: how many images are drawn, and how large.
        progress: called after each image with the number of images done and of all.

    Raises:
        ValueError: the folder holds something else.
    """
    folder = Path(folder)
    seed, image_size, deformation = amount.seed, amount.image_size, amount.deformation
    counts = {"unlabelled": amount.unlabelled, "train": amount.labelled, "val": amount.validation}
    settings: dict[str, float] = {"drawing": DRAWING, "image_size": image_size, "seed": seed, **counts}
    if deformation > 0:  # a marker without it is that of a dataset from before there was any
        settings["deformation"] = deformation
    if _holds(folder, settings):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    done = itertools.count(1)
    try:
        for split, count in counts.items():
            scenes = []
            (temporary / split).mkdir()
            for index in range(count):
                scene_seed = derive_seed(seed, split, index)
                image, objects = draw_scene(scene_seed, size=image_size, deformation=deformation)
                scenes.append([] if split == "unlabelled" else [item.annotation() for item in objects])
                jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
                (temporary / split / f"{index:06}.jpg").write_bytes(jpeg.tobytes())
                if progress is not None:
                    progress(next(done), sum(counts.values()))
            if split != "unlabelled":
                annotations = temporary / "annotations" / f"{split}.json"
                annotations.parent.mkdir(exist_ok=True)
                annotations.write_text(json.dumps(_coco(scenes, image_size)))
        (temporary / MARKER).write_text(json.dumps(settings, indent=1))
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not _holds(folder, settings):  # it does when another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _holds(folder: Path, settings: dict[str, float]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / MARKER).is_file():
        raise ValueError(f"expected an empty folder or an embedded dataset to reuse, got other files in {folder}")
    found = json.loads((folder / MARKER).read_text())
    if found != settings:
        asked, present = ({"deformation": 0, **each} for each in (settings, found))
        differing = {key: (value, present.get(key)) for key, value in asked.items() if present.get(key) != value}
        text = ", ".join(f"{key} {wanted} (there: {there})" for key, (wanted, there) in differing.items())
        raise ValueError(f"expected an embedded dataset with {text} in {folder}; choose another folder or delete it")
    return True


def _coco(scenes: list[list[dict]], size: int) -> dict:
    images = [
        {"id": number, "file_name": f"{number - 1:06}.jpg", "height": size, "width": size}
        for number in range(1, len(scenes) + 1)
    ]
    pairs = [(number, item) for number, objects in enumerate(scenes, 1) for item in objects]
    annotations = [{"id": i, "image_id": number, **item} for i, (number, item) in enumerate(pairs, 1)]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}
