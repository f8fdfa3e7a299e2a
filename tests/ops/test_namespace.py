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


@pytest.mark.parametrize("access", ["from visionlab.ops import MLP", "from visionlab import ops; ops.MLP"])
def test_without_torchvision_only_its_names_fail(access: str):
    block = "import sys; sys.modules['torchvision'] = None\nimport visionlab.ops\nassert visionlab.ops.nms\n"
    result = run(block + access)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last == "ImportError: visionlab.ops.MLP is torchvision's own, but torchvision is not installed"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            "RuntimeError('operator torchvision::nms does not exist')",
            "torchvision does not import here: operator torchvision::nms does not exist; "
            "it was built for another torch",
        ),
        ("OSError('libcudart.so.13: cannot open')", "torchvision does not import here: libcudart.so.13: cannot open"),
        ("ModuleNotFoundError(\"No module named 'PIL'\", name='PIL')", "No module named 'PIL'"),
    ],
)
def test_a_torchvision_that_does_not_import_is_named(tmp_path, error: str, reason: str):
    (tmp_path / "torchvision.py").write_text(f"raise {error}\n")
    (tmp_path / "user.py").write_text("from visionlab.ops import nms\nfrom visionlab.ops import MLP\n")
    result = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport user")
    last = result.stderr.strip().splitlines()[-1]
    assert last == f"ImportError: visionlab.ops.MLP is torchvision's own, but {reason}"


def test_an_older_torchvision_is_named(tmp_path):
    folder = tmp_path / "torchvision"
    (folder / "ops").mkdir(parents=True)
    (folder / "__init__.py").write_text("__version__ = '0.1'\n")
    (folder / "ops" / "__init__.py").touch()
    result = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom visionlab.ops import MLP")
    last = result.stderr.strip().splitlines()[-1]
    assert last == "ImportError: visionlab.ops.MLP is torchvision's own, but torchvision 0.1 does not have it yet"
