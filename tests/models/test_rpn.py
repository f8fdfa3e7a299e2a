"""The region proposal network: losses by formula, proposals by loops, and what must not break it."""

import math

import pytest
import torch
from torch import Tensor

from visionlab.models.rpn import RPN, ProposalLimits
from visionlab.ops import nms
from visionlab.structures import ImageBatch, Target

STRIDES = [8, 16]


def make_batch(targets: list[Target] | None = None) -> ImageBatch:
    pixels = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    return ImageBatch(pixels=pixels, sizes=[(64, 80), (50, 96)], targets=targets or [], seeds=[1, 2])


def make_target(boxes: list[list[float]], crowd: list[bool] | None = None) -> Target:
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(
        tensor, torch.zeros(len(boxes), dtype=torch.int64), torch.tensor(crowd or [False] * len(boxes)).bool()
    )


def make_features() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 64 // s, 96 // s, generator=generator) for s in STRIDES]


def make_rpn(**settings) -> RPN:
    torch.manual_seed(0)
    rpn = RPN(4, STRIDES, **{"anchor_sizes": [[16], [32]], **settings})
    for layer in (rpn.conv, rpn.objectness, rpn.offsets):
        torch.nn.init.normal_(layer.weight, std=0.4)
    return rpn


def losses_of(rpn: RPN, features: list[Tensor], batch: ImageBatch) -> dict[str, Tensor]:
    return rpn.losses(rpn.predict(features, batch.padded_size), batch)


def proposals_of(
    rpn: RPN, features: list[Tensor], batch: ImageBatch, limits: ProposalLimits | None = None
) -> list[Tensor]:
    return rpn.propose(rpn.predict(features, batch.padded_size), batch.sizes, limits or rpn.test_limits)


def slow_predictions(rpn: RPN, features: list[Tensor], image: int) -> list[tuple[int, float, list[float], list[float]]]:
    """(level, score, offsets, anchor) of every anchor in order, read off the layers one by one."""
    rows = []
    for level, (feature, stride, size) in enumerate(zip(features, STRIDES, (16, 32), strict=True)):
        hidden = torch.relu(rpn.conv(feature))
        scores, offsets = rpn.objectness(hidden)[image].tolist(), rpn.offsets(hidden)[image].tolist()
        for y in range(feature.shape[2]):
            for x in range(feature.shape[3]):
                for a, ratio in enumerate((0.5, 1, 2)):
                    half_height, half_width = round(size * math.sqrt(ratio) / 2), round(size / math.sqrt(ratio) / 2)
                    anchor = [
                        x * stride - half_width,
                        y * stride - half_height,
                        x * stride + half_width,
                        y * stride + half_height,
                    ]
                    rows.append((level, scores[a][y][x], [offsets[4 * a + i][y][x] for i in range(4)], anchor))
    return rows


def test_losses_by_formula():
    rpn, features = make_rpn(samples_per_image=40), make_features()
    targets = [make_target([[10, 8, 30, 25], [40, 20, 70, 60]]), make_target([[60, 10, 90, 42]])]
    picked = []
    sampler = rpn.sampler

    def spy(matches, seed):
        rows, chosen = sampler(matches, seed)
        picked.append([(row, matches[row].item()) for row in rows[chosen].tolist()])
        return rows, chosen

    rpn.sampler = spy
    losses = losses_of(rpn, features, make_batch(targets))

    objectness = boxes = count = 0.0
    for image, rows in enumerate(picked):
        predictions = slow_predictions(rpn, features, image)
        for row, match in rows:
            _, score, offsets, anchor = predictions[row]
            probability = 1 / (1 + math.exp(-score))
            objectness -= math.log(probability if match >= 0 else 1 - probability)
            count += 1
            if match >= 0:
                box = targets[image].boxes[match].tolist()
                width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
                aims = (
                    (box[0] + box[2] - anchor[0] - anchor[2]) / 2 / width,
                    (box[1] + box[3] - anchor[1] - anchor[3]) / 2 / height,
                    math.log((box[2] - box[0]) / width),
                    math.log((box[3] - box[1]) / height),
                )
                for offset, aim in zip(offsets, aims, strict=True):
                    distance = abs(offset - aim)
                    boxes += distance**2 * 9 / 2 if distance < 1 / 9 else distance - 1 / 18
    assert count == 80
    assert losses["objectness"].item() == pytest.approx(objectness / count, rel=1e-4)
    assert losses["boxes"].item() == pytest.approx(boxes / count, rel=1e-4)
    assert boxes > 0


def test_proposals_by_loops():
    rpn, features = make_rpn(test_candidates=50, test_proposals=30), make_features()
    batch = make_batch()
    proposals = proposals_of(rpn, features, batch)
    for image, (height, width) in enumerate(batch.sizes):
        predictions, kept = slow_predictions(rpn, features, image), []
        for level in range(2):
            best = sorted((p for p in predictions if p[0] == level), key=lambda p: -p[1])[:50]
            boxes, scores = [], []
            for _, score, (dx, dy, dw, dh), (x1, y1, x2, y2) in best:
                x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
                w, h = (x2 - x1) * math.exp(min(dw, 4.135)), (y2 - y1) * math.exp(min(dh, 4.135))
                x1, x2 = (min(max(v, 0), width) for v in (x - w / 2, x + w / 2))
                y1, y2 = (min(max(v, 0), height) for v in (y - h / 2, y + h / 2))
                if x2 - x1 >= 1e-3 and y2 - y1 >= 1e-3:
                    boxes.append([x1, y1, x2, y2])
                    scores.append(score)
            for row in nms(torch.tensor(boxes), torch.tensor(scores), 0.7).tolist():
                kept.append((scores[row], boxes[row]))
        expected = torch.tensor([box for _, box in sorted(kept, key=lambda pair: -pair[0])[:30]])
        torch.testing.assert_close(proposals[image], expected, rtol=0, atol=1e-3)
        assert not proposals[image].requires_grad


def test_the_number_of_proposals_is_what_the_caller_asks_for():
    rpn = make_rpn(test_proposals=3, train_proposals=7)
    for limits, count in ((rpn.test_limits, 3), (rpn.train_limits, 7), (ProposalLimits(50, 5), 5)):
        for batch in (make_batch(), make_batch([make_target([])] * 2)):  # whether there are targets or not
            assert [len(found) for found in proposals_of(rpn, make_features(), batch, limits)] == [count, count]


def test_samples_depend_on_seeds_alone():
    rpn, features = make_rpn(samples_per_image=10), make_features()
    batch = make_batch([make_target([[10, 8, 30, 25]]), make_target([[60, 10, 90, 42]])])
    first = losses_of(rpn, features, batch)
    torch.manual_seed(1234)
    assert losses_of(rpn, features, batch) == first
    batch.seeds = [3, 4]
    assert losses_of(rpn, features, batch) != first


def test_anchors_in_crowds_do_not_count():
    rpn, seen = make_rpn(), []
    rpn.sampler = lambda matches, seed: seen.append(matches) or (torch.arange(1), torch.ones(1, dtype=torch.bool))
    everything = make_target([[0, 0, 96, 64], [8, 8, 24, 24]], [True, False])
    losses_of(rpn, make_features(), make_batch([everything, make_target([])]))
    anchors = torch.tensor([row[3] for row in slow_predictions(rpn, make_features(), 0)])
    inside = (anchors[:, 0] >= 0) & (anchors[:, 1] >= 0) & (anchors[:, 2] <= 96) & (anchors[:, 3] <= 64)
    assert set(seen[0][inside].tolist()) == {0, -2}
    assert (seen[0] >= 0).any()
    assert (seen[1] == -1).all()


def test_predictions_that_are_not_finite_are_not_proposed():
    rpn, features = make_rpn(), make_features()
    features[0][0, 0, 0, 0] = math.nan
    features[1][1, 1, 1, 1] = math.inf
    for proposals in proposals_of(rpn, features, make_batch()):
        assert len(proposals) > 0
        assert proposals.isfinite().all()
    features[0][:] = features[1][:] = math.nan
    assert [len(proposals) for proposals in proposals_of(rpn, features, make_batch())] == [0, 0]


def test_anchor_steps():
    # 80 pixels over 3 columns of stride 32: torchvision's step is 26.
    features = [torch.zeros(1, 4, 2, 3)]
    batch = ImageBatch(pixels=torch.zeros(1, 3, 64, 80, dtype=torch.uint8), sizes=[(64, 80)])
    for steps, expected in (("stride", [0, 32, 64]), ("image", [0, 26, 52])):
        rpn = RPN(4, [32], anchor_sizes=[[8]], anchor_ratios=(1.0,), anchor_steps=steps)
        torch.nn.init.zeros_(rpn.offsets.weight)
        centers = (proposals_of(rpn, features, batch)[0][:, 2] - 4).unique().tolist()
        assert [round(center) for center in centers] == expected


def test_default_anchors_are_eight_strides_and_need_no_rule_per_level():
    cells = [RPN(4, [4, 8]).get_buffer(f"cell_anchors_{i}") for i in range(2)]
    assert [cell[1].tolist() for cell in cells] == [[-16, -16, 16, 16], [-32, -32, 32, 32]]


@pytest.mark.parametrize("sizes", [[[16]], [[16], [32, 64]], [[16], [32], [64]]])
def test_anchor_sizes_that_do_not_fit_the_levels(sizes):
    with pytest.raises(ValueError, match="anchor_sizes: expected 2 lists"):
        RPN(4, STRIDES, anchor_sizes=sizes)


@pytest.mark.parametrize(
    "settings",
    [
        {"anchor_sizes": [[8.0], [0.0]]},
        {"anchor_sizes": [[], []]},
        {"anchor_ratios": ()},
        {"anchor_ratios": (1.0, 0.0)},
        {"positive_iou": 7.0},
        {"negative_iou": 0.8},
        {"samples_per_image": -4},
        {"positive_fraction": 1.5},
        {"smooth_l1_beta": -1.0},
        {"nms_threshold": -1.0},
        {"train_candidates": 0},
        {"train_proposals": 0},
        {"test_candidates": 0},
        {"test_proposals": 0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=f"^{next(iter(settings))}: expected"):
        RPN(4, STRIDES, **settings)
