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
from visionlab.data.sources import (
    auto,
    auto_unlabelled,
    coco,
    coco_unlabelled,
    synthetic,
    synthetic_unlabelled,
    voc,
    yolo,
    yolo_unlabelled,
)
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
    data = coco_unlabelled(root=str(root), annotations="a.json", images="images", limit=4)
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
    resize = EvaluationResize(**build.evaluation_size(run))
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
    _, note = coco(root / "run", **settings, val_annotations="a.json").notes
    assert note.startswith("leak: 10 of 10 images of val are copies of one of train: ")
    assert note.endswith("(equal bytes), and 9 more; `visionlab check-data` names all")
    _, note = coco(root / "run", **settings, val_fraction=0.2, near_copies=0).notes
    assert note.startswith("split: ")
    with pytest.raises(ValueError, match="near_copies: no effect without val_fraction"):
        coco(root, **settings, near_copies=0)


# --- whatever lies in a folder ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "images", "classes"),
    [
        ("egg", (1867, 74), ["fertile", "infertile"]),
        ("foosball", (57, 13), ["ball", "hand", "figure"]),
        ("mushroom", (78, 6), ["Mushroom"]),
        ("ships", (325, 99), ["Ships"]),
        ("deeppcb", (700, 300), ["open", "short", "mousebite", "spur", "copper", "pin-hole"]),
        ("bccd", (205, 87), ["RBC", "WBC", "Platelets"]),
    ],
)
def test_a_folder_is_recognized(test_data, tmp_path, name, images, classes):
    data = auto(tmp_path, root=str(test_data / name))
    assert (len(data.train), len(data.val)) == images
    assert (sorted(data.train.classes), data.val.classes) == (sorted(classes), data.train.classes)
    used = {label for dataset in (data.train, data.val) for record in dataset.records for label in record.labels}
    assert used == set(range(len(classes)))
    assert data.notes[0].partition(":")[0] in ("COCO json", "YOLO")


def test_classes_that_no_box_uses(root):
    content = json.loads((root / "a.json").read_text())
    supercategory = [{"id": 0, "name": "animals"}, *content["categories"], {"id": 9, "name": "cow"}]
    (root / "b.json").write_text(json.dumps(content | {"categories": supercategory}))
    settings = {"root": str(root), "annotations": "b.json", "images": "images"}
    data = coco(root, **settings)
    assert data.train.classes == ["cat", "dog"]
    assert data.notes[1] == "classes that no box uses are left out: animals, cow; `keep_unused: true` keeps them"
    kept = coco(root, **settings, keep_unused=True)
    assert kept.train.classes == ["animals", "cat", "dog", "cow"]
    assert len(kept.notes) == 1
    assert coco(root, **settings, classes=["cow", "dog"]).train.classes == ["cow", "dog"]
    with pytest.raises(ValueError, match="keep_unused: no effect beside classes"):
        coco(root, **settings, classes=["cow"], keep_unused=True)


def test_classes_of_one_part_alone_are_told(root):
    content = json.loads((root / "a.json").read_text())
    dogs = [entry for entry in content["annotations"] if entry["category_id"] == 7]
    cow = {"id": 99, "image_id": 1, "category_id": 8, "bbox": [1, 1, 5, 5]}
    categories = [*content["categories"], {"id": 8, "name": "cow"}]
    (root / "dogs.json").write_text(json.dumps(content | {"annotations": dogs}))
    (root / "cow.json").write_text(
        json.dumps(content | {"annotations": [*content["annotations"], cow], "categories": categories})
    )
    data = coco(root, root=str(root), annotations="dogs.json", images="images", val_annotations="cow.json")
    assert data.val.classes == data.train.classes == ["cat", "dog"]
    assert data.notes[1:3] == (
        "class cat: no box to train on, 4 to evaluate on",
        "1 boxes to evaluate on are left out: no class to train on is cow",
    )


def test_parts_are_there_or_made_but_not_both(test_data, tmp_path):
    cards = str(test_data / "cards")
    assert auto(tmp_path, root=cards).val is None
    split = auto(tmp_path, root=cards, val_fraction=0.2)
    assert len(split.train) + len(split.val) == 122
    for dataset, folder in ((split.train, "train"), (voc(tmp_path, root=cards, evaluate_on="test").val, "test")):
        assert {Path(record.file).parent.name for record in dataset.records} == {folder}
    with pytest.raises(ValueError, match=r"val_fraction: expected none, for .*egg/valid/.* to evaluate on, got 0.2"):
        auto(tmp_path, root=str(test_data / "egg"), val_fraction=0.2)
    with pytest.raises(ValueError, match=r"evaluate_on: expected val, for there is no other part, got test; COCO json"):
        auto(tmp_path, root=str(test_data / "deeppcb"), evaluate_on="test")
    with pytest.raises(ValueError, match="val_fraction: expected either val_fraction or evaluate_on: test, got both"):
        auto(tmp_path, root="nowhere", val_fraction=0.2, evaluate_on="test")
    with pytest.raises(ValueError, match=r"cards: expected annotations, YOLO, got .*\.xml"):
        yolo(tmp_path, root=cards)


def test_settings_of_an_evaluation_need_images_to_evaluate_on(test_data, tmp_path):
    data = {"root": str(test_data / "cards")}
    config = tmp_path / "a.yaml"
    config.write_text(
        f"task: detect\nout: {tmp_path}\ndata: {json.dumps(data)}\ntrain: {{steps: 3, evaluate_every: 1}}\n"
        "optimizer: {name: sgd, lr: 0.1}\nloader: {batch_size: 2}\n"
    )
    with pytest.raises(ValueError, match="evaluate_every: no effect without images to evaluate on, which data"):
        build.labelled_data(load(config), tmp_path)


def test_several_json_files_are_joined_by_the_names_of_classes(root):
    content = json.loads((root / "a.json").read_text())
    (root / "more").mkdir()
    Image.new("RGB", (20, 10)).save(root / "more" / "0.png")
    other = {
        "images": [{"id": 1, "file_name": "0.png"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": "1", "bbox": [2, 2, 4, 4]},
            {"id": 2, "image_id": 1, "category_id": 6, "bbox": [3, 3, 0, 4]},
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 6, "name": "cow"}],
    }
    (root / "more" / "b.json").write_text(json.dumps(other))
    data = coco(
        root, root=str(root), annotations=["a.json", "more/b.json"], images=["images", "more"], keep_unused=True
    )
    assert data.train.classes == ["cat", "dog", "cow"]
    assert data.train.category_ids == [6, 7, 8]
    assert len(data.train) == len({record.image_id for record in data.train.records}) == 11
    last = data.train.records[-1]
    assert (last.boxes.tolist(), last.labels.tolist()) == ([[2, 2, 6, 6]], [1])
    ours = coco(root, root=str(root), annotations="a.json", images="images").train
    for mine, joined in zip(ours.records, data.train.records, strict=False):
        assert (mine.image_id, mine.boxes.tolist()) == (joined.image_id, joined.boxes.tolist())
    assert f"{root}/more/0.png, {root}/more/b.json, annotation 2: zero-box" in str(data.train.problems[-1])
    assert content["images"]


def test_images_to_pretrain_on(test_data, root):
    """Those to train on and those without annotations, never those to evaluate on."""
    pcb = auto_unlabelled(root=str(test_data / "deeppcb"))
    assert len(pcb) == len(set(pcb.files)) == 700 + 800
    assert pcb.load(0).shape == (320, 320, 3)
    assert len(auto_unlabelled(root=str(test_data / "deeppcb"), limit=100)) == 100
    assert len(yolo_unlabelled(root=str(test_data / "ships"))) == 325
    assert len(auto_unlabelled(root=str(test_data / "cards"))) == 122
    plain = auto_unlabelled(root=str(test_data / "imagenette_subset"))
    assert len(plain) == 600
    assert plain.notes == (f"images without annotations: {test_data}/imagenette_subset/train (600 images)",)
    assert len(auto_unlabelled(root=str(root / "images"))) == 10
    with pytest.raises(ValueError, match="nowhere: expected the folder of a dataset, got nothing there"):
        auto_unlabelled(root=str(root / "nowhere"))
