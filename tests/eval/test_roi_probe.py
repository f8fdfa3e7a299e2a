"""The RoI probe on pictures whose boxes are told apart by color."""

import pytest
import torch

from visionlab.eval.roi_probe import extract_rois, roi_probe
from visionlab.structures import ImageBatch, Target


def batch(seed: int, images: int = 6) -> ImageBatch:
    """Gray images with two boxes each, one of either class, whose color channel is the class; and a crowd region."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.full((images, 3, 32, 32), 100, dtype=torch.uint8)
    targets = []
    for image in pixels:
        corners = torch.randint(0, 6, (2, 2), generator=generator) * 2 + torch.tensor([[0, 0], [16, 16]])
        for label, (x, y) in enumerate(corners.tolist()):
            image[label, y : y + 6, x : x + 6] = 200
        boxes = torch.cat([corners, corners + 6], dim=1).float()
        boxes = torch.cat([boxes, torch.tensor([[0.0, 0.0, 32.0, 32.0]])])
        targets.append(Target(boxes, torch.tensor([0, 1, 1]), torch.tensor([False, False, True])))
    return ImageBatch(pixels, [(32, 32)] * images, targets)


def encode(batch):
    """Two levels: the colors themselves, and a map that shows nothing."""
    fine = torch.nn.functional.avg_pool2d(batch.pixels.float(), 2)
    return [fine, torch.zeros(len(batch), 3, 8, 8)]


def test_boxes_are_pooled_from_their_own_image_and_place():
    features = extract_rois(encode, [2, 4], [batch(0), batch(1)], output_size=1)
    assert features.labels.tolist() == [0, 1] * 12  # crowd regions are left out
    colors = features.levels["stride 2"]
    own = colors[torch.arange(24), features.labels]
    assert own.min() > 180
    assert colors[torch.arange(24), 1 - features.labels].max() < 110
    assert features.levels["stride 4"].abs().max() == 0


def test_a_level_that_sees_colors_knows_the_classes():
    train, test = (extract_rois(encode, [2, 4], [batch(seed), batch(seed + 1)]) for seed in (2, 4))
    assert train.levels["stride 2"].shape == (24, 3 * 2 * 2)
    scores = roi_probe(train, test)
    assert scores["stride 2"] == {"accuracy": 1.0, "balanced": 1.0}
    assert scores["stride 4"]["balanced"] == 0.5


def test_images_without_boxes():
    empty = batch(0)
    empty.targets = [Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))] * 6
    assert len(extract_rois(encode, [2, 4], [empty, batch(0)])) == 12
    with pytest.raises(ValueError, match=r"^a RoI probe needs boxes, got images without any$"):
        extract_rois(encode, [2, 4], [empty])
