"""Exports beside a run that goes on: all formats of one show it at the same moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from caption_flow.cli import exporting
from caption_flow.cli.export_formats import Format, Request
from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter import ExportReport
from tests.integration.storage.folders import captioned, listed, opened


async def test_rows_that_come_between_two_formats_are_in_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = asyncio.get_running_loop()
    async with opened(tmp_path) as store:
        await store.write(listed(4))
        await store.write(captioned(0, 1))

        async def more() -> None:
            await store.write(captioned(2, 3))
            await store.checkpoint()

        def then_more(request: Request, contents: StorageContents) -> list[ExportReport]:
            reports = count(request, contents)
            asyncio.run_coroutine_threadsafe(more(), loop).result(timeout=30)
            return reports

        def count(_: Request, contents: StorageContents) -> list[ExportReport]:
            return [ExportReport(tmp_path, written=len(list(contents.iter_rows(["status"]))))]

        formats = {"first": Format(then_more), "second": Format(count)}
        monkeypatch.setattr(exporting, "FORMATS", formats)
        for expected in ("2 written", "4 written"):
            await asyncio.to_thread(exporting.export_rows, Request(tmp_path, "all", tmp_path))
            assert capsys.readouterr().out.count(expected) == 2
            formats["first"] = Format(count)
