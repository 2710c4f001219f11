"""Tokens on the command line, and that none of them is ever written down."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.support.fleet import (
    TOKEN,
    Fleet,
    Process,
    check_captions,
    expected_captions,
    stored_rows,
    write_images,
)

IMAGES = 60


def forms_of(token: str) -> Iterator[bytes]:
    """A token as it might be written down by somebody who did not think of it as one."""
    raw = token.encode()
    yield raw
    yield quote(token).encode()
    yield base64.b64encode(raw).rstrip(b"=")
    yield base64.urlsafe_b64encode(raw).rstrip(b"=")
    yield raw.hex().encode()
    yield repr(token)[1:-1].encode()
    yield sha256(raw).hexdigest().encode()


def traces(token: str, places: dict[str, bytes]) -> list[str]:
    return [name for name, said in places.items() if any(one in said for one in forms_of(token))]


def written_below(*folders: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


def command_lines(*processes: Process) -> dict[str, bytes]:
    """How the processes, and whatever they have started, look to everybody on the machine."""
    pids, found = [process.pid for process in processes], {}
    while pids:
        pid = pids.pop()
        proc = Path(f"/proc/{pid}")
        found[str(proc / "cmdline")] = (proc / "cmdline").read_bytes()
        for task in (proc / "task").iterdir():
            pids += [int(one) for one in (task / "children").read_text().split()]
    return found


async def finished(process: asyncio.subprocess.Process) -> str:
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_no_token_is_found_in_any_log_database_part_or_command_line(tmp_path: Path) -> None:
    tokens = {
        name: f"{name} {secrets.token_urlsafe(24)}+/="
        for name in ("literal", "variable", "file", "monitor", "guess")
    }
    admin = tmp_path / "admin.token"
    admin.write_text(f"{tokens['file']}\n")
    auth = {
        "worker_tokens": [
            {"token": tokens["literal"], "name": "literal"},
            {"token": "env:SOMEBODYS", "name": "variable"},
        ],
        "monitor_tokens": [{"token": tokens["monitor"], "name": "monitor"}],
        "admin_tokens": [{"token": f"file:{admin}", "name": "admin"}],
    }
    logs = tmp_path / "more logs"
    async with Fleet(tmp_path, auth=auth, storage={"caption_buffer_size": 20}) as fleet:
        fleet.env = {
            "CAPTIONFLOW_LOG_LEVEL": "DEBUG",
            "CAPTIONFLOW_LOG_DIR": str(logs),
            "SOMEBODYS": tokens["variable"],
            "PYTHONASYNCIODEBUG": "1",
            "GUESSED": tokens["guess"],
        }
        written = write_images(fleet.images, IMAGES)
        orchestrator = await fleet.orchestrator("--verbose")
        where = ("--config", str(fleet.config), "--token", f"file:{admin}")
        code, said = await fleet.command("auth", *where, "add", "worker", "newcomer")
        assert code == 0, said
        new = next(line for line in said.splitlines() if " " not in line.strip())
        tokens["new"] = new
        at = ("--server", f"ws://127.0.0.1:{fleet.port}", "--when-finished", "stay_connected")
        kind = ("--engine", "synthetic", "--verbose", "--no-config")
        stranger = await fleet.start("stranger", "worker", *at, *kind, "--token", "env:GUESSED")
        assert await stranger.exit_code() == 1
        assert "refused the token" in stranger.output
        workers = [await fleet.start("a worker", "worker", *at, *kind, "--token", "env:SOMEBODYS")]
        newcomer = tmp_path / "newcomer.token"
        newcomer.write_text(new)
        workers.append(
            await fleet.start("another", "worker", *at, *kind, "--token", f"file:{newcomer}")
        )
        for worker in workers:
            await worker.says("the run is finished")
        places = command_lines(orchestrator, *workers)
        places |= written_below(fleet.data_dir, logs, tmp_path / "logs")
        assert any(name.endswith("-wal") for name in places), "while it is being written"
        code, listed = await fleet.command("auth", *where, "list", "--json")
        assert code == 0
        code, removed = await fleet.command("auth", *where, "remove", "newcomer")
        assert code == 0, removed
        await workers[1].exit_code()
        orchestrator.signal(2)
        assert await orchestrator.exit_code() == 0
        places |= {f"{name}, later": one for name, one in written_below(fleet.data_dir).items()}
        places |= {"listed": listed.encode(), "removed": removed.encode()}
        places |= {one.name: one.output.encode() for one in (orchestrator, stranger, *workers)}
        # The log of all commands has the one place where a new token is said, once.
        command = next(name for name in places if name.endswith("logs/command.log"))
        assert places.pop(command).count(new.encode()) == 1
        found = {name: traces(token, places) for name, token in tokens.items()}
        assert found == {name: [] for name in tokens}
        rows = stored_rows(fleet.data_dir)
        assert {row["contributor"] for row in rows} <= {"variable", "newcomer"}
        captions = {row["filename"]: row["captions"][0] for row in rows}
        assert len(captions) == len(expected_captions(written)) == IMAGES


async def test_a_new_token_is_printed_alone_and_lets_a_worker_in_until_it_is_removed(
    tmp_path: Path,
) -> None:
    auth = {
        "worker_tokens": [{"token": "a worker's token, with spaces", "name": "somebody"}],
        "admin_tokens": [{"token": "an admin's own token", "name": "admin"}],
    }
    async with Fleet(tmp_path, auth=auth, lease_seconds=600) as fleet:
        write_images(fleet.images, IMAGES)
        before = fleet.config.read_bytes()
        await fleet.orchestrator()
        token = await said(fleet, "add", "worker", "guest", "--max-workers", "1", "--expires", "2h")
        assert token == f"{token.strip()}\n"
        assert fleet.config.read_bytes() == before, "the orchestrator was told, and remembers it"
        (tmp_path / "guest.token").write_text(token)
        at = ("--server", f"ws://127.0.0.1:{fleet.port}", "--engine", "synthetic", "--no-config")
        mine = ("worker", *at, "--token", f"file:{tmp_path / 'guest.token'}")
        guest = await fleet.start("guest", *mine)
        await guest.says("the run is finished")
        second = await fleet.start("second", *mine)
        assert await second.exit_code() == 1
        assert "is for 1 worker at a time, and 1 is connected" in second.output
        known = json.loads(await said(fleet, "list", "--json"))
        mine_listed = next(one for one in known if one["name"] == "guest")
        assert (mine_listed["max_workers"], mine_listed["workers"]) == (1, 1)
        assert "1 session ended" in await said(fleet, "remove", "guest")
        assert await guest.exit_code() == 1
        assert "refused the token" in guest.output
        late = await fleet.start("late", *mine)
        assert await late.exit_code() == 1
    assert len(stored_rows(fleet.data_dir)) == IMAGES


async def said(fleet: Fleet, *arguments: str) -> str:
    """What ``caption-flow auth`` prints on standard output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "caption_flow.cli", "auth", "--config", str(fleet.config)),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **fleet.env},
    )
    return await finished(process)


LIARS_TOKEN = "a liar's own token"
LOW_TOKEN = "an honest one's, of low trust"


async def test_a_liar_among_honest_workers_is_found_and_nothing_of_it_is_left(
    tmp_path: Path,
) -> None:
    """Of low trust, too, an honest worker stays: what it says follows from the pictures."""
    entries = [
        {"token": LIARS_TOKEN, "name": "liar", "trust": "low"},
        {"token": LOW_TOKEN, "name": "newcomer", "trust": "low"},
        {"token": TOKEN, "name": "somebody"},
    ]
    checks = {"share": 0.5, "min_samples": 5, "on_cheat": "revoke"}
    settings: dict[str, Any] = {"auth": {"worker_tokens": entries}, "spot_checks": checks}
    images = 400
    storage = {"caption_buffer_size": 50}
    async with Fleet(tmp_path, **settings, chunk_size=20, storage=storage) as fleet:
        written = write_images(fleet.images, images)
        orchestrator = await fleet.orchestrator()
        # Slow enough for the liar to have its share of the images, however fast the machine is.
        slow = {"latency_ms": 60, "requests_in_flight": 8}
        # Two words instead of two sentences: what somebody gains who does not look at pictures.
        lying = {"latency_ms": 100, "requests_in_flight": 4, "tokens": 2}
        liar = await fleet.worker("liar", engine=lying, token=LIARS_TOKEN)
        await orchestrator.says("worker joined")
        newcomer = await fleet.worker("newcomer", engine=slow, token=LOW_TOKEN)
        honest = await fleet.worker("honest", engine=slow)
        assert await honest.exit_code() == 0, honest.tail()
        assert await newcomer.exit_code() == 0, newcomer.tail()
        assert await liar.exit_code() == 1, liar.tail()
        assert "refused the token" in liar.output
        assert "all of a contributor is done again" in orchestrator.output
        orchestrator.signal(2)
        assert await orchestrator.exit_code() == 0
        rows = stored_rows(fleet.data_dir)
        check_captions(rows, expected_captions(written))
        assert {row["contributor"] for row in rows} == {"somebody", "newcomer"}
        await fleet.verify()
        code, output = await fleet.command(
            *("export", "--data-dir", str(fleet.data_dir), "--format", "jsonl"),
            *("--output", str(tmp_path / "exported")),
        )
        assert code == 0, output
        (file,) = (tmp_path / "exported").iterdir()
        exported = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(exported) == len({row["filename"] for row in exported}) == images
