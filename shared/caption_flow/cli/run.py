"""``caption-flow run``: everything on this machine in one command."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from caption_flow.cli.arrow import keep_pandas_out
from caption_flow.cli.configuration import WorkersOfRun, load_or_refuse, workers_of_run
from caption_flow.cli.crew import KEY_VARIABLE
from caption_flow.cli.engines import EngineKind, check_engine, check_video, require_vllm
from caption_flow.cli.failures import usage_error
from caption_flow.cli.folders import DATA_FOLDER, data_dir_beside, for_people
from caption_flow.cli.gpus import Shares, choose_gpus
from caption_flow.cli.logs import configure_logging
from caption_flow.cli.plan import Plan
from caption_flow.cli.retries import tell_of_retries
from caption_flow.cli.workspace import (
    NOT_SHARED,
    Job,
    Workspace,
    anchored,
    configuration_of,
    replaced,
)
from caption_flow.config.load import laid_over
from caption_flow.config.multidatabackend import Entry, entry_named
from caption_flow.config.orchestrator import OrchestratorConfig
from caption_flow.config.problems import ConfigError
from caption_flow.config.vllm import SYNTHETIC_MODEL
from caption_flow.recipe.video import MOST_FRAMES
from caption_flow.worker.core.placement import gpus_needed

DEFAULT_MODEL: Final = "Qwen/Qwen2.5-VL-3B-Instruct"
DEFAULT_PROMPT: Final = "Describe this image in detail."


class VideoAs(StrEnum):
    """How the frames of a video are passed to the model."""

    IMAGES = "images"
    VIDEO = "video"


class Existing(StrEnum):
    """What to do about images that have a caption file already."""

    SKIP = "skip"
    OVERWRITE = "overwrite"
    APPEND = "append"
    BACKUP = "backup"


def run(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of images; without it, the dataset of --dataset or --config.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help=f"What to ask about each image; may be repeated. [default: {DEFAULT_PROMPT}]",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"Hub id or folder of the model. [default: {DEFAULT_MODEL}]"
        ),
    ] = None,
    engine: Annotated[
        EngineKind | None,
        typer.Option(
            metavar="ENGINE",
            help="vllm, openai (any server with that API), or synthetic (made up, to try things "
            "out). [default: vllm]",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The server of the openai engine: http://HOST:PORT/v1."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="REF", help="Its key, if any: env:NAME or file:PATH.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Configuration with stages, sampling and more; options here win over it.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="FILE#ID",
            help="An entry of SimpleTuner's multidatabackend.json; relative paths in it begin at "
            "the working folder.",
        ),
    ] = None,
    workspace: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep all of this job in one folder: orchestrator.json, caption_data/, logs/, "
            "exports/ and report.json. Given alone, go on with the job that is in it.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the .txt files, or for captions.jsonl if the dataset is no folder. "
            "[default: beside the images; exports/ in the run's folder, or in --workspace]",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help=f"Folder of the run's results. [default: {DATA_FOLDER}/NAME beside the dataset]",
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="all, none, or numbers such as 0,2. [default: all]"),
    ] = None,
    existing: Annotated[
        Existing | None,
        typer.Option(
            metavar="HOW",
            help="Images of a folder that have a .txt already: skip leaves them out, overwrite "
            "replaces it, append adds to it, backup replaces it and keeps it as .txt.bak. "
            "[default: skip]",
        ),
    ] = None,
    export_column: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Output field that goes into the .txt files. [default: the last stage's]",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Caption at most this many images of the dataset."),
    ] = None,
    video_frames: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=MOST_FRAMES,
            help="Caption videos, too, by so many frames, evenly spaced; without it, they are "
            "skipped and counted.",
        ),
    ] = None,
    video_as: Annotated[
        VideoAs | None,
        typer.Option(
            metavar="HOW",
            help="How a video's frames are passed: images, or video for models that take videos. "
            "[default: images]",
        ),
    ] = None,
    dry_run_only: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be captioned and asked, then stop."),
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Let models run their own code on this machine."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Caption a folder of images, or another dataset, everything on this machine.

    Starts an orchestrator and one worker per GPU, and writes a .txt beside each image, or, where
    the dataset of --config is no folder, captions.jsonl. Results are
    kept as Parquet in a folder beside the dataset, so that running the same command again goes on
    where it stopped, and does nothing when everything is done. Ctrl-C stops cleanly; a second one
    at once.

    - `caption-flow run photos`
    - `caption-flow run photos --prompt "List the objects." --prompt "Name the art style."`
    - `caption-flow run photos --config configs/multi_stage.yaml`
    - `caption-flow run clips --video-frames 8`
    - `caption-flow run --dataset config/multidatabackend.json#photos --workspace jobs/photos`

    An image that cannot be captioned is a failed row with its reason, and no reason to stop. Exit
    codes: 0 done, or stopped by Ctrl-C; 1 the run failed, or not one image could be captioned;
    2 something asked for cannot be; 130 stopped at once.
    """
    place = None if workspace is None else Workspace.at(workspace)
    configure_logging("run", verbose=verbose, quiet=True, file_follows=place is not None)
    config = _base(config, place)
    entry = _entry(path, dataset)
    if path is None and entry is None and config is None:
        usage_error(_nothing_to_caption(place))
    if place is not None and data_dir is not None:
        usage_error("--workspace keeps the results in DIR/caption_data: drop --data-dir")
    engine_flags = _engine_flags(engine, base_url, api_key)
    workers = workers_of_run(config, engine_flags)
    check_engine(workers.config.engine, base_url=base_url, api_key=api_key)
    job = _job(
        place,
        config,
        _dataset_flags(path, entry)
        | _results_flags(path, data_dir, place)
        | _video_flags(video_frames, video_as)
        | _recipe_flags(prompt, model, is_all=config is None),
        laid_over(workers.written, engine_flags),
    )
    loaded = job.config
    as_written = loaded.recipe()
    kind = _engine_kind(workers, loaded)
    check_video(loaded.dataset.video, kind)
    if kind is EngineKind.SYNTHETIC:
        loaded = _rehearsal(loaded, path if data_dir is None and place is None else None)
    recipe = loaded.recipe()
    if export_column is not None and export_column not in recipe.output_fields:
        usage_error(
            f"--export-column {export_column}: no stage fills it; there are "
            f"{', '.join(recipe.output_fields)}"
        )
    plan = Plan(
        config=loaded,
        engine=str(kind),
        server=workers.config.engine.base_url if kind is EngineKind.OPENAI else None,
        worker_arguments=_worker_arguments(
            kind, workers.path, base_url, api_key, trust_remote_code, verbose
        ),
        worker_secrets=_worker_secrets(workers, api_key),
        gpus=_gpus(gpus, kind, workers, loaded),
        output=output,
        existing=(existing or Existing.SKIP).value,
        export_column=export_column or recipe.stages[-1].output_field,
        limit=limit,
        owner_options=workers.config.vllm.engine_keys(),
        as_written=as_written,
        workspace=place,
        job_config=job.content,
        replaced=job.replaced,
        notes=() if entry is None else entry.notes,
    )
    if plan.folder is None:
        _refuse_what_is_for_folders({"--existing": existing, "--export-column": export_column})
    raise typer.Exit(_carry_out(plan, dry_run_only))


def _refuse_what_is_for_folders(options: Mapping[str, object]) -> None:
    for option, given in options.items():
        if given is not None:
            usage_error(
                f"{option} is about the .txt files beside the images of a folder; this dataset is "
                "none, and its texts all go into captions.jsonl"
            )


def _carry_out(plan: Plan, dry_run_only: bool) -> int:
    # Only now: mistakes in what is asked for are answered before any of this is imported.
    from caption_flow.orchestrator.sources.base import SourceError  # noqa: PLC0415
    from caption_flow.orchestrator.sources.registry import source_for  # noqa: PLC0415

    try:
        source_for(plan.config.dataset.processor_type).check(plan.config.dataset)
    except SourceError as error:
        usage_error(error)
    if dry_run_only:
        from caption_flow.cli.dry_run import dry_run  # noqa: PLC0415

        return dry_run(plan)
    plan.check_folders()
    if plan.workspace is not None:
        from caption_flow.cli.job_report import refuse_mixing  # noqa: PLC0415

        refuse_mixing(plan)
    if plan.engine == EngineKind.VLLM:
        require_vllm(stage.model for stage in plan.config.recipe().stages)

    from caption_flow.cli.local_run import LocalRun  # noqa: PLC0415

    keep_pandas_out()
    tell_of_retries()
    return LocalRun(plan).run()


def _base(config: Path | None, place: Workspace | None) -> Path | None:
    """Return the file that says what the command line does not: a job's own, if none is named."""
    if config is None and place is not None and place.config.is_file():
        return place.config
    return config


def _entry(path: Path | None, reference: str | None) -> Entry | None:
    if reference is None:
        return None
    if path is not None:
        usage_error("FOLDER and --dataset both say what to caption: drop one")
    try:
        return entry_named(reference)
    except ConfigError as error:
        usage_error(f"--dataset: {error}")


def _nothing_to_caption(place: Workspace | None) -> str:
    if place is None:
        return "say what to caption: caption-flow run FOLDER (or --config FILE)"
    return (
        f"{for_people(place.folder)} holds no job yet (no {place.config.name}); say what to "
        "caption: caption-flow run FOLDER --workspace DIR (or --config FILE, or --dataset FILE#ID)"
    )


def _job(
    place: Workspace | None, file: Path | None, flags: Mapping[str, Any], worker: Mapping[Any, Any]
) -> Job:
    """Build the configuration from a file, if any, and what the command line says.

    ``worker`` is what its `worker` section says, with the command line's words over it.
    """
    overrides = {**(NOT_SHARED if place is None else place.owned()), "auth": None, **flags}
    loaded = load_or_refuse(file, overrides)
    if place is None:
        return Job(loaded.config, replaced=replaced(loaded.written, worker, overrides))
    dataset = loaded.config.dataset
    path = {"dataset.dataset_path": anchored(dataset)}
    content = laid_over(laid_over(loaded.written, flags), {**place.owned(), **path})
    try:
        job_config = configuration_of(place, content, worker)
    except ValueError as error:
        usage_error(f"{file}: {error}")
    here = dataset.model_copy(update={"dataset_path": path["dataset.dataset_path"]})
    config = loaded.config.model_copy(update={"dataset": here})
    is_own = file is not None and file.resolve() == place.config.resolve()
    others = () if is_own else replaced(loaded.written, worker, {**flags, **place.owned()})
    return Job(config, job_config, others)


def _dataset_flags(path: Path | None, entry: Entry | None) -> dict[str, Any]:
    if entry is not None:
        return {"dataset": dict(entry.dataset)}
    if path is not None:
        return {"dataset": {"type": "local_filesystem", "dataset_path": str(path)}}
    return {}


def _results_flags(
    path: Path | None, data_dir: Path | None, place: Workspace | None
) -> dict[str, Any]:
    if place is not None:
        return {}
    # The path decides where results go, also when a file names another place.
    folder = data_dir or (None if path is None else data_dir_beside(path))
    return {} if folder is None else {"storage.data_dir": str(folder)}


def _recipe_flags(prompts: list[str] | None, model: str | None, *, is_all: bool) -> dict[str, Any]:
    """Return what the command line says of the recipe; with ``is_all``, there is nothing else."""
    if is_all:
        return {
            "vllm.model": model or DEFAULT_MODEL,
            "vllm.inference_prompts": prompts or [DEFAULT_PROMPT],
        }
    flags: dict[str, Any] = {} if model is None else {"vllm.model": model}
    return flags | ({"vllm.inference_prompts": prompts, "vllm.stages": None} if prompts else {})


def _rehearsal(config: OrchestratorConfig, path: Path | None) -> OrchestratorConfig:
    """Keep made-up texts from counting as done: no model is credited, and results go elsewhere.

    Several models stay several: workers load them together or in turn, as those of the real run do.
    ``path`` is the dataset whose results would go beside it.
    """
    models = {stage.name: stage.model for stage in config.recipe().stages}
    several = len(set(models.values())) > 1
    stages = tuple(
        stage.model_copy(
            update={"model": f"{SYNTHETIC_MODEL}:{models[stage.name]}" if several else None}
        )
        for stage in config.vllm.stages
    )
    vllm = config.vllm.model_copy(update={"model": SYNTHETIC_MODEL, "stages": stages})
    storage = config.storage
    if path is not None:
        beside = data_dir_beside(path)
        elsewhere = beside.with_name(f"{beside.name}.synthetic")
        storage = storage.model_copy(update={"data_dir": elsewhere})
    return config.model_copy(update={"vllm": vllm, "storage": storage})


def _video_flags(frames: int | None, passed_as: VideoAs | None) -> dict[str, Any]:
    flags = {"dataset.video.frames": frames, "dataset.video.passed_as": passed_as}
    return {key: value for key, value in flags.items() if value is not None}


def _engine_flags(
    engine: EngineKind | None, base_url: str | None, api_key: str | None
) -> dict[str, Any]:
    flags = {"engine.type": engine, "engine.base_url": base_url, "engine.api_key": api_key}
    return {key: value for key, value in flags.items() if value is not None}


def _engine_kind(workers: WorkersOfRun, config: OrchestratorConfig) -> EngineKind:
    if config.mock_results:  # the recipe's wish, which workers follow whatever their engine
        return EngineKind.SYNTHETIC
    return EngineKind(workers.config.engine.type)


def _gpus(
    asked: str | None, kind: EngineKind, workers: WorkersOfRun, config: OrchestratorConfig
) -> Shares:
    if kind is EngineKind.OPENAI:
        if asked is not None:
            usage_error("--gpus is of no use to --engine openai: the model runs on its server")
        return Shares((None,))
    if workers.config.gpu_id is not None:
        if asked is not None:
            usage_error("--gpus and worker.gpu_id of the file both say which GPU: drop one")
        asked = ",".join(map(str, workers.config.gpu_id))
    owner_options = workers.config.vllm.engine_keys()
    each = (gpus_needed({**s.engine, **owner_options}) for s in config.recipe().stages)
    return choose_gpus(asked, max(each))


def _worker_arguments(
    kind: EngineKind,
    config: Path | None,
    base_url: str | None,
    api_key: str | None,
    trust_remote_code: bool,
    verbose: bool,
) -> list[str]:
    arguments = ["--engine", str(kind)]
    # What the machine's owner put into worker.yaml is for workers started by hand.
    arguments += ["--no-config"] if config is None else ["--config", str(config)]
    if kind is EngineKind.OPENAI and base_url is not None:
        arguments += ["--base-url", base_url]
    if kind is EngineKind.OPENAI and api_key is not None:
        # What stands on a command line, everybody on this machine can read.
        arguments += ["--api-key", f"env:{KEY_VARIABLE}"]
    if trust_remote_code:
        arguments.append("--trust-remote-code")
    if verbose:
        arguments.append("--verbose")
    return arguments


def _worker_secrets(workers: WorkersOfRun, api_key: str | None) -> dict[str, str]:
    """Return what workers are told through their environment; a file's key they read there."""
    key = workers.config.engine.api_key
    return {} if api_key is None or key is None else {KEY_VARIABLE: key.reveal()}
