"""The second stage: losses by formula, detections by loops, and what must not break it."""

import math

import pytest
import torch
from torch import Tensor

from visionlab.models.fast_rcnn_head import FastRCNNHead
from visionlab.models.pools import POOLS, RoIAlignPool
from visionlab.models.roi_head import to_rois
from visionlab.ops import nms
from visionlab.structures import ImageBatch, Target

CLASSES = 3
POOL = {"name": "roi_align", "output_size": 3, "canonical_size": 56}
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def make_batch(targets: list[Target] | None = None) -> ImageBatch:
    pixels = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    return ImageBatch(pixels=pixels, sizes=[(64, 80), (50, 96)], targets=targets or [], seeds=[1, 2])


def make_target(boxes: list[list[float]], labels: list[int], crowd: list[bool] | None = None) -> Target:
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(tensor, torch.tensor(labels).long(), torch.tensor(crowd or [False] * len(boxes)).bool())


def make_proposals(count: int = 40) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    corner = torch.rand(2, count, 2, generator=generator) * 40
    boxes = torch.cat((corner, corner + 4 + torch.rand(2, count, 2, generator=generator) * 30), dim=2)
    return list(boxes)


def make_features() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 64 // s, 96 // s, generator=generator) for s in (8, 16)]


def make_head(**settings) -> FastRCNNHead:
    torch.manual_seed(0)
    head = FastRCNNHead(4, [8, 16], CLASSES, **{"fc_channels": 16, "pool": POOL, **settings})
    torch.nn.init.normal_(head.classes.weight, std=1)
    torch.nn.init.normal_(head.offsets.weight, std=0.5)
    return head


def test_losses_by_formula():
    head, features, proposals = make_head(samples_per_image=16), make_features(), make_proposals()
    targets = [make_target([[10, 8, 30, 25], [40, 20, 70, 60]], [2, 0]), make_target([[60, 10, 90, 42]], [1])]
    picked = []
    sampler = head.sampler

    def spy(matches, seed):
        rows, chosen = sampler(matches, seed)
        assert chosen.all()
        picked.append([(row, matches[row].item()) for row in rows.tolist()])
        return rows, chosen

    head.sampler = spy
    losses = head.losses(features, proposals, make_batch(targets))

    candidates = [torch.cat((p, t.boxes)) for p, t in zip(proposals, targets, strict=True)]
    rois = to_rois([c[[row for row, _ in rows]] for c, rows in zip(candidates, picked, strict=True)])
    scores, offsets = head.predict(head.hidden(features, rois))
    classes = boxes = 0.0
    matches = [(image, match) for image, rows in enumerate(picked) for _, match in rows]
    for (image, match), roi, score, offset in zip(
        matches, rois.tolist(), scores.tolist(), offsets.tolist(), strict=True
    ):
        label = CLASSES if match < 0 else targets[image].labels[match].item()
        classes -= math.log(math.exp(score[label]) / sum(map(math.exp, score)))
        if match >= 0:
            box, (_, x1, y1, x2, y2) = targets[image].boxes[match].tolist(), roi
            aims = (
                10 * (box[0] + box[2] - x1 - x2) / 2 / (x2 - x1),
                10 * (box[1] + box[3] - y1 - y2) / 2 / (y2 - y1),
                5 * math.log((box[2] - box[0]) / (x2 - x1)),
                5 * math.log((box[3] - box[1]) / (y2 - y1)),
            )
            for value, aim in zip(offset[label], aims, strict=True):
                distance = abs(value - aim)
                boxes += distance**2 * 9 / 2 if distance < 1 / 9 else distance - 1 / 18
    assert losses["classes"].item() == pytest.approx(classes / 32, rel=1e-4)
    assert losses["boxes"].item() == pytest.approx(boxes / 32, rel=1e-4)
    assert boxes > 0


def test_objects_are_proposals_and_crowds_are_not():
    head, seen = make_head(), []
    head.sampler = lambda matches, seed: seen.append(matches) or (torch.arange(1), torch.ones(1, dtype=torch.bool))
    target = make_target([[10, 8, 30, 25], [0, 0, 80, 64]], [2, 0], [False, True])
    far_away = torch.tensor([[50.0, 40.0, 60.0, 50.0]])
    head.losses(make_features(), [far_away, far_away], make_batch([target, make_target([], [])]))
    assert seen[0].tolist() == [-2, 0]
    assert seen[1].tolist() == [-1]


def test_rows_that_only_fill_up_do_not_count():
    targets = [make_target([[10, 8, 30, 25]], [2]), make_target([], [])]
    head = make_head()
    keep = torch.arange(6)
    head.sampler = lambda matches, seed: (keep, torch.ones(6, dtype=torch.bool))
    expected = head.losses(make_features(), make_proposals(), make_batch(targets))
    head.sampler = lambda matches, seed: (torch.arange(9), torch.arange(9) < 6)
    losses = head.losses(make_features(), make_proposals(), make_batch(targets))
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name])


def test_detections_by_loops():
    head = make_head(score_threshold=0.2, nms_threshold=0.4, max_detections=12)
    features, proposals, batch = make_features(), make_proposals(), make_batch()
    detections = head.detect(features, proposals, batch.sizes)
    with torch.no_grad():
        scores, offsets = head.predict(head.hidden(features, to_rois(proposals)))
    for image, (height, width) in enumerate(batch.sizes):
        found = []
        for label in range(CLASSES):
            boxes, class_scores = [], []
            for i, (x1, y1, x2, y2) in enumerate(proposals[image].tolist()):
                row = image * 40 + i
                score = math.exp(scores[row, label]) / sum(map(math.exp, scores[row].tolist()))
                dx, dy, dw, dh = (o / w for o, w in zip(offsets[row, label].tolist(), WEIGHTS, strict=True))
                x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
                w, h = (x2 - x1) * math.exp(min(dw, 4.135)), (y2 - y1) * math.exp(min(dh, 4.135))
                x1, x2 = (min(max(v, 0), width) for v in (x - w / 2, x + w / 2))
                y1, y2 = (min(max(v, 0), height) for v in (y - h / 2, y + h / 2))
                if score > 0.2 and x2 - x1 >= 0.01 and y2 - y1 >= 0.01:
                    boxes.append([x1, y1, x2, y2])
                    class_scores.append(score)
            for row in nms(torch.tensor(boxes).reshape(-1, 4), torch.tensor(class_scores), 0.4).tolist():
                found.append((class_scores[row], label, boxes[row]))
        found = sorted(found, key=lambda entry: -entry[0])[:12]
        assert len(found) > 5
        torch.testing.assert_close(detections[image].scores, torch.tensor([entry[0] for entry in found]))
        assert detections[image].labels.tolist() == [entry[1] for entry in found]
        torch.testing.assert_close(
            detections[image].boxes, torch.tensor([entry[2] for entry in found]), rtol=0, atol=1e-3
        )


def test_no_proposals_at_all():
    head, nothing = make_head(), [torch.zeros(0, 4)] * 2
    assert [len(found) for found in head.detect(make_features(), nothing, make_batch().sizes)] == [0, 0]
    losses = head.losses(make_features(), nothing, make_batch([make_target([], [])] * 2))
    sum(losses.values()).backward()
    assert {name: loss.item() for name, loss in losses.items()} == {"classes": 0, "boxes": 0}
    assert all(parameter.grad.abs().sum() == 0 for parameter in head.parameters())


def test_scores_that_are_not_finite_are_not_detected():
    head = make_head()
    torch.nn.init.constant_(head.classes.weight, math.nan)
    assert [len(found) for found in head.detect(make_features(), make_proposals(), make_batch().sizes)] == [0, 0]


def test_one_box_for_all_classes_is_that_of_classes_with_equal_boxes():
    shared, own = make_head(class_agnostic=True, score_threshold=0.1), make_head(score_threshold=0.1)
    state = shared.state_dict()
    assert state["offsets.bias"].shape == (4,)
    own.load_state_dict(
        {
            name: value.repeat(CLASSES, *[1] * (value.ndim - 1)) if "offsets" in name else value
            for name, value in state.items()
        }
    )
    targets = [make_target([[10, 8, 30, 25]], [2]), make_target([[60, 10, 90, 42]], [1])]
    losses = [head.losses(make_features(), make_proposals(), make_batch(targets)) for head in (shared, own)]
    assert losses[0]["boxes"] > 0
    torch.testing.assert_close(losses[0], losses[1])
    found, expected = (head.detect(make_features(), make_proposals(), make_batch().sizes) for head in (shared, own))
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) > 0
        torch.testing.assert_close(ours.boxes, theirs.boxes)
        torch.testing.assert_close(ours.scores, theirs.scores)


OLD = {"pool_size": 5, "sampling_ratio": 1, "aligned": True, "canonical_size": 112.0}
NEW = {"name": "roi_align", "output_size": 5, "sampling_ratio": 1, "aligned": True, "canonical_size": 112.0}


def test_the_pool_by_the_settings_it_had_in_earlier_versions():
    head = FastRCNNHead(4, [8, 16], CLASSES, fc_channels=16, **OLD)
    assert isinstance(head.pool, RoIAlignPool)
    assert {"name": "roi_align"} | {name: getattr(head.pool, name) for name in NEW if name != "name"} == NEW


@pytest.mark.parametrize("name", OLD)
def test_the_pool_is_said_in_one_way(name):
    with pytest.raises(ValueError, match=rf"^{name}: expected it as pool\.\w+ where pool is given, got both$"):
        FastRCNNHead(4, [8, 16], CLASSES, pool={"name": "roi_align"}, **{name: OLD[name]})


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_gives_losses_with_gradients_and_detections(pool):
    head = make_head(pool={"name": pool, "output_size": 2}, score_threshold=0.0)
    targets = [make_target([[10, 8, 30, 25]], [2]), make_target([[60, 10, 90, 42]], [1])]
    sum(head.losses(make_features(), make_proposals(), make_batch(targets)).values()).backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in head.parameters())
    assert all(len(found) > 0 for found in head.detect(make_features(), make_proposals(), make_batch().sizes))


@pytest.mark.parametrize("setting", [{"name": "average"}, {"output_size": 0}, {"sampling_ratio": -1}])
def test_what_a_pool_refuses_is_named(setting):
    with pytest.raises(ValueError, match=rf"^pool\.{next(iter(setting))}: expected"):
        FastRCNNHead(4, [8, 16], CLASSES, pool={"name": "roi_align", **setting})


def test_what_a_roi_looks_like_is_apart_from_what_is_predicted_from_it():
    head, rois = make_head(), to_rois(make_proposals(3))
    hidden = head.hidden(make_features(), rois)
    assert hidden.shape == (6, 16)
    scores, offsets = head.predict(hidden)
    assert (scores.shape, offsets.shape) == ((6, CLASSES + 1), (6, CLASSES, 4))


def test_strides_must_double():
    with pytest.raises(ValueError, match="twice the one before"):
        FastRCNNHead(4, [4, 16], CLASSES)


@pytest.mark.parametrize(
    "settings",
    [
        {"fc_channels": 0},
        {"positive_iou": 0.0},
        {"samples_per_image": 0},
        {"positive_fraction": -0.5},
        {"box_weights": (1.0, 1.0, 1.0, 0.0)},
        {"smooth_l1_beta": -1.0},
        {"score_threshold": 1.0},
        {"nms_threshold": 1.5},
        {"max_detections": 0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=f"^{next(iter(settings))}: expected"):
        FastRCNNHead(4, [8, 16], CLASSES, **settings)
