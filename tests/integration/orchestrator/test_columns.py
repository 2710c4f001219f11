"""Columns of a folder's images: from files beside them and from metadata, to prompts and rows."""

from __future__ import annotations

import asyncio
import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from structlog.testing import capture_logs

from caption_flow.orchestrator.assembly import assemble
from caption_flow.orchestrator.sources.base import SourceError
from caption_flow.orchestrator.sources.sidecars import Sidecars
from caption_flow.protocol.messages import Finished, Grant, Want
from caption_flow.storage.exported import exported_from
from tests.integration.orchestrator.parties import (
    PATIENCE_SECONDS,
    TOKENS,
    Run,
    configuration,
    led,
)
from tests.support.fleet import write_image

PROMPT = "Describe {column:title}, known as {column:text}."


def image(root: Path, name: str, number: int = 1) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    write_image(root / name, number)
    return root / name


def asking(prompt: str) -> dict[str, Any]:
    return {"vllm": {"model": "m", "inference_prompts": [prompt]}}


async def told(
    tmp_path: Path, prompt: str = PROMPT, **more: Any
) -> tuple[Run, dict[str, dict[str, Any] | None]]:
    """Caption everything; return the columns each file's item was leased with."""
    columns: dict[int, dict[str, Any] | None] = {}
    async with led(tmp_path, images=0, **asking(prompt), **more) as run:
        worker = await run.join()
        await worker.send(Want(2))
        while not isinstance(message := await worker.next(), Finished):
            if isinstance(message, Grant):
                for granted in message.leases:
                    columns |= {item.index: item.columns for item in granted.items}
                    await worker.report(granted.lease, [item.index for item in granted.items])
                await worker.send(Want(2))
    rows = run.rows()
    return run, {rows[item]["filename"]: found for item, found in columns.items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images"


async def test_files_beside_an_image_give_columns_to_its_prompt_and_its_row(
    tmp_path: Path, root: Path
) -> None:
    image(root, "a.bmp")
    (root / "a.json").write_text(json.dumps({"title": "A cat", "other": 1}))
    (root / "a.txt").write_text("grey, asleep\n")
    image(root, "b.bmp", 2)

    run, columns = await told(tmp_path)

    assert columns == {
        "a.bmp": {"title": "A cat", "text": "grey, asleep"},
        "b.bmp": {"title": None, "text": None},
    }
    rows = {row["filename"]: (row["title"], row["text"]) for row in run.rows().values()}
    assert rows == {"a.bmp": ("A cat", "grey, asleep"), "b.bmp": (None, None)}


async def test_values_of_any_kind_become_text_so_that_rows_agree(
    tmp_path: Path, root: Path
) -> None:
    values = {"a": 7, "b": ["x", 1, None], "c": {"k": [1]}, "d": None, "e": True, "f": "\ud800"}
    for number, (name, value) in enumerate(values.items()):
        image(root, f"{name}.bmp", number)
        (root / f"{name}.json").write_text(json.dumps({"title": value}))

    run, _ = await told(tmp_path, "{column:title}")

    rows = {row["filename"][0]: row["title"] for row in run.rows().values()}
    assert rows == {"a": "7", "b": "x, 1", "c": '{"k": [1]}', "d": None, "e": "true", "f": "?"}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows))


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}


@pytest.mark.parametrize("kind", WRITERS)
async def test_metadata_names_images_below_its_own_folder(
    tmp_path: Path, root: Path, kind: str
) -> None:
    image(root, "top.bmp")
    image(root, "sub/one.bmp", 2)
    image(root, "sub/deep/two.bmp", 3)
    write = WRITERS[kind]
    write(root / f"metadata.{kind}", [{"file_name": "top.bmp", "title": "the top"}])
    of_sub = [("one.bmp", "one"), ("./deep/two.bmp", "two")]
    rows = [{"file_name": name, "title": title, "unused": "-"} for name, title in of_sub]
    write(root / "sub" / f"metadata.{kind}", rows)

    _, columns = await told(tmp_path, "{column:title}")

    assert columns == {
        "top.bmp": {"title": "the top"},
        "sub/one.bmp": {"title": "one"},
        "sub/deep/two.bmp": {"title": "two"},
    }


async def test_what_is_nearer_to_the_image_wins(tmp_path: Path, root: Path) -> None:
    for name in ("a", "b", "c"):
        image(root, f"sub/{name}.bmp", ord(name))
    far = [{"file_name": f"sub/{name}.bmp", "title": "far"} for name in "abc"]
    write_csv(root / "metadata.csv", far)
    near = [{"file_name": f"{name}.bmp", "title": "near"} for name in "bc"]
    write_csv(root / "sub" / "metadata.csv", near)
    (root / "sub" / "c.json").write_text('{"title": "beside"}')

    _, columns = await told(tmp_path, "{column:title}")

    assert [found and found["title"] for _, found in sorted(columns.items())] == [
        "far",
        "near",
        "beside",
    ]


async def test_names_of_any_bytes_have_columns(tmp_path: Path, root: Path) -> None:
    raw = os.fsdecode(b"caf\xe9\n.bmp")
    image(root, raw)
    write_csv(root / "metadata.csv", [{"file_name": raw, "title": "a café"}])
    (root / os.fsdecode(b"caf\xe9\n.txt")).write_bytes(b"so-called \xff")

    _, columns = await told(tmp_path)

    assert list(columns.values()) == [{"title": "a café", "text": "so-called �"}]


async def test_metadata_that_changed_between_runs_is_read_again(tmp_path: Path, root: Path) -> None:
    image(root, "a.bmp")
    write_csv(root / "metadata.csv", [{"file_name": "a.bmp", "title": "old"}])
    await told(tmp_path, "{column:title}")
    image(root, "b.bmp", 2)
    both = [{"file_name": f"{name}.bmp", "title": f"new {name}"} for name in "ab"]
    write_csv(root / "metadata.csv", both)

    _, columns = await told(tmp_path, "{column:title}")

    assert columns == {"b.bmp": {"title": "new b"}}


async def test_a_column_that_nothing_has_is_refused_before_anything_is_leased(
    tmp_path: Path, root: Path
) -> None:
    image(root, "a.bmp")
    (root / "a.json").write_text('{"titel": "A cat"}')
    (root / "metadata.csv").write_text("file,title\na.bmp,A cat\n")

    config = configuration(root, tmp_path / "run", **asking("{column:title}"))
    orchestrator = await assemble(config, TOKENS)

    with pytest.raises(SourceError) as refused:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await orchestrator.run()

    assert not orchestrator.something_to_do.is_set()

    sentence = str(refused.value)
    assert "{column:title}" in sentence
    assert "did you mean 'titel'? There are 'titel'" in sentence
    assert "metadata.csv: it has no column file_name" in sentence
    assert "it has file, title" in sentence


async def test_a_broken_file_beside_an_image_costs_its_columns_only(
    tmp_path: Path, root: Path
) -> None:
    for name in ("a", "b", "c"):
        image(root, f"{name}.bmp", ord(name))
    (root / "a.json").write_text('{"title": "A')
    (root / "b.json").write_text("[1]")
    (root / "c.json").write_text('{"title": "C"}')

    with capture_logs() as logs:
        run, columns = await told(tmp_path, "{column:title}")

    assert [found and found["title"] for found in columns.values()] == [None, None, "C"]
    assert len(run.rows()) == 3
    named = {entry.get("file", "")[-6:] for entry in logs if "passed over" in entry["event"]}
    assert named == {"a.json", "b.json"}
    assert any("columns are empty" in entry["event"] for entry in logs)


async def test_metadata_that_names_no_image_is_counted(tmp_path: Path, root: Path) -> None:
    image(root, "a.bmp")
    names = ["a.bmp", "gone.bmp", "gone too.bmp"]
    write_csv(root / "metadata.csv", [{"file_name": name, "title": "t"} for name in names])

    with capture_logs() as logs:
        await told(tmp_path, "{column:title}")

    (entry,) = [entry for entry in logs if "metadata names files" in entry["event"]]
    assert (entry["files"], entry["such_as"]) == (2, ["gone too.bmp", "gone.bmp"])
    image(root, "b.bmp", 2)
    with capture_logs() as logs:
        await told(tmp_path, "{column:title}")
    assert not [entry for entry in logs if "metadata names files" in entry["event"]]


async def test_to_send_an_image_nothing_beside_it_is_read(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = image(root, "a.bmp")
    (root / "a.json").write_text('{"title": "A cat"}')
    async with led(tmp_path, images=0, **asking("{column:title}")) as run:
        worker = await run.join()
        granted = await worker.lease()
        monkeypatch.setattr(Sidecars, "columns_of", None)
        assert (await worker.image(granted.lease, 0)).payload == picture.read_bytes()


async def test_a_text_is_read_once_so_that_no_caption_of_the_run_comes_back(
    tmp_path: Path, root: Path
) -> None:
    picture = image(root, "a.bmp")
    (root / "a.txt").write_text("what the owner wrote")
    await told(tmp_path, "{column:text}")
    (root / "a.txt").write_text("what this run wrote")
    write_image(picture, 77)  # it is captioned again

    _, columns = await told(tmp_path, "{column:text}")

    assert columns == {"a.bmp": {"text": "what the owner wrote"}}


async def test_a_text_that_the_run_wrote_before_prompts_asked_for_it_is_no_column(
    tmp_path: Path, root: Path
) -> None:
    picture = image(root, "a.bmp")
    run, _ = await told(tmp_path, "Describe.")
    (root / "a.txt").write_text("what this run wrote")
    with exported_from(run.data_dir) as exported:
        exported.remember(root / "a.txt", b"what this run wrote")
    write_image(picture, 77)
    image(root, "b.bmp", 2)
    (root / "b.txt").write_text("what the owner wrote")

    _, columns = await told(tmp_path, "{column:text}")

    assert columns == {"a.bmp": {"text": None}, "b.bmp": {"text": "what the owner wrote"}}


async def test_a_column_named_like_a_column_of_every_row_is_kept_beside_it(
    tmp_path: Path, root: Path
) -> None:
    image(root, "a.bmp")
    (root / "a.json").write_text('{"filename": "its old name", "captions": "its old caption"}')

    run, _ = await told(tmp_path, "{column:filename} {column:captions}")

    (row,) = run.rows().values()
    assert (row["filename"], row["column_filename"]) == ("a.bmp", "its old name")
    assert (row["captions"], row["column_captions"]) == (["caption of 0"], "its old caption")


async def test_without_a_column_in_the_prompts_nothing_beside_images_is_opened(
    tmp_path: Path, root: Path
) -> None:
    image(root, "a.bmp")
    (root / "a.json").write_text("no JSON at all")
    (root / "metadata.csv").write_text("no metadata at all")

    with capture_logs() as logs:
        run, columns = await told(tmp_path, "Describe.")

    assert columns == {"a.bmp": None}
    assert not [entry for entry in logs if "passed over" in entry["event"]]
    assert not (run.data_dir / "metadata.sqlite3").exists()


async def test_prompts_that_change_between_runs_are_looked_at_before_anything_is_leased(
    tmp_path: Path, root: Path
) -> None:
    image(root, "a.bmp")
    (root / "a.json").write_text('{"title": "A cat"}')
    await told(tmp_path, "{column:title}")
    image(root, "b.bmp", 2)
    for _ in range(2):  # what was refused once is refused again
        config = configuration(root, tmp_path / "run", **asking("{column:titel}"))
        with pytest.raises(SourceError, match=r"\{column:titel\}.* did you mean 'title'\?"):
            await assemble(config, TOKENS)

    run, columns = await told(tmp_path, "Another {column:title}")

    assert columns == {"b.bmp": {"title": None}}
    assert len(run.rows()) == 2
