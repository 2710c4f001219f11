"""What of a changed configuration a run can take over while it goes on. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeGuard

from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.problems import key_path
from caption_flow.config.section import INSTEAD, Section
from caption_flow.config.vllm import KeyPath
from caption_flow.recipe.stages import Recipe, Stage

_AT_ONCE: Final = (
    "auth",
    "chunk_buffer_multiplier",
    "chunk_size",
    "chunks_per_request",
    "lease_seconds",
    "max_attempts",
    "spot_checks",
    "min_chunk_buffer",
    "storage.caption_buffer_size",
    "storage.checkpoint_interval",
    "vllm",
)
"""Keys, and sections, that can change while a run goes on; of `vllm`, see `obstacles`."""


def changed_keys(old: OrchestratorConfig, new: OrchestratorConfig) -> list[str]:
    """Return the paths of the keys that differ; a section that is new, or gone, is one key."""
    return [key_path(path) for path in _differences(old, new, ())]


def obstacles(old: OrchestratorConfig, new: OrchestratorConfig) -> list[str]:
    """Return why a run has to be started again for a configuration, by key; nothing if it has not.

    What is stored has a column for each output field, what is handed out goes from stage to stage
    by number, and the dataset's columns are read from the start: these cannot change on the way.
    """
    found = [f"{path}: needs a restart" for path in changed_keys(old, new) if not _is_at_once(path)]
    if old.mock_results != new.mock_results:
        found.append("vllm.mock_results: needs a restart, also of the workers")
    if old.has_tokens and not new.has_tokens:
        # The worker's token that stands in for them is made at the start.
        found.append("auth: needs a restart to go on without tokens")
    return found + list(_obstacles_in_recipes(old.recipe(), new.recipe()))


def models_to_load(old: Recipe, new: Recipe) -> list[str]:
    """Return the models that workers have to load, or to load again with other options."""
    before, after = _engines(old), _engines(new)
    return [model for model, options in after.items() if before.get(model) != options]


def _is_at_once(path: str) -> bool:
    return any(path == key or path.startswith((f"{key}.", f"{key}[")) for key in _AT_ONCE)


def _differences(old: Any, new: Any, path: KeyPath) -> Iterator[KeyPath]:
    if old == new:
        return
    if isinstance(old, Section) and type(old) is type(new):
        for name in _keys(old, new):
            yield from _differences(
                getattr(old, name, None), getattr(new, name, None), (*path, name)
            )
    elif _are_sections(old) and _are_sections(new) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, (*path, number))
    else:
        yield path


def _are_sections(value: Any) -> TypeGuard[tuple[Section, ...]]:
    return isinstance(value, tuple) and all(isinstance(one, Section) for one in value)


def _keys(old: Section, new: Section) -> Iterator[str]:
    """Yield the keys of a section, the engine's own among them; not those without any effect."""
    for name, field in type(new).model_fields.items():
        extra = field.json_schema_extra
        if not (isinstance(extra, dict) and INSTEAD in extra):
            yield name
    yield from dict.fromkeys((*(new.model_extra or ()), *(old.model_extra or ())))


def _obstacles_in_recipes(old: Recipe, new: Recipe) -> Iterator[str]:
    names = [[stage.name for stage in recipe.stages] for recipe in (old, new)]
    if names[0] != names[1]:
        listed = "; now ".join(", ".join(of) for of in names)
        yield f"vllm.stages: other stages, or another order, need a restart ({listed})"
        return
    for before, after in zip(old.stages, new.stages, strict=True):
        yield from _obstacles_in_stage(before, after)
    unread = [name for name in new.columns if name not in old.columns]
    if unread:
        named = ", ".join(f"{{column:{name}}}" for name in unread)
        yield f"vllm: {named} in prompts needs a restart: the run does not read that column"


def _obstacles_in_stage(before: Stage, after: Stage) -> Iterator[str]:
    where = f"vllm.stages ({after.name})"
    if before.output_field != after.output_field:
        yield (
            f"{where}: output_field needs a restart ({before.output_field}; now "
            f"{after.output_field})"
        )
    if before.columns != after.columns:
        yield f"{where}: columns needs a restart"


def _engines(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return each model's engine options; where its stages differ, the first one counts."""
    engines: dict[str, dict[str, Any]] = {}
    for stage in recipe.stages:
        merged = engines.setdefault(stage.model, {})
        for name, value in stage.engine.items():
            merged.setdefault(name, value)
    return engines
