"""The command line: what every command does, and how errors end."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from visionlab.arguments import build_parser
from visionlab.command import Default
from visionlab.text import printable

USER_ERRORS = (ValueError, OSError, FloatingPointError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 well, 1 problems found, 2 a user's error, 128 + n by signal n."""
    options = build_parser(COMMANDS).parse_args(arguments)
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
    if any(word.startswith("detector=") for word in overrides):
        overrides = ["weights=null", *overrides]  # what its training started from no longer matters
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
        show_offsets=options.show_offsets,
        flip=options.flip,
        sizes=options.sizes,
    )


def _export(options: argparse.Namespace) -> None:
    from visionlab.export.write import export

    path, checked = export(
        options.run,
        options.out,
        format=options.format,
        opset=options.opset,
        resize=options.resize,
        max_side=options.max_side,
        max_batch=options.max_batch,
        images=options.images,
    )
    print(f"{checked}: {path}")


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


COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "probe": _probe,
    "roi-probe": _roi_probe,
    "check-data": _check_data,
    "init": _init,
    "report": _report,
    "configs": _configs,
    "doctor": _doctor,
    "quickstart": _quickstart,
    "study": _study,
    "compare": _compare,
}


if __name__ == "__main__":
    sys.exit(main())
