"""Copies of one photo, found by name, by bytes and by looks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionlab.data.copies import find_leaks, group_photos, leak_problems, photo_name
from visionlab.data.looks import Looks


def picture(seed, height=120, width=160):
    """A smooth picture with something in it, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def save(image, path, **settings):
    image.save(path, **settings)
    return str(path)


@pytest.mark.parametrize(
    ("file", "photo"),
    [
        ("train/cat_jpg.rf.5d41402abc4b2a76b9719d911017c592.jpg", "cat"),
        ("a/b/cat.rf.7d793037a0760186574b0282f2f435e7.png", "cat"),
        (r"..\images\IMG_5021-2024-03-13_jpeg.rf.c09f106d67e8.jpg", "IMG_5021-2024-03-13"),
        ("my.rf.photo_png.rf.aB3dE6gH9jK2.jpg", "my.rf.photo"),
        ("cat.jpg", None),
        ("cat_jpg.jpg", None),
        ("half.rf.jpg", None),
        (".rf.0123456789abcdef.jpg", None),
        ("folder.rf.0123456789abcdef.d/cat.jpg", None),
        ("", None),
    ],
)
def test_photo_name(file, photo):
    assert photo_name(file) == photo


def test_what_is_a_copy_and_what_is_not(tmp_path):
    original = picture(1, 480, 640)
    brighter = Image.fromarray((np.asarray(original) * 0.8 + 20).astype(np.uint8))
    files = [
        save(original, tmp_path / "original.png"),
        save(original, tmp_path / "again.jpg", quality=60),
        save(original.resize((320, 240)), tmp_path / "half.jpg", quality=90),
        save(brighter, tmp_path / "brighter.webp"),
        save(original.convert("L"), tmp_path / "gray.png"),
        save(original.convert("RGBA"), tmp_path / "alpha.png"),
        save(original.rotate(90, expand=True), tmp_path / "turned.jpg", exif=orientation(6)),
    ]
    others = [
        save(picture(2, 480, 640), tmp_path / "other.png"),
        save(original.transpose(Image.Transpose.FLIP_LEFT_RIGHT), tmp_path / "mirrored.png"),
        save(Image.new("RGB", (64, 48), "black"), tmp_path / "black.png"),
        save(Image.new("RGB", (64, 48), (1, 1, 1)), tmp_path / "blank.png"),
        str(tmp_path / "missing.png"),
    ]
    (tmp_path / "page.jpg").write_text("<html>")
    others.append(str(tmp_path / "page.jpg"))
    groups = group_photos(files + others)
    assert groups.labels.tolist() == [0] * 7 + list(range(7, 13))
    assert groups.joined == {"name": 0, "bytes": 0, "looks": 6}
    assert groups.members()[:2] == [list(range(7)), [7]]
    for off in (0, None):
        assert group_photos(files + others, near_copies=off).labels.tolist() == list(range(13))


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def test_names_and_bytes_join_what_looks_cannot(tmp_path):
    """A file with two copies by name, one of which is byte-equal to a stranger, one that is not there at all."""
    names = ["a_jpg.rf.00000000aaaa.png", "a_jpg.rf.00000000bbbb.png", "b.png", "a_jpg.rf.00000000cccc.png", "c.png"]
    files = [str(tmp_path / name) for name in names]
    for file, seed in zip(files, (1, 2, 2, None, 3), strict=True):
        if seed is not None:
            picture(seed).save(file)
    for near_copies in (0, 0.03):
        groups = group_photos(files, near_copies=near_copies)
        assert groups.labels.tolist() == [0, 0, 0, 0, 4]
        assert groups.joined["name"] == 2
        assert groups.joined["bytes"] == 1


def test_the_hash_is_the_documented_one(tmp_path):
    """Comparisons and correlation against plain loops over the mean gray of each of 16 x 17 fields."""
    rng = np.random.default_rng(0)
    pictures = [np.kron(rng.integers(0, 256, (16, 17)), np.ones((4, 4))).astype(np.uint8) for _ in range(2)]
    looks = Looks.read([save(Image.fromarray(pixels), tmp_path / f"{n}.png") for n, pixels in enumerate(pictures)])
    fields = [[[int(pixels[4 * y, 4 * x]) for x in range(17)] for y in range(16)] for pixels in pictures]
    signs = [[(row[x] > row[x - 1]) - (row[x] < row[x - 1]) for row in field for x in range(1, 17)] for field in fields]
    assert looks.signs.tolist() == signs
    assert looks.values[0] @ looks.values[1] == pytest.approx(
        np.corrcoef(np.ravel(fields[0]), np.ravel(fields[1]))[0, 1]
    )
    decided = [(a, b) for a, b in zip(*signs, strict=True) if a and b]
    share = sum(a != b for a, b in decided) / len(decided)
    alike = Looks(np.arange(2), looks.signs, np.full_like(looks.values, 1))
    for limit, count in ((share - 1e-3, 1), (share + 1e-3, 2)):
        assert [len(matches) for _, matches, _ in alike.matches(alike, limit)] == [count, count]
        assert [len(matches) for _, matches, _ in looks.matches(looks, limit)] == [1, 1], "they do not correlate"
    (_, _, shares), _ = alike.matches(alike, 1)
    assert shares == pytest.approx([0, share])


def test_dark_images_need_more_than_equal_comparisons(tmp_path):
    """Where an image is mostly black, what is not black must lie in one place too."""
    files = []
    for n, (x, y) in enumerate([(10, 10), (11, 10), (100, 70)]):
        image = Image.new("L", (160, 120), 0)
        image.paste(255, (x, y, x + 30, y + 30))
        files.append(save(image, tmp_path / f"{n}.png"))
    assert group_photos(files).labels.tolist() == [0, 0, 2]


def test_what_belongs_together_is_passed_on(tmp_path):
    """The first frame does not look like the last, but each looks like the next."""
    scene = np.asarray(picture(5, 200, 400))
    files = [save(Image.fromarray(scene[:, n : n + 300]), tmp_path / f"{n}.png") for n in range(30)]
    assert group_photos([files[0], files[-1]]).labels.tolist() == [0, 1]
    assert group_photos(files).labels.tolist() == [0] * 30


def test_leaks_name_part_files_and_how(tmp_path):
    for part in ("train", "val", "test"):
        (tmp_path / part).mkdir()
    parts = {
        "train": [save(picture(n), tmp_path / "train" / f"{n}.png") for n in range(4)],
        "val": [save(picture(n), tmp_path / "val" / f"{n}.jpg", quality=80) for n in (3, 8, 9)],
        "test": [save(picture(n), tmp_path / "test" / f"{n}.png") for n in (0, 9)],
    }
    parts["train"].append(save(picture(20), tmp_path / "train" / "x_jpg.rf.0000000011.png"))
    parts["test"].append(save(picture(21), tmp_path / "test" / "x_jpg.rf.0000000022.png"))
    seen = []
    leaks = find_leaks(parts, progress=lambda *done: seen.append(done))
    assert seen[-1] == (11, 11)
    found = {
        (leak.part, leak.other): [(Path(c.file).name, Path(c.original).name, c.how) for c in leak.copies]
        for leak in leaks
    }
    assert list(found) == [("val", "train"), ("test", "train"), ("test", "val")]
    assert found["test", "train"] == [
        ("0.png", "0.png", "equal bytes"),
        ("x_jpg.rf.0000000022.png", "x_jpg.rf.0000000011.png", "the same photo by its name"),
    ]
    ((file, original, how),) = found["val", "train"]
    assert (file, original) == ("3.jpg", "3.png")
    assert how.startswith("looks the same, ")
    text = str(leaks[1])
    assert text.startswith(f"2 of 3 images of test are copies of one of train: {parts['test'][0]} is a copy of ")
    assert text.endswith("(equal bytes), and 1 more")
    problems = leak_problems(leaks)
    assert len(problems) == 4
    assert str(problems[-1]).startswith(
        f"{parts['test'][1]}: leak: test: a copy of {parts['val'][2]} of val (looks the "
    )
    cheap = find_leaks(parts, near_copies=0)
    assert [(leak.part, leak.other, len(leak.copies)) for leak in cheap] == [("test", "train", 2)]


@pytest.mark.parametrize(("name", "photos"), [("egg", 624), ("mushroom", 26), ("foosball", 57)])
def test_photos_of_public_sets(test_data, name, photos):
    files = sorted(str(file) for file in (test_data / name / "train").glob("*.jpg"))
    groups = group_photos(files)
    assert len(files) - groups.joined["name"] == photos
    assert len(groups.members()) >= 0.8 * photos
    assert max(map(len, groups.members())) <= 0.04 * len(files) + 2, "not all frames of a rig are strung together"


def test_leaks_of_public_splits(test_data):
    """One frame of a video is nearly one of the training images; sets of other photos do not leak."""
    for name, expected in {"foosball": [("valid", 1)], "mushroom": [], "bccd": []}.items():
        folder = test_data / name
        parts = {part: sorted(map(str, (folder / part).glob("*.jpg"))) for part in ("train", "valid", "test")}
        if name == "bccd":
            files = sorted(map(str, (folder / "images").glob("*.jpg")))
            parts = {"train": files[::2], "valid": files[1::2]}
        assert [(leak.part, len(leak.copies)) for leak in find_leaks(parts)] == expected
