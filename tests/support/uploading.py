"""Uploads to the stand-in for the hub, by processes of their own."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import constants

from caption_flow.storage.choice import Choice
from caption_flow.storage.contents import Selection, StorageContents
from caption_flow.storage.exporter.hub import Publication, export_hub
from caption_flow.storage.exporter.report import ExportReport
from caption_flow.storage.reader import StorageReader
from tests.support.cli import Finished, caption_flow
from tests.support.hub import TOKEN
from tests.support.hub_uploads import UploadHub

SHARD = "0.02"
"""MiB: a file holds some thirty of these rows."""


def arguments(*more: str, dataset: str = "org/words") -> list[str]:
    common = ["export", "--data-dir", "run", "--format", "huggingface_hub"]
    return [*common, "--hf-dataset", dataset, "--hf-shard-mib", SHARD, *more]


async def upload(
    here: Path, hub: UploadHub, *more: str, dataset: str = "org/words", token: str | None = TOKEN
) -> Finished:
    env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token or ""}
    return await asyncio.to_thread(
        lambda: caption_flow(*arguments(*more, dataset=dataset), cwd=here, env=env)
    )


async def uploaded(here: Path, hub: UploadHub, *more: str) -> Finished:
    done = await upload(here, hub, *more)
    assert done.code == 0, done.said
    return done


def shards(hub: UploadHub, name: str = "words") -> list[str]:
    return sorted(path for path in hub.files(name) if path.endswith(".parquet"))


def rows_in(hub: UploadHub, name: str = "words") -> list[dict[str, Any]]:
    tables = [pq.read_table(pa.BufferReader(hub.files(name)[path])) for path in shards(hub, name)]
    found: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return found


def card(hub: UploadHub) -> tuple[dict[str, Any], str]:
    _, head, text = hub.files("words")["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(head), text


async def publish(
    here: Path, hub: UploadHub, *, limit: int | None = None, where: str | None = None, **asked: Any
) -> ExportReport:
    """Upload in this process, which `in_this_process` prepared: quicker than one of its own."""
    constants.ENDPOINT = hub.url
    constants.HUGGINGFACE_CO_URL_TEMPLATE = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    with closing(StorageReader(here / "run")) as reader:
        contents = StorageContents.reading(
            Selection(
                lambda: StorageReader(here / "run"), limit=limit, choice=Choice(condition=where)
            ),
            columns=list(reader.columns),
            output_fields=reader.output_fields,
            total_rows=reader.count_rows(),
        )
    known = {"repository": "org/words", "shard_bytes": int(float(SHARD) * 2**20)}
    publication = Publication(**{**known, **asked})
    return await asyncio.to_thread(export_hub, contents, publication, here / "run")


def in_this_process(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Let the hub's library, which read its environment long ago, ask the stand-in by LFS."""
    monkeypatch.setattr(constants, "ENDPOINT", "")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
