"""Feed each target with mutated bytes, led by the coverage of Python's lines (atheris, libFuzzer).

    python -m tests.fuzz                         all targets, ten minutes in all
    python -m tests.fuzz --seconds 600 rows      one target
    python -m tests.fuzz --one FILE image        what a finding does, without atheris

Each target runs in a process of its own, so that a crash below Python is a finding too. What is
written in C (msgspec, Arrow, Pillow's decoders) is not instrumented: there, only mutation finds.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS

ROOT: Final = Path(__file__).resolve().parents[2]
MOST_SECONDS: Final = 20
"""For one input; what takes longer is a finding."""
MOST_MEGABYTES: Final = {"image": 1500}
_MOST_MEGABYTES_ELSE: Final = 1000
_DONE: Final = re.compile(r"Done (\d+) (?:runs )?in (\d+)")


def fuzz(target: str, seconds: int, findings: Path) -> bool:
    """Fuzz one target in a process of its own; return whether something was found."""
    megabytes = MOST_MEGABYTES.get(target, _MOST_MEGABYTES_ELSE)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(seeds(target)):
            (Path(folder) / f"seed-{number:03}").write_bytes(data)
        began = time.monotonic()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzz", "--inside", target),
                *(folder, f"-max_total_time={seconds}", f"-timeout={MOST_SECONDS}"),
                *(f"-rss_limit_mb={megabytes}", f"-artifact_prefix={findings}/{target}-"),
                *("-max_len=65536", "-print_final_stats=1"),
            ],
            cwd=ROOT,
            env=_environment(),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        kept = len(list(Path(folder).iterdir()))
    executions = re.findall(r"number_of_executed_units: (\d+)", done.stderr)
    told = f"{int(executions[-1]):,} executions" if executions else "no count"
    verdict = "nothing found" if done.returncode == 0 else f"FOUND (exit {done.returncode})"
    print(
        f"{target:18} {time.monotonic() - began:5.0f} s  {told}, corpus {kept}: {verdict}",
        flush=True,
    )
    if done.returncode:
        print(done.stderr[-6000:], flush=True)
    return done.returncode != 0


def _environment() -> dict[str, str]:
    roots = ("orchestrator", "worker", "shared", ".")
    return os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / root) for root in roots)}


def inside(target: str, arguments: list[str]) -> None:
    """Be the process that fuzzes; never returns."""
    # Installed by `make fuzz` only: there are wheels for Linux on x86-64 alone.
    import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]  # noqa: PLC0415

    packages = ["caption_flow", "PIL", "websockets.http11", "websockets.headers"]
    del sys.modules["tests.fuzz.targets"], sys.modules["tests.fuzz.seeds"]
    for name in [name for name in sys.modules if name.startswith(tuple(packages))]:
        del sys.modules[name]
    with atheris.instrument_imports(include=packages):
        from tests.fuzz.targets import TARGETS as INSTRUMENTED  # noqa: PLC0415

    atheris.Setup([sys.argv[0], *arguments], INSTRUMENTED[target])
    atheris.Fuzz()


def main() -> int:
    """Fuzz, and return 1 if there was a finding."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together")
    parser.add_argument("--one", type=Path, help="run a target on this file only")
    parser.add_argument("--findings", type=Path, default=ROOT / "scratch", help="where to put them")
    asked = parser.parse_args()
    targets = asked.targets or list(TARGETS)
    asked.findings.mkdir(parents=True, exist_ok=True)
    if asked.one is not None:
        for target in targets:
            TARGETS[target](asked.one.read_bytes())
        return 0
    share = max(1, asked.seconds // len(targets))
    found = [target for target in targets if fuzz(target, share, asked.findings)]
    return int(bool(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
    sys.exit(main())
