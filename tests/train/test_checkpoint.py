import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import Toy, toy_run

from visionlab.train.checkpoint import Best, Checkpoints

TOY = Path(__file__).parent / "toy.py"
CLOCK = {"time", "images_per_second", "data_wait"}  # what no two sessions share


def start_toy(folder, *options):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, TOY, folder, *options]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def rows(folder):
    """Return the rows of metrics.jsonl without what the clock says."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


def final_state(folder, step=12):
    states = torch.load(folder / f"checkpoints/step_{step:08d}.pt", weights_only=True)["states"]
    states["log"].pop("seconds")
    return states


def assert_same(ours, theirs):
    """Compare nested states bit for bit."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    toy_run(folder, Toy(), accumulate=2, ema_decay=0.9)
    return folder


ENDS = {  # what becomes of a process, its exit status, and the newest checkpoint it leaves
    "killed before the first checkpoint": (["--die-after", "3"], -signal.SIGKILL, None),
    "killed after rows that no checkpoint knows": (["--die-after", "7"], -signal.SIGKILL, "step_00000004.pt"),
    "asked to stop": (["--die-after", "5", "--by", "15"], 128 + signal.SIGTERM, "step_00000005.pt"),
}


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Real processes that end each in its way, all at once because most of their time is importing torch."""
    folders = {end: tmp_path_factory.mktemp("run") for end in ENDS}
    return {end: (folder, start_toy(folder, *ENDS[end][0])) for end, folder in folders.items()}


@pytest.mark.parametrize("end", ENDS)
def test_however_a_run_ends_it_goes_on_bit_for_bit(processes, whole, end):
    folder, process = processes[end]
    _, errors = process.communicate(timeout=300)
    assert process.returncode == ENDS[end][1], errors
    assert max((path.name for path in folder.glob("checkpoints/*")), default=None) == ENDS[end][2]
    toy_run(folder, Toy(), accumulate=2, ema_decay=0.9)
    assert_same(final_state(folder), final_state(whole))
    assert rows(folder) == rows(whole)


class Failing(Toy):
    def after_step(self, step, steps):
        super().after_step(step, steps)
        if step == 6:
            raise MemoryError("in step 6")


@pytest.mark.usefixtures("fp16_on_cpu")
@pytest.mark.parametrize("settings", [{"optimizer": "adamw"}, {"precision": "fp16"}, {"precision": "bf16"}], ids=str)
def test_every_optimizer_and_precision_goes_on_bit_for_bit(tmp_path, settings):
    toy_run(tmp_path / "whole", Toy().float(), **settings)
    with pytest.raises(MemoryError):
        toy_run(tmp_path / "failed", Failing().float(), **settings)
    toy_run(tmp_path / "failed", Toy().float(), **settings)
    assert_same(final_state(tmp_path / "failed"), final_state(tmp_path / "whole"))
    assert rows(tmp_path / "failed") == rows(tmp_path / "whole")


@pytest.mark.parametrize("name", ["every", "keep"])
def test_settings_out_of_range_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"^{name}: expected at least 1, got 0$"):
        Checkpoints(tmp_path, "", **{name: 0})


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_passed_over_and_said_so(tmp_path, whole, damage):
    toy_run(tmp_path, Toy(), accumulate=2, ema_decay=0.9)
    newest = tmp_path / "checkpoints/step_00000012.pt"
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        weight = torch.load(newest, weights_only=True)["states"]["task"]["first.weight"]
        content[content.find(weight.numpy().tobytes())] ^= 1
    newest.write_bytes({"cut": content[:-100], "flipped": content, "empty": b""}[damage])

    toy_run(tmp_path, Toy(), accumulate=2, ema_decay=0.9)
    warnings = [row["warning"] for row in rows(tmp_path) if "step_00000012.pt is damaged" in row.get("warning", "")]
    assert len(warnings) == 1
    assert "\n" not in warnings[0]
    assert newest.with_suffix(".damaged").exists()
    states, expected = final_state(tmp_path), final_state(whole)
    states["log"]["said"].remove(warnings[0])
    assert_same(states, expected)


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    (tmp_path / "step_00000001.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"none of the 1 checkpoints in .* can be read"):
        Checkpoints(tmp_path, "a").restore({})


def test_another_config_is_refused_in_one_line(tmp_path):
    Checkpoints(tmp_path, "a").save(5, {})
    with pytest.raises(ValueError, match=r"step_00000005\.pt was written with other settings") as error:
        Checkpoints(tmp_path, "b").restore({})
    assert "\n" not in str(error.value)


def test_the_newest_stay_and_nothing_half_written_does(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, "a", keep=2)
    for step in (1, 2, 10):
        checkpoints.save(step, {})
    names = ["step_00000002.pt", "step_00000010.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(11, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert checkpoints.restore({}) == (10, [])


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    toy_run(tmp_path, first := Toy(), ema_decay=0.9)
    before = (tmp_path / "metrics.jsonl").read_text()
    toy_run(tmp_path, second := Toy(), ema_decay=0.9)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert_same(dict(first.state_dict()), dict(second.state_dict()))


def test_best_wants_its_metric_and_remembers():
    best = Best("AP")
    assert [best.improves(step, {"AP": value}) for step, value in enumerate([0.1, 0.3, float("nan"), 0.3])] == [
        True,
        True,
        False,
        False,
    ]
    restored = Best("AP")
    restored.load_state_dict(best.state_dict())
    assert (restored.value, restored.step) == (0.3, 1)
    with pytest.raises(ValueError, match="AP decides which is best"):
        best.improves(5, {"accuracy": 1.0})
