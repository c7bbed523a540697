"""What has to be known about a model before it is looked at, each question answered once."""

from .layers import layer_names

__all__ = ["layer_names"]
