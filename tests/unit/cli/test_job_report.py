from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from caption_flow.cli.gpus import Shares
from caption_flow.cli.job_report import JobReport
from caption_flow.cli.plan import Plan
from caption_flow.cli.summary import Failure, Findings, Outcome
from caption_flow.cli.workspace import Workspace
from caption_flow.config.load import load_orchestrator
from caption_flow.orchestrator.core.progress import Progress
from caption_flow.storage.exporter.report import ExportReport


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    place = Workspace.at(tmp_path / "job")
    place.folder.mkdir()
    overrides = {
        "dataset": {"type": "local", "dataset_path": "photos\udcff"},
        "vllm": {"model": "m", "inference_prompts": ["What?"]},
        "storage.data_dir": str(place.data_dir),
    }
    return Plan(
        config=load_orchestrator(None, overrides).config,
        engine="synthetic",
        server=None,
        worker_arguments=(),
        worker_secrets={},
        gpus=Shares((None,)),
        output=None,
        existing="skip",
        export_column="captions",
        limit=7,
        workspace=place,
        replaced=("port",),
        notes=("a note",),
    )


def said_by(plan: Plan) -> dict[str, Any]:
    assert plan.workspace is not None
    found: dict[str, Any] = json.loads(plan.workspace.report.read_bytes())
    return found


def outcome(done: int, total: int = 3) -> Outcome:
    failures = {"image_empty": 1} if done else {}
    captioned = done - len(failures)
    progress = Progress(total, True, captioned, failures, total - done, 0, 1, 0.0, None, 0)
    return Outcome(progress, 0, 2.0, 1.0)


def test_there_is_no_report_of_a_run_that_never_owned_its_workspace(plan: Plan) -> None:
    JobReport(plan).end(2, "is in use")
    assert plan.workspace is not None
    assert not plan.workspace.report.exists()


def test_a_run_is_running_from_its_first_moment_until_it_has_ended(plan: Plan) -> None:
    report = JobReport(plan)
    report.begin()
    first = said_by(plan)
    assert (first["state"], first["exit_code"], first["ended_at"]) == ("running", None, None)
    report.look(outcome(2))
    second = said_by(plan)
    assert (second["state"], second["counts"]["captioned"]) == ("running", 1)
    assert second["started_at"] == first["started_at"]
    assert first.keys() == second.keys()
    report.end(0)
    assert said_by(plan)["state"] != "running"
    assert said_by(plan).keys() == first.keys()


@pytest.mark.parametrize(
    ("done", "exit_code", "state"),
    [
        (3, 0, "finished"),
        (2, 0, "stopped"),
        (3, 1, "failed"),
        (2, 2, "failed"),
        (2, 130, "stopped"),
        (3, 130, "stopped"),
    ],
)
def test_how_a_run_has_ended(plan: Plan, done: int, exit_code: int, state: str) -> None:
    report = JobReport(plan)
    report.begin()
    report.look(outcome(done))
    report.end(exit_code, None if exit_code == 0 else "why")
    said = said_by(plan)
    assert (said["state"], said["exit_code"]) == (state, exit_code)
    assert said["error"] == (None if exit_code == 0 else "why")
    assert said["ended_at"] is not None


def test_what_was_found_and_written_is_said(plan: Plan) -> None:
    report = JobReport(plan)
    report.begin()
    report.look(outcome(3))
    failures = [Failure(f"\udcff{n}.png", None, "image_empty", "empty") for n in range(150)]
    report.note_rows(Findings(failures, flags=Counter({"length": 2}), flagged=2))
    report.note_export("txt", ExportReport(Path("photos\udcff"), written=2))
    report.note("another note")
    report.end(0)
    said = said_by(plan)
    assert said["failures"]["by_kind"] == {"image_empty": 1}
    assert len(said["failures"]["first"]) == 100
    assert said["failures"]["first"][0]["item"] == r"\xff0.png"
    assert (said["flags"], said["counts"]["flagged"]) == ({"length": 2}, 2)
    assert said["exports"][0]["destination"] == str(Path.cwd() / r"photos\xff")
    assert said["notes"] == ["a note", "another note"]
    assert said["replaced"] == ["port"]
    assert said["dataset"]["path"] == r"photos\xff"


def test_a_report_that_cannot_be_written_costs_nobody_the_captions(plan: Plan) -> None:
    report = JobReport(plan)
    report.begin()
    assert plan.workspace is not None
    plan.workspace.report.unlink()
    plan.workspace.folder.rmdir()
    report.look(outcome(1))
    report.end(0)
