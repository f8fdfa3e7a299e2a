"""The arguments of every command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from visionlab.command import Command, Default


def build_parser(commands: Mapping[str, Callable[[argparse.Namespace], int | None]]) -> argparse.ArgumentParser:
    """Return the parser of the whole command line.

    Args:
        commands: the function of each command, which it leaves in ``options.command``.
    """
    from visionlab import __version__

    parser = argparse.ArgumentParser(prog="visionlab", description="From unlabelled images to a good detector.")
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Command)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(name, help=text, description=text)
        command.set_defaults(command=commands[name])
        return command

    command = add("train", "Run one or several configs in order: pretrain, then detect.")
    command.add_argument("words", nargs="*", metavar="CONFIG|key=value", help="config files, then overrides")
    command.add_argument("--check", action="store_true", help="only check the configs; needs no data")
    command.add_argument("--show", action="store_true", help="print the resolved configs and stop")
    command.add_argument("--schema", action="store_true", help="print the JSON Schema of configs and stop")

    command = add("evaluate", "Measure a detector on the validation images of a config.")
    command.add_argument("words", nargs="+", metavar="CONFIG|key=value", help="a config, then detector=FILE and others")

    command = add("predict", "Detect objects: COCO results json, and pictures with boxes.")
    command.add_argument("run", type=Path, help="a run folder or a detector.safetensors")
    command.add_argument("images", nargs="+", type=Path, help="image files or folders")
    own = partial(Default, "visionlab.predict", "predict")
    command.add_argument("--out", type=Path, default=own("out"), help="folder to write (default: %(default)s)")
    command.add_argument(
        "--threshold", type=float, default=own("threshold"), help="least score drawn (default: %(default)s)"
    )
    _add_device(command, own)
    command.add_argument(
        "--batch-size", type=int, default=own("batch_size"), help="most images at once (default: %(default)s)"
    )
    command.add_argument(
        "--show-offsets", action="store_true", help="draw where deformable layers and RoI pools look, too"
    )
    command.add_argument("--flip", action="store_true", help="also look at the mirror image of each")
    command.add_argument(
        "--sizes", type=int, nargs="+", metavar="PIXELS", help="short sides to look at (default: that of training)"
    )

    command = add("export", "Write a detector or a backbone as one graph, checked against the network itself.")
    command.add_argument("run", type=Path, help="a run folder, a detector.safetensors or a backbone.safetensors")
    own = partial(Default, "visionlab.export.write", "export")
    command.add_argument("--out", type=Path, help="the file to write (default: beside the weights)")
    command.add_argument("--format", default=own("format"), choices=("onnx", "torch"), help="(default: %(default)s)")
    command.add_argument("--opset", type=int, help="version of ONNX's operators (default: what torch writes)")
    command.add_argument("--resize", action="store_true", help="take images as they are, answer boxes in their pixels")
    command.add_argument("--max-side", type=int, help="most pixels of a side (default: as trained, or 1344)")
    command.add_argument(
        "--max-batch", type=int, default=own("max_batch"), help="most images at once (default: %(default)s)"
    )
    command.add_argument(
        "--images",
        nargs="+",
        type=Path,
        default=(),
        help="image files or folders: compare what is found in them as well",
    )

    command = add("probe", "Measure encoders by k-NN and a linear classifier of images, level by level.")
    own = partial(Default, "visionlab.studies.encoder_probes", "probe_files")
    _add_probe_arguments(command, own)
    _add_image_arguments(command, own)
    command.add_argument("--labels-per-class", type=int, help="train on so many, drawn by --seeds (default: all)")
    command.add_argument(
        "--seeds", type=int, nargs="+", default=own("seeds"), help="of the draws (default: %(default)s)"
    )

    command = add("roi-probe", "Measure encoders by a linear classifier of labelled boxes, level by level.")
    own = partial(Default, "visionlab.studies.encoder_probes", "probe_rois")
    _add_probe_arguments(command, own)
    pair: dict = {"type": Path, "nargs": 2, "required": True, "metavar": ("JSON", "IMAGES")}
    command.add_argument("--train", **pair, help="a COCO json and the folder of its images")
    command.add_argument("--test", **pair, help="another, with the same classes")
    command.add_argument("--short-side", type=int, default=own("short_side"), help="in pixels (default: %(default)s)")
    command.add_argument("--max-size", type=int, default=own("max_size"), help="in pixels (default: %(default)s)")

    command = add("check-data", "Name every fault of images and labels by file and annotation id.")
    command.add_argument(
        "data",
        nargs="+",
        metavar="DIR | data.yaml | JSON [IMAGES]",
        help="a folder of COCO json, YOLO, VOC or plain images; or a COCO json, and the folder of its images",
    )
    command.add_argument("--headers", action="store_true", help="read headers only: fast, but misses damaged files")
    command.add_argument("--all", action="store_true", help="spell out all problems, not the first 20 of each kind")
    command.add_argument("--json", action="store_true", help="print JSON, with all problems, instead of text")

    command = add("init", "Look at your images, write configs that fit them, and say how to run them.")
    command.add_argument("root", type=Path, metavar="DIR", help="the images, with or without annotations")
    command.add_argument("--out", type=Path, help="folder of the configs and their runs (default: runs/NAME OF DIR)")
    _add_device(command, partial(Default, "visionlab.init.write", "init"))

    command = add("report", "Write report.html and report.json of a run folder again.")
    command.add_argument("run", type=Path)

    command = add("configs", "Copy the shipped configs to a folder.")
    command.add_argument("folder", type=Path)

    add("doctor", "Say what is installed, built and loaded, and why not.")

    command = add("quickstart", "Pretrain, finetune and compare on generated images, in minutes.")
    command.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="(default: %(default)s)")

    command = add("study", "Compare pretrained and random initialization over seeds, each at its best rate.")
    command.add_argument("--out", type=Path, default=Path("runs/study"), help="(default: %(default)s)")
    command.add_argument("--pretrain", type=Path, help="config of the pretraining (default: the quickstart's)")
    command.add_argument("--detect", type=Path, help="config of the detector (default: the quickstart's)")
    own = partial(Default, "visionlab.studies.low_labels", "low_label_study")
    for flag, kind, text in (
        ("--rates", float, "learning rates tried"),
        ("--tuning-seeds", int, "seeds that choose the rate"),
        ("--seeds", int, "seeds that are reported"),
    ):
        default = own(flag[2:].replace("-", "_"))
        command.add_argument(flag, type=kind, nargs="+", default=default, help=f"{text} (default: %(default)s)")

    command = add("compare", "Compare methods, a config each, by probes and detection over seeds.")
    command.add_argument("words", nargs="+", metavar="CONFIG|key=value", help="pretraining configs, then overrides")
    _add_image_arguments(command, partial(Default, "visionlab.studies.compare", "Measures"))
    command.add_argument("--out", type=Path, default=Path("runs/compare"), help="(default: %(default)s)")
    seeds = Default("visionlab.studies.compare", "compare", "seeds")
    command.add_argument("--seeds", type=int, nargs="+", default=seeds, help="(default: %(default)s)")
    command.add_argument(
        "--only", nargs="*", metavar="METHOD", help="do these methods' cells only; none: just the table"
    )
    command.add_argument("--limit", type=int, help="images of --train and of --test (default: all)")
    command.add_argument("--roi", type=Path, metavar="CONFIG", help="probe the boxes of a detector's config")
    command.add_argument("--detect", type=Path, metavar="CONFIG", help="train this detector from every encoder")
    return parser


def _add_image_arguments(command: argparse.ArgumentParser, own: Callable[[str], Default]) -> None:
    command.add_argument("--train", type=Path, required=True, help="a folder of a folder of images for each class")
    command.add_argument("--test", type=Path, required=True, help="another, with the same classes")
    for flag, text in (
        ("--image-size", "what a probe sees, in pixels"),
        ("--grid", "parts along each side of a map"),
        ("--neighbors", "that vote"),
    ):
        default = own(flag[2:].replace("-", "_"))
        command.add_argument(flag, type=int, default=default, help=f"{text} (default: %(default)s)")


def _add_probe_arguments(command: argparse.ArgumentParser, own: Callable[[str], Default]) -> None:
    command.add_argument("weights", nargs="+", type=Path, help="backbone files or run folders, one for each seed")
    command.add_argument(
        "--random", type=int, default=own("random"), help="random encoders to measure beside (default: %(default)s)"
    )
    command.add_argument("--limit", type=int, help="images of each data set (default: all)")
    _add_device(command, own)
    command.add_argument("--out", type=Path, help="a JSON file to write")


def _add_device(command: argparse.ArgumentParser, own: Callable[[str], Default]) -> None:
    command.add_argument(
        "--device", default=own("device"), choices=("auto", "cpu", "cuda"), help="(default: %(default)s)"
    )
