"""SimCLR against its formula, pair by pair."""

import torch
from small_encoder import SmallEncoder, assert_same_gradients, by_hand, cosine, gradients, random_views

from visionlab.pretext.simclr import SimCLR
from visionlab.structures import ViewBatch


def formula(method, views):
    """Equation 1: mean over all views of -log of the other view's share among all views but itself."""
    images = torch.cat([method.encoder.normalize(view) for view in views])
    rows = by_hand(method.projection, method.encoder.pool(images))  # one batch norm over both views
    n, total = len(views[0]), 0
    for i in range(2 * n):
        exponents = {k: cosine(rows[i], rows[k]) / 0.2 for k in range(2 * n) if k != i}
        other = i + n if i < n else i - n
        total = total - exponents[other] + sum(each.exp() for each in exponents.values()).log()
    return total / (2 * n)


def test_loss_and_gradient_are_those_of_the_formula():
    torch.manual_seed(0)
    method = SimCLR(SmallEncoder(), image_size=8, temperature=0.2, hidden_dim=5, projection_dim=4).double()
    views = random_views(2)
    loss, expected = method(ViewBatch(views)).losses["contrast"], formula(method, views)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert_same_gradients(gradients(loss, method), gradients(expected, method))
