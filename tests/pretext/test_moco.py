"""MoCo's loss, its places and its memory against loops over single numbers."""

import pytest
import torch
import torch.nn.functional as F
from small_encoder import SmallEncoder, assert_same_gradients, by_hand, cosine, gradients, random_views
from small_methods import batch_of, build

from visionlab.models.backbone import Backbone
from visionlab.pretext import MoCo
from visionlab.pretext.memory_bank import Queue
from visionlab.pretext.moco import most_similar
from visionlab.structures import ViewBatch


def cross_entropy_by_hand(query, key, queue, temperature):
    """-log of the key's share among it and the queue."""
    exponents = [cosine(query, other) / temperature for other in (key, *queue)]
    return sum(exponent.exp() for exponent in exponents).log() - exponents[0]


@pytest.fixture
def dense() -> MoCo:
    return build("moco dense", norm="group").double()


def views_of(batch: ViewBatch, size: int = 64) -> ViewBatch:
    """The same views, enlarged so that the last level has several places."""
    batch.views = [F.interpolate(view, (size, size)) for view in batch.views]
    return batch


def small(**settings) -> MoCo:
    """A method whose slow copy has gone another way, as after some steps."""
    torch.manual_seed(0)
    method = MoCo(SmallEncoder(), image_size=8, projection_dim=4, queue_size=6, temperature=0.3, **settings).double()
    for parameter in method.momentum_copy.parameters():
        parameter.add_(torch.randn_like(parameter) / 2)
    for queue in (module for module in method.modules() if isinstance(module, Queue)):
        queue.keys.copy_(F.normalize(queue.keys))  # of length 1 in double precision too
    return method


def perceptron(network, rows):
    return by_hand(network if isinstance(network, torch.nn.Sequential) else [network], rows)


def formula(method, views):
    """Mean over images of the cross entropy of the other view's key."""
    total = 0
    for first, second in zip(*views, strict=True):
        query = perceptron(method.projection, method.encoder.pool(method.encoder.normalize(first[None])))[0]
        copy, projection, *_ = method.momentum_copy
        key = perceptron(projection, copy.pool(copy.normalize(second[None])))[0].detach()
        total = total + cross_entropy_by_hand(query, key, method.queue.keys, 0.3)
    return total / len(views[0])


def dense_formula(method, views):
    """Mean over images and places of the cross entropy of the key at the place of the other view most like it."""

    def project(projection, place):  # a convolution of 1 x 1 is linear at each place
        first, last = projection[0], projection[2]
        hidden = (first.weight[:, :, 0, 0] @ place + first.bias).clamp_min(0)
        return last.weight[:, :, 0, 0] @ hidden + last.bias

    copy, total = method.momentum_copy, 0
    for first, second in zip(*views, strict=True):
        places = method.encoder(method.encoder.normalize(first[None]))[-1][0].flatten(1).T
        others = copy[0](method.encoder.normalize(second[None]))[-1][0].flatten(1).T
        assert len(places) == len(others) == 4
        for place in places:
            similar = [cosine(place, other).item() for other in others]
            key = project(copy[2], others[similar.index(max(similar))]).detach()
            query = project(method.dense_projection, place)
            total = total + cross_entropy_by_hand(query, key, method.dense_queue.keys, 0.3)
    return total / len(views[0]) / 4


@pytest.mark.parametrize("hidden_dim", [5, None])
def test_loss_and_gradient_are_those_of_the_formula(hidden_dim):
    method, views = small(hidden_dim=hidden_dim), random_views(2)
    losses, expected = method(ViewBatch(views)).losses, formula(method, views)
    assert list(losses) == ["contrast"]
    torch.testing.assert_close(losses["contrast"], expected, rtol=1e-12, atol=0)
    assert_same_gradients(gradients(losses["contrast"], method), gradients(expected, method))


def test_dense_losses_and_gradients_are_those_of_the_formulas():
    method, views = small(hidden_dim=5, dense=True, dense_weight=0.3), random_views(2)
    losses = method(ViewBatch(views)).losses
    expected = {"contrast": 0.7 * formula(method, views), "dense": 0.3 * dense_formula(method, views)}
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-12, atol=0)
    assert 0 <= method(ViewBatch(views)).metrics["dense_accuracy"] <= 1
    assert_same_gradients(gradients(sum(losses.values()), method), gradients(sum(expected.values()), method))


def test_the_second_queue_holds_pooled_dense_keys(dense):
    batch = views_of(batch_of(dense))
    copy = [module.state_dict() for module in dense.momentum_copy]
    assert len(copy) == 3
    with torch.no_grad():
        places = dense.momentum_copy[0](dense.encoder.normalize(batch.views[1]))[-1]
        expected = F.normalize(dense.momentum_copy[2](places).mean((2, 3)))
        pooled = F.normalize(dense.momentum_copy[1](places.mean((2, 3))))
    dense(batch)
    dense.after_step(0, 1)
    torch.testing.assert_close(dense.dense_queue.keys[:8], expected)
    torch.testing.assert_close(dense.queue.keys[:8], pooled)
    assert dense.queue.place == dense.dense_queue.place == 8


def test_places_match_by_cosine_not_by_product():
    places = torch.tensor([[[1.0], [0.0]]])
    others = torch.tensor([[[0.9, 5.0], [0.0, 5.0]]])
    assert most_similar(places, others).tolist() == [[0]]


def test_what_is_in_a_key_comes_from_its_own_image_alone():
    """With batch statistics in the keys, a key would tell which other images came with it."""
    moco = build("moco", norm="train").train()
    moco(batch_of(moco, range(20, 28)))  # running statistics that are not those of the start
    moco.after_step(0, 1)
    keys, queries = [], []
    for companions in (range(1, 8), range(11, 18)):
        output = moco(batch_of(moco, [0, *companions]))
        keys.append(moco.queue._pending[-1][0])
        queries.append(output.projection[0])
    torch.testing.assert_close(*keys, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(*queries, rtol=1e-2, atol=1e-3)  # which the queries do tell


def test_keys_have_no_gradient():
    moco = build("moco", norm="group")
    sum(moco(batch_of(moco)).losses.values()).backward()
    assert all(parameter.grad is None for parameter in moco.momentum_copy.parameters())


def test_evaluation_leaves_the_memory_alone():
    moco = build("moco").eval()
    moco(batch_of(moco))
    assert moco.queue._pending == []


def test_settings_without_effect_are_refused():
    encoder = Backbone(name="resnet18")
    with pytest.raises(ValueError, match=r"^dense_weight: no effect without dense$"):
        MoCo(encoder, dense_weight=0.3)
    with pytest.raises(ValueError, match=r"^hidden_dim: expected a width with dense, got none$"):
        MoCo(encoder, dense=True, hidden_dim=None)
    with pytest.raises(ValueError, match=r"^queue_size: expected at least 1, got 0$"):
        MoCo(encoder, queue_size=0)


@pytest.mark.parametrize("method", ["moco", "moco dense"])
def test_slow_copies_follow_after_each_step(method):
    moco = build(method)  # of momentum 0.9
    online = [parameter for network in moco._networks() for parameter in network.parameters()]
    copies = list(moco.momentum_copy.parameters())
    before = [copy.clone() for copy in copies]
    for parameter in online:
        torch.nn.init.normal_(parameter)
    moco.after_step(0, 1)
    assert len(copies) == len(online)
    for copy, old, new in zip(copies, before, online, strict=True):
        torch.testing.assert_close(copy, 0.9 * old + 0.1 * new.detach())


def test_autocast_does_not_narrow_matches():
    """All cosines with the first place are nearly 1, and in bfloat16 all of them would be."""
    angles = torch.tensor([[0.03, 0.02, 0.01, 0.04]])
    others = torch.stack([angles.cos(), angles.sin()], 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert most_similar(torch.tensor([[[1.0], [0.0]]]), others).tolist() == [[2]]


def test_queued_keys_are_unit_vectors_under_autocast():
    dense = build("moco dense")
    with torch.autocast("cpu", torch.bfloat16):
        dense(batch_of(dense))
    dense.after_step(0, 1)
    for queue in (dense.queue, dense.dense_queue):
        assert queue.keys.dtype == torch.float32
        torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(24), rtol=1e-5, atol=0)
