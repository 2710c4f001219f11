"""Install `torchvision_cpu_ops` into an environment, if that environment needs it.

    python tests/environment/install_torchvision_ops.py VENV_PYTHON

Needed only where CUDA builds of torchvision, torchaudio or torchcodec sit beside a CPU build of
torch. Where they import nothing is touched, so running it again is safe. Fails when an import fails
for any other reason, or still fails afterwards.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

HOOK = Path(__file__).with_name("torchvision_cpu_ops.py")
PTH_LINE = f"import {HOOK.stem}; {HOOK.stem}.watch_imports()\n"
# vLLM and transformers expect these errors of the latter two: not installed, or without ffmpeg.
PROBE = """
import torchvision
for name in ("torchaudio", "torchcodec"):
    try:
        __import__(name)
    except (ImportError, RuntimeError):
        pass
"""
SYMPTOMS = ("operator torchvision::nms does not exist", "Could not load this library")


def run_python(python: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in isolation, so that no PYTHONPATH of ours hides what the environment lacks."""
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)


def import_error(python: str) -> str | None:
    """What the imports print when they fail in that environment; None when they work."""
    outcome = run_python(python, PROBE)
    return outcome.stderr.strip() if outcome.returncode else None


def site_packages(python: str) -> Path:
    outcome = run_python(python, "import sysconfig; print(sysconfig.get_path('purelib'))")
    outcome.check_returncode()
    return Path(outcome.stdout.strip())


def install_hook(folder: Path) -> None:
    # The module first: a .pth line without its module would complain in every process.
    shutil.copyfile(HOOK, folder / HOOK.name)
    (folder / f"{HOOK.stem}.pth").write_text(PTH_LINE, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("venv_python", help="the environment's Python executable")
    python: str = parser.parse_args().venv_python
    error = import_error(python)
    if error is None:
        print("torchvision imports fine: nothing to do")
        return 0
    if any(symptom in error for symptom in SYMPTOMS):
        install_hook(site_packages(python))
        error = import_error(python)
    if error is not None:
        print(
            f"torchvision or torchaudio cannot be imported by {python}:\n{error}", file=sys.stderr
        )
        return 1
    print("installed the import hook; torchvision imports now")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
