"""The whole detector: it learns, it stays finite, and it does not care how many processes share the work."""

import pytest
import torch
from test_parts import detector_with
from torch import Tensor
from two_processes import differences, launch, save

from visionlab import distributed
from visionlab.models.detector import HEADS, build_detector
from visionlab.models.matching import BalancedSampler
from visionlab.models.norm import batch_norms
from visionlab.models.rpn import ProposalLimits
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.ops.boxes import box_iou
from visionlab.structures import ImageBatch, Target
from visionlab.tasks.detect import DetectTask

LOSSES = ["rpn/objectness", "rpn/boxes", "head/classes", "head/boxes"]


def make_detector(norm: str = "train", **head) -> TwoStageDetector:
    torch.manual_seed(0)
    return build_detector(
        ["red", "green", "blue"],
        backbone={"name": "resnet10t", "norm": norm},
        neck={"channels": 32},
        rpn={"anchor_sizes": [[12], [24], [36], [48], [64]], "samples_per_image": 64, "train_candidates": 200},
        head={"fc_channels": 64, "samples_per_image": 32, "canonical_size": 56, "sampling_ratio": 1, **head},
    )


def rectangles(count: int, seed: int = 0, size: int = 96, per_image: int = 2) -> ImageBatch:
    """Rectangles of three colors, the class, on gray noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(90, 130, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    targets = []
    for image in pixels:
        # One rectangle in each of some columns, so that none hides another.
        column = size // max(per_image, 1)
        left = torch.arange(per_image) * column + torch.randint(6, (per_image,), generator=generator)
        top = torch.randint(size // 2, (per_image,), generator=generator)
        sides = torch.randint(20, min(column - 6, size // 2), (per_image, 2), generator=generator)
        boxes = torch.stack((left, top, left + sides[:, 0], top + sides[:, 1]), dim=1)
        labels = torch.randint(3, (per_image,), generator=generator)
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            image[:, y1:y2, x1:x2] = 20
            image[label, y1:y2, x1:x2] = 230
        targets.append(Target(boxes.float(), labels, torch.zeros(per_image, dtype=torch.bool)))
    return ImageBatch(pixels=pixels, sizes=[(size, size)] * count, targets=targets, seeds=list(range(count)))


def test_losses_and_gradients():
    detector = make_detector()
    detector.rpn.sampler = BalancedSampler(10**5, 0.5)  # all anchors, so that every level has some
    losses = detector.losses(rectangles(2))
    assert list(losses) == LOSSES
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A residual branch that timm starts at zero has no gradient yet.
        assert parameter.grad.any() or name.startswith("backbone"), name


@pytest.mark.parametrize("crowd", [False, True])
def test_images_without_objects(crowd):
    detector, batch = make_detector(), rectangles(2, per_image=0)
    if crowd:
        whole = Target(torch.tensor([[-100.0, -100.0, 200.0, 200.0]]), torch.tensor([1]), torch.tensor([True]))
        batch.targets = [whole, whole]
    losses = detector.losses(batch)
    sum(losses.values()).backward()
    assert losses["rpn/boxes"] == losses["head/boxes"] == 0
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    if crowd:  # not even background to learn
        assert losses["head/classes"] == 0
        assert losses["rpn/objectness"] < 1


def test_an_object_without_area_or_outside_the_image_leaves_the_losses_finite():
    batch = rectangles(1)
    batch.targets[0].boxes = torch.tensor([[10.0, 10.0, 10.0, 40.0], [500.0, 500.0, 540.0, 540.0]])
    losses = make_detector().losses(batch)
    assert all(loss.isfinite() for loss in losses.values())


def test_detections_stay_inside_the_image_not_only_inside_the_padding():
    detector = make_detector(score_threshold=0.0).eval()
    torch.nn.init.normal_(detector.rpn.offsets.weight, std=0.5)
    torch.nn.init.normal_(detector.head.offsets.weight, std=0.5)
    batch = rectangles(3)
    batch.sizes = [(96, 50), (33, 96), (1, 1)]
    for found, (height, width) in zip(detector.detect(batch), batch.sizes, strict=True):
        assert len(found) > 0 or height == 1
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 0::2] <= width).all()
        assert (found.boxes[:, 1::2] <= height).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert (found.scores.diff() <= 0).all()


def test_pixels_in_the_padding_are_not_seen():
    detector, batch = make_detector().eval(), rectangles(1)
    batch.sizes = [(70, 60)]
    expected = detector.detect(batch)[0]
    batch.pixels[:, :, 70:] = 200
    batch.pixels[:, :, :, 60:] = 7
    torch.testing.assert_close(detector.detect(batch)[0].boxes, expected.boxes)


def test_detect_does_not_look_at_targets_and_has_no_gradient():
    detector, batch = make_detector(score_threshold=0.0).eval(), rectangles(2)
    first = detector.detect(batch)
    batch.targets, batch.seeds = [], []
    for found, again in zip(first, detector.detect(batch), strict=True):
        assert torch.equal(found.boxes, again.boxes)
        assert torch.equal(found.scores, again.scores)
        assert not found.boxes.requires_grad
        assert not found.scores.requires_grad


def test_losses_in_evaluation_mode_are_those_of_training_when_nothing_depends_on_the_mode():
    detector, batch = make_detector(norm="frozen"), rectangles(2)
    expected = detector.train().losses(batch)
    losses = detector.eval().losses(batch)
    assert list(losses) == LOSSES
    assert losses == expected
    assert detector.losses(batch, limits=ProposalLimits(5, 5))["head/classes"] != expected["head/classes"]


def test_a_call_gives_losses_in_training_mode_and_detections_in_evaluation_mode():
    detector, batch = make_detector(norm="frozen", score_threshold=0.0), rectangles(2)
    assert detector.train()(batch) == detector.losses(batch)
    for found, expected in zip(detector.eval()(batch), detector.detect(batch), strict=True):
        assert torch.equal(found.boxes, expected.boxes)


def modes(detector: TwoStageDetector) -> list[bool]:
    return [module.training for module in detector.modules()]


@pytest.mark.parametrize("call", ["detect", "propose"])
def test_detecting_changes_neither_statistics_nor_modes(call):
    detector, batch = make_detector(score_threshold=0.0).train(), rectangles(2)
    detector.backbone.model.layer1.eval()  # a mode of its own
    detector.head.eval()
    before, state = modes(detector), {name: value.clone() for name, value in detector.state_dict().items()}
    assert any(before)
    assert not all(before)
    first = getattr(detector, call)(batch)
    assert modes(detector) == before
    for name, value in detector.state_dict().items():
        assert torch.equal(value, state[name]), name
    again = getattr(detector.eval(), call)(batch)
    for found, expected in zip(first, again, strict=True):
        boxes = (found, expected) if call == "propose" else (found.boxes, expected.boxes)
        assert len(found) > 0
        assert torch.equal(*boxes)


def test_modes_come_back_after_an_error():
    detector, batch = make_detector(norm="frozen").train(), rectangles(1)
    before = modes(detector)
    detector.head.predict = lambda hidden: 1 / 0
    with pytest.raises(ZeroDivisionError):
        detector.detect(batch)
    assert modes(detector) == before


@pytest.mark.parametrize("name", HEADS)
def test_groups_of_rois_give_the_same_detections(name, monkeypatch):
    torch.manual_seed(0)
    detector, batch = detector_with(name), rectangles(2)
    expected, sizes, hidden = detector.detect(batch), [], detector.head.hidden
    monkeypatch.setattr("visionlab.models.roi_head.RAN_AT_ONCE", 15)
    monkeypatch.setattr(detector.head, "hidden", lambda maps, rois: sizes.append(len(rois)) or hidden(maps, rois))
    for found, wanted in zip(detector.detect(batch), expected, strict=True):
        torch.testing.assert_close(found.boxes, wanted.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-4, atol=1e-5)
    assert len(sizes) > 1
    assert max(sizes) == 15


def test_proposals_by_themselves():
    detector, batch = make_detector(), rectangles(2)
    few = detector.propose(batch, limits=ProposalLimits(50, 7))
    assert [len(found) for found in few] == [7, 7]
    assert all(len(found) > 7 for found in detector.propose(batch))
    assert not few[0].requires_grad


def test_what_the_losses_need_is_asked_for():
    detector, batch = make_detector(), rectangles(2)
    batch.seeds = [1]
    with pytest.raises(ValueError, match=r"each of 2 images, got 2 targets and 1 seeds"):
        detector.losses(batch)
    batch.targets = []
    with pytest.raises(ValueError, match="got 0 targets"):
        detector.losses(batch)


def test_under_autocast_boxes_and_losses_are_float32():
    detector, batch = make_detector(), rectangles(2)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.losses(batch)
        found = detector.eval().detect(batch)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {found[0].boxes.dtype, found[0].scores.dtype} == {torch.float32}
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters())
    for name, loss in make_detector().losses(batch).items():
        torch.testing.assert_close(losses[name], loss, rtol=0.1, atol=0.02)


def test_channels_last_changes_nothing():
    detector, batch = make_detector().eval(), rectangles(2)
    expected = detector.losses(batch)
    losses = detector.to(memory_format=torch.channels_last).losses(batch)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-3, atol=1e-5)


def test_a_detector_in_double_precision_computes_in_it():
    detector, batch = make_detector().double(), rectangles(2)
    losses = detector.losses(batch)
    assert {loss.dtype for loss in losses.values()} == {torch.float64}
    sum(losses.values()).backward()
    loss = losses["rpn/objectness"].item()
    assert loss != torch.tensor(loss).float().item()  # not rounded on the way
    (found, *_) = detector.eval().detect(batch)
    assert {found.boxes.dtype, found.scores.dtype} == {torch.float64}


@pytest.mark.slow
def test_learns_a_few_images_by_heart():
    detector, batch = make_detector(), rectangles(3)
    optimizer = torch.optim.AdamW(detector.parameters())
    num_steps = 80
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / num_steps)
        batch.seeds = [1000 * step + i for i in range(len(batch))]
        losses = detector.losses(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert sum(losses.values()) < 0.5  # it starts at 3
    for found, target in zip(detector.eval().detect(batch), batch.targets, strict=True):
        best = slice(len(target.boxes))
        assert (found.scores[best] > 0.8).all()
        assert sorted(found.labels[best].tolist()) == sorted(target.labels.tolist())
        overlap, which = box_iou(target.boxes, found.boxes[best]).max(dim=1)
        assert (overlap > 0.7).all()
        assert torch.equal(found.labels[best][which], target.labels)


# ------------------------------------------------------------------------------------- two processes against one

BATCH, STEPS = 4, 3


def part(batch: ImageBatch, rows: slice) -> ImageBatch:
    return ImageBatch(batch.pixels[rows], batch.sizes[rows], batch.targets[rows], seeds=batch.seeds[rows])


def uneven_batch(seed: int) -> ImageBatch:
    """Images of one, three and no objects and of nothing but a crowd, so that no two have equal counts of anything."""
    batch = rectangles(BATCH, seed=seed)
    targets = [rectangles(1, seed=seed, per_image=count).targets[0] for count in (1, 3, 0)]
    whole = Target(torch.tensor([[0.0, 0.0, 96.0, 96.0]]), torch.tensor([1]), torch.tensor([True]))
    batch.targets = [*targets[:2], whole, targets[2]]
    batch.seeds = [1000 * seed + i for i in range(BATCH)]
    return batch


RUNS = {
    **{head: {"head": head, "norm": "frozen"} for head in HEADS},
    "deformable": {"head": "rfcn", "pool": "deform_ps_roi_pool", "norm": "frozen"},
    "ohem": {"norm": "frozen", "ohem": True},
    "batch statistics": {"norm": "train"},
}


def train(head: str = "fast_rcnn", **settings) -> dict[str, Tensor]:
    """Return losses, gradients and state of three steps, in double precision, on this process's share of each batch."""
    distributed.start(torch.device("cpu"))
    rank, share = distributed.rank(), BATCH // distributed.world_size()
    detector = make_detector(**settings) if head == "fast_rcnn" else detector_with(head, **settings)
    task = DetectTask(detector.double())
    for layer in batch_norms(task):
        torch.nn.init.uniform_(layer.weight, 0.5, 1.5)  # a fresh network has blocks that are scaled by 0
    replica = distributed.replicate(task, torch.device("cpu")).train()
    trained = {name: parameter for name, parameter in task.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.001, momentum=0.9)
    found = {}
    for step in range(STEPS):
        torch.manual_seed(100 * step + rank)  # nothing may depend on the generators of a process
        losses = replica(part(uneven_batch(step), slice(rank * share, (rank + 1) * share)))
        sum(losses.values()).backward()
        for name, loss in losses.items():
            found[f"step {step}, loss {name}"] = distributed.average(loss)
        for name, parameter in trained.items():
            found[f"step {step}, gradient of {name}"] = parameter.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
    return found | {f"state: {name}": value.clone() for name, value in task.state_dict().items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    """What two processes found in each run, by rank."""
    return launch(__file__, tmp_path_factory.mktemp("two"))


@pytest.mark.slow
@pytest.mark.parametrize("run", [run for run in RUNS if run != "batch statistics"])
def test_two_processes_with_half_of_each_batch_are_one_with_all(two, run):
    one = train(**RUNS[run])
    for name in LOSSES:
        assert all(one[f"step {step}, loss {name}"] > 0 for step in range(STEPS))
    for rank in range(2):
        assert differences(one, two[rank][run]) == []


@pytest.mark.slow
def test_batch_statistics_of_a_process_are_its_own(two):
    assert differences(train(**RUNS["batch statistics"]), two[0]["batch statistics"])


if __name__ == "__main__":
    save({run: train(**settings) for run, settings in RUNS.items()})
