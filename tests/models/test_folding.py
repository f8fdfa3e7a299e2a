"""What a detector computes at inference is what its layers say, whatever was folded into what."""

import copy
import pickle

import pytest
import torch
from test_two_stage_detector import make_detector, rectangles
from torch import nn

from visionlab.models.backbone import Backbone
from visionlab.models.folded_layers import FoldedBlock, FoldedConv
from visionlab.models.folding import Folding, fold
from visionlab.models.norm import batch_norms


class Levels(nn.Module):
    """A network of one's own: every normalization has statistics, every ReLU its place."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images):
        return [self.layers(images)]


def randomize(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for layer in batch_norms(network):
        layer.running_mean.normal_(std=0.1)
        layer.running_var.uniform_(0.5, 1.5)
        with torch.no_grad():
            layer.weight.uniform_(0.5, 1.0)
            layer.bias.normal_(std=0.1)
    return network.eval()


def small(norm_in_the_middle: bool = True) -> Levels:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(8)] if norm_in_the_middle else []
    return randomize(Levels(nn.Conv2d(3, 8, 3, padding=1), *norms, nn.ReLU(), nn.Conv2d(8, 4, 1)))


@torch.no_grad()
def check(network: nn.Module, found: nn.Module, size=(64, 96), tolerance: float = 1e-4) -> None:
    dtype = next(network.parameters()).dtype
    images = torch.rand(2, 3, *size, dtype=dtype).contiguous(memory_format=torch.channels_last)
    for one, other in zip(network(images), found(images), strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * one.abs().max()


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("resnet10t", 4), ("resnet26", 8), ("mobilenetv3_small_050", 0), ("regnetx_002", 0), ("convnext_atto", 0)],
)
def test_backbones(name, blocks):
    network = randomize(Backbone(name=name))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = Folding().of(network, network.small_size)
    check(network, found)
    check(network, found, size=(150, 210))  # more of it is folded
    assert not batch_norms(found)
    assert sum(isinstance(module, FoldedBlock) for module in found.modules()) == blocks
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_double_precision():
    network = small().double()
    found = Folding().of(network, (16, 16))
    check(network, found, tolerance=1e-14)
    assert not batch_norms(found)


@pytest.mark.parametrize("network", [small(), randomize(Backbone(name="resnet10t"))], ids=["small", "resnet10t"])
def test_half_precision_under_autocast(network):
    found = Folding().of(network, (64, 96))
    images = torch.rand(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        answer = found(images)[-1]
    assert answer.dtype == torch.bfloat16
    expected = network(images)[-1]
    assert (answer - expected).abs().max() < 0.03 * expected.abs().max()
    check(network, found)  # and again without it


def test_relu_without_a_norm():
    network = small(norm_in_the_middle=False)
    found = Folding().of(network, (16, 16))
    check(network, found)
    assert not [module for module in found.modules() if isinstance(module, nn.ReLU)]


def test_what_only_looks_like_a_pair():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)

        def forward(self, images):
            looked = self.conv(images)
            return [self.norm(looked), looked, self.relu(looked + 1)]

    network = randomize(Twice())
    found = Folding().of(network, (8, 8))
    assert found is network  # the copy was tried, and was not the same
    check(network, found)


def test_norm_of_what_was_changed_in_place():
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)

        def forward(self, images):
            features = self.conv(images)
            features += 1
            return [self.relu(self.norm(features))]

    network = randomize(Between())
    check(network, Folding().of(network, (8, 8)))


@torch.no_grad()
def scale(tensor):
    tensor.mul_(1.5)


CHANGES = {
    "weight in place": lambda network: scale(network.layers[0].weight),
    "statistics in place": lambda network: network.layers[1].running_var.mul_(2),
    "loaded": lambda network: network.load_state_dict({k: v * 2 for k, v in network.state_dict().items()}),
    "weight replaced": lambda network: setattr(network.layers[3], "weight", nn.Parameter(torch.ones(4, 8, 1, 1))),
    "memory replaced": lambda network: setattr(network.layers[3].weight, "data", torch.ones(4, 8, 1, 1)),
    "layer replaced": lambda network: network.layers.__setitem__(2, nn.Tanh()),
    "epsilon": lambda network: setattr(network.layers[1], "eps", 0.5),
    "precision": lambda network: network.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(change):
    network, folding = small(), Folding()
    found = folding.of(network, (16, 16))
    assert folding.of(network, (16, 16)) is found
    CHANGES[change](network)
    check(network, folding.of(network, (16, 16)))


def test_hooks_are_called():
    network, folding = small(), Folding()
    folding.of(network, (16, 16))
    seen = []
    handle = network.layers[0].register_forward_hook(lambda *call: seen.append(1))
    folding.of(network, (16, 16))(torch.rand(1, 3, 16, 16))
    assert seen == [1]
    handle.remove()
    assert any(isinstance(module, FoldedConv) for module in folding.of(network, (16, 16)).modules())


def test_no_more_is_kept_than_a_map_holds():
    found = fold(randomize(Backbone(name="resnet10t")), (64, 96))
    found(torch.rand(1, 3, 64, 96).contiguous(memory_format=torch.channels_last))
    convs = [module for module in found.modules() if isinstance(module, FoldedConv)]
    assert 0 < sum(bool(conv._kept) for conv in convs) < len(convs)
    assert max(conv.layers[0].weight.numel() for conv in convs if conv._kept) <= 64 * 16 * 24


def test_no_image():
    found = Folding().of(small(), (16, 16))
    assert found(torch.rand(0, 3, 16, 16))[0].shape == (0, 4, 16, 16)


def test_a_copy_is_empty():
    network, folding = small(), Folding()
    folding.of(network, (16, 16))
    for other in (copy.deepcopy(folding), pickle.loads(pickle.dumps(folding))):
        assert other._copy is None


def test_detector():
    detector, batch = make_detector(norm="frozen"), rectangles(2)
    randomize(detector.backbone)
    detector.eval()
    with torch.no_grad():
        features = detector.features(batch)
        expected = detector.head.detect(
            detector._pooled(features), detector._propose(features, batch, None), batch.sizes
        )
    for found, wanted in zip(detector.detect(batch), expected, strict=True):
        assert len(wanted) > 0
        torch.testing.assert_close(found.boxes, wanted.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(found.scores, wanted.scores, atol=1e-5, rtol=0)
        assert torch.equal(found.labels, wanted.labels)


def test_training_forgets_the_copy():
    detector, batch = make_detector(norm="frozen"), rectangles(2)
    before = detector.detect(batch)
    detector.losses(batch)
    detector.backbone.model.conv1[0].weight.data.zero_()  # an optimizer that torch does not see
    after = detector.detect(batch)
    assert any(not torch.equal(one.scores, other.scores) for one, other in zip(before, after, strict=True))
    assert "_folding" not in "".join(detector.state_dict())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", ["resnet10t", "resnet26", "mobilenetv3_small_050"])
def test_gradients_in_training(name, channels_last):
    network = randomize(Backbone(name=name, norm="frozen", frozen_stages=1)).double().train()
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    found = Folding(trained=True).of(network, network.small_size)
    assert not batch_norms(found)
    images = torch.rand(2, 3, 128, 160, dtype=torch.float64)
    parameters = {key: value for key, value in network.named_parameters() if value.requires_grad}
    levels, gradients = {}, {}
    for who in (network, found):
        levels[who] = who(images)
        gradients[who] = torch.autograd.grad(sum(level.square().sum() for level in levels[who]), parameters.values())
    for kind in (levels, gradients):
        for one, other in zip(kind[network], kind[found], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * one.abs().max().item())


def test_what_is_trained_is_not_folded():
    network = randomize(Backbone(name="resnet10t", frozen_stages=1)).train()
    statistics = {key: value.clone() for key, value in network.named_buffers()}
    folding = Folding(trained=True)
    found = folding.of(network, network.small_size)
    assert 0 < len(batch_norms(found)) < len(batch_norms(network))
    assert all(torch.equal(value, statistics[key]) for key, value in network.named_buffers())
    assert [norm.training for norm in batch_norms(found)] == [True] * len(batch_norms(found))
    found(torch.rand(2, 3, 64, 64))
    assert not torch.equal(batch_norms(network)[-1].running_mean, statistics["model.layer4.0.bn2.running_mean"])
    network.eval()
    assert folding.of(network, network.small_size) is not found


def test_a_step_needs_no_copy_of_its_own():
    network, folding = randomize(Backbone(name="resnet10t", norm="frozen")).train(), Folding(trained=True)
    found = folding.of(network, network.small_size)
    scale(network.model.layer1[0].conv1.weight)
    assert folding.of(network, network.small_size) is found
    check(network.eval(), found.eval())
    assert folding.of(network.train(), network.small_size) is found
    network.model.layer1[0].bn1.requires_grad_(True)
    assert len(batch_norms(folding.of(network, network.small_size))) == 1
    network.compile()
    assert Folding(trained=True).of(nn.Sequential(network), network.small_size)[0] is network


def test_a_frozen_normalization_keeps_nothing_for_its_gradient():
    network = randomize(Backbone(name="resnet10t", norm="frozen")).train()
    images = torch.rand(2, 3, 128, 128)
    kept = {}
    for who in (network, Folding(trained=True).of(network, network.small_size)):
        seen = kept[who] = {}
        pack = lambda tensor, seen=seen: seen.update({tensor.data_ptr(): tensor}) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            who(images)
        kept[who] = sum(tensor.nbytes for tensor in seen.values() if not isinstance(tensor, nn.Parameter))
    before, after = kept.values()
    assert after < 0.7 * before


def test_losses_of_a_detector_are_those_of_its_layers():
    detector, batch = make_detector(norm="frozen"), rectangles(2)
    randomize(detector.backbone)
    detector.train()
    found = detector.losses(batch)
    assert detector._training_folding._copy is not detector.backbone
    assert not batch_norms(detector._training_folding._copy)
    detector._training_folding.of = lambda network, size: network
    for key, value in detector.losses(batch).items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)
