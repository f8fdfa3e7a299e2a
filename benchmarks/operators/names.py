"""The operators with kernels, by their public names; known without importing torch."""

import re
from pathlib import Path

_TABLE = Path(__file__).parents[2] / "csrc" / "library.cpp"


def _names() -> list[str]:
    """Read them off the table of schemas; a backward operator belongs to its forward, and one kernel has two names."""
    rows = re.findall(r'm\.def\(\s*"(\w+)\(Tensor', _TABLE.read_text())
    return sorted({"batched_nms", *(name for name in rows if not name.endswith("_backward"))})


OPERATORS = _names()
