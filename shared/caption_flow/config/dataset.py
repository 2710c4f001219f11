"""The `dataset` section: what is captioned and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticKnownError

from caption_flow.config.plugins import plugged_in, plugged_in_kinds
from caption_flow.config.section import (
    INFERRED,
    FilePath,
    Location,
    Number,
    Section,
    Text,
    Texts,
    WholeNumber,
    unused,
)
from caption_flow.recipe.video import (
    DEFAULT_FRAMES,
    DEFAULT_MAX_BYTES,
    IMAGES,
    MOST_FRAMES,
    Form,
    Video,
)

LOCAL: Final = "local_filesystem"
"""The `processor_type` of a folder of images."""

HUB: Final = "huggingface_datasets"

_SOURCE_OF_TYPE: Final[Mapping[str, str]] = {
    "huggingface": "huggingface_datasets",
    "local_filesystem": "local_filesystem",
    "webdataset": "webdataset",
    "local": "local_filesystem",
}
_TYPE_OF_SOURCE: Final = {
    "huggingface_datasets": "huggingface",
    "local_filesystem": "local_filesystem",
    "webdataset": "webdataset",
}
_OLDER: Final = "huggingface_webdataset"
_OVER_THE_CONNECTION: Final = (
    "images travel over the workers' own connection, so no second server is started"
)


def _known(kind: str, ours: Mapping[str, str]) -> str:
    """Return a kind that we or an installed package can read; complain as a list of choices."""
    if kind in ours or plugged_in(kind) is not None:
        return kind
    *first, last = [repr(name) for name in (*ours, *plugged_in_kinds())]
    raise PydanticKnownError("literal_error", {"expected": f"{', '.join(first)} or {last}"})


DatasetType = Annotated[str, AfterValidator(lambda kind: _known(kind, _SOURCE_OF_TYPE))]
SourceKind = Annotated[str, AfterValidator(lambda kind: _known(kind, _TYPE_OF_SOURCE))]


class VideoConfig(Section):
    """Videos (`.mp4`, `.m4v`, `.mov`, `.webm`, `.mkv`) in folders and tars, captioned like images.

    Without this section they are left out, and the run says how many there were. Workers need
    `pip install 'caption-flow[video]'`. Of a video of duration D, the frames shown at
    D x (2k + 1) / 2N for k = 0 to N - 1 are taken, each once: one that is shorter than N frames, or
    stands still, gives fewer. A frame has at most 602,112 pixels (768 x 28 x 28), and is upright; a
    row's `image_width` and `image_height` are the video's own. A sample of a tar that has an image,
    too, is that image.
    """

    frames: WholeNumber = Field(
        default=DEFAULT_FRAMES,
        ge=1,
        le=MOST_FRAMES,
        description="How many frames of a video the model is shown, evenly spaced over it.",
    )
    passed_as: Form = Field(
        default=IMAGES,
        description="`images`: as so many images, for models that take several; `video`: as one "
        "video with the times of its frames, for models that take videos, such as Qwen2.5-VL (but "
        "not with the engine `openai`).",
    )
    max_mib: Number = Field(
        default=DEFAULT_MAX_BYTES // 2**20,
        gt=0,
        description="Largest file in MiB; a larger one is a failed row. Workers, and the "
        "orchestrator for those that it sends files to, hold a few whole files in memory.",
    )

    def video(self) -> Video:
        """Return it as recipes have it."""
        return Video(self.frames, self.passed_as, int(self.max_mib * 2**20))


class DatasetConfig(Section):
    """What is captioned.

    `type` says where it comes from; `processor_type`, which source reads it, follows from it.

    A folder's images have columns for `{column:NAME}` in prompts: the keys of `x.json` beside
    `x.jpg`; the column `text` from `x.txt`; and the columns of `metadata.csv`, `.jsonl` or
    `.parquet` in any of the folders, whose `file_name` names an image relative to that folder. The
    first of these that has a column counts, then the metadata nearest to the image. Only what
    prompts name is read, when an image is handed out; values become text and are kept in its row
    (as `column_NAME` where rows have a column of that name anyway). An image without the column has
    an empty string; if none of the first 2,000 has it, the run is refused. Files that cannot be
    used are logged and counted, and their images captioned without them. `text` is read once for
    each image of a run, and a `.txt` that still holds what the run wrote there is none, so that no
    run is told its own captions. `caption-flow run` leaves out images with a `.txt` unless
    `--existing` is `overwrite` or `append`.
    """

    type: DatasetType = Field(
        description="Where the images are: `local_filesystem`, a folder (`local` is the same); "
        "`huggingface`, a dataset on the hub; `webdataset`, tar shards; or the name of an "
        "installed source (see docs/sources.md)."
    )
    processor_type: SourceKind = Field(
        default=LOCAL,
        description="Source that reads the dataset: `local_filesystem`, `huggingface_datasets`, "
        "`webdataset` or an installed one. The older `huggingface_webdataset` counts as not set.",
        json_schema_extra={INFERRED: "from `type`"},
    )
    dataset_path: Location = Field(
        description="Folder, hub id (`org/name`), or where the tar shards are: a folder, a tar, or "
        "`http(s)://`, `s3://`, `gs://`, `az://`, `hf://`, with `{000..123}`, `{a,b}` and, but for "
        "HTTP, `*`; `::` between several."
    )
    name: str | None = Field(default=None, description="What people call the dataset.")
    version: str | None = Field(default=None, description="What people call this state of it.")
    split: Text = Field(default="train", description="Split of a hub dataset.")
    dataset_split: Text | None = Field(default=None, description="Another name of `split`.")
    dataset_config: Text | None = Field(
        default=None, description="Configuration (subset) of a hub dataset."
    )
    dataset_image_column: Text = Field(
        default="image", description="Column that holds the images themselves."
    )
    dataset_url_column: str = Field(
        default="image_url",
        description="Column that holds image URLs, read if there is no image column; empty: never "
        "by URL. Only public addresses are fetched, but with `CAPTIONFLOW_ALLOW_PRIVATE_URLS=1`.",
    )
    revision: Text | None = Field(
        default=None, description="Commit, branch or tag of a hub dataset; without it, the newest."
    )
    metadata_path: FilePath | None = Field(
        default=None, description="webshart's JSON index of the tar shards, file or folder."
    )
    recursive: bool = Field(
        default=True,
        description="Look into sub-folders, too. Images are told by their suffix, in upper case or "
        "lower, and files without one by their first bytes.",
    )
    follow_symlinks: bool = Field(
        default=False,
        description="Follow links to files and folders; without it they are left out.",
    )
    include_hidden: bool = Field(
        default=False, description="Take files and folders whose name begins with a dot, too."
    )
    include: Texts = Field(
        default=(),
        description="Patterns such as `*.jpg` or `photos/**`: only what matches one is taken.",
    )
    exclude: Texts = Field(
        default=(), description="Patterns of what is left out, even when `include` matches it."
    )
    video: VideoConfig | None = Field(
        default=None,
        description="Caption videos, too; `video: {}` takes the defaults. Not for hub datasets.",
    )
    mock_results: bool = Field(
        default=False, description="Another place for `vllm.mock_results`: make texts up."
    )
    http_bind_address: str | None = unused(
        "Address of a separate image server.", _OVER_THE_CONNECTION
    )
    public_address: str | None = unused(
        "Name under which workers reach a separate image server.", _OVER_THE_CONNECTION
    )
    http_port: int | None = unused("Port of a separate image server.", _OVER_THE_CONNECTION)
    buffer_size: int | None = unused(
        "Items read ahead.",
        "how far a dataset is read ahead follows from what workers ask for",
    )

    @model_validator(mode="before")
    @classmethod
    def _infer(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        raw = dict(raw)
        _infer_source(raw)
        _infer_split(raw)
        path = raw.get("dataset_path")
        if raw.get("processor_type") == LOCAL and isinstance(path, str):
            raw["dataset_path"] = _expand_home(path)
        return raw

    @model_validator(mode="after")
    def _has_videos(self) -> DatasetConfig:
        if self.video is not None and self.processor_type == HUB:
            raise ValueError("video is for folders and tars: rows of hub datasets are images")
        return self


def _infer_source(raw: dict[str, Any]) -> None:
    """Fill in `type` and `processor_type` from each other."""
    source = raw.get("processor_type")
    if source in (None, _OLDER):
        kind = raw.get("type")
        inferred = _SOURCE_OF_TYPE.get(str(kind))
        if inferred is None and isinstance(kind, str) and plugged_in(kind) is not None:
            inferred = kind
        if inferred is not None:
            raw["processor_type"] = inferred
        elif source is None:
            raw.pop("processor_type", None)
    elif "type" not in raw and source in _TYPE_OF_SOURCE:
        raw["type"] = _TYPE_OF_SOURCE[source]
    elif "type" not in raw and isinstance(source, str) and plugged_in(source) is not None:
        raw["type"] = source


def _infer_split(raw: dict[str, Any]) -> None:
    """Let `split` and `dataset_split` mean the same."""
    split, alias = raw.get("split"), raw.get("dataset_split")
    if split is not None and alias is not None and split != alias:
        raise ValueError(f"split is {split!r} and dataset_split is {alias!r}: they are one setting")
    if alias is not None:
        raw["split"] = alias


def _expand_home(path: str) -> str:
    # Only "~": turning the whole into a Path and back would drop a leading "./".
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise ValueError(f"dataset_path names a home folder that does not exist: {path}") from error
