"""Looking a path up costs the same however much is listed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from caption_flow.storage import catalog
from caption_flow.storage.database import open_for_writing


def test_a_path_is_found_by_its_own_index(tmp_path: Path) -> None:
    with closing(open_for_writing(tmp_path)) as connection:
        plan = _plan_of(connection, catalog._BY_PATH)

    assert "items_by_path (shard=? AND path=?)" in plan


def _plan_of(connection: sqlite3.Connection, query: str) -> str:
    rows = connection.execute(f"EXPLAIN QUERY PLAN {query}", ("default", b"x")).fetchall()
    return " ".join(str(row[-1]) for row in rows)
