"""The columns of a tar's samples: what their JSON and text members hold. Blocking."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import msgspec
import structlog

from caption_flow.orchestrator.sources.base import ShardError
from caption_flow.orchestrator.sources.tar_files import Tar, TarFacts
from caption_flow.orchestrator.sources.tar_index import Member, Sample
from caption_flow.orchestrator.sources.tar_shelf import read_member
from caption_flow.places.objects import ObjectError

log = structlog.get_logger()

_LARGEST_TEXT: Final = 2**20


def columns_of(
    tar: Tar, facts: TarFacts, sample: Sample, wanted: Collection[str]
) -> dict[str, Any]:
    """Return those of a sample's columns in ``wanted``. Raises `ShardError`."""
    found: dict[str, Any] = {}
    json_last = sorted(sample.texts, key=lambda member: member.suffix == "json")
    for member in json_last:
        is_json = member.suffix.rpartition(".")[2] == "json"
        if is_json and found.keys() >= set(wanted):
            continue
        if not is_json and member.suffix not in wanted:
            continue
        for name, value in _read_columns(tar, facts, member).items():
            if name in wanted:
                found.setdefault(name, value)
    return found


def all_columns(tar: Tar, facts: TarFacts, sample: Sample) -> set[str]:
    """Return the columns of a sample, whether prompts name them or not. Raises `ShardError`."""
    found: set[str] = set()
    for member in sample.texts:
        found |= _read_columns(tar, facts, member).keys()
    return found


def _read_columns(tar: Tar, facts: TarFacts, member: Member) -> dict[str, Any]:
    """Return the columns in a member; none, with a warning, if it is no text or JSON.

    Raises `ShardError`: the tar cannot be read, or is not the one that was listed.
    """
    try:
        return _values_of(member, read_member(tar, facts, member))
    except ValueError as error:
        log.warning("a column cannot be read", file=member.name, reason=said(error))
        return {}
    except ObjectError as error:
        raise ShardError(str(error), is_passing=error.kind == "unreachable") from error
    except OSError as error:
        raise ShardError(said(error)) from error


def _values_of(member: Member, data: bytes) -> dict[str, Any]:
    """Return the columns in a member. Raises ValueError where it is not what its suffix says."""
    if len(data) > _LARGEST_TEXT:
        raise ValueError(f"it is larger than {_LARGEST_TEXT} bytes")
    text = data.decode(errors="replace").strip()
    if member.suffix.rpartition(".")[2] != "json":
        return {member.suffix: text}
    try:
        values = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from error
    return dict(values) if isinstance(values, dict) else {member.suffix: values}


def said(error: Exception) -> str:
    """Return what an error of the operating system, or of a storage, says to people."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
