"""Every key of the state of a run is explained where people look it up."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from caption_flow.protocol.report import (
    Contributor,
    Images,
    Report,
    StorageReport,
    Tokens,
    WorkerReport,
)

PAGE = Path(__file__).parents[3] / "docs" / "status.md"


@pytest.mark.parametrize("part", [Report, Tokens, WorkerReport, Images, StorageReport, Contributor])
def test_every_key_is_explained(part: type[msgspec.Struct]) -> None:
    page = PAGE.read_text("utf-8")
    keys = [field.encode_name for field in msgspec.structs.fields(part)]
    assert keys
    assert [key for key in keys if f"`{key}`" not in page] == []
