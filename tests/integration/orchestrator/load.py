"""Workers that need no time for an item: ``python -m … URL TOKEN NUMBER-OF-WORKERS``.

A process of its own, so that what it does is no load on the orchestrator's event loop.
"""

from __future__ import annotations

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from caption_flow.protocol.codec import decode_from_orchestrator, encode
from caption_flow.protocol.messages import Finished, Grant, Hello, Results, Want
from caption_flow.protocol.rows import CAPTIONED, Row, encode_rows
from caption_flow.protocol.version import SUBPROTOCOL

BATCH = 64
TEXT = "A caption of an ordinary length, as a model writes one when it is asked to be brief. " * 3


def rows_of(items: tuple[int, ...]) -> bytes:
    rows = [Row(item, CAPTIONED, {"captions": [f"{TEXT}{item}"]}) for item in items]
    return encode_rows(rows, ("captions",))


async def work(url: str, token: str, number: int) -> None:
    async with connect(
        url,
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        additional_headers={"Authorization": f"Bearer {token}"},
        compression=None,
        max_size=2**26,
    ) as connection:
        await connection.send(encode(Hello(f"load {number}", f"load-session-{number:06d}")))
        await connection.send(encode(Want(2)))
        seq = 0
        while True:
            match decode_from_orchestrator(await connection.recv()):
                case Grant(leases):
                    for granted in leases:
                        items = tuple(item.index for item in granted.items)
                        for first in range(0, len(items), BATCH):
                            part = items[first : first + BATCH]
                            seq += 1
                            results = Results(seq, granted.lease, part, rows_of(part))
                            await connection.send(encode(results))
                    await connection.send(encode(Want(2)))
                case Finished():
                    return


async def main(url: str, token: str, workers: int) -> None:
    await asyncio.gather(*(work(url, token, number) for number in range(workers)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
