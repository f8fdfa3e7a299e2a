"""Imports run down the floors of ARCHITECTURE.md, never up, and rooms on one floor do not know each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {
        "ops",
        "structures",
        "distributed",
        "seeding",
        "checks",
        "precision",
        "settings",
        "choices",
        "renames",
        "text",
        "files",
        "_native",
    },
    {"models", "data", "train", "eval"},
    {"pretext", "inference", "export"},
    {"tasks"},
    {"config"},
    {"run", "run_folder", "resume", "predict", "studies", "init", "doctor"},
    {"cli", "arguments", "command", "tools", "benchmarks"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS, start=1) for room in rooms}
MODULES = sorted(
    path
    for folder in ("visionlab", "tools", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if path != ROOT / "visionlab" / "__init__.py"
)


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "visionlab" else parts[0]


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "visionlab" else [node.module]
            )
        rooms |= {name.split(".")[1] for name in names if name.startswith("visionlab.")}
    return rooms & set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_down(path: Path):
    room = room_of(path)
    assert room in FLOOR_OF, f"{path.relative_to(ROOT)} stands on no floor"
    same_floor_allowed = FLOOR_OF[room] in (1, 6, 7)
    for other in imported_rooms(path) - {room}:
        below = FLOOR_OF[other] < FLOOR_OF[room] or (same_floor_allowed and FLOOR_OF[other] == FLOOR_OF[room])
        assert below, f"{path.relative_to(ROOT)} (floor {FLOOR_OF[room]}) imports {other} (floor {FLOOR_OF[other]})"


def test_no_import_circles():
    graph = {path: imported_modules(path) for path in MODULES}
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]):
        assert path not in trail, " -> ".join(str(step.relative_to(ROOT)) for step in (*trail, path))
        if path not in done:
            for other in graph.get(path, ()):
                visit(other, (*trail, path))
            done.add(path)

    for path in MODULES:
        visit(path, ())


def imported_modules(path: Path) -> set[Path]:
    """Files that a module imports when it is itself imported; imports inside functions are left out."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {file_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {file_of(f"{node.module}.{alias.name}") or file_of(node.module) for alias in node.names}
    return {other for other in found if other and other != path}


def file_of(module: str) -> Path | None:
    base = ROOT / Path(*module.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file in MODULES), None)


def test_only_one_file_says_torch_distributed():
    users = [path for path in MODULES if "torch.distributed" in path.read_text() and path.name != "distributed.py"]
    assert not users


def test_no_forbidden_file_names():
    assert not [path for path in MODULES if path.stem in {"utils", "common", "misc", "helpers"}]


def test_no_two_files_of_tests_have_one_name():
    names = sorted(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name in set(names) if names.count(name) > 1] == []  # pytest imports them by their names alone
