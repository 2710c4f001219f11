"""Columns from ``metadata.csv``, ``.jsonl`` or ``.parquet`` in a dataset's folders.

The convention is that of Hugging Face's imagefolder: a row's ``file_name`` is relative to the
folder of the metadata file. What prompts name is copied into a SQLite file in the run's folder,
once for each state of a metadata file, so that memory does not grow with the dataset. That file can
be lost: it is made anew. Blocking; callable from any thread.
"""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from caption_flow.orchestrator.sources.column_text import column_text

log = structlog.get_logger()

INDEX_FILE: Final = "metadata.sqlite3"
_FILE_NAME: Final = "file_name"
_NAMES: Final = (b"metadata.csv", b"metadata.jsonl", b"metadata.parquet")
_LAYOUT: Final = """
CREATE TABLE IF NOT EXISTS names (names TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS files (
    file INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB UNIQUE NOT NULL, size INTEGER,
    mtime_ns INTEGER, columns TEXT NOT NULL, is_checked INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS rows (
    path BLOB, file INTEGER, columns BLOB NOT NULL, PRIMARY KEY (path, file)
) WITHOUT ROWID;
"""
_LAYOUT_VERSION: Final = 2
_FIND: Final = """
SELECT rows.columns FROM rows JOIN files USING (file) WHERE rows.path = ?
ORDER BY length(files.path)
"""
_UNCHECKED: Final = """
SELECT DISTINCT rows.path FROM rows CROSS JOIN files USING (file)
WHERE rows.path > ? AND NOT files.is_checked ORDER BY rows.path LIMIT 1000
"""


class MetadataError(Exception):
    """A metadata file cannot be used; one sentence."""


class MetadataIndex:
    """What metadata files say of images, for the columns in ``names``."""

    def __init__(self, data_dir: Path, root: bytes, names: Sequence[str]) -> None:
        self._root = root
        self._names = tuple(names)
        self._lock = threading.Lock()
        self._connection = _open_index(data_dir / INDEX_FILE, self._names)
        self._chain: list[bytes] = []
        self.problems: list[str] = []
        """Sentences about metadata files that could not be used: one a file."""
        for known in [path for (path,) in self._connection.execute("SELECT path FROM files")]:
            self._read(known)
        # Once, however many files have changed: it goes through all rows.
        self._connection.execute("DELETE FROM rows WHERE file NOT IN (SELECT file FROM files)")
        self._connection.commit()

    def enter(self, path: bytes) -> None:
        """Read the metadata of the folders an image lies in; images come in the order of `scan`."""
        parts = path.split(b"/")[:-1]
        chain = [b"/".join(parts[:depth]) for depth in range(len(parts) + 1)]
        for depth, folder in enumerate(chain):
            # One path down is remembered, not all folders: a walk never returns to one it has left.
            if depth >= len(self._chain) or self._chain[depth] != folder:
                for name in _NAMES:
                    self._read(os.path.join(folder, name))  # noqa: PTH118  -- bytes
        self._chain = chain

    def find(self, path: bytes) -> dict[str, str | None]:
        """Return the columns of an image; metadata nearer to it wins."""
        found: dict[str, str | None] = {}
        with self._lock, closing(self._connection.execute(_FIND, (path,))) as rows:
            for (columns,) in rows:
                found.update(msgspec.msgpack.decode(columns))
        return found

    @property
    def columns(self) -> set[str]:
        """All columns of the metadata files read so far, whether prompts name them or not."""
        with self._lock, closing(self._connection.execute("SELECT columns FROM files")) as rows:
            return {name for (columns,) in rows for name in json.loads(columns)}

    def unchecked(self) -> Iterator[bytes]:
        """Yield the images that metadata read since `checked` names, in order.

        Other calls may come in between.
        """
        after = b""
        while self._has_unchecked():
            with self._lock:
                batch = [path for (path,) in self._connection.execute(_UNCHECKED, (after,))]
            if not batch:
                return
            yield from batch
            after = batch[-1]

    def _has_unchecked(self) -> bool:
        query = "SELECT EXISTS (SELECT * FROM files WHERE NOT is_checked)"
        with self._lock:
            return bool(self._connection.execute(query).fetchone()[0])

    def checked(self) -> None:
        """Remember that whatever `unchecked` yields has been looked for."""
        with self._lock:
            self._connection.execute("UPDATE files SET is_checked = 1")
            self._connection.commit()

    def close(self) -> None:
        """Close the index; idempotent."""
        with self._lock:
            self._connection.close()

    def _read(self, path: bytes) -> None:
        """Bring the index up to what one metadata file says now; it may be gone."""
        file = os.path.join(self._root, path)  # noqa: PTH118  -- bytes
        facts: tuple[int, int] | None = None
        with suppress(OSError):
            status = os.stat(file)  # noqa: PTH116  -- bytes
            facts = (status.st_size, status.st_mtime_ns)
        query = "SELECT size, mtime_ns FROM files WHERE path = ?"
        with self._lock:
            if self._connection.execute(query, (path,)).fetchone() == facts:
                return
            self._forget(path)
            if facts is None:
                return
            try:
                self._take_in(path, file, facts)
                self._connection.commit()
            except (MetadataError, OSError, UnicodeError) as error:
                self._connection.rollback()
                sentence = f"{os.fsencode(path).decode('utf-8', 'backslashreplace')}: {error}"
                self.problems.append(sentence)
                log.warning("a metadata file is passed over", reason=sentence)

    def _forget(self, path: bytes) -> None:
        """Forget a file; its rows count no more, and are removed when the index is next opened."""
        self._connection.execute("DELETE FROM files WHERE path = ?", (path,))
        self._connection.commit()

    def _take_in(self, path: bytes, file: bytes, facts: tuple[int, int]) -> None:
        columns, rows = _READERS[os.path.splitext(path)[1]](file, self._names)  # noqa: PTH122
        if _FILE_NAME not in columns:
            raise MetadataError(
                f"it has no column {_FILE_NAME}, which names the image relative to its folder; "
                f"it has {', '.join(columns) or 'none'}"
            )
        number = self._connection.execute(
            "INSERT INTO files (path, size, mtime_ns, columns) VALUES (?, ?, ?, ?)",
            (path, *facts, json.dumps(columns)),
        ).lastrowid
        folder = os.path.dirname(path)  # noqa: PTH120  -- bytes
        self._connection.executemany(
            "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)",
            (
                (_within(folder, row.get(_FILE_NAME)), number, self._packed(row))
                for row in rows
                if row.get(_FILE_NAME)
            ),
        )

    def _packed(self, row: dict[str, Any]) -> bytes:
        return msgspec.msgpack.encode(
            {name: column_text(row[name]) for name in self._names if name in row}
        )


def was_made_for(data_dir: Path, names: Sequence[str]) -> bool:
    """Say whether a run's index is there and for these columns; none is needed for none."""
    path = data_dir / INDEX_FILE
    if not names:
        return True
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as index:
            found: list[Any] = index.execute("SELECT names FROM names").fetchall()
    except sqlite3.DatabaseError:
        return False
    return found == [(json.dumps(sorted(names)),)]


def _open_index(path: Path, names: Sequence[str]) -> sqlite3.Connection:
    """Open the index, empty if it was made for other columns or is damaged."""
    wanted = json.dumps([_LAYOUT_VERSION, *sorted(names)])
    try:
        connection = _connected(path)
        if connection.execute("SELECT names FROM names").fetchall() == [(wanted,)]:
            return connection
        connection.close()
    except sqlite3.DatabaseError as error:
        log.warning("the index of metadata is made anew", reason=str(error))
    path.unlink(missing_ok=True)
    connection = _connected(path)
    connection.execute("INSERT INTO names VALUES (?)", (wanted,))
    connection.commit()
    return connection


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        # What a crash destroys is made anew.
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(_LAYOUT)
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _within(folder: bytes, name: object) -> bytes:
    """Return the path within the dataset of the image that a row names."""
    joined = os.path.join(folder, os.fsencode(str(name)))  # noqa: PTH118  -- bytes
    return os.path.normpath(joined)


_Rows = tuple[list[str], Iterator[dict[str, Any]]]


def _read_csv(file: bytes, names: Sequence[str]) -> _Rows:
    del names
    return _csv_columns(file), _csv_rows(file)


def _csv_columns(file: bytes) -> list[str]:
    with _text_of(file) as lines:
        return list(csv.DictReader(lines).fieldnames or ())


def _csv_rows(file: bytes) -> Iterator[dict[str, Any]]:
    with _text_of(file) as lines:
        try:
            yield from csv.DictReader(lines)
        except csv.Error as error:
            raise MetadataError(f"it is no valid CSV: {error}") from error


def _read_jsonl(file: bytes, names: Sequence[str]) -> _Rows:
    del names
    first = next(_json_rows(file), {})
    return list(first), _json_rows(file)


def _json_rows(file: bytes) -> Iterator[dict[str, Any]]:
    with _text_of(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise MetadataError(f"line {number} is no valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise MetadataError(f"line {number} is no JSON object")
            yield row


def _read_parquet(file: bytes, names: Sequence[str]) -> _Rows:
    try:
        with pq.ParquetFile(os.fsdecode(file)) as parquet:
            columns = list(parquet.schema_arrow.names)
    except pa.ArrowException as error:
        raise MetadataError(f"it is no valid Parquet file: {error}") from error
    return columns, _parquet_rows(file, [c for c in columns if c in {_FILE_NAME, *names}])


def _parquet_rows(file: bytes, columns: list[str]) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(os.fsdecode(file)) as parquet:
            for batch in parquet.iter_batches(1000, columns=columns):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise MetadataError(f"it cannot be read: {error}") from error


def _text_of(file: bytes) -> Any:
    # Names of any bytes come through as they would from the file system.
    return open(file, encoding="utf-8-sig", errors="surrogateescape", newline="")  # noqa: PTH123


_READERS: Final = {b".csv": _read_csv, b".jsonl": _read_jsonl, b".parquet": _read_parquet}
