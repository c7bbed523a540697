"""Model and images in, evidence out: why the model decided, and what excites its units."""

from .attribute import Attribution, attribute
from .methods import METHODS

__all__ = ["METHODS", "Attribution", "attribute"]
