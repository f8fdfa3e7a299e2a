"""Probes against votes counted one by one, against scipy's optimum, and on features whose answer is known."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from visionlab.eval.probe import (
    Features,
    balanced_accuracy,
    draw_per_class,
    extract,
    fit_logistic,
    knn_predictions,
    linear_predictions,
    pool_levels,
    probe,
)
from visionlab.structures import ViewBatch


def clusters(count: int, seed: int, spread: float = 0.3, classes: int = 3, width: int = 4):
    """Points around one center for each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    return torch.eye(classes, width)[labels] + spread * torch.randn(count, width, generator=generator), labels


def test_neighbors_vote_with_the_weight_of_their_cosine():
    (train, labels), (test, _) = clusters(30, seed=0, spread=0.6), clusters(12, seed=1, spread=0.6)
    expected = []
    for row in test.tolist():
        cosines = []
        for other, label in zip(train.tolist(), labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(row, other, strict=True))
            cosines.append((dot / math.hypot(*row) / math.hypot(*other), label))
        votes = dict.fromkeys(range(3), 0.0)
        for cosine, label in sorted(cosines, reverse=True)[:7]:
            votes[label] += math.exp(cosine / 0.1)
        expected.append(max(votes, key=votes.get))
    assert knn_predictions(train, labels, test, neighbors=7, temperature=0.1).tolist() == expected
    # A close neighbor weighs more than several far ones.
    train, labels = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.5, 1.1]]), torch.tensor([0, 1, 1])
    assert knn_predictions(train, labels, torch.tensor([[1.0, 0.1]]), neighbors=3).tolist() == [0]


def test_more_neighbors_than_examples_are_refused():
    with pytest.raises(ValueError, match=r"^neighbors: expected 1 to 5, the number of training examples, got 6$"):
        knn_predictions(torch.ones(5, 2), torch.zeros(5, dtype=torch.int64), torch.ones(1, 2), neighbors=6)


def test_logistic_regression_is_solved_to_the_end():
    features, labels = clusters(40, seed=2, spread=0.8)
    features, decay = features.double(), 0.02
    x, y = features.numpy(), labels.numpy()

    def objective(flat):
        weights = flat.reshape(5, 3)
        logits = x @ weights[:-1] + weights[-1]
        logits -= logits.max(1, keepdims=True)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
        return losses.mean() + decay / 2 * (weights[:-1] ** 2).sum()

    best = minimize(objective, np.zeros(15), method="BFGS", options={"gtol": 1e-8})
    weights = fit_logistic(features, labels, decay, 3)
    assert objective(weights.numpy().ravel()) == pytest.approx(best.fun, abs=1e-8)
    np.testing.assert_allclose(weights[:-1].numpy(), best.x.reshape(5, 3)[:-1], atol=5e-4)


def test_the_linear_probe_does_not_depend_on_scale_and_is_not_random():
    (train, labels), (test, truth) = clusters(200, seed=3), clusters(100, seed=4)
    found = linear_predictions(train, labels, test)
    assert (found == truth).float().mean() > 0.9
    scale, shift = torch.tensor([1e-3, 1.0, 50.0, 7.0]), torch.tensor([5.0, -3.0, 0.0, 100.0])
    assert (linear_predictions(train * scale + shift, labels, test * scale + shift) == found).float().mean() > 0.98
    torch.manual_seed(77)
    assert torch.equal(linear_predictions(train, labels, test), found)


def test_noise_is_met_with_decay():
    """More dimensions of noise than examples: without a chosen decay, the classifier would learn them by heart."""
    (train, labels), (test, truth) = clusters(60, seed=5), clusters(300, seed=6)
    generator = torch.Generator().manual_seed(7)
    noisy, noisy_test = (torch.cat([x, torch.randn(len(x), 60, generator=generator)], 1) for x in (train, test))
    assert (linear_predictions(noisy, labels, noisy_test) == truth).float().mean() > 0.6
    assert (linear_predictions(train[:4], labels[:4], test) >= 0).all()  # too few to hold any out


def test_a_probe_finds_what_each_level_holds():
    (train, labels), (test, truth) = clusters(200, seed=8), clusters(200, seed=9)
    generator = torch.Generator().manual_seed(10)
    levels = [{"clear": x, "noise": torch.randn(len(x), 4, generator=generator)} for x in (train, test)]
    scores = probe(Features(levels[0], labels), Features(levels[1], truth))
    assert scores["clear"]["knn"] > 0.9
    assert scores["clear"]["linear"] > 0.9
    assert abs(scores["noise"]["linear"] - 1 / 3) < 0.12
    few = probe(Features(levels[0], labels), Features(levels[1], truth), labels_per_class=4, neighbors=5, seed=1)
    assert 0.5 < few["clear"]["linear"] <= 1


def test_the_draw_is_balanced_and_of_its_seed():
    labels = torch.tensor([0] * 10 + [1] * 4 + [2] * 20)
    chosen = draw_per_class(labels, 4, seed=0)
    assert labels[chosen].bincount().tolist() == [4, 4, 4]
    assert torch.equal(chosen, chosen.unique())
    assert torch.equal(chosen, draw_per_class(labels, 4, seed=0))
    assert not torch.equal(chosen, draw_per_class(labels, 4, seed=1))
    with pytest.raises(ValueError, match=r"^labels_per_class: expected at most 4, as many as class 1 has$"):
        draw_per_class(labels, 5, seed=0)


def test_features_are_computed_once_and_stand_in_the_order_of_images():
    pixels = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 2, 2)
    batches = [ViewBatch([pixels[ids]], ids=ids) for ids in ([4, 1], [0, 5], [2])]  # image 3 could not be read
    seen = []

    def encode(images):
        seen.append(len(images))
        return {"mean": images.float().mean((2, 3)), "double": 2 * images.float().mean((2, 3))}

    features = extract(encode, batches, labels=[10, 11, 12, 13, 14, 15])
    assert seen == [2, 2, 1]
    assert features.levels["mean"][:, 0].tolist() == [0, 1, 2, 4, 5]
    assert features.levels["double"][:, 0].tolist() == [0, 2, 4, 8, 10]
    assert features.labels.tolist() == [10, 11, 12, 14, 15]
    with pytest.raises(ValueError, match=r"^a probe needs images, got none that can be read$"):
        extract(encode, [], labels=[])


def test_levels_are_pooled_over_a_grid():
    maps = [torch.arange(32.0).reshape(1, 2, 4, 4), torch.tensor([[[[3.0]], [[5.0]]]])]
    levels = pool_levels(maps, [8, 32], grid=2)
    assert list(levels) == ["stride 8", "stride 32", "pooled"]
    assert levels["stride 8"].tolist() == [[2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]]
    assert levels["stride 32"].tolist() == levels["pooled"].tolist() == [[3, 5]]


def test_balanced_accuracy_counts_every_class_alike():
    labels, predictions = torch.tensor([0, 0, 0, 0, 2, 2]), torch.tensor([0, 0, 0, 0, 2, 0])
    assert balanced_accuracy(predictions, labels) == pytest.approx((1 + 0.5) / 2)
