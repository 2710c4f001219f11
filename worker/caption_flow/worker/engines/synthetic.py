"""An engine without a model: the same text for the same picture and prompt, on any machine.

For tests, rehearsals and capacity planning. It can be slow, refuse, fall silent or die on purpose,
always as a function of the picture's content hash, so that every run of a test sees the same. Of a
video it tells the colours of its frames.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from PIL import Image

from caption_flow.recipe.structure import STRUCTURED_OUTPUTS
from caption_flow.recipe.video import VIDEO, Video
from caption_flow.worker.engines.base import (
    Completion,
    EngineDied,
    EngineUnavailable,
    PreparedVideo,
    Request,
    RequestRefused,
)
from caption_flow.worker.engines.options import DEFAULT_MAX_TOKENS, unknown_option
from caption_flow.worker.engines.synthetic_structure import structured_answer

REFUSED: Final = "synthetic_refusal"
"""The ``error_kind`` of items refused on purpose."""

_OPENINGS: Final = (
    "A quiet photograph of", "A close view of", "A wide shot of", "An overhead picture of",
    "A softly lit scene with", "A candid picture of", "A detailed illustration of", "A painting of",
)  # fmt: skip
_QUALITIES: Final = (
    "weathered", "bright red", "pale blue", "tiny", "enormous", "half-finished", "polished",
    "moss-covered", "striped", "golden", "crooked", "transparent", "well-worn", "ornate", "plain",
    "snow-dusted",
)  # fmt: skip
_THINGS: Final = (
    "bicycle", "lighthouse", "teapot", "fox", "wooden boat", "violin", "greenhouse", "street lamp",
    "cathedral", "hot-air balloon", "owl", "tractor", "chessboard", "umbrella", "steam engine",
    "lemon tree",
)  # fmt: skip
_PLACES: Final = (
    "beside a harbour wall", "in a crowded market", "under a stone bridge", "on a kitchen table",
    "at the edge of a pine forest", "in front of a brick house", "on a windy hill", "by a window",
)  # fmt: skip
_LIGHTS: Final = (
    "in the late afternoon", "at dawn", "under an overcast sky", "in harsh noon light",
    "by candlelight", "after the rain", "in thick fog", "on a clear winter day",
)  # fmt: skip
_DETAILS: Final = (
    "A second figure waits in the background.", "The colours are muted and warm.",
    "Reflections run along the lower edge.", "Nothing else disturbs the composition.",
    "A hand-painted sign is only partly legible.", "Long shadows point to the left.",
    "The background falls away into blur.", "Small scratches catch the light.",
)  # fmt: skip

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class SyntheticOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a `SyntheticEngine` does besides answering; the defaults answer at once and always."""

    latency_ms: NotNegative = 0.0
    """Milliseconds from request to answer."""
    latency_jitter: Fraction = 0.0
    """How far latency strays: 0.25 makes it 75 % to 125 %, by the hash of picture and prompt."""
    tokens: Positive | None = None
    """Answer with this many words (a word counts as a token): cut, or drawn out by more detail."""
    fail_rate: Fraction = 0.0
    """Share of all pictures that are refused, chosen by content hash."""
    fail_items: tuple[str, ...] = ()
    """Beginnings of content hashes that are refused."""
    die_on: tuple[str, ...] = ()
    """Beginnings of content hashes that kill the engine, and with it all that is in flight."""
    empty_on: tuple[str, ...] = ()
    """Beginnings of content hashes that are answered with an empty text."""
    endless_on: tuple[str, ...] = ()
    """Beginnings of content hashes whose answer never ends by itself: ``max_tokens`` cuts it."""
    hang_on: tuple[str, ...] = ()
    """Beginnings of content hashes that are never answered; the others are meanwhile."""
    load_seconds: NotNegative = 0.0
    """How long `start` takes."""
    requests_in_flight: Positive = 64
    """What the engine says keeps it full."""


def synthetic_caption(content_hash: str, prompt: str) -> str:
    """Return the text a default `SyntheticEngine` answers: two sentences and a proof of identity.

    The words are drawn by the BLAKE2b-128 digest of ``content_hash``, a zero byte and ``prompt``
    (UTF-8). The text ends in ``[<first 8 digits of content_hash>-<first 8 digits of the digest>]``,
    so that one glance tells which picture it belongs to, and a comparison whether the prompt fits.
    """
    return _compose(content_hash, _digest(content_hash, prompt), None)


def _digest(content_hash: str, prompt: str) -> bytes:
    text = f"{content_hash}\0{prompt}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).digest()


def _pick(words: tuple[str, ...], byte: int) -> str:
    return words[byte % len(words)]


def look_at(video: PreparedVideo) -> tuple[str, str]:
    """Return what is said of a video's frames, and a digest of how they look; blocking.

    Each frame is told by its mean colour, ``#rrggbb``, so that a caption shows which it was.
    """
    small = [one.pixels.resize((8, 8), Image.Resampling.BOX) for one in video.pictures]
    colours = [f"#{one.resize((1, 1), Image.Resampling.BOX).tobytes().hex()}" for one in small]
    form = "one video" if video.passed_as == VIDEO else "images"
    look = hashlib.blake2b(b"".join(one.tobytes() for one in small), digest_size=16)
    return f"Shown as {form}: {' '.join(colours)}.", f":{look.hexdigest()}"


def _compose(content_hash: str, digest: bytes, tokens: int | None, seen: str = "") -> str:
    quality = _pick(_QUALITIES, digest[4])
    article = "an" if quality[0] in "aeiou" else "a"
    text = (
        f"{_pick(_OPENINGS, digest[0])} {article} {quality} {_pick(_THINGS, digest[5])}"
        f" {_pick(_PLACES, digest[6])} {_pick(_LIGHTS, digest[7])}."
        f" {_pick(_DETAILS, digest[8])}{seen and f' {seen}'}"
    )
    proof = f"[{content_hash[:8]}-{digest[:4].hex()}]"
    return f"{text} {proof}" if tokens is None else _of_length(text, proof, digest, tokens)


def _of_length(text: str, proof: str, digest: bytes, tokens: int) -> str:
    """Return ``tokens`` words, the last of which is ``proof``."""
    words = text.split()
    turn = 0
    while len(words) < tokens - 1:
        words += _pick(_DETAILS, digest[turn % len(digest)] + turn).split()
        turn += 1
    return " ".join([*words[: tokens - 1], proof])


class SyntheticEngine:
    """An `Engine` that answers `synthetic_caption`, with the troubles `SyntheticOptions` ask for.

    Raises:
        EngineUnavailable: an option is unknown or has an impossible value.
    """

    def __init__(self, model: str, options: Mapping[str, Any] | None = None) -> None:
        self._model = model
        self._options = _parse(options or {})
        self._impossible: list[Mapping[str, Any]] = []
        self._ended: asyncio.Event | None = None
        self._reason = "the synthetic engine has not been started"

    @property
    def model(self) -> str:
        """The name it was given; nothing is loaded under it."""
        return self._model

    @property
    def requests_in_flight(self) -> int:
        """The option of that name."""
        return self._options.requests_in_flight

    def expect(self, samplings: Sequence[Mapping[str, Any]], video: Video | None = None) -> None:
        """Note what `start` is to refuse: structures that cannot be made up."""
        del video  # any is welcome
        structures = [sampling.get(STRUCTURED_OUTPUTS) for sampling in samplings]
        self._impossible = [
            one for one in structures if one and structured_answer(one, "", 0) is None
        ]

    @property
    def beats(self) -> int:
        """Nothing: it answers as a whole, so answers are its only signs of life."""
        return 0

    async def start(self) -> None:
        """Wait ``load_seconds``; a dead engine lives again.

        Raises:
            EngineUnavailable: a structured output is asked for that it cannot make up.
        """
        if self._impossible:
            kinds = [f"{kind} {value!r}" for one in self._impossible for kind, value in one.items()]
            raise EngineUnavailable(
                "the synthetic engine cannot make up answers for structured output by "
                f"{', '.join(dict.fromkeys(kinds))}; it can for json_schema, choice, and regexes "
                "without lookaround, atomic groups and long repeats"
            )
        await asyncio.sleep(self._options.load_seconds)
        self._ended = asyncio.Event()

    async def generate(self, request: Request) -> Completion:
        """Answer after the latency, or refuse, or die.

        ``sampling["max_tokens"]`` cuts the answer, as it would a model's, and
        ``structured_outputs`` gives it its form; nothing else in ``sampling`` has an effect.

        Raises:
            RequestRefused: the picture is one to be refused (kind `REFUSED`).
            EngineDied: the picture, or one in flight beside it, kills; or not started; or stopped.
        """
        content_hash = request.subject.content_hash
        seen, digest = "", _digest(content_hash, request.prompt)
        if isinstance(request.subject, PreparedVideo):
            seen, look = await asyncio.to_thread(look_at, request.subject)
            digest = _digest(content_hash + look, request.prompt)
        await self._work(digest, is_endless=_begins(content_hash, self._options.hang_on))
        options = self._options
        if _begins(content_hash, options.die_on):
            self._end(f"the synthetic engine died on picture {content_hash[:8]}, as it was told to")
            raise EngineDied(self._reason)
        if self._is_refused(content_hash):
            raise RequestRefused(REFUSED, f"picture {content_hash[:8]} is refused on purpose")
        if _begins(content_hash, options.empty_on):
            return Completion("", _count(request.prompt), 0, "stop")
        tokens, limit = options.tokens, request.sampling.get("max_tokens")
        if _begins(content_hash, options.endless_on):
            limit = limit or DEFAULT_MAX_TOKENS
            tokens = limit + 1
        text = _compose(content_hash, digest, tokens, seen)
        if structure := request.sampling.get(STRUCTURED_OUTPUTS):
            text = structured_answer(structure, text, digest[10]) or text
        return _completion(request.prompt, text, limit)

    async def stop(self) -> None:
        """End; what is in flight raises `EngineDied`."""
        self._end("the synthetic engine was stopped")

    async def _work(self, digest: bytes, *, is_endless: bool) -> None:
        """Let the latency pass, which may be for ever.

        Raises:
            EngineDied: the engine ended before or meanwhile.
        """
        ended = self._ended
        if ended is not None and not ended.is_set():
            seconds = None if is_endless else self._latency_seconds(digest)
            if seconds == 0:
                await asyncio.sleep(0)  # let others run, as any real engine does
            else:
                try:
                    async with asyncio.timeout(seconds):
                        await ended.wait()
                except TimeoutError:
                    pass
        if ended is None or ended.is_set():
            raise EngineDied(self._reason)

    def _latency_seconds(self, digest: bytes) -> float:
        spread = digest[9] / 127.5 - 1  # -1 to 1
        return self._options.latency_ms / 1000 * (1 + self._options.latency_jitter * spread)

    def _is_refused(self, content_hash: str) -> bool:
        options = self._options
        if _begins(content_hash, options.fail_items):
            return True
        return options.fail_rate > 0 and _share(content_hash) < options.fail_rate

    def _end(self, reason: str) -> None:
        if self._ended is not None and not self._ended.is_set():
            self._reason = reason
            self._ended.set()


def _parse(options: Mapping[str, Any]) -> SyntheticOptions:
    for name in options:
        if name not in SyntheticOptions.__struct_fields__:
            known = SyntheticOptions.__struct_fields__
            raise EngineUnavailable(unknown_option("synthetic engine", name, known))
    try:
        return msgspec.convert(dict(options), SyntheticOptions, strict=False)
    except msgspec.ValidationError as error:
        raise EngineUnavailable(f"synthetic engine: {error}") from error


def _begins(content_hash: str, beginnings: tuple[str, ...]) -> bool:
    return content_hash.startswith(beginnings)


def _share(content_hash: str) -> float:
    """Return the hash's place between 0 and 1, evenly spread whatever the hash looks like."""
    digest = hashlib.blake2b(content_hash.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _count(text: str) -> int:
    return text.count(" ") + 1


def _completion(prompt: str, text: str, limit: int | None) -> Completion:
    """Return ``text`` cut to ``limit`` words."""
    words = _count(text)
    if limit is None or words <= limit:
        return Completion(text, _count(prompt), words, "stop")
    cut = " ".join(text.split(" ")[:limit])
    return Completion(cut, _count(prompt), limit, "length")
