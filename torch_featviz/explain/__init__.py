"""Explanations: why a model decided, and what activates its units."""

from torch_featviz.choices import METHODS
from torch_featviz.model.boxes import Boxes

from .attack import Adversarial, attack
from .attribute import attribute
from .attribution import Attribution
from .deconvnet import Projections, deconvnet, project
from .faithfulness import Faithfulness, faithfulness
from .reasons import Reason, Reasons, reasons
from .verdict import Verdict

__all__ = [
    "METHODS",
    "Adversarial",
    "Attribution",
    "Boxes",
    "Faithfulness",
    "Projections",
    "Reason",
    "Reasons",
    "Verdict",
    "attack",
    "attribute",
    "deconvnet",
    "faithfulness",
    "project",
    "reasons",
]
