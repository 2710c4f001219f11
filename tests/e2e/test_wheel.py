"""A wheel built from a clean tree holds what it should, and runs where nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests.environment.install import pip_settings, uv_environment

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = ("orchestrator", "worker", "shared")
HEAVY = ("torch", "transformers", "vllm")
SECONDS = 600


Command = Sequence[str | Path]


def run(
    command: Command, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def succeed(command: Command, cwd: Path, environment: dict[str, str] | None = None) -> str:
    outcome = run(command, cwd, environment)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


def project_files() -> Iterator[str]:
    """What a clone would hold, were everything here committed."""
    listed = run(["git", "ls-files", "-co", "--exclude-standard", "-z"], ROOT)
    if listed.returncode == 0:
        yield from (name for name in listed.stdout.split("\0") if (ROOT / name).is_file())
        return
    # A download without its history: what is built from is all there is to tell.
    yield from (path.name for path in ROOT.iterdir() if path.is_file())
    for root in SOURCE_ROOTS:
        yield from (str(path.relative_to(ROOT)) for path in (ROOT / root).rglob("*.py"))


@pytest.fixture(scope="module")
def clean_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("clean tree")
    for name in project_files():
        copy = tree / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy)
    return tree


@pytest.fixture(scope="module")
def wheel(clean_tree: Path) -> Path:
    building = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", "wheels"]
    succeed([*building, "."], clean_tree)
    (built,) = (clean_tree / "wheels").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment that holds the wheel and what it asks for."""
    venv = tmp_path_factory.mktemp("empty") / "venv"
    uv = [sys.executable, "-m", "uv"]
    succeed([*uv, "venv", "--python", sys.executable, venv], ROOT)
    installing: Command = [*uv, "pip", "install", "--python", venv / "bin" / "python", wheel]
    environment = uv_environment(os.environ, pip_settings(Path(sys.executable)))
    # What set-up has just fetched is in uv's cache; only where it is not does this need a network.
    if run([*installing, "--offline"], ROOT, environment).returncode:
        succeed(installing, ROOT, environment)
    return venv / "bin"


def clean_environment() -> dict[str, str]:
    """The process's environment without what would let it find this tree's modules."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def test_the_wheel_holds_the_modules_of_all_three_roots_and_nothing_else(
    clean_tree: Path, wheel: Path
) -> None:
    expected = {
        str(path.relative_to(clean_tree / root))
        for root in SOURCE_ROOTS
        for path in (clean_tree / root / "caption_flow").rglob("*")
        if path.is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    facts = {name for name in names if name.startswith("caption_flow-1.0.0.dist-info/")}
    assert names - facts == expected
    assert "caption_flow/cli/__main__.py" in names
    assert "caption_flow/orchestrator/service.py" in names
    assert "caption_flow/worker/service.py" in names
    assert "caption_flow/__init__.py" not in names
    assert "caption_flow-1.0.0.dist-info/licenses/LICENSE" in facts


def test_the_wheel_is_light(installed: Path) -> None:
    looking = f"import importlib.util as u; print([m for m in {HEAVY} if u.find_spec(m)])"
    assert succeed([installed / "python", "-c", looking], installed).strip() == "[]"


def test_the_installed_commands_answer(installed: Path) -> None:
    environment = clean_environment()
    said = succeed([installed / "caption-flow", "--version"], installed, environment)
    assert said.strip() == "caption-flow 1.0.0"
    asking: Command = [installed / "python", "-m", "caption_flow.cli", "--help"]
    assert "orchestrator" in succeed(asking, installed, environment)


def test_the_installed_wheel_captions_a_folder(installed: Path, tmp_path: Path) -> None:
    images = tmp_path / "two images"
    images.mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 48), colour).save(images / f"{colour}.png")
    command: Command = [installed / "caption-flow", "run", images, "--engine", "synthetic"]
    said = succeed(command, tmp_path, clean_environment())
    assert "captioned  2" in said
    texts = {path.stem: path.read_text(encoding="utf-8") for path in images.glob("*.txt")}
    assert texts.keys() == {"red", "blue"}
    assert texts["red"] != texts["blue"]
    assert list((tmp_path / ".caption-flow").rglob("part-*.parquet"))
