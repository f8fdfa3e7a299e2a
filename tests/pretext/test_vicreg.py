"""VICReg against its formula, number by number."""

import torch
from small_encoder import SmallEncoder, assert_same_gradients, by_hand, gradients, random_views

from visionlab.pretext.vicreg import VICReg
from visionlab.structures import ViewBatch


def formula(method, views):
    """The terms with their weights; invariance and variance are means over dimensions, as in the authors' code."""
    images = torch.cat([method.encoder.normalize(view) for view in views])
    embedded = by_hand(method.expander, method.encoder.pool(images)).chunk(2)
    n, d = embedded[0].shape
    invariance = sum((a[j] - b[j]) ** 2 for a, b in zip(*embedded, strict=True) for j in range(d)) / n / d
    variance = covariance = 0
    for rows in embedded:
        mean = sum(rows) / n
        matrix = [
            [sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) / (n - 1) for j in range(d)] for i in range(d)
        ]
        variance = variance + sum((1 - (matrix[j][j] + 1e-4).sqrt()).clamp_min(0) for j in range(d)) / d / 2
        covariance = covariance + sum(matrix[i][j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    return {"invariance": 7 * invariance, "variance": 5 * variance, "covariance": 3 * covariance}


def test_losses_and_gradients_are_those_of_the_formula():
    torch.manual_seed(0)
    weights = {"invariance": 7.0, "variance": 5.0, "covariance": 3.0}
    method = VICReg(SmallEncoder(), image_size=8, hidden_dim=5, projection_dim=4, **weights).double()
    views = random_views(2, images=4)
    output, expected = method(ViewBatch(views)), formula(method, views)
    for name, loss in expected.items():
        assert loss > 0
        torch.testing.assert_close(output.losses[name], loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(output.metrics[name], loss / weights[name], rtol=1e-12, atol=0)
    losses = (sum(output.losses.values()), sum(expected.values()))
    assert_same_gradients(*(gradients(loss, method) for loss in losses))
