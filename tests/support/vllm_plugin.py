"""Plugins for vLLM: code that it loads in every process of its own, and in whoever imports it."""

from __future__ import annotations

from pathlib import Path


def lay_out_plugin(home: Path, source: str) -> Path:
    """Write a distribution with a plugin; return the folder that has to be in PYTHONPATH.

    ``source`` is a module with a function ``install``; vLLM calls it, perhaps more than once.
    """
    site = home / "plugins"
    about = site / "recorder-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "recorder.py").write_text(source)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: recorder\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[vllm.general_plugins]\nrecorder = recorder:install\n")
    return site
