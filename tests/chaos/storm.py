"""A run under fire: real processes, and a driver that kills, cuts, freezes and stops them.

What was acknowledged is known from the proxies before the workers. Right after each kill of the
orchestrator, before it is started again, all of that must be on disk.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from tests.support.fleet import (
    Fleet,
    Process,
    check_captions,
    expected_captions,
    items_between_stages,
    rows_of_parts,
    stored_items,
    stored_rows,
    until,
)
from tests.support.proxy import Proxy, Step, Witness

LEASE_SECONDS: Final = 3.0
SETTINGS: Final[dict[str, Any]] = {
    "chunk_size": 32,
    "chunks_per_request": 2,
    "lease_seconds": LEASE_SECONDS,
    # Every kill takes leases with it, and none is the items' fault.
    "max_attempts": 12,
    "storage": {"caption_buffer_size": 150, "checkpoint_interval": 1},
}
KILLS: Final = ["kill orchestrator", "kill worker"]
OTHERS: Final = ["cut", "freeze", "slow", "stop worker", "drain orchestrator", "drain worker"]


def seed() -> int:
    """Another storm each time; CHAOS_SEED brings one back, as far as processes allow."""
    return int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))


@dataclass
class Post:
    """A worker's place: its process may change, its proxy stays."""

    name: str
    proxy: Proxy
    engine: dict[str, float]
    stages: tuple[str, ...]
    process: Process | None = None
    busy: bool = False
    """Under a fault that takes a while: left alone until that is over."""


@dataclass
class Figures:
    """What is printed at the end."""

    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    in_flight: Counter[Step] = field(default_factory=Counter)
    """By step: at how many kills and faults it was granted to their victim and not acknowledged."""
    checked: int = 0
    """Acknowledged items looked for on disk, over all kills of the orchestrator."""
    between: int = 0
    """Of these, items that had only some of their stages behind them."""


class Storm:
    """The driver. `unleash` does a number of kills; `end` waits for the end and checks it all."""

    def __init__(
        self,
        fleet: Fleet,
        seed: int,
        say: Callable[[str], None],
        stages: Sequence[str] = ("default",),
    ) -> None:
        self.fleet = fleet
        self.figures = Figures()
        self.witness = Witness(stages)
        self._random = random.Random(seed)
        self._say = say
        self._posts: list[Post] = []
        self._leader: Process | None = None
        self._lasting: set[asyncio.Task[None]] = set()
        self._began = 0.0

    @property
    def kills(self) -> int:
        """How many processes were killed."""
        return self.figures.kills.total()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._lasting:
            task.cancel()
        await asyncio.gather(*self._lasting, return_exceptions=True)
        for post in self._posts:
            await post.proxy.stop()

    # ------------------------------------------------------------------ the run

    async def begin(
        self, *engines: dict[str, float], stages: Sequence[tuple[str, ...]] = ()
    ) -> None:
        """Start the orchestrator and a worker with each of these engines, for these stages."""
        self._began = asyncio.get_running_loop().time()
        self._leader = await self.fleet.orchestrator()
        whats = stages or [()] * len(engines)
        pairs = zip(engines, whats, strict=True)
        await asyncio.gather(*(self.add_worker(engine, what) for engine, what in pairs))
        await until(lambda: self.witness.acknowledged, self._tails)

    async def add_worker(self, engine: dict[str, float], stages: tuple[str, ...] = ()) -> None:
        """Start one more worker, behind a proxy of its own; for all stages if none is named."""
        proxy = Proxy(self.fleet.port, self.witness)
        await proxy.start()
        post = Post(f"worker {len(self._posts) + 1}", proxy, engine, stages)
        self._posts.append(post)
        await self._man(post)

    async def _man(self, post: Post) -> None:
        post.process = await self.fleet.worker(
            post.name,
            post.proxy.url,
            engine=post.engine,
            stages=post.stages,
            # On a busy machine an orchestrator may be down for longer than most people would wait.
            connect_seconds=600,
        )

    async def unleash(self, plan: list[str], *, pause_seconds: tuple[float, float]) -> None:
        """Do what the plan says, one after the other, at random moments."""
        for action in plan:
            await asyncio.sleep(self._random.uniform(*pause_seconds))
            await self._replace_the_departed()
            assert not self._is_finished(), "the run was over before the storm was"
            await self._do(action)
        await asyncio.gather(*self._lasting)
        await self._replace_the_departed()

    async def end(self) -> None:
        """Wait for the end of the run and of its processes, all of which must be clean."""
        for post in self._posts:
            post.proxy.thaw()
            post.proxy.slow(0.0)
        loop = asyncio.get_running_loop()
        while not all(p.process is not None and p.process.code is not None for p in self._posts):
            await self._replace_the_departed(but_not_after=self._is_finished)
            await asyncio.sleep(0.05)
            assert loop.time() - self._began < 1500, self._tails()
        assert self._is_finished(), self._tails()
        for post in self._posts:
            assert post.process is not None
            assert post.process.code == 0, post.process.tail()
        leader = self._the_leader()
        leader.signal(signal.SIGINT)
        assert await leader.exit_code(30) == 0, leader.tail()

    def _is_finished(self) -> bool:
        return bool(self.witness.finished_at)

    async def _replace_the_departed(
        self, *, but_not_after: Callable[[], bool] = lambda: False
    ) -> None:
        """A worker that a drain has sent home is replaced; one that failed is a defect."""
        for post in self._posts:
            process = post.process
            if post.busy or process is None or process.code is None or but_not_after():
                continue
            assert process.code == 0, process.tail()
            self.witness.gone(post.proxy.session)
            await self._man(post)

    # ------------------------------------------------------------------ faults

    async def _do(self, action: str) -> None:
        does: dict[str, Callable[[], Coroutine[None, None, None]]] = {
            "kill orchestrator": self._kill_orchestrator,
            "kill worker": self._kill_worker,
            "drain orchestrator": self._drain_orchestrator,
            "drain worker": self._drain_worker,
            "cut": self._cut,
            "freeze": self._freeze,
            "slow": self._slow,
            "stop worker": self._stop_worker,
        }
        seconds = asyncio.get_running_loop().time() - self._began
        self._say(f"{seconds:6.1f} s  {action} ({len(self.witness.acknowledged)} acknowledged)")
        await does[action]()

    async def _kill_orchestrator(self) -> None:
        self.figures.kills["orchestrator"] += 1
        self.figures.in_flight += self.witness.in_flight()
        leader = self._the_leader()
        if self._random.random() < 0.75:
            # The most telling moment: something has just been promised.
            self.witness.at_next_ack = lambda: leader.signal(signal.SIGKILL)
            await asyncio.wait({asyncio.create_task(leader.exited())}, timeout=2)
            self.witness.at_next_ack = None
        await leader.kill()
        await self._check_what_was_promised()
        await self._lead_again()

    async def _lead_again(self) -> None:
        self._leader = await self.fleet.orchestrator()

    async def _check_what_was_promised(self) -> None:
        promised, reached = set(self.witness.acknowledged), dict(self.witness.reached)
        stored = await asyncio.to_thread(stored_items, self.fleet.data_dir)
        between = await asyncio.to_thread(items_between_stages, self.fleet.data_dir)
        self.figures.checked += len(promised | reached.keys())
        self.figures.between += len(reached.keys() - promised)
        assert promised <= stored, (
            f"acknowledged and not on disk: {sorted(promised - stored)[:20]}\n{self._tails()}"
        )
        assert not stored & between.keys(), "items have a row and wait for a stage"
        lost = [i for i, at in reached.items() if i not in stored and between.get(i, 0) < at]
        assert not lost, f"stages acknowledged and not on disk: {lost[:20]}\n{self._tails()}"

    async def _kill_worker(self) -> None:
        post = await self._some_post()
        process = self._process(post)
        self.figures.kills["worker"] += 1
        self.figures.in_flight += self.witness.in_flight(post.proxy.session)
        await process.kill()
        self.witness.gone(post.proxy.session)
        await self._man(post)

    async def _drain_orchestrator(self) -> None:
        self.figures.faults["drain of the orchestrator"] += 1
        self.figures.in_flight += self.witness.in_flight()
        leader = self._the_leader()
        leader.signal(self._random.choice((signal.SIGTERM, signal.SIGINT)))
        assert await leader.exit_code(30) == 0, leader.tail()
        await self._check_what_was_promised()
        in_parts = {row["item_index"] for row in rows_of_parts(self.fleet.data_dir)}
        assert self.witness.acknowledged <= in_parts, "a drain has not flushed everything"
        await self._lead_again()

    async def _drain_worker(self) -> None:
        post = await self._some_post()
        process = self._process(post)
        await process.says("connected")  # before, it is a process like any other
        self.figures.faults["drain of a worker"] += 1
        self.figures.in_flight += self.witness.in_flight(post.proxy.session)
        process.signal(self._random.choice((signal.SIGTERM, signal.SIGINT)))
        assert await process.exit_code(30) == 0, process.tail()
        self.witness.gone(post.proxy.session)
        await self._man(post)

    async def _cut(self) -> None:
        post = await self._some_post()
        self.figures.faults["cut"] += 1
        self.figures.in_flight += self.witness.in_flight(post.proxy.session)
        post.proxy.cut()

    async def _freeze(self) -> None:
        post = await self._some_post()
        # Sometimes past the lease, so that its items are done by others, too.
        seconds = self._random.uniform(0.5, 1.6) * LEASE_SECONDS
        self._last(post, "freeze", post.proxy.freeze, post.proxy.thaw, seconds)

    async def _slow(self) -> None:
        post = await self._some_post()
        seconds = self._random.uniform(0.5, 1.0) * LEASE_SECONDS

        def slow() -> None:
            post.proxy.slow(self._random.uniform(0.05, 0.5))

        self._last(post, "slow", slow, lambda: post.proxy.slow(0.0), seconds)

    async def _stop_worker(self) -> None:
        post = await self._some_post()
        process = self._process(post)
        seconds = self._random.uniform(1.2, 1.6) * LEASE_SECONDS

        def stop() -> None:
            process.signal(signal.SIGSTOP)

        def carry_on() -> None:
            process.signal(signal.SIGCONT)

        self._last(post, "stop of a worker", stop, carry_on, seconds)

    def _last(
        self,
        post: Post,
        name: str,
        begin: Callable[[], None],
        end: Callable[[], None],
        seconds: float,
    ) -> None:
        """Begin a fault that is over after a while; the storm goes on meanwhile."""
        self.figures.faults[name] += 1
        self.figures.in_flight += self.witness.in_flight(post.proxy.session)
        post.busy = True

        async def last() -> None:
            begin()
            try:
                await asyncio.sleep(seconds)
            finally:
                # What it was granted meanwhile, others may have been given as well.
                self.figures.in_flight += self.witness.in_flight(post.proxy.session)
                end()
                post.busy = False

        task = asyncio.create_task(last())
        self._lasting.add(task)
        task.add_done_callback(self._lasting.discard)

    # ------------------------------------------------------------------ who there is

    async def _some_post(self) -> Post:
        """Pick a worker that is under no fault at present."""
        await until(lambda: any(not post.busy for post in self._posts), self._tails)
        return self._random.choice([post for post in self._posts if not post.busy])

    def _process(self, post: Post) -> Process:
        assert post.process is not None
        return post.process

    def _the_leader(self) -> Process:
        assert self._leader is not None
        return self._leader

    def _tails(self) -> str:
        processes = [self._leader, *(post.process for post in self._posts)]
        return "\n".join(process.tail() for process in processes if process is not None)

    # ------------------------------------------------------------------ the reckoning

    async def check(
        self,
        written: Mapping[str, bytes],
        check_rows: Callable[[Sequence[Mapping[str, Any]], Mapping[str, bytes]], None]
        | None = None,
    ) -> None:
        """Every promise, on what is on disk now; ``check_rows`` says what rows have to be."""
        for rows in (stored_rows(self.fleet.data_dir), rows_of_parts(self.fleet.data_dir)):
            if check_rows is None:
                check_captions(rows, expected_captions(written))
            else:
                check_rows(rows, written)
            self._check_credits(rows)
        assert self.witness.acknowledged <= stored_items(self.fleet.data_dir)
        assert not items_between_stages(self.fleet.data_dir), "items have a row and a stage left"
        await self.fleet.verify()
        self._check_work_done_twice()

    def _check_credits(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """No stage is credited to a worker that does not run it."""
        runs = {post.name: post.stages for post in self._posts}
        for row in rows:
            for stage in row["stage_stats"]:
                stages = runs[stage["worker"]]
                assert not stages or stage["stage"] in stages, row

    def _check_work_done_twice(self) -> None:
        """A step is done once, and once more for each time it was in flight at a fault or shared.

        The sum of this over all steps is the bound on the work done twice.
        """
        excused = self.figures.in_flight + self.witness.shared
        unexcused = {
            step: sorted(works)
            for step, works in self.witness.works.items()
            if len(works) - 1 > excused[step]
        }
        assert not unexcused, f"done again without a reason: {unexcused}\n{self._tails()}"

    def report(self) -> str:
        """The figures, one a line."""
        figures, witness = self.figures, self.witness
        took = asyncio.get_running_loop().time() - self._began
        lines = {
            "kills": f"{self.kills} ({_counts(figures.kills)})",
            "other faults": _counts(figures.faults),
            "items": len({item for item, _ in witness.works}),
            "acknowledged items looked for after kills": f"{figures.checked} "
            f"(between stages: {figures.between})",
            "passed on between workers": len(witness.reached),
            "done twice": f"{witness.done_twice} (held step by step; at most "
            f"{figures.in_flight.total()} in flight at kills and faults and "
            f"{witness.shared.total()} that somebody else had done meanwhile)",
            "wall time": f"{took:.1f} s",
        }
        return "\n".join(f"  {name:42} {value}" for name, value in lines.items())


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(counter.items()))
