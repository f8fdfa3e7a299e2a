"""Every row of the table in a size for tests, and the variants that compute something else."""

from typing import Any

import numpy as np
import torch
from tiny_runs import PRETRAIN

from visionlab.models.backbone import Backbone
from visionlab.pretext import PRETEXTS, Pretext
from visionlab.seeding import derive_seed
from visionlab.structures import ViewBatch

IMAGES = 12  # in the tiny runs
SMALL: dict[str, dict[str, Any]] = {
    "patch_position": {"hidden_dim": 32},
    "jigsaw": {"num_permutations": 50, "tile_dim": 16, "hidden_dim": 32},
    "dim": {"code_dim": 16, "hidden_dim": 32},
    "cpc": {
        "image_size": 64,  # smaller patches end in maps of 1 x 1 with one channel for each group of the norm
        "grid": 3,
        "predict_rows": 1,
        "context_layers": 2,
        "context_dim": 16,
        "target_dim": 16,
    },
    "simclr": {"hidden_dim": 32, "projection_dim": 16},
    "moco": {"hidden_dim": 32, "projection_dim": 16, "queue_size": 24, "momentum": 0.9},
    "vicreg": {"hidden_dim": 32, "projection_dim": 32},
    "instance_discrimination": {"projection_dim": 16, "noise_samples": 8},
}
# What a method asks of its backbone.
BACKBONES: dict[str, dict[str, Any]] = {"cpc": {"norm": "group"}}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dim concat": ("dim", {"scorer": "concat", "estimator": "jsd", "global_weight": 0.5, "num_negatives": 3}),
    "cpc directions": ("cpc", {"directions": 4}),
    "simclr extra": ("simclr", {"extra": [{"transform": "Perspective"}, {"transform": "CoarseDropout"}]}),
    "moco v1": ("moco", {"hidden_dim": None, "temperature": 0.07}),
    "moco dense": ("moco", {"dense": True}),
    "moco v3 momentum": ("moco", {"final_momentum": 1.0}),
    "instance_discrimination learned": ("instance_discrimination", {"normalizer": "learned"}),
    "instance_discrimination softmax": ("instance_discrimination", {"loss": "softmax", "noise_samples": 4096}),
}
METHODS = [*PRETEXTS, *VARIANTS]


def section(method: str) -> dict[str, Any]:
    """Return the section ``pretext`` of a config."""
    name, changes = VARIANTS.get(method, (method, {}))
    return {"name": name, "image_size": 32, **SMALL.get(name, {}), **changes}


def backbone_section(method: str) -> dict[str, Any]:
    """Return the section ``backbone`` of a config."""
    return PRETRAIN["backbone"] | BACKBONES.get(section(method)["name"], {})


def build(method: str, images: int = IMAGES, **backbone: Any) -> Pretext:
    """Return a small method around a small encoder, always with the same weights."""
    torch.manual_seed(0)
    settings = section(method)
    encoder = Backbone(**backbone_section(method) | backbone)
    pretext = PRETEXTS[settings.pop("name")](encoder, **settings)
    pretext.prepare(images, steps=4)
    return pretext


def batch_of(pretext: Pretext, ids=range(8), epoch: int = 0) -> ViewBatch:
    """Views of images that differ in brightness, color and texture; in an epoch, an image has the same views always."""
    samples, seeds = [], [derive_seed(epoch, number) for number in ids]
    for number, seed in zip(ids, seeds, strict=True):
        generator = np.random.default_rng(number)
        image = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        samples.append(pretext.views(image, seed))
    views = [torch.stack(view) for view in zip(*samples, strict=True)]
    return ViewBatch(views, ids=list(ids), files=[f"{number}.png" for number in ids], seeds=seeds)
