"""VOC datasets in the forms that they are met in, and what is odd in their xml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visionlab.data.coco import CocoDataset
from visionlab.data.layouts import read_layout
from visionlab.data.sources import DETECT_DATA, PRETRAIN_DATA

OBJECT = (
    "<object><name>{}</name>{}<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def xml(*objects: str, name: str = "", size: tuple[int, int] = (100, 50)) -> str:
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{sides}{''.join(objects)}</annotation>"


def box(name: str, *corners: float, more: str = "") -> str:
    return OBJECT.format(name, more, *corners)


def write(root: Path, files: dict[str, str | None]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            Image.new("RGB", (100, 50)).save(root / name)
        else:
            (root / name).write_text(text)
    return str(root)


def boxes_of(part) -> dict[str, list[tuple[str, list[float]]]]:
    dataset = CocoDataset(part)
    return {
        Path(record.file).name: [
            (dataset.classes[label], rectangle)
            for label, rectangle in zip(record.labels, record.boxes.tolist(), strict=True)
        ]
        for record in dataset.records
    }


A, B = xml(box("dog", 41, 11, 60, 30), name="a.png"), xml(box("cat", 1, 1, 100, 50), name="b.png")
DEVKIT = {
    "Annotations/a.xml": A,
    "Annotations/b.xml": B,
    "JPEGImages/a.png": None,
    "JPEGImages/b.png": None,
    "SegmentationClass/a.png": None,
}
FORMS = {
    "devkit": DEVKIT
    | {
        f"ImageSets/Main/{name}.txt": text
        for name, text in {"train": "a\n", "val": "b\n", "dog_train": "a 1\n"}.items()
    },
    "devkit_below": {
        f"VOCdevkit/VOC2007/{name}": text
        for name, text in (DEVKIT | {"ImageSets/Main/trainval.txt": "a \n", "ImageSets/Main/val.txt": "b"}).items()
    },
    "lists_with_flags": DEVKIT | {"ImageSets/Main/train.txt": "a  1\nb -1\n", "ImageSets/Main/val.txt": "b\n"},
    "beside": {"train/a.xml": A, "train/a.png": None, "valid/b.xml": B, "valid/b.png": None},
    "folders": {
        "images/train/a.png": None,
        "annotations/train/a.xml": A,
        "images/val/b.png": None,
        "annotations/val/b.xml": B,
    },
    "part_folders": {
        "train/JPEGImages/a.png": None,
        "train/Annotations/a.xml": A,
        "val/JPEGImages/b.png": None,
        "val/Annotations/b.xml": B,
    },
    "image_renamed_in_xml": {
        "train/a.xml": A.replace("a.png", "C:\\old\\x.png"),
        "train/a.png": None,
        "val/b.xml": B,
        "val/b.png": None,
    },
    "xml_of_another_name": {"train/0.xml": A, "train/a.png": None, "val/1.xml": B, "val/b.png": None},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(tmp_path, form):
    data = read_layout("auto", write(tmp_path, FORMS[form]))
    assert data.layout == "VOC"
    found = boxes_of(data.parts["train"])
    assert found["a.png"] == [("dog", [40, 10, 60, 30])]
    assert boxes_of(data.parts["val"]) == {"b.png": [("cat", [0, 0, 100, 50])]}
    assert len(found) == (2 if form == "lists_with_flags" else 1)
    classes = {tuple(CocoDataset(part).classes) for part in data.parts.values()}
    assert classes == {("cat", "dog")}


def test_what_is_in_no_list_is_told(tmp_path):
    extra = {"Annotations/c.xml": A, "JPEGImages/d.png": None, "ImageSets/Main/train.txt": "a\nb\nx\n"}
    data = read_layout("voc", write(tmp_path, DEVKIT | extra))
    assert data.notes == (
        f"1 names of {tmp_path}/ImageSets/Main/train.txt have no xml file: not used: x",
        f"1 xml files are in no list: not used: {tmp_path}/Annotations/c.xml",
        "1 images have no xml file: not used: JPEGImages/d.png",
    )
    assert len(data.parts["train"].content["images"]) == 2


def test_difficult_objects_are_used_and_marked(tmp_path):
    objects = [box("cat", 11, 11, 20, 20, more=f"<truncated>1</truncated><difficult>{n}</difficult>") for n in (0, 1)]
    data = read_layout("voc", write(tmp_path, {"a.png": None, "a.xml": xml(*objects, box("cat", 31, 31, 40, 40))}))
    dataset = CocoDataset(data.parts["train"])
    [record] = dataset.records
    assert record.difficult.tolist() == [False, True, False]
    assert not record.crowd.any()
    assert [entry["difficult"] for entry in dataset.ground_truth["annotations"]] == [0, 1, 0]
    [note] = data.parts["train"].notes
    assert note.startswith("1 of 3 objects are marked difficult: used as any other, unless ")


def test_every_odd_object_is_named(tmp_path):
    objects = [
        box("cat", 0, 0, 20, 20),
        box("cat", 31.5, 11, 40, 20.5),
        box("", 1, 1, 20, 20),
        "<object><name>cat</name></object>",
        box("cat", 40, 30, 21, 11),
        box("cat", 91, 11, 120, 20),
        "<object><name>cat</name><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        "<bndbox><xmax>10</xmax><ymax>10</ymax><ymin>1</ymin><xmin>1</xmin></bndbox></object>",
    ]
    files = {
        "a.png": None,
        "a.xml": xml(*objects),
        "b.png": None,
        "b.xml": "<annotation><object>",
        "c.xml": xml(size=(0, 0)),
    }
    data = read_layout("voc", write(tmp_path, files | {"c.png": None, "d.xml": xml(name="gone.png")}))
    part = data.parts["train"]
    assert part.notes == ("1 boxes begin at 0, where VOC counts pixels from 1: taken as the edge of the image",)
    dataset = CocoDataset(part)
    problems = [str(problem).replace(f"{tmp_path}/", "") for problem in dataset.problems]
    assert problems == [
        "a.xml, object 3: bad-object: expected a name and bndbox with xmin, ymin, xmax, ymax, "
        "got name '' and corners [1.0, 1.0, 20.0, 20.0] (left out)",
        "a.xml, object 4: bad-object: expected a name and bndbox with xmin, ymin, xmax, ymax, "
        "got name 'cat' and corners [None, None, None, None] (left out)",
        "b.xml: bad-xml: expected xml, got no element found: line 1, column 20 (left out)",
        problems[3],
        "a.png, a.xml, object 5: negative-box: bbox [39.0, 29.0, -18.0, -18.0] (corners put in order)",
        "a.png, a.xml, object 6: outside-box: bbox [90.0, 10.0, 30.0, 10.0] leaves the image of 100 x 50 (clipped)",
    ]
    assert problems[3].startswith("gone.png: missing-file")
    [a, c] = dataset.records
    assert a.boxes.tolist() == [
        [0, 0, 20, 20],
        [30.5, 10, 40, 20.5],
        [21, 11, 39, 29],
        [90, 10, 100, 20],
        [0, 0, 10, 10],
    ]
    assert (c.width, c.height) == (100, 50)


ENTITIES = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;"><!ENTITY c "&b;&b;&b;">]>'


def test_entities_are_refused(tmp_path):
    root = write(tmp_path, {"a.png": None, "a.xml": A, "b.xml": ENTITIES + A.replace("dog", "&c;")})
    with pytest.raises(ValueError, match=r"b\.xml: expected xml without entities, got ") as caught:
        read_layout("auto", root)
    assert "\n" not in str(caught.value)


def test_xml_that_is_mostly_broken_stops(tmp_path):
    root = write(tmp_path, {"a.png": None, "a.xml": A, "b.xml": "<annotation>", "c.xml": "<html></html>"})
    with pytest.raises(ValueError, match=r"2 of 3 are no VOC annotations, the first: .*b\.xml: bad-xml: expected xml"):
        read_layout("auto", root)


# --- lists by name, of several years ---------------------------------------------------------------------------------


@pytest.fixture
def devkit(tmp_path):
    """Two years as the official archives lay them out; b has two objects, one of them difficult."""
    b = xml(box("cat", 1, 1, 100, 50), box("dog", 11, 11, 20, 20, more="<difficult>1</difficult>"), name="b.png")
    years: dict[str, dict[str, str]] = {
        "VOC2007": {"train": "a\n", "val": "b\n", "trainval": "a\nb\n", "test": "c\nx\n", "dog_test": "c -1\n"},
        "VOC2012": {"trainval": "a\n"},
    }
    files: dict[str, str | None] = {}
    for year, lists in years.items():
        files |= {f"{year}/ImageSets/Main/{name}.txt": text for name, text in lists.items()}
        for name, text in (("a", A), ("b", b), ("c", B.replace("b.png", "c.png"))):
            files |= {f"{year}/Annotations/{name}.xml": text, f"{year}/JPEGImages/{name}.png": None}
    root = write(tmp_path / "VOCdevkit", files)
    for number, file in enumerate(sorted(Path(root).rglob("*.png"))):
        Image.new("RGB", (100, 50), (40 * number, 0, 0)).save(file)  # so that none is a copy of another
    return root


VOC0712: dict[str, Any] = {"image_sets": ["VOC2007/trainval", "VOC2012/trainval"], "val_image_sets": "VOC2007/test"}


def test_the_lists_of_several_years(devkit, tmp_path):
    data = DETECT_DATA["voc"](tmp_path, root=devkit, **VOC0712)
    names = ["VOC2007/JPEGImages/a.png", "VOC2007/JPEGImages/b.png", "VOC2012/JPEGImages/a.png"]
    assert [Path(record.file).relative_to(devkit).as_posix() for record in data.train.records] == names
    assert [Path(record.file).name for record in data.val.records] == ["c.png"]
    assert data.train.classes == data.val.classes == ["cat", "dog"]
    assert data.train.records[0].boxes.tolist() == [[40, 10, 60, 30]]
    assert f"1 names of {devkit}/VOC2007/ImageSets/Main/test.txt have no xml file: not used: x" in data.notes
    unlabelled = PRETRAIN_DATA["voc"](root=devkit, image_sets=VOC0712["image_sets"])
    assert [Path(file).relative_to(devkit).as_posix() for file in unlabelled.files] == names


def test_a_list_beside_the_annotations_and_one_elsewhere(devkit, tmp_path):
    other = f"{devkit}/VOC2012/trainval"
    data = DETECT_DATA["voc"](tmp_path, root=f"{devkit}/VOC2007", image_sets=["train", other], val_image_sets=["val"])
    files = [Path(record.file).resolve().relative_to(devkit).as_posix() for record in data.train.records]
    assert files == ["VOC2007/JPEGImages/a.png", "VOC2012/JPEGImages/a.png"]
    assert len(data.val.records) == 1


@pytest.mark.parametrize(
    ("how", "labels", "crowd"),
    [("use", [0, 1], [False, False]), ("ignore", [0, 1], [False, True]), ("remove", [0], [False])],
)
def test_difficult_objects_in_training(how, labels, crowd, devkit, tmp_path):
    """What is evaluated on keeps them, marked, for VOC's metrics to pass over."""
    sets = {"image_sets": "VOC2007/trainval", "val_image_sets": "VOC2007/val"}
    data = DETECT_DATA["voc"](tmp_path, root=devkit, **sets, difficult=how)
    record = data.train.records[1]
    assert (record.labels.tolist(), record.crowd.tolist()) == (labels, crowd)
    [record] = data.val.records
    assert (record.labels.tolist(), record.crowd.tolist()) == ([0, 1], [False, False])
    assert [entry["difficult"] for entry in data.val.ground_truth["annotations"]] == [0, 1]
    notes = [note for note in data.notes if note.startswith("difficult: ")]
    what = {"ignore": "neither objects nor background", "remove": "background"}.get(how)
    assert notes == ([f"difficult: {how}: 1 of 3 objects to train on are {what}"] if what else [])


def test_difficult_objects_of_a_split_stay_in_what_is_evaluated_on(devkit, tmp_path):
    settings = {"image_sets": ["VOC2007/trainval", "VOC2012/trainval"], "val_fraction": 0.4, "near_copies": None}
    found = DETECT_DATA["voc"](tmp_path, root=devkit, **settings, difficult="ignore")
    parts = [found.train.records, found.val.records]
    hard = [sum(record.difficult.sum() for record in part) for part in parts]
    assert sum(hard) == 1
    assert [sum(record.crowd.sum() for record in part) for part in parts] == [hard[0], 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"image_sets": "VOC2007/nothing"},
            r"nothing\.txt: expected a list of images, got none; there: test, train, tr",
        ),
        ({"image_sets": "VOC2010/trainval"}, r"trainval\.txt: expected a list of images, got none; there: no list"),
        ({"image_sets": []}, "image_sets: expected a list of images or several"),
        ({"val_image_sets": "VOC2007/test"}, "val_image_sets: expected image_sets beside it"),
        ({**VOC0712, "val_fraction": 0.5}, "val_fraction: expected either val_fraction or val_image_sets"),
        ({**VOC0712, "evaluate_on": "test"}, "evaluate_on: no effect beside val_image_sets"),
        ({"image_sets": "VOC2007/trainval", "evaluate_on": "test"}, "evaluate_on: no effect beside image_sets"),
    ],
)
def test_lists_that_are_refused(settings, message, devkit, tmp_path):
    with pytest.raises(ValueError, match=message):
        DETECT_DATA["voc"](tmp_path, root=devkit, **settings)


@pytest.mark.parametrize("names", ["photo 0\nphoto 1\n", "photo 1\nphoto 7\n"])
def test_names_that_end_like_flags(names, tmp_path):
    files: dict[str, str | None] = {"ImageSets/Main/train.txt": names}
    for name in names.splitlines():
        files |= {f"Annotations/{name}.xml": xml(box("dog", 1, 1, 20, 20)), f"JPEGImages/{name}.png": None}
    root = write(tmp_path, files)
    for settings in ({}, {"image_sets": "train"}):
        found = PRETRAIN_DATA["voc"](root=root, **settings).files
        assert sorted(Path(file).stem for file in found) == names.splitlines()


@pytest.mark.parametrize("how", ["ignore", "remove"])
def test_nothing_but_difficult_objects_to_train_on(how, devkit, tmp_path):
    hard = xml(box("dog", 11, 11, 20, 20, more="<difficult>1</difficult>"), name="b.png")
    Path(devkit, "VOC2007/Annotations/b.xml").write_text(hard)
    with pytest.raises(ValueError, match=f"difficult: expected use, as all 1 objects to train on .* got {how}"):
        DETECT_DATA["voc"](tmp_path, root=devkit, image_sets="VOC2007/val", difficult=how)


def test_a_list_without_annotations_is_refused(devkit, tmp_path):
    Path(devkit, "VOC2012/ImageSets/Main/test.txt").write_text("2008_1\n2008_2\n")
    with pytest.raises(ValueError, match=r"test\.txt: expected xml files in .*Annotations, got none for its 2 names"):
        DETECT_DATA["voc"](tmp_path, root=devkit, image_sets="VOC2007/train", val_image_sets="VOC2012/test")
