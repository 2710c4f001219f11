"""One run on this machine: an orchestrator in this process, workers beside it, then the export."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop
from rich.console import Console

from caption_flow.cli.crew import TOKEN_VARIABLE, Crew
from caption_flow.cli.failures import EXIT_INTERRUPTED, EXIT_OK, CommandFailed, usage_error
from caption_flow.cli.folders import for_people
from caption_flow.cli.local_access import (
    NAME,
    Access,
    address_on_this_machine,
    remove_access,
    write_access,
)
from caption_flow.cli.passed_over import verdict
from caption_flow.cli.plan import Plan, note_on_recipe
from caption_flow.cli.present import PresentRows
from caption_flow.cli.progress_view import Moment, progress_shown
from caption_flow.cli.stores import storage_failures
from caption_flow.cli.summary import Findings, Outcome, look_at_rows, summary
from caption_flow.orchestrator.assembly import assemble
from caption_flow.orchestrator.server.server import ServerError
from caption_flow.orchestrator.service import Orchestrator
from caption_flow.orchestrator.sources.base import SourceError
from caption_flow.storage.contents import Selection, StorageContents
from caption_flow.storage.errors import StorageError
from caption_flow.storage.exported import Exported, exported_from
from caption_flow.storage.exporter.errors import ExportError
from caption_flow.storage.exporter.jsonl import export_jsonl
from caption_flow.storage.exporter.report import ExportReport
from caption_flow.storage.exporter.texts import Wording
from caption_flow.storage.exporter.txt import export_txt
from caption_flow.storage.reader import StorageReader

_WORKERS_EXIT_SECONDS: Final = 10.0
_FAREWELL_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 0.1
_AT_ONCE_SECONDS: Final = 2.0
"""How long a second Ctrl-C lets Parquet be written; results are safe in the ledger before that."""


class LocalRun:
    """Drives one run from start to summary."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._began = time.monotonic()
        self._loaded: float | None = None
        self._stopping = False
        self._at_once = asyncio.Event()

    def run(self) -> int:
        """Run to the end, or until interrupted; return the exit code."""
        with storage_failures(self._plan.data_dir):
            self._tell(note_on_recipe(self._plan.config))
            try:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    outcome = runner.run(self._lead())
            except (SourceError, ServerError) as error:
                usage_error(error)
            findings = look_at_rows(self._plan)
        report = self._export()
        for line in summary(self._plan, outcome, report, findings):
            print(line)
        return _verdict(outcome, findings)

    # ------------------------------------------------------------------ leading

    async def _lead(self) -> Outcome:
        """Lead the run to its end, or as far as it gets."""
        token, owners_token = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        plan = self._plan
        try:
            leader = await assemble(
                plan.config,
                [],
                own_tokens=[("worker", NAME, token), ("admin", NAME, owners_token)],
                # Whoever starts it again wants it to go on.
                stays_paused=False,
                limit=plan.limit,
                skip=plan.skip,
                # They were children of the process before us and ended with it.
                resume_leases=False,
            )
        except OSError as error:
            usage_error(f"{for_people(plan.data_dir)} cannot be used: {error.strerror or error}")
        crew = Crew(
            [],
            {TOKEN_VARIABLE: token, **plan.worker_secrets},
            plan.gpus.workers,
            plan.data_dir / "logs",
            self._tell,
            is_at_work=lambda: leader.progress.leased > 0,
        )
        leading = asyncio.create_task(leader.run(), name="orchestrator")
        with self._signals(leader), self._owner_let_in(leader, owners_token):
            working = asyncio.create_task(self._work_to_the_end(leader, leading, crew))
            if not await _first(working, self._at_once.wait()):
                problem = await working
                return self._outcome(leader, problem)
        await self._stop_at_once(leader, leading, working, crew)
        raise CommandFailed(
            "stopped at once; the same command goes on from what is safe", EXIT_INTERRUPTED
        )

    async def _work_to_the_end(
        self, leader: Orchestrator, leading: asyncio.Task[None], crew: Crew
    ) -> str | None:
        """Return, when all is wound up, what ended the run early, or None."""
        try:
            return await self._work(leader, leading, crew)
        finally:
            leader.drain()
            crew.terminate()
            await crew.end(_WORKERS_EXIT_SECONDS)
            await leading

    async def _work(
        self, leader: Orchestrator, leading: asyncio.Task[None], crew: Crew
    ) -> str | None:
        """Wait for the end, with workers if there is anything for them; return what went wrong."""
        for condition in (leader.ready, leader.something_to_do):
            if await _first(leading, condition.wait()) is False:
                return None
        if leader.finished.is_set() or self._stopping:
            return None
        crew.arguments = self._worker_arguments(leader)
        self._tell(self._opening())
        self._tell(self._plan.gpus.note)
        await crew.start()
        watching = asyncio.create_task(crew.watch(), name="workers")
        timing = asyncio.create_task(self._note_when_loaded(leader), name="timing")
        async with progress_shown(self._console, lambda: self._moment(leader)):
            await _first_of(leading, watching, leader.finished.wait())
            if leader.finished.is_set():
                # Workers leave when they are told; one that only starts is not told for seconds.
                await asyncio.wait({leading, watching}, timeout=_FAREWELL_SECONDS)
        timing.cancel()
        if not watching.done():
            watching.cancel()
            return None
        # Its owner may have ended it from elsewhere, too.
        if leader.finished.is_set() or self._stopping or leader.draining:
            return None
        return watching.result() or (
            "the workers ended before every image was done; the same command goes on from here"
        )

    async def _note_when_loaded(self, leader: Orchestrator) -> None:
        """Wait until a worker is ready to begin: only then does it take a lease."""
        while not leader.progress.leased:  # noqa: ASYNC110  -- a change of the ledger is no event
            await asyncio.sleep(_LOOK_SECONDS)
        self._loaded = time.monotonic()

    def _outcome(self, leader: Orchestrator, problem: str | None) -> Outcome:
        now = time.monotonic()
        loaded = now if self._loaded is None else self._loaded
        seconds, loading = now - self._began, loaded - self._began
        return Outcome(
            leader.progress, leader.left_out, seconds, loading, problem, leader.videos_left_out
        )

    async def _stop_at_once(
        self,
        leader: Orchestrator,
        leading: asyncio.Task[None],
        working: asyncio.Task[str | None],
        crew: Crew,
    ) -> None:
        crew.kill()
        leader.stop()
        await asyncio.wait({leading}, timeout=_AT_ONCE_SECONDS)
        working.cancel()
        await asyncio.wait({working}, timeout=_AT_ONCE_SECONDS)
        if not leading.done():
            # A thread that writes cannot be cancelled, and the interpreter would wait for it.
            sys.stderr.flush()
            os._exit(EXIT_INTERRUPTED)

    def _worker_arguments(self, leader: Orchestrator) -> list[str]:
        return [
            "--server",
            f"ws://127.0.0.1:{leader.port}",
            "--token",
            f"env:{TOKEN_VARIABLE}",
            "--when-finished",
            "shutdown",
            "--exit-with-parent",
            *self._plan.worker_arguments,
        ]

    @contextlib.contextmanager
    def _owner_let_in(self, leader: Orchestrator, token: str) -> Iterator[None]:
        """Let `caption-flow status --data-dir` and the like find the run while it goes on."""
        data_dir = self._plan.data_dir

        async def write() -> None:
            await leader.ready.wait()
            server = address_on_this_machine("127.0.0.1", leader.port or 0, tls=False)
            with contextlib.suppress(OSError):  # the run does without
                await asyncio.to_thread(write_access, data_dir, Access(server, token))

        writing = asyncio.create_task(write(), name="owner's access")
        try:
            yield
        finally:
            writing.cancel()
            remove_access(data_dir, token)

    @contextlib.contextmanager
    def _signals(self, leader: Orchestrator) -> Iterator[None]:
        """First signal: drain. Second: stop at once."""
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if self._stopping:
                self._at_once.set()
                return
            self._stopping = True
            self._tell("Stopping: finishing what is in flight. Ctrl-C again stops at once.")
            leader.drain()

        handled = (signal.SIGINT, signal.SIGTERM)
        for number in handled:
            loop.add_signal_handler(number, on_signal)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    # ------------------------------------------------------------------ showing

    def _tell(self, sentence: str | None) -> None:
        if sentence is not None:
            self._console.print(sentence, soft_wrap=True)

    def _opening(self) -> str:
        plan = self._plan
        models = ", ".join(dict.fromkeys(stage.model for stage in plan.config.recipe().stages))
        with_what = models if plan.engine != "synthetic" else f"the {plan.engine} engine"
        what = f"Captioning {plan.dataset_name} with {with_what}: {plan.workers}"
        return f"{what}, logs in {for_people(plan.data_dir / 'logs')}"

    def _moment(self, leader: Orchestrator) -> Moment:
        return Moment(
            leader.progress,
            time.monotonic() - self._began,
            trouble=leader.trouble is not None,
            stopping=self._stopping,
            paused="admin" in leader.held,
        )

    # ------------------------------------------------------------------ the end

    def _export(self) -> ExportReport | None:
        plan = self._plan
        try:
            if plan.texts_file is not None:
                contents = self._contents(partial(StorageReader, plan.data_dir))
                return None if contents is None else export_jsonl(contents, plan.texts_file)
            return self._export_texts(plan.folder or plan.destination)
        except (ExportError, StorageError, OSError) as error:
            raise CommandFailed(
                f"the captions are safe in {for_people(plan.data_dir)}, but the "
                f"{'.txt files' if plan.texts_file is None else 'texts'} "
                f"could not all be written: {error}"
            ) from error

    def _contents(self, read: Callable[[], StorageReader]) -> StorageContents | None:
        """Return the run's rows, as ``read`` has them; None if there are none yet."""
        with contextlib.closing(StorageReader(self._plan.data_dir)) as reader:
            if not reader.columns:
                return None
            return StorageContents.reading(
                Selection(read),
                columns=list(reader.columns),
                output_fields=list(reader.output_fields),
                total_rows=reader.count_rows(),
            )

    def _export_texts(self, folder: Path) -> ExportReport | None:
        """Write a ``.txt`` for each image that is still in a folder."""
        plan = self._plan
        contents = self._contents(partial(PresentRows, plan.data_dir, folder))
        if contents is None:
            return None
        with self._earlier_texts() as earlier:
            return export_txt(
                contents,
                plan.destination,
                wording=Wording((plan.export_column,)),
                existing=plan.existing,  # type: ignore[arg-type]  # one of the three by its enum
                earlier=earlier,
            )

    @contextlib.contextmanager
    def _earlier_texts(self) -> Iterator[Exported | None]:
        """Open the record of texts this run has written; without it, none of them is replaced."""
        with contextlib.ExitStack() as stack:
            earlier: Exported | None = None
            try:
                earlier = stack.enter_context(exported_from(self._plan.data_dir))
            except sqlite3.DatabaseError as error:
                self._tell(f"Which texts are ours is not known ({error}): all are left as they are")
            yield earlier


def _verdict(outcome: Outcome, findings: Findings) -> int:
    """Return the exit code of a run that went well enough; see `failures`."""
    if outcome.problem is not None:
        raise CommandFailed(outcome.problem)
    progress = outcome.progress
    if outcome.complete and progress.failed and not progress.captioned:
        first = findings.failures[0] if findings.failures else None
        why = f"; {first.name}: {first.reason}" if first is not None else ""
        raise CommandFailed(f"not one of the {progress.failed:,} images could be captioned{why}")
    if outcome.complete and progress.passed_over:
        raise CommandFailed(verdict(progress.passed_over))
    return EXIT_OK


async def _first_of(
    one: asyncio.Task[Any], other: asyncio.Task[Any], condition: Coroutine[Any, Any, object]
) -> None:
    """Wait for a condition, or the end of one of two tasks."""
    waiting = asyncio.ensure_future(condition)
    await asyncio.wait({one, other, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _first(task: asyncio.Task[Any], condition: Coroutine[Any, Any, object]) -> bool:
    """Wait for a condition or a task's end; False when it is the task that has ended."""
    waiting = asyncio.ensure_future(condition)
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if waiting.done():
        return True
    waiting.cancel()
    return False
