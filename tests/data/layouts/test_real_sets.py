"""Published datasets as they lie on disk: what is read of them equals what plain loops over their files count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from visionlab.data.coco import CocoDataset
from visionlab.data.layouts import read_layout

Counts = tuple[int, int, set[str]]  # images, boxes, names of the classes that a box uses


def count_coco(file: Path) -> Counts:
    content = json.loads(file.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    boxes = [entry for entry in content["annotations"] if min(entry["bbox"][2:]) > 0]
    return len(content["images"]), len(boxes), {names[entry["category_id"]] for entry in boxes}


def count_yolo(part: Path) -> Counts:
    images = [file for file in (part / "images").iterdir() if file.suffix == ".jpg"]
    labels = [part / "labels" / f"{image.stem}.txt" for image in images]
    rows = [line.split() for file in labels if file.exists() for line in file.read_text().splitlines() if line.strip()]
    return len(images), len(rows), {"Ships" if row[0] == "0" else row[0] for row in rows}


def count_voc(part: Path) -> Counts:
    names = [n.text for file in part.glob("*.xml") for n in ElementTree.parse(file).iterfind("object/name")]
    return len(list(part.glob("*.JPG"))) + len(list(part.glob("*.jpg"))), len(names), set(names)


ROBOFLOW = {"train": "train", "val": "valid", "test": "test"}
SETS: dict[str, tuple[str, Callable[[Path], Counts], dict[str, str]]] = {
    "egg": ("COCO json", count_coco, {k: f"{v}/_annotations.coco.json" for k, v in ROBOFLOW.items()}),
    "foosball": ("COCO json", count_coco, {k: f"{v}/_annotations.coco.json" for k, v in ROBOFLOW.items()}),
    "mushroom": ("COCO json", count_coco, {k: f"{v}/_annotations.coco.json" for k, v in ROBOFLOW.items()}),
    "deeppcb": ("COCO json", count_coco, {"train": "train.json", "val": "val.json"}),
    "bccd": ("COCO json", count_coco, {k: f"annotations/{k}.json" for k in ("train", "val", "test")}),
    "coco_mini": ("COCO json", count_coco, {k: f"annotations/instances_{k}2017.json" for k in ("train", "val")}),
    "coco_tiny16": ("COCO json", count_coco, {k: f"annotations/instances_{k}2017.json" for k in ("train", "val")}),
    "ships": ("YOLO", count_yolo, {"train": "train", "val": "validate", "test": "test"}),
    "cards": ("VOC", count_voc, {"train": "train", "test": "test"}),
}


@pytest.mark.parametrize("name", SETS)
def test_everything_is_found(test_data, name):
    layout, count, parts = SETS[name]
    data = read_layout("auto", str(test_data / name))
    assert data.layout == layout
    assert list(data.parts) == list(parts)
    for role, where in parts.items():
        dataset = CocoDataset(data.parts[role], check_files=False)
        used = {dataset.classes[label] for record in dataset.records for label in record.labels}
        boxes = sum(len(record.boxes) for record in dataset.records)
        assert (len(dataset), boxes, used) == count(test_data / name / where), role
        assert Path(dataset.records[0].file).is_file()


def test_folders_without_annotations(test_data):
    data = read_layout("auto", str(test_data / "deeppcb"))
    assert data.unlabelled == (str(test_data / "deeppcb/unlabelled"),)
    with pytest.raises(ValueError, match=r"imagenette_subset: expected annotations, .* got 800 files of .JPEG"):
        read_layout("auto", str(test_data / "imagenette_subset"))


def test_parts_that_are_not_wanted_are_not_read(test_data):
    data = read_layout("auto", str(test_data / "cards"), ("train", "val"))
    assert list(data.parts) == ["train"]
    assert data.unread == ("test",)
    assert str(data) == f"VOC: train = {test_data}/cards/train (122 images, 239 boxes), test is there and not used"


def test_faults_of_a_published_dataset_are_told(test_data):
    data = read_layout("yolo", str(test_data / "ships"))
    assert [note.partition("data.yaml: ")[2] for note in data.notes] == [
        "val: ../valid/images is not there, validate/images is taken"
    ]
    assert data.parts["train"].notes == ("8 of 325 images have no label file: taken as images without an object",)
    strays, beyond = data.parts["val"].notes
    assert strays.startswith("34 label files have no image: validate/labels/")
    assert beyond.startswith("96 rows are of class 1, 2, 3, 4, of which ")
    [problem] = CocoDataset(data.parts["test"]).problems
    assert f"{problem}".partition(", ")[2].startswith("test/labels/1134412_jpg.rf.")
    assert ".txt, line 1: outside-box: bbox [" in f"{problem}"
