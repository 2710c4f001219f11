"""The source keeps its shape: an open namespace over three roots, modules that say their job."""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = tuple(ROOT / name for name in ("orchestrator", "worker", "shared"))
MODULES = sorted(path for root in SOURCE_ROOTS for path in root.rglob("*.py"))


def packages(root: Path) -> set[Path]:
    """The folders below a source root that hold modules, or packages that do."""
    folders = {path.relative_to(root).parent for path in root.rglob("*.py")}
    return folders | {parent for folder in folders for parent in folder.parents}


def test_packages_that_span_source_roots_stay_open() -> None:
    spread = Counter(package for root in SOURCE_ROOTS for package in packages(root))
    shared_out = {package for package, roots in spread.items() if roots > 1}
    assert Path("caption_flow") in shared_out
    closing = [root / p / "__init__.py" for root in SOURCE_ROOTS for p in shared_out]
    assert [path for path in closing if path.exists()] == []


@pytest.mark.parametrize("root", SOURCE_ROOTS, ids=lambda root: root.name)
def test_a_source_root_holds_the_namespace_and_nothing_else(root: Path) -> None:
    assert {path.name for path in root.iterdir() if path.name != "__pycache__"} == {"caption_flow"}


def test_no_module_is_in_two_source_roots() -> None:
    seen = Counter(path.relative_to(root) for root in SOURCE_ROOTS for path in root.rglob("*.py"))
    assert [str(module) for module, times in seen.items() if times > 1] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_owns(module: Path) -> None:
    assert ast.get_docstring(ast.parse(module.read_bytes()))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_console_makes_pictures_of_words_between_colons(module: Path) -> None:
    """rich shows ``:ab:`` as an emoji unless told not to: in fingerprints, paths and captions."""
    calls = [node for node in ast.walk(ast.parse(module.read_bytes())) if is_console(node)]
    assert [call.lineno for call in calls if not says_no_emoji(call)] == []


def is_console(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in {"Console", "console.Console"}


def says_no_emoji(call: ast.Call) -> bool:
    return any(one.arg == "emoji" and ast.unparse(one.value) == "False" for one in call.keywords)


def test_the_installed_version_is_the_one_of_this_tree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == "1.0.0"
    assert metadata.version("caption-flow") == project["version"]
