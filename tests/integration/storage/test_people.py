"""Who was let in or out, how they stand, how many rows they have: as the next start finds it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from caption_flow.protocol.messages import TokenLimits
from caption_flow.storage.database import LEDGER_FILE
from caption_flow.storage.people import KeepStanding, KeepTokens, KnownToken, Standing
from tests.integration.storage.folders import (
    as_a_kill_leaves_it,
    captioned,
    failed,
    listed,
    opened,
)


async def test_tokens_and_standings_survive_a_kill(tmp_path: Path) -> None:
    limits = TokenLimits(3, 500, 1_800_000_000.5, "low")
    ada = KnownToken(b"a" * 32, "worker", "ada", limits)
    eve = KnownToken(b"e" * 32, "admin", "eve", revoked=True)
    standing = Standing(30, 4.5, 20, 1.5, flagged=True, cut_off=True)
    async with opened(tmp_path / "run") as store:
        await store.write(KeepTokens([KnownToken(b"e" * 32, "admin", "eve"), ada]))
        await store.write(KeepTokens([eve]))
        await store.write(KeepStanding("ada", standing))
        await store.write(KeepStanding("bob", standing))
        await store.write(KeepStanding("bob", None))
        copy = as_a_kill_leaves_it(tmp_path / "run")
    async with opened(copy) as store:
        assert sorted(store.snapshot.tokens, key=lambda one: one.name) == [ada, eve]
        assert store.snapshot.standings == {"ada": standing}


async def test_rows_are_counted_by_contributor_in_parts_and_buffer(tmp_path: Path) -> None:
    async with opened(tmp_path / "run") as store:
        await store.write(listed(9))
        await store.write(captioned(0, 1, 2))
        await store.write(failed(3))
        await store.checkpoint()
        await store.write(captioned(4))
        copy = as_a_kill_leaves_it(tmp_path / "run")
    async with opened(copy) as store:
        expected = {"somebody": {"captioned": 4, "image_damaged": 1}}
        assert store.snapshot.contributors == expected


async def test_parts_of_an_earlier_release_are_counted_once_and_for_all(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(9))
        await store.write(captioned(0, 1, 2))
        await store.checkpoint()
    with closing(sqlite3.connect(tmp_path / LEDGER_FILE)) as ledger:
        ledger.execute("ALTER TABLE parts DROP COLUMN contributors")
        ledger.execute("DROP TABLE tokens")
        ledger.execute("DROP TABLE standings")
        ledger.commit()
    for _ in range(2):
        async with opened(tmp_path) as store:
            assert store.snapshot.contributors == {"somebody": {"captioned": 3}}
            assert store.snapshot.tokens == []
    with closing(sqlite3.connect(tmp_path / LEDGER_FILE)) as ledger:
        recorded = ledger.execute("SELECT contributors FROM parts").fetchall()
    assert recorded == [('{"somebody": {"captioned": 3}}',)]
