"""Fixtures of runs from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def beside_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let processes find no tokens and caches but the test's."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return monkeypatch
