"""The code itself: lint, format and types are clean, imports run one way, a wheel holds all."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("tool", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join)
def test_the_code_is_clean(tool):
    line = [sys.executable, "-m", *tool, *([] if tool == ["mypy"] else ["."])]
    done = subprocess.run(line, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


FLOORS = [
    {"errors", "files"},
    {"config"},
    {"run", "data"},
    {"models"},
    {"training", "evaluation", "figures"},
    {"methods"},
    {"commands"},
    {"comparison"},
    {"console"},
]
TOGETHER = [{"models", "run", "data"}]  # beside each other, none imports another


def imports() -> dict[str, set[str]]:
    """Every module of the package -> the modules of the package that it imports, anywhere in it."""
    found: dict[str, set[str]] = {}
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "mpp").rglob("*.py")}
    for name, path in names.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        asked = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names} | {n.module for n in nodes}
        found[name] = {module for module in asked if module in names}
    return found


def floor_of(module: str) -> int | None:
    """The number of a module's floor, from the ground up; None for the doors: mpp, mpp.pretrain, mpp.__main__."""
    part = [*module.split("."), ""][1]
    return next((number for number, floor in enumerate(FLOORS) if part in floor), None)


def test_imports_run_in_one_direction_between_the_floors():
    for module, imported in imports().items():
        if (mine := floor_of(module)) is None:
            continue
        for other in imported - {"mpp"}:
            theirs, same_part = floor_of(other), other.split(".")[1] == module.split(".")[1]
            assert theirs is not None, f"{module} imports the door {other}"
            parts = {module.split(".")[1], other.split(".")[1]}
            assert same_part or theirs < mine, f"{module} imports {other}"
            assert same_part or not any(parts <= group for group in TOGETHER), f"{module} imports {other}"


def test_no_module_imports_itself_through_others():
    graph = TopologicalSorter({name: found - {name} for name, found in imports().items()})
    assert list(graph.static_order())  # raises CycleError


def test_no_name_in_mpp_or_recipes_hides_an_installed_module():
    taken = set(sys.stdlib_module_names) | set(packages_distributions()) - {"mpp", "tests", "tools", "recipes"}
    for folder in ("mpp", "recipes"):
        here = {path.stem for path in (ROOT / folder).iterdir() if path.is_dir() or path.suffix == ".py"}
        assert not here & taken


def test_the_wheel_holds_every_package():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "mpp").rglob("__init__.py")}
    assert listed == folders | {"mpp.presets", "mpp.tools"}
