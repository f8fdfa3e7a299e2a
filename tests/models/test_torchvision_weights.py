"""Our detector against torchvision's, with the same weights, on the same padded batch."""

import pytest
import torch
from torch import Tensor, nn

torchvision = pytest.importorskip("torchvision")

from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn  # noqa: E402
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone  # noqa: E402
from torchvision.models.detection.image_list import ImageList  # noqa: E402
from torchvision.ops import FrozenBatchNorm2d  # noqa: E402

from visionlab.models.detector import build_detector, read_detector, save_detector  # noqa: E402
from visionlab.models.rpn import ProposalLimits  # noqa: E402
from visionlab.models.torchvision_weights import build_from_torchvision, from_torchvision, to_torchvision  # noqa: E402
from visionlab.structures import ImageBatch, Target  # noqa: E402

CLASSES = [f"class {i}" for i in range(20)]
SIZES = [(150, 224), (192, 170)]  # padded to 192 x 224, and 224 is not a multiple of the coarsest stride


def random_torchvision(frozen: bool) -> FasterRCNN:
    torch.manual_seed(0)
    if frozen:
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
        )
        model = FasterRCNN(backbone, len(CLASSES) + 1)
    else:
        model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(std=0.1)
        elif name.endswith("running_var") or (".bn" in name and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        if name.endswith("bn3.weight"):
            tensor.mul_(0.3)  # or sixteen residual blocks grow without bound
    with torch.no_grad():  # heads that are sure of much: many detections, of many classes
        model.rpn.head.cls_logits.weight.mul_(20)
        model.rpn.head.bbox_pred.weight.mul_(2)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(5)
    model.eval()
    spread_classes(model, random_batch())
    return model


@torch.no_grad()
def spread_classes(model: FasterRCNN, batch: ImageBatch) -> None:
    """Scale the class scores to differ between RoIs rather than between classes."""
    scores = []
    handle = model.roi_heads.box_predictor.cls_score.register_forward_hook(lambda *call: scores.append(call[-1]))
    run_torchvision(model, batch, with_targets=False)
    handle.remove()
    layer, scale = model.roi_heads.box_predictor.cls_score, 3 / scores[0].std(dim=0)
    layer.weight.mul_(scale[:, None])
    layer.bias.sub_(scores[0].mean(dim=0)).mul_(scale)


def random_batch() -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.zeros(len(SIZES), 3, 192, 224, dtype=torch.uint8)
    targets = []
    for image, (height, width) in zip(pixels, SIZES, strict=True):
        image[:, :height, :width] = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        corner = torch.rand(12, 2, generator=generator) * torch.tensor([width - 60, height - 60])
        side = 20 + torch.rand(12, 2, generator=generator) * 40
        labels = torch.randint(len(CLASSES), (12,), generator=generator)
        targets.append(Target(torch.cat((corner, corner + side), dim=1), labels, torch.zeros(12, dtype=torch.bool)))
    return ImageBatch(pixels=pixels, sizes=SIZES, targets=targets, seeds=[0] * len(SIZES))


def spread(mask: Tensor, count: int) -> Tensor:
    """Every so many of the rows that the mask selects, ``count`` at most."""
    rows = mask.nonzero().squeeze(1)
    return rows[:: max(1, -(-len(rows) // count))]


class SpreadSampler:
    """Ours: a fixed choice in the place of a random one."""

    def __init__(self, max_positives: int, max_negatives: int) -> None:
        self.limits = max_positives, max_negatives
        self.num_positives = 0

    def __call__(self, matches: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        positives, negatives = spread(matches >= 0, self.limits[0]), spread(matches == -1, self.limits[1])
        self.num_positives += len(positives)
        rows = torch.cat((positives, negatives))
        return rows, torch.ones_like(rows, dtype=torch.bool)


class SpreadPeerSampler:
    """Theirs: the same choice from their labels, as masks."""

    def __init__(self, max_positives: int, max_negatives: int) -> None:
        self.limits = max_positives, max_negatives

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        def masks(selected: list[Tensor], count: int) -> list[Tensor]:
            return [torch.zeros(len(s), dtype=torch.uint8).index_fill_(0, spread(s, count), 1) for s in selected]

        return masks([x >= 1 for x in labels], self.limits[0]), masks([x == 0 for x in labels], self.limits[1])


def run_torchvision(model: FasterRCNN, batch: ImageBatch, with_targets: bool):
    normalized = [
        model.transform.normalize(image[:, :height, :width] / 255)
        for image, (height, width) in zip(batch.pixels, batch.sizes, strict=True)
    ]
    images = ImageList(model.transform.batch_images(normalized), batch.sizes)
    assert images.tensors.shape[-2:] == batch.pixels.shape[-2:]
    targets = [{"boxes": t.boxes, "labels": t.labels + 1} for t in batch.targets] if with_targets else None
    model.rpn.train(with_targets)
    model.roi_heads.train(with_targets)
    features = model.backbone(images.tensors)
    proposals, rpn_losses = model.rpn(images, features, targets)
    detections, head_losses = model.roi_heads(features, proposals, batch.sizes, targets)
    return detections, {**rpn_losses, **head_losses}


@pytest.fixture(scope="module", params=["FrozenBatchNorm2d", pytest.param("BatchNorm2d", marks=pytest.mark.slow)])
def pair(request):
    theirs = random_torchvision(frozen=request.param == "FrozenBatchNorm2d")
    kinds = {type(module).__name__ for module in theirs.modules()}
    assert kinds & {"FrozenBatchNorm2d", "BatchNorm2d"} == {request.param}
    ours = build_from_torchvision(theirs.state_dict(), CLASSES)
    theirs.rpn._post_nms_top_n["testing"], ours.rpn.test_limits = 300, ProposalLimits(1000, 300)  # to save time
    return theirs, ours


@torch.no_grad()
def test_detections_are_torchvisions(pair):
    theirs, ours = pair
    batch = random_batch()
    expected, _ = run_torchvision(theirs, batch, with_targets=False)
    detections = ours.detect(batch)
    assert sum(len(found) for found in detections) >= 50
    assert len(torch.cat([found.labels for found in detections]).unique()) >= 5
    for found, peer in zip(detections, expected, strict=True):
        assert torch.equal(found.labels, peer["labels"] - 1)
        torch.testing.assert_close(found.boxes, peer["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(found.scores, peer["scores"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_losses_are_torchvisions(pair):
    theirs, ours = pair
    batch = random_batch()
    theirs.rpn.fg_bg_sampler, ours.rpn.sampler = SpreadPeerSampler(30, 100), SpreadSampler(30, 100)
    theirs.roi_heads.fg_bg_sampler, ours.head.sampler = SpreadPeerSampler(20, 60), SpreadSampler(20, 60)
    _, expected = run_torchvision(theirs, batch, with_targets=True)
    losses = ours.losses(batch)
    assert ours.rpn.sampler.num_positives >= 20
    assert ours.head.sampler.num_positives >= 20
    peers = {
        "rpn/objectness": "loss_objectness",
        "rpn/boxes": "loss_rpn_box_reg",
        "head/classes": "loss_classifier",
        "head/boxes": "loss_box_reg",
    }
    assert losses.keys() == peers.keys()
    for name, peer in peers.items():
        assert expected[peer] > 0
        torch.testing.assert_close(losses[name], expected[peer], rtol=1e-4, atol=0)


def test_anchors_are_torchvisions(pair):
    theirs, ours = pair
    batch = random_batch()
    features = [torch.zeros(1, 1, -(-192 // stride), -(-224 // stride)) for stride in ours.rpn.strides]
    expected = theirs.rpn.anchor_generator(ImageList(batch.pixels, batch.sizes), features)[0]
    assert torch.equal(torch.cat(ours.rpn._anchors(features, batch.padded_size)), expected)


def test_weights_survive_the_way_there_and_back(pair):
    theirs, ours = pair
    state = to_torchvision(ours.state_dict())
    theirs.load_state_dict(state)  # strict: every name and shape is torchvision's
    back = from_torchvision(state)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(back[name], tensor), name


def test_detectors_of_one_level_have_no_place_there():
    one_level = {"name": "single_level"}
    c4 = {"backbone": {"name": "resnet10t", "roi_stage": True}, "neck": one_level, "head": {"name": "res5"}}
    dc5 = {"backbone": {"name": "resnet10t", "output_stride": 16}, "neck": {**one_level, "channels": 8}}
    for parts in (c4, dc5):
        with pytest.raises(ValueError, match=r"state: expected the weights of a Faster R-CNN with ResNet and FPN, got"):
            to_torchvision(build_detector(["cat"], **parts).state_dict())


def test_names_of_files_older_than_torchvision_0_13(pair):
    theirs, _ = pair
    new = theirs.state_dict()
    old = {
        name.replace("head.conv.0.0.", "head.conv.")
        if name.startswith("rpn")
        else name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if name.startswith("backbone.fpn")
        else name: tensor
        for name, tensor in new.items()
    }
    assert old.keys() != new.keys()
    assert from_torchvision(old).keys() == from_torchvision(new).keys()


def test_norm_eps_reaches_every_batch_norm_and_the_file(tmp_path):
    detector = build_detector(["a"], backbone={"name": "resnet10t"}, norm_eps=0.0)
    save_detector(detector, tmp_path / "detector.safetensors")
    for model in (detector, read_detector(tmp_path / "detector.safetensors")):
        assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {0.0}
    with pytest.raises(ValueError, match="norm_eps"):
        build_detector(["a"], backbone={"name": "convnext_atto"}, norm_eps=0.0)


@pytest.mark.parametrize("pair", ["FrozenBatchNorm2d"], indirect=True)
def test_what_does_not_fit_is_refused(pair):
    theirs, _ = pair
    with pytest.raises(
        ValueError, match=r"of 19 classes and background: size mismatch for head\.offsets\.bias"
    ) as error:
        build_from_torchvision(theirs.state_dict(), CLASSES[:-1])
    assert "\n" not in str(error.value)
    shared = build_detector(CLASSES, backbone={"name": "resnet10t"}, head={"class_agnostic": True, "fc_channels": 8})
    with pytest.raises(ValueError, match="expected boxes of each class, which torchvision's model has, got boxes they"):
        to_torchvision(shared.state_dict())
    with pytest.raises(ValueError, match=r"got one named 'mask\.weight'"):
        from_torchvision({"mask.weight": torch.zeros(1)})
