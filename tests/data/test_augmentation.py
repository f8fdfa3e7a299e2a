"""Any transforms of albumentations beside ours: the same as called directly, boxes in step, faults in one line."""

import ast
import pickle
import random
import subprocess
import sys
import warnings
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
import yaml

import visionlab
from visionlab.data.augmentation import Augmentation, extra_seed
from visionlab.data.tiles import Tiles
from visionlab.data.transforms import DetectionTransform
from visionlab.data.views import Views

ROOT = Path(visionlab.__file__).parent
FIVE = {
    "affine": {"__class_fullname__": "Affine", "scale": [0.7, 1.2], "rotate": [-30, 30], "p": 1.0},
    "contrast": {"__class_fullname__": "RandomBrightnessContrast", "brightness_limit": [-0.4, 0.4], "p": 1.0},
    "dropout": {"__class_fullname__": "CoarseDropout", "num_holes_range": [1, 4], "p": 1.0},
    "perspective": {"__class_fullname__": "Perspective", "scale": [0.05, 0.2], "p": 1.0},
    "motion blur": {"__class_fullname__": "MotionBlur", "blur_limit": [3, 9], "p": 1.0},
}
BOXES = np.array([[5, 8, 60, 50], [90, 10, 118, 70], [0, 0, 20, 12], [40, 60, 110, 88]], np.float32)
LABELS = np.array([3, 1, 2, 0])
NO_CROWD = np.zeros(4, bool)
STILL = {"flip": 0.0, "short_side": 90, "max_size": 2000}


@pytest.fixture(scope="module")
def image():
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(noise, (120, 90), interpolation=cv2.INTER_CUBIC)


def direct(entry, image, seed, **boxes):
    """What albumentations itself makes of an image, from the generators of a seed."""
    transform = A.from_dict({"transform": entry})
    parameters = A.BboxParams("pascal_voc", label_fields=["index"], clip=True, min_visibility=0.2) if boxes else None
    compose = A.Compose([transform], bbox_params=parameters)
    compose.set_random_state(np.random.default_rng(extra_seed(seed)), random.Random(extra_seed(seed)))
    return compose(image=image, **boxes)


@pytest.mark.parametrize("entry", FIVE.values(), ids=FIVE)
def test_detection_does_what_albumentations_does_and_labels_stay_with_their_boxes(image, entry):
    transform = DetectionTransform(**STILL, extra=[entry])
    for seed in range(12):
        pixels, target = transform(image, BOXES, LABELS, NO_CROWD, seed)
        expected = direct(entry, image, seed, bboxes=BOXES, index=np.arange(4))
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected["image"])
        left = np.asarray(expected["bboxes"], np.float32).reshape(-1, 4)
        wide = (left[:, 2:] - left[:, :2] >= 1).all(1)
        np.testing.assert_allclose(target.boxes, left[wide], atol=1e-4)
        assert target.labels.tolist() == LABELS[np.asarray(expected["index"], int)[wide]].tolist()


@pytest.mark.parametrize("entry", FIVE.values(), ids=FIVE)
def test_views_do_what_albumentations_does(image, entry):
    plain, changed = Views.crops(image_size=64), Views.crops(image_size=64, extra=[entry])
    for seed in range(6):
        view = plain(image, seed)[0].permute(1, 2, 0).numpy()
        expected = direct(entry, view, visionlab.seeding.derive_seed(seed, 0))["image"]
        np.testing.assert_array_equal(changed(image, seed)[0].permute(1, 2, 0).numpy(), expected)


def test_every_form_says_the_same(image):
    objects = [A.Rotate(limit=20, p=0.7), A.OneOf([A.CLAHE(p=1.0), A.MotionBlur(p=1.0)], p=0.8)]
    whole = A.to_dict(A.Compose(objects))
    forms = [
        objects,
        whole,
        [whole],
        whole["transform"]["transforms"],
        yaml.safe_load(yaml.safe_dump(whole["transform"]["transforms"])),
        [
            {"transform": "Rotate", "limit": 20, "p": 0.7},
            {
                "transform": "albumentations.OneOf",
                "transforms": [{"transform": "CLAHE", "p": 1.0}, {"transform": "MotionBlur", "p": 1.0}],
                "p": 0.8,
            },
        ],
    ]
    made = [[Views.crops(image_size=32, extra=form)(image, seed)[0] for seed in range(8)] for form in forms]
    for views in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(views, made[0], strict=True))
    plain = [Views.crops(image_size=32)(image, seed)[0] for seed in range(8)]
    assert not all(torch.equal(a, b) for a, b in zip(plain, made[0], strict=True))


def test_transforms_of_ones_own_are_copied_not_used(image):
    rotate = A.Rotate(limit=40, p=1.0)
    rotate.set_random_seed(3)
    before = rotate(image=image)["image"]
    rotate.set_random_seed(3)
    Views.crops(image_size=32, extra=[rotate])(image, 5)
    np.testing.assert_array_equal(rotate(image=image)["image"], before)


def test_a_sample_depends_on_its_seed_alone_and_travels(image):
    settings = {**STILL, "crop": 0.1, "color_strength": 0.5, "extra": list(FIVE.values())}
    used, fresh = DetectionTransform(**settings), pickle.loads(pickle.dumps(DetectionTransform(**settings)))
    for seed in (4, 5, 6):
        used(image, BOXES, LABELS, NO_CROWD, seed)
    np.random.seed(0)
    random.seed(0)
    for seed in (9, 2**62):
        (a, target_a), (b, target_b) = (each(image, BOXES, LABELS, NO_CROWD, seed) for each in (used, fresh))
        assert torch.equal(a, b)
        assert torch.equal(target_a.boxes, target_b.boxes)


def test_extra_leaves_the_random_numbers_of_all_else_alone(image):
    nothing = [{"transform": "NoOp"}]
    settings = {**STILL, "flip": 0.5, "crop": 0.2, "color_strength": 0.5}
    plain, extra = DetectionTransform(**settings), DetectionTransform(**settings, extra=nothing)
    for seed in range(8):
        (a, target_a), (b, target_b) = (each(image, BOXES, LABELS, NO_CROWD, seed) for each in (plain, extra))
        assert torch.equal(a, b)
        torch.testing.assert_close(target_a.boxes, target_b.boxes, atol=1e-4, rtol=0)


def test_covered_objects_vanish_and_crowds_stay(image):
    boxes = np.array([[10, 10, 30, 30], [12, 12, 28, 28], [70, 10, 110, 80]], np.float32)
    hole = [{"transform": "CoarseDropout", "num_holes_range": [1, 1], "hole_height_range": [90, 90]}]
    hole[0] |= {"hole_width_range": [45, 45], "p": 1.0}
    transform = DetectionTransform(**STILL, extra=hole)
    vanished = stayed = 0
    for seed in range(30):
        _, target = transform(image, boxes, np.arange(3), np.array([False, True, False]), seed)
        assert (target.crowd == (target.labels == 1)).all()
        assert target.labels.tolist() == sorted(target.labels.tolist())
        vanished += 0 not in target.labels
        stayed += 0 not in target.labels and 1 in target.labels
    assert vanished
    moved = DetectionTransform(**STILL, extra=[{"transform": "Affine", "translate_px": {"x": 112, "y": 0}, "p": 1.0}])
    _, target = moved(image, boxes, np.arange(3), np.array([False, True, False]), 0)
    assert target.labels.tolist() == []
    cut = DetectionTransform(**STILL, extra=[{"transform": "Affine", "translate_px": {"x": -27, "y": 0}, "p": 1.0}])
    boxes[1, 2] = 32  # of both, less than a fifth is left
    _, target = cut(image, boxes, np.arange(3), np.array([False, True, False]), 0)
    assert target.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([{"transform": "Rotat"}], "entry 1: expected the name of a transform of albumentations, got 'Rotat'. Did you"),
        ([{"transform": "os.system"}], "entry 1: expected the name of a transform of albumentations, got 'os.system'"),
        ([{"transform": "BboxParams"}], "entry 1: expected the name of a transform"),
        ([{"p": 1.0}], "entry 1: expected the name of a transform of albumentations, got None"),
        (["Rotate"], "entry 1: expected a transform of albumentations or what describes it, got 'Rotate'"),
        ([torch.nn.Identity()], "entry 1: expected a transform of albumentations or what describes it, got Identity()"),
        ([{"transform": "NoOp"}, {"transform": "Rotate", "limits": 3}], "entry 2: Rotate: expected one of limit, "),
        ([{"transform": "Rotate", "limit": "far"}], "entry 1: Rotate: limit: Input should be"),
        ([{"transform": "Rotate", "p": 3}], "entry 1: Rotate: p: Input should be less than or equal to 1"),
        ([{"transform": "OneOf", "transforms": 3}], "entry 1: OneOf: transforms: expected a list, got 3"),
        ([{"transform": "OneOf", "transforms": [{"transform": "Blurr"}]}], "entry 1: expected the name"),
    ],
)
def test_faulty_entries_are_refused_in_one_line(extra, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for refuse in (DetectionTransform, Views.crops, Tiles, Augmentation):
            with pytest.raises(ValueError, match=r"^extra: ") as error:
                refuse(extra=extra)
            assert str(error.value).startswith(f"extra: {message}")
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (
            Views.crops,
            "ToFloat",
            "expected transforms that give uint8 images of 3 channels and the same size, ToFloat gives",
        ),
        (Views.crops, "RandomScale", "expected transforms that give uint8 images of 3 channels and the same size"),
        (
            DetectionTransform,
            "ToFloat",
            "expected transforms that give uint8 images of 3 channels, ToFloat gives float32",
        ),
        (
            DetectionTransform,
            "PixelDistributionAdaptation",
            "PixelDistributionAdaptation fails on an image of 480",
        ),
        (Tiles, "RandomGridShuffle", "expected transforms other than RandomGridShuffle"),
    ],
)
def test_transforms_that_leave_no_image_are_refused(make, name, message):
    with pytest.raises(ValueError, match=r"^extra: ") as error:
        make(extra=[{"transform": name}])
    assert str(error.value).startswith(f"extra: {message}")


def test_detection_takes_transforms_that_change_the_size(image):
    transform = DetectionTransform(**STILL, extra=[{"transform": "RandomCrop", "height": 45, "width": 60, "p": 1.0}])
    pixels, target = transform(image, BOXES, LABELS, NO_CROWD, 1)
    assert pixels.shape == (3, 90, 120)
    assert (target.boxes <= torch.tensor([120.0, 90, 120, 90])).all()


def test_one_file_imports_albumentations():
    importing = [
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and "albumentations" in (getattr(node, "module", None), *(alias.name for alias in node.names))
        and getattr(node, "module", None) != "visionlab.data.augmentation"
    ]
    assert importing == ["data/augmentation.py"]


@pytest.mark.parametrize(
    "code",
    [
        "import visionlab, visionlab.ops",
        "import visionlab.cli; visionlab.cli.main(['train', '--check', *sys.argv[1:]])",
    ],
)
def test_nothing_imports_it_before_an_image_is_changed(code):
    configs = [str(path) for path in sorted(Path("configs/examples").resolve().glob("*_small.yaml"))[:2]]
    check = "assert 'albumentations' not in sys.modules"
    ops = "assert 'cv2' not in sys.modules" if code.endswith("visionlab.ops") else ""
    whole = f"import sys\ntry:\n    {code}\nexcept SystemExit as end:\n    assert not end.code\n{check}\n{ops}\n"
    done = subprocess.run([sys.executable, "-c", whole, *configs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
