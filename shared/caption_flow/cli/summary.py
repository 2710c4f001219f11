"""What a run has come to, in a few lines."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from caption_flow.cli.folders import for_people
from caption_flow.cli.passed_over import told
from caption_flow.cli.plan import Plan, videos_skipped
from caption_flow.cli.progress_view import duration, rate
from caption_flow.incoming.captions import IMPORT_WORKER
from caption_flow.orchestrator.core.progress import Progress
from caption_flow.storage.exporter.report import ExportReport
from caption_flow.storage.parts import count_flags
from caption_flow.storage.reader import StorageReader

_SHOWN_FAILURES: Final = 10
_KEPT_FAILURES: Final = 100
"""For programs, which read them in a workspace's `report.json`."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed item and why; ``filename`` is None where items have none."""

    item: str
    filename: str | None
    kind: str
    reason: str

    @property
    def name(self) -> str:
        """What people call the item."""
        return for_people(self.filename or self.item)


@dataclass(slots=True)
class Findings:
    """What the rows say: the first failures, flags, how many are another recipe's or imported."""

    failures: list[Failure] = field(default_factory=list)
    of_other_recipes: int = 0
    imported: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    flagged: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended; ``left_out`` counts images that have a ``.txt`` and are not in the run.

    ``videos_left_out`` counts videos, which are not in it where nobody asked for them.
    ``loading_seconds`` passed before the first image was begun.
    """

    progress: Progress
    left_out: int
    seconds: float
    loading_seconds: float
    problem: str | None = None
    videos_left_out: int = 0

    @property
    def new(self) -> int:
        """Images done by this run."""
        return self.progress.done - self.progress.before

    @property
    def complete(self) -> bool:
        """Whether every image is captioned or failed."""
        return self.progress.listed and self.progress.done == self.progress.total


def look_at_rows(plan: Plan) -> Findings:
    """Go over a run's rows. Raises `StorageError`."""
    findings = Findings()
    recipe = plan.config.recipe()
    ours = pa.array([recipe.fingerprint, recipe.video_fingerprint])
    columns = ["filename", "item_key", "status", "error_kind", "error", "recipe"]
    columns += ["worker", "flags"]
    with closing(StorageReader(plan.data_dir)) as reader:
        for batch in reader.batches(None, columns) if reader.columns else ():
            made = batch.column("recipe").drop_null()  # none made what was imported
            findings.of_other_recipes += pc.sum(pc.invert(pc.is_in(made, ours))).as_py() or 0
            imported = pc.equal(batch.column("worker"), IMPORT_WORKER)
            findings.imported += pc.sum(imported).as_py() or 0
            findings.flags.update(count_flags(batch))
            lengths = pc.fill_null(pc.list_value_length(batch.column("flags")), 0)
            findings.flagged += pc.sum(pc.greater(lengths, 0)).as_py() or 0
            failed = batch.filter(pc.equal(batch.column("status"), "failed"))
            room = _KEPT_FAILURES - len(findings.failures)
            findings.failures += [
                Failure(row["item_key"], row["filename"], row["error_kind"], row["error"])
                for row in failed.slice(0, room).to_pylist()
            ]
    return findings


def summary(
    plan: Plan, outcome: Outcome, report: ExportReport | None, findings: Findings
) -> Iterator[str]:
    """Yield the lines that tell how it went."""
    progress = outcome.progress
    yield _headline(outcome)
    if outcome.videos_left_out:
        yield f"  {videos_skipped(outcome.videos_left_out)}"
    if not progress.done and not outcome.left_out:
        yield _line("logs", for_people(plan.logs))
        return
    imported = f"  ({findings.imported:,} of them imported)" if findings.imported else ""
    yield _line("captioned", f"{progress.captioned:,}{imported}")
    yield _line("failed", f"{progress.failed:,}{_kinds(progress.failures)}")
    if progress.passed_over:
        yield _line("not read", f"{_shards(progress)}, or not wholly")
    if findings.flagged:
        yield _line("flagged", f"{findings.flagged:,}{_kinds(findings.flags)}")
    if outcome.left_out:
        yield _line("left out", f"{outcome.left_out:,} have a .txt already (see --existing)")
    if report is not None:
        where = plan.texts_file or plan.destination
        yield _line("texts", f"{for_people(where)}  ({report.summary()})")
    if progress.done:
        yield _line("results", f"{for_people(plan.data_dir / 'captions')}  (Parquet)")
    yield from _where_more_is(plan, outcome)
    yield from _failed(plan, progress, findings)
    if progress.passed_over:
        yield "Not read, or not wholly:"
        yield from told(progress.passed_over)
    yield from _notes(plan, report, findings)


def _where_more_is(plan: Plan, outcome: Outcome) -> Iterator[str]:
    if outcome.new or outcome.problem is not None:
        yield _line("logs", for_people(plan.logs))
    if plan.workspace is not None:
        yield _line("report", for_people(plan.workspace.report))


def _headline(outcome: Outcome) -> str:
    progress, seconds = outcome.progress, outcome.seconds
    if outcome.complete and not outcome.new:
        if not progress.total:
            return f"Nothing to do: all {outcome.left_out:,} images have a .txt already."
        if progress.passed_over:
            return (
                f"Nothing new: {progress.total:,} images were done already, and "
                f"{_shards(progress)} could not be read, or not wholly."
            )
        return f"Nothing to do: all {progress.total:,} images were done already."
    took = duration(seconds) if seconds >= 10 else f"{seconds:.1f} s"
    if outcome.complete:
        images = f"{outcome.new:,} image{'' if outcome.new == 1 else 's'}"
        return f"Done: {images} in {took}{_pace(outcome)}."
    total = f"{progress.total:,}{'' if progress.listed else ' or more'}"
    return (
        f"Stopped after {took} with {progress.done:,} of {total} images done; "
        "the same command goes on from here."
    )


def _shards(progress: Progress) -> str:
    count = len(progress.passed_over)
    return f"{count:,} shard{'' if count == 1 else 's'}"


def _pace(outcome: Outcome) -> str:
    """Return the rate at which images were captioned, and how long that could not begin."""
    working = max(outcome.seconds - outcome.loading_seconds, 0.1)
    pace = rate(outcome.new / working)
    if outcome.loading_seconds < max(5.0, outcome.seconds / 4):
        return f" ({pace})"
    return f" ({pace} once the model was loaded, which took {duration(outcome.loading_seconds)})"


def _line(label: str, text: str) -> str:
    return f"  {label:<10} {text}"


def _kinds(counts: Mapping[str, int]) -> str:
    kinds = ", ".join(f"{kind}: {n:,}" for kind, n in sorted(counts.items()) if n)
    return f"  ({kinds})" if kinds else ""


def _failed(plan: Plan, progress: Progress, findings: Findings) -> Iterator[str]:
    if not findings.failures:
        return
    yield "Failed:"
    shown = findings.failures[:_SHOWN_FAILURES]
    width = min(40, max(len(failure.name) for failure in shown))
    for failure in shown:
        yield f"  {failure.name:<{width}}  {for_people(failure.reason)}"
    if progress.failed > len(shown):
        yield f"  … and {progress.failed - len(shown):,} more: rows with status failed"
    data_dir = shlex.quote(for_people(plan.data_dir))
    yield f"  (to try them again: caption-flow retry-failed --data-dir {data_dir})"


def _notes(plan: Plan, report: ExportReport | None, findings: Findings) -> Iterator[str]:
    if findings.of_other_recipes:
        option = "--data-dir" if plan.workspace is None else "--workspace"
        yield (
            f"Note: {findings.of_other_recipes:,} of these were asked for with another model, "
            f"other prompts, sampling or frames, and stay so; another {option} captions them anew."
        )
    for problem in report.problems if report is not None else ():
        yield f"Note: {for_people(problem)}"
