"""Pictures as data URLs: encoded once, in threads, for all prompts and stages that want them."""

from __future__ import annotations

import asyncio
import base64
import io
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal

import msgspec
from PIL import Image

from caption_flow.worker.engines.base import PreparedImage, RequestRefused
from caption_flow.worker.engines.refusals import IMAGE_REJECTED

ImageFormat = Literal["jpeg", "png"]

_THREADS: Final = 4


class Pictures:
    """Encodes pictures; the ``keep`` used last are kept, by their content."""

    def __init__(self, *, image_format: ImageFormat, jpeg_quality: int, keep: int) -> None:
        self._format: ImageFormat = image_format
        self._quality = jpeg_quality
        self._keep = keep
        self._kept: OrderedDict[str, asyncio.Future[msgspec.Raw]] = OrderedDict()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="encode")

    async def data_url(self, image: PreparedImage) -> msgspec.Raw:
        """Return the picture as a JSON string: it goes into requests without being looked at again.

        Raises:
            RequestRefused: the picture cannot be encoded (JPEG ends at 65,535 pixels a side).

        """
        encoding = self._kept.get(image.content_hash)
        if encoding is None:
            encoding = asyncio.get_running_loop().run_in_executor(
                self._pool, _encode, image.pixels, self._format, self._quality
            )
            self._kept[image.content_hash] = encoding
            if len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        self._kept.move_to_end(image.content_hash)
        try:
            return await asyncio.shield(encoding)  # others wait for it, too
        except (OSError, ValueError) as error:
            self._kept.pop(image.content_hash, None)
            raise RequestRefused(
                IMAGE_REJECTED, f"the picture cannot be sent as {self._format}: {error}"
            ) from error

    def close(self) -> None:
        """Forget everything; what is being encoded is finished and thrown away."""
        self._kept.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _encode(pixels: Image.Image, image_format: ImageFormat, quality: int) -> msgspec.Raw:
    buffer = io.BytesIO()
    if image_format == "jpeg":
        # Colours at full resolution: thin coloured lines and small text survive.
        pixels.save(buffer, "JPEG", quality=quality, subsampling=0)
    else:
        pixels.save(buffer, "PNG", compress_level=1)
    encoded = base64.b64encode(buffer.getbuffer())
    return msgspec.Raw(b'"data:image/%b;base64,%b"' % (image_format.encode(), encoded))
