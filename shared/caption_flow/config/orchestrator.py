"""The orchestrator's configuration: where it listens, what is captioned, how, and into where."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator

from caption_flow.config.dataset import DatasetConfig
from caption_flow.config.secret import Secret
from caption_flow.config.section import (
    FilePath,
    Moment,
    Number,
    Section,
    Text,
    WholeNumber,
    unused,
)
from caption_flow.config.vllm import KeyPath, VllmConfig
from caption_flow.protocol.messages import TokenLimits
from caption_flow.recipe.stages import Recipe

Role = Literal["worker", "monitor", "admin"]
ROLES: Final[tuple[Role, ...]] = ("worker", "monitor", "admin")

_IN_MEMORY_BRIEFLY: Final = (
    "results go to disk as they arrive, and to Parquet by storage.caption_buffer_size"
)


class SslConfig(Section):
    """The server's certificate; with it, workers connect to `wss://`. New files need no restart."""

    cert: FilePath = Field(description="Certificate chain, a PEM file.")
    key: FilePath = Field(description="Private key, a PEM file.")


class TokenEntry(Section):
    """One token and whose it is."""

    token: Secret = Field(description="The token: literal, `env:NAME` or `file:PATH`.")
    name: str = Field(
        default="", description="Whose it is; shown to people, and recorded as contributor."
    )
    max_workers: WholeNumber | None = Field(
        default=None, ge=0, description="Workers that may use it at a time."
    )
    max_items: WholeNumber | None = Field(
        default=None,
        ge=0,
        description="Rows that may come from its workers in all, then they wait.",
    )
    expires: Moment | None = Field(
        default=None,
        description="Day (its end, UTC), or moment in UTC or with an offset, after which it lets "
        "nobody in and its sessions end: `2026-12-31`, `2026-12-31T18:00+02:00`.",
    )
    trust: Literal["full", "low"] = Field(
        default="full",
        description="`low` has a share of what its workers bring done again by others and compared "
        "(`spot_checks`).",
    )

    @property
    def limits(self) -> TokenLimits:
        """What its holder may do at most."""
        return TokenLimits(self.max_workers, self.max_items, self.expires, self.trust)


class SpotChecksConfig(Section):
    """How those are checked whose tokens have `trust: low`.

    Some of their items are captioned a second time, by a worker with another token, and the texts
    compared. The second text is not kept. Two texts agree as far as they have the same words: twice
    the number of words that are in both, divided by the number of words in the one and in the
    other, each word counted once.
    """

    share: Number = Field(
        default=0.02, ge=0, le=1, description="Share of their items that is checked, from 0 to 1."
    )
    threshold: Number = Field(
        default=0.45,
        ge=0,
        le=1,
        description="Mean agreement below which a contributor is flagged. It depends on prompt and "
        "sampling: look at `agreement` in the status before relying on it.",
    )
    min_samples: WholeNumber = Field(
        default=20, ge=1, description="Checks of a contributor before anything follows from them."
    )
    on_cheat: Literal["flag", "revoke"] = Field(
        default="flag",
        description="What becomes of a contributor below the threshold: `flag` says so in log and "
        "status; `revoke` also takes its tokens' rights away, ends its sessions, and has all its "
        "rows done again. Only checks made by workers of full trust revoke.",
    )


class AuthConfig(Section):
    """Who may connect, by role. An entry may also be the token alone, without a name."""

    worker_tokens: tuple[TokenEntry, ...] = Field(
        default=(), description="Tokens of those who caption."
    )
    monitor_tokens: tuple[TokenEntry, ...] = Field(
        default=(), description="Tokens of those who look on."
    )
    admin_tokens: tuple[TokenEntry, ...] = Field(
        default=(), description="Tokens of those who may also pause, reload and shut down."
    )

    @field_validator("worker_tokens", "monitor_tokens", "admin_tokens", mode="before")
    @classmethod
    def _name_entries(cls, entries: Any, info: ValidationInfo) -> Any:
        if not isinstance(entries, list | tuple):
            return entries
        role = str(info.field_name).removesuffix("_tokens")
        return [_named(entry, f"{role} {number}") for number, entry in enumerate(entries, 1)]

    def entries(self) -> Iterator[tuple[Role, TokenEntry]]:
        """Yield every token with its role."""
        for role in ROLES:
            entries: tuple[TokenEntry, ...] = getattr(self, f"{role}_tokens")
            for entry in entries:
                yield role, entry


class StorageConfig(Section):
    """Where results go."""

    data_dir: FilePath = Field(
        default=Path("./caption_data"),
        description="Folder of the run: its ledger, and `captions/` with the Parquet files.",
    )
    checkpoint_interval: Number = Field(
        default=60, gt=0, description="Seconds between checkpoints to Parquet."
    )
    caption_buffer_size: WholeNumber = Field(
        default=1000, ge=1, description="Rows that trigger a checkpoint before its time."
    )
    checkpoint_dir: FilePath | None = unused(
        "Folder of separate checkpoints.",
        "the ledger in storage.data_dir is the only record of what is done",
    )
    job_buffer_size: int | None = unused("Rows of jobs kept in memory.", _IN_MEMORY_BRIEFLY)
    contributor_buffer_size: int | None = unused(
        "Rows of contributors kept in memory.", _IN_MEMORY_BRIEFLY
    )


class OrchestratorConfig(Section):
    """One captioning run and the server that leads it."""

    host: Text = Field(
        default="127.0.0.1",
        description="Address to listen on; beyond this machine it takes `auth` and `ssl`.",
    )
    port: WholeNumber = Field(
        default=8765, ge=0, le=65535, description="Port to listen on; 0 takes any free one."
    )
    ssl: SslConfig | None = Field(default=None, description="Certificate, for `wss://`.")
    chunk_size: WholeNumber = Field(
        default=1000, ge=1, description="Items that are handed out together."
    )
    chunks_per_request: WholeNumber = Field(
        default=2, ge=1, description="Chunks a worker gets at a time."
    )
    chunk_buffer_multiplier: Number = Field(
        default=3,
        gt=0,
        description="Chunks kept ready for each worker. Accepted: a chunk is cut when it is asked "
        "for, so that all of them are always ready.",
    )
    min_chunk_buffer: WholeNumber = Field(
        default=10, ge=1, description="Chunks kept ready at least. Accepted, as above."
    )
    lease_seconds: Number = Field(
        default=120, gt=0, description="Seconds of silence after which a worker's work goes on."
    )
    max_attempts: WholeNumber = Field(
        default=3, ge=1, description="Times an item is tried before it is put aside as failed."
    )
    dataset: DatasetConfig = Field(description="What is captioned.")
    vllm: VllmConfig = Field(description="What is asked of which model.")
    storage: StorageConfig = Field(default=StorageConfig(), description="Where results go.")
    auth: AuthConfig | None = Field(
        default=None, description="Who may connect; without it, only from this machine."
    )
    spot_checks: SpotChecksConfig = Field(
        default=SpotChecksConfig(), description="How contributors of low trust are checked."
    )
    cache_dir: FilePath | None = Field(
        default=None, description="Folder for what sources download; without it, the hub's own."
    )
    shard_cache_gb: Number | None = unused(
        "Size of a cache of whole shards, in gigabytes.",
        "shards are read in parts, as workers need them, and not kept",
    )
    backpressure_threshold: WholeNumber | None = unused(
        "Results waiting before workers are slowed.",
        "workers are slowed by the disk itself: each holds what is not yet acknowledged",
    )
    buffer_size: WholeNumber | None = unused(
        "Size of the image server's buffer.", "frames and queues have bounds of their own"
    )
    max_file_size: WholeNumber | None = unused(
        "Largest image file served.",
        "images are bounded by their pixels, and one that is too large is a row that says so",
    )

    @property
    def mock_results(self) -> bool:
        """Whether the recipe asks for texts that are made up."""
        return self.vllm.mock_results or self.dataset.mock_results

    @property
    def has_tokens(self) -> bool:
        """Whether connecting takes a token."""
        return self.auth is not None and any(True for _ in self.auth.entries())

    def recipe(self, *, dataset_columns: Collection[str] | None = None) -> Recipe:
        """Return the recipe, which loading has validated already.

        With ``dataset_columns``, names in prompts are checked against the dataset's columns, too.

        Raises:
            RecipeError: a prompt names a column the dataset does not have.
        """
        recipe = self.vllm.recipe(mock_results=self.mock_results, dataset_columns=dataset_columns)
        video = self.dataset.video
        return recipe if video is None else replace(recipe, video=video.video())

    def problems(self) -> Iterator[tuple[KeyPath, str]]:
        """Yield what no single key is to blame for, by key path; the recipe's are apart."""
        if self.auth is not None:
            yield from _tokens_of_two_roles(self.auth)


def _named(entry: Any, default_name: str) -> Any:
    if isinstance(entry, dict):
        return entry if entry.get("name") else {**entry, "name": default_name}
    if isinstance(entry, TokenEntry):
        return entry
    return {"token": entry, "name": default_name}


def _tokens_of_two_roles(auth: AuthConfig) -> Iterator[tuple[KeyPath, str]]:
    first_role: dict[Secret, Role] = {}
    for role in ROLES:
        entries: tuple[TokenEntry, ...] = getattr(auth, f"{role}_tokens")
        for number, entry in enumerate(entries):
            other = first_role.setdefault(entry.token, role)
            if other != role:
                message = f"is a token of the role {other!r} already; each role needs its own"
                yield ("auth", f"{role}_tokens", number, "token"), message
