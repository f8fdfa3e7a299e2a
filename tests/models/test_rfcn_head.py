"""R-FCN's head against scalar loops in float64, and what its maps are."""

import math

import pytest
import torch
from torch import Tensor

from visionlab.models.detector import build_detector, save_detector
from visionlab.models.detector_transfer import load_detector_weights
from visionlab.models.pool import PositionSensitivePool
from visionlab.models.pools import POOLS
from visionlab.models.rfcn_head import RFCNHead
from visionlab.models.roi_head import to_rois
from visionlab.structures import ImageBatch, Target

CLASSES = 3
STRIDE = 8
POSITION_SENSITIVE = [name for name, pool in POOLS.items() if issubclass(pool, PositionSensitivePool)]
SMALL = {
    "backbone": {"name": "resnet10t"},
    "neck": {"name": "fpn", "channels": 8},
    "rpn": {"train_candidates": 100, "test_proposals": 20},
}


def make_features(strides: tuple[int, ...] = (STRIDE,)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 48 // s, 64 // s, generator=generator, dtype=torch.float64) for s in strides]


def make_proposals(count: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    corner = torch.rand(2, count, 2, generator=generator, dtype=torch.float64) * 36
    boxes = torch.cat((corner, corner + 4 + torch.rand(corner.shape, generator=generator) * 20), dim=2)
    boxes[:, 0] = torch.tensor([50.0, 30, 70, 60])  # partly outside the image
    return list(boxes)


def make_batch() -> ImageBatch:
    targets = [
        Target(torch.tensor(boxes), torch.tensor(labels), torch.zeros(len(labels), dtype=torch.bool))
        for boxes, labels in (([[10.0, 8, 30, 25], [30.0, 20, 60, 44]], [2, 0]), ([[35.0, 10, 60, 42]], [1]))
    ]
    for target in targets:
        target.boxes = target.boxes.double()
    return ImageBatch(pixels=torch.zeros(2, 3, 48, 64).byte(), sizes=[(48, 64)] * 2, targets=targets, seeds=[1, 2])


def make_head(strides: tuple[int, ...] = (STRIDE,), **settings) -> RFCNHead:
    torch.manual_seed(0)
    head = RFCNHead(4, list(strides), CLASSES, **{"map_channels": 3, **settings}).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


# ------------------------------------------------------------------------------------------------ by scalar loops


def convolve(weight: list, bias: list, pixels: list[list[list[float]]]) -> list:
    """Return a 1x1 convolution of a map that is indexed by row, column, channel."""
    return [
        [[b + sum(map(float.__mul__, w, pixel)) for w, b in zip(weight, bias, strict=True)] for pixel in row]
        for row in pixels
    ]


def mean_of_pixels(plane, box: list[float], i: int, j: int, k: int) -> float:
    """Return bin (i, j) of R-FCN's pooling, of a plane that is a function of row and column."""

    def touched(part: int, first: int, last: int, size: int) -> range:
        length = max(last - first, 1)
        ends = (first + math.floor(part * length / k), first + math.ceil((part + 1) * length / k))
        return range(*(min(max(end, 0), size - 1) for end in ends))

    x1, y1, x2, y2 = (math.floor(v / STRIDE + 0.5) for v in box)
    rows, columns = touched(i, y1, y2, 48 // STRIDE), touched(j, x1, x2, 64 // STRIDE)
    values = [plane(y, x) for y in rows for x in columns]
    return sum(values) / len(values) if values else 0.0


def between(plane, y: float, x: float) -> float:
    height, width = 48 // STRIDE, 64 // STRIDE
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    down, right = y - top, x - left
    above = (1 - right) * plane(top, left) + right * plane(top, left + 1)
    return (1 - down) * above + down * ((1 - right) * plane(top + 1, left) + right * plane(top + 1, left + 1))


def mean_of_samples(plane, box: list[float], i: int, j: int, k: int) -> float:
    x1, y1, x2, y2 = (v / STRIDE - 0.5 for v in box)
    tall, wide = (y2 - y1) / k, (x2 - x1) / k
    places = [0.25, 0.75]  # two samples on each side of a bin
    values = [between(plane, y1 + (i + a) * tall, x1 + (j + b) * wide) for a in places for b in places]
    return sum(values) / 4


def votes(head: RFCNHead, feature: Tensor, rois: Tensor, k: int) -> tuple[list[list[float]], list[list[float]]]:
    """Return the scores of each RoI, and all its offsets in one list."""
    bin_of = {"ps_roi_pool": mean_of_pixels, "ps_roi_align": mean_of_samples}[
        next(name for name, kind in POOLS.items() if type(head.class_pool) is kind)
    ]
    layers = {name: (p.flatten(1) if p.dim() > 1 else p).tolist() for name, p in head.state_dict().items()}
    maps = []
    for image in feature.permute(0, 2, 3, 1).tolist():
        source = convolve(layers["map_conv.weight"], layers["map_conv.bias"], image)
        source = [[[max(v, 0.0) for v in pixel] for pixel in row] for row in source]
        maps.append([convolve(layers[f"{n}.weight"], layers[f"{n}.bias"], source) for n in ("classes", "offsets")])
    found: tuple[list, list] = ([], [])
    for image, *box in rois.tolist():
        for of_roi, table in zip(found, maps[int(image)], strict=True):
            of_roi.append([])
            for output in range(len(table[0][0]) // k**2):
                bins = [
                    bin_of(lambda y, x, c=(output * k + i) * k + j, t=table: t[y][x][c], box, i, j, k)
                    for i in range(k)
                    for j in range(k)
                ]
                of_roi[-1].append(sum(bins) / k**2)
    return found


@pytest.mark.parametrize("agnostic", [True, False], ids=["agnostic", "per class"])
@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("pool", ["ps_roi_pool", "ps_roi_align"])
def test_forward_and_losses_by_scalar_loops(pool, k, agnostic):
    head = make_head(pool={"name": pool, "output_size": k}, class_agnostic=agnostic, samples_per_image=8)
    features, proposals, batch = make_features(), make_proposals(), make_batch()
    picked, sampler = [], head.sampler

    def spy(matches, seed):
        rows, chosen = sampler(matches, seed)
        picked.append([(row, matches[row].item()) for row in rows[chosen].tolist()])
        return rows, chosen

    head.sampler = spy
    losses = head.losses(features, proposals, batch)
    candidates = [torch.cat((p, t.boxes)) for p, t in zip(proposals, batch.targets, strict=True)]
    rois = to_rois([c[[row for row, _ in rows]] for c, rows in zip(candidates, picked, strict=True)])
    scores, offsets = votes(head, features[0], rois, k)

    own_scores, own_offsets = head.predict(head.hidden(head.maps(features), rois))
    torch.testing.assert_close(own_scores, torch.tensor(scores, dtype=torch.float64), rtol=0, atol=1e-10)
    assert own_offsets.shape == (len(rois), 1 if agnostic else CLASSES, 4)

    classes = boxes = 0.0
    matches = [(image, match) for image, rows in enumerate(picked) for _, match in rows]
    for n, ((image, match), (_, x1, y1, x2, y2)) in enumerate(zip(matches, rois.tolist(), strict=True)):
        label = CLASSES if match < 0 else batch.targets[image].labels[match].item()
        classes -= math.log(math.exp(scores[n][label]) / sum(map(math.exp, scores[n])))
        if match >= 0:
            box = batch.targets[image].boxes[match].tolist()
            aims = (
                10 * (box[0] + box[2] - x1 - x2) / 2 / (x2 - x1),
                10 * (box[1] + box[3] - y1 - y2) / 2 / (y2 - y1),
                5 * math.log((box[2] - box[0]) / (x2 - x1)),
                5 * math.log((box[3] - box[1]) / (y2 - y1)),
            )
            for coordinate, aim in enumerate(aims):
                distance = abs(offsets[n][4 * (0 if agnostic else label) + coordinate] - aim)
                boxes += distance**2 * 9 / 2 if distance < 1 / 9 else distance - 1 / 18
    assert boxes > 0
    assert losses["classes"].item() == pytest.approx(classes / len(rois), rel=1e-10)
    assert losses["boxes"].item() == pytest.approx(boxes / len(rois), rel=1e-10)


# ------------------------------------------------------------------------------------------------ what the maps are


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize(
    ("settings", "boxes"),
    [({}, 4), ({"background_box": True}, 8), ({"class_agnostic": False}, 4 * CLASSES)],
    ids=["the paper's", "the released code's", "per class"],
)
def test_how_many_maps_there_are(settings, boxes, k):
    head = make_head(pool={"name": "ps_roi_align", "output_size": k}, **settings)
    maps = head.maps(make_features())
    assert [each.shape[1] for each in maps] == [k**2 * (CLASSES + 1), boxes * k**2]
    scores, offsets = head.predict(head.hidden(maps, to_rois(make_proposals())))
    assert (scores.shape[1], offsets.shape[1]) == (CLASSES + 1, CLASSES if boxes == 4 * CLASSES else 1)


def test_of_the_released_codes_boxes_only_the_second_is_looked_at():
    head, plain = make_head(background_box=True), make_head()
    half = len(head.offsets.bias) // 2
    state = head.state_dict()
    plain.load_state_dict(
        state | {"offsets.weight": state["offsets.weight"][half:], "offsets.bias": state["offsets.bias"][half:]}
    )
    batch = make_batch()
    losses = head.losses(make_features(), make_proposals(), batch)
    assert losses == plain.losses(make_features(), make_proposals(), batch)
    losses["boxes"].backward()
    assert not head.offsets.weight.grad[:half].any()
    assert head.offsets.weight.grad[half:].any()


def test_the_first_weights_are_those_of_the_released_code():
    torch.manual_seed(0)
    head = RFCNHead(64, [16], 20)
    for layer in (head.map_conv, head.classes, head.offsets):
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert head.map_conv.out_channels == 1024
    assert head.settings.class_agnostic


@pytest.mark.parametrize("pool", POSITION_SENSITIVE)
def test_each_roi_votes_on_its_level(pool):
    settings = {"pool": {"name": pool, "output_size": 3, "canonical_size": 14}}
    head = make_head((8, 16), **settings)
    features, rois = make_features((8, 16)), to_rois(make_proposals())
    levels = head.class_pool.levels_of(rois)
    assert levels.unique().tolist() == [0, 1]
    scores, offsets = head.predict(head.hidden(head.maps(features), rois))
    for level, stride in enumerate((8, 16)):
        alone = make_head((stride,), **settings)
        alone.load_state_dict(head.state_dict())
        own = alone.predict(alone.hidden(alone.maps([features[level]]), rois[levels == level]))
        torch.testing.assert_close((scores[levels == level], offsets[levels == level]), own, rtol=0, atol=1e-12)


def test_deformable_r_fcn_has_offsets_for_each_class_and_for_boxes():
    torch.manual_seed(0)
    head = RFCNHead(4, [8], CLASSES, map_channels=6, pool={"name": "deform_ps_roi_pool", "output_size": 3})
    assert head.class_pool.offset_conv.weight.shape == (2 * 9 * (CLASSES + 1), 6, 1, 1)
    assert head.box_pool.offset_conv.weight.shape == (2 * 9, 6, 1, 1)
    assert not any(p.any() for name, p in head.named_parameters() if "offset_conv" in name)
    assert [each.shape[1] for each in head.maps([torch.rand(1, 4, 6, 8)])] == [36, 36, 72, 18]
    assert (head.class_pool.gamma, head.class_pool.sample_per_part) == (0.1, 4)


# -------------------------------------------------------------------------------------------------- rows of classes


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"background_box": True},
        {"class_agnostic": False, "map_channels": None},
        {"pool": {"name": "deform_ps_roi_pool", "modulated": True}},
    ],
    ids=["agnostic", "released", "per class", "deformable"],
)
def test_rows_follow_the_names_of_classes(settings, tmp_path):
    settings = {"name": "rfcn", "map_channels": 4, **settings}
    settings["pool"] = {"name": "ps_roi_pool", "output_size": 3, **settings.get("pool", {})}
    theirs = build_detector(["ant", "bee", "cat"], **SMALL, head=settings)
    with torch.no_grad():
        for parameter in theirs.head.parameters():
            parameter.uniform_(-1, 1)
    save_detector(theirs, tmp_path / "detector.safetensors")
    ours = build_detector(["dog", "cat", "ant"], **SMALL, head=settings)
    load_detector_weights(ours, tmp_path)
    features = [torch.rand(1, 8, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32)]
    rois = torch.tensor([[0, 5.0, 8, 40, 50], [0, 30, 20, 50, 62]])
    (scores, offsets), (peer, peer_offsets) = (
        head.predict(head.hidden(head.maps(features), rois)) for head in (ours.head, theirs.head)
    )
    torch.testing.assert_close(scores[:, [1, 2, 3]], peer[:, [2, 0, 3]])
    if settings.get("class_agnostic", True):
        torch.testing.assert_close(offsets, peer_offsets)
    else:
        torch.testing.assert_close(offsets[:, [1, 2]], peer_offsets[:, [2, 0]])


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("pool", [name for name in POOLS if name not in POSITION_SENSITIVE])
def test_a_pool_whose_bins_share_maps_is_refused_with_the_reason(pool):
    with pytest.raises(ValueError, match=rf"^pool\.name: expected a position-sensitive pool.*its own, got {pool}$"):
        RFCNHead(4, [8], CLASSES, pool={"name": pool})


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"map_channels": 0}, "map_channels: expected"),
        ({"class_agnostic": False, "background_box": True}, "background_box: no effect"),
        ({"pool": {"name": "average"}}, r"pool\.name: expected"),
        ({"pool": {"name": "ps_roi_pool", "output_size": 0}}, r"pool\.output_size: expected"),
        ({"pool": {"name": "ps_roi_align", "sampling_ratio": -1}}, r"pool\.sampling_ratio: expected"),
        ({"pool": {"name": "deform_ps_roi_pool", "gamma": 0.0}}, r"pool\.gamma: expected"),
    ],
)
def test_what_is_wrong_is_named(settings, key):
    with pytest.raises(ValueError, match=f"^{key}"):
        RFCNHead(4, [8], CLASSES, **settings)
