"""VOC's average precision: against loops and fractions in the pixels of its development kit, and by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from visionlab.eval.voc_ap import VocMetrics, voc_metrics

FORMS = ["voc07", "voc12"]
NAMES = {3: "cat", 5: "dog", 8: "sheep", 9: "cow"}
# Image -> objects as VOC writes them: class, xmin, ymin, xmax, ymax (pixels from 1 that belong to the box), difficult.
# No image has a sheep, and the only cow is difficult.
OBJECTS = {
    1: [("cat", 1, 1, 100, 50, 0), ("cat", 111, 11, 160, 60, 1), ("dog", 21, 61, 60, 100, 0)],
    2: [("cat", 11, 11, 40, 40, 0), ("cat", 16, 11, 45, 40, 0)],
    3: [],
    4: [("dog", 1, 1, 200, 150, 0), ("dog", 51, 51, 90, 90, 1), ("cat", 101, 101, 130, 140, 0)],
    5: [("dog", 31, 31, 60, 60, 0), ("dog", 131, 31, 160, 60, 0), ("cow", 11, 81, 80, 120, 1)],
    6: [("dog", 5, 5, 24, 34, 0)],
}
# Detections in the order they come in: image, class, corners as above, score. Equal scores are there on purpose.
FOUND = [
    (1, "cat", 3, 1, 100, 50, 0.95),  # right
    (1, "cat", 1, 1, 98, 52, 0.9),  # the same object again
    (1, "cat", 112, 12, 160, 61, 0.97),  # difficult: neither way
    (1, "cat", 110, 10, 158, 58, 0.5),  # difficult again: neither way
    (1, "dog", 21, 61, 60, 80, 0.8),  # IoU exactly 0.5: right
    (1, "dog", 1, 1, 10, 10, 0.8),  # nothing there, of the same score
    (2, "cat", 12, 11, 41, 40, 0.7),  # nearest to the first
    (2, "cat", 13, 11, 42, 40, 0.6),  # nearest to the first too, though the second is free and overlaps enough
    (2, "cat", 16, 11, 45, 40, 0.7),  # the second
    (3, "cat", 10, 10, 50, 50, 0.7),  # no object in the image
    (3, "sheep", 10, 10, 50, 50, 0.99),  # a class that is nowhere
    (4, "dog", 41, 41, 100, 100, 0.85),  # below 0.5 with the difficult one, and with the one around it
    (4, "dog", 1, 1, 190, 150, 0.4),
    (4, "cat", 101, 101, 130, 119, 0.3),  # below 0.5 by a line of pixels
    (5, "dog", 31, 31, 60, 59, 0.8),
    (5, "dog", 131, 31, 160, 60, 0.1),
    (5, "cow", 11, 81, 80, 120, 0.5),
    (6, "cat", 5, 5, 24, 34, 0.2),  # the wrong class
]


def truth(objects=OBJECTS):
    annotations = [
        {
            "id": 100 * image + number,
            "image_id": image,
            "category_id": next(key for key, value in NAMES.items() if value == name),
            "bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1],
            "iscrowd": 0,
            "difficult": difficult,
        }
        for image, rows in objects.items()
        for number, (name, x1, y1, x2, y2, difficult) in enumerate(rows)
    ]
    categories = [{"id": number, "name": name} for number, name in NAMES.items()]
    return {"images": [{"id": image} for image in objects], "annotations": annotations, "categories": categories}


def results(found=FOUND):
    numbers = {name: number for number, name in NAMES.items()}
    return [
        {
            "image_id": image,
            "category_id": numbers[name],
            "bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1],
            "score": score,
        }
        for image, name, x1, y1, x2, y2, score in found
    ]


def slow_ap(name, objects, found, form):
    """AP of a class, an exact fraction, or None: the steps of the development kit, with 1 added to every side."""
    count = sum(row[0] == name and not row[5] for rows in objects.values() for row in rows)
    if not count:
        return None
    taken = set()
    hits, misses, points = 0, 0, []
    rows = [row for row in found if row[1] == name]
    while rows:
        best = max(range(len(rows)), key=lambda place: (rows[place][6], -place))
        image, _, x1, y1, x2, y2, _ = rows.pop(best)
        most, nearest = Fraction(-1), None
        for place, (kind, a1, b1, a2, b2, difficult) in enumerate(objects[image]):
            width, height = min(x2, a2) - max(x1, a1) + 1, min(y2, b2) - max(y1, b1) + 1
            if kind != name or width <= 0 or height <= 0:
                continue
            both = (x2 - x1 + 1) * (y2 - y1 + 1) + (a2 - a1 + 1) * (b2 - b1 + 1)
            overlap = Fraction(width * height, both - width * height)
            if overlap > most:
                most, nearest = overlap, (image, place, difficult)
        if most >= Fraction(1, 2) and nearest[2]:
            continue
        if most >= Fraction(1, 2) and nearest not in taken:
            taken.add(nearest)
            hits += 1
        else:
            misses += 1
        points.append((Fraction(hits, count), Fraction(hits, hits + misses)))
    if form == "voc07":
        levels = [Fraction(tenth, 10) for tenth in range(11)]
        return sum(max((p for r, p in points if r >= level), default=Fraction(0)) for level in levels) / 11
    area, before = Fraction(0), Fraction(0)
    for recall, _ in points:
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


@pytest.mark.parametrize("form", FORMS)
def test_six_images_equal_the_slow_reference(form):
    metrics = voc_metrics(truth(), results(), form=form)
    expected = {name: slow_ap(name, OBJECTS, FOUND, form) for name in NAMES.values()}
    assert [name for name, value in expected.items() if value is None] == ["sheep", "cow"]
    assert metrics.per_class == pytest.approx({k: v if v is None else float(v) for k, v in expected.items()}, abs=1e-15)
    assert metrics.mAP == pytest.approx(float((expected["cat"] + expected["dog"]) / 2), abs=1e-15)
    assert (metrics.images, metrics.detections, metrics.passed_over) == (6, len(FOUND), 3)
    assert len(metrics.recall) == len(metrics.precision["0.50"]) == (11 if form == "voc07" else 101)
    if form == "voc07":
        assert np.mean(metrics.precision["0.50"]) == pytest.approx(metrics.mAP)


@pytest.mark.parametrize("form", FORMS)
def test_random_detections_equal_the_slow_reference(form):
    for seed in range(15):
        rng = np.random.default_rng(seed)
        objects, found = {}, []
        for image in range(1, 7):
            corners = rng.integers(1, 20, (rng.integers(0, 6), 2))
            sides = rng.integers(2, 12, corners.shape)
            kinds = rng.choice(list(NAMES.values()), len(corners))
            objects[image] = [
                (str(kind), *map(int, (*corner, *(corner + side))), int(rng.random() < 0.3))
                for kind, corner, side in zip(kinds, corners, sides, strict=True)
            ]
            for kind, x1, y1, x2, y2, _ in objects[image] * 2:
                shift = rng.integers(0, 4, 2)
                score = round(float(rng.random()), 1)
                found.append((image, kind, x1 + shift[0], y1, x2 + shift[0], y2 + shift[1], score))
        metrics = voc_metrics(truth(objects), results(found), form=form)
        expected = {name: slow_ap(name, objects, found, form) for name in NAMES.values()}
        assert metrics.per_class == pytest.approx({k: v if v is None else float(v) for k, v in expected.items()})


def test_by_hand():
    """Two of four objects found, with a miss in between: precision 1, 1/2, 2/3 at recall 1/4, 1/4, 1/2."""
    objects = {1: [("cat", 1, 1, 10, 10, 0), ("cat", 21, 1, 30, 10, 0), ("cat", 41, 1, 50, 10, 0)]}
    objects[2] = [("cat", 1, 1, 10, 10, 0)]
    found = [(1, "cat", 1, 1, 10, 10, 0.9), (1, "cat", 61, 1, 70, 10, 0.8), (2, "cat", 1, 1, 10, 10, 0.7)]
    ap07, ap12 = (voc_metrics(truth(objects), results(found), form=form).mAP for form in FORMS)
    assert ap07 == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)
    assert ap12 == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)


@pytest.mark.parametrize("form", FORMS)
def test_difficult_objects_neither_help_nor_hurt(form):
    """A detector that finds them, one that does not, and one that finds them twice are worth the same."""
    without = {image: [row for row in rows if not row[5]] for image, rows in OBJECTS.items()}
    others = [row for row in FOUND if row[0] != 1 or row[6] not in (0.97, 0.5)]
    expected = voc_metrics(truth(without), results(others), form=form).per_class
    finds = [(image, *row[:5], 0.999) for image, rows in OBJECTS.items() for row in rows if row[5]]
    for found in (others, [*others, *finds], [*others, *finds, *finds]):
        assert voc_metrics(truth(), results(found), form=form).per_class == expected
    crowd = truth()
    for row in crowd["annotations"]:
        row["iscrowd"], row["difficult"] = row["difficult"], 0
    assert voc_metrics(crowd, results(), form=form) == voc_metrics(truth(), results(), form=form)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_found_and_nothing_to_find(form):
    nothing = voc_metrics(truth(), [], form=form)
    assert nothing.per_class == {"cat": 0, "dog": 0, "sheep": None, "cow": None}
    assert nothing.mAP == 0
    empty = voc_metrics(truth({1: []}), results([FOUND[0]]), form=form)
    assert (empty.mAP, set(empty.per_class.values()), empty.precision) == (None, {None}, {})
    assert VocMetrics.from_json(empty.to_json()) == empty


def test_odd_results_are_refused():
    with pytest.raises(ValueError, match="result 0 must have a image_id of the ground truth, got 77"):
        voc_metrics(truth(), results([(77, "cat", 1, 1, 2, 2, 0.5)]), form="voc07")
    with pytest.raises(ValueError, match="score that is a number"):
        voc_metrics(truth(), results([(1, "cat", 1, 1, 2, 2, float("nan"))]), form="voc07")
