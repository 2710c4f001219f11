"""A TCP proxy of the tests' own: cuts, freezes and slows connections, and notes what crosses them.

One proxy stands before one worker. It forwards bytes as they are; beside that it reads the
WebSocket frames in them (RFC 6455, section 5.2) and tells a `Witness` about every message, so that
a test knows what was promised to a worker whatever becomes of the processes on both ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from caption_flow.protocol.codec import decode_from_orchestrator, decode_from_worker
from caption_flow.protocol.messages import (
    Ack,
    Finished,
    Grant,
    GrantedLease,
    Heartbeat,
    Hello,
    Recalled,
    Release,
    Results,
    Trim,
)

_BLOCK: Final = 2**16
_HEAD_END: Final = b"\r\n\r\n"
_DATA_OPCODES: Final = frozenset({0, 2})
"""Continuation and binary: what our messages are made of."""


class FrameReader:
    """Finds whole binary messages in one direction of an upgraded connection."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._upgraded = False
        self._message = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take bytes as they come; yield each message they complete."""
        self._bytes += data
        if not self._upgraded:
            _, found, rest = self._bytes.partition(_HEAD_END)
            if not found:
                return
            self._upgraded = True
            self._bytes = bytearray(rest)
        while (frame := self._take_frame()) is not None:
            final, opcode, payload = frame
            if opcode not in _DATA_OPCODES:
                continue
            self._message += payload
            if final:
                yield bytes(self._message)
                self._message.clear()

    def _take_frame(self) -> tuple[bool, int, bytes] | None:
        data = self._bytes
        if len(data) < 2:
            return None
        size, at = data[1] & 0x7F, 2
        if size >= 126:
            width = 2 if size == 126 else 8
            if len(data) < at + width:
                return None
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
        masked = bool(data[1] & 0x80)
        start = at + (4 if masked else 0)
        if len(data) < start + size:
            return None
        payload = bytes(data[start : start + size])
        if masked and size:
            mask = (bytes(data[at : at + 4]) * (size // 4 + 1))[:size]
            mixed = int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")
            payload = mixed.to_bytes(size, "big")
        final, opcode = bool(data[0] & 0x80), data[0] & 0x0F
        del data[: start + size]
        return final, opcode, payload


Step = tuple[int, int]
"""An item, and the position of a stage that it goes through."""


@dataclass
class _SessionSeen:
    """What crossed the wire for one session, over all its connections."""

    stages: frozenset[str] = frozenset()
    """Those it runs; none stands for all."""
    at: dict[int, int] = field(default_factory=dict)
    """The stage of each lease."""
    granted: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Items by lease, less those trimmed."""
    batches: dict[int, Results] = field(default_factory=dict)
    """By sequence number, until acknowledged; without their rows."""
    acknowledged: set[Step] = field(default_factory=set)


class Witness:
    """What all proxies of a run have seen. Items are indices of the run's only shard.

    ``stages`` are the names of the recipe's, in its order.
    """

    def __init__(self, stages: Sequence[str] = ("default",)) -> None:
        self._stages = stages
        self.sessions: dict[str, _SessionSeen] = defaultdict(_SessionSeen)
        self.acknowledged: set[int] = set()
        """Items whose row was acknowledged."""
        self.reached: dict[int, int] = {}
        """By item: the latest stage that it was acknowledged to have reached."""
        self.works: dict[Step, set[tuple[str, int]]] = defaultdict(set)
        """By step: each (session, lease) that brought a result of it, resends not counted."""
        self._shared: set[tuple[Step, str, int]] = set()
        self.granted = 0
        """Items granted, each as often as it was."""
        self.stats: dict[str, dict[str, float]] = {}
        """What each session said of itself last."""
        self.last_result_at: dict[str, float] = {}
        """When a session last sent results, by the loop's clock."""
        self.at_next_ack: Callable[[], None] | None = None
        """Called once, the moment an acknowledgement leaves the orchestrator."""
        self.finished_at: dict[str, float] = {}
        """When a session was first told that the run is finished, by the loop's clock."""

    @property
    def shared(self) -> Counter[Step]:
        """By step: how many leases of it were told that another has done it."""
        return Counter(step for step, _, _ in self._shared)

    @property
    def done_twice(self) -> int:
        """Results that came in from another lease than a step's first."""
        return sum(len(works) - 1 for works in self.works.values())

    def in_flight(self, session: str | None = None) -> Counter[Step]:
        """Steps granted to a session, or to all, and not acknowledged to it."""
        if session is None:
            return sum((self.in_flight(one) for one in list(self.sessions)), Counter())
        seen = self.sessions[session]
        steps = {
            step
            for lease, items in seen.granted.items()
            for item in items
            for step in self._steps(seen, lease, item)
        }
        return Counter(steps - seen.acknowledged)

    def gone(self, session: str) -> None:
        """Note that nobody will speak for a session any more."""
        self.sessions[session].granted.clear()

    def heard_worker(self, session: str, message: object) -> None:
        """Take a message of a worker."""
        seen = self.sessions[session]
        match message:
            case Hello(stages=stages):
                seen.stages = frozenset(stages)
            case Results(seq, lease, items):
                self.last_result_at[session] = asyncio.get_running_loop().time()
                seen.batches[seq] = msgspec.structs.replace(message, rows=b"")
                for item in items:
                    for step in self._steps(seen, lease, item):
                        self.works[step].add((session, lease))
            case Release(lease):
                seen.granted.pop(lease, None)
            case Recalled(leases):
                for lease, items in leases.items():
                    seen.granted[lease] -= set(items)
            case Heartbeat(stats):
                self.stats[session] = stats
            case _:
                pass

    def heard_orchestrator(self, session: str, message: object) -> None:
        """Take a message to a worker."""
        seen = self.sessions[session]
        match message:
            case Ack(seq):
                for number in [number for number in seen.batches if number <= seq]:
                    self._acknowledge(seen, seen.batches.pop(number))
                if self.at_next_ack is not None:
                    self.at_next_ack()
                    self.at_next_ack = None
            case Grant(leases):
                for granted in leases:
                    self._grant(seen, granted)
            case Trim(lease, items):
                self._share(session, lease, items)
                seen.granted[lease] -= set(items)
            case Finished():
                self.finished_at.setdefault(session, asyncio.get_running_loop().time())
            case _:
                pass

    def _steps(self, seen: _SessionSeen, lease: int, item: int) -> list[Step]:
        """What a session does to an item under a lease: stages in a row, as far as it runs them."""
        first = stop = seen.at.get(lease, 0)
        while stop < len(self._stages) and (not seen.stages or self._stages[stop] in seen.stages):
            stop += 1
        return [(item, stage) for stage in range(first, stop)]

    def _grant(self, seen: _SessionSeen, granted: GrantedLease) -> None:
        new = {item.index for item in granted.items}
        seen.at[granted.lease] = granted.stage
        seen.granted[granted.lease] |= new
        self.granted += len(new)
        for item in new:
            seen.acknowledged.difference_update(self._steps(seen, granted.lease, item))

    def _share(self, session: str, lease: int, items: Iterable[int]) -> None:
        for item in items:
            for step in self._steps(self.sessions[session], lease, item):
                if self.works.get(step) != {(session, lease)}:
                    self._shared.add((step, session, lease))

    def _acknowledge(self, seen: _SessionSeen, batch: Results) -> None:
        for item in batch.items:
            seen.acknowledged.update(self._steps(seen, batch.lease, item))
        if batch.reached is None:
            self.acknowledged.update(batch.items)
        else:
            for item in batch.items:
                self.reached[item] = max(batch.reached, self.reached.get(item, 0))


class Proxy:
    """Stands between one worker and the orchestrator at ``port``."""

    def __init__(self, port: int, witness: Witness) -> None:
        self.port = 0
        self.session = ""
        """The session of the last worker that said hello here."""
        self._target = port
        self._witness = witness
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._delay_seconds = 0.0

    @property
    def url(self) -> str:
        """Where the worker connects."""
        return f"ws://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen on a port of its own."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut everything and listen no more."""
        if self._server is not None:
            self._server.close()
        self.thaw()
        self.slow(0.0)
        while self._tasks:
            self.cut()
            await asyncio.wait(self._tasks, timeout=0.1)

    # ------------------------------------------------------------------ faults

    def cut(self) -> None:
        """Lose every connection at once, without a word to either end."""
        for writer in list(self._writers):
            writer.transport.abort()

    def freeze(self) -> None:
        """Let nothing through, in either direction, with all connections up."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Let everything through again, what was held up first."""
        self._flowing.set()

    def slow(self, delay_seconds: float) -> None:
        """Hold each block of bytes up for so long; 0 ends it."""
        self._delay_seconds = delay_seconds

    # ------------------------------------------------------------------ forwarding

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        far: asyncio.StreamWriter | None = None
        try:
            await self._flowing.wait()
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(far)
            tap = _Tap(self, self._witness)
            forwarding = [
                asyncio.create_task(self._forward(reader, far, tap.from_worker)),
                asyncio.create_task(self._forward(far_reader, writer, tap.from_orchestrator)),
            ]
            try:
                await asyncio.wait(forwarding, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in forwarding:
                    one.cancel()
                await asyncio.gather(*forwarding, return_exceptions=True)
        except OSError:
            pass  # the orchestrator is down: so is this connection
        finally:
            for end in (writer, far):
                if end is not None:
                    self._writers.discard(end)
                    await _close(end)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tap: _Listener
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_BLOCK):
                if self._delay_seconds:
                    await asyncio.sleep(self._delay_seconds)
                tap(data)
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()


class _Listener:
    """Called with each block of one direction."""

    def __init__(self, tap: _Tap, *, from_worker: bool) -> None:
        self._tap = tap
        self._from_worker = from_worker
        self._frames = FrameReader()

    def __call__(self, data: bytes) -> None:
        for payload in self._frames.feed(data):
            if self._from_worker:
                self._tap.heard_worker(payload)
            else:
                self._tap.heard_orchestrator(payload)


class _Tap:
    """One connection's messages, given to the witness under the name of its session."""

    def __init__(self, proxy: Proxy, witness: Witness) -> None:
        self._proxy = proxy
        self._witness = witness
        self._session = ""
        self.from_worker = _Listener(self, from_worker=True)
        self.from_orchestrator = _Listener(self, from_worker=False)

    def heard_worker(self, payload: bytes) -> None:
        message = decode_from_worker(payload)
        if isinstance(message, Hello):
            self._session = self._proxy.session = message.session
        self._witness.heard_worker(self._session, message)

    def heard_orchestrator(self, payload: bytes) -> None:
        self._witness.heard_orchestrator(self._session, decode_from_orchestrator(payload))


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
