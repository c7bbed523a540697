"""Run a model once, without changing it, and describe it: layers in order, shapes, compute, receptive fields."""

from .activations import activations
from .finite import NonFinite
from .nonfinite import first_nonfinite
from .receptive import ReceptiveField, receptive_field
from .shapes import shapes
from .summary import Summary, summary

__all__ = [
    "NonFinite",
    "ReceptiveField",
    "Summary",
    "activations",
    "first_nonfinite",
    "receptive_field",
    "shapes",
    "summary",
]
