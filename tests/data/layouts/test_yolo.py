"""YOLO datasets in the forms that they are met in; all boxes are known in pixels of 100 x 50 images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionlab.data.coco import CocoDataset
from visionlab.data.layouts import read_layout
from visionlab.data.layouts.yolo import read_row

BOX = (1, "0.5 0.4 0.2 0.4")  # class and row of the box 40, 10, 60, 30


def write(root: Path, files: dict[str, str | None]) -> str:
    """Write text files, and images of 100 x 50 pixels where there is no text."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            Image.new("RGB", (100, 50)).save(root / name)
        else:
            (root / name).write_text(text)
    return str(root)


def boxes_of(part) -> dict[str, list[tuple[str, list[float]]]]:
    dataset = CocoDataset(part)
    return {
        Path(record.file).name: [
            (dataset.classes[label], np.round(box, 3).tolist())
            for label, box in zip(record.labels, record.boxes, strict=True)
        ]
        for record in dataset.records
    }


SPLIT = {
    "train/images/a.png": None,
    "train/labels/a.txt": "1 0.5 0.4 0.2 0.4\n",
    "valid/images/b.png": None,
    "valid/labels/b.txt": "0 0.5 0.4 0.2 0.4\n",
}
TOP = {
    "images/train/a.png": None,
    "labels/train/a.txt": "1 0.5 0.4 0.2 0.4\n",
    "images/val/b.png": None,
    "labels/val/b.txt": "0 0.5 0.4 0.2 0.4\n",
}
FLAT = {
    "images/a.png": None,
    "labels/a.txt": "1 0.5 0.4 0.2 0.4\n",
    "images/b.png": None,
    "labels/b.txt": "0 0.5 0.4 0.2 0.4\n",
}
BESIDE = {name.replace("labels", "images"): text for name, text in TOP.items()}
NAMES = "names: [cat, dog]\nnc: 2\n"
LISTS = FLAT | {"data.yaml": NAMES + "train: train.txt\nval: val.txt\n"}
FORMS = {
    "roboflow": SPLIT | {"data.yaml": NAMES + "train: ../train/images\nval: ../valid/images\n"},
    "names_by_number": SPLIT | {"data.yaml": "names: {0: cat, 1: dog}\ntrain: train/images\nval: valid/images\n"},
    "lists_of_folders": SPLIT | {"data.yaml": NAMES + "train: [train/images]\nval: [valid/images]\n"},
    "path_of_another_machine": TOP
    | {"data.yaml": NAMES + "path: /home/someone/train_it/pets\ntrain: images/train\nval: images/val\n"},
    "whole_paths_of_another_machine": TOP
    | {"data.yaml": NAMES + "train: C:\\data\\pets\\images\\train\nval: /data/pets/images/val\n"},
    "path": {f"pets/{name}": text for name, text in TOP.items()}
    | {"data.yaml": NAMES + "path: pets\ntrain: images/train\nval: images/val\n"},
    "part_folders": SPLIT | {"dataset.yml": NAMES + "train: train\nval: valid\n"},
    "val_is_called_otherwise": SPLIT | {"data.yaml": NAMES + "train: train/images\nval: val/images\n"},
    "lists_of_files": LISTS | {"train.txt": "./images/a.png\n", "val.txt": "images/b.png"},
    "lists_of_another_machine": LISTS | {"train.txt": "/kaggle/x/images/a.png\n", "val.txt": "x/images/b.png\n"},
    "lists_alone": FLAT | {"train.txt": "images/a.png\n", "val.txt": "images/b.png\n", "classes.txt": "cat\ndog\n"},
    "folders_alone": TOP | {"classes.txt": "cat\ndog\n"},
    "split_folders_alone": SPLIT | {"obj.names": "cat\ndog\n"},
    "labels_beside": BESIDE | {"classes.txt": "cat\ndog\n"},
    "darknet_of_roboflow": {name.replace("images/", "").replace("labels/", ""): text for name, text in SPLIT.items()}
    | {"train/_darknet.labels": "cat\ndog\n"},
    "capital_folders": {
        name.replace("images", "Images").replace("labels", "Labels"): text for name, text in SPLIT.items()
    }
    | {"data.yaml": NAMES + "train: train/Images\nval: valid/Images\n"},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form):
    data = read_layout("auto", write(tmp_path, FORMS[form]))
    assert data.layout == "YOLO"
    assert boxes_of(data.parts["train"]) == {"a.png": [("dog", [40, 10, 60, 30])]}
    assert boxes_of(data.parts["val"]) == {"b.png": [("cat", [40, 10, 60, 30])]}
    assert not [note for part in data.parts.values() for note in part.notes]


def test_the_description_may_be_named_itself(tmp_path):
    root = write(tmp_path, FORMS["roboflow"] | {"other.yaml": "names: [eel, fox]\ntrain: train/images\n"})
    assert boxes_of(read_layout("auto", f"{root}/other.yaml").parts["train"]) == {"a.png": [("fox", [40, 10, 60, 30])]}


def test_one_folder_without_parts_is_to_train_on_and_classes_are_named_by_number(tmp_path):
    data = read_layout("auto", write(tmp_path, FLAT))
    assert list(data.parts) == ["train"]
    assert boxes_of(data.parts["train"]) == {"a.png": [("1", [40, 10, 60, 30])], "b.png": [("0", [40, 10, 60, 30])]}
    assert data.notes == ("classes are named by their numbers: 0, 1",)


@pytest.mark.parametrize(
    ("row", "box"),
    [
        ("3 0.5 0.5 0.5 0.5", (0.25, 0.25, 0.75, 0.75)),
        ("3.0 0.5 0.5 0.5 0.5 0.9", (0.25, 0.25, 0.75, 0.75)),
        ("3 .1 .2 .5 .1 .3 .7", (0.1, 0.1, 0.5, 0.7)),
        ("3 .1 .2 .5 .1 .3 .7 .2 .6", (0.1, 0.1, 0.5, 0.7)),
        ("3 -0.1 .2 1.1 .1 .3 .7", (-0.1, 0.1, 1.1, 0.7)),
    ],
)
def test_rows(row, box):
    number, found = read_row(row.split())
    assert number == 3
    assert found == pytest.approx(box)


def test_rows_with_key_points():
    words = ["0", *["0.5"] * 4, *["0.1", "0.2", "2"] * 2]
    assert read_row(words, keypoints=6) == (0, (0.25, 0.25, 0.75, 0.75))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("cat 0.5 0.5 0.5 0.5", "expected numbers, got 'cat 0.5"),
        ("1.5 0.5 0.5 0.5 0.5", "expected a class number, got 1.5"),
        ("-1 0.5 0.5 0.5 0.5", "expected a class number, got -1"),
        ("nan 0.5 0.5 0.5 0.5", "expected a class number, got nan"),
        ("inf 0.5 0.5 0.5 0.5", "expected a class number, got inf"),
        ("0 0.5 0.5 0.5", "got 3 numbers"),
        ("0", "got 0 numbers"),
        ("0 .1 .2 .3 .4 .5 .6 .7", "got 7 numbers"),
        ("0 320 240 64 48", "expected coordinates relative to the image, 0 to 1, got 320"),
        ("0 nan 0.5 0.5 0.5", "expected coordinates relative to the image, 0 to 1, got nan"),
        ("0,0.5,0.5,0.5,0.5", "expected numbers"),
    ],
)
def test_rows_that_are_none(row, message):
    with pytest.raises(ValueError, match=message):
        read_row(row.split())


def test_every_odd_row_and_file_is_named(tmp_path):
    rows = ["0 .5 .5 .2 .2", "x", "1 .1 .2 .5 .2 .3 .6", "", "0 .5 .5 .2 .2 .87", "0 1 .5 .2 .2", "7 .5 .5 .1 .1"]
    root = write(
        tmp_path,
        {
            "data.yaml": "names: [cat, dog]\nnc: 3\ntrain: images\n",
            "images/a.png": None,
            "labels/a.txt": "\n".join(rows),
            "images/empty.png": None,
            "labels/empty.txt": "\n",
            "images/none.png": None,
            "labels/stray.txt": rows[0],
            "labels/classes.txt": "cat",
        },
    )
    data = read_layout("auto", root)
    part = data.parts["train"]
    dataset = CocoDataset(part)
    assert data.notes == (f"{root}/data.yaml: nc is 3, names has 2: the names are taken",)
    assert part.notes == (
        "1 of 3 images have no label file: taken as images without an object",
        "1 label files are empty: images without an object",
        "1 label files have no image: labels/stray.txt",
        "1 rows have a sixth number, a confidence: it is not used",
        f"1 rows are of class 7, of which {root}/data.yaml names none, the first: {root}/labels/a.txt, line 7; "
        "`classes` may name them by number, else they are not used",
    )
    assert [str(problem) for problem in dataset.problems] == [
        f"{root}/labels/a.txt, line 2: bad-row: expected numbers, got 'x' (left out)",
        f"{root}/images/a.png, labels/a.txt, line 6: outside-box: "
        "bbox [90.0, 20.0, 20.0, 10.0] leaves the image of 100 x 50 (clipped)",
    ]
    assert len(dataset) == 3
    assert {Path(r.file).stem: len(r.boxes) for r in dataset.records} == {"a": 5, "empty": 0, "none": 0}


def test_labels_that_are_no_yolo_stop(tmp_path):
    root = write(tmp_path, FLAT | {"data.yaml": NAMES + "train: images", "labels/a.txt": "0 320 240 64 48\n" * 3})
    with pytest.raises(ValueError, match=r"3 of 4 rows are no YOLO labels, the first: .*a.txt, line 1: bad-row"):
        read_layout("yolo", root)


def test_a_part_without_any_label_is_not_used(tmp_path):
    data = read_layout("auto", write(tmp_path, TOP | {"images/test/c.png": None}))
    assert list(data.parts) == ["train", "val"]
    assert "test: none of 1 images has a label file: not used" in data.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a]\ntrain: 3\n", "train: expected a folder, a list file, or a list of them, got 3"),
        ("names: a\ntrain: images\n", "names: expected a list, or names by number, got 'a'"),
        ("names: {a: b}\ntrain: images\n", "names: expected a list, or names by number"),
        ("names: [a\ntrain: images\n", "expected YAML, got"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\ntrain: images\n", "expected YAML without aliases"),
        ("names: [a]\ntrain: nowhere/at/all\n", "expected annotated images, got none: .*train: nowhere/at/all is not"),
    ],
)
def test_descriptions_that_are_none(tmp_path, text, message):
    root = write(tmp_path, {"data.yaml": text, "pictures/test/a.png": None})
    with pytest.raises(ValueError, match=message) as caught:
        read_layout("yolo", root)
    assert str(caught.value).startswith(root)
    assert "\n" not in str(caught.value)
