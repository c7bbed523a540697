"""Where a `Monitor` puts what it saw: a folder, TensorBoard, W&B, MLflow, or anything with two methods."""

from pathlib import Path
from typing import Any

from .sink import Record, Sink

__all__ = ["Record", "Sink", "sinks_for"]


def sinks_for(to: Any) -> list[Sink]:
    """TODO replaced by merge."""
    if to is None:
        return []
    from .folder import FolderSink

    return [
        sink
        for each in (to if isinstance(to, (list, tuple)) else [to])
        for sink in ([FolderSink(each)] if isinstance(each, (str, Path)) else [each])
    ]
