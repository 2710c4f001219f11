"""One dataset repository of the hub: seen, made, uploaded to, changed. Blocking.

Owns patience (what the hub may fail at for a moment is asked again) and turns what the hub's
library raises into sentences. Never decides what is in the repository.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import stamina

from caption_flow.storage.exporter.errors import ExportError

T = TypeVar("T")

_TOKEN: Final = "the token given here (HF_TOKEN, or that of hf auth login)"  # noqa: S105  -- words
_PASSING: Final = frozenset({429, 500, 502, 503, 504})
_OVERTAKEN: Final = frozenset({409, 412})
_TRANSPORTS: Final = frozenset({"httpx", "httpx2", "httpcore", "requests", "urllib3"})
"""Each version of the hub's library has its transport's own exceptions."""
_ATTEMPTS: Final = 4
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 10.0
_KEPT: Final = "the same command goes on from here: what is uploaded is not uploaded again"


class HubMistakeError(ExportError):
    """What the caller has to put right before anything can be uploaded."""


class OvertakenError(Exception):
    """Somebody else has changed the repository since it was looked at."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at the hub; ``sha256`` is None where git keeps the file itself, under ``git``."""

    size: int
    sha256: str | None
    git: str

    def has(self, size: int, sha256: str, git: str) -> bool:
        """Tell whether its content is this one."""
        identity = self.git == git if self.sha256 is None else self.sha256 == sha256
        return self.size == size and identity


@dataclass(frozen=True, slots=True)
class Seen:
    """A repository as it was at a commit."""

    commit: str
    private: bool
    files: Mapping[str, RemoteFile]


class HubDataset:
    """A dataset repository, by its name ``ORG/NAME``.

    Every method raises `ExportError` where the hub cannot be reached or refuses.
    """

    def __init__(self, name: str) -> None:
        """Raise `HubMistakeError` for a name that cannot be, or where nobody is logged in."""
        from huggingface_hub import (  # noqa: PLC0415  -- half a second
            HfApi,
            get_token,
            utils,
        )
        from huggingface_hub.errors import HFValidationError  # noqa: PLC0415  -- see above

        try:
            utils.validate_repo_id(name)  # type: ignore[attr-defined]  # public, not re-exported
        except HFValidationError as error:
            raise HubMistakeError(f"--hf-dataset: {_first_line(error)}") from error
        if "/" not in name:
            raise HubMistakeError(f"--hf-dataset: {name!r} is no ORG/NAME, such as me/{name}")
        if get_token() is None:
            raise HubMistakeError(
                f"no token is given here to write to {name} with: hf auth login, or set HF_TOKEN"
            )
        utils.disable_progress_bars()  # type: ignore[attr-defined]  # see above; bars are ours
        self.name = name
        self._api = HfApi(library_name="caption-flow")
        self.url = f"{self._api.endpoint}/datasets/{name}"

    def look(self) -> Seen | None:
        """Return what is there; None where there is no such repository, or none one may see."""
        return self._patiently(self._look)

    def _look(self) -> Seen | None:
        from huggingface_hub.errors import (  # noqa: PLC0415  -- see above
            GatedRepoError,
            RepositoryNotFoundError,
        )
        from huggingface_hub.hf_api import RepoFile  # noqa: PLC0415  -- see above

        try:
            info = self._api.dataset_info(self.name)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None
        tree = self._api.list_repo_tree(
            self.name, recursive=True, revision=info.sha, repo_type="dataset"
        )
        files = {
            entry.path: RemoteFile(
                entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id
            )
            for entry in tree
            if isinstance(entry, RepoFile)
        }
        return Seen(str(info.sha), bool(info.private), files)

    def create(self, *, private: bool) -> None:
        """Make the repository; where it is not said to be private, the account's default holds."""

        def make() -> None:
            self._api.create_repo(self.name, repo_type="dataset", private=private or None)

        try:
            self._patiently(make)
        except OvertakenError:
            if self.look() is None:
                raise HubMistakeError(
                    f"{self.name} is there already, and {_TOKEN} may not see it: choose another "
                    "name"
                ) from None

    def read(self, path: str, commit: str, cache: Path) -> str:
        """Return a file's text as of a commit."""
        file = self._patiently(
            lambda: self._api.hf_hub_download(
                self.name, path, repo_type="dataset", revision=commit, cache_dir=cache
            )
        )
        try:
            return Path(file).read_bytes().decode()
        except UnicodeDecodeError as error:
            raise ExportError(f"{path} of {self.name} is not UTF-8: mend it first") from error

    def require_writable(self) -> None:
        """Refuse a repository of others before hours of work: asking how to upload tells."""
        self.upload({"README.md": b"# "})

    def require_valid(self, card: str) -> None:
        """Refuse a card that the hub would not take, such as one with an unknown license."""
        from huggingface_hub import DatasetCard  # noqa: PLC0415  -- see above

        def validate() -> None:
            try:
                DatasetCard(card).validate("dataset")
            except ValueError as error:
                raise HubMistakeError(_invalid(error)) from error

        self._patiently(validate)

    def upload(self, files: Mapping[str, Path | bytes]) -> list[Any]:
        """Bring files to the hub, into no commit yet; return the operations that commit them.

        Of an operation whose ``path_or_fileobj`` is empty afterwards the file is not needed any
        more; others are sent with the commit. What the hub has already is not sent.
        """
        from huggingface_hub import CommitOperationAdd  # noqa: PLC0415  -- see above

        additions = [CommitOperationAdd(path, content) for path, content in files.items()]
        self._patiently(
            lambda: self._api.preupload_lfs_files(self.name, additions, repo_type="dataset")
        )
        return additions

    def commit(self, operations: Sequence[Any], *, message: str, parent: str) -> str:
        """Change the repository at once, and return the commit.

        Raises:
            OvertakenError: ``parent`` is not the last commit any more.
        """

        def send() -> str:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what the hub thinks is missing in a card
                done = self._api.create_commit(
                    self.name,
                    operations,
                    commit_message=message,
                    repo_type="dataset",
                    parent_commit=parent,
                )
            return str(done.oid)

        # Asked again it cannot be done twice: after the first time, the parent is another.
        return self._patiently(send)

    # ------------------------------------------------------------------ inside

    def _patiently(self, ask: Callable[[], T]) -> T:
        with self._clearly():
            for attempt in stamina.retry_context(
                on=_is_passing,
                attempts=_ATTEMPTS,
                timeout=None,
                wait_initial=_FIRST_PAUSE_SECONDS,
                wait_max=_LONGEST_PAUSE_SECONDS,
            ):
                with attempt:
                    return ask()
        raise AssertionError("unreachable: the last attempt returns or raises")

    @contextmanager
    def _clearly(self) -> Iterator[None]:
        from huggingface_hub import constants, errors  # noqa: PLC0415  -- see above

        try:
            yield
        except (ExportError, OvertakenError):
            raise
        except errors.OfflineModeIsEnabled as error:
            raise HubMistakeError("HF_HUB_OFFLINE is set: nothing can be uploaded") from error
        except Exception as error:
            status = _status(error)
            if status in _OVERTAKEN:
                raise OvertakenError from error
            raise self._refusal(status, error, constants.ENDPOINT) from error

    def _refusal(self, status: int | None, error: Exception, endpoint: str) -> ExportError:
        said = getattr(error, "server_message", None) or _first_line(error)
        if status == 401:
            return HubMistakeError(f"{endpoint} refuses {_TOKEN}: it is mistyped or revoked")
        if status == 403:
            return HubMistakeError(
                f"{_TOKEN} may not write to {self.name}: take one that has the right to write, of "
                f"an account that may ({endpoint}/settings/tokens); the hub says: {said}"
            )
        if status == 404:
            return ExportError(f"{self.name} is not at the hub, or {_TOKEN} may not see it")
        return ExportError(f"{self.name} could not be written: {said}; {_KEPT}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_passing(error: Exception) -> bool:
    """Tell whether the same may succeed in a moment."""
    from huggingface_hub.errors import OfflineModeIsEnabled  # noqa: PLC0415  -- see above

    if isinstance(error, OfflineModeIsEnabled | ExportError):
        return False
    for cause in _causes(error):
        status = _status(cause)
        if status is not None:
            return status in _PASSING
        if isinstance(cause, ConnectionError | TimeoutError):
            return True
        if type(cause).__module__.partition(".")[0] in _TRANSPORTS:
            return True
    return False


def _first_line(error: BaseException) -> str:
    """Return what is wrong at the bottom of it, in one line."""
    *_, last = _causes(error)
    return str(last).strip().partition("\n")[0] or type(last).__name__


def _invalid(error: ValueError) -> str:
    try:
        found = [str(one["message"]) for one in json.loads(str(error))["errors"]]
    except (ValueError, KeyError, TypeError):
        found = [str(error).strip()]
    return "the hub does not take the dataset's card: " + "; ".join(found)
