"""`visionlab init`: from a folder of images to configs that run as they are."""

import json

import numpy as np
import pytest
from PIL import Image

from visionlab.cli import main
from visionlab.config.load import load
from visionlab.init.write import init

SETS = {
    "bccd": (["RBC", "WBC", "Platelets"], 205, 87),
    "cards": (["ace", "jack", "king", "nine", "queen", "ten"], 122, 0),
    "coco_mini": (None, 107, 120),
    "deeppcb": (["open", "short", "mousebite", "spur", "copper", "pin-hole"], 700, 300),
    "egg": (["fertile", "infertile"], 1867, 74),
    "foosball": (["ball", "hand", "figure"], 57, 13),
    "mushroom": (["Mushroom"], 78, 6),
    "ships": (["Ships"], 325, 99),
}


@pytest.mark.parametrize("name", SETS)
def test_public_sets_of_every_layout(test_data, tmp_path, name):
    classes, images, val_images = SETS[name]
    written = init(str(test_data / name), tmp_path / "my run", device="cpu")
    objects = written.survey.objects
    assert (objects.images, objects.val_images) == (images, val_images)
    assert classes in (None, objects.classes)
    pretrain, detect = map(load, written.files)
    assert pretrain.data.root == detect.data.root == str(test_data / name)
    assert detect.data.classes == objects.classes
    assert detect.data.val_fraction == (None if val_images else 0.2)
    assert all(len(file.read_text().splitlines()) <= 40 for file in written.files)


@pytest.fixture
def folder(tmp_path):
    """Five pictures, each of one color with a lighter square, in the layout of YOLO."""
    for part in ("images", "labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for n in range(5):
        pixels = np.full((48, 64, 3), 20 * n, dtype=np.uint8)
        pixels[8 + n : 24 + n, 8 * n : 8 * n + 16] = 250
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"{n}.png")
        row = f"0 {(8 * n + 8) / 64} {(16 + n) / 48} {16 / 64} {16 / 48}\n"
        (tmp_path / "data" / "labels" / f"{n}.txt").write_text(row)
    (tmp_path / "data" / "data.yaml").write_text("names: [square]\ntrain: images\n")
    return tmp_path / "data"


def test_what_it_writes_runs_as_it_is(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "data", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("YOLO: train = ")
    commands = [line.removeprefix("visionlab train ") for line in printed if line.startswith("visionlab train ")]
    assert commands == ["runs/data/pretrain.yaml", "runs/data/detect.yaml"]
    short = ["train.steps=2", "schedule.warmup_steps=1", "checkpoints.every=2", "device=cpu", "loader.workers=0"]
    assert main(["train", commands[0], *short]) == 0
    assert main(["train", commands[1], *short, "train.evaluate_every=2"]) == 0
    assert (tmp_path / "runs" / "data" / "detect" / "detector.safetensors").is_file()
    capsys.readouterr()
    assert main(["init", "data"]) == 2
    assert "runs/data/pretrain.yaml: is there already" in capsys.readouterr().err
    assert main(["init", "data", "--out", "another run", "--device", "cpu"]) == 0
    assert "visionlab train 'another run/pretrain.yaml'" in capsys.readouterr().out


def test_without_objects_there_is_pretraining_alone(folder, tmp_path):
    for file in (folder / "labels").iterdir():
        file.write_text("")
    for root in (folder, folder / "images"):
        written = init(str(root), tmp_path / root.name, device="cpu")
        assert [file.name for file in written.files] == ["pretrain.yaml"]
        assert "no labelled objects: a config for pretraining alone" in str(written)
        assert load(written.files[0]).loader.batch_size == 5


def test_copies_of_one_photo_are_not_evaluated_on(folder, tmp_path):
    for n in range(1, 5):
        (folder / "images" / f"{n}.png").write_bytes((folder / "images" / "0.png").read_bytes())
    written = init(str(folder), tmp_path / "run", device="cpu")
    assert written.survey.objects.photos == 1
    assert "val_fraction" not in written.files[1].read_text()


def test_odd_names(tmp_path):
    """Names of folders and classes that mean something else in YAML or in a shell."""
    root = tmp_path / "it's: #1"
    images = [{"id": n, "file_name": f"{n}.png", "width": 32, "height": 32} for n in range(2)]
    boxes = [{"id": n, "image_id": n, "category_id": n + 1, "bbox": [1, 1, 9, 9], "area": 81} for n in range(2)]
    root.mkdir()
    for n in range(2):
        Image.new("RGB", (32, 32), (9, 200 * n, 9)).save(root / f"{n}.png")
    categories = [{"id": 1, "name": "no"}, {"id": 2, "name": "1: {é"}]
    (root / "a.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    written = init(str(root), tmp_path / "run", device="cpu")
    detect = load(written.files[1])
    assert detect.data.classes == ["no", "1: {é"]
    assert detect.data.root == str(root)
    with pytest.raises(ValueError, match="out: expected a folder without '='"):
        init(str(root), tmp_path / "a=b")


def test_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        init(str(tmp_path / "nowhere"), tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        init(str(tmp_path / "empty"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
