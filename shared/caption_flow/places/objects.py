"""Objects in the dataset's own storage: ``https://``, ``s3://``, ``hf://`` and more. Blocking.

HTTP and S3 go through obstore, which repeats what fails for the moment and never takes another
range than was asked for; what it doesn't know, such as ``hf://``, through fsspec. Credentials are
this machine's: the usual variables and files of each storage, such as ``HF_TOKEN``,
``HF_ENDPOINT``, ``AWS_ACCESS_KEY_ID`` or ``AWS_ENDPOINT_URL``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import fsspec
import obstore
import stamina
from obstore import exceptions
from obstore.store import HTTPStore, S3Store, from_url

from caption_flow.places.base import CHANGED, MISSING, NotHereError, PlaceError, status_of
from caption_flow.protocol.places import ObjectPlace

_KNOWN_STORAGES: Final = 64
_HTTP: Final = frozenset({"http", "https"})
_CLOUD: Final = frozenset({"s3", "s3a", "gs", "az", "abfs", "abfss"})
_ETAGS: Final = ("ETag", "etag", "blob_id", "oid", "md5Hash")
"""What fsspec's file systems call the mark of a version."""
_AZURE: Final = (
    "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true "
    "instead of the key for a public container"
)
_GRANTED: Final = {
    "s3": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (a profile of ~/.aws works with "
    "pip install 'caption-flow[s3]'), or set AWS_SKIP_SIGNATURE=true for a public bucket",
    "hf": "set HF_TOKEN to a token that may read it",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or GOOGLE_SKIP_SIGNATURE=true for a "
    "public bucket",
    **dict.fromkeys(("az", "abfs", "abfss"), _AZURE),
}


class ObjectError(Exception):
    """An object cannot be read; ``kind`` is ``missing``, ``refused`` or ``unreachable``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _BrokenOffError(Exception):
    """A body ended early; obstore itself takes up only those of objects with an ETag."""


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """An object: its size in bytes, and a mark that another version would not have.

    ``etag`` is that mark if the storage gives one with the bytes themselves, too.
    """

    url: str
    size: int
    version: str
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a storage is waited for, in seconds, and how often it is asked again."""

    connect_seconds: float = 10.0
    read_seconds: float = 20.0
    retry_seconds: float = 60.0
    retries: int = 5
    first_pause_seconds: float = 0.2


_PATIENCE: Final = Patience()


class Objects:
    """Reads and lists objects, with some patience; callable from any thread."""

    def __init__(self, patience: Patience = _PATIENCE) -> None:
        self._patience = patience
        self._store_of = lru_cache(_KNOWN_STORAGES)(self._open)

    def read(
        self,
        url: str,
        offset: int = 0,
        length: int | None = None,
        *,
        size: int | None = None,
        etag: str | None = None,
    ) -> bytes:
        """Return an object's bytes, or ``length`` of them, if it has this ``size`` and ``etag``.

        Raises:
            ObjectError: it cannot be read, is another one (``changed``) or ends early.
        """
        if length == 0:
            return b""
        with _as_object_errors(url):
            if _is_fsspec(url):
                return _checked(url, length, _fsspec_read(url, offset, length, size, etag))
            patience = self._patience
            for attempt in stamina.retry_context(
                on=_BrokenOffError,
                attempts=patience.retries,
                timeout=patience.retry_seconds,
                wait_initial=patience.first_pause_seconds,
            ):
                with attempt:
                    return _checked(url, length, self._get(url, offset, length, size, etag))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _get(
        self, url: str, offset: int, length: int | None, size: int | None, etag: str | None
    ) -> bytes:
        store, path = self._locate(url)
        options: Any = {} if length is None else {"range": (offset, offset + length)}
        if etag is not None and url.partition("://")[0] in _CLOUD:
            options["if_match"] = etag  # web servers may refuse what they themselves have named
        found = obstore.get(store, path, options=options)
        _check_same(url, (size, etag), (found.meta["size"], found.meta["e_tag"]))
        try:
            return bytes(found.bytes())
        except exceptions.GenericError as error:
            raise _BrokenOffError(str(error)) from error

    def facts(self, url: str) -> ObjectFacts:
        """Ask for size and version. Raises `ObjectError`."""
        with _as_object_errors(url):
            if _is_fsspec(url):
                storage, path = storage_of(url)
                return _fsspec_facts(url, storage.info(path))
            store, path = self._locate(url)
            return _facts(url, obstore.head(store, path))

    def below(self, url: str) -> Iterator[ObjectFacts]:
        """Yield all objects whose path begins with a folder's. Raises `ObjectError`."""
        with _as_object_errors(url):
            if _is_fsspec(url):
                storage, path = storage_of(url)
                protocol = url.partition("://")[0]
                for name, info in storage.find(path, detail=True).items():
                    yield _fsspec_facts(f"{protocol}://{name}", info)
                return
            store, path = self._locate(url)
            root = "/".join(url.split("/", 3)[:3]) + "/"
            for batch in obstore.list(store, path or None):
                for meta in batch:
                    yield _facts(root + meta["path"], meta)

    def _locate(self, url: str) -> tuple[Any, str]:
        parts = urlsplit(url)
        if parts.scheme in _HTTP:
            query = f"?{parts.query}" if parts.query else ""
            base = f"{parts.scheme}://{parts.netloc}/{query}"
            return self._store_of(base), unquote(parts.path).strip("/")
        scheme, _, rest = url.partition("://")
        bucket, _, path = rest.partition("/")
        return self._store_of(f"{scheme}://{bucket}"), path.strip("/")

    def _open(self, base: str) -> Any:
        patience = self._patience
        client: Any = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=patience.connect_seconds),
            "read_timeout": timedelta(seconds=patience.read_seconds),
            "timeout": timedelta(seconds=patience.retry_seconds),
        }
        retry: Any = {
            "max_retries": patience.retries,
            "retry_timeout": timedelta(seconds=patience.retry_seconds),
            "backoff": {"init_backoff": timedelta(seconds=patience.first_pause_seconds)},
        }
        scheme, _, rest = base.partition("://")
        if scheme in _HTTP:
            return HTTPStore.from_url(base, client_options=client, retry_config=retry)
        if scheme in {"s3", "s3a"}:
            return S3Store(rest, client_options=client, retry_config=retry, **_s3_settings())
        return from_url(base, client_options=client, retry_config=retry)


def _s3_settings() -> dict[str, Any]:
    """What obstore doesn't take from the environment itself."""
    settings: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3")
    if endpoint:
        settings["endpoint"] = endpoint
    if "AWS_ACCESS_KEY_ID" not in os.environ and find_spec("boto3") is not None:
        import boto3  # noqa: PLC0415  -- slow, and only for whoever keeps keys in ~/.aws
        from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415

        session = boto3.Session()
        if session.get_credentials() is not None:
            settings["credential_provider"] = Boto3CredentialProvider(session)
    return settings


def _is_fsspec(url: str) -> bool:
    return url.partition("://")[0] not in _HTTP | _CLOUD


def _checked(url: str, length: int | None, data: bytes) -> bytes:
    if length is not None and len(data) != length:
        raise ObjectError("changed", f"{url} ends early")
    return data


def _facts(url: str, meta: Any) -> ObjectFacts:
    version = meta["e_tag"] or meta["version"] or meta["last_modified"].isoformat()
    return ObjectFacts(url, meta["size"], str(version), meta["e_tag"])


def _fsspec_facts(url: str, info: Any) -> ObjectFacts:
    etag = _first_of(info, _ETAGS)
    version = etag or _first_of(info, ("LastModified", "last_modified", "mtime")) or ""
    return ObjectFacts(url, int(info["size"]), version, etag)


def _first_of(info: Any, names: tuple[str, ...]) -> str | None:
    return next((str(info[name]) for name in names if info.get(name)), None)


def _check_same(
    url: str, listed: tuple[int | None, str | None], found: tuple[int, str | None]
) -> None:
    """Raise `ObjectError` unless size and ETag are those listed, as far as both are known."""
    if listed[0] not in {None, found[0]}:
        raise ObjectError("changed", f"{url} has {found[0]} bytes now, not {listed[0]} as listed")
    old, new = (None if etag is None else etag.removeprefix("W/") for etag in (listed[1], found[1]))
    if None not in {old, new} and old != new:
        raise ObjectError("changed", _replaced(url))


def _replaced(url: str) -> str:
    return f"{url} has changed since it was listed: it is another version of the same size"


def _fsspec_read(
    url: str, offset: int, length: int | None, size: int | None, etag: str | None
) -> bytes:
    storage, path = storage_of(url)
    if size is not None or etag is not None:
        now = _fsspec_facts(url, storage.info(path))
        _check_same(url, (size, etag), (now.size, now.etag))
    end = None if length is None else offset + length
    data: bytes = storage.cat_file(path, start=offset or None, end=end)
    return data


class _as_object_errors:  # noqa: N801  -- reads as a clause
    """Turns what storages raise into `ObjectError`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or isinstance(error, ObjectError) or not isinstance(error, Exception):
            return
        raise _object_error(self._url, error) from error


def _object_error(url: str, error: Exception) -> ObjectError:
    shown = urlsplit(url)._replace(query="").geturl()  # a query may hold a signature
    if isinstance(error, exceptions.PreconditionError):
        return ObjectError("changed", f"{shown} has changed since it was listed")
    # What the hub's file system raises says only in its cause that a repository may be private.
    is_hidden = "RepositoryNotFound" in type(error.__cause__).__name__
    if is_hidden or _is_refusal(error):
        hint = _GRANTED.get(url.partition("://")[0], "check that this machine may read it")
        return ObjectError("refused", f"{shown} may not be read: {hint}")
    if isinstance(error, exceptions.NotFoundError | FileNotFoundError) or status_of(error) == 404:
        return ObjectError("missing", f"there is no {shown}")
    if "Account must be specified" in str(error):
        return ObjectError("refused", f"{shown} cannot be read: {_AZURE}")
    reason = str(error).partition("\n")[0].rpartition(" - ")[2].strip() or type(error).__name__
    query = urlsplit(url).query
    if query:
        reason = reason.replace(query, "...")
    return ObjectError("unreachable", f"{shown} cannot be read: {reason}")


def _is_refusal(error: Exception) -> bool:
    refusals = exceptions.PermissionDeniedError | exceptions.UnauthenticatedError | PermissionError
    return isinstance(error, refusals) or status_of(error) in {401, 403}


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


OBJECTS: Final = Objects()
"""The process's own; stores and their connections are kept."""


def read_object(place: ObjectPlace, objects: Objects = OBJECTS) -> bytes:
    """Return the bytes of a place.

    Raises:
        NotHereError: the storage cannot be reached from here or refuses, or the object is another.
        PlaceError: there is no such object.
    """
    return _read_object(place, objects, is_lister=False)


def read_own_object(place: ObjectPlace, objects: Objects = OBJECTS) -> bytes:
    """Return the bytes of a place on the machine that listed it.

    Raises:
        NotHereError: the storage cannot be reached from here or refuses.
        PlaceError: there is no such object, or it has become another: here the URL cannot mean
            another storage's.
    """
    return _read_object(place, objects, is_lister=True)


def _read_object(place: ObjectPlace, objects: Objects, *, is_lister: bool) -> bytes:
    try:
        return objects.read(place.url, place.offset, place.length, size=place.size, etag=place.etag)
    except ObjectError as error:
        if error.kind == "changed" and is_lister:
            raise PlaceError(CHANGED, str(error)) from error
        if error.kind == "missing":
            raise PlaceError(MISSING, str(error)) from error
        raise NotHereError(str(error)) from error
