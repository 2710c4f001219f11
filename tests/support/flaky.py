"""A storage in memory, as fsspec has them, whose connections are lost when a test says so."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
import pytest

from caption_flow.places import parquet


class FlakyStorage(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """``flaky://``; one for all, so that tests reach it."""

    protocol = "flaky"
    cachable = False
    files: ClassVar[dict[str, bytes]] = {}
    losses: ClassVar[list[BaseException | None]] = []
    """What comes of the next openings, None for nothing."""
    gone: ClassVar[dict[str, BaseException]] = {}
    """What comes of every opening of these files."""

    @classmethod
    @contextmanager
    def holding(cls, files: Mapping[str, bytes]) -> Iterator[type[FlakyStorage]]:
        """Hold these files meanwhile; whoever tries again does so at once."""
        fsspec.register_implementation("flaky", cls, clobber=True)
        cls.files = dict(files)
        cls.losses, cls.gone = [], {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parquet, "_PAUSE_SECONDS", 0.0)
            yield cls

    def _open(
        self,
        path: str,
        mode: str = "rb",  # noqa: ARG002  -- fsspec's own
        **options: Any,  # noqa: ARG002  -- fsspec's own
    ) -> io.BytesIO:
        loss = self.losses.pop(0) if self.losses else None
        loss = loss or self.gone.get(path)
        if loss is not None:
            raise loss
        if path not in self.files:
            raise FileNotFoundError(path)
        return io.BytesIO(self.files[path])
