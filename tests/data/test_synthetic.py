"""The embedded dataset: reproducible, disjoint, truly labelled, readable as COCO json."""

import hashlib
import json
from collections import Counter

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from visionlab.data import contortion, scene
from visionlab.data.scene import CLASSES, FINE, draw_scene
from visionlab.data.synthetic import write_synthetic

SETTINGS = {"unlabelled": 6, "labelled": 8, "validation": 5, "image_size": 96}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write_synthetic(folder, **SETTINGS, seed=3)
    return folder


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_other_seed_other_bytes(dataset, tmp_path):
    write_synthetic(tmp_path / "again", **SETTINGS, seed=3)
    write_synthetic(tmp_path / "other", **SETTINGS, seed=4)
    assert digests(tmp_path / "again") == digests(dataset)
    images = {name: digest for name, digest in digests(dataset).items() if name.endswith(".jpg")}
    assert not set(images.values()) & set(digests(tmp_path / "other").values())


def test_no_image_is_in_two_splits_and_more_images_keep_the_first(dataset, tmp_path):
    images = {name: digest for name, digest in digests(dataset).items() if name.endswith(".jpg")}
    assert len(set(images.values())) == len(images) == 6 + 8 + 5
    write_synthetic(tmp_path / "more", **{**SETTINGS, "labelled": 10}, seed=3)
    more = digests(tmp_path / "more")
    assert all(more[name] == digest for name, digest in images.items())


def test_scenes_do_not_depend_on_the_threads_of_opencv():
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    one, _ = draw_scene(11)
    cv2.setNumThreads(4)
    four, _ = draw_scene(11)
    cv2.setNumThreads(threads)
    np.testing.assert_array_equal(one, four)


@pytest.mark.parametrize("deformation", [0.0, 1.0])
def test_boxes_are_the_extent_of_the_visible_pixels(deformation):
    for seed in range(12):
        _, objects = draw_scene(seed, size=64, deformation=deformation)
        masks = [item.mask > 0 for item in objects]
        assert np.sum(masks, 0).max(initial=0) <= 1, "a pixel shows one object"
        for item, mask in zip(objects, masks, strict=False):
            seen = [(x, y) for y in range(128) for x in range(128) if mask[y, x]]
            xs, ys = zip(*seen, strict=False)
            assert item.box == (min(xs) / FINE, min(ys) / FINE, (max(xs) + 1) / FINE, (max(ys) + 1) / FINE)


@pytest.mark.parametrize("deformation", [0.0, 1.0])
def test_masks_are_where_the_objects_are_painted(deformation, monkeypatch):
    """With objects in one color on black, the picture itself says where they are."""
    monkeypatch.setattr(scene.Scene, "material", lambda self, index, *_: np.full((*index.shape, 3), 255, np.uint8))
    monkeypatch.setattr(scene.Scene, "surface", lambda self, size: np.zeros((size, size, 3), np.uint8))
    monkeypatch.setattr(scene.Scene, "clutter", lambda self, count: None)
    alone = 0
    for seed in range(40):
        image, objects = draw_scene(seed, size=48, deformation=deformation)
        painted = image[..., 0] > 0
        masks = np.stack([item.mask.reshape(48, 2, 48, 2).max((1, 3)) > 0 for item in objects] or [np.zeros((48, 48))])
        np.testing.assert_array_equal(painted, masks.any(0))
        if len(objects) == 1:
            alone += 1
            rows, columns = np.nonzero(painted)
            x1, y1, x2, y2 = objects[0].box
            assert (columns.min(), rows.min()) == (int(x1), int(y1))
            assert (columns.max() + 1, rows.max() + 1) == (int(np.ceil(x2)), int(np.ceil(y2)))
    assert alone >= 3


def test_pycocotools_reads_the_annotations(dataset):
    for split, count in (("train", 8), ("val", 5)):
        coco = COCO(str(dataset / "annotations" / f"{split}.json"))
        assert len(coco.imgs) == count
        assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == CLASSES
        for image in coco.imgs.values():
            pixels = cv2.imread(str(dataset / split / image["file_name"]))
            assert pixels.shape == (image["height"], image["width"], 3)
        for annotation in coco.anns.values():
            x, y, width, height = annotation["bbox"]
            assert 0 <= x < x + width <= 96
            assert 0 <= y < y + height <= 96
            assert 0 < annotation["area"] <= width * height
            outlined = coco.annToMask(annotation).sum()
            assert abs(outlined - annotation["area"]) < 0.3 * annotation["area"] + 12


def test_scenes_are_varied():
    scenes = [draw_scene(1000 + seed)[1] for seed in range(120)]
    counts = [len(objects) for objects in scenes]
    assert min(counts) <= 1
    assert max(counts) >= 5
    assert 2 < np.mean(counts) < 5
    classes = Counter(item.label for objects in scenes for item in objects)
    assert len(classes) == len(CLASSES)
    assert min(classes.values()) > 0.5 * max(classes.values())
    areas = np.array([item.annotation()["area"] for objects in scenes for item in objects])
    assert (areas < 16**2).mean() > 0.1
    assert (areas > 48**2).mean() > 0.1
    extents = np.array([np.subtract(item.box[2:], item.box[:2]) for objects in scenes for item in objects])
    assert extents.min() >= 2


def test_mean_image_does_not_tell_up_from_down():
    """Neither brightness nor color of image halves gives the orientation away: objects do."""
    images = np.stack([draw_scene(2000 + seed, size=32)[0].astype(float) for seed in range(150)])
    difference = images[:, :16].mean((1, 2)) - images[:, 16:].mean((1, 2))
    assert (np.abs(difference.mean(0)) < 3.5 * difference.std(0) / np.sqrt(len(images)) + 2).all()


def test_same_settings_are_reused_others_refused(dataset, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    write_synthetic(dataset, **SETTINGS, seed=3)
    assert before == {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    with pytest.raises(ValueError, match=r"seed 4 \(there: 3\)"):
        write_synthetic(dataset, **SETTINGS, seed=4)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="other files"):
        write_synthetic(tmp_path, **SETTINGS)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupt(done, total):
        assert total == 19
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "data", **SETTINGS, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_marker_says_how_it_was_made(dataset):
    marker = json.loads((dataset / "synthetic.json").read_text())
    assert (marker["seed"], marker["unlabelled"], marker["train"], marker["val"]) == (3, 6, 8, 5)


def test_without_deformation_scenes_and_markers_are_those_of_before_there_was_any(tmp_path):
    """The digest is that of the scenes which the first version drew: datasets that lie somewhere stay valid."""
    digest = hashlib.sha256()
    for seed in range(5):
        image, objects = draw_scene(seed, size=96, deformation=0.0)
        digest.update(image.tobytes() + json.dumps([item.annotation() for item in objects]).encode())
    assert digest.hexdigest() == "32a701c75cc3da3d10154bffb3d0250bd7514ba59748859744161c55df098502"
    write_synthetic(tmp_path / "data", **SETTINGS, seed=3, deformation=0)
    marker = {"drawing": 1, "image_size": 96, "seed": 3, "unlabelled": 6, "train": 8, "val": 5}
    assert json.loads((tmp_path / "data" / "synthetic.json").read_text()) == marker


def test_a_dataset_of_another_deformation_is_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"with deformation 0.5 \(there: 0\) in"):
        write_synthetic(dataset, **SETTINGS, seed=3, deformation=0.5)
    small = {"unlabelled": 0, "labelled": 1, "validation": 0, "image_size": 32}
    write_synthetic(tmp_path / "bent", **small, deformation=1)
    write_synthetic(tmp_path / "bent", **small, deformation=1.0)
    with pytest.raises(ValueError, match=r"with deformation 0 \(there: 1\) in"):
        write_synthetic(tmp_path / "bent", **small)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"deformation: expected a number in \[0, 1\]"):
            write_synthetic(tmp_path / "other", **small, deformation=wrong)


def test_deformation_leaves_an_object_its_class_its_place_and_its_size(monkeypatch):
    asked = []
    creature = scene.Scene.creature
    monkeypatch.setattr(scene.Scene, "creature", lambda self, *given: asked.append(given) or creature(self, *given))
    changed = 0
    for seed in range(10):
        scenes = []
        for deformation in (0.0, 1.0):
            asked.clear()
            objects = draw_scene(seed, size=64, deformation=deformation)[1]
            scenes.append((asked[0], objects[0].mask if objects else None))
        assert scenes[0][0] == scenes[1][0]
        changed += not np.array_equal(scenes[0][1], scenes[1][1])
    assert changed >= 8


@pytest.mark.parametrize("upright", [True, False])
def test_a_rod_becomes_an_arc(upright):
    """Without stretch the middle line of a rod keeps its length and bends by 60 to 150 degrees between its ends."""
    rod = np.array([[-0.5, -0.05], [0.5, -0.05], [0.5, 0.05], [-0.5, 0.05]])
    rod = rod[:, ::-1] if upright else rod
    for seed in range(20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(contortion, "STRETCH", 1.0)
            [(outline, material)] = contortion.contort(np.random.default_rng(seed), [(rod, 2)], 1.0)
        assert material == 2
        assert outline[:, 1].min() == pytest.approx(0), "it stands on the ground"
        start = [int(np.flatnonzero(np.isclose(contortion._with_short_sides(rod), corner).all(1))[0]) for corner in rod]
        first, second, third, fourth = outline[start]
        near, far = fourth - first, third - second
        cosine = near @ far / (np.linalg.norm(near) * np.linalg.norm(far))
        assert 60 - 1e-6 <= np.degrees(np.arccos(cosine)) <= 150 + 1e-6
        middle = (outline[start[0] : start[1] + 1] + outline[start[2] : start[3] + 1][::-1]) / 2
        length = np.linalg.norm(np.diff(middle, axis=0), axis=1).sum()
        assert length == pytest.approx(1, abs=0.01)


def test_stretch_and_turn_keep_the_area(monkeypatch):
    monkeypatch.setattr(contortion, "BEND", 0.0)
    turn = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1) / 2
    ratios = []
    for seed in range(30):
        [(outline, _)] = contortion.contort(np.random.default_rng(seed), [(circle, 0)], 1.0)
        x, y = outline.T
        assert abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 == pytest.approx(np.pi / 4, rel=1e-3)
        minor, major = np.sqrt(np.linalg.eigvalsh(np.cov(outline.T)))
        ratios.append(major / minor)
    assert min(ratios) > 2**0.39
    assert max(ratios) < 2.01
