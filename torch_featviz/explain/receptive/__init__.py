"""What part of the input a unit can see, told by the operators of one forward."""

from .field import ReceptiveField, receptive_field

__all__ = ["ReceptiveField", "receptive_field"]
