"""The head that runs the last stage of the backbone on RoIs: by formula, and whose parameters the stage has."""

import copy

import pytest
import torch
from test_parts import detector_with, make_batch

from visionlab.models.detector import build_detector
from visionlab.models.res5_head import Res5Head
from visionlab.models.roi_head import to_rois
from visionlab.models.roi_stage import RoIStage
from visionlab.ops import roi_align
from visionlab.train.ema import WeightAverage
from visionlab.train.optim import sgd

C4 = {"backbone": {"name": "resnet10t", "roi_stage": True}, "neck": {"name": "single_level"}, "head": {"name": "res5"}}


def test_hidden_and_predictions_by_formula():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(6, 10, 3, stride=2, padding=1)
    pool = {"name": "roi_align", "output_size": 5, "sampling_ratio": 2, "aligned": True}
    head = Res5Head(6, [16], 3, RoIStage((layer, torch.nn.ReLU()), 6, 10, 2), pool=pool)
    features = torch.randn(2, 6, 8, 9)
    rois = to_rois([torch.tensor([[3.0, 5.0, 70.0, 90.0]]), torch.tensor([[20.0, 8.0, 100.0, 40.0]] * 2)])
    found = head.hidden([features], rois)
    for roi, hidden in zip(rois, found, strict=True):
        bins = roi_align(features, roi[None], 5, 1 / 16, 2, True)
        torch.testing.assert_close(hidden, layer(bins)[0].clamp(min=0).flatten(1).mean(1))
    scores, offsets = head.predict(found)
    torch.testing.assert_close(scores, found @ head.classes.weight.T + head.classes.bias)
    torch.testing.assert_close(offsets.flatten(1), found @ head.offsets.weight.T + head.offsets.bias)
    assert offsets.shape == (3, 3, 4)


def test_defaults_are_the_papers():
    detector = build_detector(["a"], **C4)
    assert detector.head.pool.output_size == 14
    assert detector.settings["head"]["pool"]["name"] == "roi_align"
    shared = build_detector(["a", "b"], **C4 | {"head": {"name": "res5", "class_agnostic": True}})
    assert shared.head.offsets.out_features == 4
    assert shared.head.class_blocks() == {"classes.weight": 1, "classes.bias": 1}


def test_the_stage_is_registered_once():
    detector = detector_with("res5")
    names = list(detector.state_dict())
    assert [name for name in names if name.startswith("head.")] == [
        f"head.{layer}.{kind}" for layer in ("classes", "offsets") for kind in ("weight", "bias")
    ]
    assert "backbone.model.layer4.0.conv1.weight" in names
    groups = sgd(detector, lr=0.1).param_groups
    ours = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(ours) == len(set(ours)) == len(list(detector.parameters()))


def test_the_stage_goes_where_the_detector_goes():
    detector = detector_with("res5").eval()
    batch = make_batch()
    (expected, *_) = detector.detect(batch)
    other = copy.deepcopy(detector)
    assert other.head.stage.layers == (other.backbone.model.layer4,)
    assert other.head.stage.layers != detector.head.stage.layers
    with torch.no_grad():
        for parameter in detector.backbone.model.layer4.parameters():
            parameter.zero_()
    assert torch.equal(other.detect(batch)[0].scores, expected.scores)
    assert not torch.equal(detector.detect(batch)[0].scores, expected.scores)
    wide = other.double()
    assert wide.detect(batch)[0].boxes.dtype == torch.float64
    average = WeightAverage(wide, 0.9)
    with torch.no_grad():
        for parameter in wide.backbone.model.layer4.parameters():
            parameter.add_(1)
    moved = wide.detect(batch)[0].scores
    with average.applied():
        assert not torch.equal(wide.detect(batch)[0].scores, moved)


def test_training_mode_is_the_backbones():
    detector = detector_with("res5", norm="frozen").train()
    assert not detector.backbone.model.layer4[0].bn1.training
    statistics = detector_with("res5").train()
    before = statistics.backbone.model.layer4[0].bn1.running_mean.clone()
    statistics.losses(make_batch())
    assert not torch.equal(statistics.backbone.model.layer4[0].bn1.running_mean, before)


def test_no_rois():
    detector = detector_with("res5").eval()
    features = [torch.randn(1, detector.head.channels, 4, 4)]
    (found,) = detector.head.detect(features, [torch.zeros(0, 4)], [(64, 64)])
    assert len(found) == 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"backbone": {"name": "resnet10t"}}, "roi_stage: expected true for the head res5"),
        ({"head": {"name": "fast_rcnn"}}, "roi_stage: would have no effect, the head fast_rcnn does not run"),
        ({"neck": {"name": "single_level", "channels": 8}}, r"head.pool: expected RoIs of 256 channels .* got 8$"),
        ({"neck": {"name": "fpn", "channels": 8}}, r"head.pool: expected RoIs of 256 channels .* got 8$"),
    ],
)
def test_parts_that_do_not_fit(parts, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_detector(["a"], **C4 | parts)
    assert "\n" not in str(caught.value)
