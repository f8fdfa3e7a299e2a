import io
import json
import sys

import pytest
import torch
from rich.console import Console
from toy import Toy, toy_run

from visionlab.train.log import Log


def make_log(folder, steps=4, terminal=False, **settings):
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=120)
    return Log(folder, steps, console, **settings), output


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def add_steps(log, first, last, names=("a", "b")):
    for step in range(first, last + 1):
        with log.waiting():
            pass
        log.add(step, torch.tensor([step * 0.1, 1.0, 2.0]), images=8)
        if log.due(step):
            log.row(list(names), lr=0.1, meters={"accuracy": 0.5})


def test_rows_hold_means_and_all_that_a_report_needs(tmp_path):
    log, _ = make_log(tmp_path, every=3)
    with log.opened(0):
        add_steps(log, 1, 4)
        log.evaluation({"AP": 0.25, "APs": float("nan")})
    first, last, evaluation = rows(tmp_path)
    assert list(first) == [
        "step", "time", "lr", "loss", "losses/a", "losses/b", "gradient_norm", "images_per_second", "data_wait",
        "meters/accuracy",
    ]  # fmt: skip
    assert (first["step"], last["step"]) == (3, 4)
    assert first["losses/a"] == pytest.approx(0.2)
    assert last["losses/a"] == pytest.approx(0.4)
    assert first["loss"] == first["losses/a"] + first["losses/b"]
    assert first["gradient_norm"] == 2
    assert first["images_per_second"] > 0
    assert 0 <= first["data_wait"] <= 1
    assert evaluation == {"step": 4, "eval/AP": 0.25, "eval/APs": None}


def test_resuming_drops_later_rows_and_a_torn_line(tmp_path):
    log, _ = make_log(tmp_path, every=1)
    with log.opened(0):
        add_steps(log, 1, 3)
        log.warn("collapsed")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    again, output = make_log(tmp_path, every=1)
    with again.opened(2):
        pass
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert "going on after step 2 of 4" in output.getvalue()


def test_a_state_taken_between_rows_gives_the_same_row(tmp_path):
    log, _ = make_log(tmp_path, every=4)
    with log.opened(0):
        add_steps(log, 1, 2)
        state = log.state_dict()
        add_steps(log, 3, 4)
    (whole,) = rows(tmp_path)
    again, _ = make_log(tmp_path, every=4)
    again.load_state_dict(state)
    with again.opened(2):
        add_steps(again, 3, 4)
    (resumed,) = rows(tmp_path)
    assert resumed["losses/a"] == whole["losses/a"]
    assert resumed["time"] > state["seconds"]


def test_a_warning_is_loud_kept_and_said_once(tmp_path):
    log, output = make_log(tmp_path)
    with log.opened(0):
        log.warn("the embedding has [collapsed]")
        log.warn("the embedding has [collapsed]")
    assert rows(tmp_path) == [{"step": 0, "warning": "the embedding has [collapsed]"}]
    assert output.getvalue().count("WARNING: the embedding has [collapsed]\n") == 1


def test_a_file_gets_plain_lines_now_and_then(tmp_path):
    log, output = make_log(tmp_path, steps=50, every=1)
    with log.opened(0):
        add_steps(log, 1, 50)
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 1/50  loss 1.1  lr 0.1  ")
    assert "step 50/50" in lines[1]
    assert all(word in lines[0] for word in ("images/s", "data wait", "left"))
    assert "\x1b" not in output.getvalue()


def test_a_terminal_gets_one_line_that_changes(tmp_path):
    log, output = make_log(tmp_path, steps=50, every=1, terminal=True)
    with log.opened(0):
        add_steps(log, 1, 50)
    drawn = output.getvalue()
    assert "\x1b[2K" in drawn
    assert drawn.count("\n") == 1
    assert "50/50" in drawn
    assert "images/s" in drawn


def test_tensorboard_events_hold_the_rows_and_go_on(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start, end in ((0, 4), (2, 4)):
        log, _ = make_log(tmp_path, every=1, tensorboard=True)
        with log.opened(start):
            add_steps(log, start + 1, end)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(point.step, point.value) for point in events.Scalars("losses/a")]
    assert points == [(step, pytest.approx(step * 0.1)) for step in range(1, 5)]


def test_tensorboard_must_be_installed_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("visionlab.train.log.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        Log(tmp_path, 4, tensorboard=True)


def test_a_run_says_what_its_task_warns_of(tmp_path):
    output = io.StringIO()
    toy_run(tmp_path, Toy(), console=Console(file=output))
    assert output.getvalue().count("WARNING: the queue is a queue") == 1
    assert "meters/queue" in rows(tmp_path)[0]
