"""See what a convolutional network has learnt: its kernels, its feature maps, and what it makes of an image."""

from . import errors, zoo
from .capture import (
    Activations,
    FeatureExtractor,
    FeatureTap,
    Histogram,
    Moments,
    NonFinite,
    Ring,
    ToCPU,
    TopK,
    capture,
    first_nonfinite,
    layer_names,
    shapes,
)
from .errors import FeatvizError
from .picture import GridTiler, KernelNormalizer, Picture, Scale, normalize, tile, untile
from .views import confusion, curves, feature_maps, kernels, overview, pixels, predictions, samples
from .zoo import ModelCard, channel_stats

__version__ = "0.1.0"

__all__ = [
    "Activations",
    "FeatureExtractor",
    "FeatureTap",
    "FeatvizError",
    "GridTiler",
    "Histogram",
    "KernelNormalizer",
    "ModelCard",
    "Moments",
    "NonFinite",
    "Picture",
    "Ring",
    "Scale",
    "ToCPU",
    "TopK",
    "capture",
    "channel_stats",
    "confusion",
    "curves",
    "errors",
    "feature_maps",
    "first_nonfinite",
    "kernels",
    "layer_names",
    "normalize",
    "overview",
    "pixels",
    "predictions",
    "samples",
    "shapes",
    "tile",
    "untile",
    "zoo",
]
