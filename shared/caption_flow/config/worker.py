"""The configuration of a worker: whom it works for, and what suits its machine."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from caption_flow.certificates.fingerprint import Fingerprint, parse_fingerprint
from caption_flow.config.secret import Secret
from caption_flow.config.section import (
    Number,
    OpenSection,
    Section,
    Text,
    Texts,
    WholeNumber,
    unused,
)
from caption_flow.config.vllm import WorkerVllmConfig

VERIFY_SSL: Final = (
    "Check the server's certificate. Without that, whoever stands between gets the token: for one "
    "self-made there is `tls_fingerprint`."
)
TLS_FINGERPRINT: Final = (
    "SHA-256 of the server's certificate, as `caption-flow inspect-cert` prints it there; with it, "
    "that certificate alone is taken, whoever signed it and whatever it says. Several, in a list "
    "or with commas between, while the server changes from one to another."
)

EngineKind = Literal["vllm", "openai", "synthetic"]


def _websocket_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in {"ws", "wss"} and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        well_formed = False
    if not well_formed:
        raise ValueError("must be an address such as ws://127.0.0.1:8765 or wss://host:8765")
    return url


def _server_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _, named = parts.port, parts.username is not None
    except ValueError:
        well_formed = named = False
    if not well_formed or "?" in url or "#" in url:
        raise ValueError("must be an address such as http://127.0.0.1:8000/v1")
    if named:
        raise ValueError("has a name or password in it: put what is secret into api_key")
    return url


def _gpu_numbers(value: Any) -> Any:
    listed = value.split(",") if isinstance(value, str) else value
    numbers = listed if isinstance(listed, list | tuple) else [listed]
    written = [str(number).strip() for number in numbers]
    if not written or not all(number.isdecimal() for number in written):
        raise ValueError("must be the number of a GPU, or several such as 0,1")
    counted = tuple(int(number) for number in written)
    if len(set(counted)) < len(counted):
        raise ValueError("names a GPU twice")
    return counted


def _fingerprints(value: Any) -> Any:
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, list | tuple):
        listed = [listed]
    return tuple(one if isinstance(one, bytes) else parse_fingerprint(str(one)) for one in listed)


GpuNumbers = Annotated[tuple[int, ...], BeforeValidator(_gpu_numbers)]
WebSocketUrl = Annotated[str, AfterValidator(_websocket_url)]
Fingerprints = Annotated[tuple[Fingerprint, ...], BeforeValidator(_fingerprints)]
ServerUrl = Annotated[str, AfterValidator(_server_url)]


class EngineConfig(OpenSection):
    """What generates the text. The type alone may stand for the whole section.

    Further keys are the engine's own options. Those of `openai`: `requests_in_flight` (64),
    `request_seconds` (300, for one answer), `connect_seconds` (10), `start_seconds` (20, for a
    server that is not up yet), `patience_seconds` (300, with one that is away or busy),
    `retry_seconds` (0.5, before the second try), `image_format` (`jpeg` or `png`) and
    `jpeg_quality` (95). Those of `synthetic`: `latency_ms`, `latency_jitter`, `tokens`,
    `fail_rate`, `fail_items`, `die_on`, `empty_on`, `endless_on`, `hang_on`, `load_seconds` and
    `requests_in_flight`.
    """

    neighbours: ClassVar[frozenset[str]] = frozenset()

    type: EngineKind = Field(
        default="vllm",
        description="`vllm`, an OpenAI-compatible server, or `synthetic`: texts made up.",
    )
    base_url: ServerUrl | None = Field(
        default=None, description="Address of the OpenAI-compatible server, ending in `/v1`."
    )
    api_key: Secret | None = Field(
        default=None, description="Its key: literal, `env:NAME` or `file:PATH`."
    )

    @model_validator(mode="after")
    def _server_is_named(self) -> EngineConfig:
        if self.type == "openai" and self.base_url is None:
            raise ValueError(
                "type openai needs base_url (--base-url), such as http://127.0.0.1:8000/v1"
            )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The engine's own options, with the server's address and key for one that has a server."""
        if self.type != "openai":
            return self.extras
        key = {} if self.api_key is None else {"api_key": self.api_key}
        return {**self.extras, "base_url": self.base_url, **key}


class WorkerConfig(Section):
    """One worker."""

    server: WebSocketUrl = Field(description="The orchestrator: `ws://` or `wss://`.")
    token: Secret | None = Field(
        default=None, description="The worker's token: literal, `env:NAME` or `file:PATH`."
    )
    name: Text | None = Field(
        default=None, max_length=200, description="What people see; without it, the machine's name."
    )
    gpu_id: GpuNumbers | None = Field(
        default=None,
        description="The GPU to use, by its number; several (a list, or `0,1`) are what "
        "`tensor_parallel_size` takes from. Numbers count the entries of `CUDA_VISIBLE_DEVICES` "
        "where it is set. Without `gpu_id`, all that are visible.",
    )
    stages: Texts = Field(
        default=(),
        description="The recipe's stages to run, a list or names with commas between; without it, "
        "all. Other workers run the others, and items go from one to the next.",
    )
    engine: EngineConfig = Field(
        default=EngineConfig(), description="What generates the text: a type, or a section."
    )
    vllm: WorkerVllmConfig = Field(
        default=WorkerVllmConfig(), description="Engine keys laid over the recipe's."
    )
    verify_ssl: bool = Field(default=True, description=VERIFY_SSL)
    tls_fingerprint: Fingerprints = Field(default=(), description=TLS_FINGERPRINT)
    readahead_size: WholeNumber | None = Field(
        default=None,
        ge=1,
        description="Images prepared ahead of the engine; without it, what keeps the engine full.",
    )
    engine_stall_seconds: Number = Field(
        default=600,
        gt=0,
        description="An engine that has requests and gives no token for so long is restarted; "
        "loading does not count.",
    )
    max_engine_restarts: WholeNumber = Field(
        default=3,
        ge=0,
        description="Restarts of an engine that died or hangs, without an answer in between, "
        "before the worker gives its leases back and exits with code 1.",
    )
    when_finished: Literal["stay_connected", "shutdown", "post_exec_hook"] = Field(
        default="stay_connected",
        description="What to do when every item of the run is done or failed.",
    )
    post_exec_hook: Text | None = Field(
        default=None, description="Command to run then, with `when_finished: post_exec_hook`."
    )
    batch_image_processing: bool | None = Field(
        default=None, description="Accepted; images are always prepared ahead, several at a time."
    )
    inference_queue_size: WholeNumber | None = unused(
        "Batches waiting for the engine.",
        "the engine is kept as full as it can be, without batches",
    )
    local_storage_path: Text | None = unused(
        "Folder for results before they are sent.",
        "results wait in memory until the orchestrator has them on disk",
    )

    @field_validator("engine", mode="before")
    @classmethod
    def _type_alone(cls, engine: Any) -> Any:
        return {"type": engine} if isinstance(engine, str) else engine

    @field_validator("stages", mode="before")
    @classmethod
    def _names(cls, stages: Any) -> Any:
        return [name.strip() for name in stages.split(",")] if isinstance(stages, str) else stages

    @field_validator("stages")
    @classmethod
    def _names_are_there(cls, stages: tuple[str, ...]) -> tuple[str, ...]:
        if not all(name.strip() for name in stages):
            raise ValueError("one of the names is empty")
        return stages

    @field_validator("vllm", mode="before")
    @classmethod
    def _switch(cls, vllm: Any) -> Any:
        # Older files say "vllm: true".
        return {} if vllm is True else vllm

    @model_validator(mode="after")
    def _hook_is_named(self) -> WorkerConfig:
        if self.when_finished == "post_exec_hook" and self.post_exec_hook is None:
            raise ValueError("when_finished is post_exec_hook, but post_exec_hook names no command")
        return self
