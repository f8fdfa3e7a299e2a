"""Images and boxes are what albumentations' own pipelines make of them, bit for bit."""

import itertools
import random

import albumentations as A
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from visionlab.data.augmentation import BOXES, Augmentation, color_jitter, extra_seed, seed_transform
from visionlab.data.geometry import CropAndFlip
from visionlab.data.transforms import DetectionTransform, EvaluationResize, fit, planes, resize_image


def compose(crop, flip):
    steps = [A.RandomCropFromBorders(crop, crop, crop, crop)] if crop else []
    steps += [A.HorizontalFlip(p=flip)] if flip else []
    return A.Compose(steps or [A.NoOp()], bbox_params=A.BboxParams(**BOXES))


def run(pipeline, image, boxes):
    changed = pipeline(image=image, bboxes=np.asarray(boxes, np.float64), index=np.arange(len(boxes)))
    return changed["image"], np.asarray(changed["bboxes"]).reshape(-1, 4), np.asarray(changed["index"], np.int64)


def image_of(generator, height, width):
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def boxes_of(generator, height, width, count):
    """Boxes inside, across and beyond the image, of all sizes, some of them without area, at its edge or turned."""
    corners = generator.uniform(-0.2, 1.2, (count, 2, 2)) * (width, height)
    corners[: count // 2] = np.clip(corners[: count // 2], 0, (width, height))
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    boxes[1::7, 2] = boxes[1::7, 0] + generator.choice([0.0, 1e-9, 1e-5, 0.3, 1.0], len(boxes[1::7]))
    boxes[2::7] = np.round(boxes[2::7])
    boxes[3::7, ::2] = 0, width
    boxes[4::14] = boxes[4::14, [2, 3, 0, 1]]
    return boxes.astype(np.float32)


SIZES = [(1, 1), (1, 9), (7, 1), (3, 4), (37, 53), (64, 64), (120, 75)]


@pytest.mark.parametrize(
    ("crop", "flip"), [*itertools.product((0.0, 0.01, 0.2, 0.49), (0.0, 0.5, 1.0)), (0.3, 0.9), (0.0, 1e-3)]
)
def test_crops_and_flips_are_those_of_albumentations(crop, flip):
    theirs, ours = compose(crop, flip), CropAndFlip(crop, flip)
    for seed, (height, width) in enumerate(SIZES * 12):
        generator = np.random.default_rng(seed)
        image, boxes = image_of(generator, height, width), boxes_of(generator, height, width, (0, 1, 40)[seed % 3])
        expected_draws = seed_transform(theirs, seed)
        expected = run(theirs, image, boxes)
        draws = random.Random(seed)
        for found, one in zip(ours(image, boxes, draws), expected, strict=True):
            np.testing.assert_array_equal(found, one)
        assert draws.getstate() == expected_draws.getstate()


def before(image, boxes, labels, crowd, seed, *, short_side, max_size, crop, flip, color_strength, extra):
    """The whole of a detection transform in pipelines of albumentations, with images turned around before each."""
    pipeline = compose(crop, flip)
    generator = seed_transform(pipeline, seed)
    side = generator.choice(short_side)
    picture, left, index = run(pipeline, image, boxes)
    keep = (area(left) >= 0.2 * area(np.asarray(boxes, np.float64))[index]) | crowd[index]
    color_seed = generator.getrandbits(63)
    left, index = left[keep], index[keep]
    if extra:
        passes = []
        for limit in (0.2, 0.0):
            more = A.Compose(Augmentation(extra=extra).extra_steps(), A.BboxParams(**BOXES, min_visibility=limit))
            seed_transform(more, extra_seed(seed))
            changed = more(image=picture, bboxes=left, index=index)
            found = np.asarray(changed["bboxes"], np.float64).reshape(-1, 4), np.asarray(changed["index"], np.int64)
            passes.append(dict(zip(found[1], found[0], strict=True)))
        objects, crowds = passes
        picture = changed["image"]
        index = np.array([n for n in index if n in (crowds if crowd[n] else objects)], np.int64)
        left = np.array([(crowds if crowd[n] else objects)[n] for n in index]).reshape(-1, 4)
    height, width = fit(*picture.shape[:2], side, max_size)
    pixels = planar(picture, height, width)
    scale = [width / picture.shape[1], height / picture.shape[0]] * 2
    left = left * scale
    keep = ((left[:, 2] - left[:, 0]) >= 1) & ((left[:, 3] - left[:, 1]) >= 1)
    colors = A.Compose(color_jitter(color_strength))
    seed_transform(colors, color_seed)
    pixels = colors(image=pixels.permute(1, 2, 0).numpy())["image"].transpose(2, 0, 1)
    return pixels, left[keep].astype(np.float32), labels[index[keep]], crowd[index[keep]]


def area(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def planar(image, height, width):
    """The image at another size, which torch takes for a planar one and copies, by the strides of this batch of one."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if pixels.shape[1:] == (height, width):
        return pixels
    return F.interpolate(pixels[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]


EXTRA = [{"transform": "Rotate", "limit": 20, "p": 0.7}, {"transform": "RandomBrightnessContrast"}]


@pytest.mark.parametrize(
    ("crop", "flip", "color_strength", "extra"),
    [
        (0.0, 0.0, 0.0, None),
        (0.0, 0.5, 0.0, None),
        (0.2, 0.5, 0.0, None),
        (0.0, 0.0, 0.8, None),
        (0.3, 0.5, 0.8, None),
        (0.2, 0.5, 0.5, EXTRA),
        (0.0, 0.0, 0.0, EXTRA),
    ],
)
def test_detection_transforms_are_those_of_albumentations(crop, flip, color_strength, extra):
    settings = {"crop": crop, "flip": flip, "color_strength": color_strength, "extra": extra, "max_size": 150}
    settings["short_side"] = [37, 60, 91]
    transform = DetectionTransform(**settings)
    objects = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        height, width = ((37, 53), (60, 80), (130, 61))[seed % 3]
        image, boxes = image_of(generator, height, width), boxes_of(generator, height, width, (0, 1, 12)[seed // 3 % 3])
        labels, crowd = np.arange(len(boxes)), generator.random(len(boxes)) < 0.3
        given = image.copy()
        pixels, target = transform(image, boxes, labels, crowd, seed)
        np.testing.assert_array_equal(image, given)
        assert pixels.is_contiguous()
        found = pixels, target.boxes, target.labels, target.crowd
        for ours, expected in zip(found, before(image, boxes, labels, crowd, seed, **settings), strict=True):
            np.testing.assert_array_equal(ours.numpy(), expected)
        objects += len(target.labels)
    assert objects > 60


@pytest.mark.parametrize("height", [1, 2, 31, 60])
@pytest.mark.parametrize("width", [1, 3, 40, 97])
def test_memory_order_changes_no_pixel_of_a_resized_image(height, width):
    for seed, (old_height, old_width) in enumerate([(1, 1), (1, 50), (50, 1), (31, 40), (60, 97), (128, 75)]):
        image = image_of(np.random.default_rng(seed), old_height + 2, old_width + 3)[1:-1, 2:-1]  # a view
        pixels = resize_image(image, height, width)
        assert pixels.is_contiguous()
        assert torch.equal(pixels, planar(image, height, width))
    resized = EvaluationResize(short_side=height, max_size=200).apply_to_image(image)
    assert torch.equal(resized, planar(image, *fit(*image.shape[:2], height, 200)))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (40, 33)])
def test_planes_are_a_copy_of_the_channels(size):
    image = image_of(np.random.default_rng(0), *size)
    for view in (image, image[::-1], image[:, ::-1], image[:, :, ::-1], image[:, 1:][:, :1] if size[1] > 1 else image):
        channels = planes(view)
        np.testing.assert_array_equal(channels.numpy(), view.transpose(2, 0, 1))
        assert channels.is_contiguous()
    before = channels.clone()
    image[:] = 0
    assert torch.equal(channels, before)
