"""Cells are done once, by one process of several; dead owners, damaged files and runs that diverge."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from visionlab.studies.cells import Cell, CellStore, Job
from visionlab.studies.ownership import Ownership

# A process that does the cells of a folder, each in some hundredths of a second, and notes which it began.
WORKER = """
import os, sys, time
from pathlib import Path
from visionlab.studies.cells import Cell, CellStore, Job

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])

def job(arm, seed):
    def work():
        (folder / f"{arm}-{seed}-{os.getpid()}.begun").touch()
        time.sleep(seconds)
        return {"value": seed, "pid": os.getpid()}
    return Job(Cell(arm, seed), work)

store = CellStore(folder / "cells", {"what": "test"}, poll=0.02)
print("ready", flush=True)
store.fill([job(arm, seed) for arm in "ab" for seed in range(int(sys.argv[3]))])
"""


@pytest.fixture
def start(tmp_path):
    """Start workers on the folder; those that still run are killed in the end."""
    processes = []

    def start(seconds: float, seeds: int) -> subprocess.Popen:
        command = [sys.executable, "-c", WORKER, str(tmp_path), str(seconds), str(seeds)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def begun(folder: Path) -> list[str]:
    return [path.name.rpartition("-")[0] for path in folder.glob("*.begun")]


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "cells").iterdir()}


def constant(arm: str, seed: int, value: float, done: list | None = None) -> Job:
    def work():
        if done is not None:
            done.append((arm, seed))
        return {"value": value}

    return Job(Cell(arm, seed), work)


def test_two_processes_do_every_cell_once(start, tmp_path):
    workers = [start(0.05, 8) for _ in range(2)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert Counter(begun(tmp_path)) == {f"{arm}-{seed}": 1 for arm in "ab" for seed in range(8)}
    assert names(tmp_path) == {f"{arm}-seed{seed}.json" for arm in "ab" for seed in range(8)} | {"protocol.json"}
    cells = [json.loads((tmp_path / "cells" / f"a-seed{seed}.json").read_text()) for seed in range(8)]
    assert [(cell["arm"], cell["seed"], cell["value"]) for cell in cells] == [("a", seed, seed) for seed in range(8)]


def test_the_cell_of_a_killed_process_is_taken_over(start, tmp_path, capsys):
    killed = start(60, 1)
    while not begun(tmp_path):
        time.sleep(0.01)
    owner = json.loads((tmp_path / "cells" / "a-seed0.owner-1").read_text())
    assert owner["pid"] == killed.pid
    assert {"host", "machine", "started", "since"} < set(owner)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    done: list = []
    CellStore(tmp_path / "cells", {"what": "test"}).fill([constant("a", 0, 1.0, done)])
    assert done == [("a", 0)]
    assert f"a-seed0: taken over, its owner is dead (process {killed.pid} on " in capsys.readouterr().out
    assert names(tmp_path) == {"a-seed0.json", "protocol.json"}


def test_a_living_process_is_waited_for(start, tmp_path, capsys):
    start(0.5, 1)
    while not begun(tmp_path):
        time.sleep(0.01)
    store = CellStore(tmp_path / "cells", {"what": "test"}, poll=0.02)
    results = store.fill([constant("b", 0, 1.0), constant("a", 0, -1.0)])
    assert results[Cell("a", 0)]["value"] == 0
    assert "waiting for cells that others are doing: a-seed0 (process " in capsys.readouterr().out


def test_it_says_how_many_cells_are_done_and_when_the_others_will_be(tmp_path, capsys):
    store = CellStore(tmp_path / "cells", {})
    store.fill([constant("a", 0, 1.0)])
    capsys.readouterr()
    store.fill([constant("a", seed, 1.0) for seed in range(3)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "left" in line]
    assert lines == ["2 of 3 cells done, about 0:00:00 left", "3 of 3 cells done, about 0:00:00 left"]
    store.fill([constant("a", seed, 1.0) for seed in range(3)])
    assert capsys.readouterr().out == ""


def elsewhere(folder: Path, name: str, pid: int) -> Path:
    """Pretend that a process of another machine owns a cell."""
    path = folder / f"{name}.owner-1"
    path.write_text(json.dumps({"host": "far", "machine": "far", "pid": pid, "started": "1", "token": "x"}))
    return path


def test_another_machine_is_dead_when_its_heartbeat_stops(tmp_path):
    ownership = Ownership(tmp_path, patience=0.2)
    path = elsewhere(tmp_path, "a-seed0", os.getpid())
    for beat in range(5):  # it lives on, whatever this machine's clock says
        os.utime(path, (beat, beat))
        with ownership.take("a-seed0") as owner:
            assert owner is None
        time.sleep(0.1)
    time.sleep(0.2)
    with ownership.take("a-seed0") as owner:
        assert owner is not None
        assert owner.previous == f"process {os.getpid()} on far"
        with ownership.take("a-seed0") as second:
            assert second is None
    assert list(tmp_path.iterdir()) == []


def test_an_owner_beats(tmp_path):
    with Ownership(tmp_path, heartbeat=0.02).take("a") as owner:
        os.utime(owner.path, (0, 0))
        time.sleep(0.2)
        assert owner.path.stat().st_mtime > 0


def test_a_process_that_was_taken_for_dead_does_not_write(tmp_path, capsys):
    store = CellStore(tmp_path, {})

    def work():
        (tmp_path / "a-seed0.owner-2").write_text(json.dumps({"machine": "far", "token": "y"}))
        (tmp_path / "a-seed0.json").write_text(json.dumps({"value": 2}))
        return {"value": 1}

    assert store.fill([Job(Cell("a", 0), work)]) == {Cell("a", 0): {"value": 2}}
    assert "a-seed0: another process took it over, this result does not count" in capsys.readouterr().out
    assert (tmp_path / "a-seed0.owner-2").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"value": 1}'[:-1]])
def test_a_damaged_cell_is_named_and_done_again(content, tmp_path, capsys):
    store = CellStore(tmp_path, {})
    (tmp_path / "a-seed0.json").write_text(content)
    assert store.read(Cell("a", 0)) is None
    assert store.fill([constant("a", 0, 3.0)])[Cell("a", 0)]["value"] == 3
    assert json.loads((tmp_path / "a-seed0.json").read_text()) == {"arm": "a", "seed": 0, "value": 3.0}
    assert capsys.readouterr().out.count("a-seed0.json: damaged (") == 1


def test_what_diverged_is_done_and_says_so(tmp_path):
    def diverges():
        raise FloatingPointError("the loss is nan in step 7")

    jobs = [
        Job(Cell("a", 0), diverges),
        Job(Cell("b", 0), lambda: {"levels": {"pooled": [0.5, float("nan")]}}),
        Job(Cell("c", 0), lambda: {"value": 1.0}, (Job(Cell("a", 0), diverges),)),
    ]
    results = CellStore(tmp_path, {}).fill(jobs)
    assert [result["diverged"] for result in results.values()] == [
        "the loss is nan in step 7",
        "levels.pooled.1 is nan",
        "a-seed0: the loss is nan in step 7",
    ]
    done: list = []
    CellStore(tmp_path, {}).fill([constant("a", 0, 1.0, done)])
    assert done == []


def test_an_error_gives_the_cell_back(tmp_path):
    def full():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        CellStore(tmp_path, {"a": 1}).fill([Job(Cell("a", 0), full, scratch=tmp_path / "run")])
    assert [path.name for path in tmp_path.iterdir()] == ["protocol.json"]


def test_needs_are_done_for_what_is_missing_alone(tmp_path):
    done: list = []
    needed = constant("pretrain", 0, 0.0, done)
    store = CellStore(tmp_path / "cells", {})
    (tmp_path / "run").mkdir()
    job = Job(Cell("a", 0), lambda: {"value": 1.0}, (needed,), tmp_path / "run")
    store.fill([job, job])
    assert done == [("pretrain", 0)]
    assert not (tmp_path / "run").exists()
    (tmp_path / "cells" / "pretrain-seed0.json").unlink()
    store.fill([job])
    assert done == [("pretrain", 0)]


def test_a_protocol_grows_but_does_not_change(tmp_path):
    CellStore(tmp_path, {"measures": {"size": 32, "roi": None}, "a": {"lr": 1}})
    CellStore(tmp_path, {"measures": {"size": 32, "roi": None}, "b": {"lr": 2}})
    assert json.loads((tmp_path / "protocol.json").read_text()).keys() == {"measures", "a", "b"}
    message = r"expected the settings of the results in it, got another measures\.size, measures\.roi, a\.wd; restore"
    with pytest.raises(ValueError, match=message):
        CellStore(tmp_path, {"measures": {"size": 16, "roi": {"x": 1}}, "a": {"lr": 1, "wd": 3}})
    (tmp_path / "protocol.json").write_text("{")
    with pytest.raises(ValueError, match=r"protocol\.json: damaged \("):
        CellStore(tmp_path, {"a": {"lr": 1}})


def test_processes_of_one_run_are_refused(tmp_path, monkeypatch):
    store = CellStore(tmp_path, {})
    monkeypatch.setattr("visionlab.studies.cells.distributed.world_size", lambda: 2)
    with pytest.raises(ValueError, match="a study: expected one process, got 2; start the same command several times"):
        store.fill([constant("a", 0, 1.0)])
