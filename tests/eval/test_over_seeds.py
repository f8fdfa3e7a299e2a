"""Runs that diverged are counted, enter no mean, and their arm is never the best."""

import pytest

from visionlab.eval.over_seeds import best_arm, count, finished

DIVERGED = {"diverged": "nan"}


def cells(*values: float | None) -> list:
    return [DIVERGED if value is None else {"AP": value} for value in values]


def test_count():
    assert count(cells(1, 2)) == "2"
    assert count(cells(1, None, 2, None)) == "2 of 4, 2 diverged"
    assert count([*cells(1), None]) == "1 of 2"
    assert finished([*cells(1, None), None]) == [{"AP": 1}]


def test_the_best_arm_has_all_its_runs():
    arms = {0.1: cells(0.2, 0.4), 1.0: cells(0.9, None), 0.2: cells(0.3, 0.3), 2.0: [*cells(0.9), None]}
    assert best_arm(arms, "AP") == 0.1
    with pytest.raises(ValueError, match=r"got 1.0: 1 of 2, 1 diverged$"):
        best_arm({1.0: cells(0.9, None)}, "AP")
