"""Where fuzzing begins: what honest peers send, and what once was a finding.

    python -m tests.fuzz.seeds      write the honest ones to `corpus` again

Findings are kept in `corpus` by hand, as files named ``found-…``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from caption_flow.protocol import messages as m
from caption_flow.protocol.codec import encode
from caption_flow.protocol.places import FilePlace
from caption_flow.protocol.rows import CAPTIONED, FAILED, Row, StageStats, encode_rows
from tests.support.bombs import small_ones

CORPUS: Final = Path(__file__).parent / "corpus"

_STATS: Final = (StageStats("default", 12, 34, ("stop",), 56),)
ROWS: Final = encode_rows(
    [
        Row(0, CAPTIONED, {"captions": ["A lake.", "Ein See."]}, image_width=3, stage_stats=_STATS),
        Row(1, FAILED, error_kind="image_corrupt", error="the file is damaged", flags=("length",)),
    ],
    ("captions",),
)
_FROM_WORKER: Final[tuple[m.Message, ...]] = (
    m.Hello("a worker", "session-00000001", "1.0", "synthetic", "cpu", {7: (1, 2)}, ("default",)),
    m.Want(2, 16, 1),
    m.Results(1, 7, (0, 1), ROWS),
    m.Results(2, 7, (0,), ROWS, 1),
    m.Fetch(7, (0, 1, 2**40)),
    m.Release(7, True, (1,), "it died"),
    m.Recalled({7: (5, 6)}),
    m.Heartbeat({"images per second": 1.5}),
)
_FROM_OBSERVER: Final[tuple[m.Message, ...]] = (
    m.StatusRequest(),
    m.Shutdown(now=True),
    m.RetryFailed("quarantined"),
    m.Reload("chunk_size: 3\n"),
    m.AddToken("worker", "a friend", b"\0" * 32, m.TokenLimits(3, 4, 5.0, "low")),
    m.RemoveToken("a friend"),
)
_FROM_ORCHESTRATOR: Final[tuple[m.Message, ...]] = (
    m.Welcome(
        "w",
        m.RecipeSpec((m.StageSpec("s", "model", ("Describe.",), "captions"),), "fingerprint"),
        m.Limits(120.0, 10.0, 2, 2**24, 32),
    ),
    m.Grant(
        (
            m.GrantedLease(
                m.LeaseId(1),
                "shard",
                "shard:0",
                (m.ItemDescription(0, FilePlace(b"/a/b.png", 3, 4), {"title": "x"}),),
            ),
        )
    ),
    m.Wait(1.0, True),
    m.Ack(3),
    m.Image(1, 2, b"bytes", "", 5, True),
    m.Trim(1, (2, 3)),
    m.Finished(1, 2),
    m.Problem("no"),
    m.Done("yes", {"rows": 3}),
)
_UPGRADES: Final = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: chat, caption-flow.v2\r\nAuthorization: Bearer guessed\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nAuthorization: bearer  \r\nAuthorization: Basic YTpi\r\n\r\n",
)


def honest() -> Iterator[tuple[str, bytes]]:
    """Yield what honest peers send, each with the target that is to hear it."""
    groups = (
        ("from_worker", _FROM_WORKER),
        ("from_observer", _FROM_OBSERVER),
        ("from_orchestrator", _FROM_ORCHESTRATOR),
    )
    for target, said in groups:
        yield from ((target, encode(message)) for message in said)
        # Shapes that fit msgpack and nothing else.
        yield target, msgspec.msgpack.encode({"type": {"type": []}, "leases": {"a": 1}})
    yield "rows", ROWS
    yield "rows", encode_rows([], ("captions",))
    yield from (("upgrade", request) for request in _UPGRADES)


def seeds(target: str) -> list[bytes]:
    """Return everything that a target begins with."""
    if target == "image":
        # Written by Pillow each time: its formats and their options are what counts.
        from tests.property.test_images import SEEDS  # noqa: PLC0415  -- takes a second

        return [*SEEDS, *small_ones(), *_kept(target)]
    return _kept(target)


def _kept(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]


def main() -> None:
    """Write the honest seeds."""
    numbers: dict[str, int] = {}
    for target, data in honest():
        numbers[target] = numbers.get(target, 0) + 1
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"honest-{numbers[target]:02}").write_bytes(data)


if __name__ == "__main__":
    main()
