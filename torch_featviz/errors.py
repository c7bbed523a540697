"""Every error this package raises on purpose; each also is the built-in error a caller would expect."""


class FeatvizError(Exception):
    """Root of all errors raised on purpose by torch_featviz."""


class LayerError(FeatvizError, LookupError):
    """A layer that does not exist, did not run, or cannot be shown."""


class ShapeError(FeatvizError, ValueError):
    """A tensor of another rank or size than asked for, or an empty one."""


class DtypeError(FeatvizError, TypeError):
    """A value whose type or dtype cannot be drawn or captured."""


class DeviceError(FeatvizError, RuntimeError):
    """Inputs on another device than the model."""


class OptionError(FeatvizError, ValueError):
    """An argument outside the values it may take."""


class FileError(FeatvizError, OSError):
    """A file or folder that cannot be read or written."""


class WeightsError(FeatvizError, RuntimeError):
    """Weights or data that cannot be had, or that do not fit the model."""


class MissingError(FeatvizError, ImportError):
    """A package that only some uses need, and that is not installed."""


class FeatvizWarning(UserWarning):
    """Something that a person should look at, and that stops nothing."""


class FindingWarning(FeatvizWarning):
    """What a `Monitor` found in a training."""
