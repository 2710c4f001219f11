"""Which GPUs a worker may see is settled before anything that reads it once is imported.

In place of torch and vLLM lie packages that write down what their import finds in the environment.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.cli import ROOTS, caption_flow, make_images
from tests.support.fleet import TOKEN, Fleet

TORCH = """
import json, os
with open(os.environ["RECORDED"], "a") as file:
    names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
    file.write(json.dumps([os.environ.get(name) for name in names]) + "\\n")
raise ImportError("this is no torch")
"""


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay the packages into the path of every process; return what they write to."""
    for name, source in {"torch": TORCH, "vllm": "import torch\n"}.items():
        package = tmp_path / "packages" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(source)
    record = tmp_path / "recorded.jsonl"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "packages"), *ROOTS]))
    monkeypatch.setenv("RECORDED", str(record))
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return record


def seen(record: Path) -> list[list[str | None]]:
    """Return what each import found: the visible devices, and what order their numbers have."""
    if not record.exists():
        return []
    return [json.loads(line) for line in record.read_text().splitlines()]


@pytest.mark.parametrize(
    ("visible", "flags", "found"),
    [
        (None, ["--gpu-id", "1"], ["1", "PCI_BUS_ID"]),
        (None, ["--gpu-id", "0,2"], ["0,2", "PCI_BUS_ID"]),
        ("4,5", ["--gpu-id", "1"], ["5", "PCI_BUS_ID"]),
        ("4,GPU-5f,MIG-6", ["--gpu-id", "2,1"], ["MIG-6,GPU-5f", "PCI_BUS_ID"]),
        ("2,3", [], ["2,3", None]),  # all that are visible: what `tensor_parallel_size` takes from
        (None, [], [None, None]),
    ],
)
async def test_a_workers_gpus_are_chosen_before_torch_is_imported(
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorded: Path,
    visible: str | None,
    flags: list[str],
    found: list[str | None],
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    make_images(tmp_path / "images", 1)
    async with Fleet(tmp_path) as fleet:
        await fleet.orchestrator()
        server = f"ws://127.0.0.1:{fleet.port}"
        worker = await fleet.start("worker", "worker", "--server", server, "--token", TOKEN, *flags)
        assert await worker.exit_code() == 1
        assert "this is no torch" in worker.output.splitlines()[-1]
    assert seen(recorded) == [found]


async def test_a_model_spread_over_more_gpus_than_were_chosen_is_refused(
    tmp_path: Path, recorded: Path
) -> None:
    make_images(tmp_path / "images", 1)
    recipe = {"model": "org/name", "tensor_parallel_size": 3, "inference_prompts": ["p"]}
    async with Fleet(tmp_path, vllm=recipe) as fleet:
        await fleet.orchestrator()
        server = f"ws://127.0.0.1:{fleet.port}"
        worker = await fleet.start(
            "worker", *("worker", "--server", server, "--token", TOKEN, "--gpu-id", "0,1")
        )
        assert await worker.exit_code() == 1
        assert (
            "Error: model 'org/name' is to be spread over 3 GPUs (tensor_parallel_size: 3), but "
            "this worker may use only 2 (CUDA_VISIBLE_DEVICES=0,1): "
        ) in worker.output.splitlines()[-1]
    assert seen(recorded) == [], "torch was imported for nothing"


@pytest.mark.parametrize(
    ("workers", "visible", "found", "says"),
    [
        ({}, "4,5,6,7", ["4,5", "6,7"], "2 workers on GPUs 4+5, 6+7, logs in"),
        ({}, "4,5,6", ["4,5"], "GPU 6 stays idle: with tensor_parallel_size 2 each worker takes 2"),
        ({"gpu_id": "3,1,2,0"}, "4,5,6,7", ["7,5", "6,4"], "2 workers on GPUs 7+5, 6+4, logs in"),
        ({"vllm": {"tensor_parallel_size": 1}}, "4,5", ["4", "5"], "2 workers on GPUs 4, 5, "),
    ],
)
def test_a_run_shares_the_visible_gpus_among_workers_of_several(
    *,
    tmp_path: Path,
    recorded: Path,
    workers: dict[str, object],
    visible: str,
    found: list[str],
    says: str,
) -> None:
    make_images(tmp_path / "photos", 1)
    recipe = {"model": "org/name", "tensor_parallel_size": 2, "inference_prompts": ["p"]}
    dataset = {"type": "local_filesystem", "dataset_path": "photos"}
    config = tmp_path / "config.json"
    orchestrator = {"dataset": dataset, "vllm": recipe}
    config.write_text(json.dumps({"orchestrator": orchestrator, "worker": workers}))
    done = caption_flow(
        *("run", "photos", "--config", config),
        cwd=tmp_path,
        env={"PYTHONPATH": os.environ["PYTHONPATH"], "CUDA_VISIBLE_DEVICES": visible},
    )
    assert done.code == 1, done.said
    assert says in done.said
    assert "this is no torch" in done.errors[-1]
    assert sorted(seen(recorded)) == sorted([gpus, "PCI_BUS_ID"] for gpus in found)
