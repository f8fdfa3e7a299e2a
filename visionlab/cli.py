"""The command line: every command, its arguments, and how errors end."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from visionlab.command import Command, Default
from visionlab.text import printable

USER_ERRORS = (ValueError, OSError, FloatingPointError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 well, 1 problems found, 2 a user's error, 128 + n by signal n."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for name, value in vars(options).items():
        if isinstance(value, Default):
            setattr(options, name, value.value)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end a command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return options.command(options) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except USER_ERRORS as error:
        if os.environ.get("VISIONLAB_TRACEBACK"):
            raise
        print(printable(f"visionlab: error: {error}", keep="\n"), file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    from visionlab import __version__

    parser = argparse.ArgumentParser(prog="visionlab", description="From unlabelled images to a good detector.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Command)

    def add(name, function, text):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        return command

    command = add("train", _train, "Run one or several configs in order: pretrain, then detect.")
    command.add_argument("words", nargs="*", metavar="CONFIG|key=value", help="config files, then overrides")
    command.add_argument("--check", action="store_true", help="only check the configs; needs no data")
    command.add_argument("--show", action="store_true", help="print the resolved configs and stop")
    command.add_argument("--schema", action="store_true", help="print the JSON Schema of configs and stop")

    command = add("evaluate", _evaluate, "Measure a detector on the validation images of a config.")
    command.add_argument("words", nargs="+", metavar="CONFIG|key=value", help="a config, then weights=FILE and others")

    command = add("predict", _predict, "Detect objects: COCO results json, and pictures with boxes.")
    command.add_argument("run", type=Path, help="a run folder or a detector.safetensors")
    command.add_argument("images", nargs="+", type=Path, help="image files or folders")
    own = partial(Default, "visionlab.predict", "predict")
    command.add_argument("--out", type=Path, default=own("out"), help="folder to write (default: %(default)s)")
    command.add_argument(
        "--threshold", type=float, default=own("threshold"), help="least score drawn (default: %(default)s)"
    )
    command.add_argument(
        "--device", default=own("device"), choices=("auto", "cpu", "cuda"), help="(default: %(default)s)"
    )
    command.add_argument(
        "--batch-size", type=int, default=own("batch_size"), help="most images at once (default: %(default)s)"
    )

    command = add("probe", _probe, "Measure encoders by k-NN and a linear classifier of images, level by level.")
    own = partial(Default, "visionlab.studies.encoder_probes", "probe_files")
    _add_probe_arguments(command, own)
    _add_image_arguments(command, own)
    command.add_argument("--labels-per-class", type=int, help="train on so many, drawn by --seeds (default: all)")
    command.add_argument(
        "--seeds", type=int, nargs="+", default=own("seeds"), help="of the draws (default: %(default)s)"
    )

    command = add("roi-probe", _roi_probe, "Measure encoders by a linear classifier of labelled boxes, level by level.")
    own = partial(Default, "visionlab.studies.encoder_probes", "probe_rois")
    _add_probe_arguments(command, own)
    pair: dict = {"type": Path, "nargs": 2, "required": True, "metavar": ("JSON", "IMAGES")}
    command.add_argument("--train", **pair, help="a COCO json and the folder of its images")
    command.add_argument("--test", **pair, help="another, with the same classes")
    command.add_argument("--short-side", type=int, default=own("short_side"), help="in pixels (default: %(default)s)")
    command.add_argument("--max-size", type=int, default=own("max_size"), help="in pixels (default: %(default)s)")

    command = add("check-data", _check_data, "Name every fault of images and labels by file and annotation id.")
    command.add_argument(
        "data",
        nargs="+",
        metavar="DIR | data.yaml | JSON [IMAGES]",
        help="a folder of COCO json, YOLO, VOC or plain images; or a COCO json, and the folder of its images",
    )
    command.add_argument("--headers", action="store_true", help="read headers only: fast, but misses damaged files")
    command.add_argument("--all", action="store_true", help="spell out all problems, not the first 20 of each kind")
    command.add_argument("--json", action="store_true", help="print JSON, with all problems, instead of text")

    command = add("init", _init, "Look at your images, write configs that fit them, and say how to run them.")
    command.add_argument("root", type=Path, metavar="DIR", help="the images, with or without annotations")
    command.add_argument("--out", type=Path, help="folder of the configs and their runs (default: runs/NAME OF DIR)")
    device = Default("visionlab.init.write", "init", "device")
    command.add_argument("--device", default=device, choices=("auto", "cpu", "cuda"), help="(default: %(default)s)")

    command = add("report", _report, "Write report.html and report.json of a run folder again.")
    command.add_argument("run", type=Path)

    command = add("configs", _configs, "Copy the shipped configs to a folder.")
    command.add_argument("folder", type=Path)

    add("doctor", _doctor, "Say what is installed, built and loaded, and why not.")

    command = add("quickstart", _quickstart, "Pretrain, finetune and compare on generated images, in minutes.")
    command.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="(default: %(default)s)")

    command = add("study", _study, "Compare pretrained and random initialization over seeds, each at its best rate.")
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

    command = add("compare", _compare, "Compare methods, a config each, by probes and detection over seeds.")
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
    command.add_argument(
        "--device", default=own("device"), choices=("auto", "cpu", "cuda"), help="(default: %(default)s)"
    )
    command.add_argument("--out", type=Path, help="a JSON file to write")


def _split(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Split ``CONFIG … key=value …`` into files and overrides."""
    configs = [Path(word) for word in words if "=" not in word]
    if not configs:
        raise ValueError("expected a config file, got none; `visionlab configs DIR` copies out the shipped ones")
    return configs, [word for word in words if "=" in word]


def _train(options: argparse.Namespace) -> int | None:
    from visionlab.config.load import json_schema, load, show

    if options.schema:
        print(json.dumps(json_schema(), indent=1))
        return None
    configs, overrides = _split(options.words)
    runs = [load(config, overrides) for config in configs]
    if len({Path(run.out).resolve() for run in runs}) < len(runs):
        raise ValueError(f"expected a run folder for each config, got out: {', '.join(run.out for run in runs)}")
    if options.show:
        print("---\n".join(show(run) for run in runs), end="")
    if options.show or options.check:
        return None
    from visionlab.run import execute_all

    return execute_all(runs)


def _evaluate(options: argparse.Namespace) -> None:
    from visionlab.config.load import load
    from visionlab.run import evaluate

    configs, overrides = _split(options.words)
    if len(configs) != 1:
        raise ValueError(f"expected one config, got {len(configs)}: {', '.join(map(str, configs))}")
    evaluate(load(configs[0], overrides))


def _predict(options: argparse.Namespace) -> None:
    from visionlab.predict import predict

    predict(
        options.run,
        options.images,
        options.out,
        threshold=options.threshold,
        device=options.device,
        batch_size=options.batch_size,
    )


def _probe(options: argparse.Namespace) -> None:
    from visionlab.studies.encoder_probes import probe_files

    probe_files(
        options.weights,
        options.train,
        options.test,
        options.out,
        image_size=options.image_size,
        grid=options.grid,
        neighbors=options.neighbors,
        labels_per_class=options.labels_per_class,
        seeds=options.seeds,
        random=options.random,
        limit=options.limit,
        device=options.device,
    )


def _roi_probe(options: argparse.Namespace) -> None:
    from visionlab.studies.encoder_probes import probe_rois

    probe_rois(
        options.weights,
        tuple(options.train),
        tuple(options.test),
        options.out,
        short_side=options.short_side,
        max_size=options.max_size,
        random=options.random,
        limit=options.limit,
        device=options.device,
    )


@contextmanager
def _progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal's stderr, moved by what is yielded: a function of how many are done, and of how many."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(text, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def _check_data(options: argparse.Namespace) -> int:
    from visionlab.data.check import check_dataset, check_folder

    if len(options.data) > 2:
        raise ValueError(f"check-data: expected a folder, or a json and a folder, got {len(options.data)} paths")
    with _progress("reading images") as progress:
        how: dict = {"decode": not options.headers, "progress": progress}
        if len(options.data) == 2 or options.data[0].endswith(".json"):
            result = check_dataset(annotations=options.data[0], images=options.data[1:], **how)
        else:
            result = check_folder(options.data[0], **how)
    print(json.dumps(result.to_dict(), indent=1) if options.json else result.to_text(None if options.all else 20))
    return result.exit_status


def _init(options: argparse.Namespace) -> None:
    from visionlab.init.write import init

    with _progress("looking at images") as progress:
        written = init(str(options.root), options.out, device=options.device, progress=progress)
    print(written)


def _report(options: argparse.Namespace) -> None:
    from visionlab.eval.report import write_report

    if options.run.is_dir() and not (options.run / "config.yaml").exists():
        raise ValueError(f"{options.run}: expected a run folder, there is no config.yaml in it")
    print(write_report(options.run))


def _configs(options: argparse.Namespace) -> None:
    from visionlab.config.shipped import copy_configs

    for path in copy_configs(options.folder):
        print(path)


def _doctor(options: argparse.Namespace) -> int:
    from visionlab.doctor import examine

    report, healthy = examine()
    print(report)
    return 0 if healthy else 1


def _quickstart(options: argparse.Namespace) -> int | None:
    from visionlab.studies.quickstart import quickstart

    return quickstart(options.out)


def _study(options: argparse.Namespace) -> int | None:
    from visionlab.config.shipped import shipped
    from visionlab.studies.low_labels import low_label_study
    from visionlab.train.guard import Interrupted

    try:
        low_label_study(
            options.pretrain or shipped("quickstart/pretrain.yaml"),
            options.detect or shipped("quickstart/detect.yaml"),
            options.out,
            rates=options.rates,
            tuning_seeds=options.tuning_seeds,
            seeds=options.seeds,
        )
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal
    return None


def _compare(options: argparse.Namespace) -> int | None:
    from visionlab.studies.compare import Measures, compare
    from visionlab.train.guard import Interrupted

    configs, overrides = _split(options.words)
    names = ("train", "test", "image_size", "grid", "neighbors", "limit", "roi", "detect")
    measures = Measures(**{name: getattr(options, name) for name in names})
    try:
        compare(configs, options.out, measures, seeds=options.seeds, only=options.only, overrides=overrides)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal
    return None


if __name__ == "__main__":
    sys.exit(main())
