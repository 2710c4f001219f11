"""What an upload to the hub sends, leaves, waits for and refuses; the library is the real one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from caption_flow.storage.exporter.errors import ExportError
from caption_flow.storage.exporter.hub_client import HubMistakeError
from caption_flow.storage.exporter.report import Skip
from tests.support.hub import STRANGER, Repository
from tests.support.hub_uploads import UploadHub
from tests.support.made_run import captioned, make_run
from tests.support.uploading import card, in_this_process, publish, rows_in, shards

# The hub's library hands files over in a way that its own transport is about to give up.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_this_process(monkeypatch, tmp_path)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a run of 300 rows."""
    make_run(tmp_path / "run", [captioned(number) for number in range(300)])
    return tmp_path


async def test_what_is_there_already_is_neither_sent_nor_committed_again(here: Path) -> None:
    async with UploadHub() as hub:
        await publish(here, hub, license="mit")
        sent = list(hub.uploads)
        report = await publish(here, hub, license="mit")
        assert (report.written, report.unchanged) == (0, 300)
        assert report.shown == f"{hub.url}/datasets/org/words"
        assert hub.uploads == sent
        assert len(hub.commits) == 1


async def test_a_grown_run_sends_only_what_is_new(here: Path) -> None:
    async with UploadHub() as hub:
        await publish(here, hub, where="item_index < 200")
        before = {path: hub.files("words")[path] for path in shards(hub)}
        await publish(here, hub)
        same = [path for path, data in before.items() if hub.files("words")[path] == data]
        assert len(same) >= len(before) - 1
        assert len(hub.uploads) == len(set(hub.uploads))


async def test_a_smaller_export_takes_its_own_files_away_and_nobody_elses(here: Path) -> None:
    async with UploadHub() as hub:
        await publish(here, hub)
        hub.files("words").update({"notes.json": b"{}", "captions/extra.md": b"mine"})
        await publish(here, hub, limit=20, columns=("filename", "captions"))
        assert shards(hub) == ["captions/train-00000.parquet"]
        assert all(set(row) == {"filename", "captions"} for row in rows_in(hub))
        assert len(rows_in(hub)) == 20
        assert hub.files("words")["notes.json"] == b"{}"
        assert hub.files("words")["captions/extra.md"] == b"mine"
        assert "20 rows, 20 of them captioned" in card(hub)[1]


async def test_what_others_change_meanwhile_is_kept(here: Path) -> None:
    theirs = b"---\nlicense: mit  # ours\npretty_name: Our words\n---\nBy hand.\n"
    async with UploadHub() as hub:
        hub.before_commit = [{"README.md": theirs, "LICENSE.md": b"MIT"}]
        await publish(here, hub)
        head, text = card(hub)
        assert (head["license"], head["pretty_name"]) == ("mit", "Our words")
        assert b"# ours" in hub.files("words")["README.md"]
        assert text.startswith("By hand.\n")
        assert "300 rows" in text
        edited = hub.files("words")["README.md"].replace(b"By hand.", b"By our hands.") + b"The end"
        hub.files("words")["README.md"] = edited
        await publish(here, hub, limit=30, tags=("c",))
        head, text = card(hub)
        assert text.startswith("By our hands.\n")
        assert text.endswith("-->\nThe end")
        assert text.count("caption-flow: begin") == 1
        assert "c" in head["tags"]
        assert len(head["configs"]) == 1


async def test_a_file_of_ours_that_others_replaced_is_not_overwritten(here: Path) -> None:
    async with UploadHub() as hub:
        await publish(here, hub)
        hub.files("words")["captions/train-00001.parquet"] = b"better"
        with pytest.raises(HubMistakeError, match=r"no export wrote \(captions/train-00001"):
            await publish(here, hub, limit=20)
        assert hub.files("words")["captions/train-00001.parquet"] == b"better"


async def test_a_private_dataset_stays_private(here: Path) -> None:
    async with UploadHub(words=Repository({"main": {}}, private=True)) as hub:
        report = await publish(here, hub)
        assert "org/words is private, and stays so" in report.problems
        assert hub.repositories["org/words"].private


async def test_what_is_there_is_left_if_that_is_wanted(here: Path) -> None:
    async with UploadHub() as hub:
        await publish(here, hub)
        report = await publish(here, hub, keep_existing=True, limit=1)
        assert report.skipped[Skip.EXISTING] == 1
        assert len(hub.commits) == 1


TROUBLES: dict[str, dict[str, list[str]]] = {
    "the server fails everywhere": {
        "create": ["500"],
        "preupload": ["503"],
        "batch": ["500"],
        "put": ["500"],
        "commit": ["500"],
        "/api/datasets/org/words": ["503"],
    },
    "too many requests": {"put": ["429"], "commit": ["429"]},
    "connections are cut": {"put": ["reset"], "batch": ["reset"], "commit": ["reset"]},
    "the answer to the commit is lost": {"commit": ["lost"]},
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_what_passes_is_waited_for(here: Path, trouble: str) -> None:
    async with UploadHub() as hub:
        hub.faults = {what: list(faults) for what, faults in TROUBLES[trouble].items()}
        await publish(here, hub)
        assert not any(hub.faults.values()), "each was met"
        assert len(hub.commits) == 1
        assert len(rows_in(hub)) == 300


OTHERS = {"README.md": b"# Theirs\n", "data/train.csv": b"a,b"}
REFUSED: dict[str, tuple[dict[str, Any], type[ExportError], str]] = {
    "no token": (
        {"token": ""},
        HubMistakeError,
        "no token is given .*: hf auth login, or set",
    ),
    "a token that is none": (
        {"token": "hf_mistyped"},
        HubMistakeError,
        "refuses the token given here",
    ),
    "a token that may not": (
        {"token": STRANGER, "repository": "org/public"},
        HubMistakeError,
        "may not write to org/public: take one that has the right",
    ),
    "another's account": (
        {"repository": "them/words"},
        HubMistakeError,
        "may not write to them/words: .*namespace",
    ),
    "another's dataset": (
        {"repository": "them/theirs"},
        HubMistakeError,
        "may not write to them/theirs",
    ),
    "a hidden one of the same name": (
        {"repository": "org/hidden"},
        HubMistakeError,
        "org/hidden is there already, and the token given here",
    ),
    "no name": ({"repository": "org/a b"}, HubMistakeError, "--hf-dataset: .*org/a b"),
    "no account": (
        {"repository": "words"},
        HubMistakeError,
        "'words' is no ORG/NAME, such as me/words",
    ),
    "an unknown license": ({"license": "min"}, HubMistakeError, '"license" must be one of'),
    "public, though to be private": (
        {"repository": "org/public", "private": True},
        HubMistakeError,
        "org/public is public, and an export changes no repository's visibility",
    ),
    "others' data": (
        {"repository": "org/taken"},
        HubMistakeError,
        r"has data that no export wrote \(data/train.csv\): choose a repository of its own",
    ),
    "no row": ({"where": "item_index < 0"}, ExportError, "no row is left to upload"),
    "too many splits": ({"splits": 30}, ExportError, "more than 16 splits: --split NAME"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    asked, error, says = REFUSED[case]
    asked = dict(asked)
    splits = asked.pop("splits", 1)
    rows = [captioned(number, split=f"part {number % splits}") for number in range(30)]
    make_run(tmp_path / "run", rows, columns={"split": pa.string()})
    if "token" in asked:
        monkeypatch.setenv("HF_TOKEN", asked.pop("token"))
    public = Repository({"main": {".gitattributes": b""}})
    async with UploadHub(public=public, taken=Repository({"main": dict(OTHERS)})) as hub:
        hub.repositories["them/theirs"] = Repository({"main": {}})
        hub.invisible = {"org/hidden"}
        with pytest.raises(ExportError) as caught:
            await publish(tmp_path, hub, **asked)
        assert type(caught.value) is error
        assert re.search(says, str(caught.value)), caught.value
        assert not hub.commits
        assert hub.repositories["org/taken"].branches["main"] == OTHERS
        assert not (tmp_path / "run/hub_spool").exists()
