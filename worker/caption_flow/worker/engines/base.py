"""The port every engine implements: one request in, one completion out.

An engine loads one model. It never sees items, leases or stages, and it tells two kinds of failure
apart: a request that cannot be answered (`RequestRefused`, the item's own fault) and an engine that
is gone (`EngineDied`, nobody's fault among the requests in flight).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from caption_flow.recipe.video import Form, Video


class EngineError(Exception):
    """Base of what engines raise; ``str()`` is one sentence a person can act on."""


class RequestRefused(EngineError):
    """This request alone cannot be answered; ``kind`` becomes the row's ``error_kind``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class EngineDied(EngineError):
    """The engine is gone and every request in flight with it; the requests are to be retried."""


class EngineUnavailable(EngineError):
    """The engine cannot be started: what is missing or too large, and what to do about it."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """A decoded picture, ready for an engine.

    ``pixels`` is RGB, upright and already within the size limits. ``content_hash`` identifies the
    picture's content: engines use it to encode an image once for all its prompts and stages.
    """

    pixels: Image.Image
    content_hash: str

    @property
    def pictures(self) -> tuple[PreparedImage, ...]:
        """The picture alone."""
        return (self,)


@dataclass(frozen=True, slots=True)
class PreparedVideo:
    """Frames of a video, ready for an engine: at least one, in order, all of one size.

    Each of ``pictures`` is named by the file's content and its own place in it; ``content_hash`` is
    the file's. ``passed_as`` says whether the model is to see them as images or as one video. For
    the latter, ``seconds`` tells when each frame is shown, of ``total`` frames in ``duration``
    seconds.
    """

    pictures: tuple[PreparedImage, ...]
    content_hash: str
    passed_as: Form
    seconds: tuple[float, ...]
    duration: float
    total: int


Subject = PreparedImage | PreparedVideo
"""What a prompt is about."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt about one image or video. ``sampling`` holds the engine's own parameter names.

    An engine that renders requests before its batch can take them does so within ``rendering()``,
    so that the worker can tell what the engine is kept waiting by.
    """

    id: str
    prompt: str
    subject: Subject
    sampling: Mapping[str, Any] = field(default_factory=dict)
    rendering: Callable[[], AbstractContextManager[object]] = field(
        default=nullcontext, compare=False, repr=False
    )


@dataclass(frozen=True, slots=True)
class Completion:
    """The engine's answer; ``finish_reason`` is ``stop``, ``length`` or the engine's own word."""

    text: str
    tokens_in: int
    tokens_out: int
    finish_reason: str
    image_scaled_to: tuple[int, int] | None = None
    """Width and height the picture was shrunk to, where prompt and picture had been too long."""


class Engine(Protocol):
    """One loaded model."""

    @property
    def model(self) -> str:
        """The model's name, as rows record it."""
        ...

    @property
    def requests_in_flight(self) -> int:
        """How many requests keep the engine full (about 1.1 times its batch width)."""
        ...

    def expect(self, samplings: Sequence[Mapping[str, Any]], video: Video | None = None) -> None:
        """Note, before `start`, with which parameters requests will come, and how videos do.

        What would be refused for each of them is to be refused once, by `start`.
        """
        ...

    @property
    def beats(self) -> int:
        """A count that grows with every sign of life, such as tokens; it never falls.

        Answers need not be counted: whoever asked sees them.
        """
        ...

    async def start(self) -> None:
        """Load the model; returns when it answers. Raises `EngineUnavailable`."""
        ...

    async def generate(self, request: Request) -> Completion:
        """Answer one request; cancelling aborts it in the engine.

        Raises:
            RequestRefused: this request cannot be answered.
            EngineDied: the engine is gone.
            EngineUnavailable: no request can be answered here, and starting again would not help.
        """
        ...

    async def stop(self) -> None:
        """Free the device and wait until every process of the engine is gone; idempotent."""
        ...
