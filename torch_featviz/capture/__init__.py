"""Capture the outputs of layers, or statistics of them, while the model runs."""

from torch_featviz.rooms import callable_room

from .activations import Activations, Recent
from .attention import Attention
from .keep import Ring, ToCPU
from .modules import FeatureExtractor, FeatureTap
from .reduce import Histogram, Moments, Reducer, TopK, across_ranks
from .session import capture
from .statistics import Statistics

__all__ = [
    "Activations",
    "Attention",
    "FeatureExtractor",
    "FeatureTap",
    "Histogram",
    "Moments",
    "Recent",
    "Reducer",
    "Ring",
    "Statistics",
    "ToCPU",
    "TopK",
    "across_ranks",
    "capture",
]

callable_room(__name__, capture)
