"""Intervals against scipy's own and against a textbook."""

import pytest
from scipy import stats

from visionlab.eval.interval import Interval


@pytest.mark.parametrize("samples", [[0.1, 0.3], [0.31, 0.28, 0.35, 0.3, 0.29], [2.0, 2.0, 2.0]])
def test_the_interval_is_students(samples):
    interval = Interval.of(samples)
    low, high = stats.t.interval(0.95, len(samples) - 1, loc=sum(samples) / len(samples), scale=1)
    scale = stats.sem(samples)
    assert interval.mean == pytest.approx(sum(samples) / len(samples))
    assert interval.half_width == pytest.approx((high - low) / 2 * scale)


def test_the_interval_of_a_textbook():
    """Five numbers, t of 4 degrees of freedom 2.776: 10 ± 2.776 · sqrt(2.5 / 5)."""
    assert str(Interval.of([0.08, 0.09, 0.10, 0.11, 0.12])) == "10.0 ± 2.0"


def test_a_single_sample_has_no_interval():
    assert Interval.of([0.5]) == Interval(0.5, float("inf"))
    assert Interval.of([0.5]).text() == "50.0"


def test_the_text_of_other_units():
    interval = Interval.of([8.0, 9.0, 10.0, 11.0, 12.0])
    assert interval.text(1, 0) == "10 ± 2"
    assert interval.text(0.1, 2) == "1.00 ± 0.20"
