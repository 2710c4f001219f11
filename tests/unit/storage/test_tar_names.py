"""Sample keys: one for each image, whatever it is called, and cut rightly by WebDataset."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from caption_flow.storage.exporter.tar_names import (
    image_suffix,
    key_beside,
    key_of_file,
    sample_key,
)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("photos/alpha.jpg", "photos/alpha"),
        ("IMG.2024.01.JPG", "IMG%2E2024%2E01"),
        (".hidden.png", "%2Ehidden"),
        ("no suffix", "no suffix"),
        ("00000.tar/7.jpg", "00000%2Etar/7"),
        ("猫/犬\N{DOG FACE}.png", "猫/犬\N{DOG FACE}"),
        ("cafe\u0301.jpg", "cafe\u0301"),
        ("caf\u00e9.jpg", "caf\u00e9"),
        ("two\nlines.jpg", "two%0Alines"),
        ("100%.jpg", "100%25"),
        (os.fsdecode(b"caf\xe9.jpg"), "caf%E9"),
        ("../../etc/passwd", "%2E%2E/%2E%2E/etc/passwd"),
        ("/etc/passwd.jpg", "etc/passwd"),
        ("__meta__/a.jpg", "%5F_meta__/a"),
        ("a~b.jpg", "a%7Eb"),
    ],
)
def test_a_key_is_the_path_readable_and_without_dots(path: str, key: str) -> None:
    assert key_of_file(path) == key


def test_what_is_too_long_for_a_file_name_gets_a_hash_and_stays_readable() -> None:
    keys = [key_of_file(f"{'犬' * 80}{end}.jpg") for end in "ab"]
    assert keys[0] != keys[1]
    for key in keys:
        assert key.startswith("犬" * 30)
        assert re.search(r"~[0-9a-f]{16}$", key)
        assert len(f"{key_beside(key, 'x')}.jpeg".encode()) <= 255
    assert key_of_file(f"{'x' * 190}.jpg") == "x" * 190
    assert re.fullmatch(r"~[0-9a-f]{16}", sample_key("/".join(["folder"] * 300)))
    assert re.fullmatch(r"~[0-9a-f]{16}", sample_key(""))


paths = st.lists(
    st.binary(min_size=1, max_size=120).map(lambda raw: os.fsdecode(raw.replace(b"/", b"|"))),
    min_size=1,
    max_size=4,
).map("/".join)


@given(paths)
def test_webdataset_cuts_any_name_where_the_suffix_begins(path: str) -> None:
    key = sample_key(path)
    assert base_plus_ext(f"{key}.jpg") == (key, "jpg")
    assert not re.match(r"__[^/]*__($|/)", f"{key}.jpg")
    assert key.encode().decode() == key
    assert all(0 < len(part.encode()) <= 250 and part not in {".", ".."} for part in key.split("/"))
    if "~" not in key:
        assert unquote_to_bytes(key) == os.fsencode(path)


@given(st.sets(paths, min_size=2, max_size=5))
def test_no_two_paths_have_one_key(some: set[str]) -> None:
    assert len({sample_key(path) for path in some}) == len(some)


@pytest.mark.parametrize(
    ("form", "name", "suffix"),
    [
        ("JPEG", "a.JPEG", "jpeg"),
        ("JPEG", "a.JPG", "jpg"),
        ("JPEG", "really.png", "jpg"),
        ("PNG", "a.jpg", "png"),
        ("PNG", None, "png"),
        ("WEBP", "a", "webp"),
        ("TIFF", "a.tiff", "tiff"),
        ("TIFF", "a.jpg", "tif"),
        ("MP4", "clip.m4v", "m4v"),
        ("unknown format", "a.jpg", "bin"),
        (None, "a.gif", "gif"),
        (None, "a.json", "bin"),
    ],
)
def test_a_suffix_says_what_the_image_is(form: str | None, name: str | None, suffix: str) -> None:
    assert image_suffix(form, name) == suffix
