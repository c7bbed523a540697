"""Where a `Monitor` puts what it saw: a folder, TensorBoard, W&B, MLflow, or anything with two methods."""

from .sink import Record, Sink

__all__ = ["Record", "Sink"]
