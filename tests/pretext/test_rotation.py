"""The four rotations, checked pixel by pixel, and the loss against its formula."""

import numpy as np
import pytest
import torch
from small_encoder import SmallEncoder, assert_same_gradients, gradients, random_views

from visionlab.pretext.rotation import Rotation, rotations
from visionlab.structures import ViewBatch


def test_rotations_are_quarter_turns_counterclockwise():
    image = torch.arange(2 * 3 * 5 * 5, dtype=torch.uint8).reshape(2, 3, 5, 5)
    turned = rotations(image)
    assert turned.shape == (8, 3, 5, 5)
    for turns in range(4):
        for row in range(2):
            expected = np.rot90(image[row].permute(1, 2, 0).numpy(), turns)
            np.testing.assert_array_equal(turned[2 * turns + row].permute(1, 2, 0).numpy(), expected)


def formula(method, images):
    """Mean over turns and images of -log softmax of the number of quarter turns."""
    total = 0
    for image in images:
        for turns in range(4):
            scores = method.classifier.weight @ method.encoder.pool(method.encoder.normalize(image[None]))[0]
            scores = scores + method.classifier.bias
            total = total - (scores[turns] - scores.exp().sum().log())
            image = image.transpose(1, 2).flip(1)  # what was in the last column is the first row
    return total / (4 * len(images))


def test_loss_and_gradient_are_those_of_the_formula():
    torch.manual_seed(0)
    method = Rotation(SmallEncoder(), image_size=8).double()
    (images,) = random_views(1)
    output = method(ViewBatch([images]))
    expected = formula(method, images)
    torch.testing.assert_close(output.losses["rotation"], expected, rtol=1e-12, atol=0)
    assert_same_gradients(gradients(output.losses["rotation"], method), gradients(expected, method))


def test_accuracy_counts_the_turns_that_are_right():
    method = Rotation(SmallEncoder(), image_size=8).double()
    torch.nn.init.zeros_(method.classifier.weight)
    method.classifier.bias.data = torch.tensor([0.0, 0.0, 1.0, 0.0]).double()
    assert method(ViewBatch(random_views(1))).metrics["accuracy"] == 0.25


def test_extra_transforms_that_turn_images_are_refused():
    chosen = [{"transform": "OneOf", "transforms": [{"transform": "Blur"}, {"transform": "RandomRotate90"}]}]
    message = r"^extra: expected transforms other than RandomRotate90, which turns images: the turn is what is to be"
    with pytest.raises(ValueError, match=message):
        Rotation(SmallEncoder(), extra=chosen)
    Rotation(SmallEncoder(), extra=[{"transform": "CoarseDropout"}])
