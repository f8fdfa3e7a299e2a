"""multi_scale_roi_align against roi_align of each level, and MultiScaleRoIAlign against torchvision."""

from collections import OrderedDict

import pytest
import torch
from contract import Contract, randn
from torch import Tensor

from visionlab.ops import MultiScaleRoIAlign, multi_scale_roi_align, roi_align
from visionlab.ops.multi_scale_roi_align import assign_levels

SCALES = [1 / 4, 1 / 8, 1 / 16]
SETTINGS = [(2, True), (2, False), (-1, True), (-1, False)]


def make_boxes(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes of all levels, the first of them of exactly the canonical size."""
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(count, 2, generator=generator) * 60
    sides = 2 ** (torch.rand(count, 2, generator=generator) * 6 + 3)
    sides[:1] = 32
    images = (torch.arange(count) % 2)[:, None]
    return torch.cat([images, corners, corners + sides], 1).to(dtype)


def make_features(channels: int = 3, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> list[Tensor]:
    return [randn((2, channels, 24 >> i, 20 >> i), i, dtype, channels_last) for i in range(3)]


def level_by_hand(box: list[float]) -> int:
    side = ((box[3] - box[1]) * (box[4] - box[2])) ** 0.5
    for level, limit in enumerate((32, 64)):  # 32 pixels belong to scale 1 / 8, and each level ends at its double
        if side < limit * (1 - 1e-6):
            return level
    return 2


def expected(features: list[Tensor], boxes: Tensor, sampling_ratio: int, aligned: bool) -> Tensor:
    rows = []
    for i, box in enumerate(boxes.tolist()):
        level = level_by_hand(box)
        rows.append(roi_align(features[level], boxes[i : i + 1], (3, 2), SCALES[level], sampling_ratio, aligned))
    return torch.cat(rows)


def pool(features: list[Tensor], boxes: Tensor, sampling_ratio: int = 2, aligned: bool = True) -> Tensor:
    return multi_scale_roi_align(
        features, boxes, (3, 2), SCALES, sampling_ratio, aligned, canonical_scale=32, canonical_level=3
    )


class TestMultiScaleRoIAlign(Contract):
    gradients = (0, 1)
    dynamic = {2: {0: "K"}}  # noqa: RUF012
    batched = (0, 1)

    def tensors(self, dtype: torch.dtype = torch.float32, channels_last: bool = False, count: int = 4) -> tuple:
        return *make_features(3, dtype, channels_last)[1:], make_boxes(count, dtype)

    def call(self, *tensors: Tensor) -> Tensor:
        *features, boxes = tensors
        return multi_scale_roi_align(
            features, boxes, (3, 2), SCALES[1:], 2, True, canonical_scale=32, canonical_level=3
        )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_roi_align_of_each_level(settings, channels_last: bool):
    features = [f.requires_grad_() for f in make_features(37, torch.float64, channels_last)]
    boxes = make_boxes(40, torch.float64)
    output, one_by_one = pool(features, boxes, *settings), expected(features, boxes, *settings)
    torch.testing.assert_close(output, one_by_one, rtol=0, atol=1e-12)
    grad = torch.randn_like(output)
    for a, b in zip(*[torch.autograd.grad(o, features, grad) for o in (output, one_by_one)], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_maps_of_different_formats():
    features = make_features(16)
    boxes = make_boxes(20)
    answer = pool(features, boxes)
    features[1] = features[1].contiguous(memory_format=torch.channels_last)
    assert pool(features, boxes).equal(answer)
    assert pool([features[1], features[1], features[2]], boxes).is_contiguous(memory_format=torch.channels_last)


def test_a_box_of_exactly_the_canonical_size_stays_on_its_level():
    sides = torch.tensor([111.9, 112, 223.9, 224, 447.9, 448, 895.9, 896, 5000, 0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    levels = assign_levels(boxes, [1 / 4, 1 / 8, 1 / 16, 1 / 32])
    assert levels.tolist() == [0, 1, 1, 2, 2, 3, 3, 3, 3, 0]
    assert assign_levels(torch.tensor([[torch.nan, 0, 1, 1], [4, 4, 0, 9]]), [1 / 8, 1 / 16]).tolist() == [0, 0]


@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_module_equals_torchvision(sampling_ratio: int):
    torchvision = pytest.importorskip("torchvision")
    maps = OrderedDict((str(i), randn((2, 8, 64 >> i, 80 >> i), i).requires_grad_()) for i in range(4))
    boxes = [make_boxes(30)[:, 1:], make_boxes(9)[:, 1:]]
    sizes = [(256, 320), (200, 301)]
    for names, settings in (
        (list("0123"), {}),
        (list("12"), {"canonical_scale": 60, "canonical_level": 3}),
        (["2"], {}),
    ):
        theirs = torchvision.ops.MultiScaleRoIAlign(names, (7, 5), sampling_ratio, **settings)
        ours = MultiScaleRoIAlign(names, (7, 5), sampling_ratio, **settings)
        answers = [module(maps, boxes, sizes) for module in (ours, theirs)]
        torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
        assert ours.scales == theirs.scales
        assert repr(ours) == repr(theirs)
        grad = randn(answers[0].shape, 5)
        used = [maps[name] for name in names]
        for a, b in zip(*[torch.autograd.grad(answer, used, grad) for answer in answers], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_maps_without_boxes_have_a_gradient_of_zero():
    features = [f.requires_grad_() for f in make_features()]
    boxes = torch.tensor([[0.0, 0, 0, 8, 8]])
    pool(features, boxes).sum().backward()
    assert [int(f.grad.count_nonzero()) > 0 for f in features] == [True, False, False]
    pool(features, boxes[:0]).sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": []}, "features: expected 1 to 8 maps, and scales as many numbers, got 0 and 3"),
        ({"scales": [1.0]}, "features: expected 1 to 8 maps, and scales as many numbers, got 3 and 1"),
        ({"scales": [1.0, 0.5, 0.0]}, "scales: expected positive numbers that fall from map to map, got"),
        ({"scales": [0.25, 0.5, 1.0]}, "scales: expected positive numbers that fall from map to map, got"),
        ({"boxes": torch.zeros(2, 4)}, r"boxes: expected shape \(K, 5\), got \(2, 4\)"),
        ({"boxes": [torch.zeros(2, 4)]}, "a list of one tensor for each of 2 images, got 1"),
        ({"output_size": 0}, "output_size: expected .* at least 1, got 0"),
    ],
)
def test_messages(change: dict, message: str):
    arguments = {"features": make_features(), "boxes": make_boxes(2), "output_size": 2, "scales": SCALES}
    with pytest.raises(ValueError, match=f"multi_scale_roi_align: .*{message}"):
        multi_scale_roi_align(**{**arguments, **change})


def test_maps_that_do_not_fit_each_other():
    features = make_features()
    for other, message in (
        (torch.zeros(2, 4, 3, 3), r"features\[2\]: expected shape \(2, 3, H, W\), got \(2, 4, 3, 3\)"),
        (torch.zeros(2, 3, 0, 3), r"features\[2\]: expected pixels"),
        (torch.zeros(2, 3, 3, 3).double(), r"features\[2\]: expected the dtype of features\[0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            pool([*features[:2], other], make_boxes(2))


def test_hostile_boxes():
    boxes = make_boxes(3)
    boxes[1, 2] = torch.nan
    with pytest.raises(RuntimeError, match=r"boxes: expected finite numbers, got .* in box 1"):
        pool(make_features(), boxes)
    levels = torch.tensor([0, 1, 7])
    with pytest.raises(RuntimeError, match=r"levels: expected levels in \[0, 3\), got 7 in box 2"):
        torch.ops.visionlab.multi_scale_roi_align(make_features(), make_boxes(3), levels, 2, 2, SCALES, 2, True)
