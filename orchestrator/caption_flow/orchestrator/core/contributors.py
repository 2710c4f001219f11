"""How many rows each contributor has, durable ones and those on their way to disk. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from caption_flow.protocol.rows import CAPTIONED


class Contributors:
    """Rows by contributor and kind, where a kind is ``captioned`` or a failure's."""

    def __init__(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Begin with the rows that are durable already."""
        self._counts = {name: Counter(kinds) for name, kinds in counts.items()}
        self._on_the_way: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        """Yield those who have brought anything."""
        return iter(self._counts)

    def set_out(self, name: str, rows: int) -> None:
        """Note rows on their way to disk."""
        self._on_the_way[name] += rows

    def arrive(self, name: str, rows: int, counts: Mapping[str, int]) -> None:
        """Note that rows are on their way no longer; ``counts`` are those that are durable."""
        self._on_the_way[name] -= rows
        if name and counts:
            self._counts.setdefault(name, Counter()).update(counts)

    def take_back(self, contributors: Mapping[str, Mapping[str, int]]) -> None:
        """Uncount rows whose items are to be done again."""
        for name, counts in contributors.items():
            self._counts.setdefault(name, Counter()).subtract(counts)

    def kinds(self, name: str) -> frozenset[str]:
        """Return the kinds of a contributor's rows."""
        return frozenset(self._counts.get(name, ()))

    def captioned(self, name: str) -> int:
        """Return how many items a contributor has captioned, durably."""
        return self._counts[name][CAPTIONED] if name in self._counts else 0

    def failed(self, name: str) -> int:
        """Return how many failed rows a contributor has, durably."""
        return self._rows(name) - self.captioned(name)

    def left(self, name: str, most: int) -> int:
        """Return how many more rows may count if there may be ``most`` in all."""
        return max(0, most - self._rows(name) - self._on_the_way[name])

    def _rows(self, name: str) -> int:
        return self._counts[name].total() if name in self._counts else 0
