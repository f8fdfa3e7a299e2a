import itertools
import json
import random

import numpy as np
import pytest
from PIL import Image

from visionlab.data.annotated import AnnotatedPart
from visionlab.data.coco_json import read_coco
from visionlab.data.copies import find_leaks, photo_name
from visionlab.data.split import choose, choose_groups, split_part

CATEGORIES = [{"id": 3, "name": "cat"}]


def part_of(folder, images):
    rows = [
        {"id": n, "image_id": image["id"], "category_id": 3, "bbox": [1, 1, 5, 5]} for n, image in enumerate(images)
    ]
    path = folder / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": CATEGORIES}))
    return AnnotatedPart(read_coco(str(path)), str(folder), str(path))


def names(part):
    return [image["file_name"] for image in part.content["images"]]


def test_choice_depends_on_keys_and_seed_alone():
    items = [f"{n}.jpg" for n in range(100)]
    few = choose(items, 10, key=str)
    assert few == sorted(few, key=items.index)
    assert set(few) == set(choose(items[::-1], 10, key=str))
    assert set(few) < set(choose(items, 11, key=str))
    assert set(few) != set(choose(items, 10, key=str, seed=1))


@pytest.mark.parametrize("sizes", [[1] * 7, [3] * 5, [5, 5, 5, 3, 3], [1, 40], [40, 40, 41], [2, 7, 7, 30, 1, 4]])
def test_groups_come_as_near_as_they_can(sizes):
    """Against all combinations there are."""
    groups = [[f"{group}-{n}" for n in range(size)] for group, size in enumerate(sizes)]
    combinations = itertools.chain.from_iterable(itertools.combinations(sizes, n) for n in range(1, len(sizes)))
    totals = {sum(chosen) for chosen in combinations}
    for count in range(1, sum(sizes)):
        chosen = choose_groups(groups, count, seed=count)
        assert 0 < len(set(chosen)) == len(chosen) < len(sizes)
        assert abs(sum(sizes[n] for n in chosen) - count) == min(abs(total - count) for total in totals)


def test_groups_without_copies_are_chosen_as_single_items_are():
    items = [f"{n}.jpg" for n in range(50)]
    chosen = choose_groups([[item] for item in items], 12, seed=4)
    assert {items[n] for n in chosen} == set(choose(items, 12, key=str, seed=4))
    shuffled = random.Random(0).sample(items, 50)
    assert {shuffled[n] for n in choose_groups([[item] for item in shuffled], 12, seed=4)} == {items[n] for n in chosen}
    with pytest.raises(ValueError, match="at least 2 groups to choose from, got 1"):
        choose_groups([items], 12)


def test_many_groups_are_chosen_in_no_time():
    groups = [[f"{n}-{k}" for k in range(n % 4 + 1)] for n in range(20_000)]
    assert sum(len(groups[n]) for n in choose_groups(groups, 10_000)) == 10_000


def test_split_is_disjoint_complete_and_kept(tmp_path):
    images = [{"id": n * 10, "file_name": f"{n}.png"} for n in range(40)]
    images.append({"id": 999, "file_name": "0.png"})
    source, folder = part_of(tmp_path, images), str(tmp_path / "split")
    train, val = split_part(source, folder=folder, val_fraction=0.25, seed=1)
    assert (len(names(val)), len(names(train))) in [(10, 31), (11, 30)]
    ids = [{image["id"] for image in part.content["images"]} for part in (train, val)]
    assert ids[0] | ids[1] == {image["id"] for image in images}
    assert not ids[0] & ids[1]
    assert ({0, 999} <= ids[0]) or ({0, 999} <= ids[1]), "one file on both sides"
    for part, own in zip((train, val), ids, strict=True):
        assert {entry["image_id"] for entry in part.content["annotations"]} == own
        assert part.content["categories"] == CATEGORIES
        assert (part.images, part.source) == (source.images, source.source)
    assert train.notes == ("split: 10 of 40 images are for validation; 40 photos, none of them twice",)
    paths = [tmp_path / "split" / f"coco_{side}.json" for side in ("train", "val")]
    written = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    assert split_part(source, folder=folder, val_fraction=0.25, seed=1) == (train, val)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == written
    assert sorted((tmp_path / "split").iterdir()) == paths
    for changed in ({"seed": 2}, {"val_fraction": 0.5}, {"near_copies": 0}):
        with pytest.raises(ValueError, match=r"coco_train\.json: holds a different split"):
            split_part(source, folder=folder, **{"val_fraction": 0.25, "seed": 1, **changed})
    source.content["annotations"][0]["bbox"] = [1, 1, 6, 6]
    with pytest.raises(ValueError, match=r"coco_(train|val)\.json: holds a different split"):
        split_part(source, folder=folder, val_fraction=0.25, seed=1)
    another = split_part(source, folder=str(tmp_path / "other"), val_fraction=0.25, seed=2)
    assert set(names(another[1])) != set(names(val))


def test_split_leaves_no_side_empty(tmp_path):
    source = part_of(tmp_path, [{"id": n, "file_name": f"{n}.png"} for n in range(3)])
    for fraction in (0.01, 0.99):
        parts = split_part(source, folder=str(tmp_path / str(fraction)), val_fraction=fraction)
        assert all(part.content["images"] for part in parts)
    with pytest.raises(ValueError, match=r"^val_fraction: expected a number in \(0, 1\), got 1$"):
        split_part(source, folder=str(tmp_path), val_fraction=1)
    one = part_of(tmp_path, [{"id": n, "file_name": f"a.rf.00000000aaaa{n}.png"} for n in range(3)])
    with pytest.raises(
        ValueError, match=r"coco\.json: expected images of at least 2 photos to split, got 3 images of 1"
    ):
        split_part(one, folder=str(tmp_path / "one"), val_fraction=0.5)


def test_a_split_that_is_there_stays(tmp_path):
    """As versions wrote it that knew of no copies: the images of a photo may lie on both sides, and go on doing so."""
    images = [{"id": n, "file_name": f"{n // 2}.rf.00000000aaaa{n}.png"} for n in range(8)]
    source = part_of(tmp_path, images)
    for side, rows in (("train", images[1:]), ("val", images[:1])):
        ids = {image["id"] for image in rows}
        annotations = [row for row in source.content["annotations"] if row["image_id"] in ids]
        origin = {"file": "coco.json", "part": side, "val_fraction": 0.125, "seed": 0}
        content = {**source.content, "images": rows, "annotations": annotations, "split": origin}
        (tmp_path / f"coco_{side}.json").write_text(json.dumps(content))
    train, val = split_part(source, folder=str(tmp_path), val_fraction=0.125)
    assert (train.content["images"], val.content["images"]) == (images[1:], images[:1])
    (tmp_path / "coco_val.json").unlink()
    train, val = split_part(source, folder=str(tmp_path), val_fraction=0.125)
    assert len({photo_name(name) for name in names(train)} & {photo_name(name) for name in names(val)}) == 0


def test_ids_as_text_and_numbers_are_the_same(tmp_path):
    source = part_of(tmp_path, [{"id": n, "file_name": f"{n}.png"} for n in range(6)])
    for row, form in zip(source.content["annotations"], (str, float, int, lambda n: f"{n}.0", int, str), strict=True):
        row["image_id"] = form(row["image_id"])
    parts = split_part(source, folder=str(tmp_path), val_fraction=0.5)
    assert [len(part.content["annotations"]) for part in parts] == [3, 3]


def test_copies_stay_on_one_side_wherever_the_folder_lies(tmp_path):
    rng = np.random.default_rng(0)
    files = {}
    for n in range(12):
        pixels = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((120, 90))
        for name in (f"{n}.png", f"again_{n}.jpg", f"{n}_jpg.rf.0123456789.jpg", f"{n}_jpg.rf.abcdef0123.jpg"):
            files[name] = pixels if "abcdef" not in name else pixels.transpose(Image.Transpose.ROTATE_180)
    chosen = []
    for folder in (tmp_path / "here", tmp_path / "there" / "below"):
        folder.mkdir(parents=True)
        for name, pixels in files.items():
            pixels.save(folder / name)
        source = part_of(folder, [{"id": n, "file_name": name} for n, name in enumerate(files)])
        train, val = split_part(source, folder=str(folder / "run"), val_fraction=0.3)
        chosen.append(names(val))
        assert len(chosen[-1]) in (12, 16)
        paths = {side: [str(folder / name) for name in names(part)] for side, part in (("train", train), ("val", val))}
        assert find_leaks(paths) == []
        assert (
            "48 images of 12 photos (copies: 12 by name, 12 by bytes, 12 by looks), up to 4 of one: 0.png … "
            in train.notes[0]
        )
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(("name", "folder"), [("egg", "train"), ("mushroom", "train"), ("ships", "train/images")])
def test_no_copies_across_the_split_of_public_sets(test_data, tmp_path, name, folder):
    """Cut by file name, 95 to 100 % of the validation images of these were copies of images to train on."""
    files = sorted(file.name for file in (test_data / name / folder).glob("*.jpg"))
    content = {"images": [{"id": n, "file_name": file} for n, file in enumerate(files)], "annotations": []}
    source = AnnotatedPart({**content, "categories": CATEGORIES}, str(test_data / name / folder), f"{name}.json")
    train, val = split_part(source, folder=str(tmp_path), val_fraction=0.2)
    assert len(names(val)) == pytest.approx(0.2 * len(files), abs=1)
    paths = {side: [f"{part.images}/{file}" for file in names(part)] for side, part in (("train", train), ("val", val))}
    assert not {photo_name(file) for file in names(train)} & {photo_name(file) for file in names(val)}
    assert find_leaks(paths, near_copies=None) == find_leaks(paths) == []
