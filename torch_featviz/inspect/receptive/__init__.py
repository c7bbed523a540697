"""What part of the input a unit can see, told by the operators of one forward."""

from .field import ReceptiveField, described, receptive_field
from .trace import Tracer

__all__ = ["ReceptiveField", "Tracer", "described", "receptive_field"]
