"""The shipped model in real vLLM: right about nearly all new pictures, and about every sample."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from PIL import Image

from tests.tiny_vlm.evaluate import CHAIN, misses, plain_specimens
from tests.tiny_vlm.make_samples import IMAGES_FOLDER, truths
from tests.tiny_vlm.serving import ChainedCaption, TinyCaptioner, tiny_captioner

HELD_OUT_PICTURES = 60
# See tests/tiny_vlm/README.md for the rate measured on more pictures.
LEAST_EXACT_SHARE = 0.95

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.asyncio(loop_scope="module"),
    # torch's own inductor says this while vLLM imports it.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
    # vLLM shuts down without closing its ZeroMQ context.
    pytest.mark.filterwarnings("ignore:Unclosed context <zmq:ResourceWarning"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def captioner() -> AsyncIterator[TinyCaptioner]:
    async with tiny_captioner() as loaded:
        yield loaded


def sample_pictures() -> dict[str, Image.Image]:
    return {path: Image.open(IMAGES_FOLDER / path).convert("RGB") for path in truths()}


def right_chains() -> dict[str, ChainedCaption]:
    return {
        path: ChainedCaption(truth["detailed"], truth["condensed"])
        for path, truth in truths().items()
    }


async def test_pictures_never_seen_go_through_the_two_stage_chain(captioner: TinyCaptioner) -> None:
    missed = await misses(captioner, CHAIN, plain_specimens(HELD_OUT_PICTURES))
    assert len(missed) <= (1 - LEAST_EXACT_SHARE) * HELD_OUT_PICTURES, missed


async def test_every_sample_is_captioned_exactly_one_at_a_time(captioner: TinyCaptioner) -> None:
    said = {
        path: await captioner.detail_and_condense(picture)
        for path, picture in sample_pictures().items()
    }
    assert said == right_chains()


async def test_every_sample_is_captioned_exactly_all_at_once(captioner: TinyCaptioner) -> None:
    pictures = sample_pictures()
    said = await asyncio.gather(*map(captioner.detail_and_condense, pictures.values()))
    assert dict(zip(pictures, said, strict=True)) == right_chains()
