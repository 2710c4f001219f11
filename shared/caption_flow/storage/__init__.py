"""Reading and writing what a run keeps on disk."""

from caption_flow.storage.contents import StorageContents
from caption_flow.storage.errors import StorageError
from caption_flow.storage.manager import StorageManager

__all__ = ["StorageContents", "StorageError", "StorageManager"]
