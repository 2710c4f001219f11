"""``caption-flow doctor``: says what this machine can run, and what to install."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from caption_flow.cli.checkup import Finding, Verdict, examine
from caption_flow.cli.engine_checks import check_engine
from caption_flow.cli.failures import CommandFailed
from caption_flow.cli.machine import (
    check_disk,
    check_hub,
    check_memory,
    check_port,
    check_python,
    check_token,
)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Say whether this machine can caption with vLLM, and what is missing.

    Takes less than three seconds, loads nothing and claims no GPU. `ok` is fine, `note` works but
    not everything or not well, `bad` has to be changed first. Exits with 0 if this machine can
    caption, with 1 if it cannot.
    """
    findings = examine(
        {
            "Python": check_python,
            "vLLM": check_engine,
            "memory": check_memory,
            "disk": check_disk,
            "hub": check_hub,
            "hub token": check_token,
            "port": check_port,
        }
    )
    obstacles = [one for one in findings if one.verdict is Verdict.BAD]
    if as_json:
        document = [one.document() for one in findings]
        print(json.dumps({"can_caption": not obstacles, "findings": document}, indent=2))
    else:
        _print(findings)
    if obstacles:
        reasons = "; ".join(f"{one.about} {one.says}" for one in obstacles)
        raise CommandFailed(f"this machine cannot caption yet: {reasons}")
    if not as_json:
        print("This machine can caption: caption-flow run FOLDER (with --dry-run to look first).")


def _print(findings: list[Finding]) -> None:
    width = max(len(one.about) for one in findings)
    for one in findings:
        print(one.line(width))
