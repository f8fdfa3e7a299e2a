"""Every head, neck and pool of the tables: what each must do, and that each place that CONTRIBUTING lists has it."""

import re
from pathlib import Path
from typing import Any

import pytest
import test_api
import test_overfits
import torch
import yaml
from tiny_runs import OTHER_HEADS
from torch import Tensor

from visionlab.models.detector import DEFAULT_HEAD, HEADS, NECKS, build_detector, read_detector, save_detector
from visionlab.models.pools import POOLS
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.structures import ImageBatch, Target

ROOT = Path(__file__).parents[2]
CLASSES = ["cat", "dog", "cow"]
FILES = {"simple_pyramid": "vit_pyramid"}  # names of files other than the row's
RESNET = {"name": "resnet10t"}
VIT = {"name": "vit_tiny_patch16_224", "image_size": 64, "options": {"depth": 1}}

# Sizes for tests, one row for each of the tables.
SMALL_HEADS: dict[str, dict[str, Any]] = {
    "fast_rcnn": {"fc_channels": 16},
    "rfcn": {"map_channels": 16, "pool": {"name": "ps_roi_pool", "output_size": 3}},
    "res5": {"pool": {"name": "roi_align", "output_size": 4}},
}
SMALL_NECKS: dict[str, dict[str, Any]] = {
    "fpn": {"backbone": RESNET, "neck": {"channels": 16}},
    "simple_pyramid": {"backbone": VIT, "neck": {"channels": 16}},
    "single_level": {"backbone": {**RESNET, "output_stride": 16}, "neck": {"channels": 16}},
}
# What some heads need of the other parts.
BODIES: dict[str, dict[str, Any]] = {
    "res5": {"backbone": {**RESNET, "roi_stage": True}, "neck": {"name": "single_level"}},
}


def detector_with(
    head: str = "fast_rcnn", neck: str | None = None, pool: str | None = None, norm: str = "train", **settings
) -> TwoStageDetector:
    torch.manual_seed(0)
    small = SMALL_NECKS.get(neck or "fpn", {"backbone": RESNET, "neck": {}})
    small = BODIES.get(head, small) if neck is None else small
    of_pool = {"pool": {"name": pool, "output_size": 4}} if pool else {}  # 4 * 4 divides the channels
    return build_detector(
        CLASSES,
        backbone=small["backbone"] | ({} if norm == "train" else {"norm": norm}),
        neck={"name": neck or "fpn", **small["neck"]},
        rpn={"samples_per_image": 64, "train_candidates": 100, "test_proposals": 20},
        head={"name": head, "score_threshold": 0.0, **SMALL_HEADS.get(head, {}), **of_pool, **settings},
    )


PARTS = [{"head": head} for head in HEADS] + [{"neck": neck} for neck in NECKS] + [{"pool": pool} for pool in POOLS]
PARTS.append({"head": "rfcn", "pool": "deform_ps_roi_pool"})


def name_of(part: dict[str, str]) -> str:
    return " ".join(word for item in part.items() for word in item)


@pytest.fixture(params=PARTS, ids=name_of)
def detector(request):
    return detector_with(**request.param)


def make_batch(objects: bool = True) -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    boxes = torch.tensor([[5.0, 8.0, 40.0, 50.0], [30.0, 20.0, 60.0, 62.0]])[: 2 * objects]
    crowd = torch.zeros(len(boxes), dtype=torch.bool)
    targets = [Target(boxes, torch.tensor([0, 2])[: len(boxes)], crowd) for _ in range(2)]
    return ImageBatch(pixels=pixels, sizes=[(64, 64), (64, 60)], targets=targets, seeds=[0, 1])


def gradients(detector: TwoStageDetector, batch: ImageBatch) -> dict[str, Tensor | None]:
    losses = detector.losses(batch)
    assert list(losses) == ["rpn/objectness", "rpn/boxes", "head/classes", "head/boxes"]
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    return {name: parameter.grad for name, parameter in detector.named_parameters() if parameter.requires_grad}


def test_losses_are_finite_and_reach_every_parameter(detector):
    for name, grad in gradients(detector, make_batch()).items():
        assert grad is not None, name
        assert grad.isfinite().all(), name


@pytest.mark.parametrize("crowd", [False, True])
def test_images_without_objects(detector, crowd):
    batch = make_batch(False)
    if crowd:
        batch.targets = [Target(torch.tensor([[0.0, 0, 64, 64]]), torch.tensor([1]), torch.tensor([True]))] * 2
    assert all(grad is not None and grad.isfinite().all() for grad in gradients(detector, batch).values())


def test_a_file_gives_the_same_detections(detector, tmp_path):
    save_detector(detector, tmp_path / "a")
    again = read_detector(tmp_path / "a")
    assert again.settings == detector.settings
    for found, peer in zip(again.detect(make_batch()), detector.detect(make_batch()), strict=True):
        assert len(found) > 0
        assert torch.equal(found.boxes, peer.boxes)
        assert torch.equal(found.scores, peer.scores)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_tells_its_rows_of_classes(name):
    head = detector_with(head=name).head
    state = head.state_dict()
    assert head.class_blocks()
    for tensor, extra in head.class_blocks().items():
        assert len(state[tensor]) % (len(CLASSES) + extra) == 0, tensor


# ------------------------------------------------------------------------------------ where each row must be found


def written(path: str, pattern: str) -> bool:
    file = ROOT / path
    return file.is_file() and re.search(pattern, file.read_text()) is not None


def chosen_by_a_config(section: str, name: str, unnamed: str, folder: str = "") -> bool:
    configs = (yaml.safe_load(path.read_text()) for path in (ROOT / "configs" / folder).rglob("*.yaml"))
    detectors = [config for config in configs if config.get("task") == "detect"]
    return any((config.get(section) or {}).get("name", unnamed) == name for config in detectors)


def is_public(table: str, name: str) -> bool:
    return name in test_api.CHOICES[table].split()


def places_of_head(name: str) -> dict[str, bool]:
    return {
        "`visionlab/models/NAME_head.py`": written(f"visionlab/models/{name}_head.py", r"class \w+\(RoIHead\)"),
        "`visionlab/models/detector.py`": name in HEADS,
        "`tests/models/test_NAME_head.py`": (ROOT / f"tests/models/test_{name}_head.py").is_file(),
        "`tests/models/test_parts.py`": name in SMALL_HEADS,
        "`tests/tiny_runs.py`": name == DEFAULT_HEAD or name in OTHER_HEADS,
        "`tests/test_api.py`": is_public("visionlab.models.detector.HEADS", name),
        "`tests/models/test_overfits.py`": name in test_overfits.heads(),
        "`configs/compare/detectors/`": chosen_by_a_config("head", name, DEFAULT_HEAD, "compare/detectors"),
        "`configs/`": chosen_by_a_config("head", name, DEFAULT_HEAD),
    }


def places_of_neck(name: str) -> dict[str, bool]:
    file = FILES.get(name, name)
    return {
        "`visionlab/models/NAME.py`": written(f"visionlab/models/{file}.py", r"class \w+\((Neck|Pyramid)\)"),
        "`visionlab/models/detector.py`": name in NECKS,
        "`tests/models/test_NAME.py`": (ROOT / f"tests/models/test_{file}.py").is_file(),
        "`tests/models/test_parts.py`": name in SMALL_NECKS,
        "`tests/test_api.py`": is_public("visionlab.models.detector.NECKS", name),
    }


def places_of_pool(name: str) -> dict[str, bool]:
    kind = POOLS[name].__name__ if name in POOLS else name
    return {
        "`visionlab/models/pools.py`": name in POOLS,
        "`tests/models/test_pools.py`": written("tests/models/test_pools.py", rf"\b{kind}\("),
        "`tests/test_api.py`": is_public("visionlab.models.pools.POOLS", name),
    }


KINDS = {"head": (HEADS, places_of_head), "neck": (NECKS, places_of_neck), "pool": (POOLS, places_of_pool)}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (table, _) in KINDS.items() for name in table])
def test_every_place_has_the_part(kind: str, name: str):
    absent = [place.replace("NAME", name) for place, there in KINDS[kind][1](name).items() if not there]
    assert not absent, f"{kind} {name} is missing in {', '.join(absent)}"


@pytest.mark.parametrize("kind", KINDS)
def test_contributing_lists_these_places_and_no_others(kind: str):
    places = KINDS[kind][1]("no_such_part")
    assert not any(places.values())
    steps = (ROOT / "CONTRIBUTING.md").read_text().partition(f"## Add a {kind}\n")[2].partition("\n## ")[0]
    assert re.findall(r"^- (`[^`]+`)", steps, re.MULTILINE) == list(places)
