"""What counts as the same detections."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from visionlab.export import agreement
from visionlab.export.agreement import difference
from visionlab.structures import Detections


def detections(*rows: tuple[float, float, int]) -> Detections:
    """Detections of a left side, a score and a label each."""
    return Detections(
        torch.tensor([[left, 0, left + 9, 9] for left, _, _ in rows]).reshape(-1, 4),
        torch.tensor([score for _, score, _ in rows]),
        torch.tensor([label for *_, label in rows], dtype=torch.int64),
    )


EXPECTED = detections((0.0, 0.9, 0), (20.0, 0.8, 1), (40.0, 0.79995, 1), (60.0, 0.0501, 2))


@pytest.mark.parametrize(
    "found",
    [
        EXPECTED,
        detections((0.0009, 0.90009, 0), (20.0, 0.8, 1), (40.0, 0.79995, 1), (60.0, 0.0501, 2)),
        detections((0.0, 0.9, 0), (40.0, 0.79995, 1), (20.0, 0.8, 1), (60.0, 0.0501, 2)),
        detections((0.0, 0.9, 0), (20.0, 0.8, 1), (40.0, 0.79995, 1)),
        detections((0.0, 0.9, 0), (20.0, 0.8, 1), (40.0, 0.79995, 1), (60.0, 0.0501, 2), (80.0, 0.05005, 0)),
    ],
    ids=["equal", "near", "close scores swapped", "one at the threshold absent", "one more at the threshold"],
)
def test_the_same(found: Detections):
    assert difference(EXPECTED, found, 0.05, 100) == ""


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (detections((0.002, 0.9, 0), (20.0, 0.8, 1), (40.0, 0.79995, 1)), r"label 0, score 0.9000, \[0.0.*is absent"),
        (detections((0.0, 0.9, 0), (20.0, 0.8002, 1), (40.0, 0.79995, 1)), "label 1, score 0.8000.* is absent"),
        (detections((0.0, 0.9, 1), (20.0, 0.8, 1), (40.0, 0.79995, 1)), "label 0, score 0.9000.* is absent"),
        (detections(), "label 0, score 0.9000.* is absent"),
        (
            detections((0.0, 0.9, 0), (5.0, 0.85, 0), (20.0, 0.8, 1), (40.0, 0.79995, 1)),
            "label 0, score 0.8500.* is not its own",
        ),
        (detections((20.0, 0.8, 1), (0.0, 0.9, 0), (40.0, 0.79995, 1)), "0 and 1 of the detector are in another order"),
    ],
    ids=["moved", "scored", "labelled", "empty", "one too many", "order"],
)
def test_not_the_same(found: Detections, message: str):
    assert re.search(message, difference(EXPECTED, found, 0.05, 100))


def test_a_full_list_may_end_elsewhere():
    found = detections((0.0, 0.9, 0), (20.0, 0.8, 1))
    assert difference(detections((0.0, 0.9, 0), (40.0, 0.80005, 1)), found, 0.05, 2) == ""
    assert "is absent" in difference(detections((0.0, 0.9, 0), (40.0, 0.82, 1)), found, 0.05, 2)


def test_nothing_found_is_the_same():
    assert difference(detections(), detections(), 0.05, 100) == ""


@dataclass(frozen=True)
class Head:
    score_threshold: float
    max_detections: int = 9


class Finder:
    """What a detector, its graph and its file find, by score: the file may find something else."""

    def __init__(self, monkeypatch, images: list[Detections], file: list[Detections], unfolded: list[Detections]):
        self.images, self.file, self.unfolded = images, file, unfolded
        self.detector: Any = SimpleNamespace(head=SimpleNamespace(settings=Head(0.05)))
        self.graph: Any = SimpleNamespace(static=self)
        self.score_threshold = torch.full((1, 1, 1), 0.05)
        monkeypatch.setattr(agreement, "_batches", lambda graph: [(None, None)])
        monkeypatch.setattr(agreement, "detect", lambda *given: self.above(images, self.least))

    def __call__(self, *given: Any) -> Any:
        return self.answer(self.unfolded, self.least)

    @property
    def least(self) -> float:
        return self.detector.head.settings.score_threshold

    def check(self, batches: list[Any]) -> str:
        def open(constants: Mapping[str, float]) -> Any:
            least = constants.get("static.score_threshold", 0.05)
            return lambda *given: self.answer(self.file, least)

        return agreement.check_detector(open, self.detector, self.graph, batches)

    @staticmethod
    def above(images: list[Detections], least: float) -> list[Detections]:
        return [
            Detections(*(part[image.scores > least] for part in (image.boxes, image.scores, image.labels)))
            for image in images
        ]

    def answer(self, images: list[Detections], least: float) -> Any:
        def padded(part: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(part, [0, 0] * (part.dim() - 1) + [0, 9 - len(part)])

        images = self.above(images, least)
        rows = [[padded(part) for part in (image.boxes, image.scores, image.labels)] for image in images]
        return *map(torch.stack, zip(*rows, strict=True)), torch.tensor([len(image) for image in images])


@pytest.mark.parametrize(
    ("unfolded", "message"),
    [
        ([EXPECTED, EXPECTED], "disagrees with the detector, so nothing is written: the detection of label 0"),
        (
            [EXPECTED, detections()],
            "^detections agree with the detector's own: 4 in 1 synthetic images .1 left out, where rounding changes",
        ),
    ],
    ids=["the detector is sure of", "rounding decides"],
)
def test_the_file_finds_something_else_in_an_image_that(unfolded: list[Detections], message: str, monkeypatch):
    finder = Finder(monkeypatch, [EXPECTED, EXPECTED], [EXPECTED, detections()], unfolded)
    try:
        said = finder.check([])
    except ValueError as error:
        said = str(error)
    assert re.search(message, said)


def test_says_whose_images_were_compared(monkeypatch):
    finder = Finder(monkeypatch, [EXPECTED, EXPECTED], [EXPECTED, EXPECTED], [])
    said = "detections agree with the detector's own: 8 in 2 synthetic images and 16 in 4 of --images"
    assert finder.check([(None, None)] * 2) == said


LOW = detections((0.0, 0.03, 0), (20.0, 0.02, 1))


def test_a_detector_that_finds_nothing_is_compared_below_its_threshold(monkeypatch):
    finder = Finder(monkeypatch, [LOW], [LOW], [LOW])
    nothing = "no detection was compared, as the detector finds nothing in 1 synthetic images"
    advice = "; name images with objects that it finds by --images"
    assert finder.check([]) == f"{nothing}; only 2 boxes of lower scores were, and agree{advice}"
    assert finder.least == 0.05
    assert finder.score_threshold.item() == pytest.approx(0.05)
    finder.file = [detections((5.0, 0.03, 0), (20.0, 0.02, 1))]
    with pytest.raises(ValueError, match=r"label 0, score 0\.0300"):
        finder.check([])
    finder = Finder(monkeypatch, [detections()], [detections()], [])
    assert finder.check([]) == nothing + advice
