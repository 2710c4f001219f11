"""Recipes as workers get them: to and from `caption_flow.protocol.messages.RecipeSpec`."""

from __future__ import annotations

from dataclasses import replace

from caption_flow.protocol.messages import RecipeSpec, StageSpec
from caption_flow.recipe.stages import Recipe, Stage, rebuild_recipe


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
        )
        for stage in recipe.stages
    )
    return RecipeSpec(stages, recipe.fingerprint, mock_results)


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
        )
        for stage in spec.stages
    ]
    return replace(rebuild_recipe(stages), fingerprint=spec.fingerprint)
