"""Stages and recipes: what is asked of the model for each item, in which order.

Pure: no I/O, no clock. `build_recipe` is the only way to a `Recipe` (`caption_flow.recipe.wire`
carries one to a worker); one that exists is runnable.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from caption_flow.recipe.fingerprint import (
    recipe_fingerprint,
    stage_fingerprint,
    video_fingerprint,
)
from caption_flow.recipe.order import find_cycles, stable_order, upstream_of
from caption_flow.recipe.quality import Quality
from caption_flow.recipe.references import Names, Reference, resolve
from caption_flow.recipe.spelling import did_you_mean, nearest
from caption_flow.recipe.structure import STRUCTURED_OUTPUTS, Structure
from caption_flow.recipe.template import (
    Columns,
    Context,
    Kind,
    Outputs,
    Template,
    parse_template,
)
from caption_flow.recipe.video import Video

DEFAULT_OUTPUT_FIELD: Final = "captions"
DEFAULT_STAGE_NAME: Final = "default"

RESERVED_COLUMNS: Final = frozenset(
    {
        "item_key",
        "shard",
        "chunk_id",
        "item_index",
        "filename",
        "filename_raw",
        "url",
        "image_width",
        "image_height",
        "image_format",
        "image_scaled_to",
        "file_size",
        "content_hash",
        "status",
        "error_kind",
        "error",
        "flags",
        "stage_stats",
        "contributor",
        "worker",
        "model",
        "models",
        "recipe",
        "committed_at",
    }
)
"""Columns every stored row has; an output field of the same name would be two columns."""

_FIELD_NAME: Final = re.compile(r"\w[\w-]*")


@dataclass(frozen=True, slots=True)
class Stage:
    """One step: a model, its prompts, how to sample, and the output field it fills.

    ``sampling`` and ``engine`` hold the engine's own parameter names, already laid over the
    recipe's defaults. ``requires`` names stages that must run before this one. A ``structure``
    binds the answers to a form, and its columns are output fields beside ``output_field``.
    """

    name: str
    model: str
    prompts: tuple[str, ...]
    output_field: str = DEFAULT_OUTPUT_FIELD
    requires: tuple[str, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    structure: Structure | None = None
    quality: Quality = field(default_factory=Quality)

    @property
    def columns(self) -> tuple[str, ...]:
        """The output fields it fills with parts of its answers."""
        return () if self.structure is None else self.structure.columns

    @property
    def fields(self) -> tuple[str, ...]:
        """All output fields it fills."""
        return (self.output_field, *self.columns)

    def samplings(self) -> tuple[dict[str, Any], ...]:
        """Return the sampling parameters of the first attempt, and of those after it, if any."""
        structure = {} if self.structure is None else self.structure.sampling()
        first = {**self.sampling, **structure}
        retry = self.quality.retry
        return (first, {**first, **retry.sampling, **structure}) if retry.attempts else (first,)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a recipe: the stage's position, the key, and a sentence.

    ``stage`` is None when no stage is at fault. ``key`` is a stage's own, such as ``prompts[0]``.
    """

    stage: int | None
    key: str
    message: str

    @property
    def path(self) -> str:
        """Where it is, from the recipe down: ``stages[1].prompts[0]``."""
        if self.stage is None:
            return self.key
        return f"stages[{self.stage}].{self.key}"

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class RecipeError(ValueError):
    """Stages that cannot be run as they are; ``problems`` holds every reason."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(*problems)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The stages of a run, in the order in which an item takes them.

    ``output_fields`` are in order of first appearance; an item may have no text in those that are
    ``optional_fields``. ``columns`` are the dataset columns that prompts refer to: whoever renders
    passes a key for each of them that the dataset has.
    ``dependencies`` maps each stage to the stages whose output it waits for, and ``upstream`` to
    all that these wait for in turn; ``stage_fingerprints`` and ``templates`` are by stage, too.
    """

    stages: tuple[Stage, ...]
    output_fields: tuple[str, ...]
    columns: tuple[str, ...]
    fingerprint: str
    stage_fingerprints: Mapping[str, str]
    dependencies: Mapping[str, tuple[str, ...]]
    upstream: Mapping[str, tuple[str, ...]]
    templates: Mapping[str, tuple[Template, ...]] = field(repr=False)
    video: Video | None = None
    """How videos are shown to the models; None where they are not captioned."""

    @property
    def video_fingerprint(self) -> str:
        """The fingerprint in the rows of videos: images don't change with the number of frames."""
        if self.video is None:
            return self.fingerprint
        return video_fingerprint(self.fingerprint, self.video.frames, self.video.passed_as)

    @property
    def optional_fields(self) -> frozenset[str]:
        """The output fields that only take parts of answers: a list in one may be empty."""
        return frozenset(self.output_fields) - {stage.output_field for stage in self.stages}

    def no_outputs(self) -> Outputs:
        """Return the outputs of an item that no stage has seen yet."""
        return Outputs(order=tuple(stage.name for stage in self.stages))

    def render(self, stage: str, outputs: Outputs, columns: Columns) -> tuple[str, ...]:
        """Return the stage's prompts for one item.

        A stage sees what its upstream stages gave and nothing else, so that the same item gets the
        same prompts however its stages happen to interleave.
        """
        context = Context.of(outputs.only(self.upstream[stage]), columns)
        return tuple(template.render(context) for template in self.templates[stage])


def build_recipe(
    stages: Sequence[Stage], *, dataset_columns: Collection[str] | None = None
) -> Recipe:
    """Put stages in order and check that every prompt can be rendered.

    A stage waits for those it requires, and for those that fill a field its prompts refer to: the
    ones before it in the configuration or, where there are none, the ones after it. A field shared
    by several stages is appended to, so a stage may refer to the field it fills itself.

    Without ``dataset_columns`` the columns are unknown until the run: ``{column:name}`` is taken
    on trust, while a bare ``{name}`` must be a field that some stage fills.

    Raises:
        RecipeError: with everything that is wrong, not only the first.
    """
    columns = None if dataset_columns is None else frozenset(dataset_columns)
    return _Draft.of(stages, columns).finish()


def rebuild_recipe(stages: Sequence[Stage]) -> Recipe:
    """Build a recipe again from stages whose ``requires`` name everything they wait for.

    What a prompt names beyond that is a column of the dataset: whoever built the recipe knew.

    Raises:
        RecipeError: with everything that is wrong, not only the first.
    """
    return _Draft.of(stages, None).finish(trusting=True)


@dataclass(frozen=True, slots=True)
class _Draft:
    """Stages under inspection; positions stand for stages, since names may be wrong or double."""

    stages: tuple[Stage, ...]
    templates: tuple[tuple[Template, ...], ...]
    names: Names

    @classmethod
    def of(cls, stages: Sequence[Stage], columns: AbstractSet[str] | None) -> _Draft:
        stage_names = [stage.name for stage in stages]
        names = Names(
            stages=stage_names,
            fields=[stage.fields for stage in stages],
            prompt_counts=[len(stage.prompts) for stage in stages],
            requires=[_positions(stage.requires, stage_names) for stage in stages],
            columns=columns,
        )
        templates = tuple(tuple(map(parse_template, stage.prompts)) for stage in stages)
        return cls(tuple(stages), templates, names)

    def finish(self, *, trusting: bool = False) -> Recipe:
        needs = [set(required) for required in self.names.requires]
        columns: dict[str, None] = {}
        problems = [*_shape_problems(self.stages)]
        for position, key, reference in self._references(trusting=trusting):
            needs[position] |= reference.needs
            if reference.column is not None:
                columns[reference.column] = None
            if reference.problem is not None:
                problems.append(Problem(position, key, reference.problem))
        problems.extend(self._cycle_problems(needs))
        if problems:
            raise RecipeError(sorted(problems, key=lambda p: -1 if p.stage is None else p.stage))
        return self._recipe(needs, tuple(columns))

    def _references(self, *, trusting: bool) -> Iterator[tuple[int, str, Reference]]:
        for position, templates in enumerate(self.templates):
            for number, template in enumerate(templates):
                for placeholder in dict.fromkeys(template.placeholders):
                    reference = resolve(placeholder, position, self.names)
                    if trusting:
                        bare = placeholder.kind is Kind.BARE
                        named = placeholder.name if bare and reference.problem else reference.column
                        reference = Reference(column=named)
                    yield position, f"prompts[{number}]", reference

    def _cycle_problems(self, needs: Sequence[AbstractSet[int]]) -> Iterator[Problem]:
        for cycle in find_cycles(needs):
            members = [self.stages[position].name for position in [*cycle, cycle[0]]]
            key = "requires" if self.stages[cycle[0]].requires else "prompts"
            yield Problem(cycle[0], key, f"stages wait for one another: {' -> '.join(members)}")

    def _recipe(self, needs: Sequence[AbstractSet[int]], columns: tuple[str, ...]) -> Recipe:
        order = stable_order(needs)
        rank = {position: number for number, position in enumerate(order)}

        def named(positions: Collection[int]) -> tuple[str, ...]:
            return tuple(self.stages[p].name for p in sorted(positions, key=rank.__getitem__))

        fingerprints: dict[str, str] = {}
        dependencies: dict[str, tuple[str, ...]] = {}
        for position in order:
            stage = self.stages[position]
            dependencies[stage.name] = named(needs[position])
            fingerprints[stage.name] = stage_fingerprint(
                prompts=stage.prompts,
                model=stage.model,
                revision=stage.engine.get("revision"),
                sampling=stage.sampling,
                output_field=stage.output_field,
                structure={} if stage.structure is None else stage.structure.as_written(),
                retry=asdict(stage.quality.retry) if stage.quality.retry.attempts else {},
                upstream=[fingerprints[name] for name in dependencies[stage.name]],
            )
        stages = tuple(self.stages[position] for position in order)
        return Recipe(
            stages=stages,
            output_fields=tuple(dict.fromkeys(name for stage in stages for name in stage.fields)),
            columns=columns,
            fingerprint=recipe_fingerprint(fingerprints.values()),
            stage_fingerprints=fingerprints,
            dependencies=dependencies,
            upstream={self.stages[p].name: named(upstream_of(needs, p)) for p in order},
            templates={self.stages[p].name: self.templates[p] for p in order},
        )


def _positions(names: Collection[str], among: Sequence[str]) -> frozenset[int]:
    return frozenset(among.index(name) for name in names if name in among)


def _shape_problems(stages: Sequence[Stage]) -> Iterator[Problem]:
    """Yield what is wrong with each stage before its prompts are understood."""
    if not stages:
        yield Problem(None, "stages", "a recipe needs at least one stage")
    names = [stage.name for stage in stages]
    for position, stage in enumerate(stages):
        if not stage.name.strip():
            yield Problem(position, "name", "a stage needs a name")
        elif (first := names.index(stage.name)) != position:
            yield Problem(position, "name", f"stages[{first}] is named {stage.name!r} already")
        yield from _prompt_problems(position, stage.prompts)
        for required in stage.requires:
            if required not in names:
                suggestion = nearest(required, names)
                offer = did_you_mean(None if suggestion is None else repr(suggestion))
                yield Problem(position, "requires", f"no stage is named {required!r}{offer}")
        if message := output_field_problem(stage.output_field):
            yield Problem(position, "output_field", message)
        yield from _structure_problems(position, stage)
        for key, message in stage.quality.problems():
            yield Problem(position, key, message)


def _structure_problems(position: int, stage: Stage) -> Iterator[Problem]:
    if stage.structure is None:
        return
    for key, problem in stage.structure.problems():
        yield Problem(position, key, problem)
    if STRUCTURED_OUTPUTS in stage.sampling:
        yield Problem(
            position, "sampling", f"{STRUCTURED_OUTPUTS} is what the stage's own keys say"
        )
    for number, name in enumerate(stage.columns):
        if name == stage.output_field:
            message: str | None = (
                f"{name!r} is the stage's output_field, which takes the whole JSON"
            )
        else:
            message = output_field_problem(name)
        if message:
            yield Problem(position, f"columns[{number}]", message)


def _prompt_problems(position: int, prompts: Sequence[str]) -> Iterator[Problem]:
    if not prompts:
        yield Problem(position, "prompts", "a stage needs at least one prompt")
    for number, prompt in enumerate(prompts):
        if not prompt.strip():
            yield Problem(position, f"prompts[{number}]", "the prompt is empty")


def output_field_problem(name: str) -> str | None:
    """Return why an output field cannot have this name, or None when it can."""
    if not name:
        return "an output field needs a name"
    if not _FIELD_NAME.fullmatch(name):
        return f"{name!r} is no name for an output field; use letters, digits, '_' and '-'"
    # DuckDB and others take column names without regard to capitals.
    if name.casefold() in RESERVED_COLUMNS:
        return f"{name!r} is a column that every row has already; choose another name"
    return None
