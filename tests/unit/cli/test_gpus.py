from __future__ import annotations

import os

import pytest

from caption_flow.cli.failures import CommandFailed
from caption_flow.cli.gpus import choose_gpus
from caption_flow.cli.worker import choose_gpu


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5f")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        (None, ["2", "GPU-5f"]),
        ("all", ["2", "GPU-5f"]),
        ("none", [""]),
        ("2", ["2"]),
        ("gpu-5f", ["GPU-5f"]),
        ("1, 0", ["GPU-5f", "2"]),
        ("1,1", ["GPU-5f"]),
    ],
)
def test_there_is_one_worker_for_each_gpu_that_is_asked_for(
    asked: str | None, seen: list[str]
) -> None:
    assert choose_gpus(asked) == seen


@pytest.mark.usefixtures("two_gpus")
def test_a_model_spread_over_two_gpus_takes_both() -> None:
    assert choose_gpus(None, gpus_per_worker=2) == ["2,GPU-5f"]


def test_gpus_that_make_no_full_share_stay_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    assert choose_gpus(None, gpus_per_worker=2) == ["0,1", "2,3"]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("asked", ["3", "0,7", "x", ","])
def test_a_gpu_that_is_not_there_is_refused(asked: str) -> None:
    with pytest.raises(CommandFailed, match="GPUs 2, GPU-5f") as refused:
        choose_gpus(asked)
    assert refused.value.code == 2


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_machine_whose_gpus_are_hidden_gets_a_worker_that_sees_what_it_sees(
    monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert choose_gpus(None) == [None]
    # And whoever asks for a model over two GPUs where there is none means the CPU's own split.
    assert choose_gpus(None, gpus_per_worker=2) == [None]


@pytest.mark.parametrize(
    ("visible", "gpu_id", "seen"),
    [(None, 1, "1"), ("", 1, "1"), ("4,5", 5, "5"), ("4,5", 1, "5"), ("GPU-a,GPU-b", 0, "GPU-a")],
)
def test_a_workers_gpu_is_a_name_or_a_number_among_those_it_may_see(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, gpu_id: int, seen: str
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    choose_gpu(gpu_id)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_a_worker_is_refused_a_gpu_that_it_may_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(CommandFailed, match="--gpu-id 3"):
        choose_gpu(3)
