"""A network while it learns: what its layers return, what its weights become."""

from .history import Bins, History, LayerFigures, ParameterFigures, Sample
from .monitor import Monitor

__all__ = ["Bins", "History", "LayerFigures", "Monitor", "ParameterFigures", "Sample"]
