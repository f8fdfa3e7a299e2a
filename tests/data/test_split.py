import json

import pytest

from visionlab.data.split import choose, split_coco

CATEGORIES = [{"id": 3, "name": "cat"}]


def write_json(folder, images):
    rows = [
        {"id": n, "image_id": image["id"], "category_id": 3, "bbox": [1, 1, 5, 5]} for n, image in enumerate(images)
    ]
    path = folder / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": CATEGORIES}))
    return str(path)


def test_choice_depends_on_keys_and_seed_alone():
    items = [f"{n}.jpg" for n in range(100)]
    few = choose(items, 10, key=str)
    assert few == sorted(few, key=items.index)
    assert set(few) == set(choose(items[::-1], 10, key=str))
    assert set(few) < set(choose(items, 11, key=str))
    assert set(few) != set(choose(items, 10, key=str, seed=1))


def test_split_is_disjoint_complete_and_kept(tmp_path):
    images = [{"id": n * 10, "file_name": f"{n}.png"} for n in range(40)]
    images.append({"id": 999, "file_name": "0.png"})
    source, folder = write_json(tmp_path, images), str(tmp_path / "split")
    paths = split_coco(source, folder=folder, val_fraction=0.25, seed=1)
    train, val = (json.loads(path.read_text()) for path in paths)
    assert (len(val["images"]), len(train["images"])) in [(10, 31), (11, 30)]
    ids = [{image["id"] for image in part["images"]} for part in (train, val)]
    assert ids[0] | ids[1] == {image["id"] for image in images}
    assert not ids[0] & ids[1]
    assert ({0, 999} <= ids[0]) or ({0, 999} <= ids[1]), "one file on both sides"
    for part, own in zip((train, val), ids, strict=True):
        assert {entry["image_id"] for entry in part["annotations"]} == own
        assert part["categories"] == CATEGORIES
    written = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    assert split_coco(source, folder=folder, val_fraction=0.25, seed=1) == paths
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == written
    assert len(list((tmp_path / "split").iterdir())) == 2
    for other in ({"val_fraction": 0.25, "seed": 2}, {"val_fraction": 0.5, "seed": 1}):
        with pytest.raises(ValueError, match=r"coco_train\.json: holds a different split"):
            split_coco(source, folder=folder, **other)
    another = split_coco(source, folder=str(tmp_path / "other"), val_fraction=0.25, seed=2)
    assert {image["id"] for image in json.loads(another[1].read_text())["images"]} != ids[1]


def test_split_leaves_no_side_empty(tmp_path):
    source = write_json(tmp_path, [{"id": n, "file_name": f"{n}.png"} for n in range(3)])
    for fraction in (0.01, 0.99):
        paths = split_coco(source, folder=str(tmp_path / str(fraction)), val_fraction=fraction)
        assert all(json.loads(path.read_text())["images"] for path in paths)
    with pytest.raises(ValueError, match=r"^val_fraction: expected a number in \(0, 1\), got 1$"):
        split_coco(source, folder=str(tmp_path), val_fraction=1)
