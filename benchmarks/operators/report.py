"""The benchmark's findings as a table, a chart and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHORT = {"float32": "fp32", "float64": "fp64", "float16": "fp16", "bfloat16": "bf16"}
PASSES = {"forward": "fwd", "forward+backward": "fwd+bwd"}


def table(head: list[str], rows: list[list[str]], title: str) -> None:
    """Print a table; with rich where it is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
        print(f"\n{title}")
        for row in [head, *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    shown = Table(title=title)
    for column, name in enumerate(head):
        shown.add_column(name, justify="left" if column == 0 else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    Console(width=max(Console().width, 200)).print(shown)


def seconds(time: dict[str, float] | None) -> str:
    """Milliseconds, with the quartiles' distance from the median."""
    if time is None:
        return ""
    median = time["median"] * 1e3
    digits = 0 if median >= 100 else 1 if median >= 10 else 2 if median >= 1 else 3
    return f"{median:.{digits}f} ±{(time['q3'] - time['q1']) * 5e2:.{digits}f}"


def number(value: float | None, form: str = "{:.2f}") -> str:
    return "" if value is None else form.format(value)


HEAD = ["operator", "case", "dtype", "layout", "pass", "ms ± IQR/2", "torchvision", "faster", "of limit", "by",
        "threads", "extra MiB", "/conv2d", "GEMMs"]  # fmt: skip


def lines(rows: list[dict]) -> list[list[str]]:
    found = []
    for row in rows:
        extra = None if row["extra_bytes"] is None else row["extra_bytes"] / 2**20
        found.append(
            [
                row["op"],
                row["label"],
                SHORT[row["dtype"]],
                row["layout"].replace("contiguous", "nchw").replace("channels_last", "nhwc"),
                PASSES[row["pass"]],
                seconds(row["times"]["ours"]),
                seconds(row["times"].get("theirs")) or "-",
                number(row["ratio"], "{:.1f}x"),
                number(row["of_limit"], "{:.0%}"),
                row["limit_by"],
                number(row.get("scaling"), "{:.2f}x"),
                number(extra, "{:.1f}"),
                number(row.get("over_conv2d"), "{:.2f}x"),
                number(row.get("gemm_share"), "{:.0%}"),
            ]
        )
    return found


def overhead_lines(rows: list[dict]) -> list[list[str]]:
    return [
        [
            row["op"],
            PASSES[row["pass"]],
            *(number(row["times"].get(who, {}).get("median", 0) * 1e6 or None, "{:.1f}") for who in ("ours", "theirs")),
            number(row.get("overhead_us"), "{:+.1f}"),
        ]
        for row in rows
    ]


def target_lines(targets: list[dict]) -> list[list[str]]:
    found = []
    for target in targets:
        sign = "<=" if target["within"] else ">="
        value, limit = target["value"], target["limit"]
        if "MiB" in target["text"]:
            value, limit = value / 2**20, limit / 2**20
        better = target["by"] and f"{target['by']:.2f}x"
        verdict = (f"met, by {better}" if better else "met") if target["met"] else f"MISSED, {better} of it"
        found.append([target["text"], f"{sign} {limit:g}", f"{value:.2f}", verdict, target["row"]])
    return found


TABLES = (
    ("rows", HEAD, lines),
    ("overhead", ["operator", "pass", "µs", "torchvision", "difference"], overhead_lines),
    ("targets", ["target", "limit", "measured", "verdict", "worst row"], target_lines),
)


def show(results: dict[str, Any]) -> None:
    """Print everything that was measured."""
    for name, head, as_lines in TABLES:
        if results[name]:
            table(head, as_lines(results[name]), f"{name}: {results['machine']['device']}")


def chart(results: dict[str, Any], path: Path) -> None:
    """Draw how many times faster than torchvision each case is, on a logarithmic axis."""
    from matplotlib.figure import Figure

    compared = [(chart_name(row), row) for row in results["rows"] if row["ratio"]]
    names = list(dict.fromkeys(name for name, _ in compared))
    figure = Figure(figsize=(10, 1.6 + 0.27 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    for step, shift, color in (("forward", -0.19, "#2a6f97"), ("forward+backward", 0.19, "#e07a5f")):
        bars = [(names.index(name) + shift, row["ratio"]) for name, row in compared if row["pass"] == step]
        places, ratios = [place for place, _ in bars], [ratio for _, ratio in bars]
        axes.barh(places, [ratio - 1 for ratio in ratios], 0.36, left=1, color=color, label=step)
        for place, ratio in bars:
            at = (max(ratio, 1), place)
            axes.annotate(f"{ratio:.1f}", at, (3, 0), textcoords="offset points", va="center", fontsize=6.5)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    least, most = (function([1.0, *(row["ratio"] for _, row in compared)]) for function in (min, max))
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(least * 0.9, most * 1.4)
    axes.set_xlabel("times faster than torchvision (log scale)")
    machine = results["machine"]
    axes.set_title(f"visionlab.ops against torchvision {machine['torchvision']}, {machine['device']}")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


def chart_name(row: dict) -> str:
    layout = {"contiguous": "", "channels_last": " channels_last"}[row["layout"]]
    return f"{row['op']} {row['label']}, {SHORT[row['dtype']]}{layout}"


def write_page(results: dict[str, Any], page: Path) -> None:
    """Put the figures into the page, between the marks of this device."""
    kind = results["machine"]["kind"]
    begin, end = f"<!-- figures of {kind}: begin -->", f"<!-- figures of {kind}: end -->"
    text = page.read_text()
    if begin not in text or end not in text:
        raise ValueError(f"{page} has no place for figures: expected {begin} and {end}")
    before, after = text.split(begin)[0], text.split(end)[1]
    page.write_text(f"{before}{begin}\n{markdown(results)}\n{end}{after}")


def markdown(results: dict[str, Any]) -> str:
    machine, rates = results["machine"], results["rates"]
    speeds = [f"{name} product {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items() if name != "copy"]
    versions = f"torch {machine['torch']}, torchvision {machine['torchvision']}, SIMD level {machine['simd']}"
    parts = [
        f"{machine['device']}, {machine['threads']} threads, {versions}; copy {rates['copy'] / 1e9:.1f} GB/s, "
        f"{', '.join(speeds)}. `{machine['command']}`, {machine['date']}."
    ]
    for name, head, as_lines in TABLES:
        cells = as_lines(results[name])
        columns = [i for i in range(len(head)) if any(line[i] for line in cells)]
        if cells:
            parts += ["", "|".join(["", *(head[i] for i in columns), ""]), "|--" + "|--:" * (len(columns) - 1) + "|"]
            parts += ["|".join(["", *(line[i] for i in columns), ""]) for line in cells]
    return "\n".join(parts)
