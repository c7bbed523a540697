"""Model and images in, evidence out: why the model decided, and what excites its units."""

from torch_featviz.choices import METHODS

from .attribute import Attribution, attribute
from .deconvnet import Projections, deconvnet, project
from .faithfulness import Faithfulness, faithfulness
from .reasons import Reason, Reasons, reasons

__all__ = [
    "METHODS",
    "Attribution",
    "Faithfulness",
    "Projections",
    "Reason",
    "Reasons",
    "attribute",
    "deconvnet",
    "faithfulness",
    "project",
    "reasons",
]
