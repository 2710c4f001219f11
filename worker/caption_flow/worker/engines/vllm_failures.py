"""What vLLM says when it fails, said so that a person knows what to do.

Pure: texts in, one sentence out. vLLM's engine fails in a process of its own and tells its caller
only to "see above", so the text searched is what that process logged together with the exception.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from caption_flow.worker.engines.refusals import (
    ENGINE_REJECTED,
    IMAGE_REJECTED,
    PROMPT_TOO_LONG,
    kind_of_refusal,
)


@dataclass(frozen=True, slots=True)
class Situation:
    """What the sentences are about: the model as configured, and the machine it was to run on."""

    model: str
    on_cpu: bool = False
    offline: bool = False
    """HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set."""
    kv_cache_gib: str | None = None
    """VLLM_CPU_KVCACHE_SPACE, where it counts."""


Explain = Callable[[Situation, "re.Match[str]"], str]


def explain_load_failure(error: BaseException, log: str, situation: Situation) -> str:
    """Return one sentence: what is wrong, and what to change."""
    text = "\n".join([*(str(link) for link in chain(error)), log])
    for pattern, explain in _LOAD_FAILURES:
        if found := pattern.search(text):
            return explain(situation, found)
    cause = _root_cause(error, log) or _shortened(first_line(error))
    return f"vLLM cannot load model '{situation.model}': {cause}"


def explain_death(error: BaseException, log: str) -> str:
    """Return one sentence about an engine that is gone."""
    cause = _root_cause(error, log) or "its process ended without a word: killed, perhaps"
    return f"vLLM's engine is gone: {cause}"


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what led to it, outermost first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def refusal(error: BaseException) -> tuple[str, str]:
    """Return ``error_kind`` and sentence for a request that vLLM rejects with ``error``."""
    text = " | ".join(str(link) for link in chain(error))
    sentence = _shortened(_PARAMETER.sub("", first_line(_cause(error))))
    kind = kind_of_refusal(text)
    if kind == ENGINE_REJECTED and isinstance(error, OSError):
        kind = IMAGE_REJECTED
    return kind, f"{_REFUSALS[kind]}: {sentence}"


_REFUSALS: Final = {
    PROMPT_TOO_LONG: "the prompt is too long for the model",
    IMAGE_REJECTED: "the model's image processor rejects the picture",
    ENGINE_REJECTED: "vLLM rejects the request",
}


def _cause(error: BaseException) -> BaseException:
    """Return the error this one was explicitly raised from, in the end: it has the details."""
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return error


_PARAMETER: Final = re.compile(r" \(parameter=.*\)$")

# --------------------------------------------------------------------------- loading


def _gated(now: Situation, _found: re.Match[str]) -> str:
    return (
        f"model '{now.model}' is gated: accept its terms at https://huggingface.co/{now.model}, "
        "then set HF_TOKEN to a token of that account"
    )


def _unreachable(now: Situation, _found: re.Match[str]) -> str:
    why = (
        "HF_HUB_OFFLINE is set, so it is not downloaded"
        if now.offline
        else "the Hugging Face hub cannot be reached"
    )
    return (
        f"model '{now.model}' is not on this machine and {why}: check the spelling and the network "
        "(HF_HUB_OFFLINE, HF_HOME, HF_ENDPOINT), or give the path of a folder"
    )


def _not_found(now: Situation, _found: re.Match[str]) -> str:
    return (
        f"there is no model '{now.model}' on the Hugging Face hub, or it is private: check the "
        "spelling, or set HF_TOKEN"
    )


def _device_busy(now: Situation, found: re.Match[str]) -> str:
    return (
        f"model '{now.model}' cannot start, the device is in use by others ({_detail(found)}): "
        "lower gpu_memory_utilization, or end what uses the device"
    )


def _cache_too_small(now: Situation, found: re.Match[str]) -> str:
    remedy = (
        f"raise VLLM_CPU_KVCACHE_SPACE (now {now.kv_cache_gib or 'unset'} GiB)"
        if now.on_cpu
        else "raise gpu_memory_utilization"
    )
    return (
        f"model '{now.model}' leaves too little memory for its context ({_detail(found)}): lower "
        f"max_model_len or {remedy}"
    )


def _out_of_memory(now: Situation, found: re.Match[str]) -> str:
    if now.on_cpu:
        space = now.kv_cache_gib or "unset"
        remedy = f"lower VLLM_CPU_KVCACHE_SPACE (now {space} GiB) or max_model_len"
    else:
        remedy = (
            "lower max_model_len, max_num_seqs or gpu_memory_utilization, or choose a quantized "
            "model (quantization, dtype)"
        )
    return f"model '{now.model}' does not fit into memory ({_detail(found)}): {remedy}"


def _unsupported(now: Situation, found: re.Match[str]) -> str:
    return (
        f"the installed vLLM cannot run model '{now.model}' ({_detail(found)}): upgrade vllm and "
        "transformers, or choose another model"
    )


def _own_code(now: Situation, _found: re.Match[str]) -> str:
    return (
        f"model '{now.model}' brings code of its own: the owner of this worker has to allow it "
        "with trust_remote_code"
    )


def _bad_config(now: Situation, found: re.Match[str]) -> str:
    return f"model '{now.model}' has a config.json that cannot be used ({_detail(found)})"


def _too_few_devices(now: Situation, found: re.Match[str]) -> str:
    return (
        f"model '{now.model}' is to run on more devices than it may see ({_detail(found)}): lower "
        "tensor_parallel_size, or let it see more (CUDA_VISIBLE_DEVICES; --gpu-id 0,1)"
    )


def _context_too_long(now: Situation, found: re.Match[str]) -> str:
    wanted, possible = found.group(1), found.group(2)
    return (
        f"model '{now.model}' cannot have max_model_len {wanted}; it was made for {possible}: "
        "lower max_model_len"
    )


def _no_weights(now: Situation, found: re.Match[str]) -> str:
    return f"model '{now.model}' has no usable weights ({_detail(found)}): is the copy complete?"


def _no_tokenizer(now: Situation, _found: re.Match[str]) -> str:
    return f"model '{now.model}' has no usable tokenizer: is the copy complete?"


def _no_multimodal(now: Situation, _found: re.Match[str]) -> str:
    return f"model '{now.model}' does not look at pictures: choose a vision-language model"


_LOAD_FAILURES: Final[tuple[tuple[re.Pattern[str], Explain], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE), explain)
    for pattern, explain in (
        (r"gated repo|GatedRepo|Access to model .{1,200} is restricted", _gated),
        (r"requires you to execute|contains custom code which must be executed", _own_code),
        (
            r"offline ?mode|HF_HUB_OFFLINE|couldn't connect to|LocalEntryNotFound|Max retries"
            r"|Failed to resolve|Name or service not known|Temporary failure in name resolution"
            r"|ConnectError|Connection error|cannot find an appropriate cached snapshot",
            _unreachable,
        ),
        (r"is not a valid model identifier|Repository ?Not ?Found|404 Client Error", _not_found),
        (r"Free memory on device.{0,200}less than desired", _device_busy),
        (
            r"User-specified max_model_len \((\d+)\) is greater than the derived"
            r" max_model_len \(.*?=(\d+)",
            _context_too_long,
        ),
        (
            r"No available memory for the cache blocks"
            r"|[\d.]+ GiB KV cache is needed, which is larger than the available KV cache memory"
            r" \([\d.]+ GiB\)"
            r"|larger than the (?:available KV cache memory|maximum number of tokens)",
            _cache_too_small,
        ),
        (
            r"CUDA out of memory|HIP out of memory|OutOfMemoryError"
            r"|Available memory on node.{0,200}?less than requested memory[^)]*\)"
            r"|can't allocate memory|Cannot allocate memory|bad_alloc|out of memory",
            _out_of_memory,
        ),
        (
            r"World size \(\d+\) is larger than the number of available \w+ \(\d+\)",
            _too_few_devices,
        ),
        (
            r"Model architectures? \[.{0,200}?\] (?:are|is) not supported"
            r"|\w+ has no vLLM implementation"
            r"|model type `[^`]+` but Transformers does not recognize this architecture"
            r"|failed to be inspected",
            _unsupported,
        ),
        (
            r"config file at .{1,300}? is not a valid JSON file"
            r"|Unrecognized model in.{0,300}?model_type` key"
            r"|No model architectures are specified",
            _bad_config,
        ),
        (
            r"Cannot find any model weights|no safetensors weights|HeaderTooLarge"
            r"|Error while deserializing header|safetensors_rust\.SafetensorError",
            _no_weights,
        ),
        (r"Couldn't instantiate the backend tokenizer|Can't load tokenizer", _no_tokenizer),
        (r"is not a multimodal model|does not support multimodal", _no_multimodal),
    )
)

_ERROR_LINE: Final = re.compile(r"(?:^|\s)((?:[A-Za-z_][\w.]*)?(?:Error|Exception)): (.+)$")
_SAYS_NOTHING: Final = re.compile(
    r"initialization failed|See (stack trace|root cause)|background process", re.IGNORECASE
)


def _root_cause(error: BaseException, log: str) -> str | None:
    """Return the most telling line: the last error a process logged, else the innermost one."""
    for line in reversed(log.splitlines()):
        found = _ERROR_LINE.search(line)
        if found and not _SAYS_NOTHING.search(line):
            return _shortened(f"{found.group(1)}: {found.group(2)}")
    telling = [link for link in chain(error) if not _SAYS_NOTHING.search(str(link))]
    return _shortened(first_line(telling[-1])) if telling else None


def first_line(error: BaseException) -> str:
    """Return what an exception says, in one line; pydantic's framing is left out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return _from_pydantic(lines[1:]) if _PYDANTIC.match(lines[0]) else lines[0]


_PYDANTIC: Final = re.compile(r"\d+ validation errors? for ")


def _from_pydantic(lines: list[str]) -> str:
    """Return each problem with the place it stands under, when it stands under one."""
    problems, place = [], ""
    for line in lines:
        if " [type=" not in line:
            place = "" if line.startswith("For further information") else line.split(".")[0]
            continue
        problem = re.sub(r"^(Value error|Assertion failed), ", "", line.split(" [type=")[0])
        problems.append(f"{place}: {problem}" if place else problem)
    return "; ".join(dict.fromkeys(problems)) or lines[0]


def _detail(found: re.Match[str]) -> str:
    return _shortened(" ".join(found.group(0).split()))


def _shortened(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
