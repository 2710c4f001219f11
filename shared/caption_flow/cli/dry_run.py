"""``caption-flow run --dry-run``: what a run would caption and ask. Writes nothing at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Final

from caption_flow.cli.dry_listing import look_through
from caption_flow.cli.failures import EXIT_OK, usage_error
from caption_flow.cli.folders import for_people
from caption_flow.cli.outlook import SHOWN, Outlook
from caption_flow.cli.passed_over import told
from caption_flow.cli.plan import Plan, note_on_recipe, videos_skipped
from caption_flow.cli.stores import storage_failures
from caption_flow.orchestrator.sources.base import SourceError
from caption_flow.orchestrator.sources.local import SHARD, first_files, scan_options
from caption_flow.orchestrator.sources.local_columns import check_columns
from caption_flow.orchestrator.sources.metadata import was_made_for
from caption_flow.orchestrator.sources.scan import FoundFile
from caption_flow.recipe.quality import FLAGS, Quality
from caption_flow.recipe.stages import Recipe
from caption_flow.recipe.structure import Structure
from caption_flow.recipe.video import VIDEO
from caption_flow.storage.catalog import Catalog
from caption_flow.storage.database import open_for_reading
from caption_flow.storage.reader import StorageReader
from caption_flow.worker.core.placement import describe, place, takes_device
from caption_flow.worker.core.slabs import SPOKEN

_SHOWN_CHARACTERS: Final = 100
_BATCH: Final = 1000


def dry_run(plan: Plan) -> int:
    """Print what a run would caption and ask; return the exit code."""
    with storage_failures(plan.data_dir):
        try:
            outlook = look_ahead(plan)
        except SourceError as error:
            usage_error(error)
        note = note_on_recipe(plan.config)
    for line in _report(plan, outlook):
        print(line)
    for sentence in (plan.says_what_was_replaced, *plan.notes, note):
        if sentence is not None:
            print(f"Note: {sentence}")
    return EXIT_OK


def look_ahead(plan: Plan) -> Outlook:
    """Sort the images of a dataset as a run would. Raises `SourceError`, `StorageError`."""
    if plan.folder is None:
        return look_through(plan)
    return _look_into(plan.folder, plan)


def _look_into(folder: Path, plan: Plan) -> Outlook:
    known = _Known(plan)
    outlook = Outlook()
    options = scan_options(plan.config.dataset)
    columns = plan.config.recipe().columns
    with closing(known):
        if not was_made_for(plan.data_dir, columns):
            # On a run's own earlier texts nothing is left out: there it is asked of all images.
            check_columns(
                folder,
                options,
                columns,
                videos=plan.config.dataset.video is not None,
                skip=None if known.listed else plan.skip,
            )
        files = first_files(folder, options)
        while batch := list(islice(files, _BATCH)):
            indices = known.indices(batch)
            for file in batch:
                _count(outlook, plan, known, file, indices.get(file.path))
    return outlook


def _count(outlook: Outlook, plan: Plan, known: _Known, file: FoundFile, index: int | None) -> None:
    if index is not None and index in known.done:
        outlook.done += 1
        return
    if index is None:
        if file.is_video and plan.config.dataset.video is None:
            outlook.videos += 1
            return
        if plan.existing == "skip" and plan.has_caption(file.path):
            outlook.left_out += 1
            return
        if plan.limit is not None and known.listed >= plan.limit:
            outlook.beyond_limit += 1
            return
        known.listed += 1
    outlook.wanted += 1
    if len(outlook.first) < SHOWN:
        outlook.first.append(for_people(os.fsdecode(file.path)))


class _Known:
    """What an earlier run has left: which images are listed, and which of those are done."""

    def __init__(self, plan: Plan) -> None:
        self.listed = 0
        self.done: set[int] = set()
        self._catalog: Catalog | None = None
        ledger = open_for_reading(plan.data_dir)
        if ledger is None:
            return
        self._catalog = Catalog(plan.data_dir)
        with closing(ledger):
            query = "SELECT COALESCE(SUM(count), 0) FROM shards"
            self.listed = int(ledger.execute(query).fetchone()[0])
        with closing(StorageReader(plan.data_dir)) as reader:
            for batch in reader.batches(None, ["item_index"]):
                self.done.update(batch.column("item_index").to_pylist())

    def indices(self, files: list[FoundFile]) -> dict[bytes, int]:
        """Return the indices of those that are listed."""
        if self._catalog is None:
            return {}
        found = self._catalog.find(SHARD, [file.path for file in files])
        return {path: entry[0] for path, entry in found.items()}

    def close(self) -> None:
        if self._catalog is not None:
            self._catalog.close()


def _report(plan: Plan, outlook: Outlook) -> Iterator[str]:
    yield from _counted(plan, outlook)
    yield ""
    yield from _questions(plan.config.recipe())
    yield ""
    yield from _means(plan)
    yield ""
    yield "Nothing was written. Without --dry-run, the same command does all this."


def _counted(plan: Plan, outlook: Outlook) -> Iterator[str]:
    """Say what would be captioned, and what would not."""
    yield (
        f"Would caption {outlook.wanted:,} of the {outlook.total:,} images "
        f"in {plan.dataset_name}{':' if outlook.first else '.'}"
    )
    for name in outlook.first:
        yield f"  {name}"
    if outlook.wanted > len(outlook.first):
        yield f"  … and {outlook.wanted - len(outlook.first):,} more"
    if outlook.shards:
        yield f"They are in {outlook.shards:,} shard{'s' if outlook.shards > 1 else ''}."
    yield from _unreadable(outlook)
    if outlook.done:
        yield f"{outlook.done:,} {'is' if outlook.done == 1 else 'are'} done already."
    if outlook.left_out:
        which = "has" if outlook.left_out == 1 else "have"
        yield (
            f"{outlook.left_out:,} {which} a .txt already, and would be left out "
            "(--existing overwrite or append says otherwise)."
        )
    if outlook.beyond_limit:
        are = "is" if outlook.beyond_limit == 1 else "are"
        yield f"{outlook.beyond_limit:,} {are} beyond --limit {plan.limit}."
    if outlook.videos:
        yield f"{videos_skipped(outlook.videos)}."


def _means(plan: Plan) -> Iterator[str]:
    """Say by what it would be captioned, and where that would go."""
    if (video := plan.config.dataset.video) is not None:
        form = "one video" if video.passed_as == VIDEO else "images"
        yield f"Videos   up to {video.frames} frames of each, passed as {form}"
    yield f"Engine   {plan.engine}, {plan.workers}"
    if plan.gpus.note is not None:
        yield f"         {plan.gpus.note}"
    if (models := _models(plan)) is not None:
        yield f"Models   {models}"
    if plan.texts_file is None:
        where = "beside the images" if plan.output is None else f"in {for_people(plan.destination)}"
        yield f"Texts    .txt files {where}, from the column {plan.export_column}"
    else:
        yield f"Texts    {for_people(plan.texts_file)}"
    yield f"Results  Parquet and more, in {for_people(plan.data_dir)}"


def _unreadable(outlook: Outlook) -> Iterator[str]:
    if outlook.passed_over:
        count = len(outlook.passed_over)
        yield f"{count:,} shard{'' if count == 1 else 's'} cannot be read, or not wholly:"
        yield from told(outlook.passed_over)


def _models(plan: Plan) -> str | None:
    """Say how several models share a device, as the workers of a real run will."""
    recipe = plan.as_written or plan.config.recipe()
    placement = place(recipe, plan.owner_options, on_device=takes_device(plan.engine))
    return describe(placement, recipe, SPOKEN)


def _questions(recipe: Recipe) -> Iterator[str]:
    """Say what each stage asks, with outputs of earlier stages named where they will stand."""
    outputs = recipe.no_outputs()
    columns = {name: f"[column {name}]" for name in recipe.columns}
    for number, stage in enumerate(recipe.stages, 1):
        several = len(recipe.stages) > 1
        who = f"Stage {number} of {len(recipe.stages)}, {stage.name}, asks" if several else "Asks"
        columns_filled = f"column{'s' if stage.columns else ''} {', '.join(stage.fields)}"
        yield f"{who} {stage.model}; the answers are the {columns_filled}:"
        for prompt in recipe.render(stage.name, outputs, columns):
            yield f"  {prompt}"
        if demands := [*_form(stage.structure), *_care(stage.quality)]:
            yield f"  ({'; '.join(demands)})"
        texts = [f"[what {stage.name} says]"] * len(stage.prompts)
        parts = {column: (f"[{column} from {stage.name}]",) for column in stage.columns}
        outputs = outputs.add(stage.name, stage.output_field, texts, parts)


def _form(structure: Structure | None) -> Iterator[str]:
    """Say what every answer of a stage has to look like."""
    if structure is None:
        return
    if structure.json_schema is not None:
        keys = _listed(structure.json_schema.get("properties", ()))
        yield f"answers are JSON{f' with {keys}' if keys else ''}"
    elif structure.choice:
        yield f"answers are one of {_listed(structure.choice)}"
    else:
        yield f"answers match {_shortened(structure.regex or '')}"


def _care(quality: Quality) -> Iterator[str]:
    """Say what is done about answers that look wrong, beyond flagging each of them."""
    if quality.flags != FLAGS:
        yield f"flagged for {_listed(quality.flags) or 'nothing'}"
    if retry := quality.retry if quality.retry.attempts else None:
        times = "once" if retry.attempts == 1 else f"up to {retry.attempts} times"
        flags = [flag for flag in retry.flags if flag in quality.flags]
        after = "any flag" if tuple(flags) == FLAGS else _listed(flags)
        sampling = _listed(f"{name} {value}" for name, value in retry.sampling.items())
        yield f"asked again {times} after {after}, with {sampling}"


def _listed(names: Iterable[str]) -> str:
    return _shortened(", ".join(names))


def _shortened(text: str) -> str:
    return for_people(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")
