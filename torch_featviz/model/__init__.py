"""What has to be known about a model before it is looked at, each question answered once."""

from .layers import layer_names
from .layout import Layout

__all__ = ["Layout", "layer_names"]
