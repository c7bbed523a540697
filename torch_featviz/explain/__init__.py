"""Model and images in, evidence out: why the model decided, and what excites its units."""

from .attribute import Attribution, attribute
from .deconvnet import deconvnet
from .faithfulness import Faithfulness, faithfulness
from .methods import METHODS

__all__ = [
    "METHODS",
    "Attribution",
    "Faithfulness",
    "attribute",
    "deconvnet",
    "faithfulness",
]
