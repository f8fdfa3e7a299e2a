"""COCO metrics: against raw pycocotools, against each other, against numbers worked out by hand."""

import copy
import json

import numpy as np
import pytest

from visionlab.eval.coco_map import CocoMetrics, coco_metrics

BACKENDS = ["pycocotools", "faster-coco-eval"]
COCO_ORDER = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR", "AR_small"]
COCO_ORDER += ["AR_medium", "AR_large"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "faster-coco-eval":
        pytest.importorskip("faster_coco_eval")
    return request.param


def result(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": [float(x) for x in box], "score": float(score)}


def small_truth():
    """Two images and two categories with gaps in their ids, three objects."""
    boxes = [(3, 7, [10, 10, 40, 40]), (3, 90, [60, 60, 20, 20]), (9, 7, [5, 5, 50, 50])]
    return {
        "images": [{"id": image, "height": 100, "width": 100} for image in (9, 3, 4)],
        "categories": [{"id": 90, "name": "cup"}, {"id": 7, "name": "dog"}, {"id": 8, "name": "never"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, (image, category, box) in enumerate(boxes)
        ],
    }


def noisy_results(truth, seed, classes_missing=2):
    """What a fair detector finds: shifted true boxes with some labels wrong, misses, duplicates and inventions."""
    rng = np.random.default_rng(seed)
    categories = [category["id"] for category in truth["categories"]]
    silent = set(categories[:classes_missing])
    rows = []
    for annotation in truth["annotations"]:
        for _ in range(rng.integers(0, 3)):
            x, y, w, h = annotation["bbox"]
            dx, dy = rng.normal(0, 0.12, 2) * (w, h)
            size = rng.lognormal(0, 0.15, 2) * (w, h)
            category = annotation["category_id"] if rng.random() < 0.8 else rng.choice(categories)
            rows.append(result(annotation["image_id"], int(category), (x + dx, y + dy, *size), round(rng.random(), 2)))
    for image in truth["images"]:
        for _ in range(rng.integers(0, 4)):
            box = rng.uniform(1, 80, 4)
            rows.append(result(image["id"], int(rng.choice(categories)), box, round(rng.random(), 2)))
    return [row for row in rows if row["category_id"] not in silent]


def raw_pycocotools(truth, rows):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(rows)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("dataset", ["coco_mini", "coco_tiny16"])
def test_equals_raw_pycocotools_on_real_ground_truth(test_data, backend, dataset, capsys):
    truth = json.loads((test_data / dataset / "annotations" / "instances_val2017.json").read_text())
    rows = noisy_results(truth, seed=1)
    evaluation = raw_pycocotools(truth, rows)
    capsys.readouterr()
    before = copy.deepcopy((truth, rows))
    metrics = coco_metrics(truth, rows, backend=backend)

    assert (truth, rows) == before
    assert capsys.readouterr().out == ""
    assert metrics.AP > 0.05
    assert len(rows) > 50
    for name, expected in zip(COCO_ORDER, evaluation.stats, strict=True):
        assert metrics.summary()[name] == pytest.approx(expected, abs=1e-12), name
    precision = evaluation.eval["precision"]
    for k, category in enumerate(sorted(truth["categories"], key=lambda c: c["id"])):
        values = precision[:, :, k, 0, 2]
        expected = None if (values == -1).all() else pytest.approx(values.mean(), abs=1e-12)
        assert metrics.per_class[category["name"]] == expected
    for index, iou in ((0, "0.50"), (5, "0.75")):
        values = precision[index, :, :, 0, 2]
        expected = values[:, (values > -1).all(axis=0)].mean(axis=1)
        assert metrics.precision[iou] == pytest.approx(expected, abs=1e-12)


def test_backends_agree_on_random_ground_truth():
    pytest.importorskip("faster_coco_eval")
    rng = np.random.default_rng(0)
    for seed in range(10):
        truth = small_truth()
        truth["annotations"] = [
            {
                "id": i,
                "image_id": int(rng.choice([3, 4, 9])),
                "category_id": int(rng.choice([7, 8, 90])),
                "bbox": rng.uniform(0, 120, 4).tolist(),
                "iscrowd": int(rng.random() < 0.2),
            }
            for i in range(30)
        ]
        rows = noisy_results(truth, seed, classes_missing=0)
        one, other = (coco_metrics(truth, rows, backend=name, max_detections=11 + seed) for name in BACKENDS)
        for name, value in one.summary().items():
            assert other.summary()[name] == pytest.approx(value, abs=1e-12), name
        assert one.per_class == pytest.approx(other.per_class, abs=1e-12)
        for iou in ("0.50", "0.75"):
            assert one.precision[iou] == pytest.approx(other.precision[iou], abs=1e-12)


def test_numbers_worked_out_by_hand(backend):
    """Dogs: a hit, a false alarm, a hit at IoU 0.8; cup: found with IoU 0.64, so at 0.50, 0.55 and 0.60 only."""
    rows = [
        result(3, 7, [10, 10, 40, 40], 0.9),
        result(4, 7, [0, 0, 9, 9], 0.8),
        result(9, 7, [5, 5, 50, 40], 0.7),
        result(3, 90, [60, 60, 16, 16], 0.5),
    ]
    metrics = coco_metrics(small_truth(), rows, backend=backend)
    both, one = (51 * 1 + 50 * 2 / 3) / 101, 51 / 101  # recall 0 to 0.50 at precision 1, the rest at 2/3 or never
    dog = (7 * both + 3 * one) / 10  # IoU 0.8 counts at the seven thresholds 0.50 to 0.80
    assert metrics.per_class == pytest.approx({"dog": dog, "cup": 0.3, "never": None}, abs=1e-9)
    assert pytest.approx((dog + 0.3) / 2, abs=1e-9) == metrics.AP
    assert pytest.approx((both + 1) / 2, abs=1e-9) == metrics.AP50
    assert pytest.approx(both / 2, abs=1e-9) == metrics.AP75
    assert pytest.approx(((7 + 3 * 0.5) / 10 + 0.3) / 2, abs=1e-9) == metrics.AR
    assert pytest.approx(0.3, abs=1e-9) == metrics.AP_small
    assert metrics.AP_large is None
    assert metrics.precision["0.50"][50:52] == pytest.approx([1.0, (2 / 3 + 1) / 2], abs=1e-9)
    assert metrics.recall == pytest.approx(np.arange(101) / 100)


def test_object_with_annotation_id_zero_is_found(backend):
    truth = small_truth()
    assert truth["annotations"][0]["id"] == 0
    rows = [result(a["image_id"], a["category_id"], a["bbox"], 1) for a in truth["annotations"]]
    metrics = coco_metrics(truth, rows, backend=backend)
    assert pytest.approx(1, abs=1e-9) == metrics.AP == metrics.AR


def test_no_detections_is_zero(backend):
    metrics = coco_metrics(small_truth(), [], backend=backend)
    assert metrics.AP == metrics.AP50 == metrics.AP75 == metrics.AR == metrics.AR_1 == metrics.AP_small == 0
    assert metrics.AP_large is None
    assert metrics.per_class == {"dog": 0, "never": None, "cup": 0}
    assert metrics.precision == {"0.50": [0.0] * 101, "0.75": [0.0] * 101}
    assert (metrics.images, metrics.detections) == (3, 0)


@pytest.mark.parametrize("crowd", [True, False])
def test_nothing_to_find_is_undefined(backend, crowd):
    truth = small_truth()
    truth["annotations"] = [{**a, "iscrowd": 1} for a in truth["annotations"]] if crowd else []
    metrics = coco_metrics(truth, [result(3, 7, [1, 1, 9, 9], 0.5)], backend=backend)
    assert set(metrics.summary().values()) == {None}
    assert set(metrics.per_class.values()) == {None}
    assert len(metrics.per_class) == 3
    assert metrics.precision == {}


def test_detection_on_a_crowd_is_no_false_alarm(backend):
    truth = small_truth()
    crowd = {"id": 55, "image_id": 4, "category_id": 7, "bbox": [0, 0, 90, 90], "area": 8100, "iscrowd": 1}
    hits = [result(a["image_id"], a["category_id"], a["bbox"], 0.5) for a in truth["annotations"]]
    inside = [result(4, 7, [20 * i, 20 * i, 10, 10], 0.9) for i in range(4)]
    assert coco_metrics(truth, hits + inside, backend=backend).per_class["dog"] < 0.7
    truth["annotations"].append(crowd)
    assert coco_metrics(truth, hits + inside, backend=backend).per_class["dog"] == pytest.approx(1, abs=1e-9)


def test_only_the_best_detections_count(backend):
    truth = small_truth()
    hits = [result(a["image_id"], a["category_id"], a["bbox"], 0.1) for a in truth["annotations"]]
    clutter = [result(3, 7, [80, 1, 3, 3], 0.9)] * 20
    assert pytest.approx(0.75) == coco_metrics(truth, hits + clutter, backend=backend, max_detections=20).AR
    assert pytest.approx(1) == coco_metrics(truth, hits + clutter, backend=backend, max_detections=21).AR


@pytest.mark.parametrize("crowd", [0, None, False, "0", ""])
def test_what_is_not_said_of_an_annotation_is_filled_in(test_data, backend, crowd):
    case = test_data / "cases" / "eval" / "iscrowd_null"
    truth, rows, expected = (json.loads((case / f"{n}.json").read_text()) for n in ("truth", "results", "expected"))
    for annotation in truth["annotations"]:
        annotation |= {"iscrowd": crowd, "area": None}
    metrics = coco_metrics(truth, rows, backend=backend)
    assert pytest.approx((expected["AP"], expected["AP50"]), abs=1e-6) == (metrics.AP, metrics.AP50)


def test_json_round_trip(backend):
    rows = noisy_results(small_truth(), 0, 0)
    metrics = coco_metrics(small_truth(), rows, backend=backend)
    text = json.dumps({"step": 5, **metrics.to_json()}, allow_nan=False)
    assert CocoMetrics.from_json(json.loads(text)) == metrics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 5}, "image_id of the ground truth, got 5"),
        ({"category_id": 1}, "category_id of the ground truth, got 1"),
        ({"bbox": [1, 2, 3]}, "four finite numbers"),
        ({"bbox": [1, 2, float("nan"), 3]}, "four finite numbers"),
        ({"score": float("nan")}, "score that is a number"),
    ],
)
def test_bad_results_are_named(change, message):
    good = result(3, 7, [1, 2, 3, 4], 0.5)
    with pytest.raises(ValueError, match=message) as error:
        coco_metrics(small_truth(), [good, {**good, **change}])
    assert "result 1" in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="backend must be"):
        coco_metrics(small_truth(), [], backend="coco")
    with pytest.raises(ValueError, match=r"^max_detections: expected more than 10"):
        coco_metrics(small_truth(), [], max_detections=10)
    truth = small_truth()
    truth["categories"][0]["name"] = "dog"
    with pytest.raises(ValueError, match="distinct"):
        coco_metrics(truth, [])


def test_annotations_of_undeclared_images_and_categories_are_left_out(backend):
    truth = small_truth()
    more = copy.deepcopy(truth)
    more["annotations"] += [{**truth["annotations"][0], "image_id": 77}, {**truth["annotations"][0], "category_id": 77}]
    rows = noisy_results(truth, 3, 0)
    assert coco_metrics(more, rows, backend=backend) == coco_metrics(truth, rows, backend=backend)
