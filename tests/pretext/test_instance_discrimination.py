"""Instance discrimination: which images are noise, and the normalizer of its probabilities."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_methods import batch_of, build

from visionlab.models.backbone import Backbone
from visionlab.pretext import InstanceDiscrimination
from visionlab.pretext.instance_discrimination import draw_images


def scores_of(method, batch):
    """Cosines of each image with each row of the bank, over the temperature."""
    with torch.no_grad():
        features = method.encoder.pool(method.encoder.normalize(batch.views[0]))
        rows = F.normalize(method.projection(features))
        return [[float(row @ other) / method.temperature for other in method.bank.rows] for row in rows]


def test_softmax_is_over_all_images():
    method = build("instance_discrimination softmax", norm="group").double()
    batch = batch_of(method, [3, 1, 4])
    scores = scores_of(method, batch)
    shares = [math.exp(row[i]) / sum(map(math.exp, row)) for row, i in zip(scores, batch.ids, strict=True)]
    expected = -sum(map(math.log, shares)) / 3
    assert method(batch).losses["softmax"].item() == pytest.approx(expected, rel=1e-10)


def test_nce_is_the_papers():
    method = build("instance_discrimination", norm="group").double()
    batch = batch_of(method, [3, 1, 4])
    scores, noise = scores_of(method, batch), draw_images(batch.seeds, 8, 12).tolist()
    drawn = [math.exp(row[j]) for row, others in zip(scores, noise, strict=True) for j in others]
    normalizer = 12 * sum(drawn) / len(drawn)  # equation 8

    def share(score):  # equation 5
        p = math.exp(score) / normalizer
        return p / (p + 8 / 12)

    expected = 0.0  # equation 7
    for row, image, others in zip(scores, batch.ids, noise, strict=True):
        expected -= (math.log(share(row[image])) + sum(math.log(1 - share(row[j])) for j in others)) / 3
    assert method(batch).losses["nce"].item() == pytest.approx(expected, rel=1e-10)
    assert method.log_normalizer.item() == pytest.approx(math.log(normalizer), rel=1e-10)


def test_the_normalizer_is_estimated_once_and_kept():
    method = build("instance_discrimination")
    method(batch_of(method, range(4)))
    kept = method.log_normalizer.clone()
    method(batch_of(method, range(4, 8)))
    assert torch.equal(method.log_normalizer, kept)
    again = build("instance_discrimination")
    again.load_state_dict(method.state_dict())
    again(batch_of(again, range(4, 8)))
    assert torch.equal(again.log_normalizer, kept)


def test_a_learned_normalizer_starts_at_that_of_scores_around_zero():
    method = build("instance_discrimination learned")
    assert method.log_normalizer.item() == pytest.approx(math.log(12))
    sum(method(batch_of(method)).losses.values()).backward()
    assert method.log_normalizer.grad is not None


def test_noise_depends_on_the_seed_of_the_image_alone():
    drawn = draw_images([5, 6, 7], 4, 1000)
    assert torch.equal(draw_images([7, 5], 4, 1000), drawn[[2, 0]])
    assert drawn.min() >= 0
    assert drawn.max() < 1000
    assert len(drawn.unique()) > 9


def test_a_batch_moves_the_rows_of_its_images():
    method = build("instance_discrimination")
    before = method.bank.rows.clone()
    method(batch_of(method, [2, 9]))
    method.after_step(0)
    moved = (method.bank.rows != before).any(dim=1).nonzero().flatten().tolist()
    assert moved == [2, 9]
    assert method.bank.rows.norm(dim=1).tolist() == pytest.approx([1] * 12)


def test_what_is_missing_is_named():
    encoder = Backbone(name="resnet18")
    with pytest.raises(ValueError, match=r"^noise_samples and normalizer have no effect with loss softmax$"):
        InstanceDiscrimination(encoder, loss="softmax", normalizer="learned")
    method = InstanceDiscrimination(encoder, image_size=32)
    with pytest.raises(ValueError, match=r"^expected the id of each image, and prepare\(\) to be told how many"):
        method(batch_of(method))
