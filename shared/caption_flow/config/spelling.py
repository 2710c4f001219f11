"""Keys nobody knows: found in what a file says, before it is validated. Pure.

A closed section refuses every unknown key. An open one passes its unknown keys on to the engine,
except those that are surely meant for us: misspelt, or in the wrong place.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Union, get_args, get_origin

from caption_flow.config.section import OpenSection, Section
from caption_flow.config.vllm import KeyPath
from caption_flow.recipe.spelling import did_you_mean, nearest

SURELY_MEANT: Final = 0.8
"""How alike a key must be to one of ours to be taken for it where any key may stand."""


def unknown_keys(
    section: type[Section], raw: object, path: KeyPath = ()
) -> Iterator[tuple[KeyPath, str]]:
    """Yield every key in ``raw`` that the section has no place for, with a sentence."""
    if not isinstance(raw, Mapping):
        return  # a shorthand, or an error that validation names
    for key, value in raw.items():
        if not isinstance(key, str):
            yield (*path, str(key)), "keys must be text; put it in quotes"
        elif key in section.model_fields:
            yield from _within(section, key, value, path)
        elif message := _complaint(section, key):
            yield (*path, key), message


def _within(
    section: type[Section], key: str, value: object, path: KeyPath
) -> Iterator[tuple[KeyPath, str]]:
    inner = section_of(section.model_fields[key].annotation)
    if inner is None:
        return
    if isinstance(value, list):
        for number, entry in enumerate(value):
            yield from unknown_keys(inner, entry, (*path, key, number))
    else:
        yield from unknown_keys(inner, value, (*path, key))


def _complaint(section: type[Section], key: str) -> str | None:
    if issubclass(section, OpenSection):
        if key in section.neighbours:
            return None
        suggestion = nearest(key, section.model_fields, cutoff=SURELY_MEANT)
        if suggestion is None and (place := _place_below(section, key)):
            return f"belongs under {place}"
        return None if suggestion is None else f"unknown key{did_you_mean(suggestion)}"
    suggestion = nearest(key, section.model_fields)
    if suggestion is None and (place := _place_below(section, key)):
        return f"unknown key; it belongs under {place}"
    return f"unknown key{did_you_mean(suggestion)}"


def _place_below(section: type[Section], key: str) -> str | None:
    """Return the section just below this one in which the key is known, if it is one alone."""
    places = [
        name
        for name, field in section.model_fields.items()
        if (inner := section_of(field.annotation)) is not None
        and get_origin(field.annotation) is not tuple
        and key in inner.model_fields
    ]
    return places[0] if len(places) == 1 else None


def section_of(annotation: Any) -> type[Section] | None:
    """Return the section that a key of this type holds, directly, optionally or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) in (Annotated, Union, types.UnionType, tuple):
        found = (section_of(argument) for argument in get_args(annotation))
        return next((section for section in found if section is not None), None)
    return None
