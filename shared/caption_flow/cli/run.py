"""``caption-flow run``: everything on this machine in one command."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from caption_flow.cli.configuration import WorkersOfRun, load_or_refuse, workers_of_run
from caption_flow.cli.crew import KEY_VARIABLE
from caption_flow.cli.engines import EngineKind, check_engine, check_video, require_vllm
from caption_flow.cli.failures import usage_error
from caption_flow.cli.folders import DATA_FOLDER, data_dir_beside
from caption_flow.cli.gpus import Shares, choose_gpus
from caption_flow.cli.logs import configure_logging
from caption_flow.cli.plan import Plan
from caption_flow.config.orchestrator import OrchestratorConfig
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
            help="Folder of images; without it, the dataset of --config.",
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
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the .txt files, or for captions.jsonl if the dataset is no folder. "
            "[default: beside the images; exports/ in the run's folder]",
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

    An image that cannot be captioned is a failed row with its reason, and no reason to stop. Exit
    codes: 0 done, or stopped by Ctrl-C; 1 the run failed, or not one image could be captioned;
    2 something asked for cannot be; 130 stopped at once.
    """
    configure_logging("run", verbose=verbose, quiet=True)
    if path is None and config is None:
        usage_error("say what to caption: caption-flow run FOLDER (or --config FILE)")
    workers = workers_of_run(config, _engine_flags(engine, base_url, api_key))
    check_engine(workers.config.engine, base_url=base_url, api_key=api_key)
    loaded = _configuration(
        path, prompt, model, config, data_dir, _video_flags(video_frames, video_as)
    )
    as_written = loaded.recipe()
    kind = _engine_kind(workers, loaded)
    check_video(loaded.dataset.video, kind)
    if kind is EngineKind.SYNTHETIC:
        loaded = _rehearsal(loaded, path if data_dir is None else None)
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
    if plan.engine == EngineKind.VLLM:
        require_vllm(stage.model for stage in plan.config.recipe().stages)

    from caption_flow.cli.local_run import LocalRun  # noqa: PLC0415

    return LocalRun(plan).run()


def _configuration(
    path: Path | None,
    prompts: list[str] | None,
    model: str | None,
    config: Path | None,
    data_dir: Path | None,
    video: Mapping[str, Any],
) -> OrchestratorConfig:
    """Build the run's configuration from a file, if any, and what the command line says."""
    overrides: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "ssl": None, "auth": None}
    if path is not None:
        overrides["dataset"] = {"type": "local_filesystem", "dataset_path": str(path)}
        # The path decides where results go, also when a file names another place.
        overrides["storage.data_dir"] = str(data_dir or data_dir_beside(path))
    elif data_dir is not None:
        overrides["storage.data_dir"] = str(data_dir)
    overrides |= video
    if config is None:
        overrides["vllm.model"] = model or DEFAULT_MODEL
        overrides["vllm.inference_prompts"] = prompts or [DEFAULT_PROMPT]
    else:
        if model is not None:
            overrides["vllm.model"] = model
        if prompts:
            overrides["vllm.inference_prompts"] = prompts
            overrides["vllm.stages"] = None
    return load_or_refuse(config, overrides)


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
