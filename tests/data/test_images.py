import io
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from visionlab.data.images import ImageError, read_image, read_image_by_policy, read_image_size, read_image_sizes

RAMP = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


@pytest.mark.parametrize(("orientation", "shape"), [(1, (5, 7)), (6, (7, 5)), (8, (7, 5)), (3, (5, 7)), (0, (5, 7))])
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_orientation_in_other_formats(tmp_path, suffix, orientation, shape):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RAMP).save(path, exif=exif(orientation), lossless=True) if suffix == "webp" else Image.fromarray(
        RAMP
    ).save(path, exif=exif(orientation))
    turned = {6: np.rot90(RAMP, -1), 8: np.rot90(RAMP), 3: np.rot90(RAMP, 2)}.get(orientation, RAMP)
    np.testing.assert_array_equal(read_image(path), turned)
    assert read_image_size(path) == shape


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "png")
    content = buffer.getvalue()
    late = chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0"))
    path = tmp_path / "late.png"
    path.write_bytes(content[:-12] + late + content[-12:])
    assert read_image(path).shape == (7, 5, 3)
    assert read_image_size(path) == (7, 5)


def test_sixteen_bits_are_scaled_by_257_with_rounding(tmp_path):
    values = np.array([[0, 128, 129, 256, 257, 65535 - 128, 65535 - 129, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, :, 0], [0, 0, 1, 1, 1, 255, 254, 255])


@pytest.mark.parametrize(
    ("array", "reason"),
    [(np.full((2, 2), 0.5, np.float32), "float pixels"), (np.full((2, 2), 70000, np.int32), "expected 16 bits")],
)
def test_pixels_without_a_range_are_refused(tmp_path, array, reason):
    Image.fromarray(array).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match=reason):
        read_image(tmp_path / "a.tiff")


def test_missing_file_and_folder_are_named(tmp_path):
    for read in (read_image, read_image_size):
        with pytest.raises(ImageError, match=r"nowhere\.jpg: no such file$"):
            read(tmp_path / "nowhere.jpg")
        with pytest.raises(ImageError, match=r": a folder, not an image file$"):
            read(tmp_path)


def bomb(path, side):
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


def test_decompression_bomb_is_refused(tmp_path):
    for read in (read_image, read_image_size):
        with pytest.raises(ImageError, match=r"bomb\.png: .*exceeds limit"):
            read(bomb(tmp_path / "bomb.png", 50_000))


def test_large_image_is_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image_size(bomb(tmp_path / "large.png", 10_000)) == (10_000, 10_000)


def test_error_is_one_line_and_survives_pickling(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\nodd\ncontent\n")
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "a.jpg")
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_policy_decides_about_damaged_files(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "jpeg")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:-1500])
    for policy in ("skip", "fail"):
        with pytest.raises(ImageError, match=r"cut\.jpg"):
            read_image_by_policy(tmp_path / "cut.jpg", policy)
    assert read_image_by_policy(tmp_path / "cut.jpg", "repair").shape == (64, 64, 3)
    assert "cut.jpg" in caplog.text


def test_damaged_file_without_a_pixel_stays_an_error(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "png")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:45])
    with pytest.raises(ImageError, match=r"cut\.png: .*nothing of it can be decoded"):
        read_image(tmp_path / "cut.png", truncated=True)
    Image.new("RGB", (4, 3), "white").save(tmp_path / "white.png")
    assert (read_image(tmp_path / "white.png", truncated=True) == 255).all()


def test_sizes_of_many_files_keep_their_order(tmp_path):
    for number in range(1, 20):
        Image.new("L", (number, 3)).save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in (5, 99, 17)]
    sizes = read_image_sizes(paths)
    assert (sizes[0], sizes[2]) == ((3, 5), (3, 17))
    assert isinstance(sizes[1], ImageError)
