"""What must not go to the hub, or not so: a sentence, an exit code, and nothing changed there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support.cli import caption_flow
from tests.support.hub import STRANGER, TOKEN, Repository
from tests.support.hub_uploads import UploadHub
from tests.support.made_run import captioned, make_run
from tests.support.uploading import arguments, upload


@pytest.fixture(autouse=True)
def _alone(beside_the_hub: pytest.MonkeyPatch) -> None:
    beside_the_hub.setenv("HF_HUB_DISABLE_XET", "1")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    make_run(tmp_path / "run", [captioned(number) for number in range(30)])
    return tmp_path


OTHERS = {"README.md": b"# Theirs\n", "data/train.csv": b"a,b"}
REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "no token": ({"token": None}, 2, "no token is given .* hf auth login, or set HF_TOKEN"),
    "a token that is none": ({"token": "hf_mistyped"}, 2, "refuses the token given here"),
    "a token that may not": (
        {"token": STRANGER, "dataset": "org/public"},
        2,
        "may not write to org/public: take one that has the right",
    ),
    "another's account": ({"dataset": "them/words"}, 2, "may not write to them/words: .*namespace"),
    "another's dataset": ({"dataset": "them/theirs"}, 2, "may not write to them/theirs"),
    "a hidden one of the same name": (
        {"dataset": "org/hidden"},
        2,
        "org/hidden is there already, and the token given here",
    ),
    "no name": ({"dataset": "org/a b"}, 2, "--hf-dataset: .*org/a b"),
    "no account": ({"dataset": "words"}, 2, "'words' is no ORG/NAME, such as me/words"),
    "an unknown license": ({"more": ["--license", "min"]}, 2, '"license" must be one of'),
    "public, though to be private": (
        {"dataset": "org/public", "more": ["--private"]},
        2,
        "org/public is public, and an export changes no repository's visibility",
    ),
    "others' data": (
        {"dataset": "org/taken"},
        2,
        r"has data that no export wrote \(data/train.csv\): choose a repository of its own",
    ),
    "no row": ({"more": ["--filter", "item_index < 0"]}, 1, "no row is left to upload"),
    "too many splits": (
        {"more": ["--filter", "true"], "run": "split"},
        1,
        "more than 16 splits: --split NAME",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_cannot_be_is_refused_with_a_sentence(here: Path, case: str) -> None:
    asked, code, says = REFUSED[case]
    asked = dict(asked)
    if asked.pop("run", None):
        rows = [captioned(number, split=f"part {number}") for number in range(30)]
        make_run(here / "other", rows, columns={"split": pa.string()})
        (here / "run").rename(here / "first")
        (here / "other").rename(here / "run")
    public = Repository({"main": {".gitattributes": b""}})
    async with UploadHub(public=public, taken=Repository({"main": dict(OTHERS)})) as hub:
        hub.repositories["them/theirs"] = Repository({"main": {}})
        hub.invisible = {"org/hidden"}
        done = await upload(here, hub, *asked.pop("more", []), **asked)
        assert done.code == code, done.said
        (error,) = done.errors
        assert re.search(says, error), error
        assert not hub.commits
        assert hub.repositories["org/taken"].branches["main"] == OTHERS
        assert not (here / "run/hub_spool").exists()


@pytest.mark.parametrize(
    ("setting", "code", "says"),
    [
        (("HF_HUB_OFFLINE", "1"), 2, "HF_HUB_OFFLINE is set: nothing can be uploaded"),
        (("HF_TOKEN", TOKEN), 1, "org/words could not be written: .*refused; the"),
    ],
)
def test_a_hub_that_is_out_of_reach_is_said_to_be(
    here: Path, beside_the_hub: pytest.MonkeyPatch, setting: tuple[str, str], code: int, says: str
) -> None:
    beside_the_hub.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    beside_the_hub.setenv("HF_TOKEN", TOKEN)
    beside_the_hub.setenv(*setting)
    done = caption_flow(*arguments(), cwd=here)
    assert done.code == code
    assert re.search(says, done.errors[-1]), done.said
    assert not (here / "run/hub_spool").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--format", "jsonl", "--private", "--hf-dataset", "a/b"), "--hf-dataset means nothing"),
        (("--format", "huggingface_hub"), "--hf-dataset ORG/NAME is missing"),
        (("--format", "all", "--nsfw"), "--hf-dataset ORG/NAME is missing"),
        (("--format", "all", "--hf-dataset", "a/b", "--split", "a b"), "--split: 'a b' is no"),
    ],
)
def test_options_that_do_not_fit_change_nothing(
    here: Path, more: tuple[str, ...], says: str
) -> None:
    done = caption_flow("export", "--data-dir", "run", *more, cwd=here)
    assert done.code == 2
    assert says in done.errors[0]
