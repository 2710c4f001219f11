"""``caption-flow verify`` and ``scan-chunks``: check what lies on disk."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console

from caption_flow.cli.failures import EXIT_FAILED, EXIT_OK, CommandFailed, usage_error
from caption_flow.cli.logs import configure_logging
from caption_flow.storage.errors import StorageError
from caption_flow.storage.store import RunStore
from caption_flow.storage.verify import Findings
from caption_flow.storage.verify import verify as inspect

log = structlog.get_logger()

DataDir = Annotated[Path, typer.Option(help="Folder of the run (storage.data_dir).")]


def verify(
    data_dir: DataDir = Path("./caption_data"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Check every promise on what lies on disk: each item once, each part whole and named.

    Reads everything and changes nothing; works beside a running orchestrator. Exit code 1 if any
    promise is broken.
    """
    configure_logging("verify", verbose=verbose)
    raise typer.Exit(_report(_findings(data_dir), as_json=as_json))


def scan_chunks(
    data_dir: DataDir = Path("./caption_data"),
    checkpoint_dir: Annotated[
        Path | None, typer.Option(help="Accepted; the ledger in --data-dir is the only record.")
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Also remove what a crash left beside the parts.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """The older name of `verify`.

    Unfinished work needs no fixing: it is handed out again when the orchestrator starts.
    """
    configure_logging("scan-chunks", verbose=verbose)
    if checkpoint_dir is not None:
        log.warning("--checkpoint-dir has no effect: the ledger in --data-dir is the only record")
    findings = _findings(data_dir)
    if fix and findings.debris and not findings.breached:
        try:
            # Opening a run for writing removes what a crash left, and nothing else.
            RunStore(data_dir).release()
        except StorageError as error:
            raise CommandFailed(str(error)) from error
        findings = _findings(data_dir)
    raise typer.Exit(_report(findings, as_json=False))


def _findings(data_dir: Path) -> Findings:
    if not data_dir.is_dir():
        usage_error(f"there is no folder {data_dir}; --data-dir names the run's folder")
    try:
        return inspect(data_dir)
    except StorageError as error:
        raise CommandFailed(str(error)) from error


def _report(findings: Findings, *, as_json: bool) -> int:
    out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    code = EXIT_FAILED if findings.breached else EXIT_OK
    if as_json:
        out.print(json.dumps(asdict(findings) | {"pending": findings.pending}, default=str))
        return code
    kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(findings.failed.items()))
    out.print(f"items      {findings.listed} listed")
    out.print(f"captioned  {findings.captioned}")
    out.print(f"failed     {sum(findings.failed.values())}{f' ({kinds})' if kinds else ''}")
    between = f", {findings.between} of them between stages" if findings.between else ""
    out.print(f"pending    {findings.pending}{between}, {findings.leases} leases remembered")
    out.print(
        f"parts      {findings.parts}, {findings.part_bytes} bytes; "
        f"{findings.buffered_rows} rows not in a part yet"
    )
    if findings.debris:
        out.print(f"debris     {', '.join(findings.debris)} (no row of the run; harmless)")
    for sentence in findings.breaches:
        out.print(f"BREACH     {sentence}")
    if findings.breached > len(findings.breaches):
        out.print(f"BREACH     … and {findings.breached - len(findings.breaches)} more")
    out.print("every promise holds" if not findings.breached else f"{findings.breached} breaches")
    return code
