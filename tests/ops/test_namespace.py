"""visionlab.ops stands in for torchvision.ops: its names, its signatures, and what happens without torchvision."""

import inspect
import subprocess
import sys

import pytest

from visionlab import ops
from visionlab.ops import delegate


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_every_name_of_torchvision_exists():
    torchvision = pytest.importorskip("torchvision")
    missing = [name for name in torchvision.ops.__all__ if not hasattr(ops, name)]
    assert missing == []
    assert set(torchvision.ops.__all__) <= set(dir(ops))


def test_a_name_is_ours_or_torchvisions():
    assert not set(ops.__all__) & set(delegate.NAMES)
    for name in delegate.NAMES:
        assert name not in vars(delegate)


def test_torchvisions_own_are_kept():
    torchvision = pytest.importorskip("torchvision")
    for name in delegate.NAMES:
        assert getattr(ops, name) is getattr(torchvision.ops, name)
        assert vars(ops)[name] is getattr(torchvision.ops, name)


def test_our_functions_take_torchvisions_arguments():
    torchvision = pytest.importorskip("torchvision")
    shared = [name for name in ops.__all__ if name in torchvision.ops.__all__]
    assert "box_iou" in shared
    for name in shared:
        ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (ops, torchvision.ops))
        assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()], name


def test_unknown_names():
    assert not hasattr(ops, "no_such_operator")
    with pytest.raises(ImportError, match="cannot import name 'no_such_operator'"):
        exec("from visionlab.ops import no_such_operator")


def test_our_names_do_not_import_torchvision():
    code = """
import sys
from visionlab import ops
from visionlab.ops import *
from visionlab.ops import nms, reference
assert hasattr(ops, "box_iou") and "MLP" in dir(ops) and not hasattr(ops, "no_such_operator")
print("torchvision" in sys.modules)
"""
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["False"]


WITHOUT = "is torchvision's own, but torchvision is not installed"
BROKEN = {  # what a torchvision does when it is imported, and what is said then
    "raise RuntimeError('operator torchvision::nms does not exist')": "torchvision does not import here: operator "
    "torchvision::nms does not exist; it was built for another torch",
    "raise OSError('libcudart.so.13: cannot open')": "torchvision does not import here: libcudart.so.13: cannot open",
    "raise ModuleNotFoundError(\"No module named 'PIL'\", name='PIL')": "No module named 'PIL'",
    "__version__ = '0.1'": "torchvision 0.1 does not have it yet",
}


def test_without_torchvision_only_its_names_fail():
    code = """
import sys
sys.modules["torchvision"] = None
from visionlab import ops
assert ops.nms
for access in ("from visionlab.ops import MLP", "ops.MLP"):
    try:
        exec(access)
    except ImportError as error:
        print(error)
"""
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"visionlab.ops.MLP {WITHOUT}"] * 2


def test_a_torchvision_that_cannot_be_used_is_named(tmp_path):
    for i, source in enumerate(BROKEN):
        (tmp_path / str(i) / "torchvision" / "ops").mkdir(parents=True)
        (tmp_path / str(i) / "torchvision" / "__init__.py").write_text(source)
        (tmp_path / str(i) / "torchvision" / "ops" / "__init__.py").touch()
    code = f"""
import sys
from visionlab import ops
for i in range({len(BROKEN)}):
    sys.path.insert(0, {str(tmp_path)!r} + f"/{{i}}")
    try:
        ops.MLP
    except ImportError as error:
        print(error)
"""
    result = run(code)
    assert result.returncode == 0, result.stderr
    said = [f"visionlab.ops.MLP is torchvision's own, but {reason}" for reason in BROKEN.values()]
    assert result.stdout.splitlines() == said
