"""What must not go to the hub, or not so: a sentence, an exit code, and nothing changed there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.cli import caption_flow
from tests.support.hub import STRANGER, TOKEN
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


@pytest.mark.parametrize(
    ("token", "more", "code", "says"),
    [
        (None, (), 2, "no token is given here to write to org/words"),
        (STRANGER, (), 2, "may not write to org/words"),
        (TOKEN, ("--filter", "item_index < 0"), 1, "no row is left to upload to org/words"),
    ],
)
async def test_a_refusal_is_one_sentence_and_says_by_its_code_whose_fault_it_is(
    here: Path, token: str | None, more: tuple[str, ...], code: int, says: str
) -> None:
    async with UploadHub() as hub:
        done = await upload(here, hub, *more, token=token)
        assert done.code == code, done.said
        (error,) = done.errors
        assert says in error
        assert "org/words" not in hub.repositories


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
