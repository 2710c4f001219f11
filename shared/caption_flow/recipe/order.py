"""Order among things that wait for one another: a stable topological sort, and its cycles.

Pure. Things are named by their position, and ``needs[i]`` holds the positions that ``i`` waits for.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from collections.abc import Set as AbstractSet


def stable_order(needs: Sequence[AbstractSet[int]]) -> list[int]:
    """Return the positions so that each follows what it needs, otherwise in their own order.

    Positions that wait for a cycle, or are on one, are left out: `find_cycles` names those.
    """
    waiting_for = [len(needed) for needed in needs]
    waited_by: list[list[int]] = [[] for _ in needs]
    for position, needed in enumerate(needs):
        for other in needed:
            waited_by[other].append(position)
    ready = [position for position, count in enumerate(waiting_for) if count == 0]
    order = []
    while ready:
        position = heapq.heappop(ready)
        order.append(position)
        for follower in waited_by[position]:
            waiting_for[follower] -= 1
            if waiting_for[follower] == 0:
                heapq.heappush(ready, follower)
    return order


def find_cycles(needs: Sequence[AbstractSet[int]]) -> list[list[int]]:
    """Return cycles that share no member, each from its smallest position, without repeating it."""
    left = set(range(len(needs))) - set(stable_order(needs))
    cycles = []
    while cycle := _one_cycle(needs, left):
        start = cycle.index(min(cycle))
        cycles.append(cycle[start:] + cycle[:start])
        left -= set(cycle)
    return sorted(cycles)


def upstream_of(needs: Sequence[AbstractSet[int]], position: int) -> set[int]:
    """Return all that the position waits for, directly or through others."""
    found: set[int] = set()
    to_visit = list(needs[position])
    while to_visit:
        other = to_visit.pop()
        if other not in found:
            found.add(other)
            to_visit.extend(needs[other])
    return found


def _one_cycle(needs: Sequence[AbstractSet[int]], among: AbstractSet[int]) -> list[int]:
    """Return one cycle among the given positions, or nothing."""
    finished: set[int] = set()
    for start in sorted(among):
        path: list[int] = []
        position: int | None = start
        while position is not None and position not in finished:
            if position in path:
                return path[path.index(position) :]
            path.append(position)
            ahead = sorted(needs[position] & among - finished)
            while not ahead and path:
                # A dead end: nothing from here leads back, so step back and try another way.
                finished.add(path.pop())
                ahead = sorted(needs[path[-1]] & among - finished) if path else []
            position = ahead[0] if ahead else None
    return []
