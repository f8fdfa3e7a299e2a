"""COCO json in the folders that it is met in: which part each file is, and where its images are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from visionlab.data.coco import CocoDataset
from visionlab.data.layouts import read_layout

Files = dict[str, list[str] | None]  # images where there are no names, a json that lists them where there are


def write(root: Path, files: Files) -> str:
    for name, images in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if images is None:
            Image.new("RGB", (100, 50)).save(root / name)
        else:
            content = {
                "images": [{"id": n, "file_name": file} for n, file in enumerate(images)],
                "annotations": [
                    {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 9, 9]} for n in range(len(images))
                ],
                "categories": [{"id": 1, "name": "cat"}],
            }
            (root / name).write_text(json.dumps(content))
    return str(root)


FORMS: dict[str, Files] = {
    "roboflow": {
        "train/_annotations.coco.json": ["a.png"],
        "train/a.png": None,
        "valid/_annotations.coco.json": ["b.png"],
        "valid/b.png": None,
    },
    "coco": {
        "annotations/instances_train2017.json": ["a.png"],
        "annotations/person_keypoints_train2017.json": ["a.png"],
        "train2017/a.png": None,
        "annotations/instances_val2017.json": ["b.png"],
        "val2017/b.png": None,
    },
    "one_folder_of_images": {
        "train.json": ["a.png"],
        "val.json": ["b.png"],
        "images/a.png": None,
        "images/b.png": None,
    },
    "parts_of_images": {
        "annotations/train.json": ["a.png"],
        "annotations/validation.json": ["b.png"],
        "images/train/a.png": None,
        "images/val/b.png": None,
    },
    "names_with_folders": {
        "labels_train.json": ["images/a.png"],
        "labels_dev.json": ["images/b.png"],
        "images/a.png": None,
        "images/b.png": None,
    },
    "same_names_in_both_parts": {
        "train.json": ["a.png"],
        "val.json": ["b.png"],
        "train/a.png": None,
        "train/b.png": None,
        "val/a.png": None,
        "val/b.png": None,
    },
    "names_that_fit_loosely": {
        "train.json": ["C:\\set\\a.PNG"],
        "val.json": ["b"],
        "train/a.png": None,
        "val/b.png": None,
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form):
    data = read_layout("auto", write(tmp_path, FORMS[form]))
    assert (data.layout, list(data.parts), data.notes) == ("COCO json", ["train", "val"], ())
    for part, name in ((data.parts["train"], "a"), (data.parts["val"], "b")):
        [record] = CocoDataset(part).records
        assert record.file == str(next(file for file in tmp_path.rglob(f"{name}.png") if _role(file) in (None, name)))


def _role(file: Path) -> str | None:
    return {"train": "a", "train2017": "a", "valid": "b", "val": "b", "val2017": "b"}.get(file.parent.name)


def test_names_without_the_folders_that_images_were_divided_into(tmp_path):
    files: Files = {f"images/{part}/{n}.png": None for n, part in enumerate(["train", "train", "train", "val"])}
    root = write(tmp_path, files | {"all.json": [f"{n}.png" for n in range(4)]})
    assert len(CocoDataset(read_layout("auto", root).parts["train"])) == 4


def test_files_that_speak_of_no_part(tmp_path):
    images: Files = {"a.png": None, "b.png": None}
    one = read_layout("coco", write(tmp_path / "one", images | {"export.json": ["a.png", "b.png"]}))
    assert list(one.parts) == ["train"]
    several = read_layout("coco", write(tmp_path / "several", images | {"1.json": ["a.png"], "2.json": ["b.png"]}))
    assert len(CocoDataset(several.parts["train"])) == 2
    root = write(tmp_path / "spare", images | {"train.json": ["a.png"], "other.json": ["b.png"]})
    spare = read_layout("coco", root)
    assert len(CocoDataset(spare.parts["train"])) == 1
    assert spare.notes == (f"{root}/other.json: not used, its name says neither train, val nor test",)
