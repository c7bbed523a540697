"""What part of the input a unit can see, told by the operators of one forward."""

from .field import Box, ReceptiveField, described, receptive_field
from .trace import Tracer

__all__ = ["Box", "ReceptiveField", "Tracer", "described", "receptive_field"]
