"""What nobody works on: pieces of chunks that wait, then what the source has listed. Pure.

Pieces wait by the stage that comes next for them; later stages go first, so that what has been
begun gets done. Those that have been lost too often wait apart: whoever takes one must hold nothing
else, so that a death tells which items cause it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from caption_flow.orchestrator.core.listing import Listing
from caption_flow.orchestrator.core.masks import lowest, union
from caption_flow.orchestrator.core.records import Chunk, Piece, Policy, Session


@dataclass(slots=True)
class _Queue:
    """Pieces in the order in which they are taken, and how many items those are."""

    pieces: deque[Piece] = field(default_factory=deque)
    items: int = 0

    def take(self) -> Piece | None:
        while self.pieces:
            piece = self.pieces.popleft()
            if piece.mask:
                piece.chunk.pieces.remove(piece)
                self.items -= piece.mask.bit_count()
                return piece
        return None


class Backlog:
    """Everything that can be handed out, in the order in which it is."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.listing = Listing(policy.chunk_size)
        self._ordinary = [_Queue() for _ in range(policy.stages)]
        self._isolated = [_Queue() for _ in range(policy.stages)]

    @property
    def items(self) -> int:
        """How many items nobody works on."""
        return sum(map(self.waiting, range(self._policy.stages)))

    def waiting(self, stage: int) -> int:
        """Return how many items nobody works on have this stage next."""
        return self._isolated[stage].items + self._ordinary_items(stage)

    def has_ordinary_work(self, stage: int) -> bool:
        """Tell whether a stage has something for workers that hold something already."""
        return self._ordinary_items(stage) > 0

    def has_any_for(self, session: Session) -> bool:
        """Tell whether anything waits at a stage that a session runs."""
        return any(map(self.waiting, session.serves))

    def next_for(
        self, session: Session, serving: Mapping[int, int], most: int | None = None
    ) -> Piece | None:
        """Take the next piece that a session can work on; a small one near the end.

        ``serving`` is how many connected workers run each stage, ``most`` the items that it may
        have at most. The caller leases the piece at once: until then its items are nowhere.
        """
        if session.holds_isolated:
            return None
        stages = sorted(session.serves, reverse=True)
        if not session.leases:
            for stage in stages:
                piece = self._isolated[stage].take()
                if piece is not None:
                    return self._shortened(piece, most)
        for stage in stages:
            piece = self._ordinary[stage].take() or (None if stage else self._cut())
            if piece is not None:
                return self._shortened(self._tail_sized(piece, serving[stage]), most)
        return None

    def put(self, piece: Piece, *, at_front: bool = False) -> None:
        """Let a piece wait: behind the others, or before them."""
        queue = self._queue_of(piece)
        if at_front:
            queue.pieces.appendleft(piece)
        else:
            queue.pieces.append(piece)
        piece.chunk.pieces.append(piece)
        queue.items += piece.mask.bit_count()

    def join(self, piece: Piece) -> None:
        """Let a piece wait that nothing speaks against, in one with others of its chunk and stage.

        Items reach a stage a few at a time: each batch of them as a lease would be many leases.
        """
        for other in piece.chunk.pieces:
            if other.stage == piece.stage and not other.attempts:
                other.mask |= piece.mask
                self._queue_of(other).items += piece.mask.bit_count()
                return
        self.put(piece)

    def adopt_policy(self) -> None:
        """Go by a policy that has changed: who has been lost too often may be so no longer."""
        self.listing.resize(self._policy.chunk_size)
        waiting = [
            piece
            for queue in (*self._isolated, *self._ordinary)
            for piece in iter(queue.take, None)
        ]
        for piece in waiting:
            self.put(piece)

    def withdraw(self, chunk: Chunk, mask: int) -> None:
        """Take items out of whatever piece they wait in."""
        for piece in list(chunk.pieces):
            taken = piece.mask & mask
            if not taken:
                continue
            piece.mask &= ~taken
            self._queue_of(piece).items -= taken.bit_count()
            if not piece.mask:
                # Its place in the queue is passed over when its turn comes.
                chunk.pieces.remove(piece)

    def check(self, chunks: Collection[Chunk]) -> None:
        """Assert that queues, chunks and counts agree."""
        self.listing.check()
        queues = [*self._ordinary, *self._isolated]
        waiting = [piece for queue in queues for piece in queue.pieces if piece.mask]
        assert set(waiting) == {piece for chunk in chunks for piece in chunk.pieces}, "pieces lost"
        assert self.items == self.listing.uncut + sum(piece.mask.bit_count() for piece in waiting)
        for queue in queues:
            assert queue.items == sum(piece.mask.bit_count() for piece in queue.pieces)
            for piece in queue.pieces:
                assert self._queue_of(piece) is queue, "a piece waits where nobody will find it"
        for chunk in chunks:
            masks = [piece.mask for piece in chunk.pieces]
            assert union(masks).bit_count() == sum(m.bit_count() for m in masks), "waiting twice"

    def _ordinary_items(self, stage: int) -> int:
        return self._ordinary[stage].items + (0 if stage else self.listing.uncut)

    def _queue_of(self, piece: Piece) -> _Queue:
        isolated = self._policy.isolates(piece.attempts)
        return (self._isolated if isolated else self._ordinary)[piece.stage]

    def _cut(self) -> Piece | None:
        cut = self.listing.cut()
        if cut is None:
            return None
        return Piece(Chunk(cut.shard, cut.first, cut.count, cut.mask), cut.mask)

    def _tail_sized(self, piece: Piece, connected: int) -> Piece:
        """Near the end, take only one of ``connected`` workers' share and put the rest back."""
        if not self.listing.finished:
            return piece
        left = self.items + piece.mask.bit_count()
        share = max(self._policy.smallest_grant, left // (2 * max(1, connected)))
        return self._shortened(piece, share)

    def _shortened(self, piece: Piece, most: int | None) -> Piece:
        """Put back what a piece has beyond ``most`` items."""
        if most is None:
            return piece
        taken = lowest(piece.mask, most)
        if piece.mask & ~taken:
            self.put(replace(piece, mask=piece.mask & ~taken), at_front=True)
        return replace(piece, mask=taken)
