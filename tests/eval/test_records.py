"""What is read out of run folders, whole and damaged ones."""

import json

import pytest

from visionlab.eval.records import read_run


def log(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_reads_a_detector_run(generated_run):
    record = read_run(generated_run)
    assert (record.kind, record.last_step, record.best_step) == ("detect", 1000, 1000)
    assert record.notes == []
    assert record.warnings == []
    assert list(record.evaluations) == [200, 400, 600, 800, 1000]
    assert json.loads((generated_run / "eval" / "step_00001000.json").read_text())["metrics"]["AP"] == record.final.AP
    assert len(record.series("loss")[0]) == 100
    assert record.evaluation_series("AP")[0] == [200, 400, 600, 800, 1000]
    assert record.keys("losses/") == [
        f"losses/{n}" for n in ("rpn/objectness", "rpn/boxes", "head/classes", "head/boxes")
    ]
    assert record.weights == ["detector.safetensors"]
    assert record.seconds == pytest.approx(390)


def test_reads_a_pretraining_run(pretrain_run):
    record = read_run(pretrain_run)
    assert (record.kind, record.best_step, record.final) == ("pretrain", None, None)
    assert record.warnings == ["step 1500: the representation is narrow: effective_rank 42"]
    assert [path.name for path in record.views] == ["views.jpg"]


def test_damaged_lines_are_noted_and_left_out(tmp_path):
    log(tmp_path, {"step": 1, "loss": 2.0}, '{"step": 2, "lo', "", {"loss": 1.0}, "[3]", {"step": 4, "loss": 1.5})
    record = read_run(tmp_path)
    assert record.series("loss") == ([1, 4], [2.0, 1.5])
    notes = [note for note in record.notes if note.startswith("metrics.jsonl")]
    assert len(notes) == 3
    assert all(f"line {number}," in note for number, note in zip((2, 4, 5), notes, strict=True))


def test_steps_done_again_after_a_resume_replace_the_first(tmp_path):
    rows = [{"step": step, "loss": 1.0} for step in (1, 2, 3, 4)]
    log(tmp_path, *rows, {"step": 2, "loss": 5.0}, {"step": 3, "loss": 6.0})
    assert read_run(tmp_path).series("loss") == ([1, 2, 3], [1.0, 5.0, 6.0])


def test_rows_of_one_step_belong_together(tmp_path):
    log(
        tmp_path,
        {"step": 1, "loss": 1.0},
        {"step": 1, "eval/AP": 0.5},
        {"step": 1, "warning": "a"},
        {"step": 1, "error": "b"},
    )
    record = read_run(tmp_path)
    assert record.rows == [{"step": 1, "loss": 1.0, "eval/AP": 0.5}]
    assert record.warnings == ["step 1: a", "step 1: b"]


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    log(
        tmp_path,
        {"step": 1, "loss": float("nan")},
        {"step": 2, "loss": None},
        {"step": 3, "loss": float("inf")},
        {"step": 4, "loss": 1},
    )
    assert read_run(tmp_path).series("loss") == ([4], [1])


def test_damaged_files_are_noted(generated_run):
    (generated_run / "environment.json").write_text('{"versions": ')
    (generated_run / "config.yaml").unlink()
    (generated_run / "eval" / "step_00000400.json").write_text('{"step": 400, "metrics": {"AP": 0.1, "unknown": 1}}')
    (generated_run / "eval" / "step_00000600.json").write_text("[1]")
    (generated_run / "eval" / "step_00000800.json").write_bytes(b"\xff\xfe")
    record = read_run(generated_run)
    assert list(record.evaluations) == [200, 1000]
    for name in ("environment.json", "config.yaml", "step_00000400", "step_00000600", "step_00000800"):
        assert sum(name in note for note in record.notes) == 1
    assert record.kind == "detect"


def test_empty_folder(tmp_path):
    record = read_run(tmp_path)
    assert (record.kind, record.last_step, record.seconds, record.final, record.best_step) == ("", 0, None, None, None)
    assert json.dumps(record.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"losses/rpn/boxes": 1}, "detect"),
        ({"eval/AP": 1}, "detect"),
        ({"meters/embedding_std": 1}, "pretrain"),
        ({"loss": 1}, ""),
    ],
)
def test_kind_shows_in_the_log(tmp_path, row, kind):
    log(tmp_path, {"step": 1, **row})
    assert read_run(tmp_path).kind == kind


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        read_run(tmp_path / "nowhere")
