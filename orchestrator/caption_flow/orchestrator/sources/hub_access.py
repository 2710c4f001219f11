"""Repositories of the hub, and what to do about those that cannot be read. Blocking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from caption_flow.orchestrator.sources.base import SourceError

_TOKEN: Final = "the token given here (HF_TOKEN, or that of hf auth login)"  # noqa: S105  -- words


def repository_at(name: str, revision: str | None, *, began_with: str | None = None) -> Any:
    """Return a dataset's `huggingface_hub.DatasetInfo` at a revision; its files may be read.

    ``began_with`` is the commit that earlier runs were about, and counts before ``revision``.

    Raises:
        SourceError: there is no such repository or revision, or its files may not be read.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415  -- half a second that folders need not wait

    api = HfApi()
    with clearly(name, revision, began_with=began_with):
        found = api.dataset_info(name, revision=began_with or revision)
        if getattr(found, "gated", False):
            # Everybody may see its description and the names of its files, and no more.
            api.auth_check(name, repo_type="dataset")
    return found


@contextmanager
def clearly(
    name: str,
    revision: str | None = None,
    *,
    began_with: str | None = None,
    unless: type[Exception] | tuple[()] = (),
) -> Iterator[None]:
    """Turn what the hub's library raises into a sentence for the dataset's owner."""
    from huggingface_hub import constants, errors  # noqa: PLC0415  -- see above

    try:
        yield
    except unless:
        raise
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{name} is gated: accept its conditions at {constants.ENDPOINT}/datasets/{name}, and "
            f"let this machine read it as the account that did: {_log_in()}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"the hub has no dataset {name}, or it is private: {_log_in()}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(_no_revision(name, revision, began_with)) from error
    except errors.HFValidationError as error:
        raise SourceError(
            f"{name!r} is neither a folder nor a hub id (org/name): dataset.dataset_path"
        ) from error
    except Exception as error:  # each version of the library has its transport's own exceptions
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if status in {401, 403}:
            reason = f"the hub refuses {_TOKEN}: it is mistyped, revoked, or may not do this"
        raise SourceError(f"{name} cannot be read from the hub: {reason}") from error


def _log_in() -> str:
    """Say how to be somebody, or somebody else."""
    from huggingface_hub import get_token  # noqa: PLC0415  -- see above

    if get_token() is None:
        return "no token is given here; hf auth login, or set HF_TOKEN"
    return f"{_TOKEN} is of an account that may not read it, or lacks the right to"


def _no_revision(name: str, revision: str | None, began_with: str | None) -> str:
    if began_with is not None:
        return (
            f"{name} no longer has the commit {began_with}, which this run's captions are about: "
            "caption what is there now into a new folder (--data-dir DIR, storage.data_dir)"
        )
    return f"{name} has no revision {revision!r}: dataset.revision is a commit, branch or tag"
