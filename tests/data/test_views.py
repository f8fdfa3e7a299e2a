"""Views are what they are called, and depend on the image and its seed alone."""

import pickle

import cv2
import numpy as np
import pytest
import torch

from visionlab.data.views import Views
from visionlab.seeding import derive_seed


@pytest.fixture(scope="module")
def image():
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return cv2.resize(noise, (96, 72), interpolation=cv2.INTER_CUBIC)


def test_counts_sizes_and_types(image):
    views = Views.crops(image_size=32, count=2) + Views.crops(image_size=16, count=3, crop_scale=(0.05, 0.2))
    made = views(image, 0)
    assert len(views) == 5
    assert [tuple(view.shape) for view in made] == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 3
    assert all(view.dtype == torch.uint8 and view.is_contiguous() for view in made)


ALL = {"color_strength": 1.0, "grayscale": 0.2, "blur": 0.5, "solarize": 0.2}


def test_a_view_depends_on_image_seed_and_number_alone(image):
    used, fresh = (Views.crops(image_size=24, count=3, **ALL) for _ in range(2))
    for seed in range(5):
        used(image, seed)
    first = used(image, 2**62)
    np.random.seed(1)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, fresh(image, 2**62), strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], fresh(image, 1)[0])
    # The first view is the same however many follow it, and travels to a worker unchanged.
    alone = pickle.loads(pickle.dumps(Views.crops(image_size=24, **ALL)))
    assert torch.equal(alone(image, 2**62)[0], first[0])
    assert derive_seed(2**62, 0) != derive_seed(2**62, 1)


def test_without_changes_the_view_is_the_image():
    square = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    plain = Views.crops(image_size=20, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    np.testing.assert_array_equal(plain(square, 3)[0].permute(1, 2, 0).numpy(), square)
    mirrored = Views.crops(image_size=20, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=1.0)
    np.testing.assert_array_equal(mirrored(square, 3)[0].permute(1, 2, 0).numpy(), square[:, ::-1])


def test_crops_show_the_share_of_the_image_they_should():
    """An image whose pixels hold their own coordinates tells what a crop has seen."""
    y, x = np.mgrid[0:200, 0:200]
    image = np.stack([x, y, np.zeros_like(x)], 2).astype(np.uint8)
    views = Views.crops(image_size=50, crop_scale=(0.2, 0.5), crop_ratio=(0.5, 2.0), flip=0.0)
    shares, ratios = [], []
    for seed in range(100):
        view = views(image, seed)[0].double()
        width, height = (view[c].max() - view[c].min() for c in (0, 1))
        shares.append(width * height / 200**2)
        ratios.append(width / height)
    assert 0.16 < min(shares) < 0.25
    assert 0.42 < max(shares) < 0.53
    assert 0.45 < min(ratios) < 0.7
    assert 1.4 < max(ratios) < 2.2


@pytest.mark.parametrize("setting", ["flip", "grayscale", "blur", "solarize"])
def test_changes_come_as_often_as_they_should(image, setting):
    settings = {"crop_scale": (1.0, 1.0), "crop_ratio": (4 / 3, 4 / 3), "flip": 0.0}
    plain, often = Views.crops(image_size=24, **settings), Views.crops(image_size=24, **{**settings, setting: 0.3})
    base = plain(image, 0)[0]
    changed = np.mean([not torch.equal(often(image, seed)[0], base) for seed in range(300)])
    assert abs(changed - 0.3) < 0.09


def test_gray_views_are_gray_and_shrinking_antialiases(image):
    gray = Views.crops(image_size=24, grayscale=1.0)(image, 0)[0]
    assert torch.equal(gray[0], gray[1])
    assert torch.equal(gray[0], gray[2])
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    small = Views.crops(image_size=32, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)(stripes, 0)[0]
    assert small.float().std() < 2
    assert abs(small.float().mean() - 127.5) < 2


def test_tiny_and_narrow_images_give_views():
    for shape in ((1, 1, 3), (2, 300, 3), (300, 2, 3)):
        assert Views.crops(image_size=16, **ALL)(np.full(shape, 9, np.uint8), 0)[0].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio"),
        ({"count": 0}, "count: expected at least 1"),
        ({"blur": -0.1}, "blur: expected"),
        ({"grayscale": 2}, "grayscale: expected"),
        ({"solarize": 2}, "solarize: expected"),
    ],
)
def test_faulty_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Views.crops(image_size=16, **settings)
