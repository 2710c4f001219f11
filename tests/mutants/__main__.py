"""Break one promise at a time and see whether the tests notice.

    python -m tests.mutants                      all mutants; exit 1 if one survives
    python -m tests.mutants --only "lease"       those whose name contains this
    python -m tests.mutants --list               names and promises

The source is copied and only the copy is changed. Hypothesis runs derandomized and with few
examples, so that a result can be repeated.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tests.mutants.table import MUTANTS, Mutant

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCE_ROOTS: Final = ("orchestrator", "worker", "shared")
TIMEOUT_SECONDS: Final = 120
"""A mutant that makes the tests hang is noticed, too."""
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the tests said: ``by`` names the one that failed first, None if all passed."""

    by: str | None
    seconds: float
    output: str = ""

    @property
    def survived(self) -> bool:
        return self.by is None


class Lab:
    """Copies of the source tree, one for each job that runs at the same time."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self._copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            copy = folder / f"copy-{number}"
            copy.mkdir()
            for name in (*SOURCE_ROOTS, "tests"):
                ignored = shutil.ignore_patterns("__pycache__", "model", "tiny_vlm", "chaos")
                shutil.copytree(ROOT / name, copy / name, ignore=ignored)
            shutil.copy(ROOT / "pyproject.toml", copy)
            self._copies.put(copy)

    def passes_untouched(self, tests: Sequence[str]) -> Outcome:
        """Run all tests on the source as it is: what fails without a mutant proves nothing."""
        copy = self._copies.get()
        try:
            return run(copy, tests)
        finally:
            self._copies.put(copy)

    def examine(self, mutant: Mutant) -> Outcome:
        """Apply a mutant to a copy, run its tests there, and put the copy right again."""
        copy = self._copies.get()
        try:
            with mutated(copy / mutant.file, mutant):
                return run(copy, mutant.tests)
        finally:
            self._copies.put(copy)


@contextmanager
def mutated(path: Path, mutant: Mutant) -> Iterator[None]:
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        raise SystemExit(f"the mutant {mutant.name!r} does not fit {mutant.file} any more")
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(source, encoding="utf-8")


def run(copy: Path, tests: Sequence[str]) -> Outcome:
    """Run tests in a copy until one fails."""
    roots = os.pathsep.join(str(copy / name) for name in (*SOURCE_ROOTS, "."))
    environment = os.environ | {
        "PYTHONPATH": roots,
        "PYTHONDONTWRITEBYTECODE": "1",
        "LEDGER_QUICK": "1",
    }
    options = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", "--hypothesis-profile=ci"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome("the tests hang", TIMEOUT_SECONDS)
    seconds = time.monotonic() - started
    if done.returncode == 0:
        return Outcome(None, seconds)
    failed = _FAILED.search(done.stdout)
    by = failed[1] if failed else f"pytest ended with {done.returncode}"
    return Outcome(by, seconds, done.stdout + done.stderr)


def examine_all(mutants: Sequence[Mutant], jobs: int) -> int:
    """Examine mutants, say what became of each, and return how many survived."""
    started = time.monotonic()
    survivors = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as threads:
        lab = Lab(Path(folder), jobs)
        tests = sorted({tests for mutant in mutants for tests in mutant.tests})
        untouched = lab.passes_untouched(tests)
        if not untouched.survived:
            print(untouched.output[-4000:])
            raise SystemExit(f"without any mutant the tests fail already: {untouched.by}")
        print(f"without a mutant all tests pass, {untouched.seconds:.0f} s")
        for mutant, outcome in zip(mutants, threads.map(lab.examine, mutants), strict=True):
            verdict = "SURVIVED" if outcome.survived else "killed"
            survivors += outcome.survived
            by = f"  by {short(outcome.by)}" if outcome.by else f"  {mutant.promise}"
            print(f"{verdict:8}  {mutant.name:45} {outcome.seconds:4.0f} s{by}", flush=True)
    print(
        f"{len(mutants) - survivors} of {len(mutants)} mutants killed in "
        f"{time.monotonic() - started:.0f} s"
    )
    return survivors


def short(test: str) -> str:
    """Return a test's name without its folders."""
    return test.rpartition("/")[2].replace(".py::", ": ")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--only", default="", help="examine those whose name contains this")
    parser.add_argument("--list", action="store_true", help="say what there is and examine nothing")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if options.only in mutant.name]
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name:45} {mutant.promise} ({mutant.file})")
        return 0
    if not mutants:
        raise SystemExit(f"no mutant's name contains {options.only!r}")
    return 1 if examine_all(mutants, max(1, options.jobs)) else 0


if __name__ == "__main__":
    sys.exit(main())
