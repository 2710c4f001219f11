"""Objects over HTTP from a server that misbehaves, and over the real S3 protocol."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import boto3
import msgspec
import pytest

from caption_flow.places.base import NotHereError, PlaceError
from caption_flow.places.objects import (
    ObjectError,
    Objects,
    Patience,
    read_object,
    read_own_object,
)
from caption_flow.protocol.places import ObjectPlace
from tests.support.object_server import ObjectServer, etag_of, object_server, s3_server

DATA = random.Random(5).randbytes(300_000)
HASTY = Patience(
    connect_seconds=1.0, read_seconds=0.3, retry_seconds=5.0, retries=4, first_pause_seconds=0.01
)


def place(server: ObjectServer, path: str = "/a.bin", size: int | None = len(DATA)) -> ObjectPlace:
    return ObjectPlace(server.url + path, 1000, 5000, size)


async def read(where: ObjectPlace) -> bytes:
    return await asyncio.to_thread(read_object, where, Objects(HASTY))


@pytest.mark.parametrize(
    "faults",
    [
        [],
        ["500", "503"],
        ["429", "429"],
        ["reset", "reset"],
        ["stall"],
        ["cut", "cut"],
        ["500", "reset", "cut"],
    ],
    ids=" ".join,
)
async def test_what_fails_for_the_moment_is_asked_for_again(faults: list[str]) -> None:
    async with object_server({"/a.bin": DATA}) as server:
        server.faults.extend(faults)
        assert await read(place(server)) == DATA[1000:6000]
        assert server.requests["GET"] == len(faults) + 1


@pytest.mark.parametrize("fault", ["cut", "stall", "reset"])
async def test_so_is_what_has_no_etag(fault: str) -> None:
    async with object_server({"/a.bin": DATA}) as server:
        server.has_etags = False
        server.faults.append(fault)
        assert await read(place(server)) == DATA[1000:6000]


@pytest.mark.parametrize("fault", ["whole", "shifted", "short", "500", "429", "reset", "stall"])
async def test_a_server_that_never_mends_gives_no_bytes_at_all(fault: str) -> None:
    async with object_server({"/a.bin": DATA}) as server:
        server.always = fault
        with pytest.raises(NotHereError):
            await read(place(server))
        assert server.requests["GET"] < 20


async def test_an_object_of_another_size_is_another_object() -> None:
    async with object_server({"/a.bin": DATA}) as server:
        with pytest.raises(NotHereError, match="300000 bytes now, not 299999"):
            await read(place(server, size=len(DATA) - 1))
        server.files["/a.bin"] = DATA[:3000]
        with pytest.raises(NotHereError):
            await read(place(server, size=None))


async def test_an_object_of_another_etag_is_another_object_though_its_size_is_the_same() -> None:
    async with object_server({"/a.bin": DATA}) as server:
        facts = await asyncio.to_thread(Objects(HASTY).facts, place(server).url)
        listed = msgspec.structs.replace(place(server), etag=facts.etag)
        assert await read(listed) == DATA[1000:6000]
        server.files["/a.bin"] = DATA[::-1]
        with pytest.raises(NotHereError, match="changed since it was listed"):
            await read(listed)
        with pytest.raises(PlaceError, match="changed since it was listed") as changed:
            await asyncio.to_thread(read_own_object, listed, Objects(HASTY))
        assert changed.value.kind == "image_changed"
        assert server.requests["GET"] == 3, "what has changed is not asked for again"


@pytest.mark.parametrize("now", ["none", "weak"])
async def test_an_etag_that_is_not_given_or_given_as_weak_is_no_other_one(now: str) -> None:
    async with object_server({"/a.bin": DATA}) as server:
        server.has_etags, server.has_weak_etags = now != "none", now == "weak"
        listed = msgspec.structs.replace(place(server), etag=etag_of(DATA))
        assert await read(listed) == DATA[1000:6000]


async def test_a_missing_object_is_a_row_and_a_refused_one_is_not() -> None:
    async with object_server({"/a.bin": DATA}) as server:
        with pytest.raises(PlaceError, match=r"there is no http.*/b\.bin") as found:
            await read(place(server, "/b.bin"))
        assert found.value.kind == "image_missing"
        for status in ("401", "403"):
            server.faults.append(status)
            with pytest.raises(NotHereError, match="may not be read"):
                await read(place(server))


async def test_names_are_taken_as_urls_write_them() -> None:
    files = {"/a b/ü%1.bin": DATA, "/signed.bin": DATA}
    async with object_server(files) as server:
        assert await read(place(server, "/a%20b/%C3%BC%251.bin")) == DATA[1000:6000]
        assert await read(place(server, "/signed.bin?key=secret&x=1")) == DATA[1000:6000]
        with pytest.raises(PlaceError) as found:
            await read(place(server, "/none.bin?key=secret"))
        assert "secret" not in str(found.value)


async def test_a_storage_nobody_knows_is_said_to_be_unknown() -> None:
    with pytest.raises(NotHereError, match="nowhere"):
        await read(ObjectPlace("nowhere://bucket/a.bin"))


async def test_nobody_listens() -> None:
    async with object_server({}) as server:
        gone = place(server)
    with pytest.raises(NotHereError, match="cannot be read"):
        await read(gone)


# ---------------------------------------------------------------- S3


@pytest.fixture
def s3() -> Iterator[str]:
    names = ("set/a b.bin", "set/deep/b.bin", "settle/c.bin")
    with s3_server(dict.fromkeys(names, DATA)) as url:
        yield url


def test_s3_objects_are_listed_looked_at_and_read(s3: str) -> None:
    objects = Objects(HASTY)
    found = list(objects.below(f"{s3}/set/"))
    assert sorted(one.url for one in found) == [f"{s3}/set/a b.bin", f"{s3}/set/deep/b.bin"]
    facts = objects.facts(f"{s3}/set/deep/b.bin")
    assert facts in found
    assert facts.size == len(DATA)
    where = ObjectPlace(f"{s3}/set/a b.bin", 1000, 5000, len(DATA))
    assert read_object(where, objects) == DATA[1000:6000]
    with pytest.raises(PlaceError, match="there is no s3://pictures/set/none"):
        read_object(ObjectPlace(f"{s3}/set/none", 0, 5), objects)
    with pytest.raises(ObjectError):
        list(objects.below("s3://another/set"))


def test_an_s3_object_that_was_replaced_by_one_of_the_same_size_is_another(s3: str) -> None:
    objects = Objects(HASTY)
    url = f"{s3}/set/deep/b.bin"
    facts = objects.facts(url)
    listed = ObjectPlace(url, 1000, 5000, facts.size, facts.etag)
    assert read_object(listed, objects) == DATA[1000:6000]
    client = boto3.client("s3")
    client.put_object(Bucket="pictures", Key="set/deep/b.bin", Body=DATA[::-1])
    client.close()
    with pytest.raises(NotHereError, match="changed since it was listed"):
        read_object(listed, objects)
    with pytest.raises(PlaceError) as changed:
        read_own_object(listed, objects)
    assert changed.value.kind == "image_changed"


class _EarlierPlace(msgspec.Struct, array_like=True, tag="object"):
    url: str
    offset: int
    length: int
    size: int


def test_places_of_peers_that_know_no_etags_are_understood_both_ways() -> None:
    encoded = msgspec.msgpack.encode(_EarlierPlace("s3://b/a", 1, 2, 3))
    listed = msgspec.msgpack.decode(encoded, type=ObjectPlace)
    assert listed == ObjectPlace("s3://b/a", 1, 2, 3)
    encoded = msgspec.msgpack.encode(ObjectPlace("s3://b/a", 1, 2, 3, '"x"'))
    assert msgspec.msgpack.decode(encoded, type=_EarlierPlace).size == 3
