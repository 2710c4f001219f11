"""Making and inspecting certificates on the command line."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest

from caption_flow.certificates.describe import read_certificates
from caption_flow.certificates.fingerprint import shown
from caption_flow.cli.app import main
from tests.support.certificates import authority, pair

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def generate(*options: str) -> int:
    return main(["generate-cert", "--self-signed", *options])


def test_a_certificate_comes_with_the_commands_that_use_it(capsys: Captured) -> None:
    assert generate("--domain", "captions.example.org", "--domain", "203.0.113.7") == 0
    out = capsys.readouterr().out
    [made] = read_certificates(Path("cert.pem"))
    assert made.names == ("captions.example.org", "203.0.113.7")
    assert f"SHA-256      {shown(made.fingerprint)}\n" in out
    assert "--cert cert.pem --key key.pem\n" in out
    assert re.search(
        r"worker --server wss://captions\.example\.org:8765 --token file:worker\.token "
        rf"--tls-fingerprint {shown(made.fingerprint)}$",
        out,
        re.MULTILINE,
    )
    assert stat.S_IMODE(Path("key.pem").stat().st_mode) == 0o600


def test_without_names_it_is_for_this_machine() -> None:
    assert generate() == 0
    [made] = read_certificates(Path("cert.pem"))
    assert {"localhost", "127.0.0.1", "::1"} <= set(made.names)


def test_an_ipv6_address_is_written_into_the_command_as_urls_want_it(capsys: Captured) -> None:
    assert generate("--domain", "2001:db8::7") == 0
    assert "wss://[2001:db8::7]:8765" in capsys.readouterr().out


def test_files_go_where_they_are_wanted() -> None:
    assert generate("--output_dir", "new/folder", "--days", "7") == 0
    assert sorted(path.name for path in Path("new/folder").iterdir()) == ["cert.pem", "key.pem"]


@pytest.mark.parametrize("name", ["cert.pem", "key.pem"])
def test_nothing_is_replaced_unless_that_was_said(capsys: Captured, name: str) -> None:
    Path(name).write_text("precious")
    assert generate() == 2
    assert f"already there: {name}; --force replaces both" in capsys.readouterr().err
    assert Path(name).read_text() == "precious"
    assert len(list(Path().iterdir())) == 1
    assert generate("--force") == 0
    assert Path(name).read_text() != "precious"


def test_what_is_no_name_is_refused_before_anything_is_written(capsys: Captured) -> None:
    assert generate("--domain", "wss://captions.example.org:8765") == 2
    assert "without ws:// and without a port" in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_a_folder_that_cannot_be_written_is_named(capsys: Captured) -> None:
    Path("a file").touch()
    assert generate("--output-dir", "a file") == 2
    assert "a file cannot be written to" in capsys.readouterr().err


def test_certificates_of_authorities_come_from_certbot(capsys: Captured) -> None:
    asked = ("--domain", "a.example", "--domain", "b.example", "--email", "me@b.example")
    assert main(["generate-cert", *asked, "--staging"]) == 2
    said = capsys.readouterr().err
    assert "not built in" in said
    assert "certbot certonly --standalone -d a.example -d b.example -m me@b.example" in said
    assert "--cert /etc/letsencrypt/live/a.example/fullchain.pem" in said
    assert "without a restart" in said
    assert not list(Path().iterdir())


def test_what_a_certificate_says_is_shown(capsys: Captured) -> None:
    generate("--domain", "a.example", "--days", "30")
    capsys.readouterr()
    assert main(["inspect-cert", "cert.pem"]) == 0
    out = capsys.readouterr().out
    [made] = read_certificates(Path("cert.pem"))
    for said in ("CN=a.example", "self-signed", "29 days left", shown(made.fingerprint)):
        assert said in out
    assert "network" not in out


def test_programs_get_the_same_as_json(folder: Path, capsys: Captured) -> None:
    made = pair(folder / "tls", ["a.example", "203.0.113.7"], by=authority(folder, "somebody"))
    assert main(["inspect-cert", "tls/cert.pem", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["names"] == ["a.example", "203.0.113.7"]
    assert (said["subject"], said["issuer"]) == ("CN=a.example", "CN=somebody")
    assert said["sha256"] == shown(made.fingerprint)
    assert (said["days_left"], said["valid_now"], said["self_signed"]) == (29, True, False)
    assert "trusted" not in said, "a file was looked at, and no server"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ends_in_days": -0.5}, "it expired on"),
        ({"begins_in_days": 0.5}, "it is not valid before"),
    ],
)
def test_one_that_does_not_count_now_is_a_failure(
    folder: Path, capsys: Captured, options: dict[str, float], says: str
) -> None:
    pair(folder / "tls", **options)  # type: ignore[arg-type]  # a test's
    assert main(["inspect-cert", "tls/cert.pem"]) == 1
    assert says in capsys.readouterr().out


def test_what_strangers_wrote_moves_no_cursor(folder: Path, capsys: Captured) -> None:
    pair(folder / "tls", ["\x1b[2J.example"])
    assert main(["inspect-cert", "tls/cert.pem"]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "code", "says"),
    [
        ("missing.pem", 2, "missing.pem cannot be read: No such file or directory"),
        (".", 2, ". cannot be read: Is a directory"),
        ("key.pem", 2, "key.pem holds a private key and no certificate"),
        ("ws://127.0.0.1:1", 2, "names no TLS server"),
        ("wss://127.0.0.1:no", 2, "names no TLS server"),
        ("127.0.0.1:1", 1, "no connection to 127.0.0.1:1: Connection refused"),
    ],
)
def test_what_cannot_be_inspected_is_named(
    capsys: Captured, where: str, code: int, says: str
) -> None:
    generate()
    assert main(["inspect-cert", where]) == code
    assert says in capsys.readouterr().err
