"""A part is on disk, whole and under its name, before the ledger says that it exists."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from sqlite3 import Connection

import pytest

from caption_flow.protocol.rows import CAPTIONED, Row, encode_rows
from caption_flow.storage.database import PARTS_FOLDER
from caption_flow.storage.store import RunStore
from caption_flow.storage.writes import CommitRows, RecordPart


async def test_a_part_is_written_synced_renamed_synced_and_only_then_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, rename, record = os.fsync, Path.rename, RecordPart.apply

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            order.append("folder synced")
        else:
            named = list((tmp_path / PARTS_FOLDER).glob("*.parquet"))
            order.append("synced under its name" if named else "synced")
            assert status.st_size > 0

    def note_rename(path: Path, target: Path) -> Path:
        order.append(f"renamed to {target.name}")
        return rename(path, target)

    def note_record(write: RecordPart, connection: Connection) -> None:
        order.append("recorded")
        record(write, connection)

    store = RunStore(tmp_path)
    store.start(lambda _: None)
    payload = encode_rows([Row(0, CAPTIONED, {"captions": ["a cat"]})], ("captions",))
    await store.write(CommitRows("s", 0, (0,), (0,), payload, ("captions",), "", "w"))
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    monkeypatch.setattr(RecordPart, "apply", note_record)

    assert await store.checkpoint() == 1
    await store.close()

    assert order == [
        "synced",
        "renamed to part-00000001.parquet",
        "folder synced",
        "recorded",
    ]
