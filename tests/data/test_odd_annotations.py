"""Annotations that are written oddly: read and told in one line where one reading is possible, else left out."""

import copy
import json
import math
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from visionlab.data.check import check_dataset
from visionlab.data.coco import CocoDataset
from visionlab.data.problems import KINDS, digest

WIDTH, HEIGHT = 120, 90
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]


def sound(images=6):
    """Return content with two boxes an image, one of which no other form than COCO's explains."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(2 * images):
        w, h = rng.integers(20, 40, 2).tolist()
        x, y = [(2, 1), (WIDTH - w - 1, HEIGHT - h - 1)][n % 2]
        box = [x + n % 3, y, w, h] if n % 2 == 0 else [x - n % 3, y, w, h]
        rows.append({"id": n + 1, "image_id": n // 2 + 1, "category_id": 3 + 5 * (n % 3 == 0), "bbox": box})
        rows[-1] |= {"area": w * h, "iscrowd": 0}
    entries = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(1, images + 1)]
    return {"images": entries, "annotations": rows, "categories": copy.deepcopy(CATEGORIES)}


@pytest.fixture
def opened(tmp_path):
    for n in range(1, 7):
        Image.new("RGB", (WIDTH, HEIGHT), (n, 0, 0)).save(tmp_path / f"{n}.png")

    def opened(content, **settings):
        (tmp_path / "a.json").write_text(json.dumps(content))
        return CocoDataset(annotations=str(tmp_path / "a.json"), images=str(tmp_path), **settings)

    return opened


def boxes_of(dataset):
    return [
        (box, dataset.classes[k]) for r in dataset.records for box, k in zip(r.boxes.tolist(), r.labels, strict=True)
    ]


def polygon(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def run_length(box):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
    return mask


def as_counts(box):
    flat = run_length(box).T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    runs = np.diff(np.concatenate([[0], edges, [flat.size]]))
    return {"size": [HEIGHT, WIDTH], "counts": [int(run) for run in runs]}


def as_string(box):
    coded = rle.encode(np.asfortranarray(run_length(box)))
    return {"size": coded["size"], "counts": coded["counts"].decode()}


def edit(field, change):
    def apply(row):
        row[field] = change(row[field])

    return apply


def outline(form):
    def apply(row):
        row["segmentation"] = form(row.pop("bbox"))

    return apply


# name: what is done to an annotation, the kind of the one problem, how its line counts and gives the example
ODD = {
    "category text": (
        edit("category_id", str),
        "odd-value",
        'category_id: expected a whole number, got "8" (read as 8)',
    ),
    "category float": (edit("category_id", float), "odd-value", "category_id: expected a whole number, got 8.0"),
    "category name": (
        edit("category_id", {3: "cat", 8: "dog"}.get),
        "odd-value",
        'category_id: expected a whole number, got "dog" (read as 8)',
    ),
    "image text": (edit("image_id", lambda n: f"{n}.0"), "odd-value", 'image_id: expected a whole number, got "1.0"'),
    "image float": (edit("image_id", float), "odd-value", "image_id: expected a whole number, got 1.0 (read as 1)"),
    "id text": (edit("id", str), "odd-value", 'id: expected a whole number, got "1" (read as 1)'),
    "area text": (edit("area", str), "odd-value", "area: expected a number, got "),
    "crowd text": (edit("iscrowd", str), "odd-value", 'iscrowd: expected 0 or 1, got "0" (read as 0)'),
    "crowd bool": (edit("iscrowd", bool), "odd-value", "iscrowd: expected 0 or 1, got false (read as 0)"),
    "box of text": (edit("bbox", lambda b: [f" {v}" for v in b]), "odd-box", "bbox: expected a list of four numbers"),
    "box text": (edit("bbox", str), "odd-box", "bbox: expected a list of four numbers, got "),
    "box spaced": (edit("bbox", lambda b: " ".join(map(str, b))), "odd-box", "bbox: expected a list of four numbers"),
    "box nested": (edit("bbox", lambda b: [b]), "odd-box", "bbox: expected a list of four numbers, got [["),
    "box named": (
        edit("bbox", lambda b: dict(zip(("x", "y", "width", "height"), b, strict=True))),
        "odd-box",
        'got {"x": 2',
    ),
    "box corners": (
        edit("bbox", lambda b: {"xmin": b[0], "ymin": b[1], "xmax": b[0] + b[2], "ymax": str(b[1] + b[3])}),
        "odd-box",
        'got {"xmin": 2',
    ),
    "polygon": (outline(polygon), "odd-box", "got none (taken from the outline in segmentation)"),
    "counts": (outline(as_counts), "odd-box", "got none (taken from the outline in segmentation)"),
    "run lengths": (outline(as_string), "odd-box", "got none (taken from the outline in segmentation)"),
    "relative": (
        edit("bbox", lambda b: [b[0] / WIDTH, b[1] / HEIGHT, b[2] / WIDTH, b[3] / HEIGHT]),
        "relative-box",
        "bbox: expected pixels, not x, y, width, height in 0..1",
    ),
    "area x 100": (edit("area", lambda a: 100 * a), "odd-area", "width x height of the box, or less, got "),
}


@pytest.mark.parametrize("share", ["all", "half"])
@pytest.mark.parametrize("name", ODD)
def test_one_reading_is_taken_and_told(opened, name, share):
    change, kind, line = ODD[name]
    right = opened(sound(), policy="fail")
    content = sound()
    changed = [row for row in content["annotations"] if share == "all" or row["image_id"] % 2]
    for row in changed:
        change(row)
    dataset = opened(content)
    assert boxes_of(dataset) == boxes_of(right)
    for ours, theirs in zip(dataset.ground_truth["annotations"], right.ground_truth["annotations"], strict=True):
        assert {key: ours[key] for key in theirs} == theirs
    assert [problem.kind for problem in dataset.problems] == [kind]
    assert kind in KINDS
    text = str(dataset.problems[0])
    assert line in text
    assert f"a.json: {kind}: {len(changed)} " in text
    assert dataset.problems[0].count == len(changed)
    with pytest.raises(ValueError, match=f"{len(changed)} problems .*{kind}"):
        opened(content, policy="fail")
    if share == "all":
        with pytest.raises(ValueError, match=r"none of 6 images|12 of 12 annotations would be lost: 12 odd-value"):
            opened(content, policy="skip")
    else:
        assert len(boxes_of(opened(content, policy="skip"))) == 6


def test_constant_and_relative_areas_are_replaced(opened):
    right = opened(sound()).ground_truth
    for area in (lambda row: 1000, lambda row: row["area"] / WIDTH / HEIGHT):
        content = sound()
        for row in content["annotations"]:
            row["area"] = area(row)
        dataset = opened(content)
        assert dataset.ground_truth == right
        assert [problem.kind for problem in dataset.problems] == ["odd-area"]
        assert "12 of 12 annotations" in str(dataset.problems[0])


def test_areas_of_outlines_are_no_fault(opened):
    content = sound()
    for n, row in enumerate(content["annotations"]):
        row["area"] = row["area"] * (0.02 + 0.05 * n)
    assert opened(content, policy="fail").problems == []


@pytest.mark.parametrize("relative", [False, True])
def test_boxes_by_their_center(opened, relative):
    right = sound()
    content = copy.deepcopy(right)
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        box = [x + w / 2, y + h / 2, w, h]
        row["bbox"] = [v / s for v, s in zip(box, (WIDTH, HEIGHT) * 2, strict=True)] if relative else box
    dataset = opened(content)
    np.testing.assert_allclose(np.array([b for b, _ in boxes_of(dataset)]), [b for b, _ in boxes_of(opened(right))])
    assert len(dataset.problems) == 1
    assert "12 annotations: bbox: expected " in str(dataset.problems[0])
    assert "center x, center y, width, height" in str(dataset.problems[0])


def test_relative_boxes_that_fit_in_two_forms_are_refused_with_the_part(opened):
    content = sound(2)
    for row in content["annotations"]:
        row["bbox"] = [0.4, 0.4, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"4 of 4 validation annotations would be lost: 4 relative-box; the first: "):
        opened(content, role="validation")


def test_words_as_image_ids_are_numbered(opened):
    right, content = boxes_of(opened(sound())), sound()
    for entry in content["images"]:
        entry["id"] = f"img-{entry['id']}"
    for row in content["annotations"]:
        row["image_id"] = f"img-{row['image_id']}"
    dataset = opened(content)
    assert boxes_of(dataset) == right
    assert sorted(problem.count for problem in dataset.problems) == [6, 12]
    assert all(isinstance(entry["id"], int) for entry in dataset.ground_truth["images"])


def test_ids_and_sizes_of_images_and_categories_as_text(opened):
    right, content = boxes_of(opened(sound())), sound()
    for entry in content["images"]:
        entry |= {key: str(entry[key]) for key in ("id", "width", "height")}
    for entry in content["categories"]:
        entry["id"] = str(entry["id"])
    content["categories"].append(dict(content["categories"][0]))
    dataset = opened(content)
    assert boxes_of(dataset) == right
    assert {problem.count for problem in dataset.problems} == {6, 3, 1}
    assert {problem.kind for problem in dataset.problems} == {"odd-value", "duplicate-category"}


def test_number_that_is_the_id_of_one_class_and_the_name_of_another_is_not_guessed(opened):
    content = sound()
    content["categories"] = [{"id": 3, "name": "8"}, {"id": 8, "name": "3"}]
    for row in content["annotations"]:
        row["category_id"] = str(row["category_id"])
    with pytest.raises(ValueError, match=r'12 of 12 annotations would be lost: 12 unknown-category.*got "8"'):
        opened(content)


@pytest.mark.parametrize("value", ["one", [1], {"a": 1}, 1.5, True, math.nan, "1e999", "\ud800"])
@pytest.mark.parametrize("field", ["category_id", "image_id"])
def test_what_is_no_id_is_left_out_and_most_of_it_stops(opened, field, value):
    content = sound()
    for row in content["annotations"][:6]:
        row[field] = value
    dataset = opened(content)
    assert len(boxes_of(dataset)) == 6
    kind = "unknown-category" if field == "category_id" else "unknown-image"
    assert digest(dataset.problems)[0].startswith(f"6 x {kind}, the first: ")
    content["annotations"][6][field] = value
    for policy in ("repair", "skip"):
        with pytest.raises(ValueError, match=rf"a\.json: annotations-lost: 7 of 12 training .* 7 {kind}") as caught:
            opened(content, policy=policy, role="training")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["x", 2, -1, [0]])
def test_crowd_that_is_neither_is_left_out(opened, value):
    content = sound()
    content["annotations"][0]["iscrowd"] = value
    dataset = opened(content)
    assert [problem.kind for problem in dataset.problems] == ["invalid-crowd"]
    assert len(boxes_of(dataset)) == 11


def test_missing_crowd_and_area_are_no_fault(opened):
    content = sound()
    for row in content["annotations"]:
        row |= {"iscrowd": None, "area": None}
    assert opened(content, policy="fail").ground_truth == opened(sound()).ground_truth


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "expected text, got"),
        (" \t", "expected text, got"),
        ("a\x1b[2J", r'without control characters, got "a\\u001b\[2J"'),
        ("a\nb", r"without control characters"),
        ("\ud800", r"without control characters"),
        ("y" * 257, "at most 256 characters, got 257"),
    ],
)
def test_class_names_that_cannot_be_shown(opened, name, message):
    content = sound()
    content["categories"][1]["name"] = name
    with pytest.raises(ValueError, match=f"category 8: name: .*{message}") as caught:
        opened(content)
    assert str(caught.value).isprintable()
    assert len(boxes_of(opened(content, classes=["cat"]))) == 8


def test_class_names_alike(opened):
    content = sound()
    content["categories"][1]["name"] = " CAT"
    dataset = opened(content)
    assert dataset.classes == ["cat", " CAT"]
    assert [problem.kind for problem in dataset.problems] == ["similar-classes"]


def test_key_that_stands_twice(opened, tmp_path):
    text = json.dumps(sound())
    path = tmp_path / "a.json"
    for old, new in (('"id": 1,', '"id": 1, "id": 2,'), ('{"images":', '{"images": [], "images":')):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=r"a\.json: .*stands twice in one object: expected one value, got "):
            CocoDataset(annotations=str(path), images=str(tmp_path))
    path.write_text(text.replace('"id": 1,', '"id": 1, "id": 1,', 1))
    assert not CocoDataset(annotations=str(path), images=str(tmp_path)).problems


# ---- one file, two entries


@pytest.mark.parametrize("first", [True, False])
def test_size_of_each_entry_is_checked_before_they_are_joined(opened, first):
    right, content = boxes_of(opened(sound())), sound()
    other = {"id": 100, "file_name": "1.png", "width": WIDTH // 2, "height": HEIGHT // 2}
    content["images"].insert(0 if first else 6, other)
    content["annotations"].append({"id": 50, "image_id": 100, "category_id": 3, "bbox": [1, 1, 9, 9], "area": 81})
    for check_files in (True, False):
        dataset = opened(content, check_files=check_files)
        assert sorted(boxes_of(dataset)) == sorted(right)
        assert [(problem.kind, problem.image_id) for problem in dataset.problems] == [("image-size", 100)]


# ---- file names

UMLAUT = "Bär.png"
NAMES = {
    "set\\1.png": "backslashes read as /; folders left off",
    "C:\\Users\\me\\1.png": "backslashes read as /; folders left off",
    "..\\elsewhere\\1.png": "backslashes read as /",
    "/home/me/data/1.png": "folders left off",
    "%31.png": "percent signs decoded",
    "http://host:8080/data/local-files/?d=my%20set/1.png": "the path in an address",
    "/data/local-files/?d=set/1.png": "the path in an address",
    "s3://bucket/set/1.png": "the path in an address",
    "https://host/set/1.png?X-Amz-Signature=ab#c": "the path in an address",
    "/data/upload/3/0a1b2c3d-1.png": "the prefix of a label tool left off",
    "1": "suffix added",
    "1.PNG": "letters in another case",
    "sub/deep.png": "folder added",
    "deep.png": "folder added",
    " 1.png ": "spaces around it left off",
    unicodedata.normalize("NFD", UMLAUT): "accents composed otherwise",
    "DEEP": "suffix added; letters in another case; folder added",
}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "in" / "sub").mkdir(parents=True)
    for name in ("1.png", UMLAUT, "in/sub/deep.png", "in/a.png", "in/sub/a.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / name)
    (root / "1.txt").write_text("0 0.5 0.5 1 1")
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "outside.png")
    return root


def open_names(root, *names, **settings):
    content = sound(1)
    content["images"] = [{"id": n, "file_name": name} for n, name in enumerate(names, start=1)]
    (root.parent / "b.json").write_text(json.dumps(content))
    return CocoDataset(annotations=str(root.parent / "b.json"), images=str(root), **settings)


@pytest.mark.parametrize("name", NAMES)
def test_one_file_that_fits_is_used_and_told(folder, name):
    dataset = open_names(folder, name)
    file = {True: "in/sub/deep.png", False: "1.png"}["deep" in name.casefold()] if "B" not in name[:1] else UMLAUT
    assert dataset.records[0].file == str(folder / file)
    assert [problem.kind for problem in dataset.problems] == ["file-name"]
    text = str(dataset.problems[0])
    assert text.isprintable()
    assert NAMES[name] in text
    assert f"({file} used)" in text
    with pytest.raises(ValueError, match="1 file-name"):
        open_names(folder, name, policy="fail")


@pytest.mark.parametrize(
    ("name", "kind", "detail"),
    [
        ("a.png", "ambiguous-file", "2 files fit: "),
        ("A", "ambiguous-file", "2 files fit: "),
        ("other/deep.png", "missing-file", 'the nearest is "in/sub/deep.png"'),
        ("deap.png", "missing-file", 'the nearest is "in/sub/deep.png"'),
        ("../outside.png", "outside-file", "leads out of"),
        ("..\\outside.png", "outside-file", "leads out of"),
        ("in/../../outside.png", "outside-file", "leads out of"),
        ("../nowhere.png", "outside-file", "leads out of"),
        ("self.png", "missing-file", ""),
        ("in", "unreadable-file", "a folder"),
        ("a\0b.png", "missing-file", ""),
        ("\x1b[2J\x07.png", "missing-file", ""),
        ("\udcff\ud800.png", "missing-file", ""),
        ("y" * 5000 + ".png", "missing-file", "characters"),
        ("http://[::1/1.jpg", "missing-file", ""),
    ],
)
def test_file_that_cannot_be_told_is_named_and_left_out(folder, name, kind, detail):
    (folder / "self.png").symlink_to("self.png")
    dataset = open_names(folder, "1.png", name)
    assert [record.image_id for record in dataset.records] == [1]
    assert [(problem.kind, problem.image_id) for problem in dataset.problems] == [(kind, 2)]
    text = str(dataset.problems[0])
    assert detail in text
    assert text.isprintable()
    assert len(text) < 1200
    result = check_dataset(annotations=str(folder.parent / "b.json"), images=str(folder))
    assert kind in result.to_text()


def test_links_in_the_folder_may_point_anywhere(folder):
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    (folder / "linked").symlink_to(folder.parent)
    dataset = open_names(folder, "link.png", "linked/outside.png")
    assert [record.image_id for record in dataset.records] == [1, 2]
    assert not dataset.problems


def test_absolute_path_outside_is_named(folder):
    dataset = open_names(folder, "1.png", str(folder.parent / "outside.png"), str(folder / "in" / "a.png"))
    assert [problem.kind for problem in dataset.problems] == ["outside-file"]
    assert [record.image_id for record in dataset.records] == [1, 3]


def test_two_names_never_mean_one_file(folder):
    dataset = open_names(folder, "1.png", "x/deep.png", "y/deep.png")
    assert [problem.kind for problem in dataset.problems] == ["missing-file", "missing-file"]
    (folder / "deep.png").touch()
    for names in (["x/1.png", "y/1.png"], ["1.png", "x/1.png"]):
        dataset = open_names(folder, UMLAUT, *names)
        assert {problem.kind for problem in dataset.problems} == {"ambiguous-file"}
    dataset = open_names(folder, "1.png", "1.PNG", "1.png")
    assert {problem.kind for problem in dataset.problems} == {"file-name", "duplicate-image"}


def test_many_missing_files_are_one_line(folder):
    names = [f"photo{n}.png" for n in range(205)]
    with pytest.raises(ValueError, match=r"none of 205 images remains: 205 missing-file") as caught:
        open_names(folder, *names)
    assert f"205 of 205 files are missing: is images={folder} the right folder?" in str(caught.value)
    dataset = open_names(folder, "1.png", *names)
    assert len(dataset.problems) == 1
    assert dataset.problems[0].count == 205


def test_names_reach_any_terminal(folder):
    open_names(folder, "1.png", "\ud800\x1b[2J\u00e4.png")
    command = [sys.executable, "-m", "visionlab.cli", "check-data", str(folder.parent / "b.json"), str(folder)]
    for encoding in ("utf-8:strict", "ascii:strict"):
        environment = {"PYTHONIOENCODING": encoding, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 1, done.stderr
        assert b"\x1b" not in done.stdout + done.stderr
        assert rb"\ud800\x1b[2J" in done.stdout
