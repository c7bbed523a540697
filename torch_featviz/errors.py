"""Every error that this package raises on purpose. Each is also the built-in error that a caller would expect.

Public calls check what kind of thing each argument is, before anything is done with it. One of the wrong kind is a
`DtypeError` (it has another type, or is no dense tensor of plain values), an `OptionError` (it is no such number, text,
flag or choice) or a `DeviceError` (a tensor on the meta device). That goes for all of them; `Raises` in a docstring
names what is particular to the call.
"""

from torch_featviz.printable import LONGEST, printable


class FeatvizError(Exception):
    """Base class of all errors that torch_featviz raises on purpose; what names in them would do to a terminal is
    written out."""

    def __str__(self) -> str:
        return printable(super().__str__(), lines=True, longest=LONGEST)


class LayerError(FeatvizError, LookupError):
    """The layer does not exist, did not run, or cannot be captured or shown."""


class ShapeError(FeatvizError, ValueError):
    """The tensor is empty, or has the wrong number of axes or the wrong size."""


class DtypeError(FeatvizError, TypeError):
    """The value has the wrong Python type or tensor dtype."""


class DeviceError(FeatvizError, RuntimeError):
    """The inputs are on another device than the model, or on the meta device, where nothing has a value."""


class OptionError(FeatvizError, ValueError):
    """An argument has an invalid value."""


class FileError(FeatvizError, OSError):
    """A file or folder cannot be read or written."""


class WeightsError(FeatvizError, RuntimeError):
    """Weights or data are not available, or do not fit the model."""


class MissingError(FeatvizError, ImportError):
    """An optional package is needed and not installed."""


class FeatvizWarning(UserWarning):
    """Base class of all warnings: something to look at; the program goes on."""


class FindingWarning(FeatvizWarning):
    """A problem that a `Monitor` found during training."""
