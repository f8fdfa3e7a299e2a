"""Arguments of a command in any order."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionlab import cli


@pytest.fixture
def read(monkeypatch):
    """Return what a command is told, instead of doing it."""

    def read(*words: str):
        seen = []
        for name in ("train", "evaluate", "predict", "compare", "probe"):
            monkeypatch.setitem(cli.COMMANDS, name, seen.append)
        assert cli.main(words) == 0
        return seen[0]

    return read


@pytest.mark.parametrize(
    "words",
    [
        ["C.yaml", "--check", "optimizer.lr=1"],
        ["--check", "C.yaml", "optimizer.lr=1"],
        ["C.yaml", "optimizer.lr=1", "--check"],
    ],
)
def test_overrides_stand_on_either_side_of_an_option(read, words):
    options = read("train", *words)
    assert options.check
    assert options.words == ["C.yaml", "optimizer.lr=1"]


@pytest.mark.parametrize(
    "words",
    [
        ["A.yaml", "--train", "D", "--test", "D", "train.steps=3"],
        ["A.yaml", "train.steps=3", "--train", "D", "--test", "D"],
        ["--train", "D", "A.yaml", "--test", "D", "train.steps=3"],
        ["A.yaml", "--train", "D", "--test", "D", "--seeds", "0", "1", "train.steps=3"],
        ["A.yaml", "--train", "D", "--test", "D", "--only", "moco", "train.steps=3", "--seeds", "0", "1"],
    ],
)
def test_options_for_several_values_leave_overrides_alone(read, words):
    options = read("compare", *words)
    assert sorted(options.words) == ["A.yaml", "train.steps=3"]
    assert (options.train, options.test) == (Path("D"), Path("D"))
    if "--seeds" in words:
        assert options.seeds == [0, 1]
    if "--only" in words:
        assert options.only == ["moco"]


def test_values_of_options_may_have_an_equals_sign(read):
    assert read("compare", "A.yaml", "--train", "D", "--test", "D", "--out", "a=b").out == Path("a=b")
    assert read("compare", "A.yaml", "--train=D", "--test=D", "seed=1").words == ["A.yaml", "seed=1"]


def test_positional_arguments_stand_on_either_side(read):
    options = read("predict", "run", "a.jpg", "--threshold", "0.1", "b.jpg")
    assert (options.run, options.images, options.threshold) == (Path("run"), [Path("a.jpg"), Path("b.jpg")], 0.1)
    options = read("probe", "--train", "D", "a", "--test", "D", "b")
    assert options.weights == [Path("a"), Path("b")]


def test_what_is_missing_or_unknown_is_still_refused(capsys):
    for words in (["compare", "A.yaml"], ["evaluate"], ["train", "C.yaml", "--chekc"], ["predict", "run"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 2
    assert "required" in capsys.readouterr().err
