"""Which stages of a recipe a worker runs, and what is passed on between workers. Pure.

Stages have one order, so what an item has behind it is a number: that of its next stage.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from caption_flow.recipe.spelling import did_you_mean, nearest
from caption_flow.recipe.stages import Recipe, Stage


@dataclass(frozen=True, slots=True)
class StageColumn:
    """What one stage puts into one output field, while the item has stages before it."""

    stage: str
    field: str
    is_part: bool = False
    """Whether it takes parts of the stage's answers: there may be none."""

    @property
    def name(self) -> str:
        """The column's name; an output field has no dot in its own."""
        return f"{self.stage}.{self.field}"

    @classmethod
    def of(cls, name: str) -> StageColumn | None:
        """Return the column of a name, or None for a name of something else."""
        stage, dot, field = name.rpartition(".")
        return cls(stage, field) if dot else None


@dataclass(frozen=True, slots=True)
class Leg:
    """The stages ``[first, stop)`` of a recipe: an item's way through one worker."""

    recipe: Recipe
    first: int
    stop: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that the worker runs."""
        return self.recipe.stages[self.first : self.stop]

    @property
    def is_last(self) -> bool:
        """Whether no stage is left after these."""
        return self.stop == len(self.recipe.stages)

    @property
    def output_fields(self) -> tuple[str, ...]:
        """The fields that these stages fill."""
        return tuple(dict.fromkeys(column.field for column in self.columns))

    @property
    def columns(self) -> tuple[StageColumn, ...]:
        """What each of these stages gives, in their order."""
        return tuple(
            StageColumn(stage.name, field, field != stage.output_field)
            for stage in self.stages
            for field in stage.fields
        )


def leg(recipe: Recipe, first: int, names: Collection[str]) -> Leg:
    """Return how far a worker that runs the named stages, all if none, carries an item."""
    stop = first
    while stop < len(recipe.stages) and (not names or recipe.stages[stop].name in names):
        stop += 1
    return Leg(recipe, first, stop)


def served(recipe: Recipe, names: Collection[str]) -> Recipe:
    """Return a recipe as a worker that runs the named stages, all if none, has to do with it.

    What such a stage needs of another one is there when the item comes.
    """
    stages = tuple(recipe.stages[at] for at in sorted(positions(recipe, names)))
    here = {stage.name for stage in stages}
    dependencies = {
        name: tuple(one for one in recipe.dependencies[name] if one in here) for name in here
    }
    return replace(recipe, stages=stages, dependencies=dependencies)


def positions(recipe: Recipe, names: Collection[str]) -> frozenset[int]:
    """Return the positions of the named stages, of all if none is named."""
    stages = enumerate(recipe.stages)
    return frozenset(at for at, stage in stages if not names or stage.name in names)


def unknown_stage(recipe: Recipe, names: Collection[str]) -> str | None:
    """Return what is wrong with the first name that no stage has, or None."""
    known = [stage.name for stage in recipe.stages]
    for name in names:
        if name not in known:
            suggestion = nearest(name, known)
            offer = did_you_mean(None if suggestion is None else repr(suggestion))
            return f"no stage is named {name!r}{offer or f'; there are {_listed(known)}'}"
    return None


def by_stage(columns: Mapping[str, Sequence[str]]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the texts of `StageColumn`s by stage and field; what else there is is left out."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, texts in columns.items():
        column = StageColumn.of(name)
        if column is not None:
            found.setdefault(column.stage, {})[column.field] = tuple(texts)
    return found


def by_field(columns: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the texts of `StageColumn`s by field, in the order of the columns."""
    found: dict[str, list[str]] = {}
    for fields in by_stage(columns).values():
        for field, texts in fields.items():
            found.setdefault(field, []).extend(texts)
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
