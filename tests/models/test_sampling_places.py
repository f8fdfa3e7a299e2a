"""Where deformable parts look: regular grids without offsets, moved by known ones, and where the operators sample."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

from visionlab.models.deformable_pools import DeformableRoIPool
from visionlab.models.detector import build_detector
from visionlab.models.sampling_places import SamplingPlaces, _moved_bins, has_deformable_parts, sampling_places
from visionlab.structures import ImageBatch

POOL = {"name": "deform_roi_pool", "output_size": 3}
PS_POOL = {"name": "deform_ps_roi_pool", "output_size": 3}


def detector_with(backbone: dict[str, Any] | None = None, pool: dict[str, Any] | None = None, rfcn: bool = False):
    torch.manual_seed(0)
    head = {"name": "rfcn", "map_channels": 8} if rfcn else {"name": "fast_rcnn", "fc_channels": 8}
    head |= {"pool": pool} if pool else {}
    neck = {"name": "single_level", "channels": 8} if rfcn else {"name": "fpn", "channels": 8}
    rpn = {"anchor_sizes": [[32, 64]]} if rfcn else {}
    return build_detector(["a", "b"], backbone={"name": "resnet10t", **(backbone or {})}, neck=neck, rpn=rpn, head=head)


def batch(height: int = 192, width: int = 256) -> ImageBatch:
    pixels = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return ImageBatch(pixels, [(height, width)])


def convolutions(detector) -> list[Any]:
    return [module for name, module in detector.named_modules() if name.endswith("offset_conv") and "head" not in name]


def places_of(detector, boxes, labels=None, images=None, **settings) -> SamplingPlaces:
    boxes = torch.tensor(boxes, dtype=torch.float32)
    labels = torch.tensor(labels or [0] * len(boxes))
    return sampling_places(detector, images or batch(), boxes, labels, **settings)


def points(taps) -> list[tuple[float, float]]:
    return sorted(map(tuple, taps.tolist()))


# --- convolutions ----------------------------------------------------------------------------------------------------


def test_without_offsets_the_taps_are_a_regular_grid():
    """The last three convolutions: one on cells of 32 pixels, two on cells of 16, of strides 2 and 1."""
    detector = detector_with({"deform_stages": [3, 4]})
    images = batch(512, 512)
    [taps] = places_of(detector, [[200, 180, 320, 330]], images=images).taps  # the middle is nearest to cell 8, 8
    along = [32 * 8 + 0.5 + 32 * a + 16 * b + 16 * c for a, b, c in product((-1, 0, 1), repeat=3)]
    assert points(taps) == sorted(product(along, along))
    [taps] = places_of(detector, [[200, 180, 320, 330]], images=images, layers=1).taps
    assert points(taps) == sorted(product((224.5, 256.5, 288.5), repeat=2))


def test_a_known_offset_moves_the_taps_of_its_group_only():
    detector = detector_with({"deform_stages": [4], "deform_groups": 2})
    *_, last = convolutions(detector)
    with torch.no_grad():
        moves = last.bias.view(2, 9, 2)
        moves[1, :, 0], moves[1, :, 1] = 0.25, -0.5  # rows, columns
    found = places_of(detector, [[80, 80, 110, 110]], layers=1)
    still = [(32 * column + 0.5, 32 * row + 0.5) for column in (2, 3, 4) for row in (2, 3, 4)]
    assert found.layers == 1
    assert points(found.taps[0][:9]) == sorted(still)
    assert points(found.taps[0][9:]) == sorted((x - 16, y + 8) for x, y in still)
    both = places_of(detector, [[80, 80, 110, 110]], layers=2)
    assert (both.layers, len(both.taps[0])) == (2, 2 * 81)


def test_a_modulated_convolution_moves_by_its_offsets_and_not_by_its_mask():
    detector = detector_with({"deform_stages": [4], "deform_modulated": True})
    *_, last = convolutions(detector)
    with torch.no_grad():
        last.bias[18:] = 7.0
    [taps] = places_of(detector, [[80, 80, 110, 110]], layers=1).taps
    assert points(taps) == sorted(product((64.5, 96.5, 128.5), repeat=2))


def test_taps_beyond_the_border_are_left_out():
    detector = detector_with({"deform_stages": [4]})
    [taps] = places_of(detector, [[0, 0, 8, 8]], layers=1).taps
    assert points(taps) == sorted(product((0.5, 32.5), repeat=2))


def test_layers_that_a_head_runs_on_rois_look_inside_the_box_and_then_at_the_image():
    """A box of 128 x 96 pixels is pooled to 8 x 8; the stage after it has stride 2 and then 1."""
    detector = build_detector(
        ["a", "b"],
        backbone={"name": "resnet10t", "roi_stage": True, "deform_stages": [3, 4]},
        neck={"name": "single_level"},
        rpn={"anchor_sizes": [[32, 64]]},
        head={"name": "res5", "pool": {"name": "roi_align", "output_size": 8}},
    )
    box = [[40.0, 30.0, 168.0, 126.0]]
    x, y = ([start + size * (cell + 0.5) for cell in range(8)] for start, size in ((40, 16), (30, 12)))
    [taps] = places_of(detector, box, layers=1).taps  # on 4 x 4 cells, which lie on every other of the 8
    assert points(taps) == sorted(product(*([side[2], side[4], side[6]] for side in (x, y))))
    [taps] = places_of(detector, box, layers=2).taps
    along = [[side[cell + tap] for cell in (2, 4, 6) for tap in (-1, 0, 1)] for side in (x, y)]
    assert points(taps) == sorted(product(*along))
    deeper = places_of(detector, box, layers=3)
    assert deeper.layers == 3
    assert {round((value - 0.5) % 16, 6) for value in deeper.taps[0].flatten().tolist()} == {0.0}


# --- RoI pools -------------------------------------------------------------------------------------------------------


def grid(x1, y1, width, height):
    """Return the 3 x 3 bins of a box, row by row."""
    w, h = width / 3, height / 3
    bins = [[x1 + j * w, y1 + i * h, x1 + (j + 1) * w, y1 + (i + 1) * h] for i in range(3) for j in range(3)]
    return torch.tensor(bins).view(3, 3, 4)


BOXES = [[20.0, 30.0, 80.0, 60.0], [10.0, 12.0, 250.0, 180.0]]  # of two levels of a pyramid


def test_bins_of_a_pool_of_one_for_all_classes():
    detector = detector_with(pool=POOL)
    still = torch.stack([grid(20, 30, 60, 30), grid(10, 12, 240, 168)])
    found = places_of(detector, BOXES)
    assert found.taps == []
    torch.testing.assert_close(found.bins, still)
    with torch.no_grad():
        moves = next(m for m in detector.head.pool.offset_fc if isinstance(m, torch.nn.Linear)).bias.view(2, 3, 3)
        moves[0, 0, 2], moves[1, 0, 2] = 1.0, -2.0  # x, y of the bin at the top right
    still[0, 0, 2] += torch.tensor([6.0, -6.0, 6.0, -6.0])  # a tenth of 60 x 30
    still[1, 0, 2] += torch.tensor([24.0, -33.6, 24.0, -33.6])
    torch.testing.assert_close(places_of(detector, BOXES).bins, still)


def test_bins_of_a_position_sensitive_pool_are_those_of_the_class():
    detector = detector_with(pool=PS_POOL, rfcn=True)
    still = torch.stack([grid(20, 30, 61, 31), grid(20, 30, 61, 31)])  # its boxes end after their last pixel
    boxes = [BOXES[0], BOXES[0]]
    torch.testing.assert_close(places_of(detector, boxes, [0, 1]).bins, still)
    with torch.no_grad():
        moves = detector.head.class_pool.offset_conv.bias.view(3, 2, 3, 3)
        moves[1, 0] = 1.0
    still[1, ..., 0::2] += 6.1
    torch.testing.assert_close(places_of(detector, boxes, [0, 1]).bins, still)


def test_bins_are_where_the_operator_samples():
    """On a map that holds the coordinates of its pixels, a bin's mean is the place of its middle."""
    torch.manual_seed(3)
    detector = detector_with(pool={**POOL, "sampling_ratio": 4})
    pool = detector.head.pool
    assert isinstance(pool, DeformableRoIPool)
    maps = []
    for scale in pool.scales:
        x, y = ((torch.arange(round(side * scale)) + 0.5) / scale for side in (256, 192))
        ramps = torch.stack(torch.broadcast_tensors(x, y[:, None]))
        maps.append(torch.cat((ramps, torch.zeros(6, *ramps.shape[1:])))[None])
    rois = torch.tensor([[0.0, 60, 60, 110, 100], [0.0, 90, 70, 130, 110]])
    for parameter in pool.offset_fc.parameters():
        torch.nn.init.uniform_(parameter, -0.005, 0.005)
    with torch.no_grad():
        bins = _moved_bins(pool, (maps, rois), torch.tensor([0, 0]))
        pooled = pool(maps, rois)
    still = torch.stack([grid(60, 60, 50, 40), grid(90, 70, 40, 40)])
    assert (bins - still).abs().max() > 1
    middles = (bins[..., :2] + bins[..., 2:]) / 2
    torch.testing.assert_close(pooled[:, :2].permute(0, 2, 3, 1), middles, atol=1e-3, rtol=0)


# --- both ------------------------------------------------------------------------------------------------------------


def test_a_detector_is_left_as_it_was_and_a_plain_one_looks_nowhere_else():
    detector = detector_with({"deform_stages": [4]}, POOL).train()
    modes = [module.training for module in detector.modules()]
    found = places_of(detector, BOXES)
    assert (len(found.taps), found.layers, found.bins.shape) == (2, 2, (2, 3, 3, 4))
    assert [module.training for module in detector.modules()] == modes
    assert not any(module._forward_hooks for module in detector.modules())
    twice = found.scaled(2, 3)
    torch.testing.assert_close(twice.taps[0], found.taps[0] * torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(twice.bins[..., 3], found.bins[..., 3] * 3)
    assert has_deformable_parts(detector)
    plain = detector_with()
    assert not has_deformable_parts(plain)
    assert places_of(plain, BOXES) == SamplingPlaces()
