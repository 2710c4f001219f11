"""Commands as the option parser takes them, with their help as people expect it."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class OneCommand(TyperCommand):
    """A command."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return its parameters."""
        return _without_types_of_switches(super().get_params(ctx))


class OfSeveral(TyperGroup):
    """A command of several."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return its parameters."""
        return _without_types_of_switches(super().get_params(ctx))


def _without_types_of_switches(params: list[Any]) -> list[Any]:
    """Have help show no type beside a switch: it takes no value, and one would seem to be asked."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params
