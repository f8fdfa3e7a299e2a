"""Detectors from settings, and through files."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from visionlab.models.backbone import Normalization
from visionlab.models.detector import NECKS, build_detector, read_detector, save_detector
from visionlab.models.neck import Neck
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.structures import ImageBatch

CLASSES = ["cat", "dog", "zèbre"]
SMALL = {
    "backbone": {"name": "resnet10t"},
    "neck": {"channels": 16},
    "rpn": {"test_proposals": 20},
    "head": {"fc_channels": 16, "score_threshold": 0.0, "box_weights": (5.0, 5.0, 2.0, 2.0)},
}


def make_batch() -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2, 3, 64, 96), generator=generator, dtype=torch.uint8)
    return ImageBatch(pixels=pixels, sizes=[(64, 80), (50, 96)])


def rewrite(path, **changes) -> None:
    """Write the file again with other metadata, or other weights under the key ``tensors``."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors |= changes.pop("tensors", {})
    save_file(tensors, path, {**metadata, **changes})


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "detector.safetensors"
    save_detector(build_detector(CLASSES, **SMALL), path, provenance={"short_side": 64})
    return path


def test_settings_are_whole_and_plain_json():
    detector = build_detector(CLASSES, **SMALL)
    assert detector.classes == CLASSES
    assert json.loads(json.dumps(detector.settings)) == detector.settings
    assert detector.settings["backbone"]["name"] == "resnet10t"
    assert detector.settings["neck"] == {"name": "fpn", "channels": 16, "extra_levels": 1, "norm": "none"}
    assert detector.settings["rpn"]["test_proposals"] == 20
    assert detector.settings["rpn"]["nms_threshold"] == 0.7
    assert build_detector(CLASSES, **detector.settings).settings == detector.settings


@pytest.mark.parametrize(
    ("backbone", "neck", "strides"),
    [
        ({"name": "resnet10t"}, {}, [4, 8, 16, 32]),
        ({"name": "resnet10t", "strides": [8, 16]}, {}, [8, 16]),
        ({"name": "resnet10t"}, {"extra_levels": 0}, [4, 8, 16, 32]),
        ({"name": "vit_tiny_patch16_224"}, {"name": "simple_pyramid"}, [4, 8, 16, 32]),
        ({"name": "vit_tiny_patch16_224"}, {"name": "simple_pyramid", "level_strides": [8, 16]}, [8, 16]),
    ],
)
def test_the_head_pools_from_all_levels_but_the_extra_ones(backbone, neck, strides):
    settings = {"head": {"fc_channels": 16, "score_threshold": 0.0}, "rpn": {"test_proposals": 5}}
    detector = build_detector(CLASSES, backbone=backbone, neck={"channels": 16, **neck}, **settings)
    assert detector.head.strides == strides
    extra = neck.get("extra_levels", 1)
    assert detector.rpn.strides == strides + [strides[-1] * 2] * extra
    assert all(len(found) > 0 for found in detector.eval().detect(make_batch()))


class Levels(Neck):
    """A neck with no setting but its width: the backbone's levels, two of which each stage looks at."""

    def __init__(self, in_channels, strides, *, channels: int = 8):
        super().__init__([channels] * len(strides), strides, proposal_levels=[2, 3], pooled_levels=[0, 1])
        self.convolutions = torch.nn.ModuleList(torch.nn.Conv2d(width, channels, 1) for width in in_channels)

    def forward(self, features):
        return [convolution(feature) for convolution, feature in zip(self.convolutions, features, strict=True)]


def test_a_neck_says_which_levels_each_stage_looks_at(monkeypatch):
    monkeypatch.setitem(NECKS, "levels", Levels)
    settings = {"head": {"fc_channels": 16, "score_threshold": 0.0}, "rpn": {"test_proposals": 5}}
    detector = build_detector(CLASSES, backbone={"name": "resnet10t"}, neck={"name": "levels"}, **settings)
    assert detector.rpn.strides == [16, 32]
    assert detector.head.strides == [4, 8]
    assert all(len(found) > 0 for found in detector.detect(make_batch()))


def test_levels_of_different_widths_are_refused(monkeypatch):
    class Uneven(Levels):
        def __init__(self, in_channels, strides):
            super().__init__(in_channels, strides)
            self.channels = list(in_channels)

    monkeypatch.setitem(NECKS, "uneven", Uneven)
    with pytest.raises(ValueError, match=r"^neck: expected levels of one number of channels, got \[64, 128, 256"):
        build_detector(CLASSES, backbone={"name": "resnet10t"}, neck={"name": "uneven"})


def test_a_file_of_an_earlier_version(tmp_path):
    head = {"fc_channels": 16, "score_threshold": 0.0, "pool": {"name": "roi_align", "output_size": 5, "aligned": True}}
    detector = build_detector(CLASSES, **{**SMALL, "head": head})
    save_detector(detector, tmp_path / "a")
    with safe_open(tmp_path / "a", framework="pt") as file:
        settings = json.loads(file.metadata()["settings"])
    pool = settings["head"].pop("pool")  # its settings stood among those of the head
    flat = {"pool_size": pool["output_size"]} | {k: pool[k] for k in ("sampling_ratio", "aligned", "canonical_size")}
    settings["head"] |= flat
    rewrite(tmp_path / "a", settings=json.dumps(settings))
    again = read_detector(tmp_path / "a")
    assert again.settings == detector.settings
    for found, peer in zip(again.detect(make_batch()), detector.detect(make_batch()), strict=True):
        assert torch.equal(found.boxes, peer.boxes)


def test_what_cannot_be_built():
    with pytest.raises(ValueError, match="at least one class"):
        build_detector([])
    with pytest.raises(ValueError, match="fpn or simple_pyramid or single_level, got 'bifpn'"):
        build_detector(CLASSES, neck={"name": "bifpn"})


def test_a_file_gives_the_same_detector(tmp_path):
    detector = build_detector(CLASSES, **SMALL)
    detector.backbone.normalization = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_detector(detector.eval(), tmp_path / "a", provenance={"short_side": 64, "images": ["x"]})
    again = read_detector(tmp_path / "a")
    assert again.classes == CLASSES
    assert again.settings == detector.settings
    assert again.provenance == {"short_side": 64, "images": ["x"]}
    assert again.backbone.normalization == detector.backbone.normalization
    assert not again.training
    for found, peer in zip(again.detect(make_batch()), detector.detect(make_batch()), strict=True):
        assert len(found) > 0
        assert torch.equal(found.boxes, peer.boxes)
        assert torch.equal(found.scores, peer.scores)


def test_metadata_is_readable_without_the_program(path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "1"
    assert json.loads(metadata["classes"]) == CLASSES
    assert json.loads(metadata["settings"])["head"]["fc_channels"] == 16
    assert json.loads(metadata["normalization"]).keys() == {"mean", "std"}
    assert json.loads(metadata["provenance"]) == {"short_side": 64}
    assert metadata["visionlab"]


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_detector(build_detector(["other"], **SMALL), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_detector_put_together_by_hand_cannot_be_saved(tmp_path):
    parts = build_detector(CLASSES, **SMALL)
    detector = TwoStageDetector(parts.backbone, parts.neck, parts.rpn, parts.head)
    with pytest.raises(ValueError, match="no settings to save"):
        save_detector(detector, tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "2"}, "expected format 1 or older, got 2, written by visionlab"),
        ({"kind": "visionlab backbone"}, "does not say it is a detector"),
        ({"classes": '["cat", "dog"]'}, "4 weights do not fit"),
        ({"tensors": {"head.fc9.weight": torch.zeros(1)}}, r"1 weights do not fit .* 'head\.fc9\.weight'"),
    ],
)
def test_files_that_are_refused(path, changes, message):
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_detector(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_files_that_are_no_safetensors(path):
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="expected a safetensors file"):
        read_detector(path)
    with pytest.raises(ValueError, match="expected a safetensors file"):
        read_detector(path.parent / "missing")
