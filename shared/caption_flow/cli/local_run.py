"""One run on this machine: an orchestrator in this process, workers beside it, then the export."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, Final

import uvloop
from rich.console import Console

from caption_flow.cli.crew import TOKEN_VARIABLE, Crew
from caption_flow.cli.failures import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    CommandFailed,
    usage_error,
)
from caption_flow.cli.folders import for_people
from caption_flow.cli.job_report import JobReport
from caption_flow.cli.local_access import (
    NAME,
    Access,
    address_on_this_machine,
    remove_access,
    write_access,
)
from caption_flow.cli.logs import log_to, say_in_log
from caption_flow.cli.passed_over import verdict
from caption_flow.cli.plan import Plan, note_on_recipe
from caption_flow.cli.progress_view import Moment, progress_shown
from caption_flow.cli.run_texts import write_texts
from caption_flow.cli.stores import storage_failures
from caption_flow.cli.summary import Findings, Outcome, look_at_rows, summary
from caption_flow.orchestrator.assembly import assemble
from caption_flow.orchestrator.server.server import ServerError
from caption_flow.orchestrator.service import Orchestrator
from caption_flow.orchestrator.sources.base import SourceError

_WORKERS_EXIT_SECONDS: Final = 10.0
_FAREWELL_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 0.1
_AT_ONCE_SECONDS: Final = 2.0
"""How long a second Ctrl-C lets Parquet be written; results are safe in the ledger before that."""
_STOPPED_AT_ONCE: Final = "stopped at once; the same command goes on from what is safe"
_STOPPED_WRITING: Final = "stopped while the texts were written; the same command writes the rest"
_REPORT_SECONDS: Final = 5.0


class LocalRun:
    """Drives one run from start to summary."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._began = time.monotonic()
        self._loaded: float | None = None
        self._report = JobReport(plan)
        self._stopping = False
        self._at_once = asyncio.Event()

    def run(self) -> int:
        """Run to the end, or until interrupted; return the exit code."""
        try:
            code = self._run()
        except CommandFailed as failure:
            self._end(failure.code, str(failure))
            raise
        except BrokenPipeError:
            self._end(EXIT_OK)  # whoever read the summary has gone; all is done
            raise
        except KeyboardInterrupt:
            self._end(EXIT_INTERRUPTED, _STOPPED_WRITING)
            raise CommandFailed(_STOPPED_WRITING, EXIT_INTERRUPTED) from None
        except BaseException as error:
            self._end(EXIT_FAILED, f"{type(error).__name__}: {error}")
            raise
        self._end(code)
        return code

    def _run(self) -> int:
        with storage_failures(self._plan.data_dir):
            self._tell(self._plan.says_what_was_replaced)
            for note in self._plan.notes:
                self._tell(note)
            self._note(note_on_recipe(self._plan.config))
            try:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    outcome = runner.run(self._lead())
            except (SourceError, ServerError) as error:
                usage_error(error)
            # From here on, too, whoever ends it is told by the report that it has ended.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            findings = look_at_rows(self._plan)
        self._report.note_rows(findings)
        texts = write_texts(self._plan, self._tell)
        if texts is not None:
            self._report.note_export("txt" if self._plan.texts_file is None else "jsonl", texts)
        for line in summary(self._plan, outcome, texts, findings):
            print(line)
        return _verdict(outcome, findings)

    def _end(self, code: int, error: str | None = None) -> None:
        if error is not None:
            say_in_log(f"Error: {error}", level="error")
        self._report.end(code, error)

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
            plan.logs,
            self._tell,
            is_at_work=lambda: leader.progress.leased > 0,
        )
        leading = asyncio.create_task(leader.run(), name="orchestrator")
        await self._begin_job(leader, leading, {"worker": token, "admin": owners_token})
        with (
            self._signals(leader),
            self._owner_let_in(leader, owners_token),
            self._reported(leader),
        ):
            working = asyncio.create_task(self._work_to_the_end(leader, leading, crew))
            if not await _first(working, self._at_once.wait()):
                problem = await working
                outcome = self._outcome(leader, problem)
                self._report.look(outcome)
                return outcome
        await self._stop_at_once(leader, leading, working, crew)
        raise CommandFailed(_STOPPED_AT_ONCE, EXIT_INTERRUPTED)

    async def _begin_job(
        self, leader: Orchestrator, leading: asyncio.Task[None], tokens: Mapping[str, str]
    ) -> None:
        """Lay the workspace out, if there is one: not before it is known to be this run's."""
        workspace = self._plan.workspace
        if workspace is not None:
            try:
                workspace.begin(self._plan.job_config, tokens)
                log_to(workspace.logs / "orchestrator.log")
            except OSError as error:
                leader.stop()
                await leading
                why = error.strerror or error
                raise CommandFailed(
                    f"the workspace {for_people(workspace.folder)} cannot be written: {why}"
                ) from error
        self._report.begin()

    @contextlib.contextmanager
    def _reported(self, leader: Orchestrator) -> Iterator[None]:
        """Keep the report up to date, so that it is nearly true also of a run that was killed."""

        async def report() -> None:
            while True:
                # Here and not in a thread, which could still be writing when the last word is said.
                self._report.look(self._outcome(leader, None))
                await asyncio.sleep(_REPORT_SECONDS)

        reporting = asyncio.create_task(report(), name="report")
        try:
            yield
        finally:
            reporting.cancel()

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
        self._note(self._plan.gpus.note)
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
        self._report.look(self._outcome(leader, None))
        if not leading.done():
            # A thread that writes cannot be cancelled, and the interpreter would wait for it.
            self._end(EXIT_INTERRUPTED, _STOPPED_AT_ONCE)
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
            say_in_log(sentence)

    def _note(self, sentence: str | None) -> None:
        """Tell something that whoever reads the report should hear, too."""
        if sentence is not None:
            self._tell(sentence)
            self._report.note(sentence)

    def _opening(self) -> str:
        plan = self._plan
        models = ", ".join(dict.fromkeys(stage.model for stage in plan.config.recipe().stages))
        with_what = models if plan.engine != "synthetic" else f"the {plan.engine} engine"
        what = f"Captioning {plan.dataset_name} with {with_what}: {plan.workers}"
        return f"{what}, logs in {for_people(plan.logs)}"

    def _moment(self, leader: Orchestrator) -> Moment:
        return Moment(
            leader.progress,
            time.monotonic() - self._began,
            trouble=leader.trouble is not None,
            stopping=self._stopping,
            paused="admin" in leader.held,
        )


def _verdict(outcome: Outcome, findings: Findings) -> int:
    """Return the exit code of a run that went well enough; see `failures`."""
    if outcome.problem is not None:
        raise CommandFailed(outcome.problem)
    progress = outcome.progress
    if outcome.complete and progress.failed and not progress.captioned:
        first = findings.failures[0] if findings.failures else None
        why = f"; {first.name}: {for_people(first.reason)}" if first is not None else ""
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
