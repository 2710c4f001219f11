"""A long export on a terminal shows how far it is; nothing else is written anywhere."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from caption_flow.cli.export_progress import ExportProgress
from caption_flow.storage.contents import Selection, StorageContents
from caption_flow.storage.exporter import export_jsonl
from tests.support.stored import Stored, stored


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def contents(progress: ExportProgress, reader: Stored) -> StorageContents:
    selection = Selection(lambda: reader, watcher=progress)
    return StorageContents.reading(
        selection, columns=reader.columns, output_fields=("captions",), total_rows=3
    )


@pytest.mark.parametrize("seconds_a_row", [0.1, 10.0])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_long_export_on_a_terminal_says_how_far_it_is_and_how_fast(
    tmp_path: Path, is_terminal: bool, seconds_a_row: float
) -> None:
    clock = Clock()
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=120, highlight=False)

    class Slow(Stored):
        def batches(self, *arguments: object) -> object:  # type: ignore[override]
            for batch in super().batches(*arguments):  # type: ignore[arg-type]
                clock.now += seconds_a_row
                yield batch

    reader = Slow([stored(0)], [stored(1)], [stored(2)])
    with ExportProgress(console, clock) as progress:
        progress.writing("jsonl", 3)
        export_jsonl(contents(progress, reader), tmp_path / "out.jsonl")
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    is_shown = is_terminal and seconds_a_row > 1
    assert ("jsonl" in said) is is_shown
    if is_shown:
        assert "3/3 rows" in said
        assert re.search(r"\d(\.\d)?/(s|min)", said)
    else:
        assert said == ""


def test_a_second_pass_counts_anew(tmp_path: Path) -> None:
    clock = Clock()
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, highlight=False)
    reader = Stored([stored(0), stored(1)], [stored(2)])
    with ExportProgress(console, clock) as progress:
        progress.writing("kohya", 3)
        clock.now += 5
        rows = contents(progress, reader)
        for _ in range(2):
            assert len(list(rows.iter_rows(["status"]))) == 3
    assert "3/3 rows" in screen.getvalue()
    assert "6/3" not in screen.getvalue()


def test_where_images_take_the_time_they_are_counted_and_not_rows() -> None:
    clock = Clock()
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, highlight=False)
    reader = Stored([stored(0), stored(1)], [stored(2)])
    with ExportProgress(console, clock) as progress:
        progress.writing("webdataset", 3)
        done = progress.counting_images()
        assert len(list(contents(progress, reader).iter_rows(["status"]))) == 3
        clock.now += 5
        done(1)
        assert "1/3 rows" in screen.getvalue()
        done(1)
    assert "2/3 rows" in screen.getvalue()
    assert "3/3" not in screen.getvalue()
