"""The protocol of a study, with runs that take no time."""

import json
import shutil
from pathlib import Path

import pytest

from visionlab.config.shipped import shipped
from visionlab.studies import low_labels
from visionlab.studies.low_labels import low_label_study

# AP by arm and learning rate; a seed adds a thousandth of itself, so that tuning seeds would stand out in the result.
AP = {("pretrained", 0.01): 0.2, ("pretrained", 0.1): 0.4, ("random", 0.01): 0.3, ("random", 0.1): 0.1}
PRETRAIN, DETECT = shipped("quickstart/pretrain.yaml"), shipped("quickstart/detect.yaml")


@pytest.fixture
def runs(monkeypatch) -> list:
    """The runs a study asks for; each writes what a run leaves."""
    done = []

    def execute(run):
        done.append(run)
        folder = Path(run.out)
        (folder / "eval").mkdir(parents=True)
        if run.task == "pretrain":
            (folder / "backbone.safetensors").write_text(f"backbone of seed {run.seed}")
            return folder
        if run.weights:
            assert Path(run.weights).read_text() == f"backbone of seed {run.seed}"
        ap = AP["pretrained" if run.weights else "random", run.optimizer.lr] + run.seed / 1000
        for step, metrics in ((100, {"AP": 0.9, "AP50": 0.9}), (300, {"AP": ap, "AP50": ap + 0.1})):
            (folder / "eval" / f"step_{step:08d}.json").write_text(json.dumps({"step": step, "metrics": metrics}))
        (folder / "eval" / "step_00000300_results.json").write_text("[]")
        return folder

    monkeypatch.setattr(low_labels, "execute", execute)
    return done


def do(out: Path, **changes) -> dict:
    settings = {"rates": [0.01, 0.1], "tuning_seeds": [100, 101], "seeds": [0, 1, 2]} | changes
    return json.loads(low_label_study(PRETRAIN, DETECT, out, **settings).read_text())


def test_each_arm_has_the_rate_that_is_best_for_it_on_seeds_not_reported(runs, tmp_path, capsys):
    result = do(tmp_path)
    assert result["learning_rate"] == {"pretrained": 0.1, "random": 0.01}
    assert [cell["AP"] for cell in result["cells"]["pretrained"]] == pytest.approx([0.4, 0.401, 0.402])
    assert result["random"]["AP"]["mean"] == pytest.approx(0.301)
    assert result["gain"]["AP"] == pytest.approx({"mean": 0.1, "half_width": 0.0}, abs=1e-12)
    assert "40.1 ± 0.2" in capsys.readouterr().out
    # 5 pretrainings; 2 arms x 2 rates x 2 tuning seeds, and 2 arms x 3 seeds at the rate chosen.
    assert [run.task for run in runs].count("pretrain") == 5
    assert [run.task for run in runs].count("detect") == 8 + 6
    reported = [run for run in runs if run.task == "detect" and run.seed < 100]
    assert {(bool(run.weights), run.optimizer.lr) for run in reported} == {(True, 0.1), (False, 0.01)}


def test_a_seed_draws_data_weights_and_order_alike_for_both_arms(runs, tmp_path):
    do(tmp_path)
    for run in runs:
        assert run.data.seed == run.seed
        assert run.data.root == str(tmp_path / "data" / f"seed{run.seed}")
    by_arm = {}
    for run in (run for run in runs if run.task == "detect" and run.seed >= 100):
        common = run.model_dump(exclude={"out", "weights"})
        assert by_arm.setdefault((run.seed, run.optimizer.lr), common) == common
    assert len(by_arm) == 4


def test_cells_that_are_there_are_not_done_again(runs, tmp_path):
    first = do(tmp_path)
    assert not any((tmp_path / "runs").iterdir())
    runs.clear()
    assert do(tmp_path) == first
    assert runs == []
    (tmp_path / "cells" / "random-lr0.01-seed1.json").unlink()
    assert do(tmp_path) == first
    assert [(run.seed, run.optimizer.lr, run.weights) for run in runs] == [(1, 0.01, None)]


@pytest.fixture
def fails(runs, monkeypatch):
    """Let the run of the random arm with seed 1 raise an error, and return what takes that back."""
    whole = low_labels.execute

    def install(error: Exception):
        def execute(run):
            if run.task == "detect" and run.seed == 1 and not run.weights:
                Path(run.out).mkdir(parents=True)
                raise error
            return whole(run)

        monkeypatch.setattr(low_labels, "execute", execute)
        return lambda: monkeypatch.setattr(low_labels, "execute", whole)

    return install


def test_a_run_that_fails_leaves_the_results_of_the_others(runs, fails, tmp_path):
    mend = fails(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        do(tmp_path)
    kept = {path.name for path in (tmp_path / "cells").iterdir()}
    assert "random-lr0.01-seed0.json" in kept
    assert "random-lr0.01-seed1.json" not in kept
    shutil.rmtree(tmp_path / "runs")
    mend()
    runs.clear()
    do(tmp_path)
    assert [run.seed for run in runs] == [1, 2]
    assert kept < {path.name for path in (tmp_path / "cells").iterdir()}


def test_a_run_that_diverges_is_counted_and_enters_no_mean(runs, fails, tmp_path, capsys):
    fails(FloatingPointError("the loss head/boxes is nan in step 7"))
    result = do(tmp_path)
    assert [cell.get("AP") for cell in result["cells"]["random"]] == pytest.approx([0.3, None, 0.302])
    assert result["random"]["AP"]["mean"] == pytest.approx(0.301)
    assert result["random"]["runs"] == "2 of 3, 1 diverged"
    assert result["gain"]["AP"] == pytest.approx({"mean": 0.1, "half_width": 0.0}, abs=1e-12)
    assert result["gain"]["runs"] == "2"
    printed = capsys.readouterr().out
    assert "random-lr0.01-seed1: the loss head/boxes is nan in step 7" in printed
    assert "2 of 3, 1 diverged" in printed
    assert not any((tmp_path / "runs").iterdir())


def test_a_rate_at_which_a_run_diverged_is_not_chosen(runs, monkeypatch, tmp_path):
    whole = low_labels.execute

    def execute(run, rates):
        if run.task == "detect" and run.weights and run.seed == 101 and run.optimizer.lr in rates:
            raise FloatingPointError("inf")
        return whole(run)

    monkeypatch.setattr(low_labels, "execute", lambda run: execute(run, [0.1]))
    assert do(tmp_path / "some")["learning_rate"] == {"pretrained": 0.01, "random": 0.01}
    monkeypatch.setattr(low_labels, "execute", lambda run: execute(run, [0.1, 0.01]))
    message = (
        r"^rates of the arm pretrained: .* got 0.01: 1 of 2, 1 diverged; 0.1: 1 of 2, 1 diverged; try smaller ones$"
    )
    with pytest.raises(ValueError, match=message):
        do(tmp_path / "all")


def test_detectors_of_a_pretraining_that_diverges_diverge(runs, monkeypatch, tmp_path):
    whole = low_labels.execute

    def execute(run):
        if run.task == "pretrain" and run.seed == 2:
            raise FloatingPointError("inf")
        return whole(run)

    monkeypatch.setattr(low_labels, "execute", execute)
    result = do(tmp_path)
    assert result["pretrained"]["runs"] == "2 of 3, 1 diverged"
    assert result["cells"]["pretrained"][2]["diverged"] == "pretrain-seed2: inf"
    assert result["random"]["runs"] == "3"


def test_a_folder_of_an_earlier_version_is_read(runs, tmp_path, capsys):
    """Cells had no names in them, backbones no cells, and the protocol was a hash."""
    first = do(tmp_path)
    (tmp_path / "cells" / "protocol.json").write_text(json.dumps({"pretrain": "ab12", "detect": "cd34"}))
    for path in (tmp_path / "cells").glob("*-seed*.json"):
        cell = json.loads(path.read_text())
        path.write_text(json.dumps({"AP": cell["AP"], "AP50": cell["AP50"]})) if "AP" in cell else path.unlink()
    (tmp_path / "cells" / "pretrained-lr0.1-seed1.json").unlink()
    runs.clear()
    again = do(tmp_path)
    assert "of an earlier version, whose pretrain, detect cannot be compared" in capsys.readouterr().out
    assert "ab12" not in (tmp_path / "cells" / "protocol.json").read_text()
    assert [(run.task, run.seed) for run in runs] == [("detect", 1)]
    assert [again[name] for name in ("tuning", "pretrained", "random", "gain")] == [
        first[name] for name in ("tuning", "pretrained", "random", "gain")
    ]


def test_results_of_other_configs_are_not_taken(runs, tmp_path):
    first = do(tmp_path / "out")
    changed = tmp_path / "detect.yaml"
    changed.write_text(DETECT.read_text() + "\ndeterministic: true\n")
    with pytest.raises(ValueError, match=r"got another detect\.deterministic; restore the settings"):
        low_label_study(PRETRAIN, changed, tmp_path / "out", rates=[0.1], tuning_seeds=[100], seeds=[0])
    assert do(tmp_path / "out") == first


def test_tuning_seeds_are_not_reported(runs, tmp_path):
    with pytest.raises(ValueError, match=r"expected tuning seeds that are not reported, got \[2\]"):
        do(tmp_path, tuning_seeds=[2, 100])
    assert runs == []
