"""Facts about a model that the other rooms need; each question is answered in one place."""

from .layers import layer_names
from .layout import Layout

__all__ = ["Layout", "layer_names"]
