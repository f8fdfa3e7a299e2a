"""Every family of detectors learns eight photographs by heart, which it cannot where a box or a label goes astray."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from visionlab.data.annotated import AnnotatedPart
from visionlab.data.coco import CocoDataset
from visionlab.data.loader import EvalLoader
from visionlab.data.samples import DetectionSamples
from visionlab.data.transforms import EvaluationResize
from visionlab.eval.detection import DetectionEvaluator
from visionlab.models.detector import DEFAULT_HEAD, build_detector
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.seeding import derive_seed
from visionlab.tasks.detect import detect_all
from visionlab.train.optim import adamw

LONG_SIDE, LEAST_SIDE = 320, 16  # of an image, and of an object in it, in pixels
BATCH = 2
NARROW = {"channels": [32, 64, 128, 256], "stem_width": 16, "stem_type": "deep"}


def backbone(**settings: Any) -> dict[str, Any]:
    """A narrow ResNet-18. Groups normalize: two images are too few for statistics."""
    return {"name": "resnet18", "norm": "group", "options": NARROW, **settings}


RPN = {
    "samples_per_image": 128,
    "train_candidates": 300,
    "train_proposals": 200,
    "test_candidates": 300,
    "test_proposals": 100,
}
HEAD = {"samples_per_image": 64, "positive_fraction": 0.5}
ONE_LEVEL = {
    "neck": {"name": "single_level", "channels": 128},
    "rpn": {**RPN, "anchor_sizes": [[20, 32, 48, 72, 110, 160, 220, 300]]},
}
DEFORMABLE = {"strides": [16], "output_stride": 16, "deform_stages": [4], "deform_groups": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "faster_rcnn_fpn": {
        "backbone": backbone(strides=[8, 16, 32]),
        "neck": {"name": "fpn", "channels": 64},
        "rpn": {**RPN, "anchor_sizes": [[20, 32], [48, 72], [110, 160], [220, 300]]},
        "head": {**HEAD, "fc_channels": 256, "pool": {"name": "roi_align", "canonical_size": 112}},
    },
    "faster_rcnn_c4": {
        "backbone": backbone(roi_stage=True),
        "neck": {"name": "single_level"},
        "rpn": ONE_LEVEL["rpn"],
        "head": {**HEAD, "name": "res5", "pool": {"name": "roi_align", "output_size": 7}},
    },
    "faster_rcnn_dc5": {
        "backbone": backbone(strides=[16], output_stride=16),
        "head": {**HEAD, "fc_channels": 256},
        **ONE_LEVEL,
    },
    "deformable_faster_rcnn": {
        "backbone": backbone(**DEFORMABLE),
        "head": {**HEAD, "fc_channels": 256, "pool": {"name": "deform_roi_pool"}},
        **ONE_LEVEL,
    },
    "rfcn": {
        "backbone": backbone(strides=[16], output_stride=16),
        "head": {**HEAD, "name": "rfcn", "map_channels": 256, "pool": {"name": "ps_roi_align", "output_size": 3}},
        **ONE_LEVEL,
    },
    "deformable_rfcn": {
        "backbone": backbone(**DEFORMABLE),
        "head": {**HEAD, "name": "rfcn", "map_channels": 256, "pool": {"name": "deform_ps_roi_pool", "output_size": 3}},
        **ONE_LEVEL,
    },
}


# Updates, and their largest learning rate. R-FCN needs more: its maps start from small weights, as in the original.
RECIPES: dict[str, tuple[int, float]] = {"rfcn": (800, 2e-3), "deformable_rfcn": (800, 2e-3)}
RECIPE = (480, 1e-3)


def heads() -> set[str]:
    """Return the heads that some family has."""
    return {settings["head"].get("name", DEFAULT_HEAD) for settings in FAMILIES.values()}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_eight_photographs_are_learned_by_heart(family, test_data):
    samples = photographs(test_data / "coco_tiny16")
    torch.manual_seed(0)
    detector = build_detector(samples.dataset.classes, **FAMILIES[family])
    memorize(detector, samples, *RECIPES.get(family, RECIPE))
    assert ap50(detector, samples) >= 0.9


def photographs(folder: Path) -> DetectionSamples:
    """Return the eight images to train on, with objects that are no crowd, and not small at the size of training."""
    annotations = folder / "annotations" / "instances_train2017.json"
    content = json.loads(annotations.read_text())
    scale = {image["id"]: LONG_SIDE / max(image["height"], image["width"]) for image in content["images"]}
    content["annotations"] = [
        each
        for each in content["annotations"]
        if not each["iscrowd"] and min(each["bbox"][2:]) * scale[each["image_id"]] >= LEAST_SIDE
    ]
    used = {each["category_id"] for each in content["annotations"]}
    content["categories"] = [category for category in content["categories"] if category["id"] in used]
    dataset = CocoDataset(AnnotatedPart(content, str(folder / "train2017"), str(annotations)))
    return DetectionSamples(dataset, EvaluationResize(short_side=LONG_SIDE, max_size=LONG_SIDE))


def memorize(detector: TwoStageDetector, samples: DetectionSamples, steps: int, rate: float) -> None:
    """Train on batches of two of the images, always at the same size and never changed."""
    loaded = [samples.load(index, 0) for index in range(len(samples.files))]
    deformable = any(".offset_" in name for name, _ in detector.named_parameters())
    optimizer = adamw(detector, lr=rate, lr_factors={"offset_*": 0.1} if deformable else None)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, steps, pct_start=0.1)
    detector.train().to(memory_format=torch.channels_last)
    order: list[int] = []
    for step in range(steps):
        order = order or torch.randperm(len(loaded)).tolist()
        chosen, order = order[:BATCH], order[BATCH:]
        seeds = [derive_seed(0, step, index) for index in chosen]
        batch = samples.collate([loaded[index] for index in chosen], chosen, seeds)
        loss = torch.stack(list(detector.losses(batch.to("cpu", channels_last=True)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10)
        optimizer.step()
        schedule.step()


def ap50(detector: TwoStageDetector, samples: DetectionSamples) -> float:
    """Return AP at an overlap of one half on the same images."""
    data = samples.dataset
    evaluator = DetectionEvaluator(data.ground_truth, data.category_ids)
    detect_all(detector, EvalLoader(samples, batch_size=BATCH, workers=0), evaluator, torch.device("cpu"), pictures=0)
    found = evaluator.metrics().summary()["AP50"]
    assert found is not None
    return found
