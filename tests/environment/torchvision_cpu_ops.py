"""Lets CUDA builds of torchvision, torchaudio and torchcodec be imported beside a CPU torch.

In such a pair none of them can load its compiled half. torchvision then dies with "operator
torchvision::nms does not exist", because its shape rules are registered for two operators that
nobody declared; the others die with "Could not load this library", an `OSError` that their
importers do not expect. vLLM and transformers import all three, yet captioning uses only
torchvision's transforms, which are plain torch. So this module declares the two operators, without
kernels, lets torchaudio go on as a build without extensions, and makes torchcodec's an
`ImportError`. Whatever needs the compiled halves still fails when it is called.

Owns one import hook. `install_torchvision_ops.py` copies this file into an environment together
with a ``.pth`` line that calls `watch_imports` in every process of that environment, so it must
stay cheap: it imports nothing but `sys` until one of the watched modules is imported.
"""
# ruff: noqa: PLC0415 - importing late is this module's purpose

from __future__ import annotations

import sys

TYPE_CHECKING = False  # the name type checkers know, without the price of importing `typing`
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing_operators(_: ModuleType) -> None:
    """Declare those of torchvision's two operators that torch does not know yet."""
    import torch

    for operator in OPERATORS:
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", SCHEMA)


def tolerate_missing_library(extension_utils: ModuleType) -> None:
    """Let torchaudio take a library it cannot load for one it was built without."""
    load: Callable[[str], bool] = extension_utils._load_lib

    def load_if_possible(library: str) -> bool:
        try:
            return load(library)
        except OSError:
            return False

    extension_utils._load_lib = load_if_possible  # type: ignore[attr-defined] # torchaudio's own


def raise_import_error(internal_utils: ModuleType) -> None:
    """Let a torchcodec that cannot load its library look like one that is not installed."""
    load: Callable[[], None] = internal_utils.load_image_library

    def load_or_be_absent() -> None:
        try:
            load()
        except OSError as error:
            raise ImportError(f"torchcodec cannot be used: {error}") from error

    internal_utils.load_image_library = load_or_be_absent  # type: ignore[attr-defined] # theirs


# Module -> what to do right after it ran: torchvision's has just tried to load the operators, and
# the other two hold the functions that load the libraries.
_AFTER_IMPORT: dict[str, Callable[[ModuleType], None]] = {
    "torchvision.extension": declare_missing_operators,
    "torchaudio._extension.utils": tolerate_missing_library,
    "torchcodec._internally_replaced_utils": raise_import_error,
}


class _WatchedFinder:
    """Finds only the watched modules, with a loader that acts once they ran."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _AFTER_IMPORT:
            return None
        from importlib.machinery import PathFinder, SourceFileLoader

        class ActingLoader(SourceFileLoader):
            def exec_module(self, module: ModuleType) -> None:
                super().exec_module(module)
                _AFTER_IMPORT[name](module)

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = ActingLoader(spec.loader.name, spec.loader.path)
        return spec


def watch_imports() -> None:
    """Put the import hook in place; a second call changes nothing."""
    if _WatchedFinder not in sys.meta_path:
        sys.meta_path.insert(0, _WatchedFinder)
