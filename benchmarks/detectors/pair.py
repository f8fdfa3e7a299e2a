"""Our Faster R-CNN and torchvision's, with the same weights and settings, on the same images."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d, box_iou, clip_boxes_to_image

from visionlab.models.torchvision_weights import build_from_torchvision
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.structures import Detections, ImageBatch, Target

CLASSES = 90
OBJECTS = 8  # in an image
SAME = 0.98  # share of detections that must have a twin; rounding may turn over what suppression keeps
Size = tuple[int, int]


@dataclass
class Pair:
    """Two detectors of the same weights, and a batch in the form that each takes.

    Args:
        ours: this package's.
        theirs: torchvision's ``fasterrcnn_resnet50_fpn`` with frozen BatchNorm, as it is with pretrained weights.
        batch: what ours takes.
        images: what theirs takes.
    """

    ours: TwoStageDetector
    theirs: FasterRCNN
    batch: ImageBatch
    images: list[Tensor]

    def detect_ours(self) -> list[Detections]:
        """Return our detections."""
        return self.ours.detect(self.batch)

    @torch.no_grad()
    def detect_theirs(self) -> list[dict[str, Tensor]]:
        """Return torchvision's detections."""
        return self.theirs(self.images)

    def losses_of_theirs(self) -> dict[str, Tensor]:
        """Return torchvision's losses."""
        targets = [{"boxes": target.boxes, "labels": target.labels + 1} for target in self.batch.targets]
        return self.theirs(self.images, targets)


def build_pair(size: Size, images: int = 1) -> Pair:
    """Build both detectors; their heads are scaled to be sure of many detections of many classes."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
    )
    theirs = FasterRCNN(backbone, CLASSES + 1)
    theirs.transform.resize = lambda image, target=None: (image, target)  # images are given at the size they have
    for name, tensor in theirs.state_dict().items():
        if name.endswith("bn3.weight"):
            tensor.fill_(0.2)  # or sixteen residual blocks grow without bound
    batch = draw_batch(size, images)
    floats = [image / 255 for image in batch.pixels.contiguous()]
    with torch.no_grad():
        theirs.rpn.head.cls_logits.weight.mul_(20)
        theirs.rpn.head.bbox_pred.weight.mul_(3)
        _spread_classes(theirs.eval(), floats)
    ours = build_from_torchvision(theirs.state_dict(), [f"class {number}" for number in range(CLASSES)])
    return Pair(ours, theirs, batch, floats)


def _spread_classes(theirs: FasterRCNN, images: list[Tensor]) -> None:
    """Scale the class scores to differ between RoIs rather than between classes."""
    scores: list[Tensor] = []
    layer: Any = theirs.roi_heads.box_predictor.cls_score
    handle = layer.register_forward_hook(lambda module, inputs, output: scores.append(output))
    theirs(images)
    handle.remove()
    scale = 3 / scores[0].std(dim=0)
    layer.weight.mul_(scale[:, None])
    layer.bias.sub_(scores[0].mean(dim=0)).mul_(scale)


def draw_batch(size: Size, images: int) -> ImageBatch:
    """Return smooth noise with boxes of all sizes, channels last."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(images):
        sides = 16 * 20 ** torch.rand(OBJECTS, 2, generator=generator)
        middles = torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([width, height])
        boxes = clip_boxes_to_image(torch.cat((middles - sides / 2, middles + sides / 2), dim=1), size)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = torch.randint(0, CLASSES, (OBJECTS,), generator=generator)
        targets.append(Target(boxes, labels, torch.zeros(OBJECTS, dtype=torch.bool)))
    noise = torch.rand(images, 3, height // 8, width // 8, generator=generator)
    pixels = (nn.functional.interpolate(noise, size, mode="bilinear") * 255).to(torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return ImageBatch(pixels, [size] * images, targets, seeds=list(range(images)))


def as_jpeg(size: Size) -> bytes:
    """Return an image of the size as a JPEG file's content."""
    pixels = draw_batch(size, 1).pixels[0].permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=90)
    return file.getvalue()


def check_same(ours: list[Detections], theirs: list[dict[str, Tensor]]) -> int:
    """Refuse detections that are not the same; return how many there are."""
    total = 0
    for found, peer in zip(ours, theirs, strict=True):
        wanted = Detections(peer["boxes"], peer["scores"], peer["labels"] - 1)
        share = agreement(found, wanted, iou=0.99, score=1e-3)
        if abs(len(found) - len(wanted)) > 2 or share < SAME or not len(wanted):
            raise RuntimeError(
                f"detections: expected torchvision's {len(wanted)}, got {len(found)}, of which {share:.0%} are the same"
            )
        total += len(found)
    return total


def agreement(found: Detections, wanted: Detections, *, iou: float, score: float) -> float:
    """Return the share of the wanted detections that were found: of the same label, box and score."""
    if not len(wanted) or not len(found):
        return float(len(wanted) == len(found))
    alike = (box_iou(wanted.boxes, found.boxes) >= iou) & (wanted.labels[:, None] == found.labels)
    alike &= (wanted.scores[:, None] - found.scores).abs() <= score
    return alike.any(dim=1).float().mean().item()
