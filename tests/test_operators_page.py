"""The operators' page says what runs, and names what exists."""

import re
from pathlib import Path

import torch

from visionlab import ops

PAGE = (Path(__file__).parent.parent / "OPERATORS.md").read_text()


def test_examples_run():
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) > 10
    names: dict = {}
    for block in blocks:
        exec(block, names)


def test_names_every_operator_and_only_what_exists():
    said = set(re.findall(r"\w+", PAGE))
    assert set(ops.__all__) - said == {"box_area", "clip_boxes_to_image", "remove_small_boxes"}
    rows = PAGE.partition("| torchvision |")[2].splitlines()[2:]
    ours = [re.sub(r"\(.*?\)", "", row.split("|")[4]) for row in rows]
    for name in re.findall(r"`(\w+)`", "".join(ours)):
        assert hasattr(ops, name), name
