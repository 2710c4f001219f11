"""Datasets in the hub's layout, captioned by processes of their own with the synthetic engine.

The engine's texts prove of which picture they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from aiohttp import web

from tests.support import parquet
from tests.support.cli import rows
from tests.support.fleet import until
from tests.support.hub import CONVERTED, STRANGER, TOKEN, Hub, Repository
from tests.support.hub_runs import caption_all, check_rows, files_in, fleet_for


async def test_a_folder_in_the_hubs_layout_is_captioned(tmp_path: Path) -> None:
    parquet.dataset(tmp_path / "set", 3, 10)
    async with fleet_for(tmp_path, str(tmp_path / "set")) as fleet:
        await caption_all(fleet)
        check_rows(fleet, 3, 10)


# ------------------------------------------------------------------------------------- the hub


async def test_few_items_of_a_large_dataset_cost_few_bytes(
    tmp_path: Path, beside_the_hub: pytest.MonkeyPatch
) -> None:
    files = files_in(parquet.dataset(tmp_path / "set", 2, 100, side=200))
    whole = sum(map(len, files.values()))
    forever = {"requests_in_flight": 2, "hang_on": list("0123456789abcdef")}
    async with (
        Hub(pictures=Repository({"main": files})) as hub,
        fleet_for(tmp_path, "org/pictures") as fleet,
    ):
        beside_the_hub.setenv("HF_ENDPOINT", hub.url)
        await fleet.orchestrator()
        worker = await fleet.worker("worker", engine=forever)
        group = 4 * len(parquet.png(0, side=200))
        await until(lambda: any(length > group / 2 for _, _, length in hub.ranges), worker.tail)
        await worker.kill()
        assert hub.bytes_read < whole / 3


MISTAKES: dict[str, tuple[Mapping[str, Any], str]] = {
    "no such dataset": (
        {"dataset_path": "org/nothing"},
        r"the hub has no dataset org/nothing, or it is private: no token .* set HF_TOKEN",
    ),
    "private without a token": (
        {"dataset_path": "org/secret"},
        r"the hub has no dataset org/secret, or it is private: no token .* set HF_TOKEN",
    ),
    "private with another's token": (
        {"dataset_path": "org/secret", "token": STRANGER},
        r"the hub has no dataset org/secret, or it is private: the token given here .* may not",
    ),
    "a token that is none": (
        {"dataset_path": "org/pictures", "token": "hf_mistyped"},
        r"org/pictures cannot be read from the hub: the hub refuses the token given here",
    ),
    "gated without a token": (
        {"dataset_path": "org/gated"},
        r"org/gated is gated: accept its conditions at http://127.0.0.1:\d+/datasets/org/gated, "
        r".*hf auth login, or set HF_TOKEN",
    ),
    "gated, conditions not accepted": (
        {"dataset_path": "org/gated", "token": STRANGER},
        r"org/gated is gated: accept its conditions at http://.*/datasets/org/gated, .*may not",
    ),
    "gated tars": (
        {"dataset_path": "hf://datasets/org/gated/{0..1}.tar", "type": "webdataset"},
        r"org/gated is gated: accept its conditions at http://.*/datasets/org/gated, ",
    ),
    "tars of a private dataset": (
        {"dataset_path": "hf://datasets/org/secret", "type": "webdataset"},
        r"the hub has no dataset org/secret, or it is private: no token",
    ),
    "a prompt's column": (
        {"dataset_path": "org/untitled"},
        r"prompts ask for \{column:title\}, which the dataset does not have; "
        r"did you mean 'titel'\? There are 'image', 'titel'",
    ),
    "no such split": (
        {"dataset_path": "org/pictures", "split": "exam"},
        r"no split 'exam', but 'train'",
    ),
    "no such configuration": (
        {"dataset_path": "org/pictures", "dataset_config": "large"},
        r"no configuration 'large', but 'default', 'data'",
    ),
    "no such column": (
        {"dataset_path": "org/pictures", "dataset_image_column": "photo"},
        r"no column 'photo', but 'image', 'title'",
    ),
    "no such revision": (
        {"dataset_path": "org/pictures", "revision": "v9"},
        r"org/pictures has no revision 'v9'",
    ),
    "no Parquet files": (
        {"dataset_path": "org/prose"},
        r"org/prose holds no Parquet files, and the hub has not converted it: .*push_to_hub",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
async def test_mistakes_are_said_at_the_start(
    name: str, tmp_path: Path, beside_the_hub: pytest.MonkeyPatch
) -> None:
    keys, sentence = MISTAKES[name]
    keys = dict(keys)
    if token := keys.pop("token", None):
        beside_the_hub.setenv("HF_TOKEN", token)
    untitled = tmp_path / "untitled"
    parquet.write(untitled / "train.parquet", image=parquet.struct([1]), titel=["x"])
    files = files_in(parquet.dataset(tmp_path / "set", 1, 2))
    hub = Hub(
        pictures=Repository({"main": files}),
        secret=Repository({"main": files}, private=True),
        gated=Repository({"main": files}, gated=True),
        untitled=Repository({"main": files_in(untitled)}),
        prose=Repository({"main": {"a.jsonl": b"{}"}}),
    )
    async with hub, fleet_for(tmp_path, **keys) as fleet:
        beside_the_hub.setenv("HF_ENDPOINT", hub.url)
        orchestrator = await fleet.orchestrator(ready=False)
        assert await orchestrator.exit_code() != 0
        assert re.search(rf"^Error: .*{sentence}", orchestrator.output, re.MULTILINE), (
            orchestrator.output
        )


async def test_private_and_converted_datasets_are_captioned(
    tmp_path: Path, beside_the_hub: pytest.MonkeyPatch
) -> None:
    titles = [f"title {number}" for number in range(5)]
    parquet.write(
        tmp_path / "set/large/train/0000.parquet", image=parquet.struct(range(5)), title=titles
    )
    branches = {"main": {"pictures.zip": b"PK"}, CONVERTED: files_in(tmp_path / "set")}
    hub = Hub(secret=Repository(branches, private=True))
    async with hub, fleet_for(tmp_path, "org/secret") as fleet:
        beside_the_hub.setenv("HF_ENDPOINT", hub.url)
        beside_the_hub.setenv("HF_TOKEN", TOKEN)
        await caption_all(fleet)
        found = {row["item_key"]: row["captions"] for row in rows(fleet.data_dir)}
    assert found == {
        f"large/train/0000.parquet#{number}": [
            parquet.caption(parquet.png(number), f"Describe {titles[number]}.")
        ]
        for number in range(5)
    }


# ------------------------------------------------------------------------------------- addresses


async def test_rows_without_an_image_fail_alone_and_addresses_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTIONFLOW_ALLOW_PRIVATE_URLS", "1")

    async def answer(request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        if number == 2:
            raise web.HTTPNotFound
        return web.Response(body=b"<html>" if number == 3 else parquet.png(number))

    app = web.Application()
    app.router.add_get("/{number}.png", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    links = [f"{base}/{number}.png" for number in range(6)]
    links_told = [*links, None, "ftp://example.org/a"]
    parquet.write(tmp_path / "set/train.parquet", url=links_told, title=[None] * 8)
    async with fleet_for(tmp_path, str(tmp_path / "set"), dataset_url_column="url") as fleet:
        await caption_all(fleet)
        found = {row["item_index"]: row for row in rows(fleet.data_dir)}
    await runner.cleanup()
    for number in (0, 1, 4, 5):
        picture = parquet.png(number)
        assert found[number]["captions"] == [parquet.caption(picture, "Describe .")]
        assert found[number]["url"] == links[number]
    assert {index: row["error_kind"] for index, row in found.items() if row["error_kind"]} == {
        2: "link_gone",
        3: "image_unrecognised",
        6: "image_missing",
        7: "link_invalid",
    }


async def test_cells_without_bytes_fail_alone_or_name_a_file(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells: list[dict[str, Any] | None] = [
        {"bytes": parquet.png(0), "path": None},
        {"bytes": None, "path": "pictures/1.png"},
        {"bytes": None, "path": "pictures/none.png"},
        {"bytes": None, "path": "../outside.png"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": None},
    ]
    images = pa.array(cells, type=kind)
    parquet.write(tmp_path / "set/data/train.parquet", image=images, title=[None] * len(cells))
    (tmp_path / "set/pictures").mkdir()
    (tmp_path / "set/pictures/1.png").write_bytes(parquet.png(1))
    (tmp_path / "outside.png").write_bytes(parquet.png(2))
    async with fleet_for(tmp_path, str(tmp_path / "set")) as fleet:
        await caption_all(fleet)
        found = {row["item_index"]: row for row in rows(fleet.data_dir)}
    for number in (0, 1):
        picture = parquet.png(number)
        assert found[number]["captions"] == [parquet.caption(picture, "Describe .")]
    assert [found[number]["error_kind"] for number in range(2, 6)] == ["image_missing"] * 4
    assert found[6]["error_kind"] == "image_empty"


async def test_a_gated_dataset_is_captioned_by_whom_it_lets_in(
    tmp_path: Path, beside_the_hub: pytest.MonkeyPatch
) -> None:
    files = files_in(parquet.dataset(tmp_path / "set", 2, 5))
    async with (
        Hub(gated=Repository({"main": files}, gated=True)) as hub,
        fleet_for(tmp_path, "org/gated") as fleet,
    ):
        beside_the_hub.setenv("HF_ENDPOINT", hub.url)
        beside_the_hub.setenv("HF_TOKEN", TOKEN)
        await caption_all(fleet)
        check_rows(fleet, 2, 5)
