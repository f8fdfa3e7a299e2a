"""Detection in several views: what each view saw, back in the pixels of the first, and merged once."""

from dataclasses import replace

import pytest
import torch
from test_parts import detector_with

from visionlab.models.merged_views import detect_in_views
from visionlab.structures import Detections, ImageBatch


class Rectangles:
    """A detector that sees exactly where the bright pixels of an image are, and notes how large the image was."""

    def __init__(self):
        self.head, self.seen = self, []

    def candidates(self, batch: ImageBatch) -> list[Detections]:
        found = []
        for pixels, (height, width) in zip(batch.pixels, batch.sizes, strict=True):
            self.seen.append((height, width))
            rows, columns = (pixels[0, :height, :width] > 128).nonzero().unbind(1)
            box = torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)).float()
            found.append(Detections(box[None], torch.tensor([0.5 + 0.001 * width]), torch.tensor([1])))
        return found

    def suppress(self, found: Detections) -> Detections:
        return found


def bright(box, size, padded=(64, 96)) -> ImageBatch:
    pixels = torch.zeros(1, 3, *padded, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    pixels[:, :, y1:y2, x1:x2] = 255
    pixels[:, :, :, size[1] :] = 200  # what lies in the padding is not looked at
    return ImageBatch(pixels, [size], ids=[3])


def test_every_view_finds_the_box_where_it_is():
    batches = [
        bright((10, 20, 30, 40), (50, 80)),
        bright((5, 10, 15, 20), (25, 40)),
        bright((12, 24, 36, 48), (60, 96)),
    ]
    detector = Rectangles()
    [found] = detect_in_views(detector, batches, flip=True)
    assert detector.seen == [(50, 80), (50, 80), (25, 40), (25, 40), (60, 96), (60, 96)]
    torch.testing.assert_close(found.boxes, torch.tensor([[10.0, 20, 30, 40]]).repeat(6, 1))
    assert found.labels.tolist() == [1] * 6
    assert batches[0].pixels[0, 0, 20, 10] == 255  # the batch is as it was


def batch_of(size: int, seed: int = 0) -> ImageBatch:
    pixels = torch.randint(256, (2, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return ImageBatch(pixels, [(size, size - 4), (size - 10, size)])


def mirrored(batch: ImageBatch) -> ImageBatch:
    pixels = batch.pixels.clone()
    for i, (_, width) in enumerate(batch.sizes):
        pixels[i, :, :, :width] = batch.pixels[i, :, :, :width].flip(-1)
    return replace(batch, pixels=pixels)


@pytest.fixture(scope="module")
def detector():
    detector = detector_with(score_threshold=0.2)
    torch.nn.init.normal_(detector.head.classes.weight, std=0.3)
    return detector


@pytest.mark.parametrize("nms", ["hard", "soft_linear", "soft_gaussian"])
def test_one_view_is_what_detect_gives(nms):
    detector = detector_with(score_threshold=0.2, nms=nms)
    torch.nn.init.normal_(detector.head.classes.weight, std=0.3)
    pairs = zip(detect_in_views(detector, [batch_of(64)], flip=False), detector.detect(batch_of(64)), strict=True)
    for found, expected in pairs:
        assert len(found) > 0
        assert torch.equal(found.boxes, expected.boxes)
        assert torch.equal(found.scores, expected.scores)


def test_the_mirror_image_has_mirrored_detections(detector):
    batch = batch_of(64)
    found = detect_in_views(detector, [batch], flip=True)
    of_mirror = detect_in_views(detector, [mirrored(batch)], flip=True)
    plain = detector.detect(batch)
    for ours, theirs, alone, (_, width) in zip(found, of_mirror, plain, batch.sizes, strict=True):
        assert len(ours) > 0
        x1, y1, x2, y2 = theirs.boxes.unbind(1)
        torch.testing.assert_close(ours.boxes, torch.stack((width - x2, y1, width - x1, y2), 1), rtol=0, atol=1e-3)
        torch.testing.assert_close(ours.scores, theirs.scores)
        assert torch.equal(ours.labels, theirs.labels)
        assert len(alone) != len(ours) or not torch.equal(alone.scores, ours.scores)


def test_views_are_suppressed_together(detector):
    small, large = batch_of(64), batch_of(96, seed=1)
    found = detect_in_views(detector, [small, large], flip=False)
    views = [detector.candidates(small), detector.candidates(large)]
    for i, ours in enumerate(found):
        (height, width), (from_height, from_width) = small.sizes[i], large.sizes[i]
        scale = torch.tensor([width / from_width, height / from_height] * 2)
        expected = detector.head.suppress(
            Detections(
                torch.cat((views[0][i].boxes, views[1][i].boxes * scale)),
                torch.cat((views[0][i].scores, views[1][i].scores)),
                torch.cat((views[0][i].labels, views[1][i].labels)),
            )
        )
        assert len(ours) > 0
        torch.testing.assert_close(ours.boxes, expected.boxes)
        assert torch.equal(ours.scores, expected.scores)
        assert (ours.boxes <= torch.tensor([width, height] * 2)).all()


def test_batches_of_other_images_are_refused(detector):
    first, second = replace(batch_of(64), ids=[1, 2]), replace(batch_of(96), ids=[1, 3])
    with pytest.raises(ValueError, match=r"expected the same images at each size, got ids \[1, 2\] and \[1, 3\]"):
        detect_in_views(detector, [first, second], flip=False)
