"""What the placeholders of a prompt refer to: fields, stages, or columns of the dataset.

Pure. This is the place for what is known before the first item; `caption_flow.recipe.template`
looks the same names up in the same order once there is an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from caption_flow.recipe.spelling import did_you_mean, nearest
from caption_flow.recipe.template import Kind, Placeholder, StageReference, stage_references


@dataclass(frozen=True, slots=True)
class Names:
    """The names a recipe's prompts may use, by the position of the stage they belong to.

    ``columns`` is None while the dataset's columns are unknown.
    """

    stages: Sequence[str]
    fields: Sequence[Sequence[str]]
    prompt_counts: Sequence[int]
    requires: Sequence[AbstractSet[int]]
    columns: AbstractSet[str] | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """What a placeholder needs: stages, a column of the dataset, or a correction."""

    needs: frozenset[int] = frozenset()
    column: str | None = None
    problem: str | None = None


_NOTHING = Reference()


def resolve(placeholder: Placeholder, at: int, names: Names) -> Reference:
    """Return what a placeholder in a prompt of the stage at position ``at`` refers to."""
    match placeholder.kind:
        case Kind.COLUMN:
            return _resolve_column(placeholder, at, names)
        case Kind.BARE:
            return _resolve_name(placeholder, at, names)
        case Kind.ANGLE:
            found = _resolve_name(placeholder, at, names)
            return _NOTHING if found.problem else found


def _resolve_column(placeholder: Placeholder, at: int, names: Names) -> Reference:
    name = placeholder.name
    if names.columns is not None and name in names.columns:
        return Reference(column=name)
    # Later stages do not count: the column was asked for, and nothing says it is not there.
    fillers = _fillers(name, at, names, later=False)
    if names.columns is None:
        return Reference(needs=fillers, column=name)
    if fillers:
        return Reference(needs=fillers)
    return Reference(problem=_unknown(placeholder, at, names))


def _resolve_name(placeholder: Placeholder, at: int, names: Names) -> Reference:
    name = placeholder.name
    if fillers := _fillers(name, at, names, later=False):
        return Reference(needs=fillers)
    for reference in stage_references(name):
        if found := _resolve_stage_reference(reference, placeholder, at, names):
            return found
    if names.columns is not None and name in names.columns:
        return Reference(column=name)
    if fillers := _fillers(name, at, names, later=True):
        return Reference(needs=fillers)
    return Reference(problem=_unknown(placeholder, at, names))


def _fillers(name: str, at: int, names: Names, *, later: bool) -> frozenset[int]:
    """Return the other stages that fill the field: those before or required, or those after."""
    return frozenset(
        position
        for position, fields in enumerate(names.fields)
        if name in fields
        and position != at
        and (position < at or position in names.requires[at]) != later
    )


def _resolve_stage_reference(
    reference: StageReference, placeholder: Placeholder, at: int, names: Names
) -> Reference | None:
    """Return what the reference reaches, or None when there is no such stage or field."""
    if reference.stage not in names.stages:
        return None
    position = names.stages.index(reference.stage)
    if reference.field is not None and reference.field not in names.fields[position]:
        return None
    count = names.prompt_counts[position]
    if reference.position is not None and reference.position >= count:
        last = f"{{{reference.stage}_output_{count - 1}}}"
        problem = f"{placeholder.source} asks for more than the stage gives; its last is {last}"
        return Reference(problem=problem)
    if position == at:
        return Reference(problem=f"{placeholder.source} is this stage's own output")
    return Reference(needs=frozenset({position}))


def _unknown(placeholder: Placeholder, at: int, names: Names) -> str:
    what = f"{placeholder.source} is neither an earlier stage's output field nor "
    suggestion = nearest(placeholder.name, _candidates(at, names))
    if placeholder.kind is Kind.COLUMN:
        return f"{what}a column of the dataset{did_you_mean(_braced(suggestion, 'column:'))}"
    misspelt, colon, column = placeholder.name.partition(":")
    if colon and nearest(misspelt, ["column", "col"]):
        return f"{what}a column of the dataset{did_you_mean(_braced(column, 'column:'))}"
    if suggestion is not None:
        return f"{what}a column of the dataset{did_you_mean(_braced(suggestion))}"
    if names.columns is not None:
        return f"{what}a column of the dataset; for literal braces write {{{placeholder.source}}}"
    return (
        f"{what}known to be a column; for a column of the dataset write "
        f"{{column:{placeholder.name}}}, for literal braces {{{placeholder.source}}}"
    )


def _candidates(at: int, names: Names) -> list[str]:
    others = [
        (stage, field)
        for position, (stage, fields) in enumerate(zip(names.stages, names.fields, strict=True))
        for field in fields
        if position != at
    ]
    fields = [field for _, field in others]
    dotted = [f"{stage}.{field}" for stage, field in others]
    return [*fields, *sorted(names.columns or ()), *dotted]


def _braced(name: str | None, prefix: str = "") -> str | None:
    return None if name is None else f"{{{prefix}{name}}}"
