"""Online hard example mining: the same as scoring every proposal by itself, and no trace of the look at all of them."""

import math

import pytest
import torch
from test_fast_rcnn_head import CLASSES, WEIGHTS, make_batch, make_features, make_head, make_proposals, make_target
from test_parts import detector_with
from test_parts import make_batch as detection_batch
from torch import nn

from visionlab.models.detector import HEADS
from visionlab.models.fast_rcnn_head import FastRCNNHead
from visionlab.models.roi_head import to_rois

SETTINGS = {"ohem": True, "samples_per_image": 8, "ohem_nms_threshold": 0.3}


def make_targets():
    crowd = [[0, 0, 25, 64]]
    first = make_target([[10, 8, 30, 25], [40, 20, 70, 60], *crowd], [2, 0, 1], [False, False, True])
    return [first, make_target([[60, 10, 90, 42]], [1])]


def iou(a, b) -> float:
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def in_crowd(box, crowd) -> bool:
    shared = max(min(box[2], crowd[2]) - max(box[0], crowd[0]), 0)
    shared *= max(min(box[3], crowd[3]) - max(box[1], crowd[1]), 0)
    return shared >= 0.5 * (box[2] - box[0]) * (box[3] - box[1])


def losses_one_by_one(head, features, proposals, targets) -> dict[str, float]:
    """Return both losses with every proposal, object and pair looked at by itself, in plain numbers."""
    kept = []
    for image, target in enumerate(targets):
        objects = [box for box, crowd in zip(target.boxes.tolist(), target.crowd, strict=True) if not crowd]
        labels = [label for label, crowd in zip(target.labels.tolist(), target.crowd, strict=True) if not crowd]
        crowds = target.boxes[target.crowd].tolist()
        scored = []
        for box in [*proposals[image].tolist(), *objects]:
            roi = torch.tensor([[image, *box]], dtype=torch.double)
            scores, offsets = (part[0].tolist() for part in head.predict(head.hidden(head.maps(features), roi)))
            best = max(range(len(objects)), key=lambda row: iou(box, objects[row]))
            positive = iou(box, objects[best]) >= 0.5
            if not positive and any(in_crowd(box, crowd) for crowd in crowds):
                continue
            label = labels[best] if positive else CLASSES
            classes = math.log(sum(map(math.exp, scores))) - scores[label]
            boxes = 0.0
            if positive:
                aim, sides = objects[best], (box[2] - box[0], box[3] - box[1])
                aims = [WEIGHTS[i] * (aim[i] + aim[i + 2] - box[i] - box[i + 2]) / 2 / sides[i] for i in (0, 1)]
                aims += [WEIGHTS[i + 2] * math.log((aim[i + 2] - aim[i]) / sides[i]) for i in (0, 1)]
                for value, goal in zip(offsets[label], aims, strict=True):
                    distance = abs(value - goal)
                    boxes += distance**2 * 9 / 2 if distance < 1 / 9 else distance - 1 / 18
            scored.append((classes + boxes, classes, boxes, box))
        worst = []
        for candidate in sorted(scored, key=lambda row: -row[0]):
            if all(iou(candidate[3], other[3]) <= SETTINGS["ohem_nms_threshold"] for other in worst):
                worst.append(candidate)
        kept += worst[: SETTINGS["samples_per_image"]]
    return {"classes": sum(row[1] for row in kept) / len(kept), "boxes": sum(row[2] for row in kept) / len(kept)}


def double(tensors):
    return [tensor.double() for tensor in tensors]


def test_same_as_every_proposal_by_itself():
    head, features, proposals, targets = (
        make_head(**SETTINGS).double(),
        make_features(),
        make_proposals(),
        make_targets(),
    )
    for target in targets:
        target.boxes = target.boxes.double()
    features, proposals = double(features), double(proposals)
    losses = head.losses(features, proposals, make_batch(targets))
    expected = losses_one_by_one(head, features, proposals, targets)
    assert expected["boxes"] > 0
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-10)
    random = make_head(samples_per_image=8).double().losses(features, proposals, make_batch(targets))
    assert sum(losses.values()) > sum(random.values())


def test_nothing_random_and_nothing_of_other_images():
    head, features, proposals, targets = make_head(**SETTINGS), make_features(), make_proposals(), make_targets()
    batch, again = make_batch(targets), make_batch(targets)
    again.seeds = [7, 8]
    assert head.losses(features, proposals, batch) == head.losses(features, proposals, again)
    alone = []
    for row in (0, 1):
        one = make_batch([targets[row]])
        one.sizes, one.seeds = [batch.sizes[row]], [0]
        alone.append(head.losses([level[row : row + 1] for level in features], [proposals[row]], one))
    both = head.losses(features, proposals, batch)
    for name, loss in both.items():
        torch.testing.assert_close(loss, (alone[0][name] + alone[1][name]) / 2)


def test_fewer_proposals_than_samples_all_count_once():
    everything = {"ohem": True, "samples_per_image": 100, "ohem_nms_threshold": 1.0}
    head, targets = make_head(**everything), make_targets()
    chosen = []
    sampler = head.sampler
    head.sampler = lambda matches, seed: chosen.append(sampler(matches, seed)[1]) or sampler(matches, seed)
    found = head.losses(make_features(), make_proposals(), make_batch(targets))
    assert not chosen[0].all()  # what lies in the crowd
    plain = make_head(samples_per_image=100)
    plain.sampler = sampler
    torch.testing.assert_close(found, plain.losses(make_features(), make_proposals(), make_batch(targets)))


def test_no_proposals_and_nothing_but_a_crowd():
    head = make_head(**SETTINGS)
    crowd = make_target([[0, 0, 96, 64]], [0], [True])
    nothing = make_target([], [])
    for proposals, targets in (([torch.zeros(0, 4)] * 2, [nothing] * 2), (make_proposals(), [crowd] * 2)):
        losses = head.losses(make_features(), proposals, make_batch(targets))
        sum(losses.values()).backward()
        assert {name: loss.item() for name, loss in losses.items()} == {"classes": 0, "boxes": 0}


class NormalizedHead(FastRCNNHead):
    """A head whose RoIs pass BatchNorm."""

    def __init__(self, *parts, **settings):
        super().__init__(*parts, **settings)
        self.norm = nn.BatchNorm1d(settings["fc_channels"])

    def hidden(self, maps, rois):
        return self.norm(super().hidden(maps, rois))


def test_the_look_at_all_proposals_leaves_no_trace_in_statistics():
    pool = {"name": "roi_align", "output_size": 3, "canonical_size": 56}
    head = NormalizedHead(4, [8, 16], CLASSES, fc_channels=16, pool=pool, **SETTINGS)
    head.fc1.eval()  # a mode of its own
    seen = []
    head.norm.register_forward_hook(lambda module, rois, output: seen.append((module.training, rois[0])))
    head.losses(make_features(), make_proposals(), make_batch(make_targets()))
    assert [(training, len(rois)) for training, rois in seen] == [(False, 83), (True, 16)]
    assert head.norm.num_batches_tracked == 1
    torch.testing.assert_close(head.norm.running_mean, 0.1 * seen[1][1].mean(dim=0))
    assert head.training
    assert not head.fc1.training


@pytest.mark.parametrize("name", HEADS)
def test_statistics_of_a_whole_detector_see_each_batch_once(name):
    detector = detector_with(head=name, ohem=True).train()
    detector.losses(detection_batch())
    counts = {key: value.item() for key, value in detector.state_dict().items() if key.endswith("num_batches_tracked")}
    assert counts == dict.fromkeys(counts, 1)
    assert counts
    assert all(module.training for module in detector.modules())


def test_under_autocast_every_parameter_has_its_gradient():
    found = []
    for enabled in (False, True):
        head = make_head(**SETTINGS)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = head.losses(make_features(), make_proposals(), make_batch(make_targets()))
        sum(losses.values()).backward()
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        found.append({name: parameter.grad for name, parameter in head.named_parameters()})
    for name, grad in found[0].items():
        assert found[1][name] is not None, name
        assert nn.functional.cosine_similarity(found[1][name].flatten(), grad.flatten(), dim=0) > 0.9, name


def test_a_loss_that_is_not_finite_is_heard_of():
    head = make_head(**SETTINGS)
    nn.init.constant_(head.offsets.bias, math.nan)
    assert head.losses(make_features(), make_proposals(), make_batch(make_targets()))["boxes"].isnan()


def test_rois_are_those_of_the_samples():
    head, proposals, targets = make_head(**SETTINGS), make_proposals(), make_targets()
    images, rois = head.sample(proposals, make_batch(targets))
    hard, hard_rois = head._hardest(head.maps(make_features()), images, rois)
    candidates = [
        torch.cat((boxes, target.boxes[~target.crowd])) for boxes, target in zip(proposals, targets, strict=True)
    ]
    expected = to_rois([boxes[image.rows] for boxes, image in zip(candidates, hard, strict=True)])
    assert torch.equal(hard_rois, expected)
    assert [len(image.rows) for image in hard] == [8, 8]
