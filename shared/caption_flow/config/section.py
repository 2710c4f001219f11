"""What all sections of a configuration have in common, and the types of their values.

Owns how strict sections are. Every key is described where it is defined, since the reference in
`docs/configuration.md` is written from there (`caption_flow.config.document`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

INSTEAD = "instead"
"""The entry of a key's ``json_schema_extra`` that says what happens although it is set."""
INFERRED = "inferred"
"""The entry that says, for people, where a key's value comes from when it is not set."""


class Section(BaseModel):
    """A section whose keys are all known."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        # "name: 7" means the text "7".
        coerce_numbers_to_str=True,
        # Values may be tokens; `caption_flow.config.problems` decides what to show.
        hide_input_in_errors=True,
        # "model_..." are keys of ours, not of pydantic's.
        protected_namespaces=(),
    )


class OpenSection(Section):
    """A section that passes keys it does not know on to the engine.

    ``neighbours`` are the engine's own keys that look like misspelt ones of ours.
    """

    model_config = ConfigDict(extra="allow")

    neighbours: ClassVar[frozenset[str]] = frozenset()

    @property
    def extras(self) -> dict[str, Any]:
        """The keys that are the engine's, not ours."""
        return dict(self.model_extra or {})


def unused(description: str, instead: str) -> Any:
    """Return a key that files may have and that changes nothing; ``instead`` says so, if set."""
    return Field(default=None, description=description, json_schema_extra={INSTEAD: instead})


def _not_a_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")  # noqa: TRY004 - pydantic's
    return value


def moment(value: Any) -> float:
    """Return a day's end, or a moment, in seconds since 1970. Raises `ValueError`."""
    if not isinstance(value, str):
        raise ValueError("must be a day or a moment, such as 2026-12-31")  # noqa: TRY004 - pydantic's
    try:
        said = datetime.fromisoformat(value.strip())
        if len(value.strip()) == len("2026-12-31"):
            said += timedelta(days=1)
        return (said if said.tzinfo else said.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"must be a day or a moment, such as 2026-12-31 or 2026-12-31T18:00Z: {error}"
        ) from error


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _expand_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"names a home folder that does not exist: {path}") from error


def _as_python_has_it(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    # pydantic refuses lone surrogates, and paths from a command line may have some (PEP 383).
    return value if isinstance(value, str) and value else validate(value)


WholeNumber = Annotated[int, BeforeValidator(_not_a_switch)]
Number = Annotated[float, BeforeValidator(_not_a_switch)]
Moment = Annotated[float, BeforeValidator(moment)]
"""Seconds since 1970, written as a day, which ends it, or as a moment; see ISO 8601."""
Texts = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]
FilePath = Annotated[Path, AfterValidator(_expand_home)]
"""A path as it was written: relative ones stay relative to the working folder."""
Text = Annotated[str, Field(min_length=1)]
Location = Annotated[Text, WrapValidator(_as_python_has_it)]
"""A path, or another place's name; a path's bytes that are no UTF-8 are lone surrogates in it."""
