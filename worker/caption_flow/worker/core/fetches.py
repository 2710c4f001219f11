"""Image bytes asked of the orchestrator: a few at a time, asked again after a reconnect.

Pure. Who waits for the bytes is the shell's business; here is only what was asked.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from caption_flow.protocol.messages import Fetch, Image, LeaseId
from caption_flow.worker.core.leases import Key

IN_FLIGHT: Final = 16
SILENCE_SECONDS: Final = 120.0
"""With questions open and no image for this long, the connection is taken for broken."""


class Fetches:
    """Items whose bytes are wanted, oldest first, and which of them have been asked for."""

    def __init__(self, *, in_flight: int = IN_FLIGHT) -> None:
        self._limit = in_flight
        self._wanted: dict[Key, None] = {}
        self._asked: set[Key] = set()
        self._pieces: dict[Key, list[bytes]] = {}
        """What has come so far of images that come in pieces."""
        self._is_open = False
        self._moved_at = 0.0

    @property
    def in_flight(self) -> int:
        """How many items are asked for and not answered."""
        return len(self._asked)

    def want(self, lease: LeaseId, item: int) -> None:
        """Want an item's bytes."""
        self._wanted[lease, item] = None

    def drop(self, lease: LeaseId, item: int) -> None:
        """Forget an item: it is answered, or nobody wants it any more."""
        self._wanted.pop((lease, item), None)
        self._asked.discard((lease, item))
        self._pieces.pop((lease, item), None)

    def receive(self, image: Image, *, now: float) -> Image | None:
        """Take an image or a piece of one; return the whole if that was the last of it.

        Pieces of what is not asked for any more are dropped, and so is what does not follow on
        from what came before.
        """
        self._moved_at = now
        key = (LeaseId(image.lease), image.item)
        pieces = self._pieces.get(key, [])
        if image.offset != sum(map(len, pieces)):
            return None
        if image.more:
            if key in self._asked:
                self._pieces.setdefault(key, pieces).append(image.payload)
            return None
        self.answered(*key, now=now)
        if not pieces or image.error:
            return image
        return Image(image.lease, image.item, b"".join([*pieces, image.payload]))

    def answered(self, lease: LeaseId, item: int, *, now: float) -> None:
        """Note that an item's bytes came, or the reason why there are none."""
        self.drop(lease, item)
        self._moved_at = now

    def open(self) -> None:
        """Note that a connection is there."""
        self._is_open = True

    def close(self) -> None:
        """Note that the connection is gone; what it was asked, the next one will be asked."""
        self._is_open = False
        self._asked.clear()
        self._pieces.clear()

    def keep_only(self, leases: Collection[int]) -> None:
        """Forget items of all other leases."""
        for lease, item in [key for key in self._wanted if key[0] not in leases]:
            self.drop(lease, item)

    def due(self, *, now: float) -> list[Fetch]:
        """Return the questions to send now."""
        if not self._is_open or len(self._asked) >= self._limit:
            return []
        if not self._asked:
            self._moved_at = now
        asking = [key for key in self._wanted if key not in self._asked]
        asking = asking[: self._limit - len(self._asked)]
        self._asked.update(asking)
        return [Fetch(lease, (item,)) for lease, item in asking]

    def is_stuck(self, *, now: float) -> bool:
        """Whether the orchestrator owes images and has sent none for too long."""
        return bool(self._asked) and now - self._moved_at >= SILENCE_SECONDS

    def check(self) -> None:
        """Assert the invariants; the `AssertionError` names the broken one."""
        assert self._asked <= self._wanted.keys(), "asked for what nobody wants"
        assert len(self._asked) <= self._limit, "too many questions"
        assert self._pieces.keys() <= self._asked, "kept pieces of what is not asked for"
