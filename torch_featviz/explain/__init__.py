"""Model and images in, evidence out: why the model decided, and what excites its units."""

from .attribute import Attribution, attribute
from .deconvnet import deconvnet
from .faithfulness import Faithfulness, faithfulness
from .methods import METHODS
from .patches import Patches, TopPatches, top_patches
from .receptive import ReceptiveField, receptive_field

__all__ = [
    "METHODS",
    "Attribution",
    "Faithfulness",
    "Patches",
    "ReceptiveField",
    "TopPatches",
    "attribute",
    "deconvnet",
    "faithfulness",
    "receptive_field",
    "top_patches",
]
