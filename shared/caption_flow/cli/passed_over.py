"""What to say of shards that could not be read, or not wholly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

from caption_flow.cli.folders import for_people

_SHOWN: Final = 10
_TO_DO: Final = "the same command tries again, and retry-failed puts back what failed for it"


def told(shards: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each of the first, how many more there are, and what to do."""
    for name, reason in islice(shards.items(), _SHOWN):
        yield f"  {for_people(name)}: {for_people(reason)}"
    if len(shards) > _SHOWN:
        yield f"  … and {len(shards) - _SHOWN:,} more: see the log"
    yield f"  ({_TO_DO})"


def verdict(shards: Mapping[str, str]) -> str:
    """Return the sentence with which a command fails for them."""
    name, reason = next(iter(shards.items()))
    which = "a shard" if len(shards) == 1 else f"{len(shards):,} shards"
    return (
        f"{which} could not be read, or not wholly; all others are done ({_TO_DO}): "
        f"{for_people(name)}: {for_people(reason)}"
    )
