"""What each method draws of a batch is what its network sees, and every run writes it."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_methods import METHODS, backbone_section, batch_of, build, section
from tiny_runs import PRETRAIN, visionlab, write_config
from torch import Tensor

from visionlab import run
from visionlab.config.build import unlabelled_loader
from visionlab.config.load import load
from visionlab.eval.drawing import draw_views
from visionlab.pretext import PRETEXTS, Pretext
from visionlab.seeding import derive_seed
from visionlab.structures import ViewBatch


def crops(pretext: Pretext, batch: ViewBatch) -> list[Tensor]:
    return batch.views


def turns(pretext: Pretext, batch: ViewBatch) -> list[Tensor]:
    (images,) = batch.views
    return [torch.from_numpy(np.rot90(images.numpy(), number, axes=(2, 3)).copy()) for number in range(4)]


def tiles(pretext: Pretext, batch: ViewBatch) -> list[Tensor]:
    return [grid([batch.views] * len(batch))]


def puzzle(pretext: Pretext, batch: ViewBatch) -> list[Tensor]:
    """The tiles in order and in the order that is to be told, each channel with a mean of 128 and a deviation of 50."""
    seen = []
    for tile in batch.views:
        pixels = pretext.encoder.normalize(tile)
        variance, mean = torch.var_mean(pixels, (2, 3), correction=0, keepdim=True)
        seen.append((128 + 50 * (pixels - mean) / (variance + 1e-4).sqrt()).clamp(0, 255).to(torch.uint8))
    orders = [pretext.permutations[derive_seed(seed, "permutation", 0) % 50].tolist() for seed in batch.seeds]
    return [grid([seen] * len(batch)), grid([[seen[tile] for tile in order] for order in orders])]


def grid(tiles_of: list[list[Tensor]]) -> Tensor:
    """Put row i of the tiles that image i has side by side, with two white pixels between them."""
    side, size = round(len(tiles_of[0]) ** 0.5), tiles_of[0][0].shape[2]
    picture = torch.full((len(tiles_of), 3, *[side * (size + 2) - 2] * 2), 255, dtype=torch.uint8)
    for image, row in enumerate(tiles_of):
        for number, tile in enumerate(row):
            y, x = number // side * (size + 2), number % side * (size + 2)
            picture[image, :, y : y + size, x : x + size] = tile[image]
    return picture


PICTURES = dict.fromkeys(PRETEXTS, crops) | {
    "rotation": turns,
    "patch_position": tiles,
    "cpc": tiles,
    "jigsaw": puzzle,
}


@pytest.mark.parametrize("method", METHODS)
def test_pictures_show_what_the_network_sees(method):
    pretext = build(method)
    batch = batch_of(pretext)
    name = section(method)["name"]
    drawn, expected = pretext.pictures(batch).views, PICTURES[name](pretext, batch)
    assert len(drawn) == len(expected)
    for picture, pixels in zip(drawn, expected, strict=True):
        assert picture.dtype == torch.uint8
        rounding = 1 if name == "jigsaw" else 0
        torch.testing.assert_close(picture.int(), pixels.int(), rtol=0, atol=rounding)


@pytest.mark.parametrize("method", PRETEXTS)
def test_a_run_draws_its_first_batch(method, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "write_report", lambda folder: folder / "report.html")
    sections = {"pretext": section(method), "backbone": backbone_section(method), "train": {"steps": 1}}
    config = write_config(tmp_path, PRETRAIN, **sections)
    assert visionlab("train", config) == 0
    settings = load(config)
    pretext = settings.pretext.build(settings.backbone.build())
    loader = unlabelled_loader(settings, settings.data.build(), pretext.views, torch.device("cpu"))
    expected = draw_views(pretext.pictures(next(iter(loader.batches(0)))))
    found = np.asarray(Image.open(tmp_path / "pretrain" / "pictures" / "views.jpg"))
    assert found.shape == expected.shape
    assert np.abs(found.astype(float) - expected).mean() < 8  # what JPEG loses
