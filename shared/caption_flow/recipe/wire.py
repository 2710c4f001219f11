"""Recipes as workers get them: to and from `caption_flow.protocol.messages.RecipeSpec`."""

from __future__ import annotations

from dataclasses import replace

from caption_flow.protocol.messages import (
    QualitySpec,
    RecipeSpec,
    StageSpec,
    StructureSpec,
    VideoSpec,
)
from caption_flow.recipe.quality import Quality, Retry
from caption_flow.recipe.stages import Recipe, Stage, rebuild_recipe
from caption_flow.recipe.structure import Structure
from caption_flow.recipe.video import Video


def to_spec(recipe: Recipe, mock_results: bool) -> RecipeSpec:
    """Return the recipe for the wire.

    ``requires`` names all dependencies, also those inferred from prompts: a worker must not infer
    them again from stages that now stand in another order.
    """
    stages = tuple(
        StageSpec(
            name=stage.name,
            model=stage.model,
            prompts=stage.prompts,
            output_field=stage.output_field,
            requires=recipe.dependencies[stage.name],
            sampling=dict(stage.sampling),
            engine=dict(stage.engine),
            structure=_structure_spec(stage.structure),
            quality=_quality_spec(stage.quality),
        )
        for stage in recipe.stages
    )
    return RecipeSpec(stages, recipe.fingerprint, mock_results, _video_spec(recipe.video))


def from_spec(spec: RecipeSpec) -> Recipe:
    """Return the recipe a worker was sent, checked again: the network is not to be trusted.

    The fingerprint is the sender's, since it goes into rows that the sender compares.

    Raises:
        RecipeError: the stages cannot be run.
    """
    stages = [
        Stage(
            name=stage.name,
            model=stage.model,
            prompts=stage.prompts,
            output_field=stage.output_field,
            requires=stage.requires,
            sampling=stage.sampling,
            engine=stage.engine,
            structure=_structure(stage.structure),
            quality=_quality(stage.quality),
        )
        for stage in spec.stages
    ]
    return replace(rebuild_recipe(stages), fingerprint=spec.fingerprint, video=_video(spec.video))


def _video_spec(video: Video | None) -> VideoSpec | None:
    return None if video is None else VideoSpec(video.frames, video.passed_as, video.max_bytes)


def _video(spec: VideoSpec | None) -> Video | None:
    return None if spec is None else Video(spec.frames, spec.passed_as, spec.max_bytes)


def _structure_spec(structure: Structure | None) -> StructureSpec | None:
    return None if structure is None else StructureSpec(**structure.as_written())


def _structure(spec: StructureSpec | None) -> Structure | None:
    if spec is None:
        return None
    return Structure(spec.json_schema, spec.choice, spec.regex, spec.columns)


def _quality_spec(quality: Quality) -> QualitySpec:
    retry = quality.retry
    return QualitySpec(quality.flags, retry.attempts, retry.flags, dict(retry.sampling))


def _quality(spec: QualitySpec | None) -> Quality:
    if spec is None:
        return Quality()
    return Quality(spec.flags, Retry(spec.retry_attempts, spec.retry_flags, spec.retry_sampling))
