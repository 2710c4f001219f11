"""`caption-flow view` as somebody before a terminal has it: keys in, a screen out."""

from __future__ import annotations

import os
import re
import signal
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from caption_flow.protocol.rows import CAPTIONED, FAILED, Row, encode_rows
from caption_flow.storage.store import RunStore
from caption_flow.storage.writes import AppendItems, CatalogEntry, CommitRows, SetMeta
from tests.integration.storage.folders import opened
from tests.support.cli import caption_flow, make_images
from tests.support.screen import Cell, Screen, on_screen

FIELDS = ("long", "short")
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (250, 250, 250))
HOSTILE = "\x1b[2Jgone\x1b]0;owned\x07\x9b31m\u202eevil"
KITTY = {"KITTY_WINDOW_ID": "1"}
DRAWN = re.compile(r"\x1b_Ga=T")


def picture(folder: Path, name: str, *, turned: bool = False) -> None:
    """Four columns of one colour each; turned, EXIF says that they are to be rows."""
    image = Image.new("RGB", (4, 4))
    image.putdata([COLOURS[x] for _ in range(4) for x in range(4)])
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    image.save(folder / name, exif=exif)


def captioned(item: int, *texts: str, short: str = "short", **more: Any) -> Row:
    return Row(item, CAPTIONED, {"long": texts or (f"text {item}",), "short": (short,)}, **more)


async def commit(store: RunStore, *rows: Row) -> None:
    items = tuple(row.item_index for row in rows)
    payload = encode_rows(rows, FIELDS)
    accepted = tuple(range(len(rows)))
    await store.write(
        CommitRows("default", 0, items, accepted, payload, FIELDS, "somebody", "worker 1")
    )


NAMES: Sequence[bytes] = (
    b"0.png", b"1.png", b"turned.png", b"broken.jpg", b"4.png", b"\xe6\x97\xa5\xff.png", b"6.png",
    b"7.png",
)  # fmt: skip


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RunStore]:
    """A run that is going on in `run`, of the pictures in `photos`."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in NAMES:
        picture(photos, os.fsdecode(name), turned=b"turned" in name)
    (photos / "broken.jpg").write_bytes(b"no picture")
    (photos / "4.png").unlink()
    async with opened(tmp_path / "run") as store:
        await store.write(
            AppendItems("default", [CatalogEntry(i, n, 100, 1) for i, n in enumerate(NAMES)])
        )
        await store.write(SetMeta({"dataset": str(photos), "output_fields": "\n".join(FIELDS)}))
        yield store


@pytest.fixture
async def run(store: RunStore, tmp_path: Path) -> Path:
    """Some of it done: seven rows, in a part and waiting."""
    await commit(store, captioned(0, "a red Dog"), captioned(1, "a cat", "another cat"))
    await store.checkpoint()
    await commit(
        store,
        captioned(2, "turned", flags=("repetition",)),
        Row(3, FAILED, error_kind="image_unrecognised", error="no picture"),
        captioned(4, HOSTILE, short=HOSTILE),
        captioned(5, "日本語の文 שלום 👨‍👩‍👧", short="a dog again"),
        captioned(6, "word " * 2000 + "END"),
    )
    return tmp_path


@pytest.fixture
def view(run: Path) -> Iterator[Screen]:
    with on_screen("view", "--data-dir", "run", cwd=run) as screen:
        screen.shows(r"1 of 7 · run\n▀▀▀▀")
        yield screen


def leave(screen: Screen, key: str = "q", code: int = 0) -> None:
    screen.press(key)
    assert screen.ends() == code
    check_restored(screen)


def check_restored(screen: Screen) -> None:
    entered, left = screen.raw.rindex(b"\x1b[?1049h"), screen.raw.rindex(b"\x1b[?1049l")
    assert left > entered
    assert screen.raw.rindex(b"\x1b[?25h") > entered
    assert screen.raw.rindex(b"\x1b[?7h") > entered
    assert screen.is_as_before()


def hexadecimal(colour: tuple[int, int, int]) -> str:
    return "{:02x}{:02x}{:02x}".format(*colour)


def test_a_picture_s_colours_and_its_captions_are_on_the_screen(view: Screen) -> None:
    view.shows("a red Dog")
    for column, colour in enumerate(COLOURS, start=1):
        seen = hexadecimal(colour)
        assert view.cell(2, column) == view.cell(3, column) == Cell("▀", seen, seen)
    assert view.cell(2, 5).text == " "
    for said in ("0.png", "captioned", "long", "short", "worker worker 1 · contributor somebody"):
        assert said in view.text
    leave(view)


def test_pictures_are_upright(view: Screen) -> None:
    view.press("jj")
    view.shows(r"turned\.png")
    view.shows("▀▀▀▀\n▀▀▀▀")
    upper, lower = view.cell(2, 1), view.cell(3, 4)
    assert (upper.front, upper.back) == (hexadecimal(COLOURS[0]), hexadecimal(COLOURS[1]))
    assert (lower.front, lower.back) == (hexadecimal(COLOURS[2]), hexadecimal(COLOURS[3]))
    leave(view)


def test_keys_lead_through_the_items(view: Screen) -> None:
    for keys, at in (
        ("j", 2), ("n", 3), ("\x1b[B", 4), ("\x1bOC", 5), ("k", 4), ("p", 3), ("\x1b[A", 2),
        (" ", 3), ("G", 7), ("g", 1), (":5\r", 5), ("\x1b[F", 7), ("\x1b[H", 1),
    ):  # fmt: skip
        view.press(keys)
        view.shows(f"^ {at} of 7")
    view.press("p")
    view.shows("this is the first item")
    leave(view)


def test_why_there_is_no_picture_is_said(view: Screen) -> None:
    view.press(":4\r")
    view.shows("no picture: the file is not a picture")
    view.shows("image_unrecognised: no picture")
    view.press(":5\r")
    view.shows(r"no picture: photos/4\.png: No such file or directory")
    leave(view)


def test_names_of_any_bytes_lead_to_their_picture(view: Screen) -> None:
    view.press(":6\r")
    view.shows(r"日\\xff\.png")
    view.shows("▀▀▀▀")
    view.shows("日本語の文")
    leave(view)


def test_a_search_finds_captions_and_names_onward_and_back(view: Screen) -> None:
    view.press("/DOG\r")
    view.shows("^ 1 of 7 · /DOG")
    view.press("n")
    view.shows("^ 6 of 7")
    view.press("n")
    view.shows("'DOG' is not below; N looks above")
    view.press("N")
    view.shows("^ 1 of 7")
    view.press("/turned.p\r")
    view.shows("^ 3 of 7")
    leave(view)


def test_a_filter_passes_over_the_others(view: Screen) -> None:
    view.press("f")
    view.shows("only ok")
    view.press("jj")
    view.shows("^ 5 of 7 · only ok")  # 3 is flagged and 4 has failed
    view.press("f")
    view.shows("^ 3 of 7 · only flagged")
    view.press("f")
    view.shows("^ 4 of 7 · only failed")
    view.press("f")
    view.shows("^ 4 of 7 · run")
    leave(view)


def test_fields_are_shown_alone(view: Screen) -> None:
    view.press("t")
    view.until(lambda: "a red Dog" in view.text and "short" not in view.text)
    view.press("t")
    view.until(lambda: "a red Dog" not in view.text and "short" in view.text)
    leave(view)


def test_hostile_texts_stay_texts(view: Screen) -> None:
    view.press(":5\r")
    view.shows(r"\\x1b\[2Jgone\\x1b\]0;owned\\x07\\x9b31m\\u202eevil")
    leave(view)
    for sequence in (b"\x1b[2Jgone", b"\x1b]0;", b"\x07", "\x9b".encode(), "\u202e".encode()):
        assert sequence not in view.raw


def test_a_long_text_is_read_screen_by_screen(view: Screen) -> None:
    view.press("G")
    view.shows("^ 7 of 7")
    view.shows("word word")
    for _ in range(60):
        view.press("\x1b[6~")
    view.shows("END")
    view.press("g")
    view.shows("^ 1 of 7")
    leave(view)


async def test_new_rows_of_a_running_job_come_by_themselves(
    store: RunStore, tmp_path: Path
) -> None:
    arguments = ("view", "--data_dir", "run", "--refresh_rate", "0.1")
    with on_screen(*arguments, cwd=tmp_path) as view:
        view.shows("no rows yet")
        await commit(store, captioned(7, "the first of all"))
        view.shows("the first of all")
        await commit(store, captioned(0, "the next"))
        view.shows("^ 1 of 2")
        view.press("G")
        view.shows("the next")
        # What waited is sorted now: the item on the screen has become the first one.
        await store.checkpoint()
        view.shows("^ 1 of 2")
        assert "the next" in view.text
        leave(view)


def test_the_screen_follows_the_window_s_size(view: Screen) -> None:
    view.resize(120, 20)
    view.shows(r"▀▀▀▀  0\.png")  # beside
    view.resize(60, 8)
    view.until(lambda: "▀" not in view.text and "a red Dog" in view.text)
    view.resize(15, 3)
    view.until(lambda: view.lines[1].startswith("0.png"))
    view.resize(1, 1)
    view.resize(80, 30)
    view.shows(r"1 of 7 · run\n▀▀▀▀")
    leave(view)


@pytest.mark.parametrize("key", ["q", "\x03", "?q", "/dog\x03q"])
def test_every_way_out_leaves_the_terminal_as_it_was(view: Screen, key: str) -> None:
    leave(view, key)


def test_a_signal_leaves_the_terminal_as_it_was(view: Screen) -> None:
    view.process.send_signal(signal.SIGTERM)
    assert view.ends() == 128 + signal.SIGTERM
    check_restored(view)


def test_a_stopped_view_gives_the_terminal_back_until_it_goes_on(view: Screen) -> None:
    view.press("\x1a")
    stopped = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
    view.until(lambda: os.waitid(os.P_PID, view.process.pid, stopped), "a stop")
    view.until(lambda: view.raw.endswith(b"\x1b[?1049l"))
    check_restored(view)
    view.process.send_signal(signal.SIGCONT)
    view.press("j")
    view.shows("^ 2 of 7")
    leave(view)


def test_a_defect_leaves_the_terminal_as_it_was_and_is_told(run: Path) -> None:
    script = (
        "import sys; from caption_flow.cli import app; from caption_flow.cli.viewer import session;"
        "session.compose = lambda *_: 1 / 0; sys.exit(app.main())"
    )
    arguments = ("view", "--data-dir", "run")
    with on_screen(*arguments, cwd=run, program=("-c", script)) as view:
        assert view.ends() == 1
        check_restored(view)
        assert b"ZeroDivisionError" in view.raw.partition(b"\x1b[?1049l")[2]


def test_kitty_gets_the_picture_itself_where_it_belongs_and_loses_it_after(run: Path) -> None:
    with on_screen("view", "--data-dir", "run", cwd=run, env=KITTY, cell=(9, 18)) as view:
        view.until(lambda: any(DRAWN.match(one.text) for one in view.graphics))
        view.shows("a red Dog")
        shown = next(one for one in view.graphics if DRAWN.match(one.text))
        assert shown.at == (2, 1)
        assert "s=4,v=4" in shown.text
        assert "▀" not in view.text
        view.graphics.clear()
        view.press("i")
        view.until(lambda: any("a=d" in one.text for one in view.graphics))
        view.press("i")
        view.until(lambda: any(DRAWN.match(one.text) for one in view.graphics))
        leave(view)
        assert "a=d" in view.graphics[-1].text


@pytest.mark.parametrize(
    ("question", "answer", "begin"),
    [
        (b"\x1b_Gi=31", b"\x1b_Gi=31;OK\x1b\\", "\x1b_Ga=T"),
        (b"\x1b[c", b"\x1b[6;20;10t\x1b[?62;4c", "\x1bP"),
    ],
)
def test_a_terminal_that_says_it_can_is_sent_pictures(
    run: Path, question: bytes, answer: bytes, begin: str
) -> None:
    with on_screen("view", "--data-dir", "run", cwd=run, answers={question: answer}) as view:
        view.until(lambda: any(one.text.startswith(begin) for one in view.graphics))
        view.until(lambda: "▀" not in view.text and "a red Dog" in view.text)
        leave(view)


@pytest.mark.parametrize("env", [{"TMUX": "1"}, {"TERM": "screen-256color", "COLORTERM": ""}])
def test_behind_a_multiplexer_nothing_is_asked_and_pictures_are_blocks(
    run: Path, env: dict[str, str]
) -> None:
    with on_screen("view", "--data-dir", "run", cwd=run, env={**KITTY, **env}) as view:
        view.shows("▀▀▀▀")
        leave(view)
        assert not view.graphics


@pytest.mark.parametrize("options", [("--no-images",), ("--no_images",), ("--images", "none")])
def test_pictures_can_be_left_out(run: Path, options: tuple[str, ...]) -> None:
    with on_screen("view", "--data-dir", "run", *options, cwd=run, env=KITTY) as view:
        view.shows("a red Dog")
        view.press("jg")
        view.shows("^ 1 of 7")
        leave(view)
        assert not view.graphics
        assert b"\xe2\x96\x80" not in view.raw


def test_without_colours_there_are_none(run: Path) -> None:
    with on_screen("view", "--data-dir", "run", cwd=run, env={"NO_COLOR": "1"}) as view:
        view.shows("a red Dog")
        view.press(":4\r")
        view.shows("failed")
        leave(view)
        codes = re.findall(rb"\x1b\[([0-9;]*)m", view.raw)
        assert set(codes) <= {b"", b"0", b"1", b"2", b"7"}


def test_a_dataset_that_moved_is_named(run: Path) -> None:
    (run / "photos").rename(run / "elsewhere")
    with on_screen("view", "--data-dir", "run", cwd=run) as view:
        view.shows("--dataset DIR says")
        leave(view)
    with on_screen("view", "--data-dir", "run", "--dataset", "elsewhere", cwd=run) as view:
        view.shows("▀▀▀▀")
        leave(view)


def test_a_pipe_gets_text(run: Path) -> None:
    done = caption_flow("view", "--data-dir", "run", cwd=run)
    assert done.code == 0, done.said
    assert done.out.startswith("0.png\ncaptioned\nlong\n  a red Dog\nshort\n  short\n")
    assert len(done.out.split("\n\n")) == 7
    assert r"\x1b[2Jgone" in done.out
    assert "\x1b" not in done.out
    assert done.out.count("word ") == 2000


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--limit", "2"), ["0.png", "1.png"]),
        (("--status", "failed"), ["broken.jpg"]),
        (("--status", "ok", "--limit", "3"), ["0.png", "1.png", "4.png"]),
        (("--search", "dog"), ["0.png", r"日\xff.png"]),
        (("--search", "dog", "--field", "long"), ["0.png"]),
        (("--filter", "len(long) > 1"), ["1.png"]),
        (("--plain", "--filter", "item_index = 2", "--status", "flagged"), ["turned.png"]),
        (("--status", "failed", "--search", "dog"), []),
    ],
)
def test_a_pipe_gets_only_what_is_asked_for(
    run: Path, options: tuple[str, ...], names: list[str]
) -> None:
    done = caption_flow("view", "--data-dir", "run", *options, cwd=run)
    assert done.code == 0, done.said
    assert [entry.split("\n")[0] for entry in done.out.split("\n\n") if entry] == names


def test_a_terminal_that_cannot_be_drawn_on_gets_text(run: Path) -> None:
    with on_screen("view", "--data-dir", "run", cwd=run, env={"TERM": "dumb"}) as view:
        assert view.ends() == 0
        assert b"a red Dog" in view.raw
        assert b"\x1b" not in view.raw


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--data-dir", "nowhere"), "there is no folder nowhere"),
        (("--data-dir", "photos"), "photos holds no run"),
        (("--data-dir", "run", "--field", "shrt"), "did you mean 'short'"),
        (("--data-dir", "run", "--filter", "nothing = 1"), "nothing"),
        (("--data-dir", "run", "--status", "fine"), "fine"),
        (("--data-dir", "run", "--dataset", "nowhere"), "there is no folder nowhere"),
    ],
)
def test_mistakes_are_told(run: Path, options: tuple[str, ...], sentence: str) -> None:
    done = caption_flow("view", *options, cwd=run)
    assert done.code == 2, done.said
    assert sentence in done.errors[-1]


@pytest.mark.parametrize("kind", ["webdataset", "huggingface"])
def test_pictures_of_other_datasets_are_found_by_what_the_run_remembers(
    tmp_path: Path, kind: str
) -> None:
    images = [path.read_bytes() for path in make_images(tmp_path / "made", 2)]
    shards = tmp_path / "shards"
    shards.mkdir()
    if kind == "webdataset":
        with tarfile.open(shards / "0.tar", "w") as tar:
            for path in sorted((tmp_path / "made").iterdir()):
                tar.add(path, path.name)
    else:
        rows = [{"image": {"bytes": data, "path": None}} for data in images]
        pq.write_table(pa.Table.from_pylist(rows), shards / "train-00000-of-00001.parquet")
    (tmp_path / "run.yaml").write_text(
        f"orchestrator: {{dataset: {{type: {kind}, dataset_path: shards}}, "
        "vllm: {mock_results: true, inference_prompts: [hi]}}"
    )
    ran = caption_flow("run", "--config", "run.yaml", "--data-dir", "run", cwd=tmp_path)
    assert ran.code == 0, ran.said
    with on_screen("view", "--data-dir", "run", cwd=tmp_path) as view:
        view.shows("^ 1 of 2")
        view.shows("▀")
        leave(view)
