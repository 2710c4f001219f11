"""``caption-flow retry-failed``: put failed items back so that they are tried again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Final

import typer

from caption_flow.cli.asking import LONG_ANSWER_SECONDS
from caption_flow.cli.connecting import Where, connects
from caption_flow.cli.failures import CommandFailed, usage_error
from caption_flow.cli.folders import for_people
from caption_flow.cli.local_access import read_access
from caption_flow.cli.logs import configure_logging
from caption_flow.cli.steering import steer
from caption_flow.protocol.messages import RetryFailed
from caption_flow.storage.database import LEDGER_FILE
from caption_flow.storage.errors import StorageBusyError, StorageError
from caption_flow.storage.reopen import Opened
from caption_flow.storage.store import RunStore

DEFAULT_DATA_DIR: Final = Path("./caption_data")


@connects
def retry_failed(
    where: Where,
    kind: Annotated[
        str | None, typer.Option(help="Only failures of this kind, such as quarantined.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Put failed items back, so that they are tried again. Captioned items are not touched.

    With --server (or --config), a running orchestrator is asked, and the run goes on with them.
    Otherwise none may be running on the folder (--data-dir, or else ./caption_data), and the next
    run tries them.
    """
    configure_logging("retry-failed", verbose=verbose)
    if where.server is not None or where.config is not None:
        steer(where, RetryFailed(kind), seconds=LONG_ANSWER_SECONDS)
        return
    data_dir = where.data_dir or DEFAULT_DATA_DIR
    if not (data_dir / LEDGER_FILE).is_file():
        usage_error(f"{data_dir} holds no run; --data-dir names the run's folder")
    try:
        opened, known = asyncio.run(_retry(data_dir, kind))
    except StorageBusyError as error:
        raise CommandFailed(_ask_instead(data_dir, error)) from error
    except StorageError as error:
        raise CommandFailed(str(error)) from error
    if not opened.counts and kind is not None and known:
        usage_error(f"--kind {kind}: no item failed so; there are {', '.join(sorted(known))}")
    count = sum(opened.counts.values())
    kinds = ", ".join(f"{name}: {rows}" for name, rows in sorted(opened.counts.items()))
    print(
        f"{count} items put back{f' ({kinds})' if kinds else ''}; start the run again to try them"
    )


def _ask_instead(data_dir: Path, busy: StorageBusyError) -> str:
    """Say that somebody runs on the folder, and how to have them do it."""
    access = read_access(data_dir)
    server = "ws://HOST:PORT" if access is None else access.server
    folder = for_people(data_dir)
    return (
        f"{folder} is in use by an orchestrator (pid {busy.pid} on {busy.host}), which can be "
        f"asked: caption-flow retry-failed --server {server} "
        + (f"--data-dir {folder}" if access is not None else "--token file:ADMIN_TOKEN")
    )


async def _retry(data_dir: Path, kind: str | None) -> tuple[Opened, set[str]]:
    store = await asyncio.to_thread(RunStore, data_dir)
    store.start(lambda _trouble: None)
    try:
        known = {name for name in store.snapshot.totals if name != "captioned"}
        return await store.reopen_failures(kind), known
    finally:
        await store.close()
