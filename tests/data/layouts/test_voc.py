"""VOC datasets in the forms that they are met in, and what is odd in their xml."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from visionlab.data.coco import CocoDataset
from visionlab.data.layouts import read_layout

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
    assert data.parts["train"].notes == ("1 of 3 objects are marked difficult: used as any other",)


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
