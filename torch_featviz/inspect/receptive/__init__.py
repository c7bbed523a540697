"""What part of the input a unit can see, told by the operators of one forward."""

from .field import Box, ReceptiveField, channels_at, described, interval, receptive_field
from .reach import Trace
from .trace import Tracer

__all__ = ["Box", "ReceptiveField", "Trace", "Tracer", "channels_at", "described", "interval", "receptive_field"]
