"""The `vllm` section: models, prompts, sampling, and stages that make a recipe.

Keys that are not documented here belong to the engine and are passed on; the worker checks them
against the vLLM it has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field

from caption_flow.config.section import (
    INFERRED,
    Number,
    OpenSection,
    Section,
    Text,
    Texts,
    WholeNumber,
)
from caption_flow.recipe.quality import FLAGS, Quality, Retry
from caption_flow.recipe.stages import (
    DEFAULT_OUTPUT_FIELD,
    DEFAULT_STAGE_NAME,
    Recipe,
    RecipeError,
    Stage,
    build_recipe,
)
from caption_flow.recipe.structure import Structure

KeyPath = tuple[str | int, ...]

OWNERS_KEYS: Final = frozenset(
    {
        "io_processor_plugin",
        "logits_processors",
        "model_loader_extra_config",
        "trust_remote_code",
        "worker_cls",
        "worker_extension_cls",
    }
)
"""Engine keys that run code on the worker's machine: only the worker's owner may set them."""

SYNTHETIC_MODEL: Final = "synthetic"

_SHARE: Final = (
    "Share of the GPU's memory the engine may take. Models whose shares add up to at most 0.95 are "
    "loaded together, others in turn; on a CPU it decides nothing else."
)


class SamplingConfig(OpenSection):
    """How the engine chooses words. Any other sampling parameter of vLLM may be added."""

    neighbours: ClassVar[frozenset[str]] = frozenset({"top_k", "min_tokens"})

    temperature: Number = Field(
        default=0.7, ge=0, description="Randomness; 0 always takes the likeliest word."
    )
    top_p: Number = Field(
        default=0.95, gt=0, le=1, description="Share of the likeliest words to choose among."
    )
    max_tokens: WholeNumber = Field(
        default=256, ge=1, description="Longest answer, in tokens of the model."
    )
    repetition_penalty: Number = Field(
        default=1.05, gt=0, description="Above 1, words already used become less likely."
    )
    skip_special_tokens: bool = Field(
        default=True, description="Leave the model's control tokens out of the text."
    )
    stop: Texts = Field(default=(), description="Texts that end an answer and are not part of it.")

    def parameters(self) -> dict[str, Any]:
        """Return all parameters in the engine's names, defaults included."""
        known = self.model_dump(include=set(type(self).model_fields))
        if not self.stop:
            del known["stop"]
        return {**_listed(known), **self.extras}

    def written(self) -> dict[str, Any]:
        """Return only the parameters that were written down."""
        known = self.model_dump(include=self.model_fields_set & set(type(self).model_fields))
        return {**_listed(known), **self.extras}


Flag = Literal["length", "repetition", "refusal", "empty", "duplicate"]
Flags = Annotated[
    tuple[Flag, ...], BeforeValidator(lambda one: (one,) if isinstance(one, str) else one)
]
_ALL_FLAGS: Final[tuple[Flag, ...]] = FLAGS


class RetryConfig(Section):
    """What to do about a flagged answer: ask again with other sampling, and keep the better one."""

    attempts: WholeNumber = Field(
        default=0, ge=0, le=10, description="Further attempts at a flagged answer; 0 only flags."
    )
    flags: Flags = Field(
        default=_ALL_FLAGS,
        description="The flags that are worth an attempt.",
        json_schema_extra={INFERRED: "all"},
    )
    sampling: SamplingConfig | None = Field(
        default=None,
        description="Laid over the stage's sampling for those attempts, as `{temperature: 1.0}`.",
    )


class QualityConfig(Section):
    """Answers that look wrong. They are kept as they are; the row's column `flags` says so.

    `length`: cut off by `max_tokens`. `repetition`: runs in circles. `refusal`: the model declines.
    `empty`: no text; such an item is failed, too. `duplicate`: the worker has seen the same text
    for five other images; short texts and those of `choice` and `regex` don't count.
    """

    flags: Flags = Field(
        default=_ALL_FLAGS,
        description="What is looked for; `[]` is nothing.",
        json_schema_extra={INFERRED: "all"},
    )
    retry: RetryConfig = Field(default=RetryConfig(), description="Asking again.")

    def quality(self) -> Quality:
        """Return what a recipe is told."""
        sampling = {} if self.retry.sampling is None else self.retry.sampling.written()
        return Quality(self.flags, Retry(self.retry.attempts, self.retry.flags, sampling))


class EngineKeys(OpenSection):
    """Keys of the engine, for all stages or one. Any other engine key of vLLM may be added."""

    neighbours: ClassVar[frozenset[str]] = frozenset({"ubatch_size"})

    tensor_parallel_size: WholeNumber | None = Field(
        default=None, ge=1, description="GPUs that share one model."
    )
    max_model_len: WholeNumber | None = Field(
        default=None, ge=1, description="Longest prompt and answer together, in tokens."
    )
    dtype: Text | None = Field(
        default=None, description="Precision of the weights, such as `float16` or `bfloat16`."
    )
    gpu_memory_utilization: Number | None = Field(default=None, gt=0, le=1, description=_SHARE)
    enforce_eager: bool | None = Field(
        default=None, description="Do without CUDA graphs: slower, and a little less memory."
    )
    disable_mm_preprocessor_cache: bool | None = Field(
        default=None, description="Older spelling of `mm_processor_cache_gb: 0`."
    )
    mm_processor_cache_gb: Number | None = Field(
        default=None, ge=0, description="Memory for prepared images, in gigabytes."
    )
    mm_processor_cache_type: Text | None = Field(
        default=None, description="Where prepared images are kept: `lru` or `shm`."
    )
    mm_shm_cache_max_object_size_mb: WholeNumber | None = Field(
        default=None, ge=1, description="Largest prepared image kept with `shm`, in megabytes."
    )
    limit_mm_per_prompt: dict[str, Any] | None = Field(
        default=None, description="Most images in one prompt, as `{image: 1}`."
    )

    def engine_keys(self) -> dict[str, Any]:
        """Return the engine's own keys and values; what is not set is left to the engine."""
        ours = self.model_dump(include=set(EngineKeys.model_fields), exclude_none=True)
        if ours.pop("disable_mm_preprocessor_cache", False):
            ours["mm_processor_cache_gb"] = 0
        extras = {key: value for key, value in self.extras.items() if key not in OWNERS_KEYS}
        return {**ours, **extras}


class StageConfig(EngineKeys):
    """One step of a recipe. Engine keys here are laid over those of `vllm`.

    One of `json_schema`, `choice` and `regex` binds every answer to a form. An answer without it,
    such as JSON cut off by `max_tokens`, makes a failed row (`invalid_json`, `invalid_answer`).
    """

    name: Text = Field(description="What other stages call it.")
    model: Text | None = Field(
        default=None,
        description="Hub id or folder of the model; without it, `vllm.model`. Stages of one model "
        "share its engine.",
    )
    prompts: Texts = Field(
        description="What is asked about each image; each prompt gives one text. "
        "`{caption}` stands for an earlier stage's field, `{column:title}` for a dataset column."
    )
    output_field: str = Field(
        default=DEFAULT_OUTPUT_FIELD,
        description="Column that takes the texts; stages that name the same one append to it.",
    )
    requires: Texts = Field(
        default=(), description="Stages that must come first, besides those the prompts refer to."
    )
    sampling: SamplingConfig | None = Field(
        default=None, description="Laid over `vllm.sampling`: only what differs."
    )
    json_schema: dict[str, Any] | None = Field(
        default=None, description="JSON schema that every answer keeps to; the text is valid JSON."
    )
    choice: Texts = Field(default=(), description="Texts of which every answer is one.")
    regex: Text | None = Field(
        default=None, description="Regular expression that every answer matches as a whole."
    )
    columns: Texts = Field(
        default=(),
        description="Top-level keys of `json_schema` that become output fields of their own; "
        "a list becomes several texts. Later prompts have them as `{title}`.",
    )
    quality: QualityConfig | None = Field(
        default=None, description="Instead of `vllm.quality`, for this stage."
    )

    def structure(self) -> Structure | None:
        """Return the form of its answers, None where they are free."""
        structure = Structure(self.json_schema, self.choice, self.regex, self.columns)
        return structure if structure != Structure() else None


_STAGE_ONLY: Final = ("json_schema", "choice", "regex", "columns")


class VllmConfig(EngineKeys):
    """What is asked of which model."""

    model: Text | None = Field(default=None, description="Hub id or folder of the model.")
    tensor_parallel_size: WholeNumber | None = Field(
        default=1, ge=1, description="GPUs that share one model."
    )
    max_model_len: WholeNumber | None = Field(
        default=16384, ge=1, description="Longest prompt and answer together, in tokens."
    )
    gpu_memory_utilization: Number | None = Field(default=0.92, gt=0, le=1, description=_SHARE)
    batch_size: WholeNumber | None = Field(
        default=None,
        ge=1,
        description="A hint for people: the engine takes in work continuously, without batches.",
    )
    mock_results: bool = Field(
        default=False, description="Load no model and make texts up, to rehearse a run."
    )
    sampling: SamplingConfig = Field(
        default=SamplingConfig(), description="How the engine chooses words, for all stages."
    )
    quality: QualityConfig = Field(
        default=QualityConfig(), description="Flags for answers that look wrong, for all stages."
    )
    inference_prompts: Texts = Field(
        default=(),
        description="Without `stages`: the prompts of the only one, whose field is `captions`.",
    )
    stages: tuple[StageConfig, ...] = Field(
        default=(), description="Steps of the recipe, each with its own prompts and output field."
    )

    def recipe(
        self, *, mock_results: bool = False, dataset_columns: Collection[str] | None = None
    ) -> Recipe:
        """Return the recipe; a missing model is of no concern when results are made up.

        Raises:
            RecipeError: the stages cannot be run; see `recipe_problems` for key paths.
        """
        made_up = SYNTHETIC_MODEL if mock_results or self.mock_results else ""
        return build_recipe(self._stages(self.model or made_up), dataset_columns=dataset_columns)

    def recipe_problems(
        self, *, mock_results: bool = False, dataset_columns: Collection[str] | None = None
    ) -> Iterator[tuple[KeyPath, str]]:
        """Yield what keeps the recipe from being run, by key path within this section."""
        if not self.stages and not self.inference_prompts:
            yield (), "has neither stages nor inference_prompts: there is nothing to ask"
            return
        for key in self.extras.keys() & set(_STAGE_ONLY):
            yield (key,), "belongs to a stage: write it into an entry of vllm.stages"
        if not (mock_results or self.mock_results or self.model):
            yield from self._missing_models()
        try:
            self.recipe(mock_results=mock_results, dataset_columns=dataset_columns)
        except RecipeError as error:
            for problem in error.problems:
                yield self._key_path(problem.stage, problem.key), problem.message

    def _stages(self, default_model: str) -> list[Stage]:
        engine = self.engine_keys()
        sampling = self.sampling.parameters()
        if not self.stages:
            return [
                Stage(
                    name=DEFAULT_STAGE_NAME,
                    model=default_model,
                    prompts=self.inference_prompts,
                    sampling=sampling,
                    engine=engine,
                    quality=self.quality.quality(),
                )
            ]
        return [
            Stage(
                name=stage.name,
                model=stage.model or default_model,
                prompts=stage.prompts,
                output_field=stage.output_field,
                requires=stage.requires,
                sampling={**sampling, **(stage.sampling.written() if stage.sampling else {})},
                engine={**engine, **stage.engine_keys()},
                structure=stage.structure(),
                quality=(stage.quality or self.quality).quality(),
            )
            for stage in self.stages
        ]

    def _missing_models(self) -> Iterator[tuple[KeyPath, str]]:
        without = [number for number, stage in enumerate(self.stages) if not stage.model]
        if not self.stages or len(without) == len(self.stages):
            yield ("model",), "is missing: the hub id or folder of a vision-language model"
            return
        for number in without:
            yield ("stages", number, "model"), "is missing, and there is no vllm.model to take"

    def _key_path(self, stage: int | None, key: str) -> KeyPath:
        name, bracket, position = key.partition("[")
        steps: KeyPath = (name, int(position.rstrip("]"))) if bracket else (name,)
        if stage is None:
            return steps
        if name == "quality" and not self._has_own_quality(stage):
            return steps
        if not self.stages:
            return ("inference_prompts", *steps[1:])
        return ("stages", stage, *steps)

    def _has_own_quality(self, stage: int) -> bool:
        return bool(self.stages) and self.stages[stage].quality is not None


class WorkerVllmConfig(EngineKeys):
    """The worker's own engine keys, laid over the recipe's: what suits this machine."""

    model: Text | None = Field(
        default=None, description="Model to load instead of the recipe's, such as a local copy."
    )
    batch_size: WholeNumber | None = Field(
        default=None,
        ge=1,
        description="A hint for people: the engine takes in work continuously, without batches.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Let the model's own Python code run on this machine."
    )

    def engine_keys(self) -> dict[str, Any]:
        """Return the engine's own keys; here, the owner's are among them."""
        owners = {key: value for key, value in self.extras.items() if key in OWNERS_KEYS}
        return {**super().engine_keys(), **owners}


def _listed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with lists for tuples, as engines and the wire have them."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in parameters.items()
    }
