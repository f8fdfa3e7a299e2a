"""Folders of classes, and the middle of an image."""

import numpy as np
import pytest
from PIL import Image

from visionlab.data.class_folder import ClassFolder
from visionlab.data.views import CenterCrop


@pytest.fixture
def folder(tmp_path):
    for path in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/deeper/2.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / path)
    return tmp_path


def test_labels_are_the_folders_in_order(folder):
    data = ClassFolder(root=str(folder))
    assert data.classes == ["cat", "dog"]
    assert data.labels == [0, 0, 1, 1]
    assert data.load(3).shape == (4, 4, 3)
    assert ClassFolder(root=str(folder), classes=["dog", "eel", "cat"]).labels == [2, 2, 0, 0]


def test_what_lies_elsewhere_is_refused(folder):
    with pytest.raises(ValueError, match=r"expected folders of the classes \['cat'\], found also \['dog'\]$"):
        ClassFolder(root=str(folder), classes=["cat"])
    Image.new("RGB", (4, 4)).save(folder / "stray.png")
    with pytest.raises(ValueError, match=r"expected a folder for each class, but stray.png lies in none$"):
        ClassFolder(root=str(folder))


def test_the_middle_of_an_image():
    image = np.zeros((4, 10, 3), dtype=np.uint8)
    image[:, 3:7] = 255
    (view,) = CenterCrop(4)(image, seed=3)
    assert view.shape == (3, 4, 4)
    assert (view == 255).all()
    assert CenterCrop(8)(image)[0].shape == (3, 8, 8)
