"""Nobody gets in by accident."""

from typing import Any

import pytest

from caption_flow.config.exposure import check_exposure
from caption_flow.config.orchestrator import OrchestratorConfig

ANYWHERE = "0.0.0.0"  # noqa: S104 - what must be refused
AUTH = {"worker_tokens": ["a"]}
SSL = {"cert": "c.pem", "key": "k.pem"}


def config(host: str, **rest: Any) -> OrchestratorConfig:
    raw = {
        "host": host,
        "dataset": {"type": "local", "dataset_path": "x"},
        "vllm": {"model": "m", "inference_prompts": ["x"]},
    }
    return OrchestratorConfig.model_validate({**raw, **rest})


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost", "LocalHost"])
def test_this_machine_alone_needs_nothing(host: str) -> None:
    assert check_exposure(config(host), insecure=False) == []


@pytest.mark.parametrize("host", [ANYWHERE, "::", "192.168.1.2", "example.org", "*"])
def test_other_machines_take_tokens_and_tls(host: str) -> None:
    problems = check_exposure(config(host), insecure=False)
    assert len(problems) == 2
    assert "auth.worker_tokens" in problems[0]
    assert "ssl.cert" in problems[1]
    assert check_exposure(config(host, auth=AUTH, ssl=SSL), insecure=False) == []


def test_insecure_does_without_tls_but_never_without_tokens() -> None:
    assert check_exposure(config(ANYWHERE, auth=AUTH), insecure=True) == []
    [problem] = check_exposure(config(ANYWHERE), insecure=True)
    assert "takes tokens" in problem


def test_an_empty_auth_section_is_none() -> None:
    assert check_exposure(config(ANYWHERE, ssl=SSL, auth={"worker_tokens": []}), insecure=False)
