"""The detector as one graph against ``TwoStageDetector.detect``, in eager mode, exported and compiled."""

import pytest
import torch
from test_parts import PARTS, detector_with, name_of
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from visionlab.models.detector import build_detector
from visionlab.models.rpn import ProposalLimits
from visionlab.models.static_detector import StaticDetections, StaticDetector
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.structures import ImageBatch

SHAPES = [(2, 200, 264), (1, 131, 70), (3, 96, 160)]
FAST = [{"head": "fast_rcnn"}]
every_part = pytest.mark.parametrize(
    "part",
    [pytest.param(part, marks=() if part in FAST else pytest.mark.slow, id=name_of(part)) for part in PARTS],
)


def unfolded(**settings) -> TwoStageDetector:
    """A detector that computes its features as in training; so do graphs, whose bits can then be compared."""
    detector = detector_with(**settings)
    detector._features_for_inference = detector.features
    return detector


def make_pixels(images: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Images of different sizes with something in them, padded with zeros to the largest."""
    generator = torch.Generator().manual_seed(height)
    pixels = torch.randint(256, (images, 3, height, width), generator=generator, dtype=torch.uint8)
    sizes = [(height - 11 * i, width - 24 * i) for i in range(images)]
    for image, (rows, columns) in zip(pixels, sizes, strict=True):
        image[:, rows:], image[:, :, columns:] = 0, 0
    return pixels, torch.tensor(sizes)


def detect(detector: TwoStageDetector, pixels: Tensor, sizes: Tensor, **limits):
    """Give the detector a batch as a loader makes it."""
    right, below = -pixels.shape[3] % 32, -pixels.shape[2] % 32
    batch = ImageBatch(torch.nn.functional.pad(pixels, (0, right, 0, below)), [tuple(size) for size in sizes.tolist()])
    return detector.detect(batch, **limits)


def assert_same(found: StaticDetections, expected, exact: bool = False) -> None:
    assert found.counts.tolist() == [len(image) for image in expected]
    for i, image in enumerate(expected):
        count = len(image)
        assert found.labels[i, :count].equal(image.labels)
        for ours, theirs, tolerance in ((found.boxes, image.boxes, 1e-3), (found.scores, image.scores, 1e-4)):
            torch.testing.assert_close(ours[i, :count], theirs, rtol=0, atol=0 if exact else tolerance)
            assert not ours[i, count:].any()
        assert (found.labels[i, count:] == -1).all()


@pytest.mark.parametrize("part", PARTS, ids=name_of)
def test_equals_detect(part):
    detector = unfolded(**part)
    static = StaticDetector(detector)
    with torch.no_grad():
        for shape in SHAPES[:2]:
            inputs = make_pixels(*shape)
            expected = detect(detector, *inputs)
            assert all(len(image) > 0 for image in expected)
            assert_same(static(*inputs), expected, exact=True)


def test_fewer_detections_than_rows_and_more_than_fit():
    detector = detector_with(score_threshold=0.3, max_detections=7)
    with torch.no_grad():
        detector.head.classes.weight.mul_(100)
    inputs = make_pixels(*SHAPES[0])
    for limits in (ProposalLimits(1, 1), ProposalLimits(5, 3), ProposalLimits(200, 40)):
        expected = detect(detector, *inputs, limits=limits)
        found = StaticDetector(detector, limits=limits)(*inputs)
        assert_same(found, expected)
    assert found.boxes.shape == (2, 7, 4)


def test_values_that_are_not_finite_are_no_detections():
    detector = detector_with()
    with torch.no_grad():
        detector.head.offsets.bias[:4] = torch.nan
        detector.rpn.objectness.bias[1] = torch.inf
    inputs = make_pixels(*SHAPES[0])
    assert_same(StaticDetector(detector)(*inputs), detect(detector, *inputs))


def test_classes_that_share_a_place_are_all_found():
    """A coordinate shift by class would round these boxes far from the origin; sets do not move them."""
    detector = unfolded(score_threshold=0.2)
    with torch.no_grad():
        detector.head.classes.weight.zero_()
        detector.head.classes.bias.copy_(torch.tensor([5.0, 5, 5, 0]))
    inputs = make_pixels(*SHAPES[0])
    expected = detect(detector, *inputs)
    found = StaticDetector(detector)(*inputs)
    assert_same(found, expected, exact=True)
    assert found.labels[0, :3].tolist() == [0, 1, 2]  # of equal scores, as detect orders them


def test_the_detector_that_was_given_stays_as_it_was():
    detector = detector_with().train()
    static = StaticDetector(detector)
    assert detector.training
    assert all(parameter.requires_grad for parameter in detector.head.parameters())
    assert not any(module.training for module in static.modules())


@every_part
def test_exports_with_a_batch_height_and_width_of_any_size(part):
    detector = detector_with(**part)
    batch = torch.export.Dim("batch", min=1, max=16)
    sides = {2: torch.export.Dim("height", min=65, max=1024), 3: torch.export.Dim("width", min=65, max=1024)}
    program = torch.export.export(
        StaticDetector(detector),
        make_pixels(*SHAPES[0]),
        dynamic_shapes=({0: batch, **sides}, {0: batch}),
        prefer_deferred_runtime_asserts_over_guards=True,  # layers that pad as TensorFlow does ask for sizes
    )
    exported = program.module()
    for shape in SHAPES:
        inputs = make_pixels(*shape)
        assert_same(StaticDetections(*exported(*inputs)), detect(detector, *inputs))


@every_part
def test_compiles_in_one_graph(part):
    detector = detector_with(**part)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(StaticDetector(detector), fullgraph=True, backend=counter)
    inputs = make_pixels(*SHAPES[0])
    with torch.no_grad():
        assert_same(compiled(*inputs), detect(detector, *inputs))
    assert counter.frame_count == 1


def test_a_plain_vision_transformer():
    torch.manual_seed(0)
    detector = build_detector(
        ["cat"],
        backbone={"name": "vit_tiny_patch16_224", "image_size": 64, "options": {"depth": 1}},
        neck={"name": "simple_pyramid", "channels": 8},
        rpn={"test_proposals": 10},
        head={"fc_channels": 8, "score_threshold": 0.0},
    )
    inputs = make_pixels(1, 100, 140)
    assert_same(StaticDetector(detector)(*inputs), detect(detector, *inputs))
