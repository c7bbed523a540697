"""Model and images in, evidence out: why the model decided, and what excites its units."""

from .attribute import Attribution, attribute
from .deconvnet import deconvnet
from .faithfulness import Faithfulness, faithfulness
from .methods import METHODS
from .reasons import Reason, Reasons, reasons

__all__ = [
    "METHODS",
    "Attribution",
    "Faithfulness",
    "Reason",
    "Reasons",
    "attribute",
    "deconvnet",
    "faithfulness",
    "reasons",
]
