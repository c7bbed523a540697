"""Model in, tensors out: what each layer returns, recorded or summed up while the model runs."""

from .activations import Activations, Recent
from .finite import NonFinite
from .keep import Ring, ToCPU
from .modules import FeatureExtractor, FeatureTap
from .nonfinite import first_nonfinite
from .reduce import Histogram, Moments, Reducer, TopK, across_ranks, read_together
from .select import layer_names
from .session import capture, evaluating
from .shapes import shapes
from .statistics import Statistics

__all__ = [
    "Activations",
    "FeatureExtractor",
    "FeatureTap",
    "Histogram",
    "Moments",
    "NonFinite",
    "Recent",
    "Reducer",
    "Ring",
    "Statistics",
    "ToCPU",
    "TopK",
    "across_ranks",
    "capture",
    "evaluating",
    "first_nonfinite",
    "layer_names",
    "read_together",
    "shapes",
]
