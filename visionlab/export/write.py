"""What the export command does: a trained network as a file for other runtimes, checked before it is written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

import visionlab
from visionlab.data.folder import image_files
from visionlab.data.images import ImageError, read_image, read_image_sizes
from visionlab.data.transforms import EvaluationResize, fit
from visionlab.export.agreement import RESIZED_PIXEL_TOLERANCE, Open, check_backbone, check_detector, check_resize
from visionlab.export.graphs import (
    SCORE_THRESHOLD,
    BackboneGraph,
    DetectorGraph,
    Limits,
    ResizedGraph,
    described,
    trace,
    trace_resized,
)
from visionlab.export.onnx_file import LEAST_OPSET, describe, resized_pixels, runner, with_resize, write_onnx
from visionlab.files import write_bytes
from visionlab.models.deformable_pools import DeformableRoIPool
from visionlab.models.detector import KIND, read_detector
from visionlab.models.pools import PSRoIAlignPool
from visionlab.models.static_detector import DIVISOR
from visionlab.models.tensor_file import read_tensors
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.models.weights import read_backbone

Format = Literal["onnx", "torch"]
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
MAX_SIDE = 1344  # where nobody says how large images are


def export(
    run: Path,
    out: Path | None = None,
    *,
    format: Format = "onnx",
    opset: int | None = None,
    resize: bool = False,
    max_side: int | None = None,
    max_batch: int = 64,
    images: Sequence[Path] = (),
) -> tuple[Path, str]:
    """Write a detector, or a backbone, as one graph.

    Args:
        run: a run folder, a ``detector.safetensors`` or a ``backbone.safetensors``.
        out: the file to write; by default it lies beside the weights.
        format: ``onnx``, or ``torch`` for ``torch.export.load``.
        opset: version of ONNX's operators; by default what torch's exporter writes.
        resize: take images as they are, and answer boxes in their pixels.
        max_side: the most pixels of height and of width; by default what the detector was trained at, or 1344.
        max_batch: the most images at once.
        images: files and folders of images; what is found in them is compared as well.

    Returns:
        The path of the file, and what was checked.

    Raises:
        ValueError: ``run`` is neither, a setting does not fit, the network has no such form, or the file does not give
            what the network gives; then nothing is written.
    """
    if format not in get_args(Format):
        raise ValueError(f"format: expected one of {', '.join(get_args(Format))}, got {format!r}")
    if format == "torch" and opset is not None:
        raise ValueError("opset: would have no effect, format torch has none")
    if opset is not None and opset < LEAST_OPSET:
        raise ValueError(f"opset: expected at least {LEAST_OPSET}, which torch's exporter writes, got {opset}")
    path = _weights(run)
    out = out or path.with_suffix(SUFFIXES[format])
    if out.exists() and out.samefile(path):
        raise ValueError(f"{out}: expected another file than the weights")
    _, description = read_tensors(path)
    if description.get("kind") != KIND:
        if resize or images:
            name = "resize" if resize else "images"
            raise ValueError(f"{name}: expected a detector, a backbone was not trained at one size")
        return _export_backbone(path, description, out, format, opset, max_side or MAX_SIDE, max_batch)
    return _export_detector(path, out, format, opset, resize, max_side, max_batch, images)


def _weights(run: Path) -> Path:
    if not run.is_dir():
        return run
    files = [run / "detector.safetensors", run / "backbone.safetensors"]
    found = next((file for file in files if file.exists()), None)
    if found is None:
        raise ValueError(f"{run}: expected a detector.safetensors or a backbone.safetensors in it, there is none")
    return found


def _export_detector(
    path: Path,
    out: Path,
    format: Format,
    opset: int | None,
    resize: bool,
    max_side: int | None,
    max_batch: int,
    images: Sequence[Path],
) -> tuple[Path, str]:
    detector = read_detector(path)
    size = detector.provenance.get("resize")
    evaluation = EvaluationResize(**size) if size else None
    if (resize or images) and evaluation is None:
        name = "resize" if resize else "images"
        raise ValueError(f"{name}: {path} does not say which size it was trained at (provenance 'resize')")
    if format == "onnx":
        _refuse_adaptive_bins(detector)
    trained = -(-evaluation.max_size // DIVISOR) * DIVISOR if evaluation else MAX_SIDE
    if resize and max_side is not None:
        raise ValueError("max_side: would have no effect with resize, which takes images of any size")
    least = 2 * max(detector.backbone.strides)
    graph = DetectorGraph(detector, max_side=max_side or max(trained, least), max_batch=max_batch)
    metadata = {
        "kind": KIND,
        "classes": detector.classes,
        "category_ids": detector.provenance.get("category_ids") or list(range(1, len(detector.classes) + 1)),
        "resize": {"short_side": evaluation.short_side, "max_size": evaluation.max_size} if evaluation else None,
        "resize_inside": resize,
        "divisor": DIVISOR,
        "strides": detector.neck.strides,
        "limits": described(graph.limits),
        "proposals": graph.static.proposal_limits.proposals,
        "max_detections": detector.head.settings.max_detections,
        "score_threshold": detector.head.settings.score_threshold,
        "provenance": detector.provenance,
        "settings": detector.settings,
    }
    if resize:
        metadata["resize_difference"] = (
            f"pixels differ by at most {RESIZED_PIXEL_TOLERANCE} of 255 from those of visionlab's own resize"
        )

    batches = _batches(images, evaluation, graph.limits) if evaluation else iter(())

    def check(open: Open) -> str:
        return check_detector(open, detector, graph, batches)

    if not resize:
        return _write(graph, out, format, opset, metadata, check)
    assert evaluation is not None
    program = trace(graph)
    open: Open
    low = {SCORE_THRESHOLD: 0.0}
    if format == "onnx":
        model = write_onnx(program, graph.outputs, opset)
        whole = with_resize(model, evaluation)
        describe(whole, _texts(metadata))
        content, open = whole.SerializeToString(), partial(runner, model)
        front, run = runner(resized_pixels(whole)), runner(whole, low)
    else:
        resized = ResizedGraph(graph, evaluation)
        content, open = _saved(trace_resized(resized), metadata), partial(_program_runner, program)
        of_inner = {f"inner.{name}": value for name, value in low.items()}
        front, run = resized.resized, _program_runner(_loaded(content), of_inner)
    checked = f"{check(open)}; {check_resize(front, run, open(low), evaluation)}"
    write_bytes(out, content)
    return out, checked


def _batches(images: Sequence[Path], resize: EvaluationResize, limits: Limits) -> Iterator[tuple[Tensor, Tensor]]:
    """Return each image as a batch, read and resized as the ``Predictor`` does it; files are looked at at once."""
    files = image_files(images)
    for file, size in zip(files, read_image_sizes(files), strict=True):
        if isinstance(size, ImageError):
            raise size
        height, width = fit(*size, resize.short_side, resize.max_size)
        if height > limits.height[1] or width > limits.width[1]:
            raise ValueError(
                f"images: {file}: expected at most {limits.height[1]}x{limits.width[1]} pixels (height, width), "
                f"got {height}x{width} after resizing"
            )

    def read(file: str) -> tuple[Tensor, Tensor]:
        pixels = resize.apply_to_image(read_image(file))
        height, width = pixels.shape[1:]
        right, below = max(limits.width[0] - width, 0), max(limits.height[0] - height, 0)
        return F.pad(pixels, (0, right, 0, below))[None], torch.tensor([[height, width]])

    return map(read, files)


def _export_backbone(
    path: Path,
    description: Mapping[str, str],
    out: Path,
    format: Format,
    opset: int | None,
    max_side: int,
    max_batch: int,
) -> tuple[Path, str]:
    backbone = read_backbone(path)
    graph = BackboneGraph(backbone, max_side=max_side, max_batch=max_batch)
    metadata = {
        "kind": description["kind"],
        "strides": backbone.strides,
        "channels": backbone.channels,
        "limits": described(graph.limits),
        "provenance": {key: value for key, value in description.items() if key not in ("kind", "format", "visionlab")},
    }
    return _write(graph, out, format, opset, metadata, lambda open: check_backbone(open({}), graph))


def _write(
    graph: Any,
    out: Path,
    format: Format,
    opset: int | None,
    metadata: Mapping[str, Any],
    check: Callable[[Open], str],
) -> tuple[Path, str]:
    program = trace(graph)
    if format == "onnx":
        model = write_onnx(program, graph.outputs, opset)
        describe(model, _texts(metadata))
        checked = check(partial(runner, model))
        content = model.SerializeToString()
    else:
        content = _saved(program, metadata)
        checked = check(partial(_program_runner, _loaded(content)))
    write_bytes(out, content)
    return out, checked


def _saved(program: torch.export.ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(_texts(metadata))})
    return buffer.getvalue()


def _loaded(content: bytes) -> torch.export.ExportedProgram:
    return torch.export.load(io.BytesIO(content))


def _program_runner(
    program: torch.export.ExportedProgram, constants: Mapping[str, float] | None = None
) -> Callable[..., Sequence[Tensor]]:
    """Return what runs a program, with other values for some of its buffers."""
    module = program.module()
    for name, value in (constants or {}).items():
        owner, _, own = name.rpartition(".")
        setattr(module.get_submodule(owner), own, torch.full_like(module.get_buffer(name), value))

    @torch.no_grad()
    def run(*tensors: Tensor) -> Sequence[Tensor]:
        return module(*tensors)

    return run


def _texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return each as JSON, and a text as it is."""
    whole = {"visionlab": visionlab.__version__, **metadata}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in whole.items()}


def _refuse_adaptive_bins(detector: TwoStageDetector) -> None:
    for module in detector.head.modules():
        if isinstance(module, (PSRoIAlignPool, DeformableRoIPool)) and module.sampling_ratio == 0:
            raise ValueError(
                "head.pool.sampling_ratio: expected at least 1 for format onnx, got 0: bins whose number of samples"
                " depends on the RoI have no fixed shape"
            )
