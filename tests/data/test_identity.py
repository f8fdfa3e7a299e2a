"""What a dataset is: the same wherever it lies, another after any change that training would notice."""

import copy
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from visionlab.data.coco import CocoDataset
from visionlab.data.folder import ImageFolder
from visionlab.data.identity import identify

CONTENT = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 20 + i, "height": 16} for i in range(3)],
    "annotations": [
        {"id": i + 1, "image_id": i, "category_id": 1 + i % 2, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0}
        for i in range(3)
    ],
    "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
}


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for image in CONTENT["images"]:
        pixels = np.random.default_rng(image["id"]).integers(0, 256, (image["height"], image["width"], 3), np.uint8)
        Image.fromarray(pixels).save(images / image["file_name"])
    return tmp_path


def labelled(folder, content=CONTENT):
    (folder / "ann.json").write_text(json.dumps(content))
    return identify(CocoDataset(annotations=str(folder / "ann.json"), images=str(folder / "images")))


def changed(path, value):
    content = copy.deepcopy(CONTENT)
    *keys, last = path
    place = content
    for key in keys:
        place = place[key]
    place[last] = value
    return content


def test_the_place_makes_no_difference(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("other") / "deep"
    first = labelled(folder)
    shutil.copytree(folder, elsewhere)
    assert labelled(elsewhere) == first
    assert first.images == first.boxes == 3
    assert identify(ImageFolder(root=str(elsewhere))) == identify(ImageFolder(root=str(folder)))
    assert first.difference(first) == ""


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("annotations", 0, "bbox"), [1, 2, 5, 7], "in equal numbers"),
        (("annotations", 0, "category_id"), 2, "in equal numbers"),
        (("annotations", 0, "iscrowd"), 1, "in equal numbers"),
        (("annotations", 0, "image_id"), 2, "in equal numbers"),
        (("categories", 0, "name"), "green", r"classes were \[red, blue\], are \[green, blue\]"),
        (("categories",), [{"id": 2, "name": "red"}, {"id": 1, "name": "blue"}], r"are \[blue, red\]"),
        (("categories",), [*CONTENT["categories"], {"id": 3, "name": "sky"}], r"are \[red, blue, sky\]"),
        (("annotations",), CONTENT["annotations"][:2], "boxes were 3, are 2"),
        (("images",), CONTENT["images"][:2], "images were 3, are 2"),
    ],
)
def test_whatever_training_would_notice_makes_another(folder, path, value, words):
    first = labelled(folder)
    second = labelled(folder, changed(path, value))
    assert second != first
    assert re.search(words, second.difference(first))


def test_another_image_of_the_same_name_makes_another(folder):
    before = labelled(folder), identify(ImageFolder(root=str(folder / "images")))
    Image.new("RGB", (20, 16)).save(folder / "images" / "0.png")
    after = labelled(folder), identify(ImageFolder(root=str(folder / "images")))
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert "in equal numbers" in after[1].difference(before[1])
