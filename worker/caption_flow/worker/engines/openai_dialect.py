"""A chat request in the words one server takes.

A recipe's sampling is passed on as it is: the standard parameters, and those that vLLM and SGLang
take beside them. Servers differ in what else they take. What a person wrote is never dropped; what
only a default of ours says is left out once the server has refused it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from caption_flow.recipe.structure import STRUCTURED_OUTPUTS
from caption_flow.worker.engines.base import Request, RequestRefused
from caption_flow.worker.engines.options import DEFAULT_MAX_TOKENS
from caption_flow.worker.engines.refusals import ENGINE_REJECTED

_OURS: Final = frozenset({"messages", "model", "stream", "stream_options"})
_DEFAULTS: Final[Mapping[str, Any]] = {
    "repetition_penalty": 1.05,
    "skip_special_tokens": True,
    "temperature": 0.7,
    "top_p": 0.95,
}
"""What recipes say of sampling when nobody has said anything (`config.vllm.SamplingConfig`)."""
_NOT_TAKEN: Final = re.compile(
    r"un(known|recogni[sz]ed|supported|expected)|not (supported?|permitted|allowed)|extra",
    re.IGNORECASE,
)


class Dialect:
    """What one server takes, as far as it has said so."""

    def __init__(self) -> None:
        self._left_out: set[str] = set()
        self._length_parameter = "max_tokens"

    def chat_request(self, model: str, request: Request, pictures: Sequence[msgspec.Raw]) -> bytes:
        """Return the body of a chat request, pictures first: prompts about it share what is cached.

        Raises:
            RequestRefused: the sampling says what only the worker may.

        """
        content = [
            *({"type": "image_url", "image_url": {"url": picture}} for picture in pictures),
            {"type": "text", "text": request.prompt.encode("utf-8", "replace").decode()},
        ]
        body = {
            **self._sampling(request.sampling),
            "model": model,
            "messages": [{"role": "user", "content": content}],
        }
        try:
            return msgspec.json.encode(body)
        except (TypeError, ValueError) as error:
            raise RequestRefused(
                ENGINE_REJECTED, f"the sampling parameters cannot be sent: {error}"
            ) from error

    def learn(self, refusal: str, sampling: Mapping[str, Any]) -> str | None:
        """Change to what the server takes, if a refusal says how; return a sentence about that."""
        if "max_completion_tokens" in refusal and self._length_parameter == "max_tokens":
            self._length_parameter = "max_completion_tokens"
            return "the server wants 'max_completion_tokens' in place of 'max_tokens': it gets that"
        if not _NOT_TAKEN.search(refusal):
            return None
        for name in sorted(_DEFAULTS.keys() - self._left_out):
            if sampling.get(name) == _DEFAULTS[name] and _names(refusal, name):
                self._left_out.add(name)
                return f"the server does not take '{name}': the default {sampling[name]} is dropped"
        return None

    def _sampling(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        if reserved := sorted(_OURS & sampling.keys()):
            raise RequestRefused(
                ENGINE_REJECTED,
                f"sampling parameter '{reserved[0]}' cannot be set: the worker does",
            )
        if sampling.get("n") not in {None, 1}:
            raise RequestRefused(
                ENGINE_REJECTED,
                "sampling parameter 'n' cannot be set: a prompt has one answer; to get more, list "
                "the prompt more than once",
            )
        asked = {
            name: value
            for name, value in sampling.items()
            if value is not None and not self._is_dropped(name, value)
        }
        if STRUCTURED_OUTPUTS in asked:
            asked |= _standard_structure(asked.pop(STRUCTURED_OUTPUTS))
        longest = asked.pop("max_tokens", DEFAULT_MAX_TOKENS)
        asked.setdefault(self._length_parameter, longest)
        return asked

    def _is_dropped(self, name: str, value: Any) -> bool:
        return name in self._left_out and value == _DEFAULTS[name]


def _standard_structure(structure: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that ask for an answer of this structure, given in vLLM's form.

    JSON is asked for in the API's own words, which every server knows that can do it
    (https://platform.openai.com/docs/guides/structured-outputs); the rest only vLLM knows.
    """
    schema = structure.get("json")
    if schema is None:
        return {STRUCTURED_OUTPUTS: structure}
    parsed = json.loads(schema) if isinstance(schema, str) else schema
    asked = {"name": "answer", "schema": parsed, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": asked}}


def refused_parameter(refusal: str, sampling: Mapping[str, Any]) -> str | None:
    """Return the sampling parameter that a refusal says the server does not take, or None."""
    if not _NOT_TAKEN.search(refusal):
        return None
    return next((name for name in sorted(sampling) if _names(refusal, name)), None)


def _names(text: str, parameter: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(parameter)}(?!\w)", text) is not None
