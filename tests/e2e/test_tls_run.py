"""Workers over TLS, as people set it up: a certificate of one's own, and its fingerprint."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cli import (
    Running,
    caption_flow,
    caption_of,
    make_images,
    rows_by_name,
    running,
)

READY = "Orchestrator ready for connections"
PROMPT = "Describe this image."
SECRET = "a-token-nobody-else-may-see"


@dataclass
class Led:
    """A run whose orchestrator serves TLS."""

    leader: Running
    port: int
    folder: Path
    images: list[Path]
    fingerprint: str

    def worker(self, *options: str, url: str | None = None) -> tuple[str, ...]:
        server = url or f"wss://127.0.0.1:{self.port}"
        return (
            *("worker", "--server", server, "--token", "file:worker.token", "--no-config"),
            *("--engine", "synthetic", "--when-finished", "shutdown", *options),
        )

    def rows(self) -> dict[str, dict[str, object]]:
        self.leader.interrupt()
        assert self.leader.ends(seconds=30).code == 0
        return rows_by_name(self.folder / "run")


def _generate(folder: Path, *options: str) -> str:
    """Make a certificate, and return the fingerprint that is printed with it."""
    made = caption_flow("generate-cert", "--self-signed", *options, cwd=folder)
    assert made.code == 0, made.said
    printed = re.search(r"^SHA-256 +(\S+)$", made.out, re.MULTILINE)
    assert printed is not None
    return printed[1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _led(folder: Path, images: int) -> Iterator[Led]:
    fingerprint = _generate(folder)
    port = _free_port()
    (folder / "worker.token").write_text(SECRET)
    (folder / "orchestrator.json").write_text(
        json.dumps(
            {
                "port": port,
                "auth": {"worker_tokens": [{"token": "file:worker.token", "name": "w"}]},
                "dataset": {"type": "local_filesystem", "dataset_path": "images"},
                "vllm": {"model": "m", "inference_prompts": [PROMPT]},
                "storage": {"data_dir": "run"},
            }
        )
    )
    made = make_images(folder / "images", images)
    with running(
        *("orchestrator", "--config", "orchestrator.json"),
        *("--cert", "cert.pem", "--key", "key.pem"),
        cwd=folder,
    ) as leader:
        leader.says(rf"^{READY}$")
        yield Led(leader, port, folder, made, fingerprint)


def test_a_fingerprint_is_all_that_workers_need_and_files_are_taken_up(tmp_path: Path) -> None:
    with _led(tmp_path, images=6) as run:
        # Another fingerprint, an authority's word, and no TLS: refused, with what to do.
        for options, url, says in (
            (("--tls-fingerprint", "AB" * 32), None, r"is not the one of --tls-fingerprint"),
            ((), None, r"is self-signed.*inspect-cert.*--tls-fingerprint"),
            ((), f"ws://127.0.0.1:{run.port}", rf"write wss://127\.0\.0\.1:{run.port}"),
        ):
            refused = caption_flow(*run.worker(*options, url=url), cwd=tmp_path)
            assert refused.code == 1
            assert re.search(says, refused.said), refused.said
            assert SECRET not in refused.said
        served = caption_flow("inspect-cert", f"127.0.0.1:{run.port}", "--json", cwd=tmp_path)
        assert json.loads(served.out)["sha256"] == run.fingerprint
        assert json.loads(served.out)["trusted"] is False

        # A new pair in the same files: no restart.
        renewed = _generate(tmp_path, "--force")
        run.leader.says(rf"the certificate was replaced.*{renewed}")
        late = caption_flow(*run.worker("--tls-fingerprint", run.fingerprint), cwd=tmp_path)
        assert late.code == 1
        done = caption_flow(
            *run.worker("--tls-fingerprint", renewed.replace(":", "").lower()), cwd=tmp_path
        )
        assert done.code == 0, done.said
        assert "WARN" not in done.said.upper()
        rows = run.rows()
    assert {name: row["captions"] for name, row in rows.items()} == {
        image.name: [caption_of(image, PROMPT)] for image in run.images
    }
    assert SECRET not in run.leader.said


def test_an_unchecked_certificate_works_and_is_warned_of(tmp_path: Path) -> None:
    with _led(tmp_path, images=2) as run:
        done = caption_flow(*run.worker("--no-verify-ssl"), cwd=tmp_path)
        assert done.code == 0, done.said
        assert re.search(r"warning.*the certificate of .* is not checked", done.said)
        assert len(run.rows()) == 2


@pytest.mark.parametrize(
    ("server", "options", "says"),
    [
        ("ws://192.0.2.1:8765", (), r"say --insecure if a tunnel"),
        ("ws://192.0.2.1:8765", ("--no-verify-ssl",), r"say --insecure if a tunnel"),
        ("ws://127.0.0.1:1", ("--tls-fingerprint", "AB" * 32), r"write wss://"),
        ("wss://127.0.0.1:1", ("--tls-fingerprint", "AB" * 31), r"64 hexadecimal digits"),
    ],
)
def test_what_is_not_safe_is_refused_before_dialling(
    tmp_path: Path, server: str, options: tuple[str, ...], says: str
) -> None:
    refused = caption_flow(
        *("worker", "--server", server, "--token", SECRET, "--no-config"),
        *("--engine", "synthetic", *options),
        cwd=tmp_path,
    )
    assert refused.code == 2
    assert re.search(says, refused.err), refused.said
    assert SECRET not in refused.said


def test_a_certificate_that_cannot_be_used_ends_the_orchestrator_before_it_listens(
    tmp_path: Path,
) -> None:
    with _led(tmp_path, images=1):
        pass
    (tmp_path / "other").mkdir()
    _generate(tmp_path / "other")
    refused = caption_flow(
        *("orchestrator", "--config", "orchestrator.json"),
        *("--cert", "cert.pem", "--key", "other/key.pem"),
        cwd=tmp_path,
    )
    assert refused.code == 2
    assert refused.errors == ["ssl: other/key.pem is not the key of cert.pem"]
