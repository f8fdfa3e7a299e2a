"""The section ``data``: images found by name, with and without boxes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from visionlab.config import build
from visionlab.config.load import load
from visionlab.config.shipped import shipped
from visionlab.data.sources import UnlabelledCoco, coco, synthetic, synthetic_unlabelled
from visionlab.data.transforms import EvaluationResize


@pytest.fixture
def root(tmp_path) -> Path:
    """Ten images, two of them without a box, in COCO's layout."""
    (tmp_path / "images").mkdir()
    for number in range(10):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    content = {
        "images": [{"id": n + 1, "file_name": f"{n}.png", "height": 10, "width": 20} for n in range(10)],
        "annotations": [
            {"id": n + 1, "image_id": n + 1, "category_id": 7 - n % 2, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
            for n in range(8)
        ],
        "categories": [{"id": 6, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return tmp_path


def test_images_of_a_json_without_their_boxes(root):
    data = UnlabelledCoco(root=str(root), annotations="a.json", images="images", limit=4)
    assert len(data) == len(data.files) == 4
    assert data.load(0).shape == (10, 20, 3)


def test_split_by_share(root):
    settings = {"root": str(root), "annotations": "a.json", "images": "images", "val_fraction": 0.3}
    data = coco(root / "run", **settings)
    train, val = ({record.file for record in part.records} for part in (data.train, data.val))
    assert (len(train), len(val)) == (7, 3)
    assert not train & val
    again = coco(root / "run", **settings)
    assert [record.file for record in again.val.records] == [record.file for record in data.val.records]
    other = coco(root / "other", **settings, split_seed=1)
    assert {record.file for record in other.val.records} != val


def test_settings_of_training_leave_validation_alone(root):
    paths = {"annotations": "a.json", "images": "images", "val_annotations": "a.json"}
    data = coco(root, root=str(root), **paths, classes=["dog", "cat"], limit=2, keep_empty=False)
    assert (len(data.train), len(data.val)) == (2, 10)
    assert data.val.classes == ["dog", "cat"]
    assert data.val.category_ids == [7, 6]
    assert coco(root, root=str(root), annotations="a.json", images="images").val is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"val_fraction": 0.3, "val_annotations": "a.json"},
            "val_fraction: expected either .* got both",
        ),
        ({"split_seed": 3}, "split_seed: no effect without val_fraction"),
        ({"val_images": "images"}, "val_images: no effect without val_annotations"),
        ({"val_fraction": 1}, r"val_fraction: expected a number in \(0, 1\), got 1"),
        ({"limit": 0}, "limit: expected at least 1, got 0"),
        ({"classes": []}, "classes: expected different names, got none"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_any_file_is_read(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        coco(tmp_path, annotations="nowhere.json", images="nowhere", **settings)


def test_training_needs_an_object(root):
    content = json.loads((root / "a.json").read_text())
    (root / "none.json").write_text(json.dumps(content | {"annotations": []}))
    crowds = [annotation | {"iscrowd": 1} for annotation in content["annotations"]]
    (root / "crowds.json").write_text(json.dumps(content | {"annotations": crowds}))
    for name in ("none.json", "crowds.json"):
        with pytest.raises(ValueError, match=rf"{name}: expected a box to train on in .* of 10 images, got none$"):
            coco(root, root=str(root), annotations=name, images="images")
        data = coco(root, root=str(root), annotations="a.json", images="images", val_annotations=name)
        assert len(data.val) == 10


def test_validation_without_a_class_of_training_says_what_to_do(root):
    content = json.loads((root / "a.json").read_text())
    (root / "dogs.json").write_text(json.dumps(content | {"categories": content["categories"][1:]}))
    settings = {"root": str(root), "annotations": "a.json", "images": "images", "val_annotations": "dogs.json"}
    with pytest.raises(ValueError, match=r"dogs\.json: no category is named 'cat'.*; `classes` names those to use$"):
        coco(root, **settings)
    assert coco(root, **settings, classes=["dog"]).val.classes == ["dog"]


def test_nothing_is_printed_where_no_one_looks(tmp_path, capsys):
    synthetic_unlabelled(root=str(tmp_path / "drawn"), unlabelled=1, labelled=1, validation=1, image_size=32)
    assert capsys.readouterr().out == ""


def test_embedded_dataset_is_drawn_once_for_both_kinds_of_run(tmp_path):
    settings = {"root": str(tmp_path / "drawn"), "unlabelled": 3, "labelled": 2, "validation": 1, "image_size": 64}
    files = synthetic_unlabelled(**settings).files
    times = [Path(file).stat().st_mtime_ns for file in files]
    data = synthetic(tmp_path, **settings)
    assert (len(files), len(data.train), len(data.val)) == (3, 2, 1)
    assert [Path(file).stat().st_mtime_ns for file in files] == times


@pytest.mark.parametrize(("name", "images"), [("bccd", (205, 87)), ("coco_mini", (107, 120))])
def test_shipped_examples_read_real_data(test_data, tmp_path, name, images):
    overrides = [f"data.root={test_data / name}", "loader.workers=0", "loader.batch_size=2"]
    run = load(shipped(f"examples/{name}_detect.yaml"), overrides)
    data = build.labelled_data(run, tmp_path)
    assert (len(data.train), len(data.val)) == images
    loader, _ = build.labelled_loader(run, data, torch.device("cpu"))
    batch = next(loader.batches(0))
    assert len(batch.targets) == len(batch) == 2
    assert max(batch.pixels.shape[2:]) <= run.transform.max_size
    resize = EvaluationResize(**build.resize(run))
    validation = next(iter(build.validation_loader(run, data, resize, torch.device("cpu"))))
    assert validation.ids
    build.evaluator(run, data)
    with pytest.raises(ValueError, match="unicorn"):
        build.labelled_data(run, tmp_path, ["unicorn"])

    run = load(shipped(f"examples/{name}_pretrain.yaml"), overrides)
    backbone = run.backbone.build()
    pretext = run.pretext.build(backbone)
    unlabelled = build.unlabelled_loader(run, run.data.build(), pretext.views, torch.device("cpu"))
    assert unlabelled.sampler.length == images[0]
    views = next(unlabelled.batches(0)).views
    assert views[0].shape == (2, 3, run.pretext.image_size, run.pretext.image_size)


def test_copies_among_training_and_validation_images_are_told(root):
    """By bytes and by name; here each image is its own copy."""
    settings = {"root": str(root), "annotations": "a.json", "images": "images"}
    (note,) = coco(root / "run", **settings, val_annotations="a.json").notes
    assert note.startswith("leak: 10 of 10 images of val are copies of one of train: ")
    assert note.endswith("(equal bytes), and 9 more; `visionlab check-data` names all")
    (note,) = coco(root / "run", **settings, val_fraction=0.2, near_copies=0).notes
    assert note.startswith("split: ")
    with pytest.raises(ValueError, match="near_copies: no effect without val_fraction"):
        coco(root, **settings, near_copies=0)
