"""What the export command does: a trained network as a file for other runtimes, checked before it is written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

import visionlab
from visionlab.checks import check_at_least
from visionlab.data.samples import collate_images
from visionlab.data.transforms import EvaluationResize
from visionlab.export.agreement import check_backbone, check_detector, difference
from visionlab.export.graphs import BackboneGraph, DetectorGraph, described, trace
from visionlab.export.onnx_file import describe, resized_pixels, runner, with_resize, write_onnx
from visionlab.files import write_bytes
from visionlab.models.deformable_pools import DeformableRoIPool
from visionlab.models.detector import KIND, read_detector
from visionlab.models.pools import PSRoIAlignPool
from visionlab.models.static_detector import DIVISOR
from visionlab.models.tensor_file import read_tensors
from visionlab.models.two_stage_detector import TwoStageDetector
from visionlab.models.weights import read_backbone
from visionlab.structures import Detections

Format = Literal["onnx", "torch"]
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
MAX_SIDE = 1344  # where nobody says how large images are
RESIZED_PIXEL_TOLERANCE = 1  # of 255


def export(
    run: Path,
    out: Path | None = None,
    *,
    format: Format = "onnx",
    opset: int | None = None,
    resize: bool = False,
    max_side: int | None = None,
    max_batch: int = 64,
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

    Returns:
        The path of the file, and what was checked.

    Raises:
        ValueError: ``run`` is neither, a setting does not fit, the network has no such form, or the file does not give
            what the network gives; then nothing is written.
    """
    check_at_least(1, opset=opset)
    if format not in get_args(Format):
        raise ValueError(f"format: expected one of {', '.join(get_args(Format))}, got {format!r}")
    if format == "torch" and opset is not None:
        raise ValueError("opset: would have no effect, format torch has none")
    if format == "torch" and resize:
        raise ValueError("resize: expected format onnx; in Python, load_detector resizes and detects")
    path = _weights(run)
    out = out or path.with_suffix(SUFFIXES[format])
    if out.exists() and out.samefile(path):
        raise ValueError(f"{out}: expected another file than the weights")
    _, description = read_tensors(path)
    if description.get("kind") != KIND:
        if resize:
            raise ValueError("resize: expected a detector, a backbone was not trained at one size")
        return _export_backbone(path, description, out, format, opset, max_side or MAX_SIDE, max_batch)
    return _export_detector(path, out, format, opset, resize, max_side, max_batch)


def _weights(run: Path) -> Path:
    if not run.is_dir():
        return run
    files = [run / "detector.safetensors", run / "backbone.safetensors"]
    found = next((file for file in files if file.exists()), None)
    if found is None:
        raise ValueError(f"{run}: expected a detector.safetensors or a backbone.safetensors in it, there is none")
    return found


def _export_detector(
    path: Path, out: Path, format: Format, opset: int | None, resize: bool, max_side: int | None, max_batch: int
) -> tuple[Path, str]:
    detector = read_detector(path)
    size = detector.provenance.get("resize")
    evaluation = EvaluationResize(**size) if size else None
    if resize and evaluation is None:
        raise ValueError(f"resize: {path} does not say which size it was trained at (provenance 'resize')")
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

    def check(run: Callable[..., Any]) -> str:
        return check_detector(run, detector, graph)

    if not resize:
        return _write(graph, out, format, opset, metadata, check)
    assert evaluation is not None
    model = write_onnx(trace(graph), graph.outputs, opset)
    checked = check(runner(model))
    whole = with_resize(model, evaluation)
    describe(whole, _texts(metadata))
    checked += f"; {_check_resize(whole, model, evaluation, detector)}"
    write_bytes(out, whole.SerializeToString())
    return out, checked


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
    return _write(graph, out, format, opset, metadata, lambda run: check_backbone(run, graph))


def _write(
    graph: Any,
    out: Path,
    format: Format,
    opset: int | None,
    metadata: Mapping[str, Any],
    check: Callable[[Callable[..., Any]], str],
) -> tuple[Path, str]:
    program = trace(graph)
    if format == "onnx":
        model = write_onnx(program, graph.outputs, opset)
        describe(model, _texts(metadata))
        checked = check(runner(model))
        content = model.SerializeToString()
    else:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(_texts(metadata))})
        content = buffer.getvalue()
        with torch.no_grad():
            checked = check(torch.export.load(io.BytesIO(content)).module())
    write_bytes(out, content)
    return out, checked


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


def _check_resize(whole: Any, model: Any, resize: EvaluationResize, detector: TwoStageDetector) -> str:
    """Compare the pixels that a file makes of images with the evaluation's own, and what it finds with the plain one.

    Returns:
        What was compared, for people.
    """
    front, run, plain = runner(resized_pixels(whole)), runner(whole), runner(model)
    generator = np.random.default_rng(0)
    largest = 0
    for height, width in ((97, 160), (301, 187)):
        blocks = generator.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
        image = np.kron(blocks, np.ones((16, 16, 1), np.uint8))[:height, :width]
        pixels, sizes = front(torch.from_numpy(image[None].copy()))
        own = collate_images([resize.apply_to_image(image)], divisor=1)
        if pixels.shape != own.pixels.shape or sizes.tolist() != [list(own.sizes[0])]:
            raise ValueError(
                f"the exported resize disagrees, so nothing is written: expected {own.sizes[0]}, got {sizes.tolist()}"
            )
        largest = max(largest, int((pixels.int() - own.pixels.int()).abs().max()))
        if largest > RESIZED_PIXEL_TOLERANCE:
            raise ValueError(f"the exported resize disagrees by {largest} of 255, so nothing is written")
        expected, found = (
            _first(answer) for answer in (plain(pixels, sizes), run(torch.from_numpy(image[None].copy())))
        )
        scale = torch.tensor([width / int(sizes[0, 1]), height / int(sizes[0, 0])] * 2)
        expected = Detections(expected.boxes * scale, expected.scores, expected.labels)
        settings = detector.head.settings
        problem = difference(expected, found, settings.score_threshold, settings.max_detections)
        if problem:
            raise ValueError(f"the exported resize changes detections, so nothing is written: {problem}")
    return f"resized pixels differ by at most {largest} of 255"


def _first(answer: Any) -> Detections:
    boxes, scores, labels, counts = answer
    count = int(counts[0])
    return Detections(boxes[0, :count], scores[0, :count], labels[0, :count])
