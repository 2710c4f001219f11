from __future__ import annotations

import os
import re

import pytest

from caption_flow.cli.failures import CommandFailed
from caption_flow.cli.gpus import Shares, choose_gpus, show_only


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
    assert choose_gpus(asked) == Shares(tuple(seen))


@pytest.mark.usefixtures("two_gpus")
def test_a_model_spread_over_two_gpus_takes_both() -> None:
    assert choose_gpus(None, gpus_per_worker=2).workers == ("2,GPU-5f",)


def test_of_four_gpus_two_workers_take_two_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    shares = choose_gpus(None, gpus_per_worker=2)
    assert shares.workers == ("0,1", "2,3")
    assert shares.note is None


@pytest.mark.parametrize(
    ("visible", "workers", "note"),
    [
        ("0,1,2,3,4", ("0,1,2",), r"^GPUs 3, 4 stay idle: with tensor_parallel_size 3 each worker"),
        ("0,1,2,GPU-a", ("0,1,2",), r"^GPU GPU-a stays idle: .* takes 3 GPUs"),
    ],
)
def test_gpus_that_make_no_full_share_stay_idle_and_are_named(
    monkeypatch: pytest.MonkeyPatch, visible: str, workers: tuple[str, ...], note: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    shares = choose_gpus(None, gpus_per_worker=3)
    assert shares.workers == workers
    assert shares.note is not None
    assert re.search(note, shares.note)


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
    assert choose_gpus(None).workers == (None,)
    # And whoever asks for a model over two GPUs where there is none means the CPU's own split.
    assert choose_gpus(None, gpus_per_worker=2).workers == (None,)


@pytest.mark.parametrize(
    ("visible", "numbers", "seen"),
    [
        (None, (1,), ["1"]),
        (None, (2, 0), ["2", "0"]),
        ("", (1,), ["1"]),
        ("4,5", (1,), ["5"]),
        ("4, 5,6", (2, 0), ["6", "4"]),
        ("1,0", (0,), ["1"]),  # a number counts, also where it could be a name
        ("4,5", (5,), ["5"]),  # where it cannot count, it is one
        ("GPU-a,MIG-b,GPU-c", (0, 1), ["GPU-a", "MIG-b"]),
    ],
)
def test_a_workers_gpus_are_numbered_among_those_it_may_see(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, numbers: tuple[int, ...], seen: list[str]
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [*show_only(numbers)] == seen
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(seen)


@pytest.mark.parametrize(
    ("visible", "says"),
    [
        ("0", r"--gpu-id 0,3: CUDA_VISIBLE_DEVICES=0 lets this process see only 1 GPU; "),
        ("4,5", r"--gpu-id 0,3: CUDA_VISIBLE_DEVICES=4,5 lets this process see only 2 GPUs; "),
        ("-1", r"--gpu-id 0,3: CUDA_VISIBLE_DEVICES=-1 lets this process see only 0 GPUs; "),
    ],
)
def test_a_worker_is_refused_a_gpu_that_it_may_not_see(
    monkeypatch: pytest.MonkeyPatch, visible: str, says: str
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(CommandFailed, match=says):
        show_only((0, 3))
