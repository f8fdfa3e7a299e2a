"""Boxes go where their pixels go."""

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from visionlab.data.augmentation import color_jitter, seed_transform
from visionlab.data.transforms import DetectionTransform, EvaluationResize, fit, resize_image

NOTHING = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))


def drawn(height, width, boxes):
    """A black image with white rectangles that fill the pixels of integer boxes."""
    image = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = 255
    return image


def labelled(boxes, crowd=()):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return boxes, np.arange(len(boxes)), np.isin(np.arange(len(boxes)), crowd)


def extent(pixels):
    """The box of the bright part of an image, edges placed by how much of the outermost pixels is covered."""
    gray = pixels[0].double() / 255
    columns, rows = gray.max(0).values, gray.max(1).values

    def ends(profile):
        inside = torch.nonzero(profile > 0.5).ravel()
        return float(inside[0]), float(inside[-1] + 1)

    (x1, x2), (y1, y2) = ends(columns), ends(rows)
    return [x1, y1, x2, y2]


def test_flip_moves_boxes_to_width_minus_x():
    boxes = [[10.25, 20.5, 100.75, 90.0], [0, 0, 641, 427]]
    flipped = DetectionTransform(short_side=427, max_size=2000, flip=1.0)
    pixels, target = flipped(np.zeros((427, 641, 3), np.uint8), *labelled(boxes), 0)
    assert pixels.shape == (3, 427, 641)
    torch.testing.assert_close(
        target.boxes, torch.tensor([[641 - 100.75, 20.5, 641 - 10.25, 90.0], [0, 0, 641, 427]]), atol=1e-3, rtol=0
    )


def test_flip_mirrors_pixels_and_boxes_alike():
    image = drawn(40, 60, [(3, 5, 17, 30)])
    image[:, :, 1] = np.arange(60)
    pixels, target = DetectionTransform(short_side=40, flip=1.0)(image, *labelled([[3, 5, 17, 30]]), 0)
    np.testing.assert_array_equal(pixels.numpy(), image[:, ::-1].transpose(2, 0, 1))
    torch.testing.assert_close(target.boxes, torch.tensor([[43.0, 5, 57, 30]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "short_side", "max_size"), [(427, 640, 800, 1333), (128, 128, 96, 96), (50, 301, 33, 90)]
)
def test_resize_scales_boxes_by_the_true_ratio_of_sizes(height, width, short_side, max_size):
    box = [width * 0.3, height * 0.25, width * 0.8, height * 0.5]
    pixels, target = EvaluationResize(short_side=short_side, max_size=max_size)(
        np.zeros((height, width, 3), np.uint8), *labelled([box]), 0
    )
    new_height, new_width = pixels.shape[1:]
    assert max(new_height, new_width) <= max_size
    assert min(new_height, new_width) <= short_side
    expected = torch.tensor([[new_width * 0.3, new_height * 0.25, new_width * 0.8, new_height * 0.5]])
    torch.testing.assert_close(target.boxes, expected, atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("short_side", [30, 60, 120, 73])
def test_resized_boxes_lie_on_the_resized_pixels(short_side):
    box = (20, 12, 68, 48)
    pixels, target = EvaluationResize(short_side=short_side, max_size=1000)(drawn(60, 100, [box]), *labelled([box]), 0)
    assert np.abs(np.subtract(extent(pixels), target.boxes[0].tolist())).max() <= 0.51


def test_whole_chain_keeps_boxes_on_their_pixels():
    box = (30, 22, 78, 61)
    image = drawn(90, 130, [box])
    transform = DetectionTransform(short_side=[60, 90, 140], max_size=400, flip=0.5, crop=0.2)
    shapes = set()
    for seed in range(60):
        pixels, target = transform(image, *labelled([box]), seed)
        shapes.add(min(pixels.shape[1:]))
        assert np.abs(np.subtract(extent(pixels), target.boxes[0].tolist())).max() <= 0.51
    assert shapes == {60, 90, 140}


def test_resize_agrees_with_pillow():
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    for height, width in ((20, 31), (74, 106), (37, 20)):
        expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        assert np.abs(resize_image(image, height, width).permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


def test_fit():
    assert fit(480, 640, 800, 1333) == (800, 1067)
    assert fit(400, 1000, 800, 1333) == (533, 1333)
    assert fit(1, 5000, 10, 100) == (1, 100)


def test_evaluation_takes_the_largest_of_several_sizes():
    several, largest = EvaluationResize(short_side=[30, 60, 40]), EvaluationResize(short_side=60)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert torch.equal(several.apply_to_image(image), largest.apply_to_image(image))


def test_objects_cut_off_are_dropped_and_crowds_stay():
    transform = DetectionTransform(short_side=100, max_size=400, flip=0.0, crop=0.4)
    boxes = [[0, 0, 30, 100], [40, 40, 60, 60], [0, 0, 30, 100], [0, 0, 1.2, 100]]
    dropped = 0
    for seed in range(40):
        pixels, target = transform(np.zeros((100, 100, 3), np.uint8), *labelled(boxes, crowd=[2]), seed)
        assert len(target.boxes) == len(target.labels) == len(target.crowd)
        assert 1 in target.labels, "the middle is never cut"
        assert (target.crowd == (target.labels == 2)).all()
        height, width = pixels.shape[1:]
        assert (target.boxes >= 0).all()
        assert (target.boxes <= torch.tensor([width, height, width, height])).all()
        assert (target.boxes[:, 2:] - target.boxes[:, :2] >= 1).all()
        if 2 in target.labels and 0 not in target.labels:
            dropped += 1
    assert dropped, "a fifth must be left of an object, not of a crowd"


def test_images_without_boxes():
    for transform in (DetectionTransform(short_side=50, crop=0.1, color_strength=0.5), EvaluationResize(short_side=50)):
        pixels, target = transform(np.zeros((60, 80, 3), np.uint8), *NOTHING, 0)
        assert pixels.dtype == torch.uint8
        assert min(pixels.shape[1:]) == 50
        assert target.boxes.shape == (0, 4)
        assert target.boxes.dtype == torch.float32
        assert target.labels.dtype == torch.int64
        assert target.crowd.dtype == torch.bool


def test_evaluation_keeps_every_box_and_flag():
    boxes = [[5, 5, 5, 9], [0, 0, 100, 100], [1, 1, 1.5, 1.5]]
    _, target = EvaluationResize(short_side=50)(np.zeros((100, 100, 3), np.uint8), *labelled(boxes, crowd=[1]), 0)
    assert target.labels.tolist() == [0, 1, 2]
    assert target.crowd.tolist() == [False, True, False]


def test_same_seed_same_sample_whatever_came_before():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    settings = {"short_side": [40, 60], "crop": 0.2, "color_strength": 0.5}
    used, fresh = DetectionTransform(**settings), DetectionTransform(**settings)
    for seed in (7, 8, 9, 2**63 - 1):
        used(image, *NOTHING, seed)
    np.random.seed(0)
    ours, theirs = used(image, *NOTHING, 5), fresh(image, *NOTHING, 5)
    assert torch.equal(ours[0], theirs[0])
    assert not torch.equal(ours[0], fresh(image, *NOTHING, 6)[0])


def test_steps_decide_independently():
    """With one seed for each step, flips and grays would fall on the same images."""
    compose = A.Compose([A.HorizontalFlip(p=0.5), A.ToGray(p=0.5)], save_applied_params=True)
    image, counts = np.zeros((8, 8, 3), np.uint8), np.zeros((2, 2), int)
    for seed in range(400):
        seed_transform(compose, seed)
        applied = [name for name, _ in compose(image=image)["applied_transforms"]]
        counts[int("HorizontalFlip" in applied), int("ToGray" in applied)] += 1
    assert counts.min() > 60  # of 100 expected in each


def test_color_changes_leave_boxes_alone():
    image = cv2.cvtColor(np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8), cv2.COLOR_GRAY2RGB)
    box = labelled([[3, 4, 20, 25]])
    plain = DetectionTransform(short_side=30, flip=0.0)
    colored = DetectionTransform(short_side=30, flip=0.0, color_strength=1.0)
    changed = 0
    for seed in range(20):
        (a, target_a), (b, target_b) = plain(image, *box, seed), colored(image, *box, seed)
        changed += not torch.equal(a, b)
        assert torch.equal(target_a.boxes, target_b.boxes)
    assert 10 < changed <= 20
    assert color_jitter(0.0) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, "flip: expected"),
        ({"crop": 0.5}, "crop: expected"),
        ({"short_side": 800, "max_size": 700}, "max_size: expected at least the short side, 800, got 700"),
        ({"short_side": []}, "short_side: expected numbers, each at least 1, got"),
        ({"color_strength": -1}, "color_strength: expected"),
    ],
)
def test_faulty_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DetectionTransform(**settings)
