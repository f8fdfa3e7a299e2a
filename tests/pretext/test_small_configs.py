"""Every small config teaches its task: on images that were held out it beats chance and the network it started from."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from visionlab import run
from visionlab.config.load import load
from visionlab.config.shipped import shipped
from visionlab.data.coco import CocoDataset
from visionlab.data.folder import ImageFolder
from visionlab.data.loader import EvalLoader
from visionlab.data.samples import ViewSamples
from visionlab.data.synthetic import write_synthetic
from visionlab.pretext import PRETEXTS, Pretext
from visionlab.seeding import derive_seed
from visionlab.structures import ViewBatch
from visionlab.studies.encoder_probes import probe_files

NAMES = [*PRETEXTS, "densecl"]
BATCH = 8
# How often a blind guess is right. The other methods are asked to find an image by another view of it in its batch.
CHANCE = {"rotation": 1 / 4, "patch_position": 1 / 8, "jigsaw": 1 / 24, "dim": 1 / BATCH, "cpc": 1 / (BATCH * 25)}

Score = Callable[[Pretext, ViewBatch], float]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The images of all small configs."""
    folder = tmp_path_factory.mktemp("images") / "data"
    write_synthetic(folder, unlabelled=2000, labelled=100, validation=200)
    return folder


@pytest.fixture(scope="module")
def objects(data, tmp_path_factory) -> dict[str, Path]:
    """The labelled objects, cut out as squares: for each part of the data a folder of a folder for each class."""
    folders = {}
    for part in ("train", "val"):
        dataset = CocoDataset(annotations=str(data / "annotations" / f"{part}.json"), images=str(data / part))
        folders[part] = tmp_path_factory.mktemp(part)
        for name in dataset.classes:
            (folders[part] / name).mkdir()
        for number, record in enumerate(dataset.records):
            picture = Image.fromarray(dataset.load(number)[0])
            for place, ((x1, y1, x2, y2), label) in enumerate(zip(record.boxes, record.labels, strict=True)):
                half = max(x2 - x1, y2 - y1) / 2
                x, y = (x1 + x2) / 2, (y1 + y2) / 2
                square = picture.crop(tuple(map(round, (x - half, y - half, x + half, y + half))))
                square.save(folders[part] / dataset.classes[label] / f"{number}_{place}.png")
    return folders


def accuracy(pretext: Pretext, batch: ViewBatch) -> float:
    """Return how often the method's own guess is right."""
    return float(pretext(batch).metrics["accuracy"])


def retrieval(pretext: Pretext, batch: ViewBatch) -> float:
    """Return how often an image's second view is, of all in the batch, the one that is most like its first."""
    first, second = (
        F.normalize(pretext(replace(batch, views=views)).projection) for views in (batch.views, batch.views[::-1])
    )
    return float(((first @ second.T).argmax(1) == torch.arange(len(batch))).float().mean())


@torch.no_grad()
def held_out(pretext: Pretext, score: Score, images: Path) -> torch.Tensor:
    """Return the score of each batch of images that no network has been trained on."""
    views = pretext.views
    if score is retrieval and len(views) == 1:
        views = lambda image, seed: [pretext.views(image, derive_seed(seed, view))[0] for view in range(2)]  # noqa: E731
    loader = EvalLoader(ViewSamples(ImageFolder(root=str(images)), views), batch_size=BATCH, workers=0)
    return torch.tensor([score(pretext.eval(), batch) for batch in loader], dtype=torch.float64)


def lead(scores: torch.Tensor) -> float:
    """Return by how many standard errors the mean is above 0."""
    return statistics.mean(scores.tolist()) / (statistics.stdev(scores.tolist()) / len(scores) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_held_out_scores_are_above_chance_by_three_standard_errors(name, data, objects, tmp_path, record_property):
    config = load(shipped(f"examples/{name}_small.yaml"), [f"out={tmp_path / 'run'}", f"data.root={data}"])
    torch.manual_seed(derive_seed(config.seed, "weights"))
    pretext = config.pretext.build(config.backbone.build())
    pretext.prepare(config.data.unlabelled, config.train.steps)
    score = accuracy if name in CHANCE else retrieval
    before = held_out(pretext, score, data / "val")

    run.execute(config)
    newest = max((tmp_path / "run" / "checkpoints").glob("step_*.pt"))
    states = torch.load(newest)["states"]["task"]
    pretext.load_state_dict({key.removeprefix("pretext."): value for key, value in states.items()})
    after = held_out(pretext, score, data / "val")

    probed = probe_files([tmp_path / "run"], objects["train"], objects["val"], image_size=64, device="cpu")
    for level, scores in probed["trained"][0].items():
        random = statistics.mean(scores[level]["knn"] for scores in probed["random"])
        record_property(f"k-NN, {level}", {"trained": scores["knn"], "random": random})
        print(f"{name}, k-NN of {level}: {scores['knn']:.3f}, random weights {random:.3f}")
    chance = CHANCE.get(name, 1 / BATCH)
    print(f"{name}, {score.__name__}: {after.mean():.3f}, untrained {before.mean():.3f}, chance {chance:.3f}")
    assert lead(after - chance) > 3
    assert lead(after - before) > 3
