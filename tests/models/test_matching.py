"""Matching against a loop over pairs, and sampling by its counts."""

import pytest
import torch
from torch import Tensor

from visionlab.models.matching import (
    BACKGROUND,
    IGNORED,
    BalancedSampler,
    draw_samples,
    match_boxes,
    split_crowds,
)
from visionlab.structures import Target


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(40, (count, 2), generator=generator)
    return torch.cat((corner, corner + torch.randint(4, 30, (count, 2), generator=generator)), dim=1).float()


def overlap(a: list[float], b: list[float]) -> float:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def area(a: list[float]) -> float:
    return (a[2] - a[0]) * (a[3] - a[1])


def slow_match(candidates, boxes, crowds, positive_iou, negative_iou, keep_best) -> list[int]:
    """The definition, candidate by candidate."""
    iou = [[overlap(b, c) / (area(b) + area(c) - overlap(b, c)) for c in candidates] for b in boxes]
    matches = []
    for i, candidate in enumerate(candidates):
        column = [row[i] for row in iou]
        best = max(column)
        match = column.index(best) if best >= positive_iou else BACKGROUND if best < negative_iou else IGNORED
        if keep_best and any(row[i] == max(row) and row[i] > 0 for row in iou):
            match = column.index(best)
        if match == BACKGROUND and any(overlap(candidate, crowd) >= 0.5 * area(candidate) for crowd in crowds):
            match = IGNORED
        matches.append(match)
    return matches


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_matches_by_definition(seed, keep_best):
    candidates, boxes, crowds = random_boxes(200, seed), random_boxes(6, seed + 100), random_boxes(2, seed + 200)
    matches = match_boxes(candidates, boxes, crowds, positive_iou=0.5, negative_iou=0.3, keep_best=keep_best)
    expected = slow_match(candidates.tolist(), boxes.tolist(), crowds.tolist(), 0.5, 0.3, keep_best)
    assert matches.tolist() == expected
    assert {BACKGROUND, IGNORED} < set(expected)


def match(candidates: list, boxes: list, crowds: list | tuple = (), keep_best: bool = True) -> list[int]:
    tensors = [torch.tensor(rows, dtype=torch.float32).reshape(-1, 4) for rows in (candidates, boxes, crowds)]
    return match_boxes(*tensors, positive_iou=0.7, negative_iou=0.3, keep_best=keep_best).tolist()


def test_ties_for_an_objects_best_are_all_positive():
    # Both candidates share a third of the object and nobody shares more.
    candidates = [[0, 0, 10, 10], [10, 0, 20, 10], [100, 0, 110, 10]]
    assert match(candidates, [[5, 0, 15, 10]]) == [0, 0, BACKGROUND]
    assert match(candidates, [[5, 0, 15, 10]], keep_best=False) == [IGNORED, IGNORED, BACKGROUND]


def test_an_objects_best_candidate_goes_to_the_object_that_it_overlaps_most():
    # The candidate is the best that either object has; it is nearer to the second.
    assert match([[0, 0, 10, 10]], [[0, 0, 10, 2], [0, 0, 10, 6]]) == [1]


def test_an_object_that_nothing_overlaps_makes_nothing_positive():
    assert match([[0, 0, 10, 10], [20, 0, 30, 10]], [[50, 50, 60, 60]]) == [BACKGROUND, BACKGROUND]


def test_no_objects_no_candidates():
    assert match([[0, 0, 10, 10]], []) == [BACKGROUND]
    assert match([], [[0, 0, 10, 10]]) == []
    assert match([], []) == []


def test_a_crowd_is_neither_object_nor_background():
    candidates = [[0, 0, 10, 10], [8, 0, 18, 10], [40, 0, 50, 10]]
    assert match(candidates, [], [[0, 0, 12, 12]]) == [IGNORED, BACKGROUND, BACKGROUND]
    # What stands for an object inside a crowd stays positive.
    assert match(candidates, [[0, 0, 10, 10]], [[0, 0, 12, 12]])[0] == 0


def test_same_as_torchvision():
    matcher = pytest.importorskip("torchvision.models.detection._utils").Matcher(0.5, 0.3, True)
    iou = pytest.importorskip("torchvision.ops").box_iou
    candidates, boxes = random_boxes(500, 7), random_boxes(10, 8)
    ours = match_boxes(candidates, boxes, boxes[:0], positive_iou=0.5, negative_iou=0.3, keep_best=True)
    assert torch.equal(ours, matcher(iou(boxes, candidates)))


def test_split_crowds():
    mixed = Target(random_boxes(3, 0), torch.tensor([4, 5, 6]), torch.tensor([False, True, False]))
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    (objects, crowds), (nothing, no_crowds) = split_crowds([mixed, empty])
    assert objects.labels.tolist() == [4, 6]
    assert torch.equal(objects.boxes, mixed.boxes[[0, 2]])
    assert torch.equal(crowds, mixed.boxes[1:2])
    assert len(nothing.boxes) == len(no_crowds) == 0
    assert split_crowds([empty])[0][1].shape == (0, 4)


@pytest.mark.parametrize(
    ("positives", "negatives", "ignored", "expected"),
    [
        (100, 1000, 50, (16, 48)),  # plenty of both: the share decides
        (5, 1000, 50, (5, 59)),  # few positives: background fills up
        (100, 10, 50, (16, 10)),  # little background: positives keep to their share
        (0, 1000, 0, (0, 64)),
        (3, 2, 1, (3, 2)),
        (0, 0, 9, (0, 0)),
        (0, 0, 0, (0, 0)),
    ],
)
def test_sample_counts(positives, negatives, ignored, expected):
    matches = torch.cat(
        (
            torch.arange(positives),
            torch.full((negatives,), BACKGROUND),
            torch.full((ignored,), IGNORED),
        )
    )[torch.randperm(positives + negatives + ignored)]
    rows, chosen = BalancedSampler(64, 0.25)(matches, seed=3)
    assert len(rows) == len(chosen) == min(64, len(matches))
    picked = matches[rows[chosen]]
    assert len(rows[chosen].unique()) == len(picked)
    assert ((picked >= 0).sum().item(), (picked == BACKGROUND).sum().item()) == expected


def test_samples_depend_on_the_seed_alone():
    matches = torch.randint(-2, 3, (5000,))
    sampler = BalancedSampler(100, 0.5)
    first = sampler(matches, seed=1)[0]
    torch.manual_seed(99)
    assert torch.equal(first, sampler(matches, seed=1)[0])
    assert not torch.equal(first, sampler(matches, seed=2)[0])


def test_samples_are_uniform():
    matches = torch.cat((torch.zeros(20, dtype=torch.int64), torch.full((40,), BACKGROUND)))
    sampler, counts = BalancedSampler(20, 0.5), torch.zeros(60)
    for seed in range(2000):
        rows, chosen = sampler(matches, seed)
        counts[rows[chosen]] += 1
    # 10 of 20 and 10 of 40, each a binomial of 2000 draws: six standard deviations are below 140.
    assert (counts[:20] - 1000).abs().max() < 140
    assert (counts[20:] - 500).abs().max() < 140


def test_draw_samples_looks_up_the_objects():
    objects = Target(random_boxes(2, 0), torch.tensor([7, 8]), torch.zeros(2, dtype=torch.bool))
    matches = torch.tensor([1, BACKGROUND, IGNORED, 0])
    samples = draw_samples(matches, objects, lambda matches, seed: (torch.arange(4), matches != IGNORED), seed=0)
    assert samples.labels.tolist() == [8, BACKGROUND, BACKGROUND, 7]
    assert samples.positive.tolist() == [True, False, False, True]
    assert torch.equal(samples.boxes[[0, 3]], objects.boxes[[1, 0]])


@pytest.mark.parametrize(
    ("samples", "fraction", "name"),
    [(0, 0.5, "samples_per_image"), (10, 1.5, "positive_fraction"), (10, -0.1, "positive_fraction")],
)
def test_sampler_refuses_what_makes_no_sense(samples, fraction, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        BalancedSampler(samples, fraction)
