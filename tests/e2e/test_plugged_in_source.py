"""A source that a package brings, as ``docs/sources.md`` shows it, through the command line."""

from __future__ import annotations

import json
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cli import (
    REPOSITORY,
    ROOTS,
    Finished,
    caption_flow,
    caption_of,
    make_images,
    rows,
    snapshot,
)

PROMPT = "Describe this image."
PAGE = REPOSITORY / "docs" / "sources.md"


@dataclass(frozen=True)
class Package:
    """A workspace with an installed source and a dataset for it."""

    workspace: Path
    captions: dict[str, str]
    """What the synthetic engine says of each item, by key."""

    def run(self, *arguments: str, kind: str = "zips", **dataset: str) -> Finished:
        """Run ``caption-flow run`` on the dataset."""
        section = {
            "dataset": {"type": kind, "dataset_path": "zips", **dataset},
            "chunk_size": 4,
            "vllm": {"model": "none", "inference_prompts": [PROMPT]},
            "storage": {"data_dir": "results"},
        }
        config: Path = self.workspace / "run.json"
        config.write_text(json.dumps({"orchestrator": section}))
        path = os.pathsep.join([str(self.workspace / "site"), *ROOTS])
        return caption_flow(
            *("run", "--config", str(config), "--engine", "synthetic", *arguments),
            cwd=self.workspace,
            env={"PYTHONPATH": path},
        )


def install(site: Path, module: str, source: str, kind: str) -> None:
    """Put a package where Python looks, with what an installer writes beside it."""
    site.mkdir(exist_ok=True)
    (site / f"{module}.py").write_text(source)
    facts = site / f"{module}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        f"[caption_flow.sources]\n{kind} = {module}:ZipSource\n"
    )


@pytest.fixture
def package(tmp_path: Path) -> Package:
    found = re.search(r"```python\n(.+?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert found is not None
    install(tmp_path / "site", "zip_source", found.group(1), "zips")
    images = make_images(tmp_path / "drawn", 12)
    (tmp_path / "zips").mkdir()
    captions = {}
    for name, pictures in {"a.zip": images[:5], "b.zip": images[5:]}.items():
        with zipfile.ZipFile(tmp_path / "zips" / name, "w") as archive:
            for path in pictures:
                archive.write(path, f"pictures/{path.name}")
                captions[f"{name}/pictures/{path.name}"] = caption_of(path, PROMPT)
            archive.writestr("pictures", "")
    return Package(tmp_path, captions)


def test_a_source_of_ones_own_is_captioned_from_end_to_end(package: Package) -> None:
    ended = package.run()
    assert ended.code == 0, ended.said
    found = rows(package.workspace / "results")
    captioned = {row["item_key"]: row["captions"][0] for row in found if row["captions"]}
    assert captioned == package.captions
    assert {row["shard"] for row in found} == {"a.zip", "b.zip"}
    # The empty members are rows, too, and named in the summary though they are no files.
    assert sorted(row["item_key"] for row in found if row["status"] == "failed") == [
        "a.zip/pictures",
        "b.zip/pictures",
    ]
    assert re.search(r"a\.zip/pictures +.*empty", ended.out), ended.said

    texts = package.workspace / "results" / "exports" / "captions.jsonl"
    lines = [json.loads(line) for line in texts.read_text("utf-8").splitlines()]
    written = {line["item_key"]: line["captions"][0] for line in lines if line["captions"]}
    assert written == package.captions
    assert f"{texts.relative_to(package.workspace)}" in ended.out
    assert not list(package.workspace.rglob("*.txt")) or all(
        "dist-info" in str(path) for path in package.workspace.rglob("*.txt")
    )

    again = package.run()
    assert again.code == 0, again.said
    assert "Nothing to do" in again.out


def test_a_dry_run_asks_the_source_and_writes_nothing(package: Package) -> None:
    package.run("--dry-run")  # whatever Python itself keeps of modules is there now
    before = snapshot(package.workspace)
    ended = package.run("--dry-run", "--limit", "7")
    before[os.fsencode(package.workspace / "run.json")] = (0, 0)
    after = snapshot(package.workspace)
    after[os.fsencode(package.workspace / "run.json")] = (0, 0)
    assert after == before
    assert ended.code == 0, ended.said
    assert "Would caption 7 of the 14 images in zips:" in ended.out
    assert "  a.zip/pictures/000.png\n" in ended.out
    assert "They are in 2 shards." in ended.out
    assert "7 are beyond --limit 7." in ended.out


def test_texts_go_where_output_says_and_a_dry_run_knows_what_is_done(package: Package) -> None:
    ended = package.run("--limit", "5", "--output", "texts")
    assert ended.code == 0, ended.said
    lines = (package.workspace / "texts" / "captions.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 5
    ahead = package.run("--dry-run")
    assert "Would caption 9 of the 14 images" in ahead.out, ahead.said
    assert "5 are done already." in ahead.out
    assert "a.zip/pictures/000.png" not in ahead.out


@pytest.mark.parametrize("option", [("--existing", "skip"), ("--export-column", "captions")])
def test_what_is_about_txt_files_is_refused_for_other_datasets(
    package: Package, option: tuple[str, str]
) -> None:
    ended = package.run(*option)
    assert ended.code == 2
    assert ended.errors == [
        f"{option[0]} is about the .txt files beside the images of a folder; this dataset is none, "
        "and its texts all go into captions.jsonl"
    ]


def test_a_misspelt_kind_is_refused_with_the_nearest_one_installed(package: Package) -> None:
    ended = package.run(kind="zipz")
    assert ended.code == 2
    assert "did you mean zips?" in ended.err, ended.said
    assert "'huggingface', 'local_filesystem', 'webdataset', 'local' or 'zips'" in ended.err


def test_a_source_that_cannot_be_imported_is_refused_with_the_reason(package: Package) -> None:
    install(package.workspace / "site", "sick", "import no_such_module", "sick")
    ended = package.run(kind="sick")
    assert ended.code == 2
    assert "the source sick (sick:ZipSource) cannot be imported" in ended.err, ended.said
    assert "no_such_module" in ended.err
