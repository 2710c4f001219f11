"""Writes `docs/configuration.md` from the models: `python -m caption_flow.config.document`."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import annotated_types as at
from pydantic.fields import FieldInfo

from caption_flow.certificates.fingerprint import Fingerprint
from caption_flow.config.monitor import MonitorConfig
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.secret import Secret
from caption_flow.config.section import INFERRED, INSTEAD, Moment, OpenSection, Section
from caption_flow.config.spelling import section_of
from caption_flow.config.vllm import EngineKeys
from caption_flow.config.worker import WorkerConfig

_INTRODUCTION: Final = """\
# Configuration

<!-- `python -m caption_flow.config.document > docs/configuration.md` writes this. -->

A file is YAML or JSON. It holds a component's keys under `orchestrator:`, `worker:` or `monitor:`,
several of them side by side, or one component's keys at the root. It is looked for, first match
wins: `--config`, `./<component>.yaml`, `./config/<component>.yaml`,
`~/.caption-flow/<component>.yaml`, `$XDG_CONFIG_HOME/caption-flow/`, `/etc/caption-flow/`, each of
`$XDG_CONFIG_DIRS`/caption-flow/, `./configs/<component>.yaml`; `.yml` and `.json` are as good as
`.yaml`. Flags override files. Relative paths start at the working folder. A key that holds nothing
counts as not set.

A file that cannot be used is refused before anything starts, with every error at once:

```
orchestrator.yaml:9: vllm.max_modle_len: unknown key; did you mean max_model_len?
orchestrator.yaml:17: vllm.stages[1].requires: no stage is named 'detial'; did you mean 'detail'?
```

**Tokens and keys** may be written out, or left where they are: `env:NAME` is read from the
environment and `file:PATH` from a file, when they are needed. They are never shown or logged.

**Prompts** may refer to what is known of the image:

| Written | Stands for |
|---|---|
| `{caption}` | the output field `caption`, as earlier stages filled it |
| `<caption>` | the same, where there is one; other text like it is left alone, and tag pairs |
| `{column:title}`, `{col:title}` | the dataset's column `title`, else an earlier stage's field |
| `{stage.field}` | what one stage put into a field |
| `{stage_output_0}` | the first text of one stage |
| `{{caption}}` | the text `{caption}` itself |

Lists are joined by ", "; a missing or null column leaves nothing. Other braces are text. A stage
runs after those it requires and those whose fields its prompts refer to.

**Structured output** makes answers that programs can use: a stage may have a `json_schema`, a
`choice` of texts, or a `regex`. The engine then writes nothing else, and every answer is checked.

```yaml
stages:
  - name: facts
    prompts: [Title and tag this image.]
    output_field: facts
    json_schema:
      type: object
      properties:
        title: {type: string, maxLength: 80}
        tags: {type: array, items: {type: string}, maxItems: 10}
      required: [title, tags]
    columns: [title, tags]
  - name: caption
    prompts: ["Describe this image, titled {title}. Mention {tags}."]
```

`facts` holds the JSON text; `title` and `tags` are columns of their own, in Parquet and in exports,
with one text for each entry of a list, and none where the key is missing or null.
"""

_SECTIONS: Final[Mapping[str, type[Section]]] = {
    "orchestrator": OrchestratorConfig,
    "worker": WorkerConfig,
    "monitor": MonitorConfig,
}

_TYPE_NAMES: Final[Mapping[object, str]] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    Secret: "token",
    Fingerprint: "fingerprint",
    dict: "mapping",
}


def reference() -> str:
    """Return the whole page as Markdown."""
    parts = [_INTRODUCTION]
    for name, section in _SECTIONS.items():
        parts.extend(_section(name, section))
    return "\n".join(parts)


def _section(name: str, section: type[Section]) -> Iterator[str]:
    """Yield a section's heading and table, then those of the sections in it."""
    yield f"## `{name}`\n\n{_plain(section.__doc__)}\n"
    yield "| Key | Type | Default | Meaning |\n|---|---|---|---|"
    for key, field in _own_keys_first(section):
        yield f"| `{key}` | {_type(field)} | {_default(field)} | {_meaning(field)} |"
    if issubclass(section, OpenSection):
        yield "| any other | | | Passed on to the engine. |"
    yield ""
    for key, field in section.model_fields.items():
        if (inner := section_of(field.annotation)) and not _described_before(name, key):
            yield from _section(f"{name}.{key}{'[]' if _is_list(field) else ''}", inner)


def _own_keys_first(section: type[Section]) -> list[tuple[str, FieldInfo]]:
    """Return the keys, those of the engine that several sections share at the end."""
    shared = EngineKeys.model_fields
    return sorted(section.model_fields.items(), key=lambda item: item[0] in shared)


def _described_before(name: str, key: str) -> bool:
    """Tell whether the section has the keys of one whose table stands already."""
    same = {"orchestrator.auth": ("monitor_tokens", "admin_tokens")}
    return key in same.get(name, ()) or (
        name.rsplit(".", maxsplit=1)[-1] in {"stages[]", "retry"} and key in {"sampling", "quality"}
    )


def _plain(docstring: str | None) -> str:
    lines = [line.strip() for line in (docstring or "").splitlines()]
    return "\n".join(lines).strip()


def _meaning(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and INSTEAD in extra:
        return f"{field.description} No effect: {extra[INSTEAD]}."
    return field.description or ""


def _type(field: FieldInfo) -> str:
    bounds = [text for one in field.metadata if (text := _bound(one))]
    return f"{_type_name(field.annotation)} {', '.join(bounds)}".strip()


def _bound(constraint: object) -> str:
    match constraint:
        case at.Ge(ge=limit):
            return f"≥ {limit}"
        case at.Gt(gt=limit):
            return f"> {limit}"
        case at.Le(le=limit):
            return f"≤ {limit}"
        case _:
            return ""


def _type_name(annotation: Any) -> str:
    arguments = [one for one in get_args(annotation) if one not in (type(None), Ellipsis)]
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is Annotated:
        return "day or moment" if annotation == Moment else _type_name(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(one) for one in arguments)
    if origin is tuple:
        one = _type_name(arguments[0])
        return f"list of {one}" if get_origin(arguments[0]) is Literal else f"list of {one}s"
    if section_of(annotation) is not None:
        return "section"
    return _TYPE_NAMES.get(origin or annotation, str(annotation))


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.json_schema_extra, dict) and INFERRED in field.json_schema_extra:
        return str(field.json_schema_extra[INFERRED])
    shown = _shown(field.default)
    return f"`{shown}`" if shown else ""


def _shown(default: object) -> str:
    match default:
        case None | Section() | ():
            return ""
        case bool():
            return str(default).lower()
        case float():
            return f"{default:g}"
        case Path():
            return f"./{default}"
        case _:
            return str(default)


if __name__ == "__main__":
    sys.stdout.write(reference())
