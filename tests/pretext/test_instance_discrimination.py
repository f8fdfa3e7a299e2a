"""Instance discrimination: which images are noise, and the normalizer of its probabilities."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_encoder import SmallEncoder, assert_same_gradients, by_hand, cosine, gradients, random_views
from small_methods import batch_of, build

from visionlab.models.backbone import Backbone
from visionlab.pretext import InstanceDiscrimination
from visionlab.pretext.instance_discrimination import draw_images
from visionlab.structures import ViewBatch

IDS, SEEDS = [3, 1, 4], [5, 6, 2**62]


def small(**settings):
    torch.manual_seed(0)
    method = InstanceDiscrimination(SmallEncoder(), image_size=8, projection_dim=4, temperature=0.5, **settings)
    method.prepare(12, 1)
    method.double().bank.rows.copy_(F.normalize(method.bank.rows.double()))  # of length 1 in double precision too
    return method


def scores_of(method, views):
    """Cosines of each image with each row of the bank, over the temperature."""
    rows = by_hand([method.projection], method.encoder.pool(method.encoder.normalize(views[0])))
    return [[cosine(row, other) / 0.5 for other in method.bank.rows] for row in rows]


def softmax(method, views):
    """Equation 2, over all images: the mean of -log of the own image's share."""
    total = 0
    for row, image in zip(scores_of(method, views), IDS, strict=True):
        total = total - row[image] + sum(score.exp() for score in row).log()
    return total / 3


def nce(method, views):
    """Equations 5 to 8, with the logarithm of the normalizer that they come to."""
    scores, noise = scores_of(method, views), draw_images(SEEDS, 8, 12).tolist()
    drawn = [row[j].exp() for row, others in zip(scores, noise, strict=True) for j in others]
    log_normalizer = (12 * sum(drawn) / len(drawn)).log().detach()  # equation 8, a constant
    if isinstance(method.log_normalizer, torch.nn.Parameter):
        log_normalizer = method.log_normalizer

    def share(score):  # equation 5
        p = score.exp() / log_normalizer.exp()
        return p / (p + 8 / 12)

    total = 0  # equation 7
    for row, image, others in zip(scores, IDS, noise, strict=True):
        total = total - share(row[image]).log() - sum((1 - share(row[j])).log() for j in others)
    return total / 3, log_normalizer


def test_softmax_is_over_all_images():
    method, views = small(loss="softmax"), random_views(1)
    loss, expected = method(ViewBatch(views, IDS, seeds=SEEDS)).losses["softmax"], softmax(method, views)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert_same_gradients(gradients(loss, method), gradients(expected, method))


@pytest.mark.parametrize("normalizer", ["fixed", "learned"])
def test_nce_is_the_papers(normalizer):
    method, views = small(noise_samples=8, normalizer=normalizer), random_views(1)
    loss, (expected, log_normalizer) = method(ViewBatch(views, IDS, seeds=SEEDS)).losses["nce"], nce(method, views)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(method.log_normalizer, log_normalizer, rtol=1e-12, atol=0)
    assert_same_gradients(gradients(loss, method), gradients(expected, method))


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
    method.after_step(0, 1)
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
