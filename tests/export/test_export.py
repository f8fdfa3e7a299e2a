"""Exported files against the detector, and what is refused."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_parts import PARTS, detector_with, name_of
from tiny_runs import visionlab

from visionlab.data.images import read_image
from visionlab.data.samples import collate_images
from visionlab.data.transforms import EvaluationResize
from visionlab.export import write
from visionlab.export.agreement import detect, difference
from visionlab.export.graphs import ResizedGraph
from visionlab.inference import load_detector
from visionlab.models.detector import save_detector
from visionlab.models.weights import read_backbone, save_backbone
from visionlab.structures import Detections

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[2]
RESIZE = {"short_side": 160, "max_size": 224}


def save(folder: Path, **settings) -> Path:
    detector = detector_with(**settings)
    save_detector(detector, folder / "detector.safetensors", provenance={"resize": RESIZE, "category_ids": [7, 8, 90]})
    save_backbone(detector.backbone, folder / "backbone.safetensors", provenance={"method": "none"})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with ``detector.onnx`` and ``resize.onnx``, which come from one graph to save time."""
    folder = save(tmp_path_factory.mktemp("run"))
    models = []
    real = write.write_onnx
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "write_onnx", lambda *given: models.append(real(*given)) or copy.deepcopy(models[-1]))
        assert visionlab("export", folder) == 0
        patch.setattr(write, "trace", lambda graph: None)
        patch.setattr(write, "write_onnx", lambda *given: copy.deepcopy(models[0]))
        assert visionlab("export", folder, "--resize", "--out", folder / "resize.onnx") == 0
    return folder


def session(file: Path):
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def first(answer, image: int = 0) -> Detections:
    boxes, scores, labels, counts = (torch.as_tensor(part) for part in answer)
    return Detections(*(part[image, : counts[image]] for part in (boxes, scores, labels)))


def photos(test_data: Path) -> list[np.ndarray]:
    files = sorted((test_data / "coco_mini/train2017").glob("*.jpg"))[:3]
    files += sorted((test_data / "coco_mini/val2017").glob("*.jpg"))[:1]
    return [read_image(file) for file in files]


def test_real_images_give_what_the_detector_gives(run, test_data):
    predictor = load_detector(run)
    resize = EvaluationResize(**RESIZE)
    images = [resize.apply_to_image(photo) for photo in photos(test_data)]
    for rows in ([0], [1], [2, 3]):
        batch = collate_images([images[row] for row in rows], divisor=1)
        inputs = batch.pixels, torch.tensor(batch.sizes)
        feeds = dict(zip(("pixels", "sizes"), (tensor.numpy() for tensor in inputs), strict=True))
        found = session(run / "detector.onnx").run(None, feeds)
        for i, expected in enumerate(detect(predictor.detector, *inputs)):
            assert len(expected) > 5
            assert difference(expected, first(found, i), 0.0, 100) == ""


def test_resize_inside_gives_what_the_predictor_gives(run, test_data):
    predictor, file = load_detector(run), session(run / "resize.onnx")
    for photo in photos(test_data):
        found = first(file.run(None, {"images": photo[None]}))
        expected = predictor([photo])[0]
        best = expected.scores.topk(5).indices
        overlap = (found.boxes[:, None] - expected.boxes[best]).abs().amax(-1)
        assert (overlap.amin(0) < 1.0).all()  # pixels differ by 1 of 255 at most, so boxes by little
        nearest = overlap.argmin(0)
        assert (found.scores[nearest] - expected.scores[best]).abs().max() < 5e-3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (37, 5), (224, 224), (601, 33)])
def test_images_of_any_size(run, height: int, width: int):
    image = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    boxes, scores, labels, counts = session(run / "resize.onnx").run(None, {"images": image})
    assert boxes.shape[0] == scores.shape[0] == labels.shape[0] == 2
    limit = np.array([width, height] * 2) + 1e-3
    assert ((boxes >= 0) & (boxes <= limit)).all()
    assert (counts >= 0).all()


def test_metadata(run):
    for name, inside in (("detector.onnx", False), ("resize.onnx", True)):
        found = session(run / name).get_modelmeta().custom_metadata_map
        values = {key: json.loads(found[key]) for key in ("classes", "category_ids", "resize", "resize_inside")}
        expected = {"classes": ["cat", "dog", "cow"], "category_ids": [7, 8, 90], "resize": RESIZE}
        assert values == {**expected, "resize_inside": inside}
        assert json.loads(found["strides"]) == [4, 8, 16, 32, 64]
        assert json.loads(found["provenance"])["resize"] == RESIZE
        assert json.loads(found["limits"]) == {"batch": [1, 64], "height": [1, 224], "width": [1, 224], "multiple": 1}
        assert found["visionlab"]
    assert "255" in found["resize_difference"]


@pytest.mark.parametrize("name", ["detector.onnx", "resize.onnx"])
def test_example_without_torch(run, name: str, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('the example needs no torch')")
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
    Image.fromarray(image).save(tmp_path / "image.png")
    words = [run / name, "image.png", "--threshold", "0.0", "--draw", "drawn.png"]
    result = subprocess.run(
        [sys.executable, ROOT / "examples/onnx_inference.py", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    expected = load_detector(run)([image])[0]
    lines = [line.split() for line in result.stdout.splitlines()]
    assert abs(len(lines) - len(expected)) <= 3
    boxes = torch.tensor([[float(side) for side in line[3:]] for line in lines])
    assert (boxes[:, None] - expected.boxes[:3]).abs().amax(-1).amin(0).max() < 1.0
    assert {line[1] for line in lines} <= {"cat", "dog", "cow"}
    assert Image.open(tmp_path / "drawn.png").size == (320, 240)


def test_a_file_that_disagrees_is_not_written(tmp_path, monkeypatch, capsys):
    save(tmp_path)

    def wrong(model, constants):
        def answer(pixels, sizes):
            return torch.zeros(2, 4, 4), torch.ones(2, 4), torch.zeros(2, 4).long(), torch.tensor([4, 4])

        return answer

    monkeypatch.setattr(write, "trace", lambda graph: None)
    monkeypatch.setattr(write, "write_onnx", lambda *given: None)
    monkeypatch.setattr(write, "describe", lambda *given: None)
    monkeypatch.setattr(write, "runner", wrong)
    before = sorted(tmp_path.iterdir())
    assert visionlab("export", tmp_path) == 2
    error = capsys.readouterr().err
    assert "disagrees with the detector, so nothing is written" in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "torch", "--opset", "18"], "opset: would have no effect"),
        (["--opset", "17"], "opset: expected at least 18, which torch's exporter writes, got 17"),
        (["--images", "absent.jpg"], "absent.jpg"),
        (["--images", ROOT / "tests" / "export"], "no image"),
        (["--resize", "--max-side", "99"], "max_side: would have no effect with resize"),
        (["--max-side", "8"], "max_side: expected at least 64, got 8"),
        (["--max-batch", "1"], "max_batch: expected at least 2, got 1"),
    ],
)
def test_settings_are_refused(run, words: list[str], message: str, capsys):
    assert visionlab("export", run, *words) == 2
    assert message in capsys.readouterr().err


def test_detectors_are_refused(tmp_path, capsys):
    assert visionlab("export", tmp_path) == 2
    assert "expected a detector.safetensors or a backbone.safetensors in it" in capsys.readouterr().err
    save(tmp_path, nms="soft_linear")
    assert visionlab("export", tmp_path) == 2
    assert "head.nms: expected hard for a graph of fixed shapes, got soft_linear" in capsys.readouterr().err
    adaptive = {"name": "deform_roi_pool", "sampling_ratio": 0}
    save_detector(detector_with(**{"pool": None}), tmp_path / "plain.safetensors")
    assert visionlab("export", tmp_path / "plain.safetensors", "--resize") == 2
    assert "does not say which size it was trained at" in capsys.readouterr().err
    from visionlab.models.detector import build_detector

    detector = build_detector(
        ["cat"], backbone={"name": "resnet10t"}, neck={"channels": 8}, head={"fc_channels": 8, "pool": adaptive}
    )
    save_detector(detector, tmp_path / "adaptive.safetensors")
    assert visionlab("export", tmp_path / "adaptive.safetensors") == 2
    assert "head.pool.sampling_ratio: expected at least 1 for format onnx, got 0" in capsys.readouterr().err


@pytest.mark.slow
def test_torch_file(tmp_path, test_data):
    assert visionlab("export", save(tmp_path), "--format", "torch") == 0
    files = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "detector.pt2", extra_files=files)
    assert json.loads(json.loads(files["metadata.json"])["classes"]) == ["cat", "dog", "cow"]
    batch = collate_images([EvaluationResize(**RESIZE).apply_to_image(photo) for photo in photos(test_data)[:2]])
    inputs = batch.pixels, torch.tensor(batch.sizes)
    found = program.module()(*inputs)
    for i, expected in enumerate(detect(load_detector(tmp_path).detector, *inputs)):
        assert difference(expected, first(found, i), 0.0, 100) == ""


@pytest.mark.slow
def test_torch_file_of_images_as_they_are(tmp_path, test_data, capsys):
    photo_file = next((test_data / "coco_mini/val2017").glob("*.jpg"))
    assert visionlab("export", save(tmp_path), "--format", "torch", "--resize", "--images", photo_file) == 0
    assert re.search(r"own: \d+ in 3 synthetic images and [1-9]\d* in 1 of --images; resized", capsys.readouterr().out)
    program = torch.export.load(tmp_path / "detector.pt2").module()
    predictor = load_detector(tmp_path)
    for photo in [*photos(test_data), np.zeros((1, 300, 3), np.uint8), np.full((960, 1920, 3), 99, np.uint8)]:
        pixels = torch.from_numpy(photo)[None]
        resized, sizes, factors = ResizedGraph.resized(SimpleNamespace(**RESIZE), pixels)
        assert resized[0].equal(EvaluationResize(**RESIZE).apply_to_image(photo))
        [expected] = detect(predictor.detector, resized, sizes)
        expected = Detections(expected.boxes * factors.float(), expected.scores, expected.labels)
        found = first(program(pixels))
        if photo.std():  # in an even image all scores are nearly the same, and rounding decides
            assert difference(expected, found, 0.0, 100) == ""
        assert (found.boxes <= torch.tensor([photo.shape[1], photo.shape[0]] * 2) + 1e-3).all()


@pytest.mark.slow
def test_a_detector_that_finds_nothing_is_compared_below_its_threshold(tmp_path, capsys):
    assert visionlab("export", save(tmp_path, score_threshold=0.5)) == 0
    said = capsys.readouterr().out
    assert re.search(
        "no detection was compared, .* in 3 synthetic images; only [1-9][0-9]* boxes of lower scores", said
    )
    feeds = {"pixels": np.zeros((1, 3, 64, 64), np.uint8), "sizes": np.array([[64, 64]])}
    assert session(tmp_path / "detector.onnx").run(None, feeds)[3] == [0]


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS[1:], ids=name_of)
def test_every_part_exports_to_onnx(part, tmp_path):
    assert visionlab("export", save(tmp_path, **part)) == 0  # which compares it with the detector


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_backbone(format: str, tmp_path):
    assert visionlab("export", save(tmp_path) / "backbone.safetensors", "--format", format) == 0
    if format == "onnx":
        file = session(tmp_path / "backbone.onnx")
        assert [output.name for output in file.get_outputs()] == ["stride_4", "stride_8", "stride_16", "stride_32"]
        pixels = torch.randint(256, (3, 3, 45, 90), dtype=torch.uint8)
        found = file.run(None, {"pixels": pixels.numpy(), "sizes": np.array([[45, 90]] * 3)})
        backbone = read_backbone(tmp_path / "backbone.safetensors")
        with torch.no_grad():
            for ours, theirs in zip(found, backbone(backbone.normalize(pixels)), strict=True):
                torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-3, atol=1e-3)
