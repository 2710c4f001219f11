"""What servers answer, read: a completion, a refusal, a trouble, or the end of the road.

Pure: an HTTP answer in, one of those out. Servers agree on the form of a completion (OpenAI's API
reference, "The chat completion object") and on little else: errors come in half a dozen forms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, NoReturn

import msgspec

from caption_flow.worker.engines.base import Completion, EngineUnavailable, RequestRefused
from caption_flow.worker.engines.openai_patience import Trouble, TroubleKind, retry_after_seconds
from caption_flow.worker.engines.refusals import (
    CONTENT_REFUSED,
    ENGINE_REJECTED,
    IMAGE_REJECTED,
    kind_of_refusal,
)

_SHOWN_CHARACTERS: Final = 300
_HIDDEN: Final = "********"
_BUSY: Final = frozenset({408, 425, 429, 502, 503, 504, 529})
"""Ask later: 502 and 504 are a proxy's word for a server that restarts, 529 means overloaded."""
_NOT_THERE: Final = frozenset({404, 405, 410, 501})
_NO_ENTRY: Final = frozenset({401, 402, 403, 407})


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom we talk to, for sentences. ``secret`` is what must never be in one."""

    address: str
    key: str | None = None
    """Where the key comes from (``env:NAME``), or stars for one that was written out."""
    secret: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"the server at {self.address}"

    def hide(self, text: str) -> str:
        """Return a text of the server's, should it have repeated the key to us."""
        return text.replace(self.secret, _HIDDEN) if self.secret else text


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    peer: Peer
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def said(self) -> str:
        """What the server says is wrong, in one line."""
        return self.shown(_message(self.body)) or "without a word"

    @property
    def code(self) -> str:
        """The name of the error, or nothing."""
        return _error_code(self.body)

    def shown(self, text: str) -> str:
        """Return a text of the server's so that it can be shown."""
        line = self.peer.hide(" ".join(text.split()))
        return line if len(line) <= _SHOWN_CHARACTERS else f"{line[: _SHOWN_CHARACTERS - 1]}…"


class NotThereError(Exception):
    """The server knows no such model, or no such address; ``str()`` is what it says."""


# --------------------------------------------------------------------------- completions


class _Message(msgspec.Struct):
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _ChatCompletion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


def read_completion(answer: Answer, *, now: datetime) -> Completion:
    """Read the answer to a chat request.

    Raises:
        RequestRefused: the server does not answer this request, and never will.
        EngineUnavailable: it does not answer any of ours.
        NotThereError: it has no such model.
        Trouble: it may answer later.

    """
    if answer.status != HTTPStatus.OK:
        _raise_error(answer, now)
    try:
        chat = msgspec.json.decode(answer.body, type=_ChatCompletion)
        choice = chat.choices[0]
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError):
        raise Trouble(
            TroubleKind.FAULT, f"{answer.peer} answers, but with no chat completion: {answer.said}"
        ) from None
    _refuse_refused(answer, choice)
    usage = chat.usage or _Usage()
    return Completion(
        text=_text(choice.message.content),
        tokens_in=usage.prompt_tokens or 0,
        tokens_out=usage.completion_tokens or 0,
        finish_reason=choice.finish_reason or "unknown",
    )


def _text(content: str | list[dict[str, Any]] | None) -> str:
    """Return the text of a message: one text, parts, or none where only thoughts came of it."""
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content if isinstance(part.get("text"), str))
    return content or ""


def _refuse_refused(answer: Answer, choice: _Choice) -> None:
    if choice.message.refusal:
        reason = answer.shown(choice.message.refusal)
        raise RequestRefused(CONTENT_REFUSED, f"the model refuses to answer: {reason}")
    if choice.finish_reason == "content_filter":
        raise RequestRefused(CONTENT_REFUSED, "the server's content filter withheld the answer")


def read_models(answer: Answer, *, now: datetime) -> tuple[str, ...] | None:
    """Return the names in a list of models; None from a server that has no such list.

    Raises:
        EngineUnavailable: the server does not answer us.
        Trouble: it may answer later.

    """
    if answer.status != HTTPStatus.OK:
        try:
            _raise_error(answer, now)
        except (RequestRefused, NotThereError):
            return None
    match _decoded(answer.body):
        case {"data": list(models)}:
            return tuple(
                str(model["id"]) for model in models if isinstance(model, dict) and "id" in model
            )
        case _:
            return None


# --------------------------------------------------------------------------- errors


def _raise_error(answer: Answer, now: datetime) -> NoReturn:
    status, said, about = answer.status, answer.said, f"{answer.code} {answer.said}"
    if status in _NOT_THERE or "model_not_found" in about:
        raise NotThereError(said)
    if status in {400, 403} and _ABOUT_CONTENT.search(about):
        raise RequestRefused(CONTENT_REFUSED, f"the server refuses the content ({status}): {said}")
    if status in _NO_ENTRY or _ABOUT_KEY.search(about) or "insufficient_quota" in about:
        raise EngineUnavailable(_no_entry(answer))
    shown = f"{answer.peer} answered {status}: {said}"
    if status in _BUSY:
        wait = retry_after_seconds(answer.headers.get("Retry-After"), now=now)
        raise Trouble(TroubleKind.BUSY, shown, retry_after_seconds=wait)
    if status >= 500:
        raise Trouble(TroubleKind.FAULT, shown)
    if status < 400:
        elsewhere = answer.shown(answer.headers.get("Location", "nowhere"))
        raise EngineUnavailable(
            f"{answer.peer} redirects ({status}) to {elsewhere}: correct base_url"
        )
    raise _refusal(status, about, said)


def _no_entry(answer: Answer) -> str:
    refusal = f"it answered {answer.status}: {answer.said}"
    if answer.peer.key is None:
        return f"{answer.peer} wants a key ({refusal}): give one with --api-key env:NAME"
    return f"{answer.peer} refuses the key {answer.peer.key} ({refusal})"


def _refusal(status: int, about: str, said: str) -> RequestRefused:
    kind = kind_of_refusal(about)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and kind == ENGINE_REJECTED:
        kind = IMAGE_REJECTED  # nothing else in the request is large
    return RequestRefused(kind, f"the server refuses the request ({status}): {said}")


_ABOUT_CONTENT: Final = re.compile(
    r"content.?(policy|filter|management)|moderation|flagged|safety system|responsible ?ai",
    re.IGNORECASE,
)
_ABOUT_KEY: Final = re.compile(
    r"invalid_api_key|api key (is )?(not valid|invalid|expired)|invalid api key", re.IGNORECASE
)


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _message(body: bytes) -> str:
    """Return the sentence in an error: OpenAI, vLLM, SGLang, llama.cpp, Ollama, FastAPI."""
    match _decoded(body):
        case {"error": {"message": str(message)}} | {"message": str(message)}:
            return message
        case {"error": str(message)} | {"detail": str(message)}:
            return message
        case {"detail": list(problems)}:
            return "; ".join(_validation_problem(problem) for problem in problems)
        case _:
            return body[: 4 * _SHOWN_CHARACTERS].decode("utf-8", "replace")


def _validation_problem(problem: Any) -> str:
    match problem:
        case {"loc": list(place), "msg": str(message)}:
            return f"{'.'.join(str(step) for step in place)}: {message}"
        case _:
            return str(problem)


def _error_code(body: bytes) -> str:
    match _decoded(body):
        case {"error": {"code": str(code)}} | {"code": str(code)}:
            return code
        case {"error": {"type": str(code)}} | {"type": str(code)}:
            return code
        case _:
            return ""
