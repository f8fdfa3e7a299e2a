"""Pictures: where the color of a box is, where text stays, what small images become."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from visionlab.eval.drawing import (
    class_color,
    draw_boxes,
    draw_comparison,
    draw_views,
    join_pictures,
    picture_grid,
    save_jpeg,
)
from visionlab.structures import Detections, Target, ViewBatch

GREEN = (10, 90, 10)


def canvas(height=300, width=400):
    return np.full((height, width, 3), GREEN, dtype=np.uint8)


def changed(before, after):
    """Return the box of all pixels that differ."""
    rows, columns = np.nonzero((before != after).any(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_colors_are_stable_and_distinct():
    colors = [class_color(label) for label in range(35)]
    assert colors == [class_color(label) for label in range(35)]
    distances = [np.abs(np.subtract(a, b)).sum() for a, b in itertools.combinations(colors, 2)]
    assert min(distances) >= 20
    assert all(0 <= channel <= 255 for color in colors for channel in color)


def test_corners_have_the_color_of_the_class():
    image = canvas()
    picture = draw_boxes(image, [[50, 60, 200, 180]], [3], ["a", "b", "c", "d"], min_side=0)
    for x, y in itertools.product((50, 199), (60, 179)):
        assert tuple(picture[y, x]) == class_color(3)
    assert tuple(picture[59, 100]) != class_color(3)
    assert tuple(picture[181, 100]) == GREEN
    assert tuple(picture[120, 120]) == GREEN, "a box is not filled"
    assert (image == canvas()).all(), "the image is not drawn on"


def test_caption_stands_above_its_box_on_the_color_of_the_class():
    picture = draw_boxes(canvas(), [[50, 60, 200, 180]], [1], ["a", "beetle"], min_side=0)
    plate = picture[42:59, 50:80].reshape(-1, 3)
    assert (plate == class_color(1)).all(axis=1).mean() > 0.3
    assert (plate == 0).all(axis=1).any(), "dark ink on a light color"
    assert tuple(picture[42, 195]) == GREEN


@pytest.mark.parametrize("name", ["a", "a class with a name much longer than any picture is wide " * 4, "", "线虫\nβ"])
@pytest.mark.parametrize("box", [[-30, -20, 500, 400], [380, 0, 400, 10], [0, 290, 5, 300], [395, 295, 396, 296]])
def test_odd_names_and_boxes_at_the_edges_can_be_drawn(name, box):
    picture = draw_boxes(canvas(), [box], [0], [name], scores=[0.5], min_side=0)
    assert picture.shape == (300, 400, 3)
    assert (picture != GREEN).any()


def test_long_caption_at_the_edge_is_moved_inside():
    short = draw_boxes(canvas(), [[385, 5, 399, 30]], [0], ["caterpillar"], min_side=0)
    left, top, right, bottom = changed(canvas(), short)
    assert (right, top) == (400, 4)
    assert left < 345
    assert bottom < 40


def test_overlong_caption_is_shortened():
    wide = draw_boxes(canvas(100, 100), [[10, 50, 90, 90]], [0], ["x" * 200], min_side=0)
    assert (wide[30:48, 95:] == GREEN).all(axis=2).mean() < 1
    assert (wide[30:48] == GREEN).all(axis=2).mean() > 0.1, "the plate does not cover the whole row of the picture"


@pytest.mark.parametrize("size", [(60, 90), (300, 200), (1, 7)])
def test_small_images_are_enlarged_with_their_boxes(size):
    height, width = size
    picture = draw_boxes(np.zeros((*size, 3), np.uint8), [[0, 0, width, height]], [2], ["a", "b", "c"])
    assert max(picture.shape) == 480
    assert picture.shape[0] / picture.shape[1] == pytest.approx(height / width, rel=0.02)
    assert tuple(picture[-1, -1]) == class_color(2)


def test_large_images_keep_their_size():
    assert draw_boxes(canvas(600, 500), [], [], []).shape == (600, 500, 3)


def test_best_score_lies_on_top():
    boxes = [[50, 60, 200, 180]] * 3
    picture = draw_boxes(canvas(), boxes, [0, 1, 2], list("abc"), scores=[0.2, 0.9, 0.5], min_side=0)
    assert tuple(picture[60, 50]) == class_color(1)


def test_crowd_is_gray():
    picture = draw_boxes(canvas(), [[50, 60, 200, 180]], [0], ["a"], crowd=[True], min_side=0)
    assert len(set(picture[60, 50].tolist())) == 1


def test_boxes_may_be_tensors():
    boxes = [[50, 60, 200, 180]]
    tensor = draw_boxes(canvas(), torch.tensor(boxes), [0], ["a"])
    assert (tensor == draw_boxes(canvas(), boxes, [0], ["a"])).all()


def test_comparison_shows_truth_and_good_detections():
    target = Target(torch.tensor([[50.0, 60, 200, 180]]), torch.tensor([0]), torch.tensor([False]))
    boxes = torch.tensor([[50.0, 60, 200, 180], [210, 60, 390, 290]])
    found = Detections(boxes, torch.tensor([0.9, 0.1]), torch.tensor([1, 2]))
    picture = draw_comparison(canvas(480, 480), target, found, ["a", "b", "c"])
    colors = {tuple(color) for color in np.unique(picture.reshape(-1, 3), axis=0)}
    assert {class_color(0), class_color(1)} <= colors
    assert class_color(2) not in colors
    assert picture.shape[1] > 2 * 480
    nothing = draw_comparison(canvas(), target, found, ["a", "b", "c"], threshold=0.95)
    assert class_color(1) not in {tuple(color) for color in np.unique(nothing.reshape(-1, 3), axis=0)}


def test_side_by_side_keeps_the_pictures_and_adds_titles():
    left, right = canvas(200, 100), np.full((200, 100, 3), 77, np.uint8)
    row = join_pictures([left, right], ["left", "a title that is much too long for its picture"])
    bar = row.shape[0] - 200
    assert (row[bar:, :100] == left).all()
    assert (row[bar:, -100:] == right).all()
    assert (row[:bar, :100] < 100).any(), "there is a title"


def test_grid_holds_every_picture():
    images = [np.full((20 + i, 30, 3), 10 * i, np.uint8) for i in range(5)]
    grid = picture_grid(images, columns=2, gap=3)
    assert grid.shape == (3 * 24 + 2 * 3, 63, 3)
    for i, image in enumerate(images):
        top, left = (i // 2) * 27, (i % 2) * 33
        assert (grid[top : top + len(image), left : left + 30] == image).all()
    assert picture_grid(images[:1], columns=4).shape == (20, 30, 3)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_views_of_one_image_stand_together(count):
    views = [
        torch.full((3, 3, 8, 8), 10 * view, dtype=torch.uint8) + torch.arange(3).view(3, 1, 1, 1)
        for view in range(count)
    ]
    picture = draw_views(ViewBatch([view.to(torch.uint8) for view in views]), min_side=8)
    for image in range(3):
        for view in range(count):
            strips = max(1, 8 // count)
            top, left = (image // strips) * 18, (image % strips) * (9 * count - 1 + 10) + 9 * view
            assert (picture[top : top + 8, left : left + 8] == 10 * view + image).all()


def test_saves_jpeg(tmp_path):
    save_jpeg(canvas(), tmp_path / "picture.jpg")
    with Image.open(tmp_path / "picture.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (400, 300))
