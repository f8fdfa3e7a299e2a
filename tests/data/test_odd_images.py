"""Every file of odd_images against pixels composed here, by other means than the code under test."""

import threading
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from visionlab.data.images import ImageError, read_image, read_image_by_policy, read_image_size

# What makes each damaged file unreadable, and whether a part of it can be decoded.
DAMAGED = {
    "derived_empty.jpg": ("the file is empty", False),
    "derived_html_named.jpg": ("HTML", False),
    "pillow_broken.png": ("not an image", False),
    "tv_sigsegv.png": ("Truncated", False),
    "tv_corrupt34_2.jpg": ("truncated", True),
    "tv_corrupt34_3.jpg": ("truncated", True),
    "tv_corrupt34_4.jpg": ("truncated", True),
    "tv_corrupt.jpg": ("broken data stream", True),
    "pillow_broken_data_stream.png": ("data stream", True),
    "derived_coco_truncated_50pct.jpg": ("truncated", True),
    "derived_coco_truncated_last10bytes.jpg": ("truncated", True),
}
ORIENTATIONS = {
    "exif_Landscape_6.jpg": 6,
    "exif_Portrait_8.jpg": 8,
    "pillow_empty_gps_ifd.jpg": 6,
    "pillow_orientation_rectangle.jpg": 8,
    **{f"pillow_hopper_orientation_{n}.jpg": n for n in range(2, 9)},
}
# The transparent sample value of images with a single one.
TRANSPARENT_VALUE = {"pillow_l_trns.png": 255, "pillow_1_trns.png": True, "pillow_i_trns.png": 255}


def files(test_data):
    return sorted(path for path in (test_data / "odd_images").iterdir() if path.suffix not in ("", ".md"))


def turned(pixels, orientation):
    """The eight EXIF orientations: where row 0 and column 0 of the stored pixels belong in the picture."""
    return {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
        8: np.rot90,
    }[orientation](pixels)


def over_white(color, alpha):
    if (alpha == 255).all():
        return np.round(color).astype(np.int16)
    color, alpha = color.astype(np.float64), alpha.astype(np.float64)[..., None] / 255
    return np.round(color * alpha + 255 * (1 - alpha))


def expected(path):
    """Stored samples to RGB, mode by mode, in floating point."""
    image = Image.open(path)
    image.load()
    samples = np.asarray(image)
    opaque = np.full(samples.shape[:2], 255)
    if path.name in TRANSPARENT_VALUE:
        opaque = np.where(samples == TRANSPARENT_VALUE[path.name], 0, 255)
    if image.mode == "P":
        color = np.array(image.getpalette("RGB")).reshape(-1, 3)[samples]
        transparency = image.info.get("transparency")
        if isinstance(transparency, bytes):
            alphas = np.full(256, 255)
            alphas[: len(transparency)] = list(transparency)
            opaque = alphas[samples]
        elif transparency is not None:
            opaque = np.where(samples == transparency, 0, 255)
    elif image.mode in ("I;16", "I"):
        color = np.repeat(np.round(samples / 257.0)[..., None], 3, axis=2)
    elif image.mode == "1":
        color = np.repeat(samples[..., None] * 255, 3, axis=2)
    elif image.mode == "L":
        color = np.repeat(samples[..., None], 3, axis=2)
    elif image.mode == "LA":
        color, opaque = np.repeat(samples[..., :1], 3, axis=2), samples[..., 1]
    elif image.mode == "RGBA":
        color, opaque = samples[..., :3], samples[..., 3]
    elif image.mode == "CMYK":
        color = (255.0 - samples[..., :3]) * (255.0 - samples[..., 3:]) / 255
    else:
        assert image.mode == "RGB"
        color = samples
    return turned(over_white(color, opaque), ORIENTATIONS.get(path.name, 1))


def test_every_sound_file_has_the_right_pixels(test_data):
    sound = [path for path in files(test_data) if path.name not in DAMAGED]
    assert len(sound) == 51
    for path in sound:
        pixels, reference = read_image(path), expected(path)
        assert pixels.dtype == np.uint8, path.name
        assert pixels.shape == reference.shape, path.name
        assert pixels.flags.c_contiguous, path.name
        assert pixels.flags.writeable, path.name
        # Pillow multiplies CMYK in integers, which may round the other way.
        assert np.abs(pixels - reference).max() <= (1 if "cmyk" in path.name else 0), path.name
        assert read_image_size(path) == pixels.shape[:2], path.name


def test_pixels_are_those_of_exif_transpose_and_rgb(test_data):
    """Where there is neither transparency nor 16 bits, Pillow's own two calls say the same."""
    compared = 0
    for path in files(test_data):
        if path.name not in DAMAGED:
            image = Image.open(path)
            image.load()
            if not image.has_transparency_data and not image.mode.startswith("I"):
                reference = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
                np.testing.assert_array_equal(read_image(path), reference, err_msg=path.name)
                compared += 1
    assert compared == 35


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file_is_named_with_its_reason(test_data, name):
    reason, _ = DAMAGED[name]
    with pytest.raises(ImageError, match=rf"{name}: [^\n]*{reason}[^\n]*$"):
        read_image(test_data / "odd_images" / name)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file_is_decoded_as_far_as_pillow_can(test_data, name, monkeypatch):
    path = test_data / "odd_images" / name
    if not DAMAGED[name][1]:
        with pytest.raises(ImageError, match=name):
            read_image(path, truncated=True)
        return
    pixels = read_image(path, truncated=True)
    assert np.array_equal(pixels, read_image_by_policy(path, "repair"))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert np.array_equal(pixels, np.asarray(Image.open(path).convert("RGB")))


def test_repair_leaves_other_threads_strict(test_data):
    """Decoding a damaged file in one thread must not make another thread take damaged files for sound."""
    path = test_data / "odd_images" / "derived_coco_truncated_50pct.jpg"
    stop, accepted = threading.Event(), []

    def read_strictly():
        while not stop.is_set():
            try:
                accepted.append(read_image(path))
            except ImageError:
                continue

    thread = threading.Thread(target=read_strictly)
    thread.start()
    for _ in range(20):
        read_image(path, truncated=True)
    stop.set()
    thread.join()
    assert not accepted


def test_no_file_warns(test_data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in files(test_data):
            if path.name not in DAMAGED:
                read_image(path)
                read_image_size(path)
