"""The commands: what they write, how they end, and what they say when something is wrong."""

import inspect
import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from tiny_runs import DETECT, PRETRAIN, visionlab, write_config

from visionlab import run
from visionlab.config.load import load
from visionlab.doctor import examine
from visionlab.eval.several_views import SeveralViews
from visionlab.inference import load_detector
from visionlab.predict import predict
from visionlab.studies import low_labels
from visionlab.train.guard import Interrupted

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(run, "write_report", lambda folder: folder / "report.html")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with data and the runs ``pretrain`` and ``detect``."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_report", lambda folder: folder / "report.html")
        assert visionlab("train", write_config(folder, PRETRAIN), write_config(folder, DETECT)) == 0
    return folder


def refused(capsys, *words: object) -> str:
    """Give a command that a user got wrong, and return the one line that says so."""
    assert visionlab(*words) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("visionlab: error: ")
    assert errors.count("\n") == 1
    return errors.removeprefix("visionlab: error: ").rstrip()


# --- train -----------------------------------------------------------------------------------------------------------


def test_check_needs_no_data(tmp_path, capsys):
    configs = write_config(tmp_path, PRETRAIN), write_config(tmp_path, DETECT)
    assert visionlab("train", "--check", *configs) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detect.yaml", "pretrain.yaml"]
    assert "Did you mean" in refused(capsys, "train", "--check", configs[0], "optimzer.lr=1")


def test_show_prints_configs_that_load_to_the_same_runs(tmp_path, capsys):
    configs = write_config(tmp_path, PRETRAIN), write_config(tmp_path, DETECT)
    assert visionlab("train", "--show", *configs, "seed=7") == 0
    shown = capsys.readouterr().out.split("---\n")
    for config, text in zip(configs, shown, strict=True):
        (tmp_path / "shown.yaml").write_text(text)
        assert load(tmp_path / "shown.yaml") == load(config, ["seed=7"])
        assert yaml.safe_load(text)["train"]["precision"] == "fp32"


def test_schema_is_json(capsys):
    assert visionlab("train", "--schema") == 0
    text = json.dumps(json.loads(capsys.readouterr().out))
    assert "batch_size" in text
    assert "images per batch over all processes" in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lrr=0.1", 'Did you mean "lr"? Keys here: name, lr'),
        ("optimizer.lr=fast", "optimizer.lr: wrong value, expected a number, got"),
        ("pretext.name=rotaton", 'Did you mean "rotation"?'),
        ("train.steps=0", "train.steps: expected at least 1, got 0"),
        ("min_matched=0.5", "min_matched: no effect without weights"),
    ],
)
def test_a_wrong_setting(override, expected, tmp_path, capsys):
    assert expected in refused(capsys, "train", write_config(tmp_path, PRETRAIN), override)
    assert not (tmp_path / "pretrain").exists()


def test_every_fault_of_a_config_has_a_line_of_its_own(tmp_path, capsys):
    config = write_config(tmp_path, PRETRAIN, seed="zero", devise="cpu")
    assert visionlab("train", config) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all(str(config) in line for line in errors)


def test_a_missing_config(tmp_path, capsys):
    assert "nowhere.yaml: cannot be read" in refused(capsys, "train", tmp_path / "nowhere.yaml")
    assert "expected a config file, got none" in refused(capsys, "train", "seed=1")


def test_two_configs_with_one_run_folder(tmp_path, capsys):
    configs = write_config(tmp_path, PRETRAIN), write_config(tmp_path, DETECT, out=f"{tmp_path}/x/../pretrain/")
    assert "expected a run folder for each config" in refused(capsys, "train", *configs)


def test_missing_data(tmp_path, capsys):
    folder = {"name": "folder", "root": str(tmp_path / "none")}
    assert f"{tmp_path / 'none'}: expected a folder" in refused(
        capsys, "train", write_config(tmp_path, PRETRAIN, data=folder)
    )
    coco = {"name": "coco", "root": str(tmp_path), "annotations": "none.json", "images": "."}
    assert str(tmp_path / "none.json") in refused(capsys, "train", write_config(tmp_path, DETECT, data=coco))


@pytest.mark.parametrize("name", ["none.safetensors", "none.pth"])
def test_missing_weights(name, tmp_path, trained, capsys):
    assert str(tmp_path / name) in refused(
        capsys, "train", trained / "detect.yaml", f"out={tmp_path}", f"weights={tmp_path / name}"
    )


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("{name: resnet34}", "holds weights of resnet18, expected those of resnet34"),
        ("{name: resnet18, options: {channels: [8, 16, 32, 48]}}", "expected at least 95% matched for resnet18"),
    ],
)
def test_weights_of_another_model(backbone, expected, tmp_path, trained, capsys):
    words = f"out={tmp_path}", f"weights={trained / 'pretrain' / 'backbone.safetensors'}", f"backbone={backbone}"
    assert expected in refused(capsys, "train", trained / "detect.yaml", *words)


def test_a_traceback_is_there_for_who_asks(tmp_path, monkeypatch):
    monkeypatch.setenv("VISIONLAB_TRACEBACK", "1")
    with pytest.raises(ValueError, match=r"nowhere\.yaml"):
        visionlab("train", tmp_path / "nowhere.yaml")


def test_names_with_brackets_are_printed_as_they_are(tmp_path, capsys):
    config = write_config(tmp_path, PRETRAIN, out=str(tmp_path / "[bold]run"))
    assert visionlab("train", config, "train.steps=1") == 0
    assert f"backbone: {tmp_path}/[bold]run/backbone.safetensors" in capsys.readouterr().out


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_measures_what_the_run_measured(trained, tmp_path, capsys):
    weights = f"weights={trained / 'detect' / 'detector.safetensors'}"
    assert visionlab("evaluate", trained / "detect.yaml", weights, f"out={tmp_path}") == 0
    printed = capsys.readouterr().out
    by_run = json.loads((trained / "detect" / "eval" / "step_00000003.json").read_text())
    measured = json.loads((tmp_path / "evaluate" / "eval" / "step_00000000.json").read_text())
    assert measured["metrics"] == by_run["metrics"]
    assert measured["per_class"] == by_run["per_class"]
    assert f"{100 * measured['metrics']['AP50']:.2f}" in printed
    assert all(name in printed for name in ("AP50", *measured["per_class"]))


def test_evaluate_by_vocs_metrics(trained, tmp_path, capsys):
    weights = f"weights={trained / 'detect' / 'detector.safetensors'}"
    changes = (weights, f"out={tmp_path}", "evaluate.metrics=voc07")
    assert visionlab("evaluate", trained / "detect.yaml", *changes) == 0
    printed = capsys.readouterr().out
    measured = json.loads((tmp_path / "evaluate" / "eval" / "step_00000000.json").read_text())
    assert measured["form"] == "voc07"
    [(name, value)] = measured["metrics"].items()
    assert name == "mAP"
    assert all(text in printed for text in (name, f"{100 * value:.2f}", *measured["per_class"]))


def test_evaluate_refuses(trained, tmp_path, capsys):
    config = trained / "detect.yaml"
    assert "expected detector=FILE" in refused(capsys, "evaluate", config)
    assert "expected a config with task detect" in refused(capsys, "evaluate", trained / "pretrain.yaml")
    assert "expected one config, got 2" in refused(capsys, "evaluate", config, config)
    assert "none.safetensors" in refused(capsys, "evaluate", config, "weights=none.safetensors", f"out={tmp_path}")
    backbone = trained / "pretrain" / "backbone.safetensors"
    assert f"{backbone}: expected a file written by save_detector" in refused(
        capsys, "evaluate", config, f"weights={backbone}", f"out={tmp_path}"
    )


# --- predict ---------------------------------------------------------------------------------------------------------


def test_predict_writes_results_and_pictures(trained, tmp_path, capsys):
    files = sorted((trained / "data" / "val").iterdir())
    extra = tmp_path / "wide[1].png"
    with Image.open(files[0]) as image:
        image.resize((160, 80)).save(extra)
    out = tmp_path / "out"
    words = [trained / "detect", trained / "data" / "val", extra, "--out", out, "--threshold", "0.1"]
    assert visionlab("predict", *words) == 0
    content = json.loads((out / "images.json").read_text())
    results = json.loads((out / "results.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [str(path) for path in (*files, extra)]
    assert content["images"][-1] | {"height": 80, "width": 160} == content["images"][-1]
    names = [category["name"] for category in content["categories"]]
    assert names == list(json.loads((trained / "detect" / "eval" / "step_00000003.json").read_text())["per_class"])
    assert len(list(out.glob("*.jpg"))) == 5
    with Image.open(out / "00005_wide[1].jpg") as picture:
        assert picture.width == 2 * picture.height

    by_run = json.loads((trained / "detect" / "eval" / "step_00000003_results.json").read_text())
    ours = [row for row in results if row["image_id"] < 5]
    assert len(ours) == len(by_run)
    for mine, theirs in zip(ours, by_run, strict=True):
        assert mine["category_id"] == theirs["category_id"]
        assert mine["bbox"] == pytest.approx(theirs["bbox"], abs=1e-3)
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-5)
    truth = COCO()
    truth.dataset = content
    truth.createIndex()
    assert len(truth.loadRes(str(out / "results.json")).anns) == len(results)

    wide = [row["bbox"] for row in results if row["image_id"] == 5]
    assert max(x + width for x, _, width, _ in wide) > 80
    assert all(x >= 0 and y >= 0 and x + w <= 160.01 and y + h <= 80.01 for x, y, w, h in wide)


def test_predict_in_several_views(trained, tmp_path, capsys):
    image = next((trained / "data" / "val").iterdir())
    words = [trained / "detect", image, "--out", tmp_path]
    assert visionlab("predict", *words, "--flip", "--sizes", "32", "64") == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    [expected] = load_detector(trained / "detect", augment=SeveralViews(flip=True, sizes=[32, 64]))([image])
    assert [row["score"] for row in rows] == pytest.approx(expected.scores.tolist())
    assert "sizes: expected numbers, each at least 1, got [0]" in refused(capsys, "predict", *words, "--sizes", "0")
    assert "sizes: expected each once, got [32, 32]" in refused(capsys, "predict", *words, "--sizes", "32", "32")


def test_predict_leaves_out_what_is_no_image(trained, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no image")
    image = next((trained / "data" / "val").iterdir())
    assert visionlab("predict", trained / "detect", tmp_path / "text.jpg", image, "--out", tmp_path / "out") == 0
    assert f"left out: {tmp_path / 'text.jpg'}" in capsys.readouterr().out
    assert "images: expected at least one that can be read, got none of 1" in refused(
        capsys, "predict", trained / "detect", tmp_path / "text.jpg", "--out", tmp_path / "out"
    )


def test_predict_in_batches_finds_what_it_finds_one_by_one(trained, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for number, file in enumerate(sorted((trained / "data" / "val").iterdir())):
        with Image.open(file) as image:
            for side, size in enumerate([(96, 64), (64, 96)]):
                image.resize(size).save(images / f"{side}{number}.jpg", quality=95)
    whole = (images / "01.jpg").read_bytes()
    (images / "01b.jpg").write_bytes(whole[: len(whole) // 2])  # its header is sound
    (images / "03b.jpg").write_bytes(b"")
    found = []
    for size in (1, 3):
        out = tmp_path / f"out{size}"
        words = [trained / "detect", images, "--out", out, "--batch-size", str(size), "--threshold", "0.1"]
        assert visionlab("predict", *words) == 0
        text = capsys.readouterr().out
        for damaged in ("01b.jpg", "03b.jpg"):
            assert text.count(f"left out: {images / damaged}") == 1
        found.append((json.loads((out / "images.json").read_text()), json.loads((out / "results.json").read_text())))
        assert len(list(out.glob("*.jpg"))) == 8
    assert found[0][0] == found[1][0]
    names = [Path(image["file_name"]).name for image in found[0][0]["images"]]
    assert names == sorted(names)
    assert len(found[0][1]) > 0
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert other["bbox"] == pytest.approx(one["bbox"], abs=1e-2)
        assert other["score"] == pytest.approx(one["score"], abs=1e-4)
    assert "batch_size: expected at least 1, got 0" in refused(
        capsys, "predict", trained / "detect", images, "--batch-size", "0"
    )


def test_help_tells_the_defaults_of_the_function(capsys):
    with pytest.raises(SystemExit):
        visionlab("predict", "--help")
    text = " ".join(capsys.readouterr().out.split())
    defaults = {name: p.default for name, p in inspect.signature(predict).parameters.items()}
    for name in ("out", "threshold", "device", "batch_size"):
        assert f"(default: {defaults[name]})" in text


def test_predict_refuses(trained, tmp_path, capsys):
    images, broken = trained / "data" / "val", tmp_path / "broken.safetensors"
    (tmp_path / "empty").mkdir()
    whole = (trained / "detect" / "detector.safetensors").read_bytes()
    out = "--out", tmp_path / "out"
    assert f"{tmp_path / 'empty'}: no images" in refused(
        capsys, "predict", trained / "detect", tmp_path / "empty", *out
    )
    for content in (b"", b"no weights at all", whole[: len(whole) // 2]):
        broken.write_bytes(content)
        assert f"{broken}: expected a safetensors file" in refused(capsys, "predict", broken, images, *out)
    assert "detector.safetensors" in refused(capsys, "predict", tmp_path / "empty", images, *out)
    assert not (tmp_path / "out").exists()


# --- the others ------------------------------------------------------------------------------------------------------


def test_check_data(trained, tmp_path, capsys):
    annotations, images = trained / "data" / "annotations" / "val.json", trained / "data" / "val"
    assert visionlab("check-data", annotations, images) == 0
    assert "problems: none" in capsys.readouterr().out

    shutil.copytree(images, tmp_path / "val")
    first = sorted((tmp_path / "val").iterdir())[0]
    first.write_bytes(first.read_bytes()[: first.stat().st_size * 3 // 4])
    content = json.loads(annotations.read_text())
    content["annotations"][-1]["bbox"] = [5, 5, 0, 0]
    (tmp_path / "faulty.json").write_text(json.dumps(content))
    assert visionlab("check-data", tmp_path / "faulty.json", tmp_path / "val", "--json") == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert {problem["kind"] for problem in problems} == {"damaged-file", "zero-box"}
    assert {problem["annotation_id"] for problem in problems} == {None, content["annotations"][-1]["id"]}
    assert visionlab("check-data", tmp_path / "val") == 1
    assert str(first) in capsys.readouterr().out
    assert visionlab("check-data", "--headers", tmp_path / "val") == 0
    assert "nowhere" in refused(capsys, "check-data", tmp_path / "nowhere")


def test_report_is_written_again(trained, capsys):
    assert visionlab("report", trained / "detect") == 0
    assert capsys.readouterr().out.strip() == str(trained / "detect" / "report.html")
    assert "AP50" in (trained / "detect" / "report.html").read_text()
    assert "nowhere" in refused(capsys, "report", trained / "nowhere")


def test_shipped_configs_are_copied_and_pass_the_check(tmp_path, capsys):
    assert visionlab("configs", tmp_path / "configs") == 0
    copied = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(path.relative_to(tmp_path) for path in copied) == sorted(
        path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")
    )
    for path in copied:
        assert visionlab("train", "--check", path) == 0
    copied[0].write_text("changed: true")
    assert str(copied[0]) in refused(capsys, "configs", tmp_path / "configs")


def test_doctor_speaks_of_the_libraries(capsys):
    report, healthy = examine()
    assert visionlab("doctor") == (0 if healthy else 1)
    assert capsys.readouterr().out == f"{report}\n"
    assert "CPU library" in report


def test_a_study_that_a_signal_stopped_has_its_exit_status(tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise Interrupted(signal.SIGINT, 5)

    monkeypatch.setattr(low_labels, "execute", stopped)
    assert visionlab("study", "--out", tmp_path) == 130
    assert "stopped by SIGINT after step 5" in capsys.readouterr().err


def test_arguments_that_no_command_takes(capsys):
    with pytest.raises(SystemExit) as stop:
        visionlab("trian")
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        visionlab("--version")
    assert stop.value.code == 0
