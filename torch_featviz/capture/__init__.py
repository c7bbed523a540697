"""Model in, tensors out: what each layer returns, recorded while the model runs."""

from .activations import Activations
from .modules import FeatureExtractor, FeatureTap
from .select import layer_names
from .session import capture, evaluating
from .shapes import shapes

__all__ = ["Activations", "FeatureExtractor", "FeatureTap", "capture", "evaluating", "layer_names", "shapes"]
