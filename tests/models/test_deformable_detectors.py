"""Whole deformable detectors: untrained they are plain ones, and one step is enough that they look elsewhere."""

import pytest
import torch
from torch import Tensor

from visionlab.models.detector import build_detector
from visionlab.models.pool import PoolSettings, PositionSensitivePool
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.ops.deform_conv2d import DeformConv2d
from visionlab.ops.deform_ps_roi_pool import deform_ps_roi_pool
from visionlab.structures import ImageBatch, Target

NECKS = {
    "single_level": ({"output_stride": 16}, {"name": "single_level", "channels": 16}),
    "fpn": ({}, {"name": "fpn", "channels": 16}),
}
POOLS = {"fast_rcnn": "deform_roi_pool", "rfcn": "deform_ps_roi_pool"}
WIDTH = {"fast_rcnn": {"fc_channels": 16}, "rfcn": {"map_channels": 16}}


class PoolWithoutOffsets(PositionSensitivePool):
    """The operator of a deformable position-sensitive pool, without its branch."""

    def forward(self, features, rois, moves=()):
        return self.by_level(
            lambda feature, own, scale: deform_ps_roi_pool(feature, own, None, self.output_size, scale),
            features,
            rois,
        )


def build(head: str, neck: str, pool: dict, **deform) -> TwoStageDetector:
    backbone, levels = NECKS[neck]
    return build_detector(
        ["cat", "dog", "cow"],
        # Residual branches that start at zero would let no gradient through.
        backbone={"name": "resnet10t", "options": {"zero_init_last": False}, **backbone, **deform},
        neck=levels,
        rpn={"samples_per_image": 64, "train_candidates": 100, "test_proposals": 20},
        head={"name": head, "score_threshold": 0.0, **WIDTH[head], "pool": {"output_size": 3, **pool}},
    ).double()


def deformable(head: str, neck: str, modulated: bool) -> TwoStageDetector:
    torch.manual_seed(0)
    pool = {"name": POOLS[head], "modulated": modulated}
    return build(head, neck, pool, deform_stages=[4], deform_groups=4, deform_modulated=modulated)


def plain_twin(detector: TwoStageDetector, head: str, neck: str) -> TwoStageDetector:
    """Return a detector with the same weights and no branches for offsets."""
    pool = (
        {"name": "roi_align", "aligned": True, "sampling_ratio": 4} if head == "fast_rcnn" else {"name": "ps_roi_pool"}
    )
    twin = build(head, neck, pool)
    if head == "rfcn":
        for name in ("class_pool", "box_pool"):
            channels = 9 * getattr(twin.head, name).channels
            setattr(twin.head, name, PoolWithoutOffsets(channels, twin.head.strides, PoolSettings(output_size=3)))
    weights = {name: value for name, value in detector.state_dict().items() if ".offset_" not in name}
    twin.load_state_dict(weights)
    assert not any(isinstance(module, DeformConv2d) for module in twin.modules())
    return twin


def make_batch() -> ImageBatch:
    pixels = torch.randint(256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    boxes = torch.tensor([[5.0, 8.0, 40.0, 50.0], [30.0, 20.0, 60.0, 62.0]], dtype=torch.float64)
    targets = [Target(boxes, torch.tensor([0, 2]), torch.zeros(2, dtype=torch.bool)) for _ in range(2)]
    return ImageBatch(pixels=pixels, sizes=[(64, 64), (64, 60)], targets=targets, seeds=[0, 1])


def gradients(detector: TwoStageDetector) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    losses = detector.losses(make_batch())
    sum(losses.values()).backward()
    return losses, {name: parameter.grad for name, parameter in detector.named_parameters()}


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("modulated", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("head", POOLS)
def test_an_untrained_deformable_detector_is_its_plain_twin(head, modulated, neck):
    detector = deformable(head, neck, modulated)
    assert sum(isinstance(module, DeformConv2d) for module in detector.modules()) == 2
    twin = plain_twin(detector, head, neck)
    for found, peer in zip(detector.detect(make_batch()), twin.detect(make_batch()), strict=True):
        assert len(found) > 0
        torch.testing.assert_close(found.boxes, peer.boxes, rtol=0, atol=1e-10)
        torch.testing.assert_close(found.scores, peer.scores, rtol=0, atol=1e-10)
        assert torch.equal(found.labels, peer.labels)

    (losses, grads), (twin_losses, twin_grads) = gradients(detector.train()), gradients(twin.train())
    torch.testing.assert_close(losses, twin_losses, rtol=0, atol=1e-10)
    branches = grads.keys() - twin_grads.keys()
    assert len(branches) >= 6
    assert all(".offset_" in name and grads[name].any() for name in branches)
    torch.testing.assert_close({name: grads[name] for name in twin_grads}, twin_grads, rtol=0, atol=1e-8)

    parameters = dict(detector.named_parameters())
    assert not any(parameters[name].any() for name in branches)
    torch.optim.SGD(parameters.values(), lr=1e-3).step()
    assert all(parameters[name].any() for name in branches)
