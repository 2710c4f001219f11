"""Acknowledged means durable: what the writer says is done is on disk, in order, whole."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from caption_flow.protocol.codec import ProtocolError
from caption_flow.protocol.rows import CAPTIONED, FAILED, Row
from caption_flow.storage.database import LEDGER_FILE, open_for_writing
from caption_flow.storage.errors import StorageError, StorageFullError
from caption_flow.storage.store import RunStore
from caption_flow.storage.writer import Writer
from tests.integration.storage.folders import (
    PATIENCE_SECONDS,
    FakeConnection,
    batch,
    captioned,
    disk_full,
    items_in,
    listed,
    opened,
    query,
    rows_in,
)


@dataclass
class Bench:
    """A writer on a connection that the test holds by the collar."""

    data_dir: Path
    connection: FakeConnection
    writer: Writer
    troubles: list[StorageError | None]

    async def until_at_commit(self) -> None:
        reached = await asyncio.to_thread(self.connection.at_commit.wait, PATIENCE_SECONDS)
        assert reached, "the writer never came to commit"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    connection = FakeConnection(open_for_writing(tmp_path))
    troubles: list[StorageError | None] = []
    writer = Writer(connection, tmp_path, troubles.append)  # type: ignore[arg-type]  # a fake
    await writer.submit(listed(100))
    connection.statements.clear()
    connection.at_commit.clear()
    yield Bench(tmp_path, connection, writer, troubles)
    connection.go.set()
    await writer.close()


async def settled(*futures: asyncio.Future[None]) -> list[BaseException | None]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await asyncio.gather(*futures, return_exceptions=True)


async def test_a_write_is_reported_done_only_after_its_commit_has_returned(bench: Bench) -> None:
    bench.connection.go.clear()
    done = bench.writer.submit(captioned(1))
    await bench.until_at_commit()
    await asyncio.sleep(0)  # whatever the thread had told the loop by now would be known
    assert not done.done()
    assert items_in(bench.data_dir) == set()
    bench.connection.go.set()
    assert await settled(done) == [None]
    assert items_in(bench.data_dir) == {1}


async def test_what_is_reported_done_is_seen_by_another_process(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(10))
        await store.write(captioned(3, 4))
        program = (
            "import sys, pathlib\n"
            "from tests.integration.storage.folders import items_in\n"
            "print(sorted(items_in(pathlib.Path(sys.argv[1]))))"
        )
        asked = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, tmp_path), stdout=asyncio.subprocess.PIPE
        )
        said, _ = await asked.communicate()
    assert said.decode().strip() == "[3, 4]"


def test_commits_survive_the_loss_of_power(tmp_path: Path) -> None:
    with closing(open_for_writing(tmp_path)) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_writes_that_gather_share_one_transaction_and_keep_their_order(bench: Bench) -> None:
    bench.connection.go.clear()
    first = bench.writer.submit(captioned(0))
    await bench.until_at_commit()
    others = [bench.writer.submit(captioned(item)) for item in range(1, 100)]
    bench.connection.go.set()
    assert await settled(first, *others) == [None] * 100
    assert bench.connection.statements.count("COMMIT") == 2
    rows = query(bench.data_dir, "SELECT ranges FROM batches ORDER BY batch")
    assert [packed[0] for packed in rows] == [row[0] for row in sorted(rows)]


async def test_reports_come_in_the_order_of_the_writes(bench: Bench) -> None:
    order: list[int] = []
    futures = []
    for item in range(50):
        future = bench.writer.submit(captioned(item))
        future.add_done_callback(lambda _, item=item: order.append(item))  # type: ignore[misc]
        futures.append(future)
    await settled(*futures)
    assert order == list(range(50))


async def test_a_rejected_write_drops_alone(bench: Bench) -> None:
    bench.connection.go.clear()
    held = bench.writer.submit(captioned(0))
    await bench.until_at_commit()
    good = bench.writer.submit(captioned(1))
    lying = bench.writer.submit(batch([Row(2, CAPTIONED, {"captions": ["x"]})], items=[3]))
    junk = captioned(4)
    junk.payload = b"no arrow stream"
    broken = bench.writer.submit(junk)
    later = bench.writer.submit(captioned(5))
    bench.connection.go.set()
    results = await settled(held, good, lying, broken, later)
    assert [type(result) for result in results] == [
        type(None),
        type(None),
        ProtocolError,
        ProtocolError,
        type(None),
    ]
    assert items_in(bench.data_dir) == {0, 1, 5}


async def test_a_status_that_is_none_is_rejected_before_anything_is_counted(bench: Bench) -> None:
    strange = batch([Row(1, "half done", {"captions": ["x"]})])
    assert [type(r) for r in await settled(bench.writer.submit(strange))] == [ProtocolError]
    assert items_in(bench.data_dir) == set()


async def test_only_the_accepted_rows_of_a_batch_are_stored(bench: Bench) -> None:
    partly = captioned(1, 2, 3)
    partly.accepted = (0, 2)
    await settled(bench.writer.submit(partly))
    assert items_in(bench.data_dir) == {1, 3}
    assert partly.counts == {"captioned": 2}


async def test_a_full_disk_holds_writes_back_until_there_is_room(bench: Bench) -> None:
    bench.connection.fault = disk_full
    waiting = bench.writer.submit(captioned(1))
    await until(lambda: bool(bench.troubles))
    assert isinstance(bench.troubles[0], StorageFullError)
    assert str(bench.data_dir) in str(bench.troubles[0])
    assert not waiting.done()
    assert items_in(bench.data_dir) == set()
    bench.connection.fault = lambda: None
    assert await settled(waiting) == [None]
    assert [type(trouble) for trouble in bench.troubles] == [StorageFullError, type(None)]
    assert items_in(bench.data_dir) == {1}


async def test_closing_on_a_full_disk_ends_and_says_what_was_not_stored(bench: Bench) -> None:
    bench.connection.fault = disk_full
    waiting = [bench.writer.submit(captioned(item)) for item in (1, 2)]
    await until(lambda: bool(bench.troubles))
    waiting.append(bench.writer.submit(captioned(3)))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await bench.writer.close()
    assert [type(result) for result in await settled(*waiting)] == [StorageFullError] * 3
    assert items_in(bench.data_dir) == set()


async def test_a_ledger_that_breaks_meanwhile_is_named_and_nothing_is_reported_done(
    bench: Bench,
) -> None:
    bench.connection.fault = lambda: sqlite3.DatabaseError("database disk image is malformed")
    (error,) = await settled(bench.writer.submit(captioned(1)))
    assert isinstance(error, StorageError)
    assert str(bench.data_dir / LEDGER_FILE) in str(error)
    assert "malformed" in str(error)


class Unwritable:
    """A write that SQLite cannot take for a reason nobody thought of."""

    def prepare(self) -> None:
        pass

    def apply(self, _connection: sqlite3.Connection) -> None:
        raise TypeError("no column for this")


async def test_a_write_nobody_foresaw_fails_and_does_not_silence_the_writer(bench: Bench) -> None:
    (error,) = await settled(bench.writer.submit(Unwritable()))
    assert isinstance(error, StorageError)
    assert "no column for this" in str(error)
    assert await settled(bench.writer.submit(captioned(1))) == [None]


async def test_a_lock_that_another_program_holds_for_long_is_waited_for(bench: Bench) -> None:
    def busy() -> Exception:
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        return error

    bench.connection.fault = busy
    waiting = bench.writer.submit(captioned(1))
    await until(lambda: bool(bench.troubles))
    assert "another program" in str(bench.troubles[0])
    bench.connection.fault = lambda: None
    assert await settled(waiting) == [None]
    assert bench.troubles[-1] is None


async def test_writes_queued_when_the_store_closes_are_committed(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(200))
        futures = [store.write(captioned(item)) for item in range(200)]
    assert await settled(*futures) == [None] * 200
    assert items_in(tmp_path) == set(range(200))


async def test_what_a_row_says_of_itself_comes_from_the_catalog_not_from_the_worker(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(3))
        await store.write(captioned(2))
    row = rows_in(tmp_path)[2]
    assert (row["item_key"], row["filename"]) == ("folder/2.png", "folder/2.png")
    assert (row["contributor"], row["worker"]) == ("somebody", "worker 1")


async def test_a_folder_that_is_opened_again_knows_what_was_done_and_what_was_leased(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as store:
        await store.write(listed(10))
        await store.write(captioned(0, 1))
        await store.checkpoint()
        await store.write(captioned(5))
    again = await asyncio.to_thread(RunStore, tmp_path)
    try:
        assert again.snapshot.counts == {"default": 10}
        terminal = {
            item
            for start, stop in again.snapshot.terminal["default"]
            for item in range(start, stop)
        }
        assert terminal == {0, 1, 5}
        assert again.snapshot.totals == {"captioned": 3}
        assert again.snapshot.buffered == 1  # closing flushes nothing, only a checkpoint does
    finally:
        again.release()


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds that only a thread can bring about."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110  -- a thread sets no event of this loop
            await asyncio.sleep(0.005)


TEXTS = {"captions": ["a text"]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (Row(1, CAPTIONED, TEXTS, error_kind="image_damaged"), "has a reason to fail"),
        (Row(1, FAILED, error="no kind of failure"), "has a reason to fail"),
        (Row(1, "done", TEXTS), "neither captioned nor failed"),
        (Row(1, CAPTIONED, {"captions": []}), "no text in captions"),
        (Row(1, CAPTIONED), "no text in captions"),
    ],
)
@pytest.mark.parametrize(
    "others", [[Row(0, CAPTIONED, TEXTS)], [Row(0, FAILED, error_kind="x", error="why")]]
)
def test_rows_that_contradict_themselves_are_refused(
    row: Row, says: str, others: list[Row]
) -> None:
    """Among captioned ones and among failed ones."""
    batch(others).prepare()
    with pytest.raises(ProtocolError, match=says):
        batch([*others, row]).prepare()
