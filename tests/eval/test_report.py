"""Reports: whole, well-formed, self-contained, safe, and telling what is missing."""

import json
import re
from html.parser import HTMLParser

import pytest

from visionlab.eval.report import write_report
from visionlab.eval.side_by_side import write_side_by_side

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Reads a page, and fails where elements are not closed in order."""

    def __init__(self, path):
        super().__init__()
        self.open, self.attributes, self.text, self.headings = [], [], "", []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    def count(self, tag):
        return len(
            {value for name, attribute, value in self.attributes if name == tag and attribute in ("src", "viewbox")}
        )


def assert_self_contained(path):
    html = path.read_text(encoding="utf-8")
    for _, name, value in Page(path).attributes:
        if name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            assert value.startswith(("data:image/jpeg;base64,", "#")), value[:80]
    without_data = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", html)
    for forbidden in ("http:", "https:", "file:", "@import", "<script", "<link", "<iframe"):
        assert forbidden not in without_data, forbidden
    assert set(re.findall(r"url\((.)", without_data)) <= {"#"}


def test_detector_report(detect_run):
    path = write_report(detect_run)
    assert path == detect_run / "report.html"
    assert_self_contained(path)
    page = Page(path)
    assert page.headings == [
        "Average precision",
        "AP per class, in percent",
        "Validation images",
        "Training",
        "What ran",
    ]
    assert page.count("img") == 6
    for text in ("091ceb2f3d", "torch 2.15.0", "tools/train.py", "batch_size: 16", "rpn/objectness"):
        assert text in page.text
    assert "Missing" not in page.text


def test_pictures_of_where_deformable_parts_look(generated_run):
    first = min((generated_run / "pictures").glob("val_*.jpg"))
    (generated_run / "pictures" / "offsets_00.jpg").write_bytes(first.read_bytes())
    page = Page(write_report(generated_run))
    assert "Where deformable parts look" in page.headings
    assert page.count("img") == 6  # of which one stands twice
    assert "pictures/offsets_00.jpg" in json.loads((generated_run / "report.json").read_text())["pictures"]


def test_detector_report_in_numbers(generated_run):
    write_report(generated_run)
    report = json.loads((generated_run / "report.json").read_text(), parse_constant=pytest.fail)
    evaluation = json.loads((generated_run / "eval" / "step_00001000.json").read_text())
    assert report["format"] == 1
    assert report["task"] == "detect"
    assert report["steps"] == 1000
    assert report["evaluation"] == evaluation == report["best"]
    assert list(report["evaluations"]) == ["200", "400", "600", "800", "1000"]
    assert report["images_per_second"] == pytest.approx(41, abs=2)
    assert report["last"]["loss"] == pytest.approx(sum(v for k, v in report["last"].items() if k.startswith("losses/")))
    assert report["environment"]["git"]["commit"] == "091ceb2f3d"
    assert len(report["pictures"]) == 6
    assert report["notes"] == []


def test_last_and_best_stand_apart(generated_run):
    path = generated_run / "eval" / "step_00000600.json"
    data = json.loads(path.read_text())
    data["metrics"]["AP"] = 0.9999
    path.write_text(json.dumps(data))
    page = Page(write_report(generated_run))
    assert "last, step 1,000" in page.text
    assert "best, step 600" in page.text
    assert "100.0" in page.text


def test_a_run_measured_by_vocs_metrics(voc_run):
    page = Page(write_report(voc_run))
    for text in ("mAP, IoU 0.50", "Pascal VOC average precision at IoU 0.50 (VOC2007: 11 recalls;", "AP over training"):
        assert text in page.text
    assert "COCO" not in page.text
    assert "AP, IoU 0.75" not in page.text
    report = json.loads((voc_run / "report.json").read_text())
    assert list(report["evaluation"]["metrics"]) == ["mAP"]
    best = max(report["evaluations"], key=lambda step: report["evaluations"][step]["mAP"])
    assert report["best"]["step"] == int(best)
    assert f"{100 * report['evaluation']['metrics']['mAP']:.1f}mAP" in re.sub(r"\s", "", page.text)


def test_runs_of_different_metrics_side_by_side(voc_run, weak_run, tmp_path):
    page = Page(write_side_by_side({"voc": voc_run, "coco": weak_run}, tmp_path / "page.html"))
    assert "11 recalls" in page.text
    assert "COCO box metrics" in page.text
    assert re.search(r"mAP, IoU 0\.50\s*\d+\.\d\s*–\s*–", page.text)


def test_pretraining_report(pretrain_run):
    path = write_report(pretrain_run)
    assert_self_contained(path)
    page = Page(path)
    assert page.headings == ["Warnings of the run", "Representation", "Views that went in", "Training", "What ran"]
    assert page.count("img") == 1
    assert "effective_rank 42" in page.text
    assert "near 1 is a collapse" in page.text
    report = json.loads((pretrain_run / "report.json").read_text())
    assert report["evaluation"] is None
    assert report["last"]["meters/effective_rank"] == pytest.approx(36)


def test_names_are_text_not_markup(generated_run):
    evil = '<script>alert("1")</script>'
    path = generated_run / "eval" / "step_00001000.json"
    data = json.loads(path.read_text())
    data["per_class"][evil] = 0.5
    data["per_class"][evil + "2"] = None
    path.write_text(json.dumps(data))
    (generated_run / "config.yaml").write_text(f"task: {evil}")
    (generated_run / "environment.json").write_text(json.dumps({"task": "detect", evil: [evil]}))
    with open(generated_run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 1010, f"losses/{evil}$": 1.0, "loss": 1.0}) + "\n")
        file.write(json.dumps({"step": 1010, "warning": evil}) + "\n")
    (generated_run / "pictures" / "val_000000000001.jpg").rename(generated_run / "pictures" / "val_'><b>.jpg")
    path = write_report(generated_run)
    assert_self_contained(path)
    assert Page(path).text.count(evil) >= 6


def test_run_in_progress_says_what_is_missing(tmp_path):
    folder = tmp_path / "just_begun"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "time": 3.0, "loss": 2.5, "lr": 0.1, "losses/rpn/boxes": 2.5}\n{"st'
    )
    page = Page(write_report(folder))
    for text in (
        "No evaluation yet",
        "no val_*.jpg",
        "config.yaml is missing",
        "environment.json is missing",
        "line 2",
    ):
        assert text in page.text
    assert "2.5" in page.text
    assert "no weights yet" in page.text


def test_empty_run_has_a_report(tmp_path):
    page = Page(write_report(tmp_path))
    assert len(page.headings) == 7
    assert "Nothing was logged yet" in page.text


def test_damaged_picture_is_noted(generated_run):
    (generated_run / "pictures" / "val_000000000002.jpg").write_bytes(b"no picture")
    page = Page(write_report(generated_run))
    assert page.count("img") == 5
    assert "val_000000000002.jpg could not be read" in page.text
    assert "val_000000000002" in json.loads((generated_run / "report.json").read_text())["notes"][0]


def test_some_pictures_stay_out(generated_run):
    page = Page(write_report(generated_run, max_pictures=2))
    assert page.count("img") == 2
    assert "4 more in the run folder" in page.text


def test_comparison(generated_run, weak_run, tmp_path):
    write_report(generated_run)
    row = {"": "AP, five seeds", "pretrained": "0.31 ± 0.02", "random <i>": "0.2"}
    path = write_side_by_side(
        {"pretrained": generated_run, "random <i>": weak_run},
        tmp_path / "comparisons" / "report.html",
        title="Does pretraining help?",
        description=["Equal steps."],
        summary=[row],
    )
    page = Page(path)
    for text in ("Does pretraining help?", "Equal steps.", "0.31 ± 0.02", "pretrained − random <i>", "not written"):
        assert text in page.text
    assert page.count("img") == 12
    links = [value for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert links == ["../generated_run/report.html"]
    assert (path.parent / links[0]).exists()

    data = json.loads(path.with_suffix(".json").read_text())
    ap, reference = (data["runs"][label]["evaluation"]["metrics"]["AP"] for label in ("pretrained", "random <i>"))
    assert data["baseline"] == "random <i>"
    assert data["summary"] == [row]
    assert data["runs"]["pretrained"]["folder"] == "../generated_run"
    assert f"{100 * (ap - reference):+.1f}" in page.text
    assert ap > reference


def test_comparison_with_a_run_that_has_nothing_yet(generated_run, tmp_path):
    (tmp_path / "empty").mkdir()
    page = Page(write_side_by_side({"a": generated_run, "b": tmp_path / "empty"}, tmp_path / "report.html"))
    assert "b: metrics.jsonl is missing" in page.text
    assert "no pictures of the same images" in page.text


def test_comparison_needs_runs(generated_run, tmp_path):
    with pytest.raises(ValueError, match="at least two runs"):
        write_side_by_side({"a": generated_run}, tmp_path / "report.html")
    with pytest.raises(ValueError, match="baseline must be one of"):
        write_side_by_side({"a": generated_run, "b": generated_run}, tmp_path / "report.html", baseline="c")
    with pytest.raises(ValueError, match="is not a folder"):
        write_side_by_side({"a": generated_run, "b": tmp_path / "none"}, tmp_path / "report.html")
