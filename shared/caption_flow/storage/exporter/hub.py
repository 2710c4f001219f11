"""A dataset of the hub: all rows as Parquet files, a card, and a list of what is ours.

Files go up a few at a time, as they are written, and into the repository with one commit at the
end: readers see the dataset as it was, or as it is, and nothing in between. An upload that broke
off is begun anew, and makes the same files, which the hub has already.

`MANIFEST` in the repository names our files by content. Only what is as it says is replaced or
removed; nobody else's data is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.errors import StorageBusyError
from caption_flow.storage.exporter.columns import require
from caption_flow.storage.exporter.errors import ExportError, naming
from caption_flow.storage.exporter.hub_card import CardFacts, StageFacts, merged_card
from caption_flow.storage.exporter.hub_client import (
    HubDataset,
    HubMistakeError,
    OvertakenError,
    Seen,
)
from caption_flow.storage.exporter.hub_shards import Shard, ShardWriter, Splitting
from caption_flow.storage.exporter.hub_tally import Tally
from caption_flow.storage.exporter.report import ExportReport, Skip
from caption_flow.storage.lock import FolderLock

MANIFEST: Final = ".caption-flow.json"
"""Hidden, so that nobody takes it for data."""
SPOOL: Final = "hub_spool"
CARD: Final = "README.md"
ALSO_READ: Final = (
    "shard",
    "split",
    "status",
    "error_kind",
    "flags",
    "stage_stats",
    "contributor",
    "models",
    "recipe",
)
"""Columns that splits and card are made of, whether they are written or not."""
_AT_ONCE: Final = 4
"""Files on the disk, and on their way."""
_COMMITS: Final = 5
"""Tries, where others change the repository meanwhile."""
_NO_DATA: Final = frozenset({".md", ".txt", ".cff", ".gitignore", ".gitattributes", ""})
_MOST_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Publication:
    """Where rows go, and what is said of them there.

    ``columns`` are those to write, all where it is empty; ``source`` is the dataset of the hub that
    was captioned, if it is one, and ``source_split`` its split.
    """

    repository: str
    private: bool = False
    license: str | None = None
    nsfw: bool = False
    tags: tuple[str, ...] = ()
    split: str | None = None
    columns: tuple[str, ...] = ()
    source: str | None = None
    source_split: str | None = None
    stages: tuple[StageFacts, ...] = ()
    keep_existing: bool = False
    optimize: bool = False
    shard_bytes: int = 128 * 2**20


def export_hub(contents: StorageContents, publication: Publication, data_dir: Path) -> ExportReport:
    """Upload every row; `SPOOL` in the run's folder holds what is on its way.

    Raises:
        HubMistakeError: the repository, or who is logged in, cannot be what is meant.
        ExportError: nothing to export, or the hub or the disk does not take it; readers of the
            repository still find what was there.
    """
    require(contents)
    hub = HubDataset(publication.repository)
    report = ExportReport(data_dir / SPOOL, address=hub.url)
    seen = hub.look()
    with closing(contents.iter_batches()) as batches:
        first = next(batches, None)
        if first is None:
            raise ExportError(f"no row is left to upload to {hub.name}")
        with _spool(data_dir) as spool:
            upload = _Upload(hub, publication, contents.output_fields, spool, report)
            if not upload.begin(seen):
                return report
            upload.write(chain([first], batches))
            upload.commit()
    return report


@contextmanager
def _spool(data_dir: Path) -> Iterator[Path]:
    """Yield an empty folder that is nobody else's, and is gone afterwards."""
    folder = data_dir / SPOOL
    with naming(folder):
        folder.mkdir(exist_ok=True)
        try:
            lock = FolderLock(folder)
        except StorageBusyError as error:
            raise ExportError(
                f"another export is uploading from {data_dir} (pid {error.pid} on {error.host}): "
                "wait for it, or stop it"
            ) from error
    try:
        with naming(folder):
            for left in folder.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
            files = folder / "files"
            files.mkdir()
        yield files
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


@dataclass(slots=True)
class _Upload:
    """One upload: what is at the hub, what is on its way there, and what is to be committed."""

    hub: HubDataset
    publication: Publication
    output_fields: list[str]
    spool: Path
    report: ExportReport
    tally: Tally = field(default_factory=Tally)
    shards: list[Shard] = field(default_factory=list)
    waiting: list[Shard] = field(default_factory=list)
    additions: dict[str, Any] = field(default_factory=dict)
    """By path: what the hub had not in the repository yet."""
    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    seen: Seen | None = None
    manifest: Mapping[str, Any] | None = None

    def begin(self, seen: Seen | None) -> bool:
        """Make sure that the rows may go there; False where what is there is to be left."""
        wants_private = self.publication.private
        if seen is not None and wants_private and not seen.private:
            raise HubMistakeError(
                f"{self.hub.name} is public, and an export changes no repository's visibility: "
                f"make it private at {self.hub.url}/settings, or drop --private"
            )
        if seen is None:
            self.hub.create(private=wants_private)
            seen = self.hub.look()
            if seen is None:
                raise ExportError(f"{self.hub.url} was made, and cannot be found")
            self._note(f"{self.hub.name} is new, and {_visibility(seen)}")
        elif seen.private and not wants_private:
            self._note(f"{self.hub.name} is private, and stays so")
        self._take(seen)
        if self.publication.keep_existing and self.manifest is not None:
            self.report.skip(Skip.EXISTING)
            return False
        self.hub.require_writable()
        preview = merged_card(self._card(), self._facts())
        self.hub.require_valid(preview)
        return True

    def write(self, batches: Iterator[pa.RecordBatch]) -> None:
        """Write all rows into files, and bring these to the hub."""
        splitting = Splitting(self.publication.split, self.publication.source_split)
        writer: ShardWriter | None = None
        try:
            for batch in batches:
                rows = self._chosen(batch)
                if writer is None:
                    self.schema = rows.schema
                    writer = ShardWriter(
                        self.spool,
                        self.schema,
                        shard_bytes=self.publication.shard_bytes,
                        optimize=self.publication.optimize,
                    )
                self.tally.add(batch, self._fields())
                for split, of_split in splitting.of(batch):
                    self.tally.splits[split] += of_split.num_rows
                    for shard in writer.add(split, self._chosen(of_split)):
                        self._bring(shard)
            for shard in writer.finish() if writer is not None else ():
                self._bring(shard)
            self._flush()
        finally:
            if writer is not None:
                writer.abandon()

    def commit(self) -> None:
        """Put everything into the repository at once."""
        for _ in range(_COMMITS):
            operations = self._operations()
            if not operations:
                break
            try:
                commit = self.hub.commit(
                    operations, message=_message(self.tally), parent=self._there().commit
                )
            except OvertakenError:
                self._look_again()
                continue
            self._note(f"{self.hub.url}/commit/{commit}")
            break
        else:
            raise ExportError(f"others go on changing {self.hub.name}: try again later")
        if not operations:
            self._note("everything was there already: no commit was needed")
        if self.publication.license is None and "\nlicense:" not in (self._card() or ""):
            self._note("the card names no license: --license, such as cc-by-4.0")

    # ------------------------------------------------------------------ rows

    def _chosen(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = self.publication.columns
        return batch.select(list(columns)) if columns else batch

    def _fields(self) -> list[str]:
        names = self.schema.names
        return [name for name in self.output_fields if name in names]

    def _bring(self, shard: Shard) -> None:
        """Take a file that is written: if the repository has it, that is all."""
        self.shards.append(shard)
        if self._has(shard):
            shard.file.unlink()
            self.report.unchanged += shard.rows
            return
        self.waiting.append(shard)
        if len(self.waiting) == _AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        """Upload what waits; what the hub keeps itself, and not git, is needed no more."""
        if not self.waiting:
            return
        for operation in self.hub.upload({shard.path: shard.file for shard in self.waiting}):
            self.additions[operation.path_in_repo] = operation
        for shard in self.waiting:
            if not self.additions[shard.path].path_or_fileobj:
                shard.file.unlink()
            self.report.written += shard.rows
        self.waiting = []

    # ------------------------------------------------------------------ the repository

    def _there(self) -> Seen:
        if self.seen is None:
            raise AssertionError("begin() comes first")
        return self.seen

    def _has(self, shard: Shard) -> bool:
        found = self._there().files.get(shard.path)
        return found is not None and found.has(shard.size, shard.sha256, shard.git)

    def _take(self, seen: Seen) -> None:
        """Go on from what is there; refuse what others have in our place."""
        self.seen = seen
        text = self._read(MANIFEST)
        self.manifest = None if text is None else _parsed(text)
        ours = self._ours()
        foreign = [path for path in seen.files if path not in ours]
        if self.manifest is None:
            in_the_way = [path for path in foreign if _is_data(path)]
        else:
            in_the_way = [path for path in foreign if path in self.manifest]
        in_the_way = sorted({*in_the_way, *(path for path in foreign if _is_in_place(path))})
        if in_the_way:
            more = ", …" if len(in_the_way) > _MOST_NAMED else ""
            raise HubMistakeError(
                f"{self.hub.name} has data that no export wrote "
                f"({', '.join(in_the_way[:_MOST_NAMED])}{more}): choose a repository of its own "
                "for the captions"
            )

    def _ours(self) -> set[str]:
        files = self._there().files
        return {
            path
            for path, facts in (self.manifest or {}).items()
            if path in files and files[path].has(facts["size"], facts["sha256"], facts["git"])
        }

    def _look_again(self) -> None:
        seen = self.hub.look()
        if seen is None:
            raise ExportError(f"{self.hub.name} was removed while it was uploaded to")
        self._take(seen)
        if lost := [
            one for one in self.shards if one.path not in self.additions and not self._has(one)
        ]:
            raise ExportError(
                f"{lost[0].path} was removed from {self.hub.name} meanwhile: export once more"
            )

    def _read(self, path: str) -> str | None:
        seen = self._there()
        if path not in seen.files:
            return None
        return self.hub.read(path, seen.commit, self.spool.parent / "read")

    def _card(self) -> str | None:
        return self._read(CARD)

    def _facts(self) -> CardFacts:
        publication = self.publication
        _, _, name = self.hub.name.rpartition("/")
        return CardFacts(
            name=name,
            schema=self.schema,
            output_fields=self._fields(),
            tally=self.tally,
            stages=publication.stages,
            source=publication.source,
            license=publication.license,
            nsfw=publication.nsfw,
            tags=publication.tags,
            splits=tuple(self.tally.splits) or ("train",),
        )

    def _operations(self) -> list[Any]:
        """Return what it takes to make the repository what it is to be; nothing where it is."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete  # noqa: PLC0415

        kept = {shard.path for shard in self.shards}
        operations: list[Any] = [
            self.additions[shard.path] for shard in self.shards if not self._has(shard)
        ]
        operations += [CommitOperationDelete(path) for path in sorted(self._ours() - kept)]
        texts = {
            CARD: (self._card(), merged_card(self._card(), self._facts())),
            MANIFEST: (self._read(MANIFEST), _manifest(self.shards)),
        }
        return operations + [
            CommitOperationAdd(path, after.encode())
            for path, (before, after) in texts.items()
            if before != after
        ]

    def _note(self, sentence: str) -> None:
        self.report.problems.append(sentence)


def _visibility(seen: Seen) -> str:
    return "private" if seen.private else "public"


def _message(tally: Tally) -> str:
    return f"Upload {tally.rows:,} rows with CaptionFlow"


def _is_in_place(path: str) -> bool:
    """Tell whether a file would be taken for one of ours by what the card says of them."""
    return path.startswith("captions/") and path.count("/") == 1 and path.endswith(".parquet")


def _is_data(path: str) -> bool:
    name = path.rpartition("/")[2]
    return not name.startswith(".") and Path(name).suffix.lower() not in _NO_DATA


def _manifest(shards: list[Shard]) -> str:
    files = {
        shard.path: {
            "rows": shard.rows,
            "size": shard.size,
            "sha256": shard.sha256,
            "git": shard.git,
        }
        for shard in sorted(shards, key=lambda one: one.path)
    }
    return json.dumps({"version": 1, "files": files}, indent=1) + "\n"


def _parsed(text: str) -> dict[str, Any] | None:
    """Return our files with their identities; None if somebody has changed the list by hand."""
    try:
        files = json.loads(text)["files"]
        return {
            str(path): {key: facts[key] for key in ("size", "sha256", "git")}
            for path, facts in files.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
