"""MoCo's loss, its places and its memory against loops over single numbers."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_methods import batch_of, build

from visionlab.models.backbone import Backbone
from visionlab.pretext import MoCo
from visionlab.pretext.moco import most_similar
from visionlab.structures import ViewBatch


def cross_entropy_by_hand(query, key, queue, temperature):
    """-log of the key's share among it and the queue, whose rows are of length 1."""
    query = query / query.norm()
    scores = [float(query @ other) / temperature for other in (key / key.norm(), *queue)]
    return -math.log(math.exp(scores[0]) / sum(map(math.exp, scores)))


@pytest.fixture
def dense() -> MoCo:
    return build("moco dense", norm="group").double()


def views_of(batch: ViewBatch, size: int = 64) -> ViewBatch:
    """The same views, enlarged so that the last level has several places."""
    batch.views = [F.interpolate(view, (size, size)) for view in batch.views]
    return batch


def test_the_losses_are_those_of_the_papers(dense):
    batch = views_of(batch_of(dense))
    losses = dense(batch).losses
    first, second = (dense.encoder.normalize(view) for view in batch.views)
    with torch.no_grad():
        places, key_places = dense.encoder(first)[-1], dense.encoder(second)[-1]  # the copy still has the same weights
        assert places.shape[2:] == (2, 2)
        queries, keys = (dense.projection(part.mean((2, 3))) for part in (places, key_places))
        pairs = zip(queries, keys, strict=True)
        expected = sum(cross_entropy_by_hand(q, k, dense.queue.keys, 0.2) for q, k in pairs) / len(batch)
        assert losses["contrast"].item() == pytest.approx(0.5 * expected, rel=1e-9)

        dense_queries, dense_keys = dense.dense_projection(places), dense.dense_projection(key_places)
        total = 0.0
        for n in range(len(batch)):
            for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
                own = places[n, :, y, x]
                cosines = {
                    (v, u): float(own @ key_places[n, :, v, u] / own.norm() / key_places[n, :, v, u].norm())
                    for v in range(2)
                    for u in range(2)
                }
                v, u = max(cosines, key=cosines.get)
                total += cross_entropy_by_hand(
                    dense_queries[n, :, y, x], dense_keys[n, :, v, u], dense.dense_queue.keys, 0.2
                )
    assert losses["dense"].item() == pytest.approx(0.5 * total / len(batch) / 4, rel=1e-9)


def test_the_second_queue_holds_pooled_dense_keys(dense):
    batch = views_of(batch_of(dense))
    copy = [module.state_dict() for module in dense.momentum_copy]
    assert len(copy) == 3
    with torch.no_grad():
        places = dense.momentum_copy[0](dense.encoder.normalize(batch.views[1]))[-1]
        expected = F.normalize(dense.momentum_copy[2](places).mean((2, 3)))
        pooled = F.normalize(dense.momentum_copy[1](places.mean((2, 3))))
    dense(batch)
    dense.after_step(0)
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
    moco.after_step(0)
    keys, queries = [], []
    for companions in (range(1, 8), range(11, 18)):
        output = moco(batch_of(moco, [0, *companions]))
        keys.append(moco.queue._waiting[-1][0])
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
    assert moco.queue._waiting == []


def test_settings_without_effect_are_refused():
    encoder = Backbone(name="resnet18")
    with pytest.raises(ValueError, match=r"^dense_weight: no effect without dense$"):
        MoCo(encoder, dense_weight=0.3)
    with pytest.raises(ValueError, match=r"^hidden_dim: expected a width with dense, got none$"):
        MoCo(encoder, dense=True, hidden_dim=None)
    with pytest.raises(ValueError, match=r"^queue_size: expected at least 1, got 0$"):
        MoCo(encoder, queue_size=0)


def test_queued_keys_are_unit_vectors_under_autocast():
    dense = build("moco dense")
    with torch.autocast("cpu", torch.bfloat16):
        dense(batch_of(dense))
    dense.after_step(0)
    for queue in (dense.queue, dense.dense_queue):
        assert queue.keys.dtype == torch.float32
        torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(24), rtol=1e-5, atol=0)
