"""The page of a comparison: what the table and the plots say of cells that lack something."""

import json

from visionlab.eval.comparison import write_comparison

PROBE = {"pooled": {"knn": 0.25, "linear": 0.5}}


def cell(seed, megabytes, average_precision):
    cost = {"seconds": 60.0 * (seed + 1), "images_per_second": 100.0, "megabytes": megabytes}
    return {"seed": seed, "probe": PROBE, "cost": cost, "detection": {"AP": average_precision, "AP50": 0.3}}


def test_costs_and_what_is_missing(tmp_path):
    results = {
        "random": [{"seed": seed, "probe": PROBE, "detection": {"AP": 0.05, "AP50": 0.1}} for seed in (0, 1)],
        "turns": [cell(0, None, 0.1), cell(1, None, 0.2)],
        "views": [None, {"diverged": "nan"}],
    }
    page = write_comparison(results, tmp_path / "compare.html", seeds=[0, 1])
    lines = [line.strip("| ").split(" | ") for line in (tmp_path / "compare.md").read_text().splitlines()]
    header = next(line for line in lines if line[0] == "method")
    rows = {line[0]: dict(zip(header, line, strict=False)) for line in lines if line[0] in results}
    assert header[-5:] == ["AP", "AP50", "minutes", "images/s", "peak MB"]
    assert rows["turns"]["AP"] == "15.0 ± 63.5"
    assert rows["turns"]["minutes"] == "1.5 ± 6.4"
    assert rows["turns"]["images/s"] == "100 ± 0"
    assert rows["turns"]["peak MB"] == "–"
    assert rows["random"]["peak MB"] == "–"
    assert rows["views"]["peak MB"] == "missing"
    text = page.read_text()
    assert "Detection and cost" in text
    plot = text[text.index("Detection and cost") : text.index("Level by level")]
    assert plot.count("<svg") == 1
    for name in ("AP in percent", "minutes", "images/s", *results):
        assert f">{name}</text>" in plot
    assert ">peak MB</text>" not in plot
    assert json.loads((tmp_path / "compare.json").read_text())["cells"]["turns"][0]["cost"]["megabytes"] is None


def test_a_page_without_costs_has_no_plot_of_them(tmp_path):
    page = write_comparison({"random": [{"seed": 0, "probe": PROBE}]}, tmp_path / "compare.html", seeds=[0])
    assert "Detection and cost" not in page.read_text()
    assert "minutes |" not in (tmp_path / "compare.md").read_text()
