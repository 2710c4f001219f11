"""What nobody works on: pieces of chunks that wait, then what the source has listed. Pure.

Pieces that have been lost too often wait apart: whoever takes one must hold nothing else, so that a
death tells which items cause it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from caption_flow.orchestrator.core.listing import Listing
from caption_flow.orchestrator.core.masks import lowest, union
from caption_flow.orchestrator.core.records import Chunk, Piece, Policy, Session


class Backlog:
    """Everything that can be handed out, in the order in which it is."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.listing = Listing(policy.chunk_size)
        self._ordinary: deque[Piece] = deque()
        self._isolated: deque[Piece] = deque()
        self._ordinary_items = 0
        self._isolated_items = 0

    @property
    def items(self) -> int:
        """How many items nobody works on."""
        return self._ordinary_items + self._isolated_items + self.listing.uncut

    @property
    def has_ordinary_work(self) -> bool:
        """Whether there is something for workers that hold something already."""
        return bool(self._ordinary_items or self.listing.uncut)

    def next_for(self, session: Session, *, connected: int) -> Piece | None:
        """Take the next piece for one of ``connected`` workers; a small one near the end.

        The caller leases it at once: until then its items are nowhere.
        """
        if session.holds_isolated:
            return None
        if not session.leases:
            piece = self._take(self._isolated)
            if piece is not None:
                return piece
        piece = self._take(self._ordinary) or self._cut()
        return None if piece is None else self._tail_sized(piece, connected)

    def put(self, piece: Piece, *, at_front: bool = False) -> None:
        """Let a piece wait: behind the others, or before them."""
        isolated = self._policy.isolates(piece.attempts)
        queue = self._isolated if isolated else self._ordinary
        if at_front:
            queue.appendleft(piece)
        else:
            queue.append(piece)
        piece.chunk.pieces.append(piece)
        self._count(piece, piece.mask.bit_count())

    def withdraw(self, chunk: Chunk, mask: int) -> None:
        """Take items out of whatever piece they wait in."""
        for piece in list(chunk.pieces):
            taken = piece.mask & mask
            if not taken:
                continue
            piece.mask &= ~taken
            self._count(piece, -taken.bit_count())
            if not piece.mask:
                # Its place in the queue is passed over when its turn comes.
                chunk.pieces.remove(piece)

    def check(self, chunks: Collection[Chunk]) -> None:
        """Assert that queues, chunks and counts agree."""
        self.listing.check()
        queued = [piece for queue in (self._ordinary, self._isolated) for piece in queue]
        waiting = {piece for piece in queued if piece.mask}
        assert waiting == {piece for chunk in chunks for piece in chunk.pieces}, "pieces lost"
        items = sum(piece.mask.bit_count() for piece in waiting)
        assert self.items == self.listing.uncut + items
        for chunk in chunks:
            masks = [piece.mask for piece in chunk.pieces]
            assert union(masks).bit_count() == sum(m.bit_count() for m in masks), "waiting twice"

    def _take(self, queue: deque[Piece]) -> Piece | None:
        while queue:
            piece = queue.popleft()
            if piece.mask:
                piece.chunk.pieces.remove(piece)
                self._count(piece, -piece.mask.bit_count())
                return piece
        return None

    def _cut(self) -> Piece | None:
        cut = self.listing.cut()
        if cut is None:
            return None
        return Piece(Chunk(cut.shard, cut.first, cut.count, cut.mask), cut.mask)

    def _tail_sized(self, piece: Piece, connected: int) -> Piece:
        """Near the end, take only a share of the piece and put the rest back."""
        if not self.listing.finished:
            return piece
        left = self.items + piece.mask.bit_count()
        share = max(self._policy.smallest_grant, left // (2 * max(1, connected)))
        taken = lowest(piece.mask, share)
        if piece.mask & ~taken:
            rest = Piece(piece.chunk, piece.mask & ~taken, piece.attempts, piece.evidence)
            self.put(rest, at_front=True)
        return Piece(piece.chunk, taken, piece.attempts, piece.evidence)

    def _count(self, piece: Piece, items: int) -> None:
        if self._policy.isolates(piece.attempts):
            self._isolated_items += items
        else:
            self._ordinary_items += items
