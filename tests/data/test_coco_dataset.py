import copy
import json
import math

import numpy as np
import pytest
from PIL import Image

from visionlab.data.coco import CocoDataset
from visionlab.data.images import ImageError
from visionlab.data.problems import KINDS

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "traffic light"}]


def annotation(number, bbox, image_id=1, category_id=3, **extra):
    area = bbox[2] * bbox[3] if isinstance(bbox, list) and len(bbox) == 4 and None not in bbox else 1
    row = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox, "area": area, "iscrowd": 0}
    return {**row, **extra}


@pytest.fixture
def write(tmp_path):
    """Write images of 100 x 80 and a json about them; return a function that opens it."""
    for number in range(1, 4):
        Image.new("RGB", (100, 80), (number, 0, 0)).save(tmp_path / f"{number}.png")

    def write(annotations, images=None, categories=CATEGORIES):
        images = images or [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 80} for n in range(1, 4)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "coco.json").write_text(json.dumps(content))
        return lambda **settings: CocoDataset(annotations=str(tmp_path / "coco.json"), images=str(tmp_path), **settings)

    return write


def kinds(dataset):
    return [(problem.kind, problem.annotation_id) for problem in dataset.problems]


# ---- what every fault comes to

GOOD = annotation(1, [10, 10, 20, 20])
# fault, its kind, the box left under repair (None: left out), whether evaluation counts the annotation
FAULTS = {
    "zero height": (annotation(2, [96.65, 38.33, 1.03, 0.0]), "zero-box", None, True),
    "zero": (annotation(2, [20, 30, 0.0, 0.0]), "zero-box", None, True),
    "negative width": (annotation(2, [50, 30, -20, 10], area=200), "negative-box", [30, 30, 50, 40], True),
    "nan": (annotation(2, [math.nan, 1, 2, 3], area=6), "invalid-box", None, False),
    "infinite": (annotation(2, [1, 1, math.inf, 3], area=6), "invalid-box", None, False),
    "beyond all numbers": (annotation(2, [1, 1, 10**400, 3], area=6), "invalid-box", None, False),
    "null": (annotation(2, [1, None, 2, 3]), "invalid-box", None, False),
    "three numbers": (annotation(2, [1, 2, 3]), "invalid-box", None, False),
    "no box": (annotation(2, None), "invalid-box", None, False),
    "minus one": (annotation(2, [-1, -1, 11, 11]), "outside-box", [0, 0, 10, 10], True),
    "too far": (annotation(2, [90, 70, 30, 30]), "outside-box", [90, 70, 100, 80], True),
    "elsewhere": (annotation(2, [64041, 10, 20, 20]), "outside-box", None, True),
    "no such image": (annotation(2, [1, 2, 3, 4], image_id=99), "unknown-image", None, False),
    "no image": (annotation(2, [1, 2, 3, 4], image_id=None), "unknown-image", None, False),
    "no such category": (annotation(2, [1, 2, 3, 4], category_id=1), "unknown-category", None, False),
    "id taken": (annotation(1, [1, 2, 3, 4]), "duplicate-annotation-id", [1, 2, 4, 6], True),
    "no id": (annotation(None, [1, 2, 3, 4]), "duplicate-annotation-id", [1, 2, 4, 6], True),
    "area 0": (annotation(2, [1, 2, 3, 4], area=0), "zero-area", [1, 2, 4, 6], True),
    "area nan": (annotation(2, [1, 2, 3, 4], area=math.nan), "zero-area", [1, 2, 4, 6], True),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named_and_handled_by_policy(write, name):
    faulty, kind, repaired, counts = FAULTS[name]
    open_dataset = write([GOOD, faulty])
    sound = [10, 10, 30, 30]

    dataset = open_dataset(policy="repair")
    assert kinds(dataset) == [(kind, faulty["id"])]
    assert kind in KINDS
    assert dataset.records[0].boxes.tolist() == [sound] + ([repaired] if repaired else [])
    truth = dataset.ground_truth["annotations"]
    assert len(truth) == 1 + counts
    assert all(math.isfinite(value) for entry in truth for value in [*entry["bbox"], entry["area"]])

    dataset = open_dataset(policy="skip")
    assert kinds(dataset) == [(kind, faulty["id"])]
    assert dataset.problems[0].action == "left out"
    assert dataset.records[0].boxes.tolist() == [sound]
    assert dataset.ground_truth["annotations"] == truth

    with pytest.raises(ValueError, match=rf"coco\.json: 1 problems \(1 {kind}\): .*: {kind}: ") as caught:
        open_dataset(policy="fail")
    assert "\n" not in str(caught.value)
    assert faulty["id"] is None or f", annotation {faulty['id']}: {kind}" in str(caught.value)


def test_fail_names_twenty_and_counts_all(write):
    open_dataset = write([annotation(n, [1, 1, 0, 0]) for n in range(1, 31)])
    with pytest.raises(ValueError, match="30 problems") as caught:
        open_dataset(policy="fail")
    message = str(caught.value)
    assert message.count("annotation ") == 20
    assert message.endswith("and 10 more")


def test_rounding_of_official_boxes_is_no_fault(write):
    dataset = write([annotation(1, [-0.01, 0, 100.02, 80.5])])(policy="fail")
    assert dataset.records[0].boxes.tolist() == [[0, 0, 100, 80]]
    assert dataset.ground_truth["annotations"][0]["bbox"] == [-0.01, 0, 100.02, 80.5]


def test_boxes_written_as_corners_stop_every_policy(write):
    rows = [annotation(n, [40 + n, 30 + n, 80 + n, 60 + n]) for n in range(12)]
    for policy in ("repair", "skip", "fail"):
        with pytest.raises(ValueError, match="corner-boxes: boxes fit their images as x1, y1, x2, y2"):
            write(rows)(policy=policy)
    rows[0] = annotation(0, [50, 50, 10, 10])
    assert {kind for kind, _ in kinds(write(rows)())} == {"outside-box"}


# ---- what is missing but no fault


def test_fields_that_are_missing_are_filled(write):
    rows = [{"image_id": 1, "id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]}]
    dataset = write(rows, [{"id": 1, "file_name": "1.png"}])(policy="fail", check_files=False)
    assert (dataset.records[0].height, dataset.records[0].width) == (80, 100)
    assert dataset.ground_truth["annotations"] == [{**rows[0], "area": 12, "iscrowd": 0}]
    assert dataset.ground_truth["images"] == [{"id": 1, "file_name": "1.png", "height": 80, "width": 100}]


@pytest.mark.parametrize(
    "segmentation", [[], None, {"size": [80, 100], "counts": [0, 8000]}, [[1, 1, 5, 1, 5, 5]], "[]"]
)
def test_segmentation_of_any_kind_is_no_fault(write, segmentation):
    crowd = annotation(2, [0, 0, 100, 80], iscrowd=1, segmentation={"size": [80, 100], "counts": [0, 8000]})
    dataset = write([annotation(1, [1, 1, 4, 4], segmentation=segmentation), crowd])(policy="fail")
    assert dataset.records[0].crowd.tolist() == [False, True]
    assert dataset.ground_truth["annotations"][1]["segmentation"] == crowd["segmentation"]


@pytest.mark.parametrize("ids", [[0, 1], [0, 0], [5, 5]])
def test_ground_truth_ids_are_what_pycocotools_can_match(write, ids):
    """pycocotools takes annotation id 0 for 'unmatched': a perfect result would not reach AP 1."""
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    dataset = write([annotation(ids[0], [10, 10, 30, 30]), annotation(ids[1], [50, 40, 20, 20])])()
    truth = coco.COCO()
    truth.dataset = copy.deepcopy(dataset.ground_truth)
    truth.createIndex()
    results = [
        {"image_id": 1, "category_id": 3, "bbox": entry["bbox"], "score": 0.9}
        for entry in dataset.ground_truth["annotations"]
    ]
    evaluation = cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


# ---- images


def test_images_without_boxes_are_kept_unless_told(write):
    open_dataset = write([GOOD])
    assert len(open_dataset()) == 3
    assert open_dataset().records[1].boxes.shape == (0, 4)
    kept = open_dataset(keep_empty=False)
    assert [record.image_id for record in kept.records] == [1]
    assert [image["id"] for image in kept.ground_truth["images"]] == [1]


def test_missing_and_unreadable_files_are_named_and_left_out(write, tmp_path):
    (tmp_path / "2.png").unlink()
    (tmp_path / "3.png").write_bytes(b"")
    open_dataset = write([GOOD, annotation(2, [1, 1, 5, 5], image_id=2)])
    for policy in ("repair", "skip"):
        dataset = open_dataset(policy=policy)
        assert [(p.kind, p.image_id) for p in dataset.problems] == [("missing-file", 2), ("unreadable-file", 3)]
        assert [record.image_id for record in dataset.records] == [1]
        assert [entry["id"] for entry in dataset.ground_truth["annotations"]] == [1]
    with pytest.raises(ValueError, match=r"2 problems .*2\.png: missing-file.*3\.png: unreadable-file"):
        open_dataset(policy="fail")
    with pytest.raises(ImageError, match=r"2\.png: no such file"):
        open_dataset(check_files=False).load(1)


def test_wrong_image_folder_is_one_clear_error(write, tmp_path):
    write([GOOD])
    with pytest.raises(ValueError, match="none of 3 images remains: 3 missing-file"):
        CocoDataset(annotations=str(tmp_path / "coco.json"), images=str(tmp_path / "nowhere"))


def test_size_that_is_not_the_file_s(write):
    images = [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 80} for n in range(1, 4)]
    images[1].update(width=640, height=480)
    open_dataset = write([GOOD, annotation(2, [1, 1, 5, 5], image_id=2)], images)
    dataset = open_dataset()
    assert [(p.kind, p.image_id, p.action) for p in dataset.problems] == [("image-size", 2, "left out")]
    assert "the json says 640 x 480, the file has 100 x 80" in str(dataset.problems[0])
    assert [record.image_id for record in dataset.records] == [1, 3]
    with pytest.raises(ImageError, match=r"2\.png: expected 640 x 480 pixels"):
        open_dataset(check_files=False).load(1)


@pytest.mark.parametrize(("bbox", "remains"), [([10, 60, 30, 35], True), ([60, 10, 35, 30], False)])
def test_size_swapped_by_exif_is_the_upright_one_if_the_boxes_fit(write, tmp_path, bbox, remains):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 80), "red").save(tmp_path / "1.png", exif=exif)
    open_dataset = write([annotation(1, bbox), annotation(2, [10, 10, 20, 20], image_id=2)])
    dataset = open_dataset(policy="repair")
    assert {p.kind for p in dataset.problems} == {"image-size"}
    assert [record.image_id for record in dataset.records] == ([1, 2, 3] if remains else [2, 3])
    if remains:
        pixels, record = dataset.load(0)
        assert pixels.shape == (record.height, record.width, 3) == (100, 80, 3)
        assert dataset.ground_truth["images"][0]["height"] == 100
    assert [record.image_id for record in open_dataset(policy="skip").records] == [2, 3]


def test_images_listed_twice(write):
    def entry(number, name):
        return {"id": number, "file_name": name, "width": 100, "height": 80}

    rows = [annotation(n, [n, 1, 5, 5], image_id=n) for n in (1, 2, 4)]
    same = write(rows[:2], [entry(1, "1.png"), entry(1, "1.png"), entry(2, "2.png")])()
    assert [(p.kind, p.image_id) for p in same.problems] == [("duplicate-image-id", 1)]
    assert [len(record.boxes) for record in same.records] == [1, 1]

    two = write(rows[:2], [entry(1, "1.png"), entry(1, "3.png"), entry(2, "2.png")])()
    assert [(p.kind, p.image_id) for p in two.problems] == [("duplicate-image-id", 1)]
    assert [record.image_id for record in two.records] == [2]

    open_dataset = write(rows, [entry(1, "1.png"), entry(2, "2.png"), entry(4, "1.png")])
    joined = open_dataset()
    assert [(p.kind, p.image_id, p.action) for p in joined.problems] == [("duplicate-image", 4, "joined with 1")]
    assert joined.records[0].boxes.tolist() == [[1, 1, 6, 6], [4, 1, 9, 6]]
    assert {entry["image_id"] for entry in joined.ground_truth["annotations"]} == {1, 2}
    skipped = open_dataset(policy="skip")
    assert [len(record.boxes) for record in skipped.records] == [1, 1]
    assert len(skipped.problems) == 1


def test_entries_that_are_no_images(write):
    dataset = write([GOOD], [{"id": 1, "file_name": "1.png"}, {"id": "b", "file_name": "2.png"}, {"id": 3}])()
    assert [p.kind for p in dataset.problems] == ["bad-image-entry", "bad-image-entry"]
    assert "images[2] has id 3 and file_name None" in str(dataset.problems[1])
    assert len(dataset) == 1


def test_limit_is_a_fixed_choice_that_grows(write):
    open_dataset = write([GOOD])
    chosen = [{record.image_id for record in open_dataset(limit=limit).records} for limit in (1, 2, 3, 9)]
    assert [len(ids) for ids in chosen] == [1, 2, 3, 3]
    assert chosen[0] < chosen[1] < chosen[2]
    with pytest.raises(ValueError, match="limit: expected at least 1, got 0"):
        open_dataset(limit=0)


# ---- classes


def test_classes_are_mapped_by_name(write):
    rows = [annotation(n, [1, 1, 5, 5], category_id=number) for n, number in enumerate((7, 3, 90), start=1)]
    open_dataset = write(rows)
    dataset = open_dataset()
    assert (dataset.classes, dataset.category_ids) == (["cat", "dog", "traffic light"], [3, 7, 90])
    assert dataset.records[0].labels.tolist() == [1, 0, 2]
    dataset = open_dataset(classes=["traffic light", "cat"])
    assert (dataset.classes, dataset.category_ids) == (["traffic light", "cat"], [90, 3])
    assert dataset.records[0].labels.tolist() == [1, 0]
    assert dataset.problems == []
    assert [category["id"] for category in dataset.ground_truth["categories"]] == [3, 90]
    assert [entry["category_id"] for entry in dataset.ground_truth["annotations"]] == [3, 90]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["Traffic Light"], "no category is named 'Traffic Light'. Did you mean 'traffic light'"),
        (["dgo"], "Did you mean 'dog'"),
        (["xylophone"], "is named 'xylophone'. It has: dog, cat, traffic light; `classes` names those to use"),
        (["dog", "dog"], "expected different names, got dog twice"),
        ([], "expected different names, got none"),
    ],
)
def test_faulty_classes_are_named(write, classes, message):
    with pytest.raises(ValueError, match=message):
        write([GOOD])(classes=classes)


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "category 'b' with id 1: the name or the id is taken"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "category 'a' with id 2: the name or the id is taken"),
        ([{"id": "one", "name": "a"}], "expected a whole number as id"),
        ([{"id": 1}], "a text as name"),
        ([], "names no categories"),
    ],
)
def test_faulty_categories_are_named(write, categories, message):
    with pytest.raises(ValueError, match=message):
        write([GOOD], categories=categories)()


# ---- files that are no COCO json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a json file"),
        ("", "not a json file"),
        ("\x00\xff", "not a json file"),
        ("[1]", "expected an object, got list"),
        ('{"images": [], "labels": []}', "expected a list 'annotations', got an object of images, labels"),
        ('{"images": [3], "annotations": [], "categories": []}', r"images\[0\]: expected an object, got int"),
    ],
)
def test_no_coco_json_is_one_clear_error(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        CocoDataset(annotations=str(path), images=str(tmp_path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_json_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.json: cannot be read: No such file"):
        CocoDataset(annotations=str(tmp_path / "nowhere.json"), images=str(tmp_path))


# ---- real files


@pytest.mark.parametrize(
    ("name", "images", "boxes", "zero"), [("train", 205, 2805, 2288), ("val", 87, 1138, 887), ("test", 72, 945, None)]
)
def test_bccd_and_its_two_boxes_without_size(test_data, name, images, boxes, zero):
    folder = test_data / "bccd"
    json_file = folder / "annotations" / f"{name}.json"
    dataset = CocoDataset(annotations=str(json_file), images=str(folder / "images"))
    assert kinds(dataset) == ([("zero-box", zero)] if zero else [])
    assert len(dataset) == images
    assert sum(len(record.boxes) for record in dataset.records) == boxes - bool(zero)
    assert dataset.ground_truth["annotations"] == [
        {key: value for key, value in entry.items() if key != "segmentation"}
        for entry in sorted(json.loads(json_file.read_text())["annotations"], key=lambda entry: entry["image_id"])
    ]


@pytest.mark.parametrize("name", ["coco_mini", "coco_tiny16"])
@pytest.mark.parametrize("part", ["train2017", "val2017"])
def test_official_json_is_read_unchanged(test_data, name, part):
    folder = test_data / name
    json_file = folder / "annotations" / f"instances_{part}.json"
    content = json.loads(json_file.read_text())
    dataset = CocoDataset(annotations=str(json_file), images=str(folder / part), policy="fail")
    assert len(dataset.classes) == 80
    assert dataset.category_ids == [category["id"] for category in content["categories"]]
    assert [record.image_id for record in dataset.records] == [image["id"] for image in content["images"]]
    entries = {entry["id"]: entry for entry in content["annotations"]}
    assert len(dataset.ground_truth["annotations"]) == len(entries)
    for entry in dataset.ground_truth["annotations"]:
        original = entries[entry["id"]]
        assert entry == {key: original[key] for key in original if key != "segmentation" or original["iscrowd"]}
    for record in dataset.records:
        own = [entry for entry in content["annotations"] if entry["image_id"] == record.image_id]
        x, y, width, height = np.array([entry["bbox"] for entry in own]).reshape(-1, 4).T
        np.testing.assert_allclose(record.boxes, np.stack([x, y, x + width, y + height], 1), atol=0.011)
        assert [dataset.category_ids[label] for label in record.labels] == [entry["category_id"] for entry in own]
        assert record.crowd.tolist() == [bool(entry["iscrowd"]) for entry in own]
    pixels, record = dataset.load(0)
    assert pixels.shape == (record.height, record.width, 3)
