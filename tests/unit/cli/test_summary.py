from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from caption_flow.cli.gpus import Shares
from caption_flow.cli.plan import Plan
from caption_flow.cli.summary import Failure, Findings, Outcome, summary
from caption_flow.config.load import load_orchestrator
from caption_flow.orchestrator.core.progress import Progress
from caption_flow.storage.exporter.report import ExportReport, Skip


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    overrides = {
        "dataset": {"type": "local_filesystem", "dataset_path": "photos"},
        "vllm": {"model": "m", "inference_prompts": ["What?"]},
        "storage.data_dir": "my results",
    }
    return Plan(
        server=None,
        worker_secrets={},
        config=load_orchestrator(None, overrides).config,
        engine="vllm",
        worker_arguments=(),
        gpus=Shares((None,)),
        output=None,
        existing="skip",
        export_column="captions",
        limit=None,
    )


def outcome(
    *, seconds: float = 10.0, loading: float = 1.0, left_out: int = 0, **said: Any
) -> Outcome:
    values: dict[str, Any] = {
        "total": 1000,
        "listed": True,
        "captioned": 0,
        "failures": {},
        "pending": 0,
        "leased": 0,
        "workers": 0,
        "rate": 0.0,
        "eta_seconds": None,
        "before": 0,
    }
    return Outcome(Progress(**{**values, **said}), left_out, seconds, loading)


def said(plan: Plan, ended: Outcome, findings: Findings | None = None) -> list[str]:
    report = ExportReport(Path("photos"), written=3)
    report.skip(Skip.CONFLICT, "'x.png' has no file of its own: 'x.txt' belongs to 'x.jpg'")
    return list(summary(plan, ended, report, findings or Findings()))


def test_a_run_that_is_done_says_how_many_how_long_and_how_fast(plan: Plan) -> None:
    lines = said(plan, outcome(captioned=990, failures={"b": 4, "a": 6}, before=100))
    assert lines[0] == "Done: 900 images in 10 s (100/s)."
    assert "  captioned  990" in lines
    assert "  failed     10  (a: 6, b: 4)" in lines
    assert "  texts      photos  (3 written, 1 skipped (conflict))" in lines
    assert "  results    my results/captions  (Parquet)" in lines


def test_the_time_a_model_took_to_load_does_not_count_against_the_rate(plan: Plan) -> None:
    lines = said(plan, outcome(captioned=1000, seconds=60.0, loading=50.0))
    assert lines[0] == (
        "Done: 1,000 images in 1 min 0 s (100/s once the model was loaded, which took 50 s)."
    )


def test_a_run_that_was_stopped_says_how_to_go_on(plan: Plan) -> None:
    lines = said(plan, outcome(captioned=7, listed=False))
    assert lines[0] == (
        "Stopped after 10 s with 7 of 1,000 or more images done; "
        "the same command goes on from here."
    )


def test_a_run_without_work_says_why_there_was_none(plan: Plan) -> None:
    done = said(plan, outcome(captioned=1000, before=1000))
    assert done[0] == "Nothing to do: all 1,000 images were done already."
    others = said(plan, outcome(total=0, left_out=30))
    assert others[0] == "Nothing to do: all 30 images have a .txt already."
    assert "  left out   30 have a .txt already (see --existing)" in others


def test_failures_are_named_with_what_to_do_about_them(plan: Plan) -> None:
    findings = Findings(
        [
            Failure("a.png", "a.png", "image_empty", "empty"),
            Failure("long/b.png", "long/b.png", "image_corrupt", "damaged"),
        ]
    )
    lines = said(plan, outcome(captioned=900, failures={"x": 100}), findings)
    begins = lines.index("Failed:")
    assert lines[begins + 1 : begins + 5] == [
        "  a.png       empty",
        "  long/b.png  damaged",
        "  … and 98 more: rows with status failed",
        "  (to try them again: caption-flow retry-failed --data-dir 'my results')",
    ]


def test_images_without_a_file_of_their_own_are_named(plan: Plan) -> None:
    lines = said(plan, outcome(captioned=1000))
    assert lines[-1] == "Note: 'x.png' has no file of its own: 'x.txt' belongs to 'x.jpg'"


def test_flags_are_counted_by_row_and_by_kind(plan: Plan) -> None:
    findings = Findings(flags=Counter(refusal=2, length=1_000), flagged=1_001)
    lines = said(plan, outcome(captioned=2_000), findings)
    assert "  flagged    1,001  (length: 1,000, refusal: 2)" in lines
    assert not any("flagged" in line for line in said(plan, outcome(captioned=2_000)))
