"""Uploads to the stand-in for the hub, by processes of their own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

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
