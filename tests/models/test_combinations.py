"""Every head with every combination of the settings that combine freely, and what does not combine."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from test_parts import CLASSES, detector_with, gradients, make_batch

from visionlab.models.detector import HEADS
from visionlab.models.head_settings import HeadSettings
from visionlab.models.stage import StageSettings

BOX_LOSSES = ["smooth_l1", "l1", "giou", "diou"]
NMS = ["hard", "soft_linear", "soft_gaussian"]


@pytest.fixture(scope="module", params=product(HEADS, [False, True], [False, True]), ids=str)
def seen(request):
    """Return a head that is agnostic of classes or not, with mining or not, and what it looks at."""
    head, class_agnostic, ohem = request.param
    detector = detector_with(head=head, class_agnostic=class_agnostic, ohem=ohem, samples_per_image=16)
    with torch.no_grad():
        features = detector.features(make_batch())
        proposals = detector.propose(make_batch())
    return detector.head, [features[level] for level in detector.neck.pooled_levels], proposals


@pytest.mark.parametrize("nms", NMS)
@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_losses_gradients_and_detections(seen, box_loss, nms):
    head, features, proposals = seen
    head.settings = replace(head.settings, box_loss=box_loss, nms=nms)
    batch = make_batch()
    head.zero_grad()
    losses = head.losses(features, proposals, batch)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for found, (height, width) in zip(head.detect(features, proposals, batch.sizes), batch.sizes, strict=True):
        assert 0 < len(found) <= head.settings.max_detections
        assert len(found.boxes) == len(found.scores) == len(found.labels)
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert (found.boxes >= 0).all()
        assert (found.boxes <= torch.tensor([width, height] * 2)).all()
        assert (found.scores.diff() <= 0).all()
        assert found.scores.gt(0).all()
        assert found.scores.le(1).all()
        assert set(found.labels.tolist()) <= set(range(len(CLASSES)))


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_the_first_stage_has_the_same_box_losses(box_loss):
    detector = detector_with()
    detector.rpn.stage = replace(detector.rpn.stage, box_loss=box_loss)
    grads = gradients(detector, make_batch())
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    assert grads["rpn.offsets.weight"].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"box_loss": "giou", "smooth_l1_beta": 0.5}, "smooth_l1_beta: no effect with box_loss giou"),
        ({"box_loss": "l1", "smooth_l1_beta": 0.0}, "smooth_l1_beta: no effect with box_loss l1"),
        ({"nms_sigma": 0.3}, "nms_sigma: no effect with nms hard"),
        ({"nms": "soft_linear", "nms_sigma": 0.3}, "nms_sigma: no effect with nms soft_linear"),
        ({"nms": "soft_gaussian", "nms_threshold": 0.3}, "nms_threshold: no effect with nms soft_gaussian, which"),
        ({"nms": "soft_gaussian", "nms_sigma": 0.0}, "nms_sigma: expected more than 0, got 0.0"),
        ({"ohem": True, "positive_fraction": 0.5}, "positive_fraction: no effect with ohem, which takes"),
        ({"ohem_nms_threshold": 0.5}, "ohem_nms_threshold: no effect without ohem"),
        ({"ohem": True, "ohem_nms_threshold": 1.5}, r"ohem_nms_threshold: expected a number in \[0, 1\], got 1.5"),
    ],
    ids=lambda value: value if isinstance(value, dict) else "",
)
def test_what_has_no_effect_or_is_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        HeadSettings(**settings)


def test_what_the_first_stage_is_told_without_effect_is_refused():
    with pytest.raises(ValueError, match=r"^smooth_l1_beta: no effect with box_loss diou$"):
        StageSettings(box_loss="diou", smooth_l1_beta=1.0)
