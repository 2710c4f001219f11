from __future__ import annotations

from pathlib import Path

from caption_flow.cli.crew import last_error


def test_the_last_word_of_a_log_is_the_reason(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text(
        "2026-01-01 00:00:00 [error    ] Error: the first one\n"
        "Traceback (most recent call last):\n"
        "ModuleNotFoundError: Error: of somebody else's\n"
        "2026-01-01 00:00:01 [error    ] Error: no such model; check the spelling  \n"
        "RuntimeError: a library's farewell\n"
    )
    assert last_error(log) == "no such model; check the spelling"


def test_a_mistake_that_the_command_line_found_is_a_reason_too(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("Error: command line: server: is missing\n")
    assert last_error(log) == "command line: server: is missing"


def test_what_went_wrong_in_an_earlier_run_is_no_reason(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("Error: yesterday's\n")
    begins = log.stat().st_size
    with log.open("a") as file:
        file.write("Killed\n")
    assert last_error(log, begins) is None
    assert last_error(tmp_path / "missing.log") is None
