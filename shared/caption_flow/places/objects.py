"""Objects in the dataset's own storage: ``https://``, ``s3://``, ``hf://`` and more. Blocking.

fsspec reads all of them, with the credentials of this machine: the usual variables and files of
each storage, such as ``HF_TOKEN``, ``HF_ENDPOINT`` or ``AWS_ENDPOINT_URL``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import fsspec

from caption_flow.places.base import NotHereError
from caption_flow.protocol.places import ObjectPlace

_KNOWN_STORAGES: Final = 64


@lru_cache(_KNOWN_STORAGES)
def _storage(protocol: str) -> Any:
    try:
        return fsspec.filesystem(protocol)
    except (ImportError, ValueError) as error:
        raise NotHereError(f"{protocol}:// cannot be read: {error}") from error


def storage_of(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it. Raises `NotHereError`."""
    protocol, _, _ = url.partition("://")
    storage = _storage(protocol)
    return storage, storage._strip_protocol(url)  # noqa: SLF001  -- what fsspec's own callers use


def read_object(place: ObjectPlace) -> bytes:
    """Return the bytes of a place.

    Raises:
        NotHereError: the storage cannot be reached, refuses, or has no such object.
    """
    end = None if place.length is None else place.offset + place.length
    try:
        storage, path = storage_of(place.url)
        data: bytes = storage.cat_file(path, start=place.offset or None, end=end)
    except NotHereError:
        raise
    except Exception as error:  # each storage has its own exceptions
        raise NotHereError(f"{place.url} cannot be read: {error}") from error
    if place.length is not None and len(data) != place.length:
        raise NotHereError(f"{place.url} ends early")
    return data
