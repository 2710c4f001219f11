"""The state of a run as people see it."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from caption_flow.cli.monitor import shown_by
from caption_flow.cli.status_view import History, Shown, graph, headline, size, view
from caption_flow.cli.watching import as_line, report_of
from caption_flow.config.monitor import MonitorConfig
from caption_flow.protocol.report import (
    Contributor,
    Report,
    StorageReport,
    Tokens,
    WorkerReport,
    from_wire,
    to_wire,
)

WORKER = WorkerReport(
    name="ada",
    contributor="rented",
    version="1.0.0",
    engine="vllm",
    device="gpu 0",
    address="10.1.2.3:4567",
    leases=2,
    items=1500,
    rate=12.3,
    done=4000,
    starved_seconds=75.0,
    last_seen_seconds=3.0,
)
REPORT = Report(
    state="running",
    time=1000.0,
    dataset="photos",
    total=10_000,
    listed=True,
    pending=4000,
    leased=1500,
    committing=20,
    captioned=4400,
    failed={"corrupt_image": 70, "quarantined": 10},
    quarantined=10,
    flagged={"length": 3},
    unserved={"judge": 7},
    rate=12.0,
    rate_average=8.5,
    eta_seconds=460.0,
    tokens=Tokens(total_in=1_000_000, total_out=5000, in_per_second=2000.4, out_per_second=99.6),
    workers=(WORKER,),
    storage=StorageReport(
        parts=4, rows=4000, bytes=1_234_567, buffered_rows=480, last_checkpoint_at=988.0
    ),
    contributors=(Contributor(name="rented", rows=4480, captioned=4400, failed=80),),
)


def shown(
    report: Report, how: Shown | None = None, history: History | None = None, width: int = 160
) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False, markup=False, color_system=None)
    console.print(view(report, how or Shown(), history))
    return file.getvalue()


def changed(**facts: object) -> Report:
    return msgspec.structs.replace(REPORT, **facts)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_narrow_terminals_leave_out_columns_rather_than_letters(width: int) -> None:
    lines = shown(REPORT, width=width).splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("worker  ")]
    names, cells = lines[at].split(), lines[at + 1]
    assert {"worker", "done", "rate", "seen"} <= set(names)
    assert ("address" in names) == (width >= 100)
    assert "…" not in lines[at] + cells
    assert cells.startswith("ada ")
    assert cells.rstrip().endswith("3 s ago")


def test_the_headline_says_how_far_the_run_is() -> None:
    assert headline(REPORT) == (
        "running 4,480/10,000 (44.8%), 12/s now, 8.5/s on average, 7 min 40 s left, 1 worker"
    )
    assert headline(changed(listed=False, eta_seconds=None, rate=0.0, workers=())) == (
        "running 4,480/10,000+, 8.5/s on average, 0 workers"
    )


def test_everything_there_is_to_know_is_shown() -> None:
    text = shown(REPORT)
    for part in (
        "photos",
        "80: corrupt_image 70, quarantined 10",
        "length 3",
        "1,500, 20 on the way to disk",
        "1,000,000 in (2,000/s), 5,000 out (100/s)",
        "4 parts with 4,000 rows, 1.2 MB; 480 rows in the ledger; last checkpoint 12 s ago",
        "7 items wait for the stage judge, which no worker runs",
        "10.1.2.3:4567",
        "vllm gpu 0",
        "1 min 15 s",
        "3 s ago",
        "4,480",
    ):
        assert part in text


def test_trouble_and_lost_workers_are_shown() -> None:
    lost = msgspec.structs.replace(WORKER, connected=False)
    text = shown(changed(trouble="the disk is full", workers=(lost,)))
    assert "Trouble: the disk is full" in text
    assert "lost" in text
    assert "0 workers" in text


@pytest.mark.parametrize("evil", ["\x1b[2J", "\r", "\n", "\x07", "\x9b1A", "\u202e", "\x00"])
def test_what_comes_from_workers_moves_no_cursor(evil: str) -> None:
    name = f"a{evil}b"
    worker = WorkerReport(name=name, contributor=name, version=name, engine=name, address=name)
    report = Report(
        state=name,
        dataset=name,
        failed={name: 1},
        flagged={name: 1},
        unserved={name: 1},
        trouble=name,
        workers=(worker,),
        contributors=(Contributor(name=name, rows=1),),
    )
    history = History(Shown(activity=20))
    history.note(Report(), at="12:00")
    history.note(report, at="12:01")
    history.lost(name, at="12:02")
    text = shown(report, Shown(graph=True, activity=20), history)
    lines = text.splitlines()
    assert (
        evil not in text.replace("\n", "") if evil != "\n" else all(ln[-1:] != "a" for ln in lines)
    )
    assert evil not in headline(report)


def test_names_are_no_markup() -> None:
    assert "[red]ada[/red]" in shown(changed(workers=(WorkerReport(name="[red]ada[/red]"),)))


def test_a_monitor_shows_what_its_configuration_says() -> None:
    how = shown_by(
        MonitorConfig(
            show_contributors=False,
            show_quality_metrics=False,
            show_chunk_progress=False,
            show_worker_queues=False,
            show_throughput_graph=False,
            max_activity_items=0,
        )
    )
    history = History(how)
    history.note(REPORT, at="12:00")
    history.note(changed(state="paused"), at="12:01")
    text = shown(REPORT, how, history)
    for part in ("contributor", "corrupt_image", "pending", "leases", "paused", "▁"):
        assert part not in text
    assert "ada" in text


def test_what_happens_is_told_once_and_only_so_many_lines_are_kept() -> None:
    history = History(Shown(activity=4))
    history.note(REPORT, at="12:00")
    history.note(
        changed(
            workers=(WorkerReport(name="bob", address="1.1.1.1:1"),),
            failed={"corrupt_image": 72, "quarantined": 10},
            storage=StorageReport(rows=4480),
        ),
        at="12:01",
    )
    assert list(history.activity) == [
        "12:01 worker bob joined from 1.1.1.1:1",
        "12:01 worker ada left",
        "12:01 2 failed: corrupt_image",
        "12:01 checkpoint: 480 rows",
    ]
    history.lost("gone", at="12:02")
    history.lost("gone", at="12:03")
    assert list(history.activity)[-1] == "12:02 gone"
    assert len(history.activity) == 4


def test_the_graph_has_its_highest_bar_where_the_rate_was_highest() -> None:
    assert graph([0.0, 5.0, 10.0]) == "▁▅█"
    assert graph([0.0, 0.0]) == "▁▁"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.2 kB"), (5e12, "5.0 TB")]
)
def test_sizes_are_in_units(number: float, text: str) -> None:
    assert size(number) == text


def test_a_line_of_json_is_one_line_whatever_workers_are_called() -> None:
    line = as_line(to_wire(changed(workers=(WorkerReport(name="a\nb\u2028\x1b[2J"),))))
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert line.isprintable()


def test_a_report_of_another_release_is_read_with_what_it_has() -> None:
    assert from_wire({"state": "running", "a key of later": 1}).total == 0
    with pytest.raises(Exception, match="no state of a run"):
        report_of({"total": "many"})
