"""A dataset's card: README.md with its YAML head, made anew or merged into what people wrote. Pure.

Between `BEGIN` and `END` the text is ours, as are the keys of the head that follow from the rows
(``configs``' default and ``size_categories``). All else is theirs: it is added to, never replaced,
unless the caller names another value.

https://huggingface.co/docs/hub/datasets-cards and -manual-configuration.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from caption_flow.storage.exporter.errors import ExportError
from caption_flow.storage.exporter.hub_shards import pattern
from caption_flow.storage.exporter.hub_tally import Tally

BEGIN: Final = "<!-- caption-flow: begin. What is between these two lines is written anew. -->"
END: Final = "<!-- caption-flow: end -->"
NSFW: Final = "not-for-all-audiences"
_OURS: Final = re.compile(r"<!-- caption-flow: begin\b.*?<!-- caption-flow: end -->", re.DOTALL)
_HEAD: Final = re.compile(
    r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
_DEFAULT: Final = "default"
_TASKS: Final = ("image-to-text", "text-to-image")
_TAGS: Final = ("captions", "caption-flow")
_SIZES: Final = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)
_LARGEST: Final = "1B<n<10B"
_MOST_NAMED: Final = 100
_NOBODY: Final = "local"
"""Whose rows those are that `caption-flow run` made with the token it made for itself."""
_MEANINGS: Final[Mapping[str, str]] = {
    "item_key": "identity of the image in the dataset",
    "shard": "file of the dataset that it is in",
    "chunk_id": "portion in which it was handed out",
    "item_index": "position in its shard",
    "filename": "path within the dataset",
    "filename_raw": "the path's bytes, where they are not UTF-8",
    "url": "where the image is",
    "image_width": "pixels",
    "image_height": "pixels",
    "image_format": "of the file",
    "image_scaled_to": "what the model saw, where that was smaller than usual",
    "file_size": "bytes",
    "content_hash": "BLAKE2b of the file, 128 bits",
    "status": "`captioned` or `failed`",
    "error_kind": "why it failed, as one word",
    "error": "why it failed",
    "flags": "what looks wrong with the texts",
    "stage_stats": "tokens, finish reasons and milliseconds of each stage",
    "contributor": "who captioned it",
    "worker": "on which worker",
    "models": "which models wrote the texts",
    "recipe": "fingerprint of models, prompts and sampling",
    "committed_at": "when it was stored",
}


@dataclass(frozen=True, slots=True)
class StageFacts:
    """What is told of one stage of a recipe."""

    name: str
    model: str
    prompts: Sequence[str]
    output_field: str


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says; ``name`` is the repository's, without its organisation."""

    name: str
    schema: pa.Schema
    output_fields: Sequence[str]
    tally: Tally
    stages: Sequence[StageFacts] = ()
    source: str | None = None
    """The dataset of the hub that was captioned."""
    license: str | None = None
    nsfw: bool = False
    tags: Sequence[str] = ()
    splits: Sequence[str] = field(default=("train",))


def merged_card(before: str | None, facts: CardFacts) -> str:
    """Return the card that is to be there, given the one that is; the same if nothing changed.

    Raises:
        ExportError: the head that is there is no YAML.
    """
    head, body = _parted(before or "")
    ours = "\n".join([BEGIN, *_section(facts), END])
    if before is None:
        body = f"\n# {facts.name}\n\n{ours}\n"
    elif _OURS.search(body):
        body = _OURS.sub(lambda _: ours, body, count=1)
    else:
        body = f"{body.rstrip()}\n\n{ours}\n" if body.strip() else f"\n{ours}\n"
    return f"---\n{_merged_head(head, facts)}---\n{body}"


# ---------------------------------------------------------------------------------------- head


def _parted(card: str) -> tuple[str, str]:
    found = _HEAD.match(card)
    return ("", card) if found is None else (found[1], card[found.end() :])


def _merged_head(text: str, facts: CardFacts) -> str:
    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=2, offset=0)
    try:
        head = yaml.load(text) if text.strip() else {}
    except YAMLError as error:
        raise ExportError(
            f"README.md there begins with no YAML: mend it first ({error})"
        ) from error
    if not isinstance(head, dict):
        raise ExportError("README.md there begins with YAML that has no keys: mend it first")
    before = _plain(head)
    _fill(head, facts)
    if text and _plain(head) == before:
        return text  # as they wrote it, down to the last space
    written = io.StringIO()
    yaml.dump(head, written)
    return written.getvalue()


def _fill(head: dict[str, Any], facts: CardFacts) -> None:
    if facts.license is not None:
        head["license"] = facts.license
    head.setdefault("pretty_name", facts.name)
    head.setdefault("task_categories", list(_TASKS))
    _add(head, "tags", [*_TAGS, *facts.tags, *([NSFW] if facts.nsfw else [])])
    head["size_categories"] = [size_category(facts.tally.rows)]
    files = [{"split": split, "path": pattern(split)} for split in facts.splits]
    configs = head.get("configs")
    if not isinstance(configs, list):
        configs = head["configs"] = []
    ours = next((one for one in configs if _is_default(one)), None)
    if ours is None:
        configs.append({"config_name": _DEFAULT, "data_files": files})
    elif _plain(ours.get("data_files")) != files:
        ours["data_files"] = files


def _is_default(config: Any) -> bool:
    return isinstance(config, dict) and config.get("config_name", _DEFAULT) == _DEFAULT


def _add(head: dict[str, Any], key: str, values: Iterable[str]) -> None:
    there = head.get(key)
    if not isinstance(there, list):
        there = head[key] = [] if there is None else [there]
    there.extend(value for value in dict.fromkeys(values) if value not in there)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def size_category(rows: int) -> str:
    """Return the hub's word for a dataset of so many rows."""
    return next((name for bound, name in _SIZES if rows < bound), _LARGEST)


# ---------------------------------------------------------------------------------------- text


def _section(facts: CardFacts) -> list[str]:
    tally = facts.tally
    what = _link(facts.source) if facts.source else "images"
    lines = [
        f"Captions of {what}: {_rows(tally.rows)}, {tally.captioned:,} of them captioned. The "
        "images are not in here; `item_key`, `filename` and `url` say which they are.",
        "",
        *_table(("split", "rows"), [(split, f"{tally.splits[split]:,}") for split in facts.splits]),
    ]
    if tally.failures:
        lines += ["", f"Not captioned: {_listed(tally.failures)}."]
    if tally.flags:
        lines += ["", f"Flagged: {_listed(tally.flags)}."]
    lines += ["", "## Fields", "", *_table(("column", "type", "what"), _fields(facts))]
    lines += ["", "## How it was made", "", *_making(facts)]
    named = {name: count for name, count in tally.contributors.items() if name != _NOBODY}
    if named:
        lines += ["", "## Contributors", "", "Captioned by " + _listed(named) + "."]
    return lines


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _fields(facts: CardFacts) -> list[tuple[str, str, str]]:
    texts = facts.tally.texts
    found = []
    for column in facts.schema:
        if column.name in facts.output_fields:
            what = f"texts of the models, {texts[column.name]:,} in all"
        else:
            what = _MEANINGS.get(column.name, "the dataset's own")
        found.append((_code(column.name), _code(_type(column.type)), what))
    return found


def _making(facts: CardFacts) -> list[str]:
    models = _listed(facts.tally.models)
    lines = [
        "Captioned and uploaded with CaptionFlow (`caption-flow export --format huggingface_hub`)"
        + (f"; images by model: {models}." if models else ".")
    ]
    if not facts.stages:
        return lines
    if len(facts.tally.recipes) > 1:
        lines += ["", f"{len(facts.tally.recipes)} recipes were used; this is the last one."]
    for stage in facts.stages:
        lines += [
            "",
            f"Stage {_code(stage.name)}, {_code(stage.model)}, fills {_code(stage.output_field)}:",
        ]
        for prompt in stage.prompts:
            lines += ["", *_fenced(prompt)]
    return lines


def _type(kind: pa.DataType) -> str:
    if pa.types.is_struct(kind):
        return "struct"
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}"
    return str(kind)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _listed(counts: Mapping[str, int]) -> str:
    named = [
        f"{_text(name)} ({count:,})" if count else _text(name)
        for name, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    ]
    more = len(named) - _MOST_NAMED
    return ", ".join(named[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _text(name: str) -> str:
    """Return a name as itself: names come from others, and must not become markup or ours."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!~&])", r"\\\1", " ".join(name.split()))


def _code(text: str) -> str:
    quiet = " ".join(text.split()).replace("|", "\\|").replace("<!--", "<! --")
    return f"`` {quiet} ``" if "`" in quiet else f"`{quiet}`"


def _fenced(prompt: str) -> list[str]:
    longest = max((len(found) for found in re.findall(r"`+", prompt)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *prompt.replace("<!--", "<! --").splitlines(), fence]


def _link(source: str) -> str:
    return f"[{_text(source)}](https://huggingface.co/datasets/{source})"
