"""What a torn write, a bad disk or a careless hand leaves: told plainly, and never made worse."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caption_flow.storage.database import LEDGER_FILE, PARTS_FOLDER
from caption_flow.storage.lock import LOCK_FILE
from caption_flow.storage.parts import part_file
from caption_flow.storage.verify import verify
from tests.integration.orchestrator.parties import led
from tests.support.fleet import Fleet, rows_of_parts, stored_items

COUNT = 48
WAL = f"{LEDGER_FILE}-wal"
# Who holds the lock, and what readers share in memory, are no one's results.
NOT_RESULTS = {LOCK_FILE, f"{LEDGER_FILE}-shm"}


@pytest.fixture
async def killed(tmp_path: Path) -> Path:
    """A folder with a dataset and a run that was killed: three parts, eight rows in the buffer."""
    origin = tmp_path / "origin"
    async with led(origin, images=COUNT, storage={"checkpoint_interval": 600}) as run:
        worker = await run.join()
        for _ in range(3):
            await worker.work_off(await worker.lease())
            await run.orchestrator._store.checkpoint()
        await worker.work_off(await worker.lease())
        left = tmp_path / "killed"
        shutil.copytree(run.data_dir, left / "run")
    (origin / "images").rename(left / "images")
    assert (left / "run" / WAL).stat().st_size
    return left


def fingerprints(data_dir: Path) -> dict[str, str]:
    """A hash of every file that is not empty: a reader leaves an empty journal."""
    return {
        str(path.relative_to(data_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(data_dir.rglob("*"))
        if path.is_file() and path.name not in NOT_RESULTS and path.stat().st_size
    }


async def finish(left: Path) -> None:
    """Start the run again and bring it to its end."""
    async with led(left) as run:
        finished = await (await run.join()).work_until_finished()
        assert (finished.captioned, finished.failed) == (COUNT, 0)
    assert stored_items(left / "run") == set(range(COUNT))
    assert {row["item_index"] for row in rows_of_parts(left / "run")} == set(range(COUNT))
    findings = verify(left / "run")
    assert not findings.breaches
    assert not findings.debris


# ---------------------------------------------------------------- what a crash explains


@pytest.mark.parametrize("cut", [1, 17, 4096, 4096 + 24, 3 * 4120])
async def test_a_torn_last_write_costs_at_most_what_was_in_it(killed: Path, cut: int) -> None:
    before = stored_items(killed / "run")
    wal = killed / "run" / WAL
    content = wal.read_bytes()
    wal.write_bytes(content[:-cut])
    after = stored_items(killed / "run")
    assert after <= before
    assert len(before - after) <= 8
    await finish(killed)


@pytest.mark.parametrize("garbage", [b"\0" * 5000, b"\xff" * 24, bytes(range(256)) * 40])
async def test_garbage_behind_the_last_write_is_ignored(killed: Path, garbage: bytes) -> None:
    before = stored_items(killed / "run")
    with (killed / "run" / WAL).open("ab") as wal:
        wal.write(garbage)
    assert stored_items(killed / "run") == before
    await finish(killed)


async def test_a_torn_write_in_the_midst_of_the_last_one_is_ignored(killed: Path) -> None:
    wal = killed / "run" / WAL
    content = bytearray(wal.read_bytes())
    content[-2000:-1000] = bytes(1000)
    wal.write_bytes(content)
    await finish(killed)


async def test_parts_that_were_never_recorded_are_ignored_and_removed(killed: Path) -> None:
    folder = killed / "run" / PARTS_FOLDER
    before = stored_items(killed / "run")
    shutil.copy(folder / part_file(3), folder / part_file(4))
    (folder / part_file(5)).write_bytes((folder / part_file(1)).read_bytes()[:-100])
    (folder / ".part-00000004.tmp").write_bytes(b"PAR1")
    assert stored_items(killed / "run") == before
    assert len(verify(killed / "run").debris) == 3
    await finish(killed)


# ---------------------------------------------------------------- what no crash explains


def garbage_in_the_header(data_dir: Path) -> str:
    settle(data_dir)
    overwrite(data_dir / LEDGER_FILE, 0, b"this is no database at all")
    return LEDGER_FILE


def garbage_in_the_middle(data_dir: Path) -> str:
    settle(data_dir)
    ledger = data_dir / LEDGER_FILE
    for page in range(1, ledger.stat().st_size // 4096):
        overwrite(ledger, page * 4096, b"\xa5" * 512)
    return LEDGER_FILE


def an_empty_ledger(data_dir: Path) -> str:
    for path in data_dir.glob(f"{LEDGER_FILE}*"):
        path.unlink()
    (data_dir / LEDGER_FILE).touch()
    return LEDGER_FILE


def no_ledger(data_dir: Path) -> str:
    for path in data_dir.glob(f"{LEDGER_FILE}*"):
        path.unlink()
    return LEDGER_FILE


def an_older_ledger(data_dir: Path) -> str:
    """What the database was before its last transactions: a backup restored beside newer parts."""
    settle(data_dir)
    with closing(sqlite3.connect(data_dir / LEDGER_FILE)) as connection, connection:
        connection.execute("DELETE FROM parts WHERE part = 3")
        connection.execute("DELETE FROM part_ranges WHERE part = 3")
        connection.execute("DELETE FROM batches")
    return part_file(3)


def a_newer_format(data_dir: Path) -> str:
    settle(data_dir)
    with closing(sqlite3.connect(data_dir / LEDGER_FILE)) as connection, connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'format_version'")
    return "newer CaptionFlow"


def a_missing_part(data_dir: Path) -> str:
    (data_dir / PARTS_FOLDER / part_file(2)).unlink()
    return part_file(2)


def a_truncated_part(data_dir: Path) -> str:
    path = data_dir / PARTS_FOLDER / part_file(2)
    path.write_bytes(path.read_bytes()[:-50])
    return part_file(2)


def a_part_with_another_schema(data_dir: Path) -> str:
    pq.write_table(pa.table({"x": [1, 2, 3]}), data_dir / PARTS_FOLDER / part_file(2))
    return part_file(2)


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def settle(data_dir: Path) -> None:
    """Move the journal's contents into the database, so that nothing in it heals the damage."""
    with closing(sqlite3.connect(data_dir / LEDGER_FILE)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


DAMAGES = [
    garbage_in_the_header,
    garbage_in_the_middle,
    an_empty_ledger,
    no_ledger,
    an_older_ledger,
    a_newer_format,
    a_missing_part,
    a_truncated_part,
    a_part_with_another_schema,
]
WAYS_OUT = ("restore", "upgrade", "put the newer ledger back", "choose another", "move")


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_run_whose_files_are_damaged_is_refused_by_name_and_left_as_it_is(
    killed: Path, damage: Callable[[Path], str]
) -> None:
    data_dir = killed / "run"
    named = damage(data_dir)
    before = fingerprints(data_dir)
    async with Fleet(killed) as fleet:
        leader = await fleet.orchestrator(ready=False)
        assert await leader.exit_code() == 1, leader.tail()
        last = leader.output.splitlines()[-1]
        assert last.startswith("Error: "), leader.tail()
        assert named in last
        assert any(way in last for way in WAYS_OUT), last
        assert "Traceback" not in leader.output
    assert fingerprints(data_dir) == before


async def test_damage_that_shows_only_later_ends_the_run_by_name_and_touches_no_part(
    killed: Path,
) -> None:
    data_dir = killed / "run"
    settle(data_dir)
    ledger = data_dir / LEDGER_FILE
    with closing(sqlite3.connect(ledger)) as connection:
        pages = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name IN ('items', 'items_by_path')"
        ).fetchall()
    for (page,) in pages:  # nobody reads these before the dataset is listed
        overwrite(ledger, (page - 1) * 4096, b"\xa5" * 512)
    before = fingerprints(data_dir / PARTS_FOLDER)
    async with Fleet(killed) as fleet:
        leader = await fleet.orchestrator(ready=False)
        assert await leader.exit_code() == 1, leader.tail()
        last = leader.output.splitlines()[-1]
        assert last.startswith("Error: "), leader.tail()
        assert LEDGER_FILE in last
        assert "restore" in last
        assert "Traceback" not in leader.output
    assert fingerprints(data_dir / PARTS_FOLDER) == before


@pytest.mark.parametrize("command", ["verify", "export", "retry-failed", "scan-chunks"])
@pytest.mark.parametrize("damage", [garbage_in_the_header, garbage_in_the_middle, a_missing_part])
async def test_no_command_hides_the_damage_or_changes_a_thing(
    killed: Path, damage: Callable[[Path], str], command: str
) -> None:
    data_dir = killed / "run"
    named = damage(data_dir)
    before = fingerprints(data_dir)
    more = {
        "export": ["--format", "jsonl", "--output", str(killed / "exported")],
        "scan-chunks": ["--fix"],
    }
    async with Fleet(killed) as fleet:
        code, said = await fleet.command(
            command, "--data-dir", str(data_dir), *more.get(command, [])
        )
    assert code == 1, said
    assert named in said
    assert "Traceback" not in said
    assert fingerprints(data_dir) == before


async def test_verify_counts_what_is_there_and_says_that_all_is_well(killed: Path) -> None:
    async with Fleet(killed) as fleet:
        said = await fleet.verify()
        assert f"{COUNT} listed" in said
        assert "captioned  32" in said
        assert "every promise holds" in said
    await finish(killed)


async def test_verify_finds_rows_that_were_changed_in_place(killed: Path) -> None:
    path = killed / "run" / PARTS_FOLDER / part_file(2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    async with Fleet(killed) as fleet:
        code, said = await fleet.command("verify", "--data-dir", str(killed / "run"))
    assert code == 1
    assert part_file(2) in said


async def test_verify_finds_an_item_with_two_rows(killed: Path) -> None:
    data_dir = killed / "run"
    with closing(sqlite3.connect(data_dir / LEDGER_FILE)) as connection, connection:
        connection.execute(
            "INSERT INTO batches (shard, chunk_first, ranges, counts, contributor, worker,"
            " committed_at, rows) SELECT shard, chunk_first, ranges, counts, contributor, worker,"
            " committed_at, rows FROM batches LIMIT 1"
        )
    async with Fleet(killed) as fleet:
        code, said = await fleet.command("verify", "--data-dir", str(data_dir))
    assert code == 1
    assert "has two rows" in said


async def test_a_second_orchestrator_is_refused_with_pid_and_host_and_the_first_goes_on(
    killed: Path,
) -> None:
    async with Fleet(killed) as fleet:
        first = await fleet.orchestrator()
        second = await fleet.orchestrator("--port", "0", ready=False)
        # Both are started as "orchestrator": the second one's output is what came since.
        assert await second.exit_code() == 2  # the caller's mistake
        assert f"pid {first.pid} on" in second.output
        assert first.code is None
        await first.kill()
        third = await fleet.orchestrator()
        assert third.code is None
