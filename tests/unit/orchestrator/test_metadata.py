"""The index of metadata files: what is looked up costs no more the more it holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from caption_flow.orchestrator.sources.metadata import MetadataIndex

ROWS = 5000
STEPS_AT_A_TIME = 100


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@contextmanager
def opened(root: Path) -> Iterator[MetadataIndex]:
    with closing(MetadataIndex(root.parent, os.fsencode(root), ["title"])) as index:
        yield index


def write(path: Path, titles: dict[str, str]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = "".join(f"{name},{title}\n" for name, title in titles.items())
    path.write_text(f"file_name,title\n{lines}", encoding="utf-8")


def steps_of(index: MetadataIndex, folders: int) -> int:
    """Return about how many steps SQLite takes while that many folders are entered."""
    counted = [0]

    def count() -> int:
        counted[0] += STEPS_AT_A_TIME
        return 0

    index._connection.set_progress_handler(count, STEPS_AT_A_TIME)
    for number in range(folders):
        index.enter(b"folder %d/image.jpg" % number)
    index._connection.set_progress_handler(None, 0)
    return counted[0]


def test_a_folder_without_metadata_costs_the_same_however_much_is_known(root: Path) -> None:
    write(root / "metadata.csv", {f"{number}.jpg": "t" for number in range(ROWS)})
    with opened(root) as index:
        index.enter(b"image.jpg")
        assert steps_of(index, folders=50) < ROWS


def test_what_a_changed_file_no_longer_says_is_forgotten_and_removed(root: Path) -> None:
    write(root / "metadata.csv", {"a.jpg": "old a", "b.jpg": "old b"})
    with opened(root) as index:
        index.enter(b"a.jpg")
    write(root / "metadata.csv", {"a.jpg": "a newer one"})
    with opened(root) as index:
        assert index.find(b"a.jpg") == {"title": "a newer one"}
        assert index.find(b"b.jpg") == {}
        assert index._connection.execute("SELECT count(*) FROM rows").fetchone() == (1,)
    (root / "metadata.csv").unlink()
    with opened(root) as index:
        assert index.find(b"a.jpg") == {}
        assert index._connection.execute("SELECT count(*) FROM rows").fetchone() == (0,)


def test_a_file_that_became_unusable_gives_nothing_of_what_it_said_before(root: Path) -> None:
    write(root / "metadata.csv", {"a.jpg": "old"})
    with opened(root) as index:
        index.enter(b"a.jpg")
    (root / "metadata.csv").write_text("name,title\na.jpg,new\n", encoding="utf-8")
    with capture_logs() as logs, opened(root) as index:
        assert index.find(b"a.jpg") == {}
        assert "no column file_name" in index.problems[0]
    assert "passed over" in logs[0]["event"]


def test_images_that_metadata_names_are_looked_for_once_for_each_version_of_it(root: Path) -> None:
    write(root / "metadata.csv", {"b.jpg": "b", "a.jpg": "a"})
    write(root / "sub" / "metadata.csv", {"c.jpg": "c"})
    with opened(root) as index:
        index.enter(b"sub/c.jpg")
        assert list(index.unchecked()) == [b"a.jpg", b"b.jpg", b"sub/c.jpg"]
    with opened(root) as index:
        assert len(list(index.unchecked())) == 3, "nobody has said that they were looked for"
        index.checked()
        assert not list(index.unchecked())
    with opened(root) as index:
        assert not list(index.unchecked())
    write(root / "sub" / "metadata.csv", {"another.jpg": "c"})
    with opened(root) as index:
        assert list(index.unchecked()) == [b"sub/another.jpg"]
