"""What a valid configuration asks for that will not happen, one sentence each. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.problems import key_path
from caption_flow.config.section import INSTEAD, Section
from caption_flow.config.vllm import OWNERS_KEYS, EngineKeys, KeyPath, VllmConfig


def warnings_of(config: Section) -> Iterator[str]:
    """Yield a sentence for each key that is set and has no effect."""
    yield from _unused(config, ())
    if isinstance(config, OrchestratorConfig):
        yield from _recipe(config.vllm)


def _unused(section: Section, path: KeyPath) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        extra = field.json_schema_extra
        if isinstance(extra, dict) and INSTEAD in extra and value is not None:
            yield f"{key_path((*path, name))} has no effect: {extra[INSTEAD]}"
        elif isinstance(value, Section):
            yield from _unused(value, (*path, name))


def _recipe(vllm: VllmConfig) -> Iterator[str]:
    if vllm.stages and vllm.inference_prompts:
        yield "vllm.inference_prompts has no effect: vllm.stages have prompts of their own"
    sections: list[tuple[KeyPath, EngineKeys]] = [(("vllm",), vllm)]
    sections.extend((("vllm", "stages", n), stage) for n, stage in enumerate(vllm.stages))
    for path, section in sections:
        if section.disable_mm_preprocessor_cache:
            old = key_path((*path, "disable_mm_preprocessor_cache"))
            yield f"{old} is now called otherwise: mm_processor_cache_gb: 0 is used"
        for key in sorted(OWNERS_KEYS & section.extras.keys()):
            if section.extras[key]:
                yield (
                    f"{key_path((*path, key))} has no effect: it runs code on the worker's "
                    f"machine, so only the worker's owner may set it, as worker.vllm.{key}"
                )
