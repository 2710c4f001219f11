"""What a command says when a run's folder cannot be used."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caption_flow.cli.failures import CommandFailed, usage_error
from caption_flow.storage.database import LEDGER_FILE, damaged
from caption_flow.storage.errors import StorageBusyError, StorageError


@contextmanager
def storage_failures(data_dir: Path) -> Iterator[None]:
    """End the command with a sentence for whatever is wrong with the folder's ledger and parts.

    That somebody else is using it is the caller's mistake; that it is damaged is not.
    """
    try:
        yield
    except StorageBusyError as error:
        usage_error(error)
    except StorageError as error:
        raise CommandFailed(str(error)) from error
    except sqlite3.DatabaseError as error:
        # Damage that no check at the start comes across, only whoever reads that very page.
        raise CommandFailed(str(damaged(data_dir / LEDGER_FILE, error))) from error
