"""The environment vLLM is started in."""

import json
import logging.config
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from caption_flow.worker.engines import guard, vllm_environment, vllm_process

SETTINGS = (
    "VLLM_LOGGING_LEVEL", "VLLM_LOGGING_CONFIG_PATH", "VLLM_CONFIGURE_LOGGING",
    "VLLM_NO_USAGE_STATS", "VLLM_WORKER_MULTIPROC_METHOD", "TRANSFORMERS_VERBOSITY",
    "TORCH_CPP_LOG_LEVEL", "PYTHONWARNINGS",
)  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    for name in SETTINGS:
        os.environ.pop(name, None)
    vllm_environment.prepare.cache_clear()
    yield
    os.environ.clear()
    os.environ.update(before)
    vllm_environment.prepare.cache_clear()


def test_vllm_is_quiet_unless_its_owner_wants_otherwise() -> None:
    os.environ["TRANSFORMERS_VERBOSITY"] = "debug"
    vllm_environment.prepare()
    assert os.environ["VLLM_LOGGING_LEVEL"] == "WARNING"
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "debug"


def test_the_owners_log_level_is_the_terminals() -> None:
    os.environ["VLLM_LOGGING_LEVEL"] = "debug"
    vllm_environment.prepare()
    configuration = json.loads(Path(os.environ["VLLM_LOGGING_CONFIG_PATH"]).read_text())
    assert configuration["handlers"]["terminal"]["level"] == "DEBUG"


@pytest.mark.parametrize("name", ["VLLM_LOGGING_CONFIG_PATH", "VLLM_CONFIGURE_LOGGING"])
def test_logging_that_is_the_owners_own_is_left_alone(name: str) -> None:
    os.environ[name] = "mine"
    failures = vllm_environment.prepare()
    assert os.environ[name] == "mine"
    assert failures.size() == 0
    assert failures.since(0) == ""


def test_processes_are_started_anew_and_never_forked() -> None:
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    vllm_environment.prepare()
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_what_vllm_logs_as_an_error_can_be_read_back() -> None:
    failures = vllm_environment.prepare()
    configuration = json.loads(Path(os.environ["VLLM_LOGGING_CONFIG_PATH"]).read_text())
    # As vLLM does it in each of its processes, under a name that is not in use here.
    configuration["loggers"] = {"vllm-elsewhere": configuration["loggers"]["vllm"]}
    logging.config.dictConfig(configuration)
    logger = logging.getLogger("vllm-elsewhere.v1.engine")
    before = failures.size()
    logger.error("first")
    between = failures.size()
    logger.warning("not a failure")
    logger.error("second")
    for handler in logging.getLogger("vllm-elsewhere").handlers:
        handler.close()
    assert "first" in failures.since(before)
    assert "first" not in failures.since(between)
    assert "second" in failures.since(between)
    assert "not a failure" not in failures.since(before)


def test_variables_for_processes_are_gone_afterwards() -> None:
    os.environ["KEPT"] = "before"
    with vllm_environment.for_processes({"KEPT": "within", "NEW": "within"}):
        assert (os.environ["KEPT"], os.environ["NEW"]) == ("within", "within")
        assert os.environ["PYTHONWARNINGS"] == "ignore"
    assert os.environ["KEPT"] == "before"
    assert not {"NEW", "PYTHONWARNINGS"} & os.environ.keys()


def test_a_process_of_the_engine_leaves_the_workers_group_and_the_worker_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "setpgid", lambda *ids: left.append(ids))
    for mark, leaves in ((None, False), (f"{os.getpid()}-x", False), ("1-x", True)):
        left.clear()
        if mark:
            monkeypatch.setenv(guard.MARK_VARIABLE, mark)
        vllm_process.join(str(tmp_path / "log")).close()
        assert bool(left) == leaves
