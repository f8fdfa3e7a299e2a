"""Run folders as a run writes them: a detector's and a pretraining's, with generated pictures or real ones."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionlab.eval.coco_map import coco_metrics
from visionlab.eval.drawing import draw_comparison, draw_views, save_jpeg
from visionlab.eval.voc_ap import voc_metrics
from visionlab.structures import Detections, Target, ViewBatch

CONFIG = """\
# {title}
task: {task}
data:
  root: photos
  image_size: 320
backbone: {{name: resnet18, norm: train}}
optimizer: {{name: sgd, lr: 0.02, momentum: 0.9, weight_decay: 1e-4}}
schedule: {{name: cosine, warmup: 50}}
steps: {steps}
batch_size: 16
seed: 0
"""


def generated_truth(count=6):
    rng = np.random.default_rng(0)
    names = ["worm", "beetle", "leaf <b>&amp;</b>", "never seen"]
    boxes = [
        (image, rng.integers(0, 3), *rng.uniform(2, 60, 2), *rng.uniform(12, 60, 2))
        for image in range(1, count + 1)
        for _ in range(4)
    ]
    return {
        "images": [
            {"id": image, "file_name": f"{image}.jpg", "height": 120, "width": 128} for image in range(1, count + 1)
        ],
        "categories": [{"id": 10 * (label + 1), "name": name} for label, name in enumerate(names)],
        "annotations": [
            {"id": i + 1, "image_id": image, "category_id": 10 * (int(label) + 1), "bbox": [x, y, w, h], "area": w * h}
            for i, (image, label, x, y, w, h) in enumerate(boxes)
        ],
    }


def real_truth(root, count):
    truth = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    images = truth["images"][:count]
    kept = {image["id"] for image in images}
    return {**truth, "images": images, "annotations": [a for a in truth["annotations"] if a["image_id"] in kept]}


def pixels_of(truth, root):
    for image in truth["images"]:
        if root:
            yield np.asarray(Image.open(root / "val2017" / image["file_name"]).convert("RGB"))
        else:
            rng = np.random.default_rng(image["id"])
            coarse = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
            yield np.asarray(
                Image.fromarray(coarse).resize((image["width"], image["height"]), Image.Resampling.BICUBIC)
            )


def found_in(truth, quality, seed):
    """COCO results that get better with ``quality`` from 0 to 1."""
    rng = np.random.default_rng(seed)
    rows = []
    for annotation in truth["annotations"]:
        x, y, w, h = annotation["bbox"]
        noise = rng.normal(0, 0.35 * (1 - quality), 4) * (w, h, w, h)
        box = [x + noise[0], y + noise[1], w * math.exp(noise[2] / (w + 1)), h * math.exp(noise[3] / (h + 1))]
        row = {"image_id": annotation["image_id"], "category_id": annotation["category_id"], "bbox": box}
        if rng.random() < 0.4 + 0.6 * quality:
            rows.append({**row, "score": float(rng.uniform(0.3, 1) * (0.5 + 0.5 * quality))})
        if rng.random() > quality:
            away = [box[0] * 0.5, box[1] * 0.6, w, h]
            rows.append({**row, "bbox": away, "score": float(rng.uniform(0, 0.9))})
    return rows


def write_log(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_common(folder, task, title, steps):
    (folder / "config.yaml").write_text(CONFIG.format(task=task, title=title, steps=steps))
    environment = {
        "task": task,
        "command": ["python", "tools/train.py", f"configs/{task}.yaml", "data.root=my photos"],
        "versions": {"visionlab": "0.1.0", "python": "3.11.2", "torch": "2.15.0", "timm": "1.0.31"},
        "git": {"commit": "091ceb2f3d", "changed_files": None},
        "device": "cpu",
        "started": "2026-11-23T13:40:00Z",
    }
    (folder / "environment.json").write_text(json.dumps(environment))


def training_row(step, steps, losses):
    rng = np.random.default_rng(step)
    losses = {f"losses/{name}": float(value * rng.lognormal(0, 0.12)) for name, value in losses.items()}
    rate = 0.02 * min(1, step / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
    speed = {"images_per_second": float(rng.normal(41, 2)), "data_wait": float(rng.uniform(0.01, 0.06))}
    speed["gradient_norm"] = float(3 * rng.lognormal(0, 0.3))
    return {"step": step, "time": step * 0.39, "lr": rate, "loss": sum(losses.values()), **losses, **speed}


def write_detect_run(folder, *, quality=0.9, steps=1000, real=None):
    """A detector run evaluated five times; ``real`` is the folder of coco_mini."""
    truth = real_truth(real, 24) if real else generated_truth()
    category_ids = [category["id"] for category in truth["categories"]]
    classes = [category["name"] for category in truth["categories"]]
    for name in ("eval", "pictures", "checkpoints"):
        (folder / name).mkdir(parents=True)
    write_common(folder, "detect", "Faster R-CNN on a few labelled images", steps)
    rows = []
    for step in range(10, steps + 1, 10):
        left = math.exp(-3 * quality * step / steps)
        losses = {"rpn/objectness": 0.6 * left, "rpn/boxes": 0.2 * left + 0.05, "head/classes": 0.9 * left + 0.2}
        rows.append(training_row(step, steps, {**losses, "head/boxes": 0.3 + 0.2 * left}))
        if step % (steps // 5) == 0:
            results = found_in(truth, quality * min(1, 1.1 * step / steps), seed=step)
            metrics = coco_metrics(truth, results)
            rows.append({"step": step, **{f"eval/{name}": value for name, value in metrics.summary().items()}})
            (folder / "eval" / f"step_{step:08d}.json").write_text(json.dumps({"step": step, **metrics.to_json()}))
            (folder / "eval" / f"step_{step:08d}_results.json").write_text(json.dumps(results))
    write_log(folder, rows)
    for image, pixels in zip(truth["images"][:6], pixels_of(truth, real), strict=False):
        target, found = (boxes_of(image["id"], part, category_ids) for part in (truth["annotations"], results))
        picture = draw_comparison(pixels, Target(*found_crowd(target)), Detections(*found), classes)
        save_jpeg(picture, folder / "pictures" / f"val_{image['id']:012d}.jpg")
    (folder / "detector.safetensors").write_bytes(b"weights")
    return folder


def boxes_of(image_id, rows, category_ids):
    rows = [row for row in rows if row["image_id"] == image_id]
    boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([category_ids.index(row["category_id"]) for row in rows], dtype=torch.int64)
    return boxes, torch.tensor([row.get("score", row.get("iscrowd", 0)) for row in rows]), labels


def found_crowd(rows):
    boxes, crowd, labels = rows
    return boxes, labels, crowd.bool()


def write_pretrain_run(folder, *, steps=2000, real=None):
    """A pretraining run whose representation gets narrower in the end."""
    truth = real_truth(real, 16) if real else generated_truth(8)
    (folder / "pictures").mkdir(parents=True)
    write_common(folder, "pretrain", "SimCLR on unlabelled images", steps)
    rows = []
    for step in range(10, steps + 1, 10):
        row = training_row(step, steps, {"contrast": 2 + 3 * math.exp(-4 * step / steps)})
        wobble = math.sin(step / 90) * 0.02
        meters = {"embedding_std": 0.9 - 0.3 * step / steps + wobble, "effective_rank": 60 * (1 - 0.4 * step / steps)}
        meters["accuracy"] = 0.8 * (1 - math.exp(-3 * step / steps)) + wobble
        rows.append({**row, **{f"meters/{name}": value for name, value in meters.items()}})
        if step == 1500:
            rows.append({"step": step, "warning": "the representation is narrow: effective_rank 42"})
    write_log(folder, rows)
    images = [torch.from_numpy(pixels[:96, :96].copy()).permute(2, 0, 1) for pixels in pixels_of(truth, real)]
    views = [torch.stack(images), torch.stack(images).flip(3) // 2 + 40]
    save_jpeg(draw_views(ViewBatch(views)), folder / "pictures" / "views.jpg")
    (folder / "backbone.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture(scope="session")
def pictures_root():
    """Real photographs where there are some, else None: the fixtures generate pixels."""
    folder = os.environ.get("VISIONLAB_TEST_DATA")
    return Path(folder) / "coco_mini" if folder else None


@pytest.fixture(scope="session")
def runs(tmp_path_factory, pictures_root):
    """One run folder of each kind; the fixtures below give each test its own copy."""
    folder = tmp_path_factory.mktemp("runs")
    write_detect_run(folder / "detect_run", real=pictures_root)
    write_detect_run(folder / "generated_run")
    write_detect_run(folder / "weak_run", quality=0.4)
    write_pretrain_run(folder / "pretrain_run", real=pictures_root)
    return folder


@pytest.fixture
def detect_run(runs, tmp_path):
    return shutil.copytree(runs / "detect_run", tmp_path / "detect_run")


@pytest.fixture
def generated_run(runs, tmp_path):
    return shutil.copytree(runs / "generated_run", tmp_path / "generated_run")


@pytest.fixture
def weak_run(runs, tmp_path):
    return shutil.copytree(runs / "weak_run", tmp_path / "weak_run")


@pytest.fixture
def pretrain_run(runs, tmp_path):
    return shutil.copytree(runs / "pretrain_run", tmp_path / "pretrain_run")


@pytest.fixture
def voc_run(generated_run):
    """The run, had it been measured by VOC's metrics."""
    for path in generated_run.glob("eval/step_*_results.json"):
        metrics = voc_metrics(generated_truth(), json.loads(path.read_text()), form="voc07")
        evaluation = {"step": int(path.stem.split("_")[1]), **metrics.to_json()}
        path.with_name(path.name.replace("_results", "")).write_text(json.dumps(evaluation))
    return generated_run
