"""Settings out of their range are refused in one form, by their name."""

import math
import re

import pytest

from visionlab.checks import check_above, check_at_least, check_in


def test_settings_in_range_pass():
    check_at_least(1, every=1, keep=2.5, sizes=[1, 2], limit=None)
    check_above(0, lr=1e-9, ratios=(0.5, 2.0))
    check_in("[0, 1)", momentum=0, final=0.999)
    check_in("(0, 1]", share=1.0, decay=None)


@pytest.mark.parametrize(
    ("check", "bound", "setting", "message"),
    [
        (check_at_least, 1, {"every": 0}, "every: expected at least 1, got 0"),
        (check_at_least, 0, {"keep": 1, "wait": -1}, "wait: expected at least 0, got -1"),
        (check_at_least, 0, {"lr": math.inf}, "lr: expected at least 0, got inf"),
        (check_above, 0, {"lr": 0.0}, "lr: expected more than 0, got 0.0"),
        (check_above, 0, {"lr": math.nan}, "lr: expected more than 0, got nan"),
        (check_above, 0, {"ratios": (1.0, 0.0)}, "ratios: expected numbers, each more than 0, got (1.0, 0.0)"),
        (check_above, 0, {"ratios": []}, "ratios: expected numbers, each more than 0, got []"),
        (check_in, "[0, 1)", {"momentum": 1}, "momentum: expected a number in [0, 1), got 1"),
        (check_in, "(0, 1]", {"share": 0}, "share: expected a number in (0, 1], got 0"),
        (check_in, "[0, 1)", {"betas": (0.9, 1.0)}, "betas: expected numbers, each in [0, 1), got (0.9, 1.0)"),
        (check_in, "[0, 1]", {"flip": 1.5}, "flip: expected a number in [0, 1], got 1.5"),
    ],
)
def test_others_are_named(check, bound, setting, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(bound, **setting)
