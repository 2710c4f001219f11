"""The protocol's version, in the one place that may change it.

The subprotocol's name carries the major version. Within a major version messages only gain
optional fields, so that an orchestrator and a worker of different releases understand each other.
"""

from __future__ import annotations

from collections.abc import Sequence

SUBPROTOCOL = "caption-flow.v1"
_FAMILY = "caption-flow.v"
_MOST_DIGITS = 6


def refusal(offered: Sequence[str]) -> str | None:
    """Say why a peer that offers these subprotocols cannot be served, or None if it can.

    The sentence names the side that has to upgrade.
    """
    if SUBPROTOCOL in offered:
        return None
    ours = int(SUBPROTOCOL.removeprefix(_FAMILY))
    theirs = [
        int(name.removeprefix(_FAMILY))
        for name in offered
        if name.startswith(_FAMILY)
        and name.removeprefix(_FAMILY).isdecimal()
        and len(name) <= len(_FAMILY) + _MOST_DIGITS
    ]
    if not theirs:
        return f"this is a CaptionFlow orchestrator; connect with the subprotocol {SUBPROTOCOL}"
    side = "orchestrator" if max(theirs) > ours else "worker"
    return (
        f"this orchestrator speaks protocol {ours}, the peer offers {max(theirs)}: "
        f"upgrade the {side} (pip install -U caption-flow)"
    )
