"""Which of vLLM's option names a worker accepts, and under which names it knows them today.

Pure: the names the installed vLLM knows come in as arguments (see `vllm.check_options`). Three
questions are asked of each option: does the worker set it itself, does vLLM know it, and could it
make this machine run somebody else's code?
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from caption_flow.worker.engines.options import nearest

RUNS_CODE: Final = frozenset(
    {
        "auto_map", "ec_connector_module_path", "io_processor_plugin", "kv_connector_module_path",
        "log_config_file", "logging_config", "logits_processors", "model_class_overrides",
        "model_loader_extra_config", "pylogging_config_file", "reasoning_parser_plugin",
        "scheduler_cls", "tool_parser_plugin", "trust_remote_code", "worker_cls",
        "worker_extension_cls",
    }
)  # fmt: skip
"""Options, also nested ones, that name code to run."""

_HUB_NAMES: Final = frozenset(
    {
        "code_revision", "hf_config_path", "model", "revision", "served_model_name", "spec_model",
        "tokenizer", "tokenizer_revision",
    }
)  # fmt: skip
"""Options whose values have slashes and dots and are names all the same."""

_SET_BY_WORKER: Final = {
    "n": "a prompt has one answer; to get more, list the prompt more than once",
    "detokenize": "without it there is no text",
    "output_kind": "the worker sets it",
    "skip_clone": "the worker sets it",
    "stream_interval": "the worker sets it",
}
_SAFE_VALUES: Final = {"n": 1, "detokenize": True}

_RENAMED_ENGINE: Final = {
    "cuda_graph_sizes": "cudagraph_capture_sizes",
    "max_num_on_the_fly_seqs": "max_num_seqs",
}
_RENAMED_SAMPLING: Final = {"max_new_tokens": "max_tokens", "guided_decoding": "structured_outputs"}
_NEGATED: Final = {"disable_log_requests": "enable_log_requests"}
_INTO_STRUCTURED_OUTPUTS: Final = {
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_whitespace_pattern": "whitespace_pattern",
}
_GONE: Final = {
    "batch_size": "vLLM batches continuously; 'max_num_seqs' bounds how many at once",
    "best_of": "this vLLM has no such search",
    "device": "vLLM finds the device itself",
    "disable_async_output_proc": "output is always processed asynchronously",
    "guided_decoding_backend": "vLLM chooses it for each request",
    "max_context_len_to_capture": "vLLM chooses the graphs it captures",
    "max_seq_len_to_capture": "vLLM chooses the graphs it captures",
    "num_scheduler_steps": "vLLM schedules every step",
    "preemption_mode": "vLLM recomputes what it preempts",
    "swap_space": "vLLM recomputes what it preempts",
    "task": "the worker asks for text",
    "use_v2_block_manager": "there is only one block manager left",
}


@dataclass(frozen=True, slots=True)
class CheckedOptions:
    """Options under the names the installed vLLM knows, and a sentence for each that changed."""

    engine: dict[str, Any]
    samplings: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Findings:
    """What came of checking some options: those to use, and sentences about the others."""

    options: dict[str, Any]
    warnings: list[str]
    errors: list[str]


def check_engine_names(
    options: Mapping[str, Any], known: Collection[str], *, trusted: bool
) -> Findings:
    """Check the engine's options; ``trusted`` options may run code on this machine."""
    findings = Findings({}, [], [])
    for name, value in options.items():
        if name == "model" or value is None:
            continue  # the stage names its model elsewhere; null means the engine's default
        if not trusted and (reason := _reason_for_distrust(name, value)):
            findings.errors.append(reason)
        elif name == "trust_remote_code":
            findings.options.setdefault(name, bool(value))
        else:
            _place(findings, "vLLM option", name, value, known)
    return findings


def check_sampling_names(sampling: Mapping[str, Any], known: Collection[str]) -> Findings:
    """Check the names of sampling parameters; their values are vLLM's to judge."""
    findings = Findings({}, [], [])
    for name, value in sampling.items():
        if name in _SET_BY_WORKER:
            if value is not None and value != _SAFE_VALUES.get(name):
                findings.errors.append(
                    f"sampling parameter '{name}' cannot be set: {_SET_BY_WORKER[name]}"
                )
        elif value is not None:
            _place(findings, "sampling parameter", name, value, known)
    return findings


def _place(findings: Findings, what: str, name: str, value: Any, known: Collection[str]) -> None:
    """Put an option where it belongs: used as it is, used under today's name, left out, refused."""
    if name in known and not name.startswith("_"):
        findings.options[name] = value
        return
    today = _today(name, value)
    if today is None:
        guess = nearest(name, [other for other in known if not other.startswith("_")])
        hint = f"; did you mean '{guess}'?" if guess else ""
        findings.errors.append(f"{what} '{name}' is unknown to the installed vLLM{hint}")
        return
    usable = {key: setting for key, setting in today.items() if key in known}
    for key, setting in usable.items():
        _lay(findings.options, key, setting)
    if usable:
        shown = ", ".join(f"'{key}: {setting}'" for key, setting in usable.items())
        findings.warnings.append(f"{what} '{name}' is now called otherwise: {shown} is used")
    else:
        reason = _GONE.get(name, "the installed vLLM has no such thing")
        findings.warnings.append(f"{what} '{name}' has no effect: {reason}")


def _lay(options: dict[str, Any], name: str, value: Any) -> None:
    """Set an option; parts of structured outputs, once options of their own, come together."""
    earlier = options.get(name)
    if isinstance(earlier, Mapping) and isinstance(value, Mapping):
        value = {**earlier, **value}
    options[name] = value


def _today(name: str, value: Any) -> dict[str, Any] | None:
    """Return an outdated option as today's options, empty when it is gone; None if never heard of.

    Whether the installed vLLM has today's name already is for the caller to see.
    """
    if renamed := _RENAMED_ENGINE.get(name) or _RENAMED_SAMPLING.get(name):
        return {renamed: value}
    if negated := _NEGATED.get(name):
        return {negated: not value}
    if kind := _INTO_STRUCTURED_OUTPUTS.get(name):
        return {"structured_outputs": {kind: value}}
    if name == "disable_mm_preprocessor_cache":
        return {"mm_processor_cache_gb": 0} if value else {}
    return {} if name in _GONE else None


def _reason_for_distrust(name: str, value: Any) -> str | None:
    """Return why this option may not come from an orchestrator, or None if it may."""
    for nested_name, nested in _walk(name, value):
        where = f"vLLM option '{name}'" + (f" ('{nested_name}')" if nested_name != name else "")
        if nested_name in RUNS_CODE:
            if nested not in (False, None, ""):
                return f"{where} can run code: {_NEEDS_TRUST}"
        elif name == "hf_overrides" and isinstance(value, str):
            return f"{where} is the name of a function: {_NEEDS_TRUST}"
        elif nested_name not in _HUB_NAMES and _names_a_place(nested):
            return f"{where} names code or a place on this machine ('{nested}'): {_NEEDS_TRUST}"
    return None


_NEEDS_TRUST: Final = "only a worker whose owner sets trust_remote_code accepts it"


def _walk(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value within ``value`` with the name nearest above it."""
    yield name, value
    if isinstance(value, Mapping):
        for key, nested in value.items():
            yield from _walk(str(key), nested)
    elif isinstance(value, list | tuple):
        for nested in value:
            yield from _walk(name, nested)


def _names_a_place(value: Any) -> bool:
    """Tell whether a text could name a module, a file or a host: those need a separator.

    vLLM's own choices ("bfloat16", "FLASH_ATTN", "fcfs") are single words, so options that
    versions to come invent are judged rightly too.
    """
    return isinstance(value, str) and any(mark in value for mark in "./\\:")
