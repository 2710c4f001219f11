"""The vLLM this worker is written against: every import from it is in this module.

Works with 0.17 and newer; where versions differ, signatures are probed, not version numbers. What
is passed around of vLLM's own types is `Any` to the rest. Importing this module imports neither
vLLM nor torch; calling `import_vllm` does, and comes before everything else here.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import msgspec
import structlog

from caption_flow.worker.core.starvation import RESERVE
from caption_flow.worker.engines import vllm_environment
from caption_flow.worker.engines.base import EngineUnavailable
from caption_flow.worker.engines.vllm_encoder_cache import keeping
from caption_flow.worker.engines.vllm_failures import first_line

log = structlog.get_logger()

_MODULES: Final = (
    "vllm.sampling_params",
    "vllm.engine.arg_utils",
    "vllm.renderers",
    "vllm.usage.usage_lib",
    "vllm.v1.engine.async_llm",
)


def import_vllm() -> None:
    """Import what is used of vLLM, in the environment it needs; the first time takes seconds.

    Raises:
        EngineUnavailable: vLLM is missing or broken.

    """
    vllm_environment.prepare()
    try:
        for module in _MODULES:
            importlib.import_module(module)
    except Exception as error:
        # Native libraries are loaded: whatever is wrong with the installation shows here.
        if isinstance(error, ModuleNotFoundError) and error.name == "vllm":
            raise EngineUnavailable(
                "vLLM is not installed: run `pip install 'caption-flow[vllm]'`, or choose the "
                "engine 'synthetic'"
            ) from error
        raise EngineUnavailable(
            f"vLLM is installed but cannot be imported: {first_line(error)}"
        ) from error


def engine_option_names() -> Collection[str]:
    """Return the names of the engine options the installed vLLM knows."""
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415

    return frozenset(field.name for field in dataclasses.fields(AsyncEngineArgs))


def sampling_parameter_names() -> Collection[str]:
    """Return the names of the sampling parameters the installed vLLM knows."""
    from vllm.sampling_params import SamplingParams  # noqa: PLC0415

    return inspect.signature(SamplingParams).parameters.keys()


def sampling_params(values: Mapping[str, Any]) -> Any:
    """Return vLLM's object for parameters whose names are known.

    Raises:
        ValueError: vLLM rejects a value.

    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: PLC0415

    try:
        params = msgspec.convert(dict(values), SamplingParams, strict=False)
    except Exception as error:
        # msgspec's error, ValueError, or vLLM's own class, which is neither in newer versions.
        raise ValueError(first_line(error)) from error
    # Only the whole answer is of use: no texts are put together that nobody reads.
    params.output_kind = RequestOutputKind.FINAL_ONLY
    return params


def chat_params() -> Any:
    """Return how chats are rendered: by the model's own template, with the model to speak next."""
    from vllm.renderers import ChatParams  # noqa: PLC0415

    return ChatParams(chat_template_kwargs={"add_generation_prompt": True})


async def render_video(
    renderer: Any, params: Any, video: tuple[Any, Mapping[str, Any]], name: str, text: Any
) -> Any:
    """Return a chat about a video whose frames are at hand, as vLLM's engine takes it.

    In a chat, vLLM knows videos by their addresses alone. So one without an address is put into the
    message, and the frames in its place once the model's template has been applied.

    Raises:
        Exception: of any kind; it is about this one request.
    """
    content = [{"type": "video_url", "video_url": "", "uuid": name}, text]
    message = {"role": "user", "content": content}
    _conversation, prompt = await renderer.render_messages_async([message], params)
    prompt["multi_modal_data"] = {**prompt["multi_modal_data"], "video": [video]}
    (tokens,) = await renderer.tokenize_prompts_async([prompt], renderer.default_chat_tok_params)
    return await renderer.process_for_engine_async(tokens, time.time())


def on_cpu() -> bool:
    """Tell whether the installed vLLM runs models without a GPU."""
    from vllm.platforms import current_platform  # noqa: PLC0415

    return bool(current_platform.is_cpu())


def create_engine(options: Mapping[str, Any], *, comes_back: bool) -> Any:
    """Return a running ``AsyncLLM``; blocking, seconds to minutes.

    ``comes_back`` says that a picture is asked about again when it has got answers.

    Raises:
        Exception: of any kind; see `vllm_failures.explain_load_failure`.

    """
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.usage.usage_lib import UsageContext  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

    # Without this context vLLM takes the limits of a web server: smaller batches.
    context = UsageContext.LLM_CLASS
    config = AsyncEngineArgs(**options).create_engine_config(context)
    if not config.model_config.is_multimodal_model:
        # Told before minutes of loading.
        raise ValueError(f"{options['model']} is not a multimodal model")
    if comes_back:
        keep_encoded(config, device_bytes=None if on_cpu() else _device_bytes())
    return AsyncLLM.from_vllm_config(config, usage_context=context, disable_log_stats=True)


def keep_encoded(config: Any, *, device_bytes: int | None) -> None:
    """Have the encoder's output kept until a picture's next stage: see `vllm_encoder_cache`.

    ``config`` is vLLM's own, ``device_bytes`` the device's memory, None without one.
    """
    scheduler, cache, model = config.scheduler_config, config.cache_config, config.model_config
    default = getattr(scheduler, "encoder_cache_size", None)
    # With the cache's bytes given, vLLM measures no memory: there is none to set aside.
    is_measured = getattr(cache, "kv_cache_memory_bytes", None) is None
    if default is None or (device_bytes is not None and not is_measured):
        return
    keep = keeping(
        default,
        useful=math.ceil(RESERVE * scheduler.max_num_seqs) * model.max_model_len,
        bytes_each=_embedding_bytes(model),
        device_bytes=None if device_bytes is None else device_bytes * cache.gpu_memory_utilization,
    )
    scheduler.encoder_cache_size = keep.embeddings
    if device_bytes is not None:
        # What is kept beyond a batch is not in what vLLM measures when it starts.
        cache.gpu_memory_utilization -= keep.extra_bytes / device_bytes


def _device_bytes() -> int:
    from vllm.platforms import current_platform  # noqa: PLC0415

    return int(current_platform.get_device_total_memory())


def _embedding_bytes(model: Any) -> int:
    """Return how much of the encoder's output is for one token of the prompt."""
    vision = getattr(model.hf_config, "vision_config", None)
    layers = 1 + len(getattr(vision, "deepstack_visual_indexes", None) or ())
    return int(model.get_inputs_embeds_size()) * int(model.dtype.itemsize) * layers


def call_at_tokens(engine: Any, beat: Callable[[], None]) -> None:
    """Call ``beat`` whenever tokens come from the engine's core, for any of its requests.

    Nothing else tells a core that hangs from one that is busy: ``check_health`` passes either way.
    vLLM's own way to listen, a ``StatLoggerBase``, turns on all statistics, Prometheus included,
    for every step; this costs a call.
    """
    core = engine.engine_core
    receive = core.get_output_async

    async def receive_and_beat() -> Any:
        outputs = await receive()
        if outputs.outputs:  # none: it only says how it is
            beat()
        return outputs

    core.get_output_async = receive_and_beat


def shut_down(engine: Any) -> None:
    """Let vLLM close what it holds in this process, and take its leave of its other processes."""
    bounded = "timeout" in inspect.signature(engine.shutdown).parameters
    try:
        engine.shutdown(**({"timeout": 0} if bounded else {}))
    except Exception:
        # It may complain about processes that are gone. There is nothing left to lose.
        log.debug("vLLM's shutdown failed", exc_info=True)
    # Its finalizer shuts down once more, noisily when it is the interpreter's end that runs it.
    engine.shutdown = _do_nothing


def _do_nothing(*_arguments: Any, **_options: Any) -> None:
    pass
