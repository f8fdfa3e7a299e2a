"""benchmarks/detector_family.py: what is run, what is compared with what, and what the table says."""

import json
import sys
from pathlib import Path

import detector_family
import pytest
from tiny_runs import DATA, DETECT, write_config

from visionlab.data.scene import CLASSES
from visionlab.eval.interval import Interval
from visionlab.models.detector import build_detector, save_detector

# AP by detector and learning rate, to which a seed adds a thousandth of itself and the weaker detector its square more.
AP = {("plain", 0.01): 0.2, ("plain", 0.1): 0.4, ("other", 0.01): 0.3, ("other", 0.1): 0.1}
DRAWN = DATA | {"unlabelled": 0}


@pytest.fixture
def configs(tmp_path) -> list[str]:
    """Two small detectors."""
    head = DETECT["head"] | {"fc_channels": 8}
    data = DRAWN | {"root": "data"}
    return [
        str(write_config(tmp_path, DETECT | {"data": data}, "plain")),
        str(write_config(tmp_path, DETECT | {"data": data, "head": head}, "other")),
    ]


@pytest.fixture
def runs(monkeypatch) -> list:
    """The runs that are asked for; each writes what a run leaves."""
    done = []

    def execute(run):
        done.append(run)
        arm = "plain" if run.head.fc_channels == 16 else "other"
        if (arm, run.seed) == ("other", 2):
            raise FloatingPointError("the loss head/boxes is nan in step 7")
        folder = Path(run.out)
        (folder / "eval").mkdir(parents=True)
        ap = AP[arm, run.optimizer.lr] + run.seed / 1000 + (run.seed**2 / 100 if arm == "other" else 0)
        scores = {"step": 3, "metrics": {"AP": ap, "AP50": ap + 0.1}}
        (folder / "eval" / "step_00000003.json").write_text(json.dumps(scores))
        parts = {name: getattr(run, name).model_dump() for name in ("backbone", "neck", "rpn", "head")}
        save_detector(build_detector(CLASSES, **parts), folder / "detector.safetensors")
        return folder

    monkeypatch.setattr(detector_family, "execute", execute)
    nothing = {"image": lambda: None, "step": lambda: None}
    monkeypatch.setattr(detector_family.Study, "_calls", lambda *_: nothing)
    return done


def compare(monkeypatch, out: Path, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["detector_family.py", *words, "--out", str(out)])
    return detector_family.main()


GRID = ["--rates", "0.01", "0.1", "--tuning-seeds", "100", "--seeds", "0", "1", "2", "--rounds", "3"]


def test_each_detector_has_its_best_rate_and_is_compared_with_the_first(configs, runs, tmp_path, monkeypatch):
    words = [*configs, *GRID, "--tune", "evaluate.max_detections=50"]
    assert compare(monkeypatch, tmp_path / "out", *words) == 0
    assert [run.seed for run in runs].count(100) == 4
    assert len(runs) == 4 + 6
    for run in runs:
        tuning = run.seed == 100
        assert run.evaluate.max_detections == (50 if tuning else 100)
        assert run.data.seed == run.seed
        assert run.data.root == str(tmp_path / "out" / "data" / f"seed{run.seed}")
        assert tuning or run.optimizer.lr == (0.1 if run.head.fc_channels == 16 else 0.01)

    lines = (tmp_path / "out" / "study.md").read_text().splitlines()
    assert lines[0].startswith("| detector | runs | learning rate | AP | AP50 | AP more than `plain` | image | step |")
    plain, other = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])
    assert plain[:6] == ["`plain`", "3", "0.1", "40.1 ± 0.2", "50.1 ± 0.2", "–"]
    more = [0.3 - 0.4, 0.3 + 0.01 - 0.4]  # of seeds 0 and 1; with seed 2 it diverged
    assert other[1:3] == ["2 of 3, 1 diverged", "0.01"]
    assert other[5] == Interval.of(more).text()
    assert plain[6:8] == ["1.00x", "1.00x"]
    numbers = json.loads((tmp_path / "out" / "study.json").read_text())
    assert numbers["learning_rate"] == {"plain": 0.1, "other": 0.01}
    assert numbers["cells"]["other"][2]["diverged"] == "the loss head/boxes is nan in step 7"
    assert set(numbers["cost"]["other"]) >= {"image", "step", "weights"}

    runs.clear()
    assert compare(monkeypatch, tmp_path / "out", *words) == 0
    assert runs == []
    assert (tmp_path / "out" / "study.md").read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data": DRAWN | {"root": "data", "labelled": 5}},
            r"^data: expected the same for all detectors, got .* in plain",
        ),
        ({"train": {"steps": 4}}, r"^train: expected the same for all detectors, got .* in plain, .* in third"),
    ],
)
def test_detectors_differ_in_their_parts_only(change, message, configs, runs, tmp_path, monkeypatch):
    third = write_config(tmp_path, DETECT | {"data": DRAWN | {"root": "data"}} | change, "third")
    with pytest.raises(ValueError, match=message):
        compare(monkeypatch, tmp_path / "out", *configs, str(third))
    assert runs == []


def test_two_configs_of_one_name_are_refused(configs, runs, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="expected config files of different names"):
        compare(monkeypatch, tmp_path / "out", configs[0], str(write_config(tmp_path / "data", DETECT, "plain")))


@pytest.mark.slow
def test_it_trains_and_measures(configs, tmp_path, monkeypatch):
    assert compare(monkeypatch, tmp_path / "out", *configs, configs[0], *GRID) == 0
    assert len(list((tmp_path / "out" / "detectors").iterdir())) == 10
    assert not any((tmp_path / "out" / "runs").iterdir())
    [own, reference] = json.loads((tmp_path / "out" / "study.json").read_text())["cost"]["other"]["step"].values()
    assert own["median"] > 0
    assert reference["median"] > 0
