import json

import pytest
from PIL import Image

from visionlab.data.check import check_dataset, check_folder


def write_dataset(folder, boxes):
    images = [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 80} for n in range(1, 4)]
    for image in images:
        Image.new("RGB", (100, 80), (image["id"], 0, 0)).save(folder / image["file_name"])
    rows = [{"id": n, "image_id": 1, "category_id": 3, "bbox": box} for n, box in enumerate(boxes, start=1)]
    content = {"images": images, "annotations": rows, "categories": [{"id": 3, "name": "cat"}]}
    (folder / "coco.json").write_text(json.dumps(content))


def test_checker_names_everything_at_once(tmp_path):
    write_dataset(tmp_path, [[10, 10, 20, 20], [1, 1, 0, 5], [1, 1, 500, 5]])
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:-30])
    (tmp_path / "3.png").unlink()
    calls = []
    result = check_dataset(
        annotations=str(tmp_path / "coco.json"),
        images=str(tmp_path),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert sorted(p.kind for p in result.problems) == ["damaged-file", "missing-file", "outside-box", "zero-box"]
    assert calls == [(1, 2), (2, 2)]
    assert result.exit_status == 1
    text = result.to_text()
    assert f"{tmp_path}/1.png, annotation 2: zero-box: bbox [1, 1, 0, 5] (left out)" in text
    assert "problems: 4" in text
    values = json.loads(json.dumps(result.to_dict()))
    assert values["counts"] == {"missing-file": 1, "zero-box": 1, "outside-box": 1, "damaged-file": 1}
    assert values["statistics"]["classes"] == {"cat": 2}
    headers = check_dataset(annotations=str(tmp_path / "coco.json"), images=str(tmp_path), decode=False)
    assert len(headers.problems) == 3


def test_checker_of_a_folder(tmp_path):
    write_dataset(tmp_path, [])
    result = check_dataset(images=str(tmp_path))
    assert (result.exit_status, result.statistics) == (0, {"images": 3})
    assert result.to_text().endswith("problems: none")


def test_checker_of_nothing_says_so(tmp_path):
    write_dataset(tmp_path, [])
    with pytest.raises(ValueError, match="classes: has no effect without annotations"):
        check_dataset(images=str(tmp_path), classes=["cat"])
    with pytest.raises(ValueError, match=r"no category is named 'cta'\. Did you mean 'cat'"):
        check_dataset(images=str(tmp_path), annotations=str(tmp_path / "coco.json"), classes=["cta"])
    with pytest.raises(ValueError, match="expected the one folder"):
        check_dataset(images=[str(tmp_path)] * 2, annotations=str(tmp_path / "coco.json"))


def test_checker_finds_every_damaged_odd_image(test_data):
    result = check_dataset(images=str(test_data / "odd_images"))
    assert result.statistics == {"images": 62}
    assert result.to_dict()["counts"] == {"damaged-file": 7, "unreadable-file": 4}


def test_checker_of_real_annotations(test_data):
    folder = test_data / "bccd"
    result = check_dataset(
        images=str(folder / "images"), annotations=str(folder / "annotations/val.json"), decode=False
    )
    assert [(problem.kind, problem.annotation_id) for problem in result.problems] == [("zero-box", 887)]
    assert "BloodImage_00338.jpg, annotation 887: zero-box: bbox [504.0, 337.0, 0.0, 0.0]" in result.to_text()
    assert result.statistics["boxes"] == 1137


@pytest.mark.parametrize(
    ("name", "layout", "boxes"),
    [
        ("foosball", "COCO json", {"train": 1215, "val": 283, "test": 145}),
        ("ships", "YOLO", {"train": 472, "val": 46 + 70, "test": 40 + 42}),
        ("cards", "VOC", {"train": 239, "test": 64}),
    ],
)
def test_checker_of_a_folder_looks_at_every_part(test_data, name, layout, boxes):
    result = check_folder(str(test_data / name), decode=False)
    assert result.source.startswith(f"{layout}: train = ")
    assert {role: part.statistics["boxes"] for role, part in result.parts.items()} == boxes
    assert list(result.to_dict()["parts"]) == list(boxes)
    assert f"--- test: {test_data / name}/test" in result.to_text()


def test_checker_names_what_lies_between_parts(tmp_path):
    for part in ("train", "valid"):
        (tmp_path / part).mkdir()
        write_dataset(tmp_path / part, [[10, 10, 20, 20], [1, 1, 0, 5]])
        content = json.loads((tmp_path / part / "coco.json").read_text())
        content["categories"].append({"id": 0, "name": "animals"})
        (tmp_path / part / "_annotations.coco.json").write_text(json.dumps(content))
        (tmp_path / part / "coco.json").unlink()
    result = check_folder(str(tmp_path))
    assert result.notes == ["classes that no box uses, left out of training: animals"]
    assert [len(part.problems) for part in result.parts.values()] == [1, 1]
    assert [problem.kind for problem in result.problems] == ["leak"] * 3
    assert result.exit_status == 1
    text = result.to_text()
    assert f"  {tmp_path}/valid/1.png, annotation 2: zero-box: bbox [1, 1, 0, 5] (left out)" in text
    assert f"{tmp_path}/valid/1.png: leak: val: a copy of {tmp_path}/train/1.png of train (equal bytes)" in text
    assert text.endswith("problems in all: 5")
    assert result.to_dict()["counts"] == {"zero-box": 2, "leak": 3}


def test_checker_of_a_json_finds_its_images(tmp_path):
    write_dataset(tmp_path, [[10, 10, 20, 20]])
    result = check_dataset(annotations=str(tmp_path / "coco.json"))
    assert result.source == f"{tmp_path}/coco.json with the images in {tmp_path}"
    assert result.exit_status == 0
    with pytest.raises(ValueError, match="expected a folder of images or annotations, got neither"):
        check_dataset()
