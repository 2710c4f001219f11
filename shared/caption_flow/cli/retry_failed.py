"""``caption-flow retry-failed``: put failed items back so that the next run tries them again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from caption_flow.cli.failures import CommandFailed, usage_error
from caption_flow.cli.logs import configure_logging
from caption_flow.storage.database import LEDGER_FILE
from caption_flow.storage.errors import StorageError
from caption_flow.storage.reopen import Opened
from caption_flow.storage.store import RunStore


def retry_failed(
    data_dir: Annotated[Path, typer.Option(help="Folder of the run (storage.data_dir).")] = Path(
        "./caption_data"
    ),
    kind: Annotated[
        str | None, typer.Option(help="Only failures of this kind, such as quarantined.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Put failed items back: the next run tries them again. Captioned items are not touched.

    The orchestrator must not be running on the folder.
    """
    configure_logging("retry-failed", verbose=verbose)
    if not (data_dir / LEDGER_FILE).is_file():
        usage_error(f"{data_dir} holds no run; --data-dir names the run's folder")
    try:
        opened, known = asyncio.run(_retry(data_dir, kind))
    except StorageError as error:
        raise CommandFailed(str(error)) from error
    if not opened.counts and kind is not None and known:
        usage_error(f"--kind {kind}: no item failed so; there are {', '.join(sorted(known))}")
    count = sum(opened.counts.values())
    kinds = ", ".join(f"{name}: {rows}" for name, rows in sorted(opened.counts.items()))
    print(
        f"{count} items put back{f' ({kinds})' if kinds else ''}; start the run again to try them"
    )


async def _retry(data_dir: Path, kind: str | None) -> tuple[Opened, set[str]]:
    store = await asyncio.to_thread(RunStore, data_dir)
    store.start(lambda _trouble: None)
    try:
        known = {name for name in store.snapshot.totals if name != "captioned"}
        return await store.reopen_failures(kind), known
    finally:
        await store.close()
