"""What the ledger costs: memory, hand-out, reports, checkpoints and resuming, at scale.

    python benchmarks/ledger.py                  every measurement, about five minutes
    python benchmarks/ledger.py --only resume    one of them
    python benchmarks/ledger.py --json FILE      keep the figures as well

Nothing is captioned: a source that only counts, workers that answer at once. Each measurement runs
in a process of its own, so that its memory is its own. Folders are temporary and removed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import pyarrow as pa

from caption_flow.orchestrator.core import events as ev
from caption_flow.orchestrator.core.ledger import Ledger, Policy, StoredLease
from caption_flow.orchestrator.core.ranges import RangeSet
from caption_flow.protocol.rows import CAPTIONED, encode_batch, wire_schema
from caption_flow.storage.database import PARTS_FOLDER, open_for_writing, pack_ranges
from caption_flow.storage.parts import part_file
from caption_flow.storage.store import RunStore
from caption_flow.storage.writes import CommitRows, RememberLease

ITEMS: Final = 100_000_000
CHUNK: Final = 1000
BATCH: Final = 64
SHARD: Final = "default"
POLICY: Final = Policy(chunk_size=CHUNK)
Figures = dict[str, Any]


# --------------------------------------------------------------------------- memory and hand-out


def memory() -> Iterator[Figures]:
    """Do half of all items with 200 workers; look at the memory on the way."""
    before = resident_mb()
    ledger = listed(ITEMS)
    crew = [f"worker {number}" for number in range(200)]
    for name in crew:
        ledger.handle(ev.SessionJoined(name, name), now=0.0)
    started = time.perf_counter()
    for half in range(1, 6):
        while ledger.terminal < ITEMS * half // 10:
            for name in crew:
                work_off(ledger, name)
        yield {
            "what": f"{ledger.terminal:,} of {ITEMS:,} done, {len(crew)} at work",
            "resident MB": resident_mb(),
            "of it the ledger's MB": resident_mb() - before,
            "µs a chunk": micro(time.perf_counter() - started) / (ledger.terminal / CHUNK),
        }


def holes() -> Iterator[Figures]:
    """Restore half of all items, done in batches with as much missing between them."""
    before = resident_mb()
    started = time.perf_counter()
    ledger = half_done(ITEMS, run=BATCH)
    yield {
        "what": f"every other {BATCH} of {ITEMS:,} items done: {ITEMS // BATCH // 2:,} holes",
        "s to restore": time.perf_counter() - started,
        "resident MB": resident_mb(),
        "of it the ledger's MB": resident_mb() - before,
    }
    del ledger


def hand_out() -> Iterator[Figures]:
    """Hand out chunks of datasets of very different size."""
    for items in (10**4, 10**6, 10**8):
        cost = hand_out_cost(partial(listed, items))
        yield {"what": f"{items:,} items, none done", "µs a chunk": cost}
    for items in (10**4, 10**6, 10**8):
        cost = hand_out_cost(partial(half_done, items, run=items // 2))
        yield {"what": f"{items:,} items, half done", "µs a chunk": cost}
    for items in (10**4, 10**6, 10**8):
        cost = hand_out_cost(partial(half_done, items, run=BATCH))
        yield {"what": f"{items:,} items, half done in runs of {BATCH}", "µs a chunk": cost}
    for shards in (100, 100_000):
        cost = hand_out_cost(partial(listed, shards * CHUNK, shards=shards))
        yield {"what": f"{shards:,} shards of {CHUNK:,} items", "µs a chunk": cost}


def hand_out_cost(make: Callable[[], Ledger]) -> float:
    """Return the microseconds that one `Wanted` takes which is answered with a chunk."""
    spent, chunks = 0.0, 0
    while chunks < 2000:
        ledger = make()
        ledger.handle(ev.SessionJoined("x", "x"), now=0.0)
        while ledger.pending and chunks < 2000:
            started = time.perf_counter()
            effects = ledger.handle(ev.Wanted("x", 1, 64), now=0.0)
            spent += time.perf_counter() - started
            chunks += 1
            answer(ledger, "x", effects, whole=True)
    return micro(spent) / chunks


def reports() -> Iterator[Figures]:
    """Report batches of 64 items, with few workers and with very many."""
    for workers in (1, 200, 20_000):
        ledger = listed(ITEMS)
        base = resident_mb()
        for number in range(workers):
            ledger.handle(ev.SessionJoined(f"w{number}", "w"), now=0.0)
            ledger.handle(ev.Wanted(f"w{number}", 2, 64), now=0.0)
        grown = resident_mb() - base
        spent, count = [0.0, 0.0], 0
        ledger.handle(ev.SessionJoined("x", "x"), now=0.0)
        while count < 10_000:
            effects = ledger.handle(ev.Wanted("x", 1, 64), now=0.0)
            count += answer(ledger, "x", effects, spent=spent)
        ticks = [timed(ledger, ev.Ticked()) for _ in range(5)]
        yield {
            "what": f"{workers:,} workers with two leases each",
            "µs a report": micro(spent[0]) / count,
            "µs a commit": micro(spent[1]) / count,
            "reports/s": count / sum(spent),
            "ms a tick": min(ticks) * 1e3,
            "MB for all": grown,
        }


def tail() -> Iterator[Figures]:
    """Nothing is left to hand out, half of the workers are idle and wait for what others have."""
    for workers in (4, 200, 20_000):
        ledger = Ledger(POLICY)
        for number in range(workers):
            ledger.handle(ev.SessionJoined(f"w{number}", "w"), now=0.0)
        ledger.handle(ev.ItemsFound(SHARD, workers * 16), now=0.0)
        ledger.handle(ev.ListingFinished(), now=0.0)
        held = 0
        while ledger.pending:
            ledger.handle(ev.Wanted(f"w{held % (workers // 2)}", 2, 8), now=0.0)
            held += 1
        idle = range(workers // 2, workers)
        asked = [timed(ledger, ev.Wanted(f"w{number}", 2, 8)) for number in idle]
        ticks = [timed(ledger, ev.Ticked()) for _ in range(5)]
        yield {
            "what": f"{workers:,} workers, half of them idle",
            "µs a question": micro(sum(asked)) / len(asked),
            "ms a tick, at most": max(ticks) * 1e3,
            "ms a tick, then": min(ticks) * 1e3,
        }


# --------------------------------------------------------------------------- on disk


def checkpoints() -> Iterator[Figures]:
    """Checkpoint a thousand new rows beside no, many and very many old ones."""
    for old in (0, 10**5, 10**6):
        with tempfile.TemporaryDirectory() as folder:
            yield asyncio.run(checkpoint_beside(Path(folder), old))


async def checkpoint_beside(folder: Path, old: int) -> Figures:
    store = RunStore(folder)
    store.start(lambda _: None)
    first = 0
    while first < old:
        step = min(50_000, old - first)
        await commit(store, first, step)
        await store.checkpoint()
        first += step
    committed, costs = [], []
    for _ in range(15):
        started = time.perf_counter()
        await commit(store, first, 1000)
        committed.append(time.perf_counter() - started)
        started = time.perf_counter()
        await store.checkpoint()
        costs.append(time.perf_counter() - started)
        first += 1000
    await store.close()
    return {
        "what": f"1,000 new rows beside {old:,} old ones",
        "ms to commit": median(committed) * 1e3,
        "ms to checkpoint": median(costs) * 1e3,
    }


async def commit(store: RunStore, first: int, count: int) -> None:
    waiting = [
        store.write(rows_of(at, min(BATCH, first + count - at)))
        for at in range(first, first + count, BATCH)
    ]
    await asyncio.gather(*waiting)


def rows_of(first: int, count: int) -> CommitRows:
    """Return a batch of made-up captions of about a paragraph."""
    items = tuple(range(first, first + count))
    schema = wire_schema(("captions",))
    known: dict[str, list[Any]] = {
        "item_index": list(items),
        "status": [CAPTIONED] * count,
        "captions": [
            [f"A photograph of item {item}, " + "described at length " * 20] for item in items
        ],
    }
    columns = [
        pa.array(known[column.name], column.type)
        if column.name in known
        else pa.nulls(count, column.type)
        for column in schema
    ]
    payload = encode_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    everything = tuple(range(count))
    return CommitRows(SHARD, first, items, everything, payload, ("captions",), "", "worker")


def resume() -> Iterator[Figures]:
    """Open a run of which half is done: parts of 50,000 rows, and of the default 1,000."""
    for rows_per_part in (50_000, 1_000):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ranges = fill(folder, ITEMS // 2, rows_per_part)
            command = [sys.executable, __file__, "--open", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures: Figures = json.loads(done.stdout)
            parts = ITEMS // 2 // rows_per_part
            yield {"what": f"{parts:,} parts with {ranges:,} ranges, 200 leases", **figures}


def fill(folder: Path, done: int, rows_per_part: int) -> int:
    """Write the database that a run leaves whose 100 workers send batches of 64 in turn."""
    ranges = 0
    (folder / PARTS_FOLDER).mkdir()
    with closing(open_for_writing(folder)) as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO shards (shard, count) VALUES (?, ?)", (SHARD, ITEMS))
        for number, part in enumerate(parts_of(done, rows_per_part), start=1):
            record(connection, number, part)
            (folder / PARTS_FOLDER / part_file(number)).write_bytes(b"\0")
            ranges += len(part)
        for lease in range(200):
            first = done + lease * CHUNK
            items = tuple(range(first, first + CHUNK))
            worker = f"worker {lease // 2}"
            RememberLease(lease, worker, worker, SHARD, first, CHUNK, items).apply(connection)
        connection.execute("COMMIT")
    return ranges


def record(connection: sqlite3.Connection, number: int, part: list[tuple[int, int]]) -> None:
    rows = sum(stop - start for start, stop in part)
    values = (number, part_file(number), rows, 1, "", json.dumps({CAPTIONED: rows}), 0.0)
    connection.execute("INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?, '{}')", values)
    connection.execute(
        "INSERT INTO part_ranges VALUES (?, ?, ?)", (number, SHARD, pack_ranges(part))
    )


def parts_of(done: int, rows_per_part: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the ranges of each part: 100 workers, each with a chunk, take turns."""
    held = 0
    part: list[tuple[int, int]] = []
    for block in range(0, done, 100 * CHUNK):
        for offset in range(0, CHUNK, BATCH):
            for worker in range(100):
                start = block + worker * CHUNK + offset
                stop = min(start + BATCH, block + worker * CHUNK + CHUNK)
                part.append((start, stop))
                held += stop - start
                if held >= rows_per_part:
                    yield joined(part)
                    part, held = [], 0
    if part:
        yield joined(part)


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return list(RangeSet(ranges))


def open_and_restore(folder: Path) -> Figures:
    """Do what an orchestrator does at its start, up to the ledger."""
    before = resident_mb()
    started = time.perf_counter()
    store = RunStore(folder)
    opened = time.perf_counter()
    snapshot = store.snapshot
    ledger = Ledger(POLICY, first_lease=store.incarnation << 32)
    ledger.restore(
        {shard: RangeSet(ranges) for shard, ranges in snapshot.terminal.items()},
        snapshot.counts,
        [
            StoredLease(
                lease.lease,
                lease.session,
                lease.worker,
                lease.shard,
                lease.chunk_first,
                lease.chunk_count,
                tuple(item for start, stop in lease.ranges for item in range(start, stop)),
            )
            for lease in snapshot.leases
        ],
        now=0.0,
    )
    restored = time.perf_counter()
    store.release()
    assert (ledger.found, ledger.terminal) == (ITEMS, ITEMS // 2)
    return {
        "s to open": opened - started,
        "s to restore": restored - opened,
        "s in all": restored - started,
        "resident MB": resident_mb(),
        "of it new MB": resident_mb() - before,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


# --------------------------------------------------------------------------- a run that only counts


def listed(items: int, *, shards: int = 1) -> Ledger:
    """Return a ledger with untouched items, whose listing goes on: the end is not in sight."""
    ledger = Ledger(POLICY)
    for number in range(shards):
        ledger.handle(ev.ItemsFound(f"{SHARD} {number}", items // shards), now=0.0)
    return ledger


def half_done(items: int, *, run: int) -> Ledger:
    """Return a resumed ledger in which every other ``run`` items are terminal."""
    ledger = Ledger(POLICY)
    done = RangeSet((start, start + run) for start in range(0, items, 2 * run))
    ledger.restore({SHARD: done}, {SHARD: items}, [], now=0.0)
    return ledger


def work_off(ledger: Ledger, name: str) -> None:
    """Ask for two chunks and report them, with the earlier ones still held."""
    effects = ledger.handle(ev.Wanted(name, 2, 64), now=0.0)
    answer(ledger, name, effects, whole=True)


def answer(
    ledger: Ledger,
    name: str,
    effects: list[ev.Effect],
    *,
    whole: bool = False,
    spent: list[float] | None = None,
) -> int:
    """Report what was granted, in batches or whole, and make it durable; count the reports."""
    count = 0
    for grant in effects:
        if not isinstance(grant, ev.Grant):
            continue
        step = CHUNK if whole else BATCH
        for at in range(0, len(grant.items), step):
            items = grant.items[at : at + step]
            started = time.perf_counter()
            told = ledger.handle(ev.Reported(name, grant.lease, at, items), now=0.0)
            reported = time.perf_counter()
            (commit,) = [effect for effect in told if isinstance(effect, ev.Commit)]
            begun = time.perf_counter()
            ledger.handle(ev.Committed(commit.ticket), now=0.0)
            if spent is not None:
                spent[0] += reported - started
                spent[1] += time.perf_counter() - begun
            count += 1
    return count


def timed(ledger: Ledger, event: ev.Event) -> float:
    started = time.perf_counter()
    ledger.handle(event, now=0.0)
    return time.perf_counter() - started


def micro(seconds: float) -> float:
    return seconds * 1e6


def resident_mb() -> float:
    """Return this process's resident memory; Linux tells it in pages, others only its peak."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --------------------------------------------------------------------------- the command

MEASUREMENTS: Final[dict[str, Callable[[], Iterator[Figures]]]] = {
    "memory": memory,
    "holes": holes,
    "hand-out": hand_out,
    "reports": reports,
    "tail": tail,
    "checkpoints": checkpoints,
    "resume": resume,
}


def show(name: str, rows: list[Figures]) -> None:
    print(f"\n{name}: {MEASUREMENTS[name].__doc__}")
    columns = list(rows[0])
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    widths = [
        max(len(column), *(len(line[at]) for line in cells)) for at, column in enumerate(columns)
    ]
    for line in [columns, *cells]:
        first, *others = (text.rjust(width) for text, width in zip(line, widths, strict=True))
        print("  " + "  ".join([first.strip().ljust(widths[0]), *others]))


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="measure only this")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--raw", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open is not None:
        print(json.dumps(open_and_restore(options.open)))
    elif options.raw is not None:
        print(json.dumps(list(MEASUREMENTS[options.raw]())))
    else:
        figures = {name: measured(name) for name in options.only or MEASUREMENTS}
        if options.json is not None:
            options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measured(name: str) -> list[Figures]:
    """Measure in a process of its own, and show the figures."""
    command = [sys.executable, __file__, "--raw", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows: list[Figures] = json.loads(done.stdout)
    show(name, rows)
    return rows


if __name__ == "__main__":
    main()
