"""``caption-flow export --format webdataset``: tars of images and texts, from whatever dataset."""

from __future__ import annotations

from caption_flow.cli.export_dataset import images_of
from caption_flow.cli.export_formats import DEFAULT_NAME, Request
from caption_flow.storage.contents import StorageContents
from caption_flow.storage.exporter.captioned import Listing
from caption_flow.storage.exporter.report import ExportReport
from caption_flow.storage.exporter.webdataset import TarLimits, export_webdataset


def write_tars(request: Request, contents: StorageContents, listing: Listing) -> ExportReport:
    """Write the tars that are asked for; the dataset is opened for it, or the command ends."""
    with images_of(request.data_dir, request.config, request.dataset) as images:
        return export_webdataset(
            contents,
            request.output,
            images,
            listing,
            name=DEFAULT_NAME,
            limits=TarLimits(request.shard_size, int(request.shard_mib * 2**20)),
            columns=request.columns,
            existing=request.existing,  # type: ignore[arg-type]  # the others have been refused
            watch=lambda rows: None if request.images_read is None else request.images_read(rows),
        )
