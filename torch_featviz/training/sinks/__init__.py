"""Where a `Monitor` puts what it saw: a folder, TensorBoard, W&B, MLflow, or anything with two methods."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from torch_featviz.errors import OptionError

from .folder import FolderSink
from .mlflow import MLflowSink
from .sink import Record, Sink, edges, histograms, numbers, scalars, tag
from .tensorboard import TensorBoardSink
from .wandb import WandbSink

__all__ = [
    "FolderSink",
    "MLflowSink",
    "Record",
    "Sink",
    "TensorBoardSink",
    "WandbSink",
    "edges",
    "histograms",
    "numbers",
    "scalars",
    "sinks_for",
    "tag",
]

_CAN_BE = (
    "to must be a folder, a SummaryWriter, a run of wandb or MLflow, a Lightning logger of one of these three, "
    "an object with write(record) and close(), or a list of them"
)


def sinks_for(to: Any) -> list[Sink]:
    """The sinks for what a person gave as `to=`.

    Args:
        to: None, one thing, or a list or tuple of things. A thing is a path of a folder; a SummaryWriter of
            `torch.utils.tensorboard` or tensorboardX; what `wandb.init` or `mlflow.start_run` returned; a
            TensorBoardLogger, WandbLogger or MLFlowLogger of Lightning; a `Sink`.
    Returns:
        One sink a thing. None for a Lightning logger in a process that is not the first, as it logs nothing there.
    Raises:
        OptionError: a thing is none of these.
    Example:
        >>> class Print:
        ...     def write(self, record): print(record.step)
        ...     def close(self): pass
        >>> sinks_for(None), [type(sink).__name__ for sink in sinks_for(Print())]
        ([], ['Print'])
    """
    if to is None:
        return []
    return [sink for thing in (to if isinstance(to, (list, tuple)) else [to]) for sink in _sinks(thing)]


def _sinks(thing: Any) -> list[Sink]:
    if isinstance(thing, (str, os.PathLike)):
        return [FolderSink(thing)]
    if _is(thing, "Logger", "lightning.pytorch.loggers", "pytorch_lightning.loggers"):
        return _of_lightning(thing)
    if _is(thing, "Run", "wandb"):
        return [WandbSink(thing)]
    if _is(thing, "Run", "mlflow.entities"):
        return [MLflowSink(thing)]
    if not isinstance(thing, (type, io.IOBase)):  # a class has the methods of its objects, a file has write and close
        if isinstance(thing, Sink):
            return [thing]
        if callable(getattr(thing, "add_scalar", None)) and callable(getattr(thing, "add_histogram_raw", None)):
            return [TensorBoardSink(thing)]
    raise OptionError(f"{_CAN_BE}; got {thing!r}.")


def _of_lightning(logger: Any) -> list[Sink]:
    packages = "lightning.pytorch.loggers", "pytorch_lightning.loggers"
    known = [name for name in ("TensorBoardLogger", "WandbLogger", "MLFlowLogger") if _is(logger, name, *packages)]
    if not known:
        raise OptionError(f"{_CAN_BE}; got the Lightning logger {type(logger).__name__}, which has no sink.")
    experiment = logger.experiment
    if type(experiment).__name__ == "_DummyExperiment":  # what loggers have in all processes but the first
        return []
    if known == ["MLFlowLogger"]:
        return [MLflowSink(experiment.get_run(logger.run_id), client=experiment)]
    return _sinks(experiment)


def _is(thing: Any, kind: str, *modules: str) -> bool:
    """Whether it is of a class of one of the modules; what nobody imported, it cannot be of."""
    classes = [getattr(sys.modules.get(module), kind, None) for module in modules]
    return isinstance(thing, tuple(each for each in classes if isinstance(each, type)))
