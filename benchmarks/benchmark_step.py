"""Time a detector's training step with this package's operators and with torchvision's, in turn.

    python benchmarks/benchmark_step.py               # Faster R-CNN, ResNet-50 and FPN, two images of 480 x 640
    python benchmarks/benchmark_step.py --threads 1

The same detector with the same weights on the same images and boxes; only the operators change places. A second row has
deformable convolutions in the last three stages. One step is the losses, their gradients and an update.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torchvision
from operators.measure import interleave
from operators.report import seconds, table
from torch import Tensor
from torchvision import ops as theirs

from visionlab.models.detector import build_detector
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.ops.multi_scale_roi_align import assign_levels
from visionlab.structures import ImageBatch, Target

DETECTORS: dict[str, list[int] | None] = {"Faster R-CNN": None, "with deformable stages 2 to 4": [2, 3, 4]}
OBJECTS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2, help="in a batch")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name, stages in DETECTORS.items():
        times = measure(stages, options.images, tuple(options.size), options.rounds)
        ratio = times["theirs"]["median"] / times["ours"]["median"]
        rows.append([name, seconds(times["ours"]), seconds(times["theirs"]), f"{ratio:.2f}x"])
    title = (
        f"training step, {options.images} images of {options.size[0]} x {options.size[1]}, {options.threads} threads"
    )
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    table(["ResNet-50, FPN", "ms ± IQR/2", "torchvision's operators", "faster"], rows, f"{title}; {versions}")
    return 0


def measure(stages: list[int] | None, images: int, size: tuple[int, int], rounds: int) -> dict[str, dict[str, float]]:
    """Return the times of a step with each library's operators."""
    torch.manual_seed(0)
    detector = build_detector(["object"], backbone={"name": "resnet50", "deform_stages": stages}).train()
    detector.to(memory_format=torch.channels_last)
    batch = draw_batch(images, size)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-6)  # so small that every step finds the same proposals

    def with_torchvision() -> None:
        with operators_of_torchvision():
            step(detector, batch, optimizer)

    calls = {"ours": lambda: step(detector, batch, optimizer), "theirs": with_torchvision}
    return interleave(calls, "cpu", 0, rounds)


def draw_batch(images: int, size: tuple[int, int]) -> ImageBatch:
    """Return noise with boxes of all sizes."""
    height, width = size
    targets = []
    for _ in range(images):
        sides = 16 * 20 ** torch.rand(OBJECTS, 2)
        middles = torch.rand(OBJECTS, 2) * torch.tensor([width, height])
        boxes = torch.cat((middles - sides / 2, middles + sides / 2), dim=1)
        boxes = theirs.clip_boxes_to_image(boxes, size)
        targets.append(Target(boxes, torch.zeros(OBJECTS, dtype=torch.int64), torch.zeros(OBJECTS, dtype=torch.bool)))
    pixels = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return ImageBatch(pixels, [size] * images, targets, seeds=list(range(images)))


def step(detector: TwoStageDetector, batch: ImageBatch, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    torch.stack(list(detector.losses(batch).values())).sum().backward()
    optimizer.step()


@contextmanager
def operators_of_torchvision() -> Iterator[None]:
    """Let the detector call torchvision's operators."""
    places = {
        "visionlab.models.pools.multi_scale_roi_align": multi_scale_roi_align,
        "visionlab.models.rpn.batched_nms": theirs.batched_nms,
        "visionlab.models.matching.box_iou": theirs.box_iou,
        "visionlab.ops.deform_modules.deform_conv2d": theirs.deform_conv2d,
    }
    with ExitStack() as stack:
        for place, operator in places.items():
            stack.enter_context(patch(place, operator))
        yield


def multi_scale_roi_align(
    features: list[Tensor],
    rois: Tensor,
    output_size: int,
    scales: list[float],
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: float,
) -> Tensor:
    """Pool the boxes of each level by torchvision's RoIAlign, as its own MultiScaleRoIAlign does."""
    levels = assign_levels(rois[:, 1:], scales, canonical_scale, canonical_level)
    pooled = features[0].new_zeros((len(rois), features[0].shape[1], output_size, output_size))
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        rows = torch.where(levels == level)[0]
        pooled[rows] = theirs.roi_align(feature, rois[rows], output_size, scale, sampling_ratio, aligned)
    return pooled


if __name__ == "__main__":
    raise SystemExit(main())
