"""Small odd inputs, one of each kind that people report: every one is read right and told, or refused in one line."""

import json
from pathlib import Path

import pytest
from tiny_runs import DETECT, visionlab, write_config

from visionlab.data.coco import CocoDataset

# case: what one line has to say
TOLD = {
    "area_one": "odd-area: 12 of 12 annotations: area: expected about width x height of the box, or less, got 1.0",
    "backslash": "6 images: file_name: expected a file in",
    "backslash_sub": "(backslashes read as /; folders left off)",
    "bbox_relative": "12 annotations: bbox: expected pixels",
    "bbox_text": "12 annotations: bbox: expected a list of four numbers, got [",
    "case_differs": "(letters in another case)",
    "catid_text": 'odd-value: 12 annotations: category_id: expected a whole number, got "1" (read as 1)',
    "escape_name": r"\x1b[2J\x1b]0;owned\x07x.png: missing-file",
    "flat_names_subfolders": "(folder added)",
    "imageid_text": 'odd-value: 12 annotations: image_id: expected a whole number, got "1" (read as 1)',
    "name_space": 'similar-classes: differ by case or space only: "red", "Red "',
    "nosuffix": "(suffix added)",
    "outside_folder": 'outside-file: file_name "../outside.png" leads out of',
    "surrogate_name": r"\ud800.png: missing-file",
    "train_mostly_text": "odd-value: 11 annotations: category_id: expected a whole number, got",
    "twice_two_sizes": "the json says 64 x 48, the file has 128 x 96 (left out)",
    "url": "the path in an address",
    "val_text_ids": "val.json: odd-value: 12 annotations: image_id: expected a whole number",
}
LONG = "category 2: name: expected at most 256 characters, got 100000"


@pytest.fixture
def case(test_data):
    return lambda name: test_data / "cases" / "coco" / name


def json_of(folder: Path) -> Path:
    return folder / ("val.json" if (folder / "val.json").exists() else "ann.json")


def expected_boxes(folder: Path) -> dict[str, list]:
    return {
        name: sorted([[*map(float, box[:4]), box[4]] for box in boxes])
        for name, boxes in json.loads((folder / "expected.json").read_text())["boxes"].items()
    }


def boxes_of(dataset: CocoDataset) -> dict[str, list]:
    return {
        str(Path(record.file).relative_to(dataset.images)): sorted(
            [*box, dataset.classes[label]] for box, label in zip(record.boxes.tolist(), record.labels, strict=True)
        )
        for record in dataset.records
    }


def truth_of(dataset: CocoDataset) -> dict[str, list]:
    names = {entry["id"]: entry["name"] for entry in dataset.ground_truth["categories"]}
    files = {record.image_id: str(Path(record.file).relative_to(dataset.images)) for record in dataset.records}
    boxes: dict[str, list] = {file: [] for file in files.values()}
    for entry in dataset.ground_truth["annotations"]:
        x, y, width, height = map(float, entry["bbox"])
        boxes[files[entry["image_id"]]].append([x, y, x + width, y + height, names[entry["category_id"]]])
    return {file: sorted(rows) for file, rows in boxes.items()}


@pytest.mark.parametrize("name", TOLD)
def test_boxes_and_truth_are_the_right_ones(case, name):
    folder = case(name)
    dataset = CocoDataset(annotations=str(json_of(folder)), images=str(folder / "images"))
    assert boxes_of(dataset) == expected_boxes(folder)
    assert truth_of(dataset) == expected_boxes(folder)
    lines = [str(problem) for problem in dataset.problems]
    assert len(lines) == 1
    assert TOLD[name] in lines[0]
    assert lines[0].isprintable()


@pytest.mark.parametrize("name", TOLD)
def test_checker_tells(case, name, capsys):
    folder = case(name)
    assert visionlab("check-data", json_of(folder), folder / "images") == 1
    output = capsys.readouterr().out
    assert TOLD[name] in output
    assert "\x1b" not in output
    kept = sum(map(len, expected_boxes(folder).values()))
    assert f"boxes: {kept}\n" in output
    if name == "area_one":
        assert "sizes: 6 small, 6 medium, 0 large" in output


def train_config(tmp_path: Path, folder: Path, **data: object) -> Path:
    train = folder / ("train.json" if (folder / "train.json").exists() else "ann.json")
    section = {"name": "coco", "annotations": str(train), "images": str(folder / "images")}
    section |= {"val_annotations": str(json_of(folder)), **data}
    return write_config(tmp_path, DETECT, data=section, train={"steps": 1})


def slow_unless(names: tuple[str, ...]) -> list:
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in TOLD]


@pytest.mark.parametrize("name", slow_unless(("val_text_ids", "escape_name")))
def test_training_tells_and_measures(case, name, tmp_path, capsys):
    folder = case(name)
    assert visionlab("train", train_config(tmp_path, folder)) == 0
    output = capsys.readouterr().out
    assert "validation data: " in output
    assert TOLD[name] in output.replace("\n", "")
    assert "\x1b[2J" not in output
    summary = json.loads(next((tmp_path / "detect" / "eval").glob("step_*1.json")).read_text())
    assert summary["images"] == len(expected_boxes(folder))
    assert summary["metrics"]["AP"] is not None


def test_name_that_no_table_can_hold_is_refused_with_its_length(case, tmp_path, capsys):
    folder = case("class_name_long")
    for words in (("check-data", folder / "ann.json", folder / "images"), ("train", train_config(tmp_path, folder))):
        assert visionlab(*words) == 2
        error = capsys.readouterr().err
        assert LONG in error
        assert len(error) < 1000
