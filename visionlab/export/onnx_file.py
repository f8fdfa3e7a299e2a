"""ONNX files: written by torch's exporter, run by onnxruntime, and an optional resize in front."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionlab.data.transforms import EvaluationResize

LARGEST = 2**31 - 1  # bytes of a protocol buffer
# In which torch's exporter writes operators; it converts to later ones. The first whose Resize has antialiasing.
LEAST_OPSET = 18


def write_onnx(program: torch.export.ExportedProgram, outputs: list[str], opset: int | None) -> Any:
    """Return an ``onnx.ModelProto`` of a program that takes ``pixels`` and ``sizes``.

    Args:
        program: of ``trace``.
        outputs: what its outputs are called.
        opset: version of ONNX's operators; by default what torch's exporter writes.

    Raises:
        ValueError: a package is missing, the exporter has no form for the network, or not for that opset.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"format onnx: expected the package {error.name}: pip install onnxscript onnxruntime"
        ) from error
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.sort.stable:  # which ONNX's sort, TopK, always is
            node.target = torch.ops.aten.sort.default
            node.args, node.kwargs = (node.args[0], node.kwargs["dim"], node.kwargs["descending"]), {}
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = torch.onnx.export(
                program, (), dynamo=True, verbose=False, opset_version=opset, output_names=outputs, optimize=True
            )
    except Exception as error:  # the exporter's own classes are not public
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"format onnx: torch's exporter has no form for this network: {reason[:300]}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert written is not None
    model = written.model_proto
    _name_sizes(model.graph)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if opset is not None and versions.get("") != opset:
        raise ValueError(f"opset: expected one that the exporter can write, such as {versions.get('')}, got {opset}")
    if model.ByteSize() > LARGEST:
        raise ValueError(f"format onnx: expected at most 2 GiB, got {model.ByteSize() / 2**30:.1f}")
    onnx.checker.check_model(model)
    return model


def _name_sizes(graph: Any) -> None:
    """Call the free sizes of inputs, and the same of outputs, by words."""
    pixels = next(given for given in graph.input if given.name == "pixels").type.tensor_type.shape.dim
    words = dict(zip((size.dim_param for size in pixels), ("batch", "", "height", "width"), strict=True))
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            size.dim_param = words.get(size.dim_param, "") or size.dim_param


def describe(model: Any, metadata: Mapping[str, str]) -> None:
    """Put texts into a model's ``metadata_props``."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)


def runner(model: Any, constants: Mapping[str, float] | None = None) -> Callable[..., Sequence[Tensor]]:
    """Return what runs a model with onnxruntime on the CPU, with one tensor for each input.

    Args:
        model: an ``onnx.ModelProto``.
        constants: values that it is to have in place of its own, by name.

    Raises:
        ValueError: onnxruntime is missing, or a constant is none of the model or serves several of its nodes.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("format onnx: expected the package onnxruntime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    model = _with_constants(model, constants) if constants else model
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*tensors: Tensor) -> list[Tensor]:
        arrays = (tensor.numpy() for tensor in tensors)
        return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True)))]

    return run


def _with_constants(model: Any, constants: Mapping[str, float]) -> Any:
    from onnx import numpy_helper

    model = copy.deepcopy(model)
    for name, value in constants.items():
        places = [place for place in model.graph.initializer if place.name == name]
        users = sum(list(node.input).count(name) for node in model.graph.node)
        if len(places) != 1 or users != 1:
            raise ValueError(f"{name}: expected a constant that serves one node, got {len(places)} that serve {users}")
        own = numpy_helper.to_array(places[0])
        places[0].CopyFrom(numpy_helper.from_array(np.full_like(own, value), name))
    return model


def with_resize(model: Any, resize: EvaluationResize) -> Any:
    """Return a model that takes images of one size as they are, and answers boxes in their pixels.

    Args:
        model: a detector's, which takes ``pixels`` and ``sizes``.
        resize: what brings images to the size that the detector was trained at.

    Returns:
        A model of ``images``, ``(N, H, W, 3)`` uint8 RGB.
    """
    from onnx import TensorProto, helper

    model = copy.deepcopy(model)
    graph = model.graph
    constants: dict[str, tuple[list[Any], int]] = {
        "resize_short_side": ([resize.short_side], TensorProto.DOUBLE),
        "resize_max_size": ([resize.max_size], TensorProto.DOUBLE),
        "resize_one": ([1.0], TensorProto.DOUBLE),
        "resize_three": ([3], TensorProto.INT64),
        "resize_two": ([2], TensorProto.INT64),
        "resize_across": ([1, 0, 1, 0], TensorProto.INT64),
    }
    for name, (values, kind) in constants.items():
        graph.initializer.append(helper.make_tensor(name, kind, [len(values)], values))

    def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
        return helper.make_node(kind, inputs.split(" "), [output], name=output, **attributes)

    before = [
        node("Shape", "images", "resize_batch", start=0, end=1),
        node("Shape", "images", "resize_given", start=1, end=3),
        node("Cast", "resize_given", "resize_sides", to=TensorProto.DOUBLE),
        node("ReduceMin", "resize_sides", "resize_least"),
        node("ReduceMax", "resize_sides", "resize_most"),
        node("Div", "resize_short_side resize_least", "resize_by_short"),
        node("Div", "resize_max_size resize_most", "resize_by_long"),
        node("Min", "resize_by_short resize_by_long", "resize_scale"),
        node("Mul", "resize_sides resize_scale", "resize_exact"),
        node("Round", "resize_exact", "resize_rounded"),
        node("Max", "resize_rounded resize_one", "resize_wanted"),
        node("Cast", "resize_wanted", "resize_size", to=TensorProto.INT64),
        node("Concat", "resize_batch resize_three resize_size", "resize_shape", axis=0),
        node("Transpose", "images", "resize_planes", perm=[0, 3, 1, 2]),
        node(
            "Resize",
            "resize_planes   resize_shape",  # between them two inputs that are left out
            "pixels",
            mode="linear",
            antialias=1,
            coordinate_transformation_mode="half_pixel",
        ),
        node("Concat", "resize_batch resize_two", "resize_sizes_shape", axis=0),
        node("Expand", "resize_size resize_sizes_shape", "sizes"),
        node("Div", "resize_sides resize_wanted", "resize_back"),
        node("Gather", "resize_back resize_across", "resize_back_corners"),
        node("Cast", "resize_back_corners", "resize_factors", to=TensorProto.FLOAT),
    ]
    for place in graph.node:
        for i, name in enumerate(place.output):
            if name == "boxes":
                place.output[i] = "boxes_in_batch"
        for i, name in enumerate(place.input):
            if name == "boxes":
                place.input[i] = "boxes_in_batch"
    nodes = [*before, *graph.node, node("Mul", "boxes_in_batch resize_factors", "boxes")]
    del graph.node[:]
    graph.node.extend(nodes)
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", "height", "width", 3])
    del graph.input[:]
    graph.input.append(images)
    del graph.value_info[:]  # their sizes are those of the old inputs
    for output in graph.output:
        for dimension in list(output.type.tensor_type.shape.dim)[1:]:
            if dimension.dim_param in ("height", "width"):
                dimension.Clear()
    return model


def resized_pixels(model: Any) -> Any:
    """Return of a model of ``with_resize`` the part in front, which answers ``pixels`` and ``sizes``."""
    from onnx import TensorProto, helper

    front = copy.deepcopy(model)
    names = [place.name for place in front.graph.node]
    kept = list(front.graph.node)[: names.index("resize_factors") + 1]
    del front.graph.node[:]
    front.graph.node.extend(kept)
    of_resize = [constant for constant in front.graph.initializer if constant.name.startswith("resize_")]
    del front.graph.initializer[:]
    front.graph.initializer.extend(of_resize)
    del front.graph.output[:]
    front.graph.output.extend(
        [
            helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 3, "h", "w"]),
            helper.make_tensor_value_info("sizes", TensorProto.INT64, ["batch", 2]),
        ]
    )
    return front
