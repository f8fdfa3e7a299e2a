"""What a comparison of methods keeps equal: shared settings, the encoder of the references, the detector."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from visionlab.config.load import load
from visionlab.config.schema import Detect, Pretrain
from visionlab.data.class_folder import ClassFolder
from visionlab.models.backbone import Backbone

# The detector of a comparison always starts from weights, also where its config has none.
GIVEN_WEIGHTS = "weights=backbone.safetensors"


def load_run(path: Path, task: str, overrides: Sequence[str] = ()) -> Any:
    """Read a config.

    Args:
        path: a YAML file.
        task: what it must be a config of, ``pretrain`` or ``detect``.
        overrides: ``path.to.key=value``.

    Raises:
        ValueError: it is a config of another task, or holds faults.
    """
    run = load(path, overrides)
    if run.task != task:
        raise ValueError(f"{path}: expected a config with task {task}, got {run.task}")
    return run


def check_metrics(path: Path, run: Detect) -> None:
    """Refuse the config of a detector that is not measured by COCO's metrics, which studies compare by.

    Args:
        path: its file, for the message.
        run: what it says.

    Raises:
        ValueError: it is measured otherwise.
    """
    if run.evaluate.metrics != "coco":
        raise ValueError(
            f"{path}: evaluate.metrics: expected coco, which studies compare by, got {run.evaluate.metrics}"
        )


def base_run(runs: Mapping[str, Pretrain]) -> Pretrain:
    """Return the first run of those whose section ``backbone`` most runs have; on a tie, the first of all.

    The references, random weights and supervised training, use this run's encoder and settings, so a method that
    needs another norm does not impose it on them.
    """
    sections = {name: json.dumps(run.backbone.model_dump(), sort_keys=True) for name, run in runs.items()}
    [(most, _)] = Counter(sections.values()).most_common(1)  # of equal counts, the one met first
    return next(run for name, run in runs.items() if sections[name] == most)


def check_shared(runs: Mapping[str, Pretrain]) -> None:
    """Refuse methods that differ in encoder, images or steps.

    Only the normalization of the encoder may differ (``backbone.norm`` and ``backbone.options.norm_layer``), because a
    method may forbid statistics over a batch.

    Args:
        runs: by the name of the method, at least one.

    Raises:
        ValueError: with the setting, and two methods that differ in it.
    """
    shared = {name: _shared(run) for name, run in runs.items()}
    first, expected = next(iter(shared.items()))
    for name, settings in shared.items():
        if settings["weights"] is not None:
            raise ValueError(f"weights: expected none in {name}, every method starts from random ones")
        for key, value in settings.items():
            if value != expected[key]:
                raise ValueError(
                    f"{key}: expected the same for all methods, got {expected[key]} in {first}, {value} in {name}"
                )


def norm_of(run: Pretrain) -> str:
    """Return in words what normalizes the features of a run's encoder: its ``norm_layer``, its ``norm``, or both."""
    layer, norm = _norm_layer(run.backbone.arguments()), run.backbone.norm
    if layer is None:
        return norm
    return str(layer) if norm == "train" else f"{layer} {norm}"


def count_images(run: Pretrain, labelled: ClassFolder) -> dict[str, int]:
    """Count the files that pretraining and supervised training learn from.

    Args:
        run: of a pretext method.
        labelled: the images of supervised training.

    Returns:
        ``pretext`` and ``supervised``, how many files each has, and ``both``, how many are the same files.
    """
    pretext, supervised = ({os.path.realpath(file) for file in data.files} for data in (run.data.build(), labelled))
    return {"pretext": len(pretext), "supervised": len(supervised), "both": len(pretext & supervised)}


def detector_run(path: Path, encoder: Mapping[str, Any], overrides: Sequence[str] = ()) -> Detect:
    """Read a detector's config for an encoder whose weights it will start from.

    The model is the encoder's: name, options, image size. The config says which levels the detector sees, what is
    frozen, and what BatchNorm does; where either of the two has other layers than BatchNorm, the encoder's stay. Levels
    beyond the encoder's last one have no weights in its file. They become extra levels of the neck, so the pyramid
    keeps its strides.

    Args:
        path: config of a detector.
        encoder: settings of a ``Backbone``, all of them.
        overrides: ``key=value`` for the config.

    Raises:
        ValueError: extra levels cannot replace the levels that the encoder lacks, or the config holds faults.
    """
    run = load_run(path, "detect", [GIVEN_WEIGHTS, *overrides])
    check_metrics(path, run)
    own = run.backbone.arguments()
    deformable = own if own["deform_stages"] else encoder
    strides, missing = _split_levels(path, own, encoder)
    backbone = {
        **own,
        **{key: encoder[key] for key in ("name", "image_size", "options")},
        "strides": strides,
        "norm": _joined_norm(own, encoder),
        **{key: deformable[key] for key in ("deform_stages", "deform_groups", "deform_modulated")},
    }
    neck = run.neck.model_dump()
    if missing and "extra_levels" not in neck:
        raise ValueError(
            f"{path}: neck: expected one with extra_levels for {missing} levels that the encoder has not, "
            f"got {neck['name']}"
        )
    if missing:
        neck["extra_levels"] += missing
    sections = [f"backbone={json.dumps(backbone)}", f"neck={json.dumps(neck)}"]
    return load_run(path, "detect", [GIVEN_WEIGHTS, *overrides, *sections])


def _shared(run: Pretrain) -> dict[str, Any]:
    backbone = {key: value for key, value in run.backbone.model_dump().items() if key != "norm"}
    backbone["options"] = {key: value for key, value in (backbone["options"] or {}).items() if key != "norm_layer"}
    shared = {"data": run.data.model_dump(), "backbone": backbone, "weights": run.weights}
    return shared | {"train.steps": run.train.steps, "loader.batch_size": run.loader.batch_size}


def _norm_layer(backbone: Mapping[str, Any]) -> Any:
    return (backbone["options"] or {}).get("norm_layer")


def _joined_norm(own: Mapping[str, Any], encoder: Mapping[str, Any]) -> str:
    alike = _norm_layer(own) == _norm_layer(encoder) and "group" not in (own["norm"], encoder["norm"])
    return own["norm"] if alike else encoder["norm"]


def _split_levels(path: Path, own: Mapping[str, Any], encoder: Mapping[str, Any]) -> tuple[list[int] | None, int]:
    """Return the strides of the wanted levels that an encoder has, and the number of wanted levels that it lacks."""
    if encoder["strides"] is None:
        return own["strides"], 0
    last, wanted = encoder["strides"][-1], own["strides"]
    if wanted is None:
        with torch.random.fork_rng([]):
            levels = {key: own[key] for key in ("strides", "output_stride", "roi_stage")}
            wanted = Backbone(**{**encoder, **levels}).strides
    had = [stride for stride in wanted if stride <= last]
    if not had or wanted != had + [had[-1] * 2 ** (i + 1) for i in range(len(wanted) - len(had))]:
        raise ValueError(
            f"{path}: backbone.strides: expected levels that the encoders have, up to stride {last}, and after them "
            f"only doublings, got {wanted}"
        )
    return had, len(wanted) - len(had)
